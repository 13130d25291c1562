"""A Flower app that runs the recipes of a federation on a deployment: a SuperLink, and a SuperNode for each client.

A project of Flower needs no code for it, see ``examples/flower_recipe/pyproject.toml``. Its configuration names the
recipes for server and clients: ``benchmark``, ``strategy``, ``seed``, ``data`` and ``settings``. Settings are changes
such as ``training.epochs=2``, with ``;`` between them. For the server it also has ``out``, the output folder, and
``timeout``, the seconds that a round waits. A node's own configuration has ``partition-id``, and may have ``data`` and
``folder``, where the client keeps what stays at it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fscl.errors import FsclError
from fscl.federated import Federation, client_app, server_app
from fscl.runs.federation.building import build_clients
from fscl.runs.federation.run import clients_on
from fscl.runs.recipe import FederationRecipe, load_any_benchmark, load_strategy, names_of, with_overrides
from fscl.runs.results import load_run
from fscl.runs.run import run_one
from fscl.runs.spec import RunSpec

__all__ = ["client", "server"]


def spec_of(config: Mapping[str, Any], data: object = None) -> RunSpec:
    """The run that a configuration describes.

    Args:
        config: as above.
        data: the data folder of this machine; None takes that of the configuration.

    Raises:
        FsclError: a recipe or a setting is unknown, or the benchmark is no federation.
    """
    benchmark = load_any_benchmark(str(config["benchmark"]))
    if not isinstance(benchmark, FederationRecipe):
        known = ", ".join(names_of("benchmarks", federated=True))
        raise FsclError(f"benchmark = {config['benchmark']!r} is no federation; known: {known}")
    settings = [setting.strip() for setting in str(config.get("settings", "")).split(";") if setting.strip()]
    recipes = with_overrides(benchmark, load_strategy(str(config["strategy"])), settings)
    return RunSpec(*recipes, int(config.get("seed", 0)), data=str(data or config.get("data") or "") or None)


def _serve(grid: Any, context: Any) -> None:
    config = context.run_config
    out = Path(str(config["out"]))
    if not out.is_absolute():  # it would be in the folder in which the SuperLink was started
        raise FsclError(f"out is {str(out)!r}; an absolute path would do")
    spec = spec_of(config)
    assert isinstance(spec.benchmark, FederationRecipe)
    rounds = spec.benchmark.federation.rounds

    def show(done: int, *_: int) -> None:
        print(f"{done} of {rounds} rounds are finished", flush=True)

    with clients_on(grid, float(config.get("timeout", 3600.0))):
        folder = run_one(spec, out, progress=show)
    print(load_run(folder / "run.json"), flush=True)


def _load(context: Any) -> Federation:
    node = context.node_config
    folder = node.get("folder")
    return build_clients(spec_of(context.run_config, node.get("data")), Path(str(folder)) if folder else None)


server = server_app(_serve)
client = client_app(_load)
