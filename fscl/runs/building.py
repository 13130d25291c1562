"""Checks the runs of a grid before training: what cannot or may not be built is refused."""

from collections.abc import Sequence
from dataclasses import replace

from fscl.runs.environment import find_device
from fscl.runs.schema import FederationRecipe
from fscl.runs.spec import RunSpec

__all__ = ["prepared"]


def prepared(specs: Sequence[RunSpec], here: bool = True) -> list[RunSpec]:
    """The runs of a grid with the device and the data folder that they will use. They are checked before training.

    Args:
        specs: the runs.
        here: whether this machine does the runs. If another machine does a run, only that machine can tell whether it
            has the device, and the check takes place on this machine's CPU.

    Raises:
        FsclError: the device is not available, or a learner would fail in all its runs.
    """
    from fscl.data.places import data_root

    devices = {name: find_device(name, "--device ") if here else name for name in {spec.device for spec in specs}}
    specs = [  # an absolute path, because runs may start in another folder
        replace(spec, device=devices[spec.device], data=str(data_root(spec.data).absolute())) for spec in specs
    ]
    by_recipe = {(spec.benchmark.name, spec.strategy.name): spec for spec in reversed(specs)}
    if all(isinstance(spec.benchmark, FederationRecipe) for spec in specs):
        from fscl.runs.federation.building import check_federation

        for spec in by_recipe.values():
            check_federation(spec)
        return specs
    from fscl.continual.learner import strategy_class
    from fscl.runs.stream.building import check_runnable, check_trusted, load_stream

    for spec in by_recipe.values():
        check_trusted(spec)
        strategy_class(spec.strategy.class_path, spec.strategy.args)  # before images are read, which takes longer
    streams = {benchmark: load_stream(spec) for (benchmark, _), spec in by_recipe.items()}
    for (benchmark, _), spec in by_recipe.items():
        check_runnable(spec if here else replace(spec, device="cpu"), streams[benchmark])
    return specs
