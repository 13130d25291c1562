"""Bounds of what continual learning can reach: from above all tasks at once, from below the first task's features."""

from typing import Any

from avalanche.benchmarks.utils.utils import concat_datasets
from avalanche.models.utils import avalanche_model_adaptation
from avalanche.training.templates import SupervisedTemplate
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from fscl.atoms.entries import within
from fscl.continual.learner import LearnerPlugin, PluginStrategy
from fscl.continual.task_switch import head_names

__all__ = ["FrozenFeatures", "FrozenFeaturesPlugin", "Joint"]


class Joint(SupervisedTemplate):
    """All tasks at once: the upper bound of learners that share one network between tasks.

    Given the first experience of a stream it trains on the data of all of them, with a head a task where there are task
    labels; given another one it has nothing left to learn. ``avalanche.training.JointTraining`` takes whole streams
    alone, so that it cannot be measured experience by experience, or resumed.

    Args:
        **arguments: as in ``avalanche.training.Naive``.

    Example:
        >>> import torch
        >>> net = nn.Linear(4, 2)
        >>> Joint(model=net, optimizer=torch.optim.SGD(net.parameters(), lr=0.1), evaluator=None).train_epochs
        1
    """

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)

    def train_dataset_adaptation(self, **kwargs: Any) -> None:
        super().train_dataset_adaptation(**kwargs)
        if self.experience.current_experience == 0:
            parts = [experience.dataset for experience in self.experience.origin_stream]
            self.adapted_dataset = concat_datasets(parts).train()

    def model_adaptation(self, model: Any = None) -> Any:
        """Adapts the network to all experiences at once."""
        if self.is_training:
            for experience in self.experience.origin_stream:
                avalanche_model_adaptation(self.model if model is None else model, experience)
        return super().model_adaptation(model)

    def _train_exp(self, experience: Any, eval_streams: Any = None, **kwargs: Any) -> None:
        if experience.current_experience == 0:
            super()._train_exp(experience, eval_streams, **kwargs)


class FrozenFeaturesPlugin(LearnerPlugin):
    """After the first experience nothing but heads learns; normalisation keeps its statistics.

    Example:
        >>> plugin = FrozenFeaturesPlugin()
        >>> # Naive(model=model, optimizer=optimizer, plugins=[plugin]).train(experience)
        >>> plugin.frozen
        False
    """

    def __init__(self) -> None:
        super().__init__()
        self.frozen = False

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        if self.frozen:
            heads = head_names(strategy.model) or _last_linear(strategy.model)
            for name, parameter in strategy.model.named_parameters():
                parameter.requires_grad_(within(name, heads))
                parameter.grad = None

    def before_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        if self.frozen:
            for module in strategy.model.modules():
                if isinstance(module, _NormBase):
                    module.eval()

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        self.frozen = True


class FrozenFeatures(PluginStrategy, frozen_features=FrozenFeaturesPlugin):
    """The first task's features with a head a task: the lower bound of learners that train features on later tasks.

    An Avalanche strategy with :class:`FrozenFeaturesPlugin` built in.

    Args:
        plugins: more plugins.
        **arguments: as in ``avalanche.training.Naive``.

    Example:
        >>> import torch
        >>> net = nn.Linear(4, 2)
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> FrozenFeatures(model=net, optimizer=optimizer, evaluator=None).train_epochs
        1
    """

    frozen_features: FrozenFeaturesPlugin


def _last_linear(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear)][-1:]
