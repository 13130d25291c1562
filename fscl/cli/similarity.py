"""``fscl similarity``: fine-tuned checkpoints compared by their filters."""

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
        typer.Option(help="Their network: torchvision:resnet18, pytorchcv:NAME, or your own module:callable."),
    ] = None,
    atoms: Annotated[
        int,
        typer.Option(help="Atoms of a 3x3 layer for each start; 9 are those of one network, 9 a network are exact."),
    ] = 9,
    metric: Annotated[str, typer.Option(help="cosine, filter, grassmann or projection.")] = "cosine",
    aggregate: Annotated[
        str,
        typer.Option(
            help="mean, product (of squares) or depth, over layers. The mean reads the same at any depth; over 20 "
            "layers the product is near 0 for all but copies, and depth needs the layers in order (--arch)."
        ),
    ] = "mean",
    bank: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Save the networks as an atom bank in this .safetensors file; needs --arch."),
    ] = None,
    skip_broken: Annotated[
        bool, typer.Option("--skip-broken", help="Leave out files that cannot be used, and say which.")
    ] = False,
) -> None:
    """Compare fine-tuned checkpoints by their filters: which are alike, and which share a start. No data is needed.

    Writes similarity.csv, similarity.json, similarity.png and clustered.png. 1x1 convolutions have no spatial part and
    are not compared. Other convolutions that cannot be compared are named, and then the numbers are not trusted.
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
    found = load_checkpoints(checkpoints, architecture, skip_broken)
    if bank is not None:
        check_writable(bank.parent, "--bank")
    check_writable(out)
    with Console(stderr=True).status(f"Comparing {len(found.states)} checkpoints ..."):
        joint = joint_decompose(found.states, atoms, found.layers)
        compared = compare(joint, metric, aggregate, found.not_compared)
    more = {
        "arch": arch,
        "files": {name: printable(str(path)) for name, path in found.files.items()},
        "left_out": {printable(str(path)): reason for path, reason in found.left_out.items()},
    }
    written = write_comparison(compared, out, more)
    note = ""
    if bank is not None and architecture is not None:
        compared.joint.bank(architecture.network).save(bank)
        note = bank_note(compared)
    for line in [*lines(compared), *([f"Note: {note}"] if note else [])]:
        typer.echo(line)
    for path, reason in found.left_out.items():
        typer.echo(f"left out: {printable(str(path))}: {' '.join(reason.split())}", err=True)
    typer.echo(f"-> {', '.join(printable(str(file)) for file in [*written, *([bank] if bank else [])])}")
