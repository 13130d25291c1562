"""``fscl similarity`` compares fine-tuned checkpoints by their weights."""

from pathlib import Path
from typing import Annotated, Optional

import typer

from fscl.cli.options import check_writable
from fscl.errors import FsclError
from fscl.text import printable

__all__ = ["similarity"]


def similarity(
    checkpoints: Annotated[
        list[Path],
        typer.Argument(help="Files (.pt, .pth, .pth.tar, .bin, .ckpt, .safetensors) of one architecture, or folders."),
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="Output folder.")] = Path("similarity"),
    arch: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Network of the checkpoints: torchvision:resnet18, pytorchcv:NAME or module:callable."),
    ] = None,
    atoms: Annotated[
        int,
        typer.Option(
            help="Atoms of a 3x3 layer for each start. 9 atoms represent one network exactly; 9 per network represent "
            "all of them exactly."
        ),
    ] = 9,
    metric: Annotated[str, typer.Option(help="cosine, filter, grassmann or projection.")] = "cosine",
    aggregate: Annotated[
        str,
        typer.Option(
            help="mean, product (of squares) or depth, over layers. The mean has the same scale for any number of "
            "layers. Over 20 layers the product is near 0 except for copies. depth needs layers in order (--arch)."
        ),
    ] = "mean",
    bank: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Save the networks as an atom bank in this .safetensors file; needs --arch."),
    ] = None,
    skip_broken: Annotated[
        bool, typer.Option("--skip-broken", help="Leave out files that cannot be used, and list them.")
    ] = False,
) -> None:
    """Compare fine-tuned checkpoints by their weights: which are similar, and which share a start. No data is needed.

    Writes similarity.csv, similarity.json, similarity.png and clustered.png. All convolutions, linear layers and
    projections of attention are compared, but for the last linear layer, the head. If other layers cannot be compared,
    they are listed and the numbers are not trusted.
    """
    from rich.console import Console

    from fscl.compare.architecture import Architecture
    from fscl.compare.checkpoints import load_checkpoints
    from fscl.compare.comparison import bank_note, check_measure, compare, lines, write_comparison
    from fscl.compare.joint import joint_decompose

    check_measure(metric, aggregate)
    if atoms < 1:
        raise FsclError(f"--atoms is {atoms}; it must be at least 1")
    if bank is not None and (arch is None or bank.suffix != ".safetensors"):
        raise FsclError(f"--bank {bank}: give --arch and a .safetensors file; a bank restores networks")
    architecture = None if arch is None else Architecture(arch)
    loaded = load_checkpoints(checkpoints, architecture, skip_broken)
    if bank is not None:
        check_writable(bank.parent, "--bank")
    check_writable(out)
    with Console(stderr=True).status(f"Comparing {len(loaded.states)} checkpoints ..."):
        joint = joint_decompose(loaded.states, atoms, loaded.layers)
        compared = compare(joint, metric, aggregate, loaded.not_compared)
    extra = {
        "arch": arch,
        "files": {name: printable(str(path)) for name, path in loaded.files.items()},
        "left_out": {printable(str(path)): reason for path, reason in loaded.left_out.items()},
    }
    written = write_comparison(compared, out, extra)
    note = ""
    if bank is not None and architecture is not None:
        compared.joint.bank(architecture.network).save(bank)
        note = bank_note(compared)
    for line in [*lines(compared), *([f"Note: {note}"] if note else [])]:
        typer.echo(line)
    for path, reason in loaded.left_out.items():
        typer.echo(f"left out: {printable(str(path))}: {' '.join(reason.split())}", err=True)
    typer.echo(f"-> {', '.join(printable(str(file)) for file in [*written, *([bank] if bank else [])])}")
