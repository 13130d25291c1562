"""How a network is trained: optimizer, schedule of the learning rate, precision of products, layout of images."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, OneCycleLR

from fscl.settings import Precision, Training

__all__ = ["PRECISIONS", "build_optimizer", "build_schedule", "channels_last", "resolved_precision"]

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def build_optimizer(
    training: Training, parameters: Iterable[nn.Parameter], device: torch.device
) -> torch.optim.Optimizer:
    """The optimizer of a run, with the settings of the first task.

    Args:
        training: ``optimizer`` is ``adam``, or ``sgd`` with Nesterov's momentum. With ``adam``, ``momentum`` is the
            decay of the first moment.
        parameters: the parameters that it trains.
        device: the device on which the parameters will be. The optimizer is fused on a CPU and on CUDA.

    Example:
        >>> optimizer = build_optimizer(Training(), nn.Linear(2, 2).parameters(), torch.device("cpu"))
        >>> optimizer.defaults["nesterov"]
        True
    """
    lr, momentum, weight_decay = training.lr, training.momentum, training.weight_decay
    fused = device.type in ("cpu", "cuda")  # one pass over a parameter instead of one for each operation
    if training.optimizer == "adam":
        return torch.optim.Adam(parameters, lr, betas=(momentum, 0.999), weight_decay=weight_decay, fused=fused)
    sgd = torch.optim.SGD(parameters, lr, momentum, weight_decay=weight_decay, nesterov=momentum > 0, fused=fused)
    if momentum > 0:
        sgd.register_step_pre_hook(_begin_momentum)
    return sgd


def _begin_momentum(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """Sets zero momentum for weights that have their first gradient now. Without it fused SGD fails.

    Such weights are for example the head of a task that has no exemplars in the first mini-batches.
    """
    for group in optimizer.param_groups:
        for weight in group["params"]:
            if weight.grad is not None and optimizer.state[weight].get("momentum_buffer") is None:
                optimizer.state[weight]["momentum_buffer"] = torch.zeros_like(weight.grad)


def build_schedule(
    training: Training, optimizer: torch.optim.Optimizer, steps: int, first: bool = True
) -> LRScheduler | None:
    """Sets the learning rate of an optimizer and returns its schedule, which is to be stepped after each batch.

    Args:
        training: ``lr`` is the learning rate of the first task, and ``lr_next`` that of all later ones; for
            ``one-cycle`` it is the peak. ``schedule`` is ``one-cycle``, ``cosine`` (to zero) or ``constant``.
            ``one-cycle`` moves the momentum between ``momentum + 0.05`` and ``momentum - 0.05``, opposite to the
            learning rate.
        optimizer: the optimizer.
        steps: number of batches of the training.
        first: whether this is the first task.

    Returns:
        The schedule; None if it is constant.
    """
    lr = training.lr if first or training.lr_next is None else training.lr_next
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] = lr
    if training.schedule == "one-cycle":
        # one step more than the training has, because the constructor takes the first step
        momentum = training.momentum
        low, high = round(max(momentum - 0.05, 0), 6), round(min(momentum + 0.05, 0.999), 6)
        return OneCycleLR(
            optimizer,
            lr,
            total_steps=steps + 1,
            cycle_momentum=momentum > 0,
            base_momentum=low,
            max_momentum=high,
        )
    return CosineAnnealingLR(optimizer, steps) if training.schedule == "cosine" else None


def resolved_precision(precision: Precision, device: torch.device) -> str:
    """The precision of convolutions and matrix products on a device: ``float32``, ``bfloat16`` or ``float16``.

    ``auto`` is bfloat16 if the processor multiplies in it, else float32.
    """
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.get_device_capability(device) >= (8, 0) else "float32"
    capabilities = (
        torch.cpu.get_capabilities() if device.type == "cpu" and hasattr(torch.cpu, "get_capabilities") else {}
    )
    return "bfloat16" if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else "float32"


def channels_last(x: Tensor) -> Tensor:
    """Images (N, C, H, W) laid out with channels last.

    With one channel both layouts are the same memory, and only the strides tell a convolution which one is meant. So
    the strides are set in that case.
    """
    if x.shape[1] > 1 or not x.is_contiguous():
        return x.contiguous(memory_format=torch.channels_last)
    return x.as_strided(x.shape, (x.shape[2] * x.shape[3], 1, x.shape[3], 1))
