"""How the tasks of a bank compare when the second moments of natural images are carried through their layers.

The cosine of atoms compares what a layer does to white input that is the same for all tasks. Real input is neither: its
neighbouring pixels are alike, and what enters a layer depends on the task's layers before it, on their normalisation
and on the rectifiers between. All this can be followed in closed form, without an image.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _NormBase

from fscl.atoms.bank import AtomBank
from fscl.atoms.layers import atom_layers
from fscl.errors import FsclError

__all__ = ["moment_similarity"]

Call = Callable[[nn.Module, Tensor], object]
FARTHEST = 16  # lags of the first layer, in pixels each way
BLOCK = 2**22  # values of a block's lag maps


@dataclass(frozen=True)
class _Step:
    """One atom layer on the way from input to output."""

    layer: str
    first: bool
    norm: str | None  # the normalisation whose channels enter it
    shrink: int  # how many of the former layer's positions make one of its input's
    stride: int


def moment_similarity(
    bank: AtomBank,
    model: nn.Module,
    shape: tuple[int, int, int],
    *,
    exponent: float = 1.0,
    colour: float = 0.9,
    terms: int = 1,
    normalisation: bool = True,
    per_layer: bool = False,
    call: Call | None = None,
) -> Tensor:
    """Task-to-task similarity of what layers give for images with the spectrum of natural ones, in closed form.

    For each pair of tasks and each layer, the correlation of the two networks' features as a function of the distance
    between positions, averaged over channels. A convolution maps it linearly: by the correlation of the two tasks'
    atoms, weighted by the Gram matrices of the shared coefficients. Normalisation and the rectifier after it map it by
    the Hermite coefficients of ``relu(scale * x + shift)`` for normal x, which are those of the two tasks' channels.
    Pooling and strides keep every so many position. What is compared is the squared correlation at distance zero.

    Exact for one layer of linear filters on stationary input with independent channels; beyond, features are taken to
    be normal and channels to be independent, and a network to be the chain of its atom layers in the order in which
    they run, shortcuts and 1x1 convolutions left out.

    Args:
        bank: T tasks.
        model: their network, with rectifiers; it is run once, on a blank image, to see in which order its layers run.
        shape: of an input image: (channels, height, width).
        exponent: of the images' amplitude over the spatial frequency, as in :func:`fscl.similarity.noise_images`.
        colour: correlation of the images' channels with each other; natural ones are nearly grey.
        terms: of the Hermite series. 1 takes the rectifier for a gain. More are right for independent channels; in
            deep networks, whose channels are not, they add up to too little similarity.
        normalisation: False leaves scale and shift of the normalisation out, as if all were 1 and 0.
        per_layer: return (L, T, T), before the mean over layers.
        call: makes the pass from (model, images) where ``model(images)`` does not.

    Returns:
        (T, T) or (L, T, T) in float64 on the CPU, in [0, 1], 1 on the diagonal.

    Raises:
        FsclError: the bank is empty or not of this network; a layer that the pass does not reach; bad arguments.

    References:
        Field. Relations between the statistics of natural images and the response properties of cortical cells. JOSA A
        1987. Poole, Lahiri, Raghu, Sohl-Dickstein, Ganguli. Exponential expressivity in deep neural networks through
        transient chaos. NeurIPS 2016.

    Example:
        >>> from fscl.atoms import decompose, freeze_coefficients
        >>> model = decompose(nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3))).model
        >>> freeze_coefficients(model)
        >>> bank = AtomBank(model)
        >>> bank.store(model, task=0)
        >>> with torch.no_grad():
        ...     _ = model[0].atoms.add_(torch.randn(model[0].atoms.shape))
        >>> bank.store(model, task=1)
        >>> moment_similarity(bank, model, (1, 16, 16)).shape
        torch.Size([2, 2])
    """
    if len(shape) != 3 or min(shape) < 1:
        raise FsclError(f"shape is {tuple(shape)}; (channels, height, width) would do")
    if terms < 1 or exponent < 0 or not 0 <= colour <= 1:
        given = f"{terms} terms, exponent {exponent}, colour {colour}"
        raise FsclError(f"{given}; at least 1 term, an exponent of 0 or more and a colour from 0 to 1 would do")
    if not bank.tasks:
        raise FsclError("the bank is empty; store a task first")
    steps = _route(bank, model, shape, call)
    layers = [_Layer(bank, model, step, terms, normalisation, colour) for step in steps]
    side = max(shape[1:])
    first = _autocorrelation(side, min(_reach(layers), FARTHEST, (side - 1) // 2), exponent)
    tasks = torch.arange(len(bank))
    alone = _carried(layers, first, tasks, tasks, None)
    rows, columns = torch.tril_indices(len(bank), len(bank), -1)
    found = torch.ones(len(layers), len(bank), len(bank), dtype=torch.float64)
    for u, v in zip(*(pairs.split(max(1, BLOCK // first.numel())) for pairs in (rows, columns)), strict=True):
        between = _carried(layers, first, u, v, alone)
        found[:, u, v] = found[:, v, u] = between.square().clamp(max=1)
    order = [[step.layer for step in steps].index(layer) for layer in bank.layers]
    return found[order] if per_layer else found.mean(0)


class _Layer:
    """What pairs of tasks need of one layer: atoms, and by channel Gram matrices and Hermite coefficients."""

    def __init__(
        self, bank: AtomBank, model: nn.Module, step: _Step, terms: int, normalisation: bool, colour: float
    ) -> None:
        layer = atom_layers(model)[step.layer]
        self.step, self.dilation = step, layer.dilation
        self.atoms = bank.stack(step.layer).cpu().double()  # (T, m, k, k)
        shared = bank.shared[f"{step.layer}.coefficients"].cpu().double()  # (out, in / groups, m)
        by_group = shared.unflatten(0, (layer.groups, -1))
        self.grams = torch.einsum("goim,goin->gimn", by_group, by_group).flatten(0, 1)  # (in, m, m)
        if step.first:  # what enters is alike in its channels
            whole = by_group.sum(2)
            self.grams = (1 - colour) * self.grams.sum(0) + colour * torch.einsum("gom,gon->mn", whole, whole)
        scale = torch.ones(len(bank), layer.in_channels, dtype=torch.float64)
        shift = torch.zeros_like(scale)
        if step.norm is not None and normalisation:
            entries = [bank.entries(task) for task in bank.tasks]
            for name, values in (("weight", scale), ("bias", shift)):
                if f"{step.norm}.{name}" in entries[0]:
                    values.copy_(torch.stack([own[f"{step.norm}.{name}"] for own in entries]).detach())
        self.gains = None if step.first else _hermite(scale, shift, terms)  # (terms, T, in)

    def convolved(self, correlation: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """Covariance maps of what the layer gives, summed over channels, from those of what enters it: (P, s, s)."""
        powers = [correlation] if self.gains is None else [correlation**k for k in range(1, len(self.gains) + 1)]
        total = torch.zeros_like(correlation)
        for place, power in enumerate(powers):
            if self.gains is None:
                weighted = self.grams.expand(len(u), -1, -1)
            else:
                weighted = torch.einsum("pi,imn->pmn", self.gains[place, u] * self.gains[place, v], self.grams)
            left = torch.einsum("pmhw,pmn->pnhw", self.atoms[u], weighted)
            kernel = _crossed(left, self.atoms[v])
            total += _filtered(power, kernel, self.dilation)
        return total


def _route(bank: AtomBank, model: nn.Module, shape: tuple[int, int, int], call: Call | None) -> list[_Step]:
    """The bank's layers in the order in which they run, with what lies between them."""
    layers = atom_layers(model)
    if unknown := [name for name in bank.layers if name not in layers]:
        raise FsclError(f"the network has no atom layer {unknown[0]!r}; the bank is of another one")
    seen: list[tuple[str, nn.Module, tuple[int, ...], tuple[int, ...]]] = []
    hooks = [
        module.register_forward_hook(
            lambda module, inputs, output, name=name: seen.append((name, module, inputs[0].shape, output.shape))
        )
        for name, module in model.named_modules()
        if name in bank.layers or isinstance(module, _NormBase)
    ]
    modes = [(module, module.training) for module in model.modules()]
    like = next(p for p in model.parameters() if p.is_floating_point()) if layers else torch.zeros(0)
    blank = torch.zeros(1, *shape, device=like.device, dtype=like.dtype)
    try:
        model.eval()
        with torch.no_grad():
            model(blank) if call is None else call(model, blank)
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in modes:
            module.training = training
    norms: dict[int, str] = {}
    size, steps = shape[1], list[_Step]()
    for name, module, given, made in seen:
        if isinstance(module, _NormBase):
            norms[module.num_features] = name
        elif name not in [step.layer for step in steps]:
            shrink = max(1, round(size / given[2]))
            steps.append(_Step(name, not steps, norms.get(given[1]), shrink, layers[name].stride[0]))
            size = made[2]
    if missing := set(bank.layers) - {step.layer for step in steps}:
        raise FsclError(f"a pass does not reach layer {sorted(missing)[0]!r}; give `call` that makes one that does")
    return steps


