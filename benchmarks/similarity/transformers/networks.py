"""Small vision transformers and ConvNeXt-like networks, fine-tuned as ordinary networks that share no coefficients."""

import copy
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.similarity.lab import CLASSES, Budget, Task, fit
from fscl.errors import FsclError

__all__ = ["NETWORKS", "REGIMES", "SIDE", "networks_of_regime", "shrunk"]

SIDE = 16  # of images, which are half as large as in other sections
NETWORKS = {"vit": "vision transformer", "convnext": "ConvNeXt-like"}
REGIMES = {"first": "each from one start", "snapshots": "snapshots of one training", "starts": "several starts"}
STARTS = 3


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (
            layer(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.out(mixed.transpose(1, 2).flatten(2))


class TransformerBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(width), Attention(width, heads)
        self.norm_2, self.widen, self.narrow = (
            nn.LayerNorm(width),
            nn.Linear(width, 2 * width),
            nn.Linear(2 * width, width),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm(x))
        return x + self.narrow(F.gelu(self.widen(self.norm_2(x))))


class Transformer(nn.Module):
    """4 blocks of width 64 over patches of 4x4 pixels, and a token for the class."""

    def __init__(self, channels: int, width: int = 64, depth: int = 4, patch: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(channels, width, patch, patch)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.places = nn.Parameter(0.02 * torch.randn(1, (SIDE // patch) ** 2 + 1, width))
        self.blocks = nn.Sequential(*(TransformerBlock(width, 4) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).mT
        tokens = torch.cat([self.token.expand(len(tokens), -1, -1), tokens], 1) + self.places
        return self.head(self.norm(self.blocks(tokens))[:, 0])


class ConvNextBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm, self.widen, self.narrow = (
            nn.LayerNorm(width),
            nn.Linear(width, 4 * width),
            nn.Linear(4 * width, width),
        )
        self.scale = nn.Parameter(torch.full((width,), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        return x + (self.scale * self.narrow(F.gelu(self.widen(y)))).permute(0, 3, 1, 2)


class ConvNext(nn.Module):
    """4 blocks of width 32, with depthwise 7x7 convolutions, over patches of 2x2 pixels."""

    def __init__(self, channels: int, width: int = 32, depth: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(channels, width, 2, 2)
        self.blocks = nn.Sequential(*(ConvNextBlock(width) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.patches(x)).mean((2, 3))))


def shrunk(task: Task) -> Task:
    """The task with images of half the size."""
    return replace(task, images=F.avg_pool2d(task.images, 2), test_images=F.avg_pool2d(task.test_images, 2))


def networks_of_regime(
    architecture: str, regime: str, task: Callable[[int], Task], count: int, budget: Budget, seed: int
) -> tuple[list[nn.Module], list[float]]:
    """Trains the networks of a population, and returns them with the accuracy of each that was trained to the end.

    Args:
        architecture: one of NETWORKS.
        regime: one of REGIMES. Of several starts, each has as many networks, and all learn the same tasks.
        task: the task of a number, with images of 16x16.
        count: networks.
        budget: of starts (``first_epochs``, ``first_rate``) and of fine-tuning.
        seed: of weights and of the order of images.
    """
    if architecture not in NETWORKS or regime not in REGIMES:
        raise FsclError(f"unknown network {architecture!r} or regime {regime!r}; known: {[*NETWORKS, *REGIMES]}")
    networks: list[nn.Module] = []
    accuracies: list[float] = []

    def trained(model: nn.Module, task: Task, epochs: int, rate: float, seed: int, after_step: Any = None) -> float:
        optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=budget.decay)
        return fit(model, task, [], epochs, rate, budget, seed, after_step, optimizer)

    def start(number: int) -> nn.Module:
        torch.manual_seed(seed + number)
        first = task(0)
        model = (Transformer if architecture == "vit" else ConvNext)(first.images.shape[1])
        accuracies.append(trained(model, first, budget.first_epochs, budget.first_rate, seed + number))
        networks.append(model)
        return model

    def tuned(model: nn.Module, number: int, kept: Collection[int] = ()) -> nn.Module:
        def keep(step: int) -> None:
            if step in kept:
                networks.append(copy.deepcopy(result))

        result = copy.deepcopy(model)
        torch.manual_seed(seed + number)
        result.get_submodule("head").reset_parameters()  # type: ignore[operator]
        accuracies.append(trained(result, task(number), budget.epochs, budget.rate, seed + number, keep))
        return result

    if regime == "snapshots":
        steps = np.unique(np.geomspace(1, budget.steps(task(1), budget.epochs), 4 * count).round().astype(int))
        kept = steps[np.linspace(0, len(steps) - 1, count - 1).round().astype(int)]
        tuned(start(0), 1, kept.tolist())
    else:
        of_each = count // (STARTS if regime == "starts" else 1)
        for number in range(count // of_each):
            model = start(number)
            networks.extend(tuned(model, other) for other in range(1, of_each))
    return [network.eval() for network in networks], accuracies
