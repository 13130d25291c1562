"""What fscl takes of Avalanche 0.6 that is no public API of it, each in a function of its own.

Each has a test that fails once Avalanche no longer has it. Methods that Avalanche's templates call and that subclasses
override, such as ``_before_training_exp``, are where they are overridden.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from avalanche.benchmarks.utils.data_loader import MultiDatasetDataLoader
from avalanche.models import MultiTaskModule
from avalanche.training.plugins import EvaluationPlugin, SynapticIntelligencePlugin
from torch import Tensor

from fscl.atoms.entries import when_head_grows

__all__ = [
    "SilentEvaluator",
    "attributes_of",
    "children_of",
    "criterion_of",
    "head_entries",
    "images_of",
    "is_plain_multi_loader",
    "samplers_of",
    "skip_next_step",
    "transform_groups_of",
    "use_backward",
    "use_own_backward",
    "weights_after_task",
    "weights_before_step",
    "weights_importance",
]


# data sets: a sample's image in memory is found below the wrappers, whose public access loads and transforms it


def images_of(data: Any) -> Any:
    """The samples of an Avalanche data set without its attributes, as a tree of wrappers; other data as it is."""
    return getattr(data, "_flat_data", data)


def children_of(data: Any) -> tuple[Sequence[Any], Sequence[int] | None] | None:
    """The data sets that a wrapper in this tree concatenates, and which of their samples; None for other data."""
    if not hasattr(data, "_datasets") or not hasattr(data, "_indices"):
        return None
    return data._datasets, data._indices


def transform_groups_of(data: Any) -> list[Any]:
    """The groups of transforms that a wrapper applies, the frozen ones first; they say how a sample is transformed."""
    groups = [getattr(data, f"_{kind}transform_groups", None) for kind in ("frozen_", "")]
    return [group for group in groups if group is not None]


def attributes_of(data: Any) -> Mapping[str, Any]:
    """The data attributes of a data set by name; only those whose names are known beforehand can be had publicly."""
    attributes: Mapping[str, Any] = getattr(data, "_data_attributes", {})
    return attributes


# loaders: the order of samples is drawn by Avalanche's samplers, and followed without loading samples


def is_plain_multi_loader(loader: Any) -> bool:
    """Whether a loader draws and yields mini-batches as Avalanche's own ``MultiDatasetDataLoader`` does."""
    if not isinstance(loader, MultiDatasetDataLoader):
        return False
    inherited = ("__iter__", "_get_loader", "_create_samplers")
    return all(getattr(type(loader), name) is getattr(MultiDatasetDataLoader, name) for name in inherited)


def samplers_of(loader: MultiDatasetDataLoader) -> list[Any]:
    """The samplers of a loader's data sets, made anew as each pass makes them."""
    samplers: list[Any] = loader._create_samplers(
        loader.datasets, loader.batch_sizes, loader.distributed_sampling, loader.loader_kwargs
    )
    return samplers


# networks


def head_entries(task: int) -> tuple[str, str]:
    """What a ``MultiHeadClassifier`` calls a task's head, and the mask of its classes that were learned."""
    return f"classifiers.{task}", f"active_units_T{task}"


def _widen(module: MultiTaskModule, outputs: int) -> None:
    """A multi-task module answers mixed mini-batches as wide as its widest head, a width that it keeps apart."""
    module.max_class_label = max(module.max_class_label, outputs)


when_head_grows(MultiTaskModule, _widen)


# strategies


class SilentEvaluator(EvaluationPlugin):
    """An evaluator without metrics that does nothing; Avalanche's own copies the experience at each event."""

    def __init__(self) -> None:
        with warnings.catch_warnings():  # that there is nothing to log to is meant
            warnings.filterwarnings("ignore", "No loggers specified")
            super().__init__()

    __getattribute__ = object.__getattribute__  # without Avalanche's answer to every event

    def before_eval(self, strategy: Any, **kwargs: Any) -> None:
        pass


def criterion_of(strategy: Any) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss function that a strategy was given, of outputs and targets; ``criterion()`` takes none but its batch."""
    criterion: Callable[[Tensor, Tensor], Tensor] = strategy._criterion
    return criterion


def use_backward(strategy: Any, function: Callable[[], None]) -> None:
    """Puts a function in the place of a strategy's ``backward``: no event is between it and ``after_backward``."""
    strategy.backward = function


def use_own_backward(strategy: Any) -> None:
    """Undoes :func:`use_backward`."""
    vars(strategy).pop("backward", None)


def skip_next_step(strategy: Any) -> None:
    """Has a strategy leave out its next optimizer step, which no plugin can."""
    strategy.optimizer_step = lambda: vars(strategy).pop("optimizer_step", None)


# synaptic intelligence: its plugin keeps weights and importances by parameter, as objects with a tensor ``data``


def weights_after_task(plugin: SynapticIntelligencePlugin) -> dict[str, Any]:
    """The weights at which the last task ended, to which the penalty draws."""
    weights: dict[str, Any] = plugin.ewc_data[0]
    return weights


def weights_importance(plugin: SynapticIntelligencePlugin) -> dict[str, Any]:
    """The importance of each weight, by which the penalty is weighed."""
    importance: dict[str, Any] = plugin.ewc_data[1]
    return importance


def weights_before_step(plugin: SynapticIntelligencePlugin) -> dict[str, Any]:
    """The weights before a training step, from which its path is measured."""
    weights: dict[str, Any] = plugin.syn_data["old_theta"]
    return weights
