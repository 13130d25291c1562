"""Follows the correlation of two tasks' features through a network, as a function of the distance of positions."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fscl.atoms.bank import AtomBank
from fscl.atoms.layers import AtomConv2d
from fscl.compare.trace import Event

__all__ = ["CorrelationPath", "hermite"]


@dataclass(frozen=True)
class _Term:
    """A part of a feature map. Two tasks' covariance in a channel is their gains' product times a correlation."""

    gains: Tensor  # (T, c)
    source: int  # number of the step that made the correlation


@dataclass(frozen=True)
class _Map:
    """What is known of a feature map: its terms, which are independent of each other, and its means (T, c)."""

    terms: list[_Term]
    mean: Tensor

    @property
    def deviation(self) -> Tensor:
        return torch.stack([term.gains.square() for term in self.terms]).sum(0).sqrt().clamp(min=1e-12)


@dataclass(frozen=True)
class _Step:
    """One correlation as a function of the distance, computed from the correlations of earlier steps."""

    kind: str  # image, conv, thin or power
    sources: list[int] = field(default_factory=list)
    layer: str = ""
    gains: list[Tensor] = field(default_factory=list)  # of each source, (T, c)
    atoms: Tensor | None = None  # of a convolution: (T, m, k, k), or (1, m, k, k) if all tasks have the same
    grams: Tensor | None = None  # of its coefficients: (c, m, m), or (m, m) for all channels of an image together
    dilation: tuple[int, ...] = (1, 1)
    number: int = 1  # of a thin step, the stride; of a power step, the exponent


class CorrelationPath:
    """The steps by which correlations pass through a network."""

    def __init__(
        self,
        bank: AtomBank,
        model: nn.Module,
        channels: int,
        events: Sequence[Event],
        terms: int,
        normalisation: bool,
        colour: float,
    ) -> None:
        self.bank, self.model, self.colour, self.terms, self.normalisation = bank, model, colour, terms, normalisation
        self.steps = [_Step("image")]
        ones = torch.ones(len(bank), channels, dtype=torch.float64)
        self.maps = {0: _Map([_Term(ones, 0)], torch.zeros_like(ones))}
        for event in events:
            if all(number in self.maps for number in event.inputs):
                self.maps[event.output] = getattr(self, f"_{event.kind}")(event, *(self.maps[k] for k in event.inputs))

    def carry(self, first: Tensor, u: Tensor, v: Tensor, alone: dict[int, Tensor] | None) -> dict[int, Tensor]:
        """The correlation of P pairs of tasks after each convolution.

        Args:
            first: correlation of the images, by lag.
            u, v: the tasks of each pair.
            alone: the variance of each task by step, which a call with the pairs (t, t) and None returns.

        Returns:
            By step, (P,): the correlation at distance zero, or the variance if ``alone`` is None.
        """
        correlations: dict[int, Tensor] = {0: first.expand(len(u), -1, -1)}
        results: dict[int, Tensor] = {}
        for place, step in enumerate(self.steps):
            if step.kind == "thin":
                correlations[place] = _thinned(correlations[step.sources[0]], step.number)
            elif step.kind == "power":
                shares = [(gains[u] * gains[v]).mean(1)[:, None, None] for gains in step.gains]
                mixture = sum(share * correlations[source] for share, source in zip(shares, step.sources, strict=True))
                correlations[place] = torch.as_tensor(mixture).clamp(-1, 1) ** step.number
            elif step.kind == "conv":
                covariance = self._convolved(step, correlations, u, v)
                centre = covariance.shape[-1] // 2
                scale = covariance[:, centre, centre] if alone is None else (alone[place][u] * alone[place][v]).sqrt()
                correlations[place] = (covariance / scale.clamp(min=1e-300)[:, None, None]).clamp(-1, 1)
                results[place] = scale if alone is None else correlations[place][:, centre, centre]
        return results

    @property
    def reach(self) -> int:
        """The largest distance of image positions, in pixels, on which the variances depend."""
        lags = dict.fromkeys(range(len(self.steps)), 0)
        for place in reversed(range(len(self.steps))):
            step, reach = self.steps[place], lags[place]
            if step.kind == "thin":
                reach *= step.number
            elif step.atoms is not None:
                reach += max((size - 1) * d for size, d in zip(step.atoms.shape[2:], step.dilation, strict=True))
            for source in step.sources:
                lags[source] = max(lags[source], reach)
        return lags[0]

    @staticmethod
    def _convolved(step: _Step, correlations: dict[int, Tensor], u: Tensor, v: Tensor) -> Tensor:
        """Covariances of a convolution's output, summed over its channels: (P, s, s)."""
        assert step.atoms is not None
        assert step.grams is not None
        shared = len(step.atoms) == 1
        first, second = (step.atoms if shared else step.atoms[u]), (step.atoms if shared else step.atoms[v])
        total = torch.zeros_like(correlations[step.sources[0]])
        for gains, source in zip(step.gains, step.sources, strict=True):
            if step.grams.ndim == 2:
                weights = step.grams.expand(len(u), -1, -1)
            else:
                weights = torch.einsum("pi,imn->pmn", gains[u] * gains[v], step.grams)
            left = torch.einsum("pmhw,pmn->pnhw", first.expand(len(u), -1, -1, -1), weights)
            kernel = _crossed(left, second.expand(len(u), -1, -1, -1))
            total = total + _filtered(correlations[source], kernel, step.dilation)
        return total

    def _add_step(self, step: _Step) -> int:
        self.steps.append(step)
        return len(self.steps) - 1

    def _conv(self, event: Event, source_map: _Map) -> _Map:
        layer = self.model.get_submodule(event.name)
        assert isinstance(layer, (nn.Conv2d, AtomConv2d))
        if isinstance(layer, AtomConv2d) and event.name in self.bank.layers:
            atoms = self.bank.stack(event.name).cpu().double()
            coefficients = self.bank.shared[f"{event.name}.coefficients"].cpu().double()  # (out, in / groups, m)
        else:  # all tasks have the same filters: take an atom for each pixel
            coefficients = layer.weight.detach().cpu().double().flatten(2)
            height, width = layer.weight.shape[2:]
            atoms = torch.eye(height * width, dtype=torch.float64).view(1, -1, height, width)
        by_group = coefficients.unflatten(0, (layer.groups, -1))
        grams = torch.einsum("goim,goin->gimn", by_group, by_group).flatten(0, 1)
        if event.inputs == (0,):  # the channels of an image are correlated
            summed = by_group.sum(2)
            summed_gram = torch.einsum("gom,gon->mn", summed, summed)
            grams = (1 - self.colour) * grams.sum(0) + self.colour * summed_gram
        gains, sources = [term.gains for term in source_map.terms], [term.source for term in source_map.terms]
        dilation = (int(layer.dilation[0]), int(layer.dilation[1]))
        place = self._add_step(_Step("conv", sources, event.name, gains, atoms, grams, dilation))
        ones = torch.ones(len(self.bank), layer.out_channels, dtype=torch.float64)
        return self._resize(replace(event, shrink=layer.stride[0]), _Map([_Term(ones, place)], torch.zeros_like(ones)))

    def _norm(self, event: Event, source_map: _Map) -> _Map:
        scale, shift = torch.ones_like(source_map.mean), torch.zeros_like(source_map.mean)
        entries = [self.bank.entries(task) for task in self.bank.tasks]
        for name, values in (("weight", scale), ("bias", shift)):
            if self.normalisation and f"{event.name}.{name}" in entries[0]:
                values.copy_(torch.stack([task_entries[f"{event.name}.{name}"] for task_entries in entries]).detach())
        factor = scale / source_map.deviation
        return _Map([replace(term, gains=term.gains * factor) for term in source_map.terms], shift)

    def _rectifier(self, event: Event, source_map: _Map) -> _Map:
        size = source_map.deviation
        series = hermite(size, source_map.mean, self.terms)
        shares = [term.gains / size for term in source_map.terms]
        sources = [term.source for term in source_map.terms]
        terms = [replace(term, gains=share * series[0]) for term, share in zip(source_map.terms, shares, strict=True)]
        for power in range(2, self.terms + 1):
            place = self._add_step(_Step("power", sources, gains=shares, number=power))
            terms.append(_Term(series[power - 1], place))
        ratio = source_map.mean / size
        density = torch.exp(-ratio.square() / 2) / math.sqrt(2 * math.pi)
        return _Map(terms, source_map.mean * torch.special.ndtr(ratio) + size * density)

    def _add(self, event: Event, first: _Map, second: _Map) -> _Map:
        return _Map(first.terms + second.terms, first.mean + second.mean)

    def _cat(self, event: Event, *parts: _Map) -> _Map:
        sizes = [part.mean.shape[1] for part in parts]
        terms, offset = [], 0
        for part, size in zip(parts, sizes, strict=True):
            border = (offset, sum(sizes) - offset - size)
            terms += [replace(term, gains=F.pad(term.gains, border)) for term in part.terms]
            offset += size
        return _Map(terms, torch.cat([part.mean for part in parts], 1))

    def _resize(self, event: Event, source_map: _Map) -> _Map:
        step = round(event.shrink)
        if step <= 1:
            return source_map
        thinned = {
            source: self._add_step(_Step("thin", [source], number=step))
            for source in dict.fromkeys(term.source for term in source_map.terms)
        }
        return replace(source_map, terms=[replace(term, source=thinned[term.source]) for term in source_map.terms])


