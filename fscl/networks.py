"""Builds networks by name: fscl's, those of libraries, and your own."""

import reprlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import psutil
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from fscl.errors import FsclError
from fscl.factories import current_folder, fresh, in_words, is_users, network_factory

__all__ = ["ConvNet", "argument_names", "make_network"]

# limits for networks of libraries, as a stranger's recipe may ask for any size
MOST_BYTES = 2**31  # of all parameters
MOST_TENSORS = 20_000  # number of parameters


class ConvNet(nn.Module):
    """3x3 convolutions with batch normalisation and ReLU, some with max-pooling, and a linear classifier.

    Args:
        in_channels: channels of the images.
        num_classes: number of outputs.
        widths: output channels of each convolution.
        pool_after: indices of the convolutions that are followed by 2x2 max-pooling.
        grid: side of the average-pooled map that the classifier sees.
        dropout: probability of dropping a feature before the classifier.

    Example:
        >>> import torch
        >>> ConvNet(3, 5)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 5])
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        widths: Sequence[int] = (32, 64, 128, 128),
        pool_after: Sequence[int] = (0, 1, 2),
        grid: int = 2,
        dropout: float = 0.3,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = in_channels
        for i, width in enumerate(widths):
            layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)]
            if i in pool_after:
                layers.append(nn.MaxPool2d(2))
            layers.append(nn.ReLU())  # after pooling the result is the same, for a quarter of the values
            channels = width
        self.features = nn.Sequential(*layers)
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(grid), nn.Flatten(), nn.Dropout(dropout))
        self.classifier = nn.Linear(channels * grid * grid, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.pool(self.features(x)))


def make_network(
    name: str, image_shape: tuple[int, int, int], num_classes: int, arguments: Mapping[str, Any] | None = None
) -> nn.Module:
    """A freshly initialised network.

    Args:
        name: ``convnet``, which is :class:`ConvNet`; ``torchvision:resnet18``, ``pytorchcv:resnet20_cifar10``,
            ``avalanche:SlimResNet18`` or ``timm:NAME``; or ``package.module:callable``, your own callable, installed or
            in the current folder, that takes ``num_classes`` and returns a module.
        image_shape: (C, H, W) of the images.
        num_classes: number of outputs.
        arguments: further keyword arguments of the network. Libraries load weights only if these say so.

    Raises:
        FsclError: the network does not exist, or does not accept the arguments.

    Example:
        >>> import torch
        >>> net = make_network("convnet", (1, 8, 8), 2, {"widths": [8, 16], "pool_after": [0]})
        >>> net(torch.zeros(3, 1, 8, 8)).shape
        torch.Size([3, 2])
    """
    options = dict(arguments or {})
    if name == "convnet":
        make: Any = ConvNet
        options = {"in_channels": image_shape[0], "num_classes": num_classes} | options
    else:
        make = network_factory(name)
        defaults = {} if is_users(name) else fresh(make)
        options = defaults | argument_names(name, num_classes, image_shape) | options
    try:
        with current_folder() if is_users(name) else nullcontext(), _of_bounded_size(is_users(name)):
            model = make(**options)
    except FsclError:
        raise
    except Exception as error:  # a library's function, or a user's own, can fail in any way
        reason = " ".join(in_words(error).split())[:300]
        shown = {key: value for key, value in options.items() if key in (arguments or {})}
        raise FsclError(f"network {name!r} cannot be built with {reprlib.repr(shown)}: {reason}") from error
    if not isinstance(model, nn.Module):
        raise FsclError(f"network {name!r} is {type(model).__name__}; a torch.nn.Module would do")
    return model


@contextmanager
def _of_bounded_size(trusted: bool) -> Iterator[None]:
    """Stops the building of a network that does not fit into memory, before its tensors are filled."""
    most = psutil.virtual_memory().available / 2  # gradients take as much again
    most = most if trusted else min(MOST_BYTES, most)
    size = count = 0

    def measure(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal size, count
        count += 1
        size += parameter.nbytes if parameter is not None and parameter.device.type == "cpu" else 0
        if size > most:
            raise FsclError(f"the network is too large: its parameters take more than {most / 1e9:.1f} GB")
        if count > MOST_TENSORS:
            raise FsclError(f"the network is too large: it has more than {MOST_TENSORS} parameters")

    hook = register_module_parameter_registration_hook(measure)
    try:
        yield
    finally:
        hook.remove()


def argument_names(name: str, num_classes: int, image_shape: tuple[int, int, int]) -> dict[str, Any]:
    """The number of classes, and what else of the images a library needs, as its keyword arguments."""
    if name.startswith("avalanche:"):
        return {"nclasses": num_classes} if name.endswith("SlimResNet18") else {"num_classes": num_classes}
    if name.startswith("pytorchcv:"):
        return {"num_classes": num_classes, "in_channels": image_shape[0], "in_size": image_shape[1:]}
    if name.startswith("timm:"):
        return {"num_classes": num_classes, "in_chans": image_shape[0]}
    return {"num_classes": num_classes}
