"""The settings of training and of the network: the only place that has their types, bounds and defaults."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["Network", "Precision", "Schedule", "Settings", "Text", "Training"]

Text = Annotated[str, Field(max_length=1000)]
# the bounds keep sizes that are computed from these numbers within 32-bit integers
Positive = Annotated[int, Field(ge=1, le=10**9)]
BatchSize = Annotated[int, Field(ge=1, le=10**6)]
Share = Annotated[float, Field(ge=0, lt=1)]
Precision = Literal["auto", "float32", "bfloat16", "float16"]
Schedule = Literal["one-cycle", "cosine", "constant"]


class Settings(BaseModel):
    """Base class of settings. Refuses unknown keys."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class Network(Settings):
    """The network, see :func:`fscl.continual.build_network`."""

    name: Text = "convnet"
    """``convnet``, ``module:callable``, or ``torchvision:NAME``, also of ``timm``, ``pytorchcv``, ``avalanche``."""
    args: dict[str, Any] = {}
    """The keyword arguments of the network."""


class Training(Settings):
    """How a task is trained."""

    epochs: Positive = 10
    epochs_next: Positive | None = None
    """Epochs from the second task on; by default as for the first task."""
    batch_size: BatchSize = 64
    drop_last: bool = False
    """Whether the last batch of an epoch is left out if it is smaller than ``batch_size``."""
    optimizer: Literal["sgd", "adam"] = "sgd"
    lr: Annotated[float, Field(gt=0)] = 0.05
    lr_next: Annotated[float, Field(gt=0)] | None = None
    """Learning rate from the second task on; by default as for the first task."""
    momentum: Share = 0.9
    weight_decay: Annotated[float, Field(ge=0)] = 1e-3
    schedule: Schedule = "one-cycle"
    label_smoothing: Share = 0.0
    precision: Precision = "float32"
    """Precision of convolutions and matrix products. ``auto`` is bfloat16 if the processor multiplies in it."""
    channels_last: bool = True
    """Whether images are laid out with channels last, which is faster on most processors."""
    compile: bool = False
    """Whether ``torch.compile`` compiles the network."""
