"""Mixed precision, memory layout and compilation for any Avalanche strategy, multi-head networks included."""

import shutil
from collections.abc import Sequence
from typing import Any

import torch
from avalanche.core import SupervisedPlugin
from avalanche.models import IncrementalClassifier, MultiHeadClassifier, MultiTaskModule
from avalanche.models.dynamic_modules import DynamicModule
from torch import Tensor, nn

from fscl.continual.avalanche_private import skip_next_step, use_backward, use_own_backward
from fscl.continual.training.memory_layout import Layout
from fscl.errors import FsclError
from fscl.optimization import PRECISIONS, resolved_precision
from fscl.settings import Precision, Training

__all__ = ["Acceleration"]

RECIPE = Training()  # the settings of a recipe that gives none


class Acceleration(SupervisedPlugin):
    """Trains and evaluates a strategy's network faster, on the CPU or a GPU, with accuracies within seed noise.

    Weights, gradients and heads stay in float32. The inputs of convolutions and matrix products are cast. In
    ``float16`` the loss is scaled so that small gradients survive, and a step whose gradients are not finite is left
    out. The loss is not scaled for a strategy that calls ``loss.backward()`` itself.

    Args:
        precision: precision of convolutions and matrix products. ``auto`` is bfloat16 if the processor multiplies in
            it, else float32.
        channels_last: whether images are laid out with channels last, which makes convolutions faster on most
            processors. The layout of parameters does not change, because Avalanche's plugins flatten parameters and
            gradients. Some networks fail with this layout (``x.view(len(x), -1)`` of a map does), or compute something
            else. So each network is tried on two images before it is trained; if it does not fit, a warning says so
            and the layout is not used.
        compile: whether ``torch.compile`` compiles the network below its heads, which are added when tasks arrive. This
            pays only for long trainings, because compiling takes most of a minute. On the CPU it needs a C++ compiler.

    Raises:
        FsclError: the precision is unknown, or there is no compiler.

    Example:
        >>> from avalanche.training import Naive
        >>> plugins = [Acceleration("bfloat16", channels_last=True)]  # Naive(..., plugins=plugins)
    """

    supports_distributed = False
    transient = ("_scaler",)

    # a recipe's precision is float32 by default, because the numbers of a benchmark must not depend on the processor
    def __init__(
        self,
        precision: Precision = "auto",
        channels_last: bool = RECIPE.channels_last,
        compile: bool = RECIPE.compile,
    ) -> None:
        super().__init__()
        if precision not in (*PRECISIONS, "auto"):
            raise FsclError(f"precision is {precision!r}; known: auto, {', '.join(PRECISIONS)}")
        self.precision = precision
        self.channels_last = channels_last
        self.compile = compile
        self._scaler: torch.amp.GradScaler | None = None

    def resolved(self, device: torch.device) -> str:
        """The precision on a device: ``float32``, ``bfloat16`` or ``float16``."""
        return resolved_precision(self.precision, device)

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        self._prepare(strategy)
        if self.resolved(strategy.device) == "float16":
            self._scaler = torch.amp.GradScaler(strategy.device.type)
            # Plugins add penalties to the loss before it is scaled, and read gradients after they are unscaled
            use_backward(strategy, lambda: self._scaled_backward(strategy))

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        use_own_backward(strategy)
        self._scaler = None

    def before_eval(self, strategy: Any, **kwargs: Any) -> None:
        self._prepare(strategy)

    def before_eval_exp(self, strategy: Any, **kwargs: Any) -> None:
        self._prepare(strategy)

    def _prepare(self, strategy: Any) -> None:
        """Can be called again: the network may be replaced between experiences, for example by its decomposition."""
        model = strategy.model
        dtype = PRECISIONS[self.resolved(strategy.device)]
        if self.channels_last and Layout.of(model) is None:
            model.register_forward_pre_hook(Layout())
        if dtype != torch.float32:
            _replace_method(model, "forward", _ForwardInLowPrecision(model, strategy.device.type, dtype))
            for module in model.modules():
                if isinstance(module, MultiTaskModule):
                    _replace_method(module, "forward_single_task", _MethodInFloat32(module, "forward_single_task"))
            for head in _heads(model):
                _replace_method(head, "forward", _MethodInFloat32(head, "forward", strategy.device.type))
        if self.compile:
            _check_compiler(strategy.device)
            for module in _compilable(model):
                if module._compiled_call_impl is None:
                    module.compile()
        layout, experience = Layout.of(model), getattr(strategy, "experience", None)
        if layout is not None and experience is not None:
            layout.decide(model, experience, strategy.device, tolerance=1e-3 if dtype == torch.float32 else 0.1)

    def _scaled_backward(self, strategy: Any) -> None:
        assert self._scaler is not None
        loss = strategy.loss
        strategy.loss = self._scaler.scale(loss)
        try:
            type(strategy).backward(strategy)
        finally:
            strategy.loss = loss
        self._scaler.unscale_(strategy.optimizer)
        gradients = [p.grad for group in strategy.optimizer.param_groups for p in group["params"] if p.grad is not None]
        if gradients and not bool(torch.stack([g.isfinite().all() for g in gradients]).all()):
            for gradient in gradients:
                gradient.zero_()  # so that plugins see finite gradients; the step itself is skipped
            skip_next_step(strategy)
        self._scaler.update()


