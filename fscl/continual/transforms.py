"""Augmentation and normalisation of uint8 image tensors, one image or a whole batch at a time."""

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["ImageTransform"]


class ImageTransform:
    """uint8 images -> normalised float32 images, with a random crop and flip *per image* where asked for.

    The same object serves as an ordinary per-sample transform, (C, H, W), and on whole batches, (N, C, H, W); without
    augmentation both give the same values bit for bit.

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

    def __call__(self, images: Tensor) -> Tensor:
        if images.ndim == 3:
            return self(images[None])[0]
        if self.crop_padding:
            images = self._crop(images)
        if self.flip:
            mirrored = torch.rand(len(images), 1, 1, 1, device=images.device) < 0.5
            images = torch.where(mirrored, images.flip(-1), images)
        scale, shift = self.scale.to(images.device), self.shift.to(images.device)
        return images.float().mul_(scale).add_(shift)

    def _crop(self, images: Tensor) -> Tensor:
        n, _, height, width = images.shape
        pad = self.crop_padding
        # every crop is a window of a strided view: one gather, no copy of the windows that are not chosen
        windows = F.pad(images, (pad,) * 4).unfold(2, height, 1).unfold(3, width, 1)
        rows, columns = torch.randint(2 * pad + 1, (2, n), device=images.device)
        return windows[torch.arange(n, device=images.device), :, rows, columns]
