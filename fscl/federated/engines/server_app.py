"""Flower's ServerApp for a function."""

from collections.abc import Callable

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

__all__ = ["server_app"]


def server_app(serve: Callable[[Grid, Context], object]) -> ServerApp:
    """A ServerApp that calls ``serve(grid, context)``."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        serve(grid, context)

    return app