def _reach(layers: Sequence[_Layer]) -> int:
    """How far apart positions of the images are on which the last layer's variance depends."""
    lags = 0
    for layer in reversed(layers):
        wide = max((size - 1) * step for size, step in zip(layer.atoms.shape[2:], layer.dilation, strict=True))
        lags = (lags * layer.step.stride + wide) * layer.step.shrink
    return lags


def _carried(layers: Sequence[_Layer], first: Tensor, u: Tensor, v: Tensor, alone: Tensor | None) -> Tensor:
    """Correlation, or of tasks with themselves variance, of each layer's features at distance zero: (L, P)."""
    correlation = first.expand(len(u), -1, -1)
    found = []
    for place, layer in enumerate(layers):
        covariance = layer.convolved(_thinned(correlation, layer.step.shrink), u, v)
        centre = covariance.shape[-1] // 2
        scale = covariance[:, centre, centre] if alone is None else (alone[place, u] * alone[place, v]).sqrt()
        correlation = covariance / scale.clamp(min=1e-300)[:, None, None]
        found.append(scale if alone is None else correlation[:, centre, centre])
        correlation = _thinned(correlation, layer.step.stride).clamp(-1, 1)
    return torch.stack(found)


def _crossed(one: Tensor, other: Tensor) -> Tensor:
    """Sums over atoms of their cross-correlation: (P, m, k, k) twice -> (P, 2k - 1, 2k - 1)."""
    height, width = one.shape[2:]
    padded = F.pad(other, (width - 1, width - 1, height - 1, height - 1))
    patches = padded.unfold(2, height, 1).unfold(3, width, 1)  # (P, m, 2k - 1, 2k - 1, k, k)
    return torch.einsum("pmhw,pmyxhw->pyx", one, patches)


