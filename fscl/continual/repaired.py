"""Avalanche's strategies that need a repair to run here: with a head a task, on any network, resumed.

Each class says what breaks in Avalanche 0.6; a test fails for each once it does no longer.
"""

from typing import Any

import torch
from avalanche.benchmarks.utils.data_loader import GroupBalancedInfiniteDataLoader
from avalanche.models import avalanche_forward
from avalanche.training import AGEM as AvalancheAGEM
from avalanche.training import DER as AvalancheDER
from avalanche.training import LFL as AvalancheLFL
from avalanche.training.plugins import AGEMPlugin, LFLPlugin
from avalanche.training.supervised.der import ClassBalancedBufferWithLogits
from torch import Tensor, nn

from fscl.continual.evaluate import features_of

__all__ = ["AGEM", "DER", "LFL"]


class AGEM(AvalancheAGEM):
    """A-GEM (Chaudhry et al., ICLR 2019) whose memory is sampled anew from each experience on.

    Avalanche's holds an iterator over its memory from the end of one experience to the next, which no other process can
    take up.
    """

    def _before_training_exp(self, **kwargs: Any) -> None:
        for plugin in self.plugins:
            if isinstance(plugin, AGEMPlugin) and plugin.buffers:
                size = max(1, plugin.sample_size // len(plugin.buffers))
                plugin.buffer_dataloader = GroupBalancedInfiniteDataLoader(plugin.buffers, batch_size=size)
                plugin.buffer_dliter = iter(plugin.buffer_dataloader)
        super()._before_training_exp(**kwargs)


class DER(AvalancheDER):
    """DER++ (Buzzega et al., NeurIPS 2020) for networks with a head a task.

    Avalanche's asks the network for the logits that it stores without saying of which task the images are.
    """

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


class LogitsBuffer(ClassBalancedBufferWithLogits):
    """Exemplars with the logits of their own task's head."""

    def update(self, strategy: Any, **kwargs: Any) -> None:
        model, labels = strategy.model, strategy.experience.task_labels
        strategy.model = _OfOneTask(model, labels[0]) if len(labels) == 1 else model
        try:
            super().update(strategy, **kwargs)
        finally:
            strategy.model = model


class _OfOneTask(nn.Module):
    """A network that answers for one task, whatever it is asked."""

    def __init__(self, network: nn.Module, label: int) -> None:
        super().__init__()
        self.network, self.label = network, label
        self.training = network.training

    def forward(self, images: Tensor) -> Any:
        labels = torch.full((len(images),), self.label, device=images.device)
        return avalanche_forward(self.network, images, labels)


class LFL(AvalancheLFL):
    """Less-forgetting learning (Jung et al., 2016) for any network: features are what enters the head.

    Avalanche's takes networks of its own alone, and leaves them in evaluation mode while they are trained.
    """

    def __init__(self, *, lambda_e: float = 1.0, **arguments: Any) -> None:
        super().__init__(lambda_e=lambda_e, **arguments)
        plugins = list(vars(self)["plugins"])
        self.plugins = [_LFLPlugin(lambda_e) if isinstance(p, LFLPlugin) else p for p in plugins]


class _LFLPlugin(LFLPlugin):
    def before_training(self, strategy: Any, **kwargs: Any) -> None:
        pass  # which network it is does not matter

    def compute_features(self, model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            before = features_of(self.prev_model, x)
        return features_of(model, x), before
