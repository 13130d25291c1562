"""Strategies of Avalanche 0.6 that do not run here without a repair.

Some fail on networks with a head for each task, some accept only networks of Avalanche, some cannot be resumed. Each
class says what it repairs. For each repair a test checks that Avalanche still needs it.
"""

from typing import Any

import torch
from avalanche.benchmarks.utils.data_loader import GroupBalancedInfiniteDataLoader
from avalanche.models import avalanche_forward
from avalanche.training import AGEM as AvalancheAGEM
from avalanche.training import DER as AvalancheDER
from avalanche.training import EWC as AvalancheEWC
from avalanche.training import LFL as AvalancheLFL
from avalanche.training import MAS as AvalancheMAS
from avalanche.training import SynapticIntelligence as AvalancheSI
from avalanche.training.plugins import AGEMPlugin, EWCPlugin, LFLPlugin, MASPlugin, SynapticIntelligencePlugin
from avalanche.training.supervised.der import ClassBalancedBufferWithLogits
from torch import Tensor, nn
from torch.nn import functional as F

from fscl.continual.avalanche_private import weights_after_task, weights_before_step, weights_importance
from fscl.continual.evaluate import features_of

__all__ = ["AGEM", "DER", "EWC", "LFL", "MAS", "SynapticIntelligence"]


