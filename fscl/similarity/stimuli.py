"""Images made without data: noise with a natural spectrum, dead leaves, images recalled from a network's statistics.

All are (n, channels, height, width) in float32. Noise and leaves have mean 0 and variance 1 over all values, as
normalised images have.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fscl.errors import FsclError
from fscl.modes import evaluating

__all__ = ["dead_leaves", "noise_images", "recall_images"]


def noise_images(n: int, shape: tuple[int, int, int], exponent: float = 1.0, seed: int = 0) -> Tensor:
    """Gaussian noise with amplitude 1/f^exponent. Exponent 1 is as in natural images (Field 1987), 0 is white noise.

    Args:
        n: number of images.
        shape: (channels, height, width); the channels are independent of each other.
        exponent: exponent of the amplitude as a function of the spatial frequency.
        seed: seed of the noise.

    Raises:
        FsclError: a size below 1.

    >>> images = noise_images(4, (3, 16, 16))
    >>> images.shape, round(float(images.std(correction=0)), 3)
    (torch.Size([4, 3, 16, 16]), 1.0)
    """
    _check(n, shape)
    height, width = shape[1:]
    frequency = torch.hypot(torch.fft.fftfreq(height)[:, None], torch.fft.fftfreq(width)[None])
    frequency[0, 0] = 1 / max(height, width)  # the mean brightness varies like the slowest wave
    white = torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed))
    return _standardised(torch.fft.ifft2(torch.fft.fft2(white) / frequency**exponent).real)


def dead_leaves(n: int, shape: tuple[int, int, int], seed: int = 0) -> Tensor:
    """Opaque discs and boxes of all sizes that cover each other: edges and flat regions as in natural images.

    Sizes r are drawn with density r^-3, so that the statistics are the same at all scales (Lee, Mumford, Huang 2001).
    Positions, shapes, directions and colours are uniform or normal.

    Args:
        n: number of images.
        shape: (channels, height, width); the colours of a leaf are independent in its channels.
        seed: seed of the leaves.

    Raises:
        FsclError: a size below 1.

    >>> dead_leaves(2, (1, 12, 12)).shape
    torch.Size([2, 1, 12, 12])
    """
    _check(n, shape)
    channels, height, width = shape
    generator = torch.Generator().manual_seed(seed)
    rows, columns = torch.arange(height)[:, None] + 0.5, torch.arange(width)[None] + 0.5
    largest = max(2.0, max(height, width) / 2)
    images, covered = torch.zeros(n, *shape), torch.zeros(n, height, width, dtype=torch.bool)
    while not covered.all():  # from the nearest leaf to the farthest visible leaf
        size, down, right, turn, box = torch.rand(5, n, 1, 1, generator=generator)
        radius = (1 + (largest**-2 - 1) * size) ** -0.5
        stretch = torch.exp(0.4 * torch.randn(n, 1, 1, generator=generator))
        y = rows - down * (height + 2 * largest) + largest
        x = columns - right * (width + 2 * largest) + largest
        along = (x * torch.cos(math.pi * turn) + y * torch.sin(math.pi * turn)) / (radius * stretch)
        across = (y * torch.cos(math.pi * turn) - x * torch.sin(math.pi * turn)) / (radius / stretch)
        round_, square = along**2 + across**2 < 1, torch.maximum(along.abs(), across.abs()) < 0.9
        leaf = torch.where(box < 0.5, round_, square) & ~covered
        colour = torch.randn(n, channels, 1, 1, generator=generator)
        images = torch.where(leaf[:, None], colour, images)
        covered |= leaf
    return _standardised(images)


def recall_images(
    models: nn.Module | Sequence[nn.Module],
    images: Tensor,
    steps: int = 200,
    rate: float = 0.05,
    *,
    call: Callable[[nn.Module, Tensor], object] | None = None,
) -> Tensor:
    """Images whose activations have the statistics that a network's batch normalisation stored in training.

    Adam changes synthetic images until the mean and variance of the input of each batch normalisation layer are near
    the layer's running statistics, as in data-free distillation (Yin et al. 2020, DeepInversion). No data is used: the
    statistics are in the network. If there are several networks, such as tasks of one bank, the steps use them in turn.

    Args:
        models: networks with running statistics, on one device. They are not changed.
        images: the images to start from, (n, channels, height, width), such as `dead_leaves`; n should be 16 or more.
        steps: number of steps of Adam. Each takes a pass and a gradient of all images.
        rate: learning rate, in units of the images.
        call: makes the pass from (model, images), if ``model(images)`` does not.

    Returns:
        Images of the same shape.

    Raises:
        FsclError: a network has no batch normalisation with running statistics, there are no networks, or ``steps`` is
            below 1.

    >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)).eval()
    >>> recall_images(net, dead_leaves(16, (1, 8, 8)), steps=2).shape
    torch.Size([16, 1, 8, 8])
    """
    networks = [models] if isinstance(models, nn.Module) else list(models)
    if not networks or steps < 1:
        raise FsclError(f"{len(networks)} networks and {steps} steps; one or more of each would do")
    layers = [[m for m in net.modules() if isinstance(m, _BatchNorm) and m.running_var is not None] for net in networks]
    for net, normalisations in zip(networks, layers, strict=True):
        if not normalisations:
            raise FsclError(
                f"{type(net).__name__} has no batch normalisation with running statistics to recall images from; use "
                "dead_leaves or noise_images"
            )
    misfits: list[Tensor] = []

    def compare(layer: nn.Module, inputs: tuple[Tensor, ...], output: object) -> None:
        assert isinstance(layer, _BatchNorm)
        assert layer.running_mean is not None
        assert layer.running_var is not None
        dims = [d for d in range(inputs[0].ndim) if d != 1]
        variance = layer.running_var + layer.eps
        shift = (inputs[0].mean(dims) - layer.running_mean).square() / variance
        stretch = ((inputs[0].var(dims, correction=0) + layer.eps) / variance).sqrt() - 1
        misfits.append((shift + stretch.square()).mean())

    device = next(networks[0].parameters()).device
    recalled = images.detach().to(device, torch.float32, copy=True).requires_grad_()
    optimizer = torch.optim.Adam([recalled], lr=rate)
    hooks = [layer.register_forward_hook(compare) for normalisations in layers for layer in normalisations]
    try:
        with evaluating(*networks), torch.enable_grad():
            for step in range(steps):
                misfits.clear()
                network = networks[step % len(networks)]
                network(recalled) if call is None else call(network, recalled)
                total = torch.stack(misfits).sum()
                (recalled.grad,) = torch.autograd.grad(total, recalled)  # no gradients for parameters
                optimizer.step()
    finally:
        for hook in hooks:
            hook.remove()
    return recalled.detach()


def _check(n: int, shape: tuple[int, int, int]) -> None:
    if len(shape) != 3 or min(n, *shape) < 1:
        raise FsclError(f"{n} images of shape {tuple(shape)}; (channels, height, width) and n of 1 or more would do")


def _standardised(images: Tensor) -> Tensor:
    centred = images - images.mean()
    return centred / centred.std(correction=0).clamp(min=1e-12)
