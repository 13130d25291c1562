"""Networks with a head for each task."""

from collections.abc import Mapping
from typing import Any

from avalanche.models import MultiTaskModule
from avalanche.models.helper_method import MultiTaskDecorator
from torch import Tensor, nn

from fscl.errors import FsclError
from fscl.networks import make_network

__all__ = ["MultiHeadNetwork", "build_network"]


class MultiHeadNetwork(MultiTaskDecorator):
    """A network whose last linear layer is replaced by a head for each task.

    It differs from the network of ``avalanche.models.as_multitask`` in one point: a mini-batch of several tasks, which
    replay and joint training have, passes the layers below the heads as one batch. Avalanche's network passes the
    images of each task separately. With twenty tasks its batch normalisation then sees batches of three images, and a
    step takes several times as long. If a mini-batch has one task, the outputs of both networks are equal to the bit.

    Args:
        model: the network; its classifier is removed.
        classifier_name: the attribute of the network that is its last linear layer, or ends in it.

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
    """A newly initialised network whose last linear layer is replaced by a head for each task.

    Args:
        name, image_shape, arguments: as in :func:`fscl.networks.make_network`.
        num_classes: number of outputs of each head.

    Raises:
        FsclError: as in :func:`~fscl.networks.make_network`, or the network has no linear layer to replace.

    Example:
        >>> import torch
        >>> net = build_network("convnet", (1, 8, 8), 2, {"widths": [8, 16], "pool_after": [0]})
        >>> net(torch.zeros(3, 1, 8, 8), 0).shape
        torch.Size([3, 2])
    """
    model = make_network(name, image_shape, num_classes, arguments)
    return model if isinstance(model, MultiTaskModule) else MultiHeadNetwork(model, _classifier(model, name))


def _classifier(model: nn.Module, name: str) -> str:
    """The attribute that is the last linear layer or ends in it, the form that ``as_multitask`` takes."""
    children = list(model.named_children())
    for attribute, child in reversed(children):
        last = child[-1] if isinstance(child, nn.Sequential) and len(child) else child
        if isinstance(last, nn.Linear):
            return attribute
    raise FsclError(
        f"network {name!r} has no linear layer that heads could replace; its parts: {', '.join(n for n, _ in children)}"
    )
