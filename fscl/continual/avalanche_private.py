"""The private parts of Avalanche 0.6 that fscl uses, one function for each.

Each function has a test that fails as soon as Avalanche changes that part. One kind of private name is used elsewhere:
methods of Avalanche's templates that a subclass overrides, such as ``_before_training_exp``.
"""

import copy
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
    "with_dataset",
]


# data sets: the public way to a sample loads and transforms it; the images in memory are below the wrappers


def images_of(data: Any) -> Any:
    """The tree of wrappers below an Avalanche data set, without its attributes; any other ``data`` unchanged."""
    return getattr(data, "_flat_data", data)


def children_of(data: Any) -> tuple[Sequence[Any], Sequence[int] | None] | None:
    """The data sets that a wrapper concatenates, and the indices it takes of them; None if ``data`` is no wrapper."""
    if not hasattr(data, "_datasets") or not hasattr(data, "_indices"):
        return None
    return data._datasets, data._indices


def transform_groups_of(data: Any) -> list[Any]:
    """The transform groups that a wrapper applies to its samples, the frozen ones first."""
    groups = [getattr(data, f"_{prefix}transform_groups", None) for prefix in ("frozen_", "")]
    return [group for group in groups if group is not None]


def attributes_of(data: Any) -> Mapping[str, Any]:
    """The data attributes of a data set by name. Avalanche's public API cannot list them."""
    attributes: Mapping[str, Any] = getattr(data, "_data_attributes", {})
    return attributes


def with_dataset(experience: Any, data: Any) -> Any:
    """A copy of an experience with other data. By the public way, a benchmark of all tasks would be made for it."""
    copied = copy.copy(experience)
    copied._dataset = data
    return copied


# loaders: Avalanche's samplers draw the order of samples; fscl follows it without loading single samples


def is_plain_multi_loader(loader: Any) -> bool:
    """Whether a loader draws and yields mini-batches as Avalanche's own ``MultiDatasetDataLoader`` does."""
    if not isinstance(loader, MultiDatasetDataLoader):
        return False
    inherited = ("__iter__", "_get_loader", "_create_samplers")
    return all(getattr(type(loader), name) is getattr(MultiDatasetDataLoader, name) for name in inherited)


def samplers_of(loader: MultiDatasetDataLoader) -> list[Any]:
    """New samplers of a loader's data sets, made as the loader makes them for each pass."""
    samplers: list[Any] = loader._create_samplers(
        loader.datasets, loader.batch_sizes, loader.distributed_sampling, loader.loader_kwargs
    )
    return samplers


# networks


def head_entries(task: int) -> tuple[str, str]:
    """The names in a ``MultiHeadClassifier`` of a task's head, and of the mask of the classes that were learned."""
    return f"classifiers.{task}", f"active_units_T{task}"


def _widen(module: MultiTaskModule, outputs: int) -> None:
    """Sets the width of a multi-task module's outputs for mixed mini-batches: that of its widest head."""
    module.max_class_label = max(module.max_class_label, outputs)


when_head_grows(MultiTaskModule, _widen)


# strategies


class SilentEvaluator(EvaluationPlugin):
    """An evaluator without metrics that does nothing. Avalanche's own evaluator copies the experience at each event."""

    def __init__(self) -> None:
        with warnings.catch_warnings():  # no loggers is what we want here
            warnings.filterwarnings("ignore", "No loggers specified")
            super().__init__()

    __getattribute__ = object.__getattribute__  # Avalanche's version answers every event with a function

    def before_eval(self, strategy: Any, **kwargs: Any) -> None:
        pass


def criterion_of(strategy: Any) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss function of outputs and targets that a strategy was given; ``criterion()`` takes no arguments."""
    criterion: Callable[[Tensor, Tensor], Tensor] = strategy._criterion
    return criterion


def use_backward(strategy: Any, function: Callable[[], None]) -> None:
    """Replaces a strategy's ``backward`` by a function. No event would do: the next one is ``after_backward``."""
    strategy.backward = function


def use_own_backward(strategy: Any) -> None:
    """Undoes :func:`use_backward`."""
    vars(strategy).pop("backward", None)


def skip_next_step(strategy: Any) -> None:
    """Makes a strategy leave out its next optimizer step. Plugins have no event for this."""
    strategy.optimizer_step = lambda: vars(strategy).pop("optimizer_step", None)


# synaptic intelligence: its plugin keeps one object for each parameter, whose ``data`` is a tensor


def weights_after_task(plugin: SynapticIntelligencePlugin) -> dict[str, Any]:
    """The weights at the end of the last task. The penalty pulls the network back to them."""
    weights: dict[str, Any] = plugin.ewc_data[0]
    return weights


def weights_importance(plugin: SynapticIntelligencePlugin) -> dict[str, Any]:
    """The importance of each weight, which is its factor in the penalty."""
    importance: dict[str, Any] = plugin.ewc_data[1]
    return importance


def weights_before_step(plugin: SynapticIntelligencePlugin) -> dict[str, Any]:
    """The weights before a training step. The path of the step is measured from them."""
    weights: dict[str, Any] = plugin.syn_data["old_theta"]
    return weights
