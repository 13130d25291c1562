"""Augmentation and normalisation of uint8 image tensors, one image or a whole batch at a time."""

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["ImageTransform", "channel_statistics"]


def channel_statistics(images: Tensor) -> tuple[list[float], list[float]]:
    """Mean and deviation of each channel, in units of [0, 1], computed from a histogram of the 256 values."""
    values = torch.arange(256, dtype=torch.float64) / 255
    mean, std = [], []
    for channel in images.unbind(1):
        counts = torch.zeros(256, dtype=torch.int64)
        for part in channel.flatten().split(2**22):  # in parts, because counting takes eight bytes for each value
            counts += torch.bincount(part, minlength=256)
        n = int(counts.sum())
        mean.append(float((counts * values).sum() / n))
        std.append(max(float(((counts * (values - mean[-1]).square()).sum() / max(n - 1, 1)).sqrt()), 1e-3))
    return mean, std


class ImageTransform:
    """uint8 images -> normalised float32 images, with an optional random crop and flip *per image*.

    The same object transforms single images, (C, H, W), and whole batches, (N, C, H, W). From the same state of torch's
    generator both give the same values bit for bit, on every device.

    Args:
        mean, std: mean and standard deviation of each channel, for pixels in [0, 1].
        crop_padding: pixels of zeros added on each side before a random crop of the original size.
        flip: whether images are mirrored left to right with probability one half.

    Example:
        >>> transform = ImageTransform([0.5], [0.5], crop_padding=4, flip=True)
        >>> transform(torch.zeros(8, 1, 28, 28, dtype=torch.uint8)).shape
        torch.Size([8, 1, 28, 28])
    """

    def __init__(self, mean: list[float], std: list[float], crop_padding: int = 0, flip: bool = False) -> None:
        self.scale = (1 / (255 * torch.tensor(std)))[:, None, None]
        self.shift = (-torch.tensor(mean) / torch.tensor(std))[:, None, None]
        self._prepare(crop_padding, flip)

    @classmethod
    def of_constants(cls, scale: Tensor, shift: Tensor) -> "ImageTransform":
        """The transform ``images * scale + shift``, without augmentation; both are (C, 1, 1)."""
        transform = cls.__new__(cls)
        transform.scale, transform.shift = scale, shift
        transform._prepare(0, False)
        return transform

    def _prepare(self, crop_padding: int, flip: bool) -> None:
        self.crop_padding = crop_padding
        self.flip = flip
        self._constants: dict[
            torch.device, tuple[Tensor, Tensor]
        ] = {}  # by device: a copy in each batch would stall a GPU

    def __call__(self, images: Tensor) -> Tensor:
        if images.ndim == 3:
            return self(images[None])[0]
        if self.crop_padding or self.flip:
            images = self._augmented(images, self._draws(len(images)).to(images.device, non_blocking=True))
        if images.device not in self._constants:
            self._constants[images.device] = self.scale.to(images.device), self.shift.to(images.device)
        scale, shift = self._constants[images.device]
        return images.float().mul_(scale).add_(shift)

    @staticmethod
    def _draws(n: int) -> Tensor:
        """Three random numbers for each image, from torch's CPU generator on every device.

        n single images draw the same numbers, in the same order, as one batch of n. So the augmented images, and all
        later draws, do not depend on the loader.
        """
        return torch.randint(2**31, (n, 3))

    def _augmented(self, images: Tensor, draws: Tensor) -> Tensor:
        n, channels, height, width = images.shape
        pad = self.crop_padding
        rows, columns = (
            draws[:, i, None] % (2 * pad + 1) + _steps(size, images) for i, size in enumerate((height, width))
        )
        if self.flip:
            columns = torch.where(draws[:, 2:] % 2 == 1, columns.flip(1), columns)
        # crop and flip in one gather
        pixels = (rows[:, :, None] * (width + 2 * pad) + columns[:, None]).view(n, 1, -1).expand(-1, channels, -1)
        return F.pad(images, (pad,) * 4).flatten(2).gather(2, pixels).view_as(images)


def _steps(size: int, images: Tensor) -> Tensor:
    return torch.arange(size, device=images.device)
