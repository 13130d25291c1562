"""``fscl list`` lists the benchmarks and strategies, and the federations and their methods."""

from typing import TYPE_CHECKING

from fscl.cli.options import Data

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["list_"]


def list_(data: Data = None) -> None:
    """List benchmarks and strategies, federations and methods, and whether the data of each benchmark is present."""
    from rich.console import Console

    console = Console()
    for position, table in enumerate(
        (
            _benchmarks("Benchmarks", "benchmark", data, federated=False),
            _strategies("Strategies", "strategy", federated=False),
            _benchmarks("Federations", "federation", data, federated=True),
            _strategies("Methods of federations", "method", federated=True),
        )
    ):
        if position:
            console.print()
        console.print(table)


def _benchmarks(title: str, heading: str, data: Data, federated: bool) -> "Table":
    from rich.table import Table

    from fscl.data.places import find_data
    from fscl.runs.recipe import load_any_benchmark, names_of

    table = Table(heading, "what it is", "data", title=title, title_justify="left", box=None)
    for name in names_of("benchmarks", federated):
        recipe = load_any_benchmark(name)
        present = find_data(recipe.data.name, data) is not None
        table.add_row(name, recipe.description, "[green]present[/]" if present else "[yellow]missing[/]")
    return table


def _strategies(title: str, heading: str, federated: bool) -> "Table":
    from rich.table import Table

    from fscl.runs.recipe import load_strategy, names_of

    table = Table(heading, "what it is", title=title, title_justify="left", box=None)
    for name in names_of("strategies", federated):
        table.add_row(name, load_strategy(name).description)
    return table