class _ForwardInLowPrecision:
    """Runs a network's ``forward`` in a lower precision and returns float32.

    The precision ends with the call, even if the call fails. It does not depend on who calls ``forward``.
    """

    def __init__(self, module: nn.Module, device: str, dtype: torch.dtype) -> None:
        self.module, self.device, self.dtype = module, device, dtype

    def __call__(self, *inputs: Any, **keywords: Any) -> Any:
        with torch.autocast(self.device, self.dtype):
            return _float(type(self.module).forward(self.module, *inputs, **keywords))


class _MethodInFloat32:
    """Runs a module's method and returns float32. With a device, the method also computes in float32."""

    def __init__(self, module: nn.Module, name: str, device: str | None = None) -> None:
        self.module, self.name, self.device = module, name, device

    def __call__(self, *inputs: Any, **keywords: Any) -> Any:
        method = getattr(type(self.module), self.name)
        if self.device is None:
            return _float(method(self.module, *inputs, **keywords))
        with torch.autocast(self.device, enabled=False):
            return method(self.module, *map(_float, inputs), **{n: _float(v) for n, v in keywords.items()})


def _replace_method(module: nn.Module, name: str, wrapper: Any) -> None:
    """Replaces a method on the module itself, once: copies and pickles of the module then wrap themselves."""
    vars(module).setdefault(name, wrapper)


def _heads(model: nn.Module) -> Sequence[nn.Module]:
    """The modules that compute a network's outputs: Avalanche's classifiers, or else the last linear layer."""
    for classifier in (MultiHeadClassifier, IncrementalClassifier):  # a MultiHeadClassifier holds incremental ones
        if heads := [m for m in model.modules() if isinstance(m, classifier)]:
            return heads
    return [m for m in model.modules() if isinstance(m, nn.Linear)][-1:]


def _float(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value


def _compilable(model: nn.Module) -> list[nn.Module]:
    """The largest parts of a network that stay the same when tasks arrive."""
    if not any(isinstance(module, DynamicModule) for module in model.modules()):
        return [model] if any(True for _ in model.parameters()) else []
    return [
        part for child in model.children() for part in _compilable(child) if not isinstance(child, MultiHeadClassifier)
    ]


def _check_compiler(device: torch.device) -> None:
    if device.type == "cpu" and not any(shutil.which(name) for name in ("g++", "clang++", "cl")):
        raise FsclError(
            "torch.compile needs a C++ compiler on the CPU (g++, clang++ or cl); install one, or turn it off"
        )
