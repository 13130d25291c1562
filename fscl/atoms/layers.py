"""A convolution whose filters are the product of shared coefficients and a few spatial atoms."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.utils import _pair, _reverse_repeat_tuple

from fscl.errors import FsclError
from fscl.similarity.filters import gram_matrix

__all__ = ["AtomConv2d", "Mark", "atom_layers"]

GEOMETRY = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


class Mark(NamedTuple):
    """A tensor at one moment. It tells later whether the tensor was written to, or was given other memory."""

    tensor: Tensor
    memory: Tensor  # an alias, which keeps the address in use, so that no newer tensor can get it
    version: int

    @classmethod
    def of(cls, tensor: Tensor) -> "Mark":
        return cls(tensor, tensor.detach(), _version(tensor))

    def holds_for(self, tensor: Tensor) -> bool:
        """Whether this is the marked tensor, unchanged. PyTorch does not count some writes, see :class:`AtomConv2d`."""
        is_same = tensor is self.tensor and tensor.data_ptr() == self.memory.data_ptr()
        return is_same and _version(tensor) == self.version


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


class _Composed(NamedTuple):
    """Composed filters, and the state of the parameters that they were composed from."""

    filters: Tensor
    coefficients: Mark
    atoms: Mark
    stream: torch.cuda.Stream | None  # another stream would have to wait


class AtomConv2d(nn.Module):
    """A 2-D convolution with filters ``W[o, i] = sum_k coefficients[o, i, k] * atoms[k]``.

    Takes what ``torch.nn.Conv2d`` takes, gives the same output shapes, and adds ``num_atoms``. The coefficients mix
    channels and are meant to be shared by all tasks; the atoms do the spatial filtering and are a few hundred numbers.

    In training, filters are composed in every forward pass. In evaluation they are kept from pass to pass. They are
    composed again after a parameter was written in place, replaced, loaded, moved or cast, after a pass that needs
    their gradient, and after :meth:`train` or :meth:`eval`. PyTorch does not count some writes: through
    ``parameter.data``, through a NumPy view, from another process, by a fused optimizer. Such a write between two
    passes in evaluation goes unnoticed; call :meth:`eval` after it, as is usual after training. Filters are composed in
    the precision of the parameters, also under autocast, which casts them for the convolution as it does any weight.

    Args:
        in_channels: channels of the input (N, in_channels, H, W).
        out_channels: channels of the output.
        kernel_size: side of the filters in pixels, or (height, width).
        num_atoms: number m of atoms; ``m >= kernel height x width`` can represent every filter bank.
        stride, padding, dilation, groups, bias, padding_mode, device, dtype: as in ``torch.nn.Conv2d``.

    Attributes:
        coefficients: parameter (out_channels, in_channels / groups, m).
        atoms: parameter (m, height, width).
        bias: parameter (out_channels) or None.

    Raises:
        FsclError: a size is below 1, or ``groups``, ``padding`` or ``padding_mode`` does not fit.

    References:
        Miao, Wang, Chen, Qiu. Continual Learning with Filter Atom Swapping. ICLR 2022.

    Example:
        >>> layer = AtomConv2d(3, 16, 3, num_atoms=6, padding=1)
        >>> layer(torch.zeros(2, 3, 8, 8)).shape
        torch.Size([2, 16, 8, 8])
        >>> layer.weight.shape, layer.atoms.numel()
        (torch.Size([16, 3, 3, 3]), 54)
    """

    _composed: _Composed | None = None
    _may_change = False  # True once trained in evaluation mode: a fused optimizer's steps would go unnoticed

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        num_atoms: int = 9,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for argument, size in (("num_atoms", num_atoms), ("in_channels", in_channels), ("out_channels", out_channels)):
            if size < 1:
                raise FsclError(f"{argument} is {size}; it must be at least 1")
        if groups < 1 or in_channels % groups or out_channels % groups:
            raise FsclError(f"groups is {groups}; it must divide in_channels={in_channels} and {out_channels=}")
        if padding_mode not in PADDING_MODES:
            raise FsclError(f"padding_mode is {padding_mode!r}; known: {', '.join(PADDING_MODES)}")
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size: tuple[int, int] = _pair(kernel_size)
        if len(self.kernel_size) != 2 or min(self.kernel_size) < 1:
            raise FsclError(f"kernel_size is {kernel_size}; it must be one side or (height, width), at least 1")
        self.num_atoms = num_atoms
        self.stride: tuple[int, int] = _pair(stride)
        self.dilation: tuple[int, int] = _pair(dilation)
        self.padding: tuple[int, int] | str = padding if isinstance(padding, str) else _pair(padding)
        self.groups = groups
        self.padding_mode = padding_mode
        if isinstance(self.padding, str) and self.padding not in ("same", "valid"):
            raise FsclError(f"padding is {padding!r}; known words: same, valid")
        if self.padding == "same" and self.stride != (1, 1):
            raise FsclError("padding 'same' works with stride 1 only, as in torch.nn.Conv2d")
        self.coefficients = nn.Parameter(
            torch.empty(out_channels, in_channels // groups, num_atoms, device=device, dtype=dtype)
        )
        self.atoms = nn.Parameter(torch.empty(num_atoms, *self.kernel_size, device=device, dtype=dtype))
        if bias:
            self.bias = nn.Parameter(torch.empty(out_channels, device=device, dtype=dtype))
        else:
            self.register_parameter("bias", None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws orthonormal atoms, and coefficients that give filters the initial variance of ``nn.Conv2d``."""
        pixels = math.prod(self.kernel_size)
        fan_in = self.in_channels // self.groups * pixels
        # orthogonal matrices cannot be drawn in half precision
        drawn = self.atoms.new_empty(self.num_atoms, pixels, dtype=torch.promote_types(self.atoms.dtype, torch.float32))
        with torch.no_grad():
            self.atoms.copy_(nn.init.orthogonal_(drawn).view_as(self.atoms))
        # the variance of one composed filter value must be 1 / (3 fan_in)
        energy = min(self.num_atoms, pixels) / pixels
        nn.init.normal_(self.coefficients, std=(3 * fan_in * energy) ** -0.5)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -(fan_in**-0.5), fan_in**-0.5)

    @property
    def weight(self) -> Tensor:
        """The composed filters (out_channels, in_channels / groups, height, width)."""
        device_type = self.atoms.device.type
        # is_autocast_enabled raises for a device without autocast; PyTorch 2.6 cannot compile is_autocast_available
        can_be_on = torch.compiler.is_compiling() or torch.amp.is_autocast_available(device_type)
        if can_be_on and torch.is_autocast_enabled(device_type):
            with torch.autocast(device_type, enabled=False):
                return self._compose()
        return self._compose()

    def _compose(self) -> Tensor:
        coefficients, atoms = self.coefficients.flatten(0, 1), self.atoms.flatten(1)
        shape = self.out_channels, self.in_channels // self.groups, *self.kernel_size
        if math.prod(self.kernel_size) < 12 and shape[0] * shape[1] % 2 == 0 and atoms.device.type == "cpu":
            # two filters in one row: the CPU takes half the time for a product, and its gradients, of twice the width
            coefficients, atoms = coefficients.reshape(-1, 2 * self.num_atoms), torch.block_diag(atoms, atoms)
        return (coefficients @ atoms).view(shape)

    def _filters(self) -> Tensor:
        """:attr:`weight`, kept from pass to pass where that is safe."""
        coefficients, atoms = self.coefficients, self.atoms
        if self.training or not _can_be_kept(coefficients, atoms):
            return self.weight
        if torch.is_grad_enabled() and (coefficients.requires_grad or atoms.requires_grad):
            self._composed, self._may_change = None, True
        if self._may_change:
            return self.weight
        stream = torch.cuda.current_stream(atoms.device) if atoms.is_cuda else None
        kept = self._composed
        if kept and kept.stream == stream and kept.coefficients.holds_for(coefficients) and kept.atoms.holds_for(atoms):
            return kept.filters
        with torch.inference_mode(False), torch.no_grad():  # autograd may need these filters after inference mode
            filters = self.weight
            if type(filters) is Tensor:  # a fake tensor, or another subclass, may be valid only within some mode
                self._composed = _Composed(filters, Mark.of(coefficients), Mark.of(atoms), stream)
        return filters

    def train(self, mode: bool = True) -> Self:
        self._composed, self._may_change = None, False
        return super().train(mode)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        self._composed = None  # it would keep the old memory in use
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in super().__getstate__().items() if name != "_composed"}

    def __prepare_scriptable__(self) -> Self:
        """Called by ``torch.jit.script``, which cannot compile :attr:`weight`."""
        raise FsclError(
            "torch.jit.script does not take atom layers; script fscl.atoms.recompose(network), whose convolutions are "
            "ordinary, or use torch.export.export or torch.jit.trace"
        )

    def gram(self) -> Tensor:
        """The Gram matrix of the coefficients, (m, m): ``sum_oi coefficients[o, i] coefficients[o, i]^T``."""
        return gram_matrix(self.coefficients.detach())

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, H', W'), H' and W' as in ``torch.nn.Conv2d``."""
        padding: str | tuple[int, int] = self.padding
        if self.padding_mode != "zeros" and padding != "valid":
            x = F.pad(x, self._border(), mode=self.padding_mode)
            padding = (0, 0)
        return F.conv2d(x, self._filters(), self.bias, self.stride, padding, self.dilation, self.groups)

    def _border(self) -> tuple[int, ...]:
        """Pixels to add (left, right, top, bottom). "same" adds an odd pixel right and below, as torch does."""
        if isinstance(self.padding, str):
            totals = [d * (k - 1) for d, k in zip(self.dilation, self.kernel_size, strict=True)]
            return tuple(side for total in reversed(totals) for side in (total // 2, total - total // 2))
        return tuple(_reverse_repeat_tuple(self.padding, 2))

    @torch.no_grad()
    def fix_gauge(self, scale: float | None = None) -> None:
        """Makes the coefficients orthogonal to one common scale without changing the filters.

        ``(coefficients @ inv(M), M @ atoms)`` is the same layer for every invertible M, so atoms can be compared only
        once M is fixed. Here ``coefficients^T coefficients`` becomes ``s^2 I``, where s^2 is the mean square norm that
        the coefficients had. Then the plain cosine of two atom sets *is* the cosine of their filters. If there are
        fewer filters than atoms, the surplus atoms and their coefficients become zero. A layer whose gauge is fixed
        already does not change by a bit.

        Args:
            scale: s, in place of the former size. With 1, a step of SGD on atoms moves filters as far as the same step
                on free filters would, along what the coefficients span; otherwise s^2 times as far.
        """
        if self._gauge_is_fixed():
            return self._scale_to(scale)
        flat, atoms = self.coefficients.flatten(0, 1).double(), self.atoms.flatten(1).double()
        unit = _unit(flat)
        flat = flat / unit
        q, r = torch.linalg.qr(flat)
        size = float(flat.norm()) / math.sqrt(q.shape[1]) or 1.0
        # QR does not determine the signs; a positive diagonal makes the gauge unique, so all machines get the same
        signs = torch.where(r.diagonal() < 0, -1.0, 1.0)
        new_coefficients, new_atoms = torch.zeros_like(flat), torch.zeros_like(atoms)
        new_coefficients[:, : q.shape[1]] = q * signs * (size * unit)
        new_atoms[: q.shape[1]] = signs[:, None] * (r @ atoms) / size
        self.coefficients.copy_(new_coefficients.view_as(self.coefficients))
        self.atoms.copy_(new_atoms.view_as(self.atoms))
        self._scale_to(scale)

    def _scale_to(self, scale: float | None) -> None:
        size = float(self.coefficients.detach().double().flatten(0, 1).norm(dim=0).max())
        if scale and size and abs(size / scale - 1) > 8 * torch.finfo(self.coefficients.dtype).eps:
            self.coefficients.mul_(scale / size)
            self.atoms.mul_(size / scale)

    def _gauge_is_fixed(self) -> bool:
        coefficients = self.coefficients.detach().double()
        gram = gram_matrix(coefficients / _unit(coefficients))
        squares = gram.diagonal()
        rows = self.coefficients[..., 0].numel()  # relative rounding of an inner product falls with its length
        rounding = max(1e-13, 8 * torch.finfo(self.coefficients.dtype).eps / math.sqrt(rows)) * float(squares.max())
        common = (squares - squares.max()).abs() <= rounding
        unused = (squares == 0) & (self.atoms.detach().flatten(1) == 0).all(1)
        orthogonal = (gram - squares.diag()).abs() <= rounding
        return bool(squares.max() > 0 and (common | unused).all() and orthogonal.all())

    @classmethod
    @torch.no_grad()
    def from_conv(cls, conv: nn.Conv2d, num_atoms: int = 9) -> Self:
        """The atom layer that is nearest to an ordinary convolution, by truncated SVD of its filters (out * in, k * k).

        It is exact to float precision if ``num_atoms >= k * k``. A layer with fewer filters than ``num_atoms`` gets one
        atom for each filter, as more atoms could not improve it. Atoms beyond ``k * k`` start at random and their
        coefficients at zero, so they change nothing until they are trained.

        Example:
            >>> conv = nn.Conv2d(3, 8, 3, padding=1)
            >>> layer = AtomConv2d.from_conv(conv)
            >>> torch.allclose(layer.weight, conv.weight, atol=1e-6)
            True
        """
        out_channels, in_per_group = conv.weight.shape[:2]
        options = {option: getattr(conv, option) for option in GEOMETRY}
        options["kernel_size"] = tuple(conv.weight.shape[2:])  # a pass reads it there, if the weight was exchanged
        options["num_atoms"] = min(num_atoms, out_channels * in_per_group)
        flat = conv.weight.flatten(2).flatten(0, 1)
        layer = cls(bias=conv.bias is not None, device=flat.device, dtype=flat.dtype, **options)
        u, s, vh = torch.linalg.svd(flat.double(), full_matrices=False)
        rank = min(layer.num_atoms, len(s))
        # with orthonormal atoms, an SGD step on the coefficients changes the filters as in the original network
        layer.atoms.view(layer.num_atoms, -1)[:rank] = vh[:rank].to(flat.dtype)
        layer.coefficients.zero_()
        layer.coefficients.view(-1, layer.num_atoms)[:, :rank] = (u[:, :rank] * s[:rank]).to(flat.dtype)
        for factor in (layer.coefficients, layer.atoms):
            factor.requires_grad_(conv.weight.requires_grad)
        if layer.bias is not None and conv.bias is not None:
            layer.bias.copy_(conv.bias).requires_grad_(conv.bias.requires_grad)
        return layer.train(conv.training)

    @torch.no_grad()
    def to_conv(self) -> nn.Conv2d:
        """The ordinary convolution with this layer's composed filters."""
        options: dict[str, Any] = {option: getattr(self, option) for option in GEOMETRY}
        factor = self.coefficients
        conv = nn.Conv2d(bias=self.bias is not None, device=factor.device, dtype=factor.dtype, **options)
        conv.weight.copy_(self.weight)
        if self.bias is not None and conv.bias is not None:
            conv.bias.copy_(self.bias)
        return conv.train(self.training)

    def extra_repr(self) -> str:
        text = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, num_atoms={self.num_atoms}"
        defaults = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1, "padding_mode": "zeros"}
        text += "".join(f", {k}={getattr(self, k)!r}" for k, v in defaults.items() if getattr(self, k) != v)
        return text + ("" if self.bias is not None else ", bias=False")


def _unit(values: Tensor) -> float:
    """A power of two near the largest value: divided by it, values keep their digits, and squares do not overflow."""
    largest = float(values.abs().max())
    return 2.0 ** (math.frexp(largest)[1] - 1) if largest > 0 else 1.0


def _can_be_kept(coefficients: Tensor, atoms: Tensor) -> bool:
    """Whether filters composed now may be used in a later pass, because later changes to both tensors are noticed."""
    return not (
        torch.compiler.is_compiling()
        or type(coefficients) is not nn.Parameter
        or type(atoms) is not nn.Parameter
        or coefficients.is_inference()
        or atoms.is_inference()
        or torch._C._are_functorch_transforms_active()
        or torch.jit.is_tracing()
        or (atoms.is_cuda and torch.cuda.is_current_stream_capturing())
    )


def atom_layers(model: nn.Module) -> dict[str, AtomConv2d]:
    """The atom convolutions of a model by dotted name, in the order in which they are registered."""
    return {name: module for name, module in model.named_modules() if isinstance(module, AtomConv2d)}