def _filtered(maps: Tensor, kernels: Tensor, dilation: Sequence[int]) -> Tensor:
    """Each map with its own kernel, of the same size as before; nothing is known beyond a map's edge: 0."""
    reach = [(size // 2) * step for size, step in zip(kernels.shape[1:], dilation, strict=True)]
    padded = F.pad(maps, (reach[1], reach[1], reach[0], reach[0]))
    found = torch.zeros_like(maps)
    for row in range(kernels.shape[1]):
        for column in range(kernels.shape[2]):
            top, left = row * dilation[0], column * dilation[1]
            part = padded[:, top : top + maps.shape[1], left : left + maps.shape[2]]
            found += kernels[:, row, column, None, None] * part
    return found


def _thinned(maps: Tensor, step: int) -> Tensor:
    """Every so many lag, with zero among them."""
    if step == 1:
        return maps
    centre = maps.shape[-1] // 2
    kept = centre + step * torch.arange(-(centre // step), centre // step + 1)
    return maps[:, kept][:, :, kept]


def _autocorrelation(side: int, far: int, exponent: float) -> Tensor:
    """Of :func:`fscl.similarity.noise_images` of an exponent: (2 far + 1, 2 far + 1), 1 in the middle."""
    waves = torch.fft.fftfreq(side, dtype=torch.float64)
    frequency = torch.hypot(waves[:, None], waves[None])
    frequency[0, 0] = 1 / side  # as in `noise_images`
    power = frequency ** (-2 * exponent)
    lags = torch.arange(-far, far + 1) % side
    found = torch.fft.ifft2(power).real[lags][:, lags]
    return found / found[far, far]


def _hermite(scale: Tensor, shift: Tensor, terms: int) -> Tensor:
    """Coefficients 1 to `terms` of relu(scale x + shift) in the Hermite polynomials of a normal x: (terms, ...)."""
    size = scale.abs().clamp(min=1e-12)
    at = shift / size
    density = torch.exp(-at.square() / 2) / math.sqrt(2 * math.pi)
    polynomials = [torch.ones_like(at), -at]  # at -shift / scale
    while len(polynomials) < terms:
        polynomials.append(-at * polynomials[-1] - (len(polynomials) - 1) * polynomials[-2])
    found = [size * torch.special.ndtr(at)]
    found += [size * density * polynomials[k - 2] / math.sqrt(math.factorial(k)) for k in range(2, terms + 1)]
    # of odd polynomials in x the sign of a negative scale comes out
    return torch.stack([value * torch.sign(scale) ** (k + 1) for k, value in enumerate(found)])
