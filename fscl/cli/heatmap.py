"""``fscl heatmap`` draws the similarity of the tasks in a bank."""

from pathlib import Path
from typing import Annotated

import typer

from fscl.choices import Aggregate, Metric
from fscl.cli.options import choice
from fscl.errors import FsclError, printable

__all__ = ["heatmap"]


def heatmap(
    banks: Annotated[list[Path], typer.Argument(help="Bank files (several must share their coefficients).")],
    out: Annotated[Path, typer.Option("-o", "--out", help="PNG, SVG or PDF file.")] = Path("heatmap.png"),
    metric: Annotated[str, choice(Metric, "How two atom sets of a layer are compared.")] = "cosine",
    aggregate: Annotated[str, choice(Aggregate, "How layers become one number.")] = "product",
) -> None:
    """Draw the task-to-task similarity of the atoms in a bank; no data is needed."""
    from matplotlib.figure import Figure

    from fscl.atoms.bank import AtomBank
    from fscl.files import write_atomically
    from fscl.plots import similarity_heatmap, similarity_label

    if out.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise FsclError(f"{out}: unknown kind of figure; use .png, .svg or .pdf")
    first, *others = [AtomBank.load(path) for path in banks]
    bank = first.merge(*others)
    if len(bank) < 2:
        raise FsclError(f"{banks[0]}: {len(bank)} task in the bank; a heatmap needs at least 2")
    similarity = bank.similarity(metric, aggregate).numpy()
    figure = similarity_heatmap(similarity, bank.names, label=similarity_label(metric, aggregate)).figure
    assert isinstance(figure, Figure)  # not a SubFigure
    write_atomically(out, lambda temporary: figure.savefig(temporary, dpi=150))
    typer.echo(
        f"{len(bank)} tasks, {len(bank.layers)} layers, {metric} ({aggregate} over layers) -> {printable(str(out))}"
    )
