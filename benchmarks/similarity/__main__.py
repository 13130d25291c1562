"""How far similarity without data can be believed, measured on real images; writes the page that says so.

uv run python -m benchmarks.similarity --data DIR            # hours; stopped, it goes on where it was
uv run python -m benchmarks.similarity --data DIR --quick    # minutes, Fashion-MNIST alone
uv run python -m benchmarks.similarity --page                # the page anew, from the results in the folder
"""

import os
from pathlib import Path
from typing import Annotated, Optional

import typer
from rich.console import Console

from benchmarks.similarity.cost import cost_part
from benchmarks.similarity.page import parts_of, write_page
from benchmarks.similarity.run import FILE, gather, read_results
from benchmarks.similarity.units import Context
from fscl.cli.options import Data, check_writable, complain
from fscl.data.datasets import load_images
from fscl.data.places import data_root
from fscl.errors import FsclError


def similarity(
    data: Data = None,
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("-o", "--out", help="Folder of the page; reports/similarity, or WORK/quick with --quick."),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Minutes instead of hours: small populations.")] = False,
    work: Annotated[Path, typer.Option(help="Folder of trained networks, to go on from.")] = Path("runs/evidence"),
    jobs: Annotated[Optional[int], typer.Option(help="Units at a time; by default one a core.")] = None,  # noqa: UP045
    only: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Units whose names start so: the name of a section, such as agreement, or longer."),
    ] = None,
    speed: Annotated[Path, typer.Option(help="What python -m benchmarks.speed measured, for the costs.")] = Path(
        "reports/speed/results.json"
    ),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Measure finished units again.")] = False,
    page: Annotated[bool, typer.Option("--page", help="Measure nothing; make the page from the results.")] = False,
) -> None:
    """Measure, on real images, how far similarity without data can be believed; write the page that says so.

    Trains small networks on Fashion-MNIST and CIFAR-100 (with --quick on Fashion-MNIST alone). What is finished is kept
    and not measured again.
    """
    if jobs is not None and jobs < 1:
        raise FsclError(f"--jobs is {jobs}; it must be at least 1")
    folder = out or (work / "quick" if quick else Path("reports/similarity"))
    for place in (folder,) if page else (folder, work):
        check_writable(place)
    costs = speed if speed.exists() else None
    if costs:
        cost_part(costs)  # a file that cannot be read is refused now, not hours later
    console = Console()
    if page:
        results = read_results(folder / FILE)
    else:
        base = str(data_root(data).absolute())
        with console.status("Reading images ..."):
            for images in ("fmnist",) if quick else ("fmnist", "cifar100"):
                load_images(images, base)  # missing images are refused before anything is trained
        results = gather(Context(base, work, quick), folder, jobs or os.cpu_count() or 1, only, overwrite, console)
    with console.status("Drawing the page ..."):
        file = write_page(results, parts_of(results, costs), folder)
    if not costs:
        typer.echo(f"no {speed}: the page is without costs; python -m benchmarks.speed measures them", err=True)
    typer.echo(f"{len(results.units)} units -> {file}")


if __name__ == "__main__":
    try:
        typer.run(similarity)
    except FsclError as error:
        complain(error)
        raise SystemExit(2) from error
