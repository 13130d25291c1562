"""What a trainer is told of training and of the network: types, bounds and defaults, each written here alone."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["Network", "Precision", "Schedule", "Settings", "Text", "Training"]

Text = Annotated[str, Field(max_length=1000)]
# no number is so large that what is made of it is: sizes are counted in integers of 32 bits
Positive = Annotated[int, Field(ge=1, le=10**9)]
BatchSize = Annotated[int, Field(ge=1, le=10**6)]
Share = Annotated[float, Field(ge=0, lt=1)]
Precision = Literal["auto", "float32", "bfloat16", "float16"]
Schedule = Literal["one-cycle", "cosine", "constant"]


class Settings(BaseModel):
    """Base of typed values that refuse a key that they do not know."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class Network(Settings):
    """The network, see ``fscl.continual.build_network``."""

    name: Text = "convnet"
    """``convnet``, a name of ``torchvision:``, ``timm:``, ``pytorchcv:`` or ``avalanche:``, or ``module:callable``."""
    args: dict[str, Any] = {}
    """Its keyword arguments."""


class Training(Settings):
    """How a task is trained."""

    epochs: Positive = 10
    epochs_next: Positive | None = None
    """From the second task on; by default as on the first."""
    batch_size: BatchSize = 64
    drop_last: bool = False
    """Whether an epoch's last batch is left out where it is smaller than the others."""
    optimizer: Literal["sgd", "adam"] = "sgd"
    lr: Annotated[float, Field(gt=0)] = 0.05
    lr_next: Annotated[float, Field(gt=0)] | None = None
    """From the second task on; by default as on the first."""
    momentum: Share = 0.9
    weight_decay: Annotated[float, Field(ge=0)] = 1e-3
    schedule: Schedule = "one-cycle"
    label_smoothing: Share = 0.0
    precision: Precision = "float32"
    """Of products; ``auto`` is bfloat16 where the processor multiplies in it. See ``fscl.continual.Acceleration``."""
    channels_last: bool = True
    """Whether images and filters lie in memory as convolutions take them fastest."""
    compile: bool = False
    """Whether ``torch.compile`` is used."""
