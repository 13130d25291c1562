"""Augmentation and normalisation of uint8 image tensors, one image or a whole batch at a time."""

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["ImageTransform"]


class ImageTransform:
    """uint8 images -> normalised float32 images, with a random crop and flip *per image* where asked for.

    The same object serves as an ordinary per-sample transform, (C, H, W), and on whole batches, (N, C, H, W); from the
    same state of torch's generator both give the same values bit for bit, on every device.

    Args:
        mean, std: per channel, in units of [0, 1].
        crop_padding: zeros added on each side before a random crop of the original size, pixels.
        flip: whether images are mirrored left to right with probability one half.

    Example:
        >>> transform = ImageTransform([0.5], [0.5], crop_padding=4, flip=True)
        >>> transform(torch.zeros(8, 1, 28, 28, dtype=torch.uint8)).shape
        torch.Size([8, 1, 28, 28])
    """

    def __init__(self, mean: list[float], std: list[float], crop_padding: int = 0, flip: bool = False) -> None:
        self.scale = (1 / (255 * torch.tensor(std)))[:, None, None]
        self.shift = (-torch.tensor(mean) / torch.tensor(std))[:, None, None]
        self.crop_padding = crop_padding
        self.flip = flip
        self._constants: dict[torch.device, tuple[Tensor, Tensor]] = {}  # a copy a batch would hold up a GPU

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
        """Three random numbers an image, from torch's generator of the CPU whatever the device.

        n images one by one take from the generator what n at once take, in the same order: whichever loader serves
        them, the augmented images and all that is drawn later are the same.
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
        # one gather of the pixels that are kept, crop and flip at once
        pixels = (rows[:, :, None] * (width + 2 * pad) + columns[:, None]).view(n, 1, -1).expand(-1, channels, -1)
        return F.pad(images, (pad,) * 4).flatten(2).gather(2, pixels).view_as(images)


def _steps(size: int, images: Tensor) -> Tensor:
    return torch.arange(size, device=images.device)
