"""Bounds of continual learning: above, training on all tasks at once; below, the features of the first task."""

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
    """Trains on all tasks at once: the upper bound of learners that share one network between tasks.

    On the first experience of a stream it trains on the data of all experiences, with a head for each task if there are
    task labels. On later experiences it does nothing. ``avalanche.training.JointTraining`` accepts only whole streams,
    so it can neither be measured after each experience nor be resumed.

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
        """Adds the heads or outputs of all experiences to the network."""
        if self.is_training:
            for experience in self.experience.origin_stream:
                avalanche_model_adaptation(self.model if model is None else model, experience)
        return super().model_adaptation(model)

    def _train_exp(self, experience: Any, eval_streams: Any = None, **kwargs: Any) -> None:
        if experience.current_experience == 0:
            super()._train_exp(experience, eval_streams, **kwargs)


class FrozenFeaturesPlugin(LearnerPlugin):
    """After the first experience only heads are trained. Normalisation keeps its statistics.

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
    """Heads on the features of the first task: the lower bound of learners that train features on later tasks.

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