def _crossed(first: Tensor, second: Tensor) -> Tensor:
    """Cross-correlations of two sets of atoms (P, m, k, k), summed over atoms: (P, 2k - 1, 2k - 1)."""
    height, width = first.shape[2:]
    padded = F.pad(second, (width - 1, width - 1, height - 1, height - 1))
    patches = padded.unfold(2, height, 1).unfold(3, width, 1)  # (P, m, 2k - 1, 2k - 1, k, k)
    return torch.einsum("pmhw,pmyxhw->pyx", first, patches)


def _filtered(maps: Tensor, kernels: Tensor, dilation: Sequence[int]) -> Tensor:
    """Each map filtered with its own kernel, at the same size. Values beyond a map's edge count as 0."""
    reach = [(size // 2) * step for size, step in zip(kernels.shape[1:], dilation, strict=True)]
    padded = F.pad(maps, (reach[1], reach[1], reach[0], reach[0]))
    filtered = torch.zeros_like(maps)
    for row in range(kernels.shape[1]):
        for column in range(kernels.shape[2]):
            top, left = row * dilation[0], column * dilation[1]
            part = padded[:, top : top + maps.shape[1], left : left + maps.shape[2]]
            filtered += kernels[:, row, column, None, None] * part
    return filtered


def _thinned(maps: Tensor, step: int) -> Tensor:
    """Every ``step``-th lag, lag zero included."""
    if step == 1:
        return maps
    centre = maps.shape[-1] // 2
    lags = centre + step * torch.arange(-(centre // step), centre // step + 1)
    return maps[:, lags][:, :, lags]


def hermite(scale: Tensor, shift: Tensor, terms: int) -> Tensor:
    """Hermite coefficients 1 to ``terms`` of relu(scale x + shift) for a standard normal x: (terms, ...)."""
    size = scale.abs().clamp(min=1e-12)
    ratio = shift / size
    density = torch.exp(-ratio.square() / 2) / math.sqrt(2 * math.pi)
    polynomials = [torch.ones_like(ratio), -ratio]  # at -shift / scale
    while len(polynomials) < terms:
        polynomials.append(-ratio * polynomials[-1] - (len(polynomials) - 1) * polynomials[-2])
    coefficients = [size * torch.special.ndtr(ratio)]
    coefficients += [size * density * polynomials[k - 2] / math.sqrt(math.factorial(k)) for k in range(2, terms + 1)]
    # a negative scale flips the sign of odd polynomials in x
    return torch.stack([value * torch.sign(scale) ** (k + 1) for k, value in enumerate(coefficients)])
