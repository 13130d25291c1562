"""Records the operations of a forward pass, in order: convolutions, and what happens between them."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.overrides import TorchFunctionMode

from fscl.atoms.layers import AtomConv2d
from fscl.errors import FsclError
from fscl.modes import evaluating

__all__ = ["Event", "trace"]

RECTIFIERS = {
    *("relu", "leaky_relu", "rrelu", "prelu", "relu6", "hardtanh", "gelu"),
    *("silu", "elu", "selu", "celu", "mish", "hardswish", "softplus"),
}
SUMS = {"add", "radd", "iadd"}


@dataclass(frozen=True)
class Event:
    """One operation on one or several feature maps (1, c, h, w). Maps are numbered; the network's input is 0.

    Attributes:
        kind: ``conv``, ``norm``, ``rectifier``, ``add``, ``cat`` or ``resize``.
        inputs: the numbers of the maps that it takes.
        output: the number of the map that it makes.
        name: the module's name, for a convolution or a normalisation.
        shrink: the width of the input over the width of the output.
    """

    kind: str
    inputs: tuple[int, ...]
    output: int
    name: str = ""
    shrink: float = 1.0


def trace(
    model: nn.Module, shape: tuple[int, int, int], call: Callable[[nn.Module, Tensor], object] | None = None
) -> list[Event]:
    """The events of one pass of a blank image, in evaluation mode. The network is not changed.

    Raises:
        FsclError: the pass fails.
    """
    recorder = _Recorder()
    modules = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, _NormBase) or _is_convolution(module)
    ]
    hooks = [module.register_forward_pre_hook(recorder.enter) for _, module in modules]
    hooks += [module.register_forward_hook(recorder.leave(name, module)) for name, module in modules]
    parameter = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(0))
    blank = torch.zeros(1, *shape, device=parameter.device, dtype=parameter.dtype)
    recorder.number(blank)
    try:
        with evaluating(model), torch.no_grad(), recorder:
            model(blank) if call is None else call(model, blank)
    except (RuntimeError, TypeError) as error:
        raise FsclError(
            f"a pass of an image of shape {tuple(shape)} fails: {error}; give another shape or `call`"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    return recorder.events


class _Recorder(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.events: list[Event] = []
        self.kept: list[Tensor] = []  # keeps maps alive, so that no other tensor gets the id of one
        self.numbers: dict[int, int] = {}
        self.inside = 0

    def number(self, values: Tensor) -> int:
        self.kept.append(values)
        self.numbers[id(values)] = len(self.kept) - 1
        return len(self.kept) - 1

    def known(self, values: object) -> bool:
        return isinstance(values, Tensor) and id(values) in self.numbers

    def record(self, kind: str, inputs: Collection[Tensor], output: Tensor, name: str = "") -> None:
        numbers = tuple(self.numbers[id(values)] for values in inputs)
        sizes = [values.shape[-1] for values in inputs]
        shrink = max(sizes) / output.shape[-1]
        self.events.append(Event(kind, numbers, self.number(output), name, shrink))

    def enter(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        self.inside += 1

    def leave(self, name: str, module: nn.Module) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        kind = "norm" if isinstance(module, _NormBase) else "conv"

        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            self.inside -= 1
            if not self.inside and self.known(inputs[0]) and output.ndim == 4:
                self.record(kind, [inputs[0]], output, name)

        return hook

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        # taken before the call, which may change them in place
        shapes = [values.shape for values in args if isinstance(values, Tensor)]
        output = func(*args, **(kwargs or {}))
        if self.inside or not isinstance(output, Tensor) or output.ndim != 4:
            return output
        name = getattr(func, "__name__", "").strip("_")
        inputs = [values for values in args if self.known(values)]
        parts = args[0] if args and isinstance(args[0], (list, tuple)) else []
        if name in ("cat", "concat", "concatenate") and parts and all(self.known(part) for part in parts):
            self.record("cat", list(parts), output)
        elif name in RECTIFIERS and inputs:
            self.record("rectifier", inputs[:1], output)
        elif name in SUMS and len(inputs) == 2 and len({*shapes}) == 1:
            self.record("add", inputs, output)
        elif inputs and output.shape[1] == shapes[0][1]:
            self.record("resize", inputs[:1], output)
        return output


def _is_convolution(module: nn.Module) -> bool:
    return isinstance(module, (nn.Conv2d, AtomConv2d))
