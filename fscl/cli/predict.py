"""``fscl predict`` classifies images with the network that a run learned for a task."""

from pathlib import Path
from typing import Annotated, Optional

import typer

from fscl.cli.options import AsJson, Trust
from fscl.cli.output import Output
from fscl.errors import FsclError, printable

__all__ = ["predict"]


def predict(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run, such as runs/split_digits/ewc/seed_0.")],
    images: Annotated[list[Path], typer.Argument(help="Image files, or folders with image files at any depth.")],
    task: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="The task's number, from 0, or its name; not needed with one network for all tasks."),
    ] = None,
    top: Annotated[int, typer.Option(help="Classes shown for each image.", min=1)] = 3,
    as_json: AsJson = False,
    trust: Trust = False,
) -> None:
    """Classify images with the network that a run learned for a task: the likeliest classes and their probabilities.

    With --json all probabilities are printed.

    Images are resized to the size of the training images. If these were grey, colours become grey.
    """
    from rich.markup import escape
    from rich.table import Table

    from fscl.runs.results import find_task

    find_task(run, task)  # mistakes are told before anything slow is imported
    if missing := [path for path in images if not path.exists()]:
        raise FsclError(f"{missing[0]}: no such file or folder")
    output = Output(as_json=as_json)
    with output.working("Loading Avalanche and PyTorch ..."):
        from fscl.data.image_files import SUFFIXES, read_each
        from fscl.runs.serving import load_network

        files = [file for path in images for file in _image_files(path, SUFFIXES)]
        network = load_network(run, task, trust=trust)
    with output.working(f"Reading {len(files)} images ..."):
        probabilities = network.probabilities(read_each(files, network.image_shape))
    output.json(
        [
            {"file": str(file), "probabilities": dict(zip(network.classes, shares, strict=True))}
            for file, shares in zip(files, probabilities.tolist(), strict=True)
        ]
    )
    table = Table("image", "class", "probability", box=None)
    for file, shares in zip(files, probabilities, strict=True):
        best = shares.topk(min(top, len(network.classes)))
        table.add_row(
            escape(printable(str(file))),
            "\n".join(escape(network.classes[i]) for i in best.indices.tolist()),
            "\n".join(f"{100 * share:.1f} %" for share in best.values.tolist()),
        )
    output.table(lambda _: table)


def _image_files(path: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """The file, or all image files below a folder in the order of their names.

    Raises:
        FsclError: the folder has none.
    """
    if not path.is_dir():
        return [path]
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in suffixes and file.is_file())
    if not files:
        raise FsclError(f"{path}: no images in it; files that end in {', '.join(suffixes)} would do")
    return files
