"""Avalanche's strategies that need a repair to run here: with a head a task, on any network, resumed.

Each class says what breaks in Avalanche 0.6; a test fails for each once it does no longer.
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
    """A-GEM (Chaudhry et al., ICLR 2019) whose memory is sampled anew from each experience on.

    Avalanche's holds an iterator over its memory from the end of one experience to the next, which no other process can
    take up.

    Args:
        **arguments: as in ``avalanche.training.AGEM``: ``patterns_per_exp`` exemplars are kept of each experience, of
            which ``sample_size`` give the direction that a step must not go against.
    """

    def _before_training_exp(self, **kwargs: Any) -> None:
        for plugin in self.plugins:
            if isinstance(plugin, AGEMPlugin) and plugin.buffers:
                size = max(1, plugin.sample_size // len(plugin.buffers))
                plugin.buffer_dataloader = GroupBalancedInfiniteDataLoader(plugin.buffers, batch_size=size)
                plugin.buffer_dliter = iter(plugin.buffer_dataloader)
        super()._before_training_exp(**kwargs)


class DER(AvalancheDER):
    """DER++ (Buzzega et al., NeurIPS 2020) for networks with a head a task, or with one that grows.

    Avalanche's asks the network for the logits that it stores without saying of which task the images are, and cannot
    hold them against those of a head that has grown since. Here classes that were yet to come have logits of 0.

    Args:
        mem_size: exemplars in all.
        batch_size_mem: of them, in each step; by default as many as new images.
        alpha: weight of the distance to the logits that were stored.
        beta: weight of the loss on the exemplars' labels; 0 makes it DER.
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
    """Exemplars with the logits that the network gave at the end of their task, as many as there will be classes."""

    def update(self, strategy: Any, **kwargs: Any) -> None:
        model, experience = strategy.model, strategy.experience
        classes = 1 + max(max(e.classes_in_this_experience) for e in experience.origin_stream)
        strategy.model = _Answering(model, experience.task_labels[0], classes)
        try:
            super().update(strategy, **kwargs)
        finally:
            strategy.model = model


class _Answering(nn.Module):
    """A network's answers for images of one task, of a given width."""

    def __init__(self, network: nn.Module, label: int, width: int) -> None:
        super().__init__()
        self.network, self.label, self.width = network, label, width
        self.training = network.training

    def forward(self, images: Tensor) -> Tensor:
        labels = torch.full((len(images),), self.label, device=images.device)
        answers: Tensor = avalanche_forward(self.network, images, labels)
        return F.pad(answers, (0, max(self.width - answers.shape[1], 0)))


class EWC(AvalancheEWC):
    """EWC (Kirkpatrick et al., PNAS 2017) that holds a weight no harder than a step of this size can.

    A penalty whose curvature exceeds about the inverse of the learning rate throws a weight further than it had moved.
    Avalanche's adds up over tasks, and comes to that sooner or later: a strength that helps after three tasks ends in
    weights that are not finite after ten. Here curvature is cut to half the inverse of the learning rate, at which a
    step undoes half of what a weight has moved. All else is the same. Penalties of several tasks are, up to a constant,
    one about the mean of their weights, weighted by importance; only that one is kept, so that neither what is stored
    nor a step grows with the number of tasks.

    Args:
        ewc_lambda: the penalty's strength, at least 0.
        mode: ``separate``, where all tasks count alike, or ``online`` (Schwarz et al., ICML 2018), where importances of
            earlier tasks fade and weights are held where the last task left them.
        decay_factor: by which importances are multiplied at each new task; for ``online`` alone, which needs it.
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
        _put_in_place(self, EWCPlugin, _EWCPlugin(ewc_lambda, mode, decay_factor))


class _EWCPlugin(EWCPlugin):
    transient = ("_anchors",)
    _anchors: dict[str, tuple[Tensor, Tensor]]  # by parameter: importance, and where it is to stay; made a task

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
                most = 1 / (4 * self.ewc_lambda * rates[id(weight)])  # the penalty's curvature is 2 lambda importance
                penalty = penalty + (importance.clamp(max=most) * (weight - anchor).square()).sum()
        strategy.loss += self.ewc_lambda * penalty

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        super().after_training_exp(strategy, **kwargs)
        task = strategy.clock.train_exp_counter
        if self.mode == "online" or task == 0:
            return
        importances, weights = self.importances.pop(task - 1), self.saved_params.pop(task - 1)
        for name, before in importances.items():
            now, weight = self.importances[task][name], self.saved_params[task][name]
            before, anchor = before.expand(now.shape), weights[name].expand(now.shape)
            total = before + now.data
            weight.data = torch.where(total > 0, (before * anchor + now.data * weight.data) / total, weight.data)
            now.data = total


class LFL(AvalancheLFL):
    """Less-forgetting learning (Jung et al., 2016) for any network: features are what enters the head.

    Avalanche's takes networks of its own alone, and leaves them in evaluation mode while they are trained.

    Args:
        lambda_e: weight of the distance to the features of the network before the experience.
        **arguments: as in ``avalanche.training.LFL``.
    """

    def __init__(self, *, lambda_e: float = 1.0, **arguments: Any) -> None:
        super().__init__(lambda_e=lambda_e, **arguments)
        _put_in_place(self, LFLPlugin, _LFLPlugin(lambda_e))


class _LFLPlugin(LFLPlugin):
    def before_training(self, strategy: Any, **kwargs: Any) -> None:
        pass  # which network it is does not matter

    def compute_features(self, model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            before = features_of(self.prev_model, x)
        return features_of(model, x), before


class MAS(AvalancheMAS):
    """MAS (Aljundi et al., ECCV 2018) that goes on where a batch has no loss left.

    Avalanche's takes a loss of exactly 0, as of images of which a network is sure, for none, and raises.

    Args:
        lambda_reg: weight of the penalty.
        alpha: share of the former importances in those after a task; the task's own have the rest.
        **arguments: as in ``avalanche.training.MAS``.
    """

    def __init__(self, *, lambda_reg: float = 1.0, alpha: float = 0.5, **arguments: Any) -> None:
        super().__init__(lambda_reg=lambda_reg, alpha=alpha, **arguments)
        _put_in_place(self, MASPlugin, _MASPlugin(lambda_reg, alpha))


class _MASPlugin(MASPlugin):
    def before_backward(self, strategy: Any, **kwargs: Any) -> None:
        if strategy.loss == 0:
            strategy.loss = strategy.loss + torch.finfo(strategy.loss.dtype).tiny
        super().before_backward(strategy, **kwargs)


class SynapticIntelligence(AvalancheSI):
    """SI (Zenke et al., ICML 2017) that tells weights before a step, and before a task, from those after it.

    Avalanche's keeps views of the weights where these are on the CPU. They move along, so that no weight ever seems to
    have moved, none is important, and there is no penalty: its accuracies there are those of fine-tuning. Weights along
    which the loss rose have no importance here; Avalanche's have a negative one, which rewards them for moving away.
    Both cut importances off at 0.001, so that ``si_lambda`` is large where it has an effect.

    Args:
        **arguments: as in ``avalanche.training.SynapticIntelligence``: ``si_lambda`` is the penalty's weight, ``eps``
            what keeps importances of weights that hardly moved finite.
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


def _put_in_place(strategy: Any, kind: type[Any], plugin: Any) -> None:
    """Gives a strategy a plugin for the one of a kind that Avalanche made for it."""
    strategy.plugins = [plugin if isinstance(p, kind) else p for p in strategy.plugins]


def _detach(weights: dict[str, Any]) -> None:
    for kept in weights.values():
        kept.data = kept.data.clone()
