"""Networks with a head a task."""

from collections.abc import Mapping
from typing import Any

from avalanche.models import MultiTaskModule
from avalanche.models.helper_method import MultiTaskDecorator
from torch import Tensor, nn

from fscl.errors import FsclError
from fscl.networks import make_network

__all__ = ["MultiHeadNetwork", "build_network"]


class MultiHeadNetwork(MultiTaskDecorator):
    """A network with a head a task in the place of its last linear layer, as ``avalanche.models.as_multitask`` makes.

    A mini-batch of several tasks, as replay and joint training have, passes the layers below the heads in one.
    Avalanche passes each task's few images apart, so that batch normalisation sees batches of three where there are
    twenty tasks, in several times the time. Where a mini-batch is of one task, outputs are the same to the bit.

    Args:
        model: the network; its classifier is taken off.
        classifier_name: the attribute that is, or ends in, its last linear layer.

    Example:
        >>> import torch
        >>> from fscl.networks import ConvNet
        >>> net = MultiHeadNetwork(ConvNet(1, 2, [4], [0]), "classifier")
        >>> net(torch.zeros(3, 1, 8, 8), torch.tensor([0, 0, 0])).shape
        torch.Size([3, 2])
    """

    def forward(self, x: Tensor, task_labels: Any) -> Any:
        if task_labels is None or isinstance(task_labels, int):
            return super().forward(x, task_labels)
        features = self.model(x)
        return getattr(self, self.classifier_name)(features.flatten(1), task_labels)


def build_network(
    name: str, image_shape: tuple[int, int, int], num_classes: int, arguments: Mapping[str, Any] | None = None
) -> nn.Module:
    """A freshly initialised network with a head a task in the place of its last linear layer.

    Args:
        name, image_shape, arguments: as of :func:`fscl.networks.make_network`.
        num_classes: outputs of each head.

    Raises:
        FsclError: as of :func:`~fscl.networks.make_network`, or the network has no linear layer to replace.

    Example:
        >>> import torch
        >>> net = build_network("convnet", (1, 8, 8), 2, {"widths": [8, 16], "pool_after": [0]})
        >>> net(torch.zeros(3, 1, 8, 8), 0).shape
        torch.Size([3, 2])
    """
    model = make_network(name, image_shape, num_classes, arguments)
    return model if isinstance(model, MultiTaskModule) else MultiHeadNetwork(model, _classifier(model, name))


def _classifier(model: nn.Module, name: str) -> str:
    """The attribute that ends in the last linear layer, as ``as_multitask`` wants it."""
    children = list(model.named_children())
    for attribute, child in reversed(children):
        last = child[-1] if isinstance(child, nn.Sequential) and len(child) else child
        if isinstance(last, nn.Linear):
            return attribute
    raise FsclError(
        f"network {name!r} has no linear layer to replace by heads; its parts: {', '.join(n for n, _ in children)}"
    )
