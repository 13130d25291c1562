"""Optimizers by the names that recipes give them, fused where the device can."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from fscl.errors import FsclError

__all__ = ["build_optimizer"]


def build_optimizer(
    name: str, parameters: Iterable[nn.Parameter], lr: float, momentum: float, weight_decay: float, device: torch.device
) -> torch.optim.Optimizer:
    """The optimizer of a recipe.

    Args:
        name: ``adam``, or ``sgd`` with Nesterov's momentum.
        parameters: what it trains.
        lr, weight_decay: as in PyTorch.
        momentum: of SGD; the decay of Adam's first moment.
        device: where the parameters will be.

    Raises:
        FsclError: there is no optimizer of that name.

    Example:
        >>> optimizer = build_optimizer("sgd", nn.Linear(2, 2).parameters(), 0.1, 0.9, 1e-3, torch.device("cpu"))
        >>> optimizer.defaults["nesterov"]
        True
    """
    fused = device.type in ("cpu", "cuda")  # one pass over a parameter, in place of one an operation
    if name == "adam":
        return torch.optim.Adam(parameters, lr, betas=(momentum, 0.999), weight_decay=weight_decay, fused=fused)
    if name != "sgd":
        raise FsclError(f"unknown optimizer {name!r}; known optimizers: adam, sgd")
    chosen = torch.optim.SGD(parameters, lr, momentum, weight_decay=weight_decay, nesterov=momentum > 0, fused=fused)
    if momentum > 0:
        chosen.register_step_pre_hook(_begin_momentum)
    return chosen


def _begin_momentum(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """Momentum, of zero, for weights whose first gradient comes after others': fused SGD fails without.

    Such weights are heads of a task of which the exemplars of the first batches have none.
    """
    for group in optimizer.param_groups:
        for weight in group["params"]:
            if weight.grad is not None and optimizer.state[weight].get("momentum_buffer") is None:
                optimizer.state[weight]["momentum_buffer"] = torch.zeros_like(weight.grad)
