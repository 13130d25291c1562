"""``fscl similarity`` compares fine-tuned checkpoints by their weights."""

from pathlib import Path
from typing import Annotated, Optional

import typer

from fscl.choices import Aggregate, Metric
from fscl.cli.options import AsJson, Quiet, check_writable, choice
from fscl.cli.output import Output
from fscl.errors import FsclError, printable

__all__ = ["similarity"]


def similarity(
    checkpoints: Annotated[
        list[Path],
        typer.Argument(
            help="Files (.pt, .pth, .pth.tar, .bin, .ckpt, .safetensors) of one architecture, folders of them, or "
            "folders with model.safetensors."
        ),
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="Output folder.")] = Path("similarity"),
    arch: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            help="Network of the checkpoints: resnet18 (torchvision), timm:NAME, pytorchcv:NAME or module:callable."
        ),
    ] = None,
    state: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(metavar="KEY", help="Which network of each file, if it holds several: state_dict_ema, generator."),
    ] = None,
    atoms: Annotated[
        int,
        typer.Option(
            help="Atoms of a 3x3 layer for each start. 9 atoms represent one network exactly; 9 per network represent "
            "all of them exactly."
        ),
    ] = 9,
    metric: Annotated[str, choice(Metric, "How two atom sets of a layer are compared.")] = "cosine",
    aggregate: Annotated[
        str,
        choice(
            Aggregate,
            "How layers become one number. The mean has the same scale for any number of layers. Over 20 layers the "
            "product (of squares) is near 0 except for copies. depth needs layers in order (--arch).",
        ),
    ] = "mean",
    bank: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Save the networks as an atom bank in this .safetensors file; needs --arch."),
    ] = None,
    skip_broken: Annotated[
        bool, typer.Option("--skip-broken", help="Leave out files that cannot be used, and list them.")
    ] = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Compare fine-tuned checkpoints by their weights: which are similar, and which share a start. No data is needed.

    Writes similarity.csv, similarity.json, similarity.png and clustered.png. All convolutions, linear layers and
    projections of attention are compared, but for the last linear layer, the head. The verdict names the layers that
    are left out, and says whether to trust the numbers.
    """
    from fscl.catalog import check_network_name, full_name
    from fscl.compare.checkpoints import check_enough, find_checkpoints

    if atoms < 1:
        raise FsclError(f"--atoms is {atoms}; it must be at least 1")
    if bank is not None and (arch is None or bank.suffix != ".safetensors"):
        raise FsclError(f"--bank {bank}: give --arch and a .safetensors file; a bank restores networks")
    check_enough(len(find_checkpoints(checkpoints)))
    if arch is not None:
        check_network_name(full_name(arch))

    # these import torch, which takes seconds; a mistake is told before
    from fscl.compare.checkpoints import Architecture, load_checkpoints
    from fscl.compare.comparison import compare, write_comparison
    from fscl.compare.comparison_text import bank_note, lines
    from fscl.compare.joint import joint_decompose

    output = Output(quiet, as_json)
    architecture = None if arch is None else Architecture(arch)
    loaded = load_checkpoints(checkpoints, architecture, skip_broken, state, progress=not quiet)
    if bank is not None:
        check_writable(bank.parent, "--bank")
    check_writable(out)
    with output.working(f"Comparing {len(loaded.states)} checkpoints ..."):
        joint = joint_decompose(loaded.states, atoms, loaded.layers)
        compared = compare(joint, metric, aggregate, loaded.not_compared)
    extra = {
        "arch": arch,
        "state": state,
        "files": {name: printable(str(path)) for name, path in loaded.files.items()},
        "left_out": {printable(str(path)): reason for path, reason in loaded.left_out.items()},
    }
    written = write_comparison(compared, out, extra)
    notes = []
    if unread := [printable(key) for key in loaded.unread]:
        notes.append(f"the files hold {', '.join(unread)}, too; --state {unread[0]} compares it")
    if bank is not None and architecture is not None:
        compared.joint.bank(architecture.network).save(bank)
        notes.append(bank_note(compared))
    for line in [*lines(compared), *(f"Note: {note}" for note in notes if note)]:
        output.line(line)
    for path, reason in loaded.left_out.items():
        typer.echo(f"left out: {printable(str(path))}: {' '.join(reason.split())}", err=True)
    files = [printable(str(file)) for file in [*written, *([bank] if bank else [])]]
    output.line(f"-> {', '.join(files)}")
    output.json({**compared.as_data(), **extra, "notes": notes, "written": files})
