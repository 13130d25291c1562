"""``fscl list`` lists the benchmarks and strategies."""

from fscl.cli.options import Data

__all__ = ["list_"]


def list_(data: Data = None) -> None:
    """List the benchmarks and strategies, and whether each benchmark's data is present."""
    from rich.console import Console
    from rich.table import Table

    from fscl.data.places import find_data
    from fscl.runs.recipe import find_recipes, load_benchmark, load_strategy

    console = Console()
    benchmarks = Table("benchmark", "what it is", "data", title="Benchmarks", title_justify="left", box=None)
    for name in find_recipes("benchmarks"):
        recipe = load_benchmark(name)
        present = find_data(recipe.data.name, data) is not None
        benchmarks.add_row(name, recipe.description, "[green]present[/]" if present else "[yellow]missing[/]")
    strategies = Table("strategy", "what it is", title="Strategies", title_justify="left", box=None)
    for name in find_recipes("strategies"):
        strategies.add_row(name, load_strategy(name).description)
    console.print(benchmarks)
    console.print()
    console.print(strategies)