class AGEM(AvalancheAGEM):
    """A-GEM (Chaudhry et al., ICLR 2019) that makes a new iterator over its memory at the start of each experience.

    Avalanche's class keeps one iterator from one experience to the next. An iterator cannot be saved, so a run could
    not be resumed.

    Args:
        **arguments: as in ``avalanche.training.AGEM``. ``patterns_per_exp`` exemplars are kept of each experience;
            ``sample_size`` of them give the direction that a step must not go against.
    """

    def _before_training_exp(self, **kwargs: Any) -> None:
        for plugin in self.plugins:
            if isinstance(plugin, AGEMPlugin) and plugin.buffers:
                size = max(1, plugin.sample_size // len(plugin.buffers))
                plugin.buffer_dataloader = GroupBalancedInfiniteDataLoader(plugin.buffers, batch_size=size)
                plugin.buffer_dliter = iter(plugin.buffer_dataloader)
        super()._before_training_exp(**kwargs)


class DER(AvalancheDER):
    """DER++ (Buzzega et al., NeurIPS 2020) for networks with a head for each task, or with one head that grows.

    Avalanche's class does not pass task labels when it computes the logits to store, and it cannot compare stored
    logits with those of a head that has grown since. Here the stored logits of classes that come later are 0.

    Args:
        mem_size: number of exemplars in all.
        batch_size_mem: number of exemplars in each step; by default as many as new images.
        alpha: weight of the distance to the stored logits.
        beta: weight of the loss on the exemplars' labels; with 0 the method is DER.
        **arguments: as in ``avalanche.training.DER``.
    """

    batch_logits: Tensor

    def __init__(
        self,
        *,
        mem_size: int = 200,
        batch_size_mem: int | None = None,
        alpha: float = 0.1,
        beta: float = 0.5,
        **arguments: Any,
    ) -> None:
        super().__init__(mem_size=mem_size, batch_size_mem=batch_size_mem, alpha=alpha, beta=beta, **arguments)
        self.storage_policy = LogitsBuffer(mem_size, adaptive_size=True)

    def _after_forward(self, **kwargs: Any) -> None:
        super()._after_forward(**kwargs)
        if self.replay_loader is not None:
            self.batch_logits = self.batch_logits[:, : self.mb_output.shape[1]]


class LogitsBuffer(ClassBalancedBufferWithLogits):
    """Exemplars with the logits at the end of their task, padded to the number of classes of the whole stream."""

    def update(self, strategy: Any, **kwargs: Any) -> None:
        model, experience = strategy.model, strategy.experience
        classes = 1 + max(max(e.classes_in_this_experience) for e in experience.origin_stream)
        strategy.model = _TaskNetwork(model, experience.task_labels[0], classes)
        try:
            super().update(strategy, **kwargs)
        finally:
            strategy.model = model


class _TaskNetwork(nn.Module):
    """A network that answers for one task, with outputs padded to a given width."""

    def __init__(self, network: nn.Module, label: int, width: int) -> None:
        super().__init__()
        self.network, self.label, self.width = network, label, width
        self.training = network.training

    def forward(self, images: Tensor) -> Tensor:
        labels = torch.full((len(images),), self.label, device=images.device)
        answers: Tensor = avalanche_forward(self.network, images, labels)
        return F.pad(answers, (0, max(self.width - answers.shape[1], 0)))


class EWC(AvalancheEWC):
    """EWC (Kirkpatrick et al., PNAS 2017) whose penalty cannot make gradient descent diverge.

    If the curvature of the penalty is larger than about the inverse of the learning rate, a step throws a weight
    further away than it had moved. In Avalanche's class the penalties of tasks add up until this happens: a strength
    that helps after three tasks gives weights that are not finite after ten. Here the curvature is limited to half the
    inverse of the learning rate, at which one step undoes half of a weight's move. The rest of the method is unchanged.

    The penalties of several tasks equal one penalty, up to a constant: its centre is the mean of the tasks' weights,
    weighted by importance. Only this one is stored, so that neither memory nor the time of a step grows with the number
    of tasks.

    Args:
        ewc_lambda: the penalty's strength, at least 0.
        mode: ``separate``, in which all tasks count equally, or ``online`` (Schwarz et al., ICML 2018), in which
            importances of earlier tasks decay and the penalty pulls weights to those after the last task.
        decay_factor: factor by which importances are multiplied at each new task. ``online`` needs it; ``separate``
            does not use it.
        **arguments: as in ``avalanche.training.EWC``.

    Example:
        >>> from torch import nn, optim
        >>> model = nn.Linear(2, 2)
        >>> learner = {"model": model, "optimizer": optim.SGD(model.parameters(), 0.1), "evaluator": None}
        >>> strategy = EWC(**learner, criterion=nn.CrossEntropyLoss(), ewc_lambda=10.0)
        >>> # strategy.train(experience)
    """

    def __init__(
        self,
        *,
        ewc_lambda: float,
        mode: str = "separate",
        decay_factor: float | None = None,
        **arguments: Any,
    ) -> None:
        super().__init__(ewc_lambda=ewc_lambda, mode=mode, decay_factor=decay_factor, **arguments)
        _replace_plugin(self, EWCPlugin, _EWCPlugin(ewc_lambda, mode, decay_factor))


class _EWCPlugin(EWCPlugin):
    transient = ("_anchors",)
    # parameter -> (importance, weights that the penalty pulls to); made for each task
    _anchors: dict[str, tuple[Tensor, Tensor]]

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        super().before_training_exp(strategy, **kwargs)
        last = strategy.clock.train_exp_counter - 1
        self._anchors = {
            name: (
                self.importances[last][name].expand(weight.shape),
                self.saved_params[last][name].expand(weight.shape),
            )
            for name, weight in strategy.model.named_parameters()
            if last >= 0 and name in self.saved_params[last]
        }

    def before_backward(self, strategy: Any, **kwargs: Any) -> None:
        if not self._anchors or self.ewc_lambda == 0:
            return
        rates = {id(p): group["lr"] for group in strategy.optimizer.param_groups for p in group["params"]}
        penalty = torch.zeros((), device=strategy.device)
        for name, weight in strategy.model.named_parameters():
            if name in self._anchors and rates.get(id(weight), 0) > 0:
                importance, anchor = self._anchors[name]
                limit = 1 / (4 * self.ewc_lambda * rates[id(weight)])  # the curvature is 2 lambda importance
                penalty = penalty + (importance.clamp(max=limit) * (weight - anchor).square()).sum()
        strategy.loss += self.ewc_lambda * penalty

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        super().after_training_exp(strategy, **kwargs)
        task = strategy.clock.train_exp_counter
        if self.mode == "online" or task == 0:
            return
        old_importances, old_weights = self.importances.pop(task - 1), self.saved_params.pop(task - 1)
        for name, old_importance in old_importances.items():
            importance, weight = self.importances[task][name], self.saved_params[task][name]
            old, anchor = old_importance.expand(importance.shape), old_weights[name].expand(importance.shape)
            total = old + importance.data
            weight.data = torch.where(total > 0, (old * anchor + importance.data * weight.data) / total, weight.data)
            importance.data = total


class LFL(AvalancheLFL):
    """Less-forgetting learning (Jung et al., 2016) for any network; features are the inputs of the head.

    Avalanche's class accepts only Avalanche's own networks, and leaves them in evaluation mode while they are trained.

    Args:
        lambda_e: weight of the distance to the features that the network had before the experience.
        **arguments: as in ``avalanche.training.LFL``.
    """

    def __init__(self, *, lambda_e: float = 1.0, **arguments: Any) -> None:
        super().__init__(lambda_e=lambda_e, **arguments)
        _replace_plugin(self, LFLPlugin, _LFLPlugin(lambda_e))


class _LFLPlugin(LFLPlugin):
    def before_training(self, strategy: Any, **kwargs: Any) -> None:
        pass  # Avalanche's version refuses networks of other classes

    def compute_features(self, model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            before = features_of(self.prev_model, x)
        return features_of(model, x), before


class MAS(AvalancheMAS):
    """MAS (Aljundi et al., ECCV 2018) that also trains on a mini-batch whose loss is exactly 0.

    The loss is 0 if the network is certain of all images. Avalanche's class takes this for a missing loss and raises.

    Args:
        lambda_reg: weight of the penalty.
        alpha: share of the former importances in the importances after a task; the rest is the task's importances.
        **arguments: as in ``avalanche.training.MAS``.
    """

    def __init__(self, *, lambda_reg: float = 1.0, alpha: float = 0.5, **arguments: Any) -> None:
        super().__init__(lambda_reg=lambda_reg, alpha=alpha, **arguments)
        _replace_plugin(self, MASPlugin, _MASPlugin(lambda_reg, alpha))


class _MASPlugin(MASPlugin):
    def before_backward(self, strategy: Any, **kwargs: Any) -> None:
        if strategy.loss == 0:
            strategy.loss = strategy.loss + torch.finfo(strategy.loss.dtype).tiny
        super().before_backward(strategy, **kwargs)


class SynapticIntelligence(AvalancheSI):
    """SI (Zenke et al., ICML 2017) that stores copies of the weights before a step and before a task.

    On the CPU Avalanche's class keeps views of the weights. The views change with the weights, so that no weight ever
    seems to have moved. Then no weight is important, there is no penalty, and accuracies are those of fine-tuning.

    There is a second difference: a weight along which the loss rose has importance 0 here. In Avalanche's class its
    importance is negative, which rewards the weight for moving away. Both classes limit importances to 0.001, so
    ``si_lambda`` must be large to have an effect.

    Args:
        **arguments: as in ``avalanche.training.SynapticIntelligence``. ``si_lambda`` is the penalty's weight. ``eps``
            keeps the importance of a weight finite that hardly moved.
    """

    def _before_training_exp(self, **kwargs: Any) -> None:
        super()._before_training_exp(**kwargs)
        for plugin in self._si():
            _detach(weights_after_task(plugin))

    def _before_training_iteration(self, **kwargs: Any) -> None:
        super()._before_training_iteration(**kwargs)
        for plugin in self._si():
            _detach(weights_before_step(plugin))

    def _after_training_exp(self, **kwargs: Any) -> None:
        super()._after_training_exp(**kwargs)
        for plugin in self._si():
            for importance in weights_importance(plugin).values():
                importance.data.clamp_(min=0)

    def _si(self) -> list[SynapticIntelligencePlugin]:
        return [plugin for plugin in self.plugins if isinstance(plugin, SynapticIntelligencePlugin)]


def _replace_plugin(strategy: Any, plugin_class: type[Any], plugin: Any) -> None:
    """Replaces the plugin of a class that Avalanche made for a strategy."""
    strategy.plugins = [plugin if isinstance(p, plugin_class) else p for p in strategy.plugins]


def _detach(weights: dict[str, Any]) -> None:
    for stored in weights.values():
        stored.data = stored.data.clone()
