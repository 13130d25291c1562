"""Correlations between two tasks' features, as functions of the distance, on their way through a network."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fscl.atoms.bank import AtomBank
from fscl.atoms.layers import AtomConv2d
from fscl.compare.trace import Event

__all__ = ["Way", "hermite"]


@dataclass(frozen=True)
class _Term:
    """A share of a map of channels: covariances that are, in each channel, a product of gains times a correlation."""

    gains: Tensor  # (T, c)
    source: int  # the step that made the correlation


@dataclass(frozen=True)
class _Map:
    """What is known of a map of channels: its shares, which are independent of each other, and its means (T, c)."""

    terms: list[_Term]
    mean: Tensor

    @property
    def deviation(self) -> Tensor:
        return torch.stack([term.gains.square() for term in self.terms]).sum(0).sqrt().clamp(min=1e-12)


@dataclass(frozen=True)
class _Step:
    """One correlation as a function of the distance, made of those of former steps."""

    kind: str  # image, conv, thin or power
    sources: list[int] = field(default_factory=list)
    layer: str = ""
    gains: list[Tensor] = field(default_factory=list)  # of each source, (T, c)
    atoms: Tensor | None = None  # (T, m, k, k) of a convolution, or (1, m, k, k) for all tasks
    grams: Tensor | None = None  # (c, m, m) of its coefficients by channel, or (m, m) of an image's channels together
    dilation: tuple[int, ...] = (1, 1)
    number: int = 1  # what is kept of a line of positions, one in so many; or the power


class Way:
    """The way of correlations through a network."""

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
            if all(given in self.maps for given in event.given):
                self.maps[event.made] = getattr(self, f"_{event.kind}")(event, *(self.maps[k] for k in event.given))

    def carried(self, first: Tensor, u: Tensor, v: Tensor, alone: dict[int, Tensor] | None) -> dict[int, Tensor]:
        """By convolution the correlation at distance zero, or of tasks with themselves the variance: (P,) each."""
        known: dict[int, Tensor] = {0: first.expand(len(u), -1, -1)}
        found: dict[int, Tensor] = {}
        for place, step in enumerate(self.steps):
            if step.kind == "thin":
                known[place] = _thinned(known[step.sources[0]], step.number)
            elif step.kind == "power":
                shares = [(own[u] * own[v]).mean(1)[:, None, None] for own in step.gains]
                whole = sum(share * known[source] for share, source in zip(shares, step.sources, strict=True))
                known[place] = torch.as_tensor(whole).clamp(-1, 1) ** step.number
            elif step.kind == "conv":
                covariance = self._convolved(step, known, u, v)
                centre = covariance.shape[-1] // 2
                scale = covariance[:, centre, centre] if alone is None else (alone[place][u] * alone[place][v]).sqrt()
                known[place] = (covariance / scale.clamp(min=1e-300)[:, None, None]).clamp(-1, 1)
                found[place] = scale if alone is None else known[place][:, centre, centre]
        return found

    @property
    def reach(self) -> int:
        """How far apart positions of the images are on which the variances depend."""
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
    def _convolved(step: _Step, known: dict[int, Tensor], u: Tensor, v: Tensor) -> Tensor:
        """Covariances summed over the channels that a convolution makes: (P, s, s)."""
        assert step.atoms is not None
        assert step.grams is not None
        shared = len(step.atoms) == 1
        one, other = (step.atoms if shared else step.atoms[u]), (step.atoms if shared else step.atoms[v])
        total = torch.zeros_like(known[step.sources[0]])
        for gains, source in zip(step.gains, step.sources, strict=True):
            if step.grams.ndim == 2:
                weights = step.grams.expand(len(u), -1, -1)
            else:
                weights = torch.einsum("pi,imn->pmn", gains[u] * gains[v], step.grams)
            left = torch.einsum("pmhw,pmn->pnhw", one.expand(len(u), -1, -1, -1), weights)
            kernel = _crossed(left, other.expand(len(u), -1, -1, -1))
            total = total + _filtered(known[source], kernel, step.dilation)
        return total

    def _add_step(self, step: _Step) -> int:
        self.steps.append(step)
        return len(self.steps) - 1

    def _conv(self, event: Event, given: _Map) -> _Map:
        layer = self.model.get_submodule(event.name)
        assert isinstance(layer, (nn.Conv2d, AtomConv2d))
        if isinstance(layer, AtomConv2d) and event.name in self.bank.layers:
            atoms = self.bank.stack(event.name).cpu().double()
            coefficients = self.bank.shared[f"{event.name}.coefficients"].cpu().double()  # (out, in / groups, m)
        else:  # the same filters for all tasks: an atom for each pixel
            coefficients = layer.weight.detach().cpu().double().flatten(2)
            height, width = layer.weight.shape[2:]
            atoms = torch.eye(height * width, dtype=torch.float64).view(1, -1, height, width)
        by_group = coefficients.unflatten(0, (layer.groups, -1))
        grams = torch.einsum("goim,goin->gimn", by_group, by_group).flatten(0, 1)
        if event.given == (0,):  # an image's channels are not independent
            whole = by_group.sum(2)
            alike = torch.einsum("gom,gon->mn", whole, whole)
            grams = (1 - self.colour) * grams.sum(0) + self.colour * alike
        gains, sources = [term.gains for term in given.terms], [term.source for term in given.terms]
        dilation = (int(layer.dilation[0]), int(layer.dilation[1]))
        place = self._add_step(_Step("conv", sources, event.name, gains, atoms, grams, dilation))
        ones = torch.ones(len(self.bank), layer.out_channels, dtype=torch.float64)
        return self._resize(replace(event, shrink=layer.stride[0]), _Map([_Term(ones, place)], torch.zeros_like(ones)))

    def _norm(self, event: Event, given: _Map) -> _Map:
        scale, shift = torch.ones_like(given.mean), torch.zeros_like(given.mean)
        entries = [self.bank.entries(task) for task in self.bank.tasks]
        for name, values in (("weight", scale), ("bias", shift)):
            if self.normalisation and f"{event.name}.{name}" in entries[0]:
                values.copy_(torch.stack([own[f"{event.name}.{name}"] for own in entries]).detach())
        factor = scale / given.deviation
        return _Map([replace(term, gains=term.gains * factor) for term in given.terms], shift)

    def _rectifier(self, event: Event, given: _Map) -> _Map:
        size = given.deviation
        series = hermite(size, given.mean, self.terms)
        shares = [term.gains / size for term in given.terms]
        sources = [term.source for term in given.terms]
        found = [replace(term, gains=own * series[0]) for term, own in zip(given.terms, shares, strict=True)]
        for power in range(2, self.terms + 1):
            place = self._add_step(_Step("power", sources, gains=shares, number=power))
            found.append(_Term(series[power - 1], place))
        at = given.mean / size
        density = torch.exp(-at.square() / 2) / math.sqrt(2 * math.pi)
        return _Map(found, given.mean * torch.special.ndtr(at) + size * density)

    def _add(self, event: Event, one: _Map, other: _Map) -> _Map:
        return _Map(one.terms + other.terms, one.mean + other.mean)

    def _cat(self, event: Event, *given: _Map) -> _Map:
        sizes = [part.mean.shape[1] for part in given]
        terms, before = [], 0
        for part, size in zip(given, sizes, strict=True):
            border = (before, sum(sizes) - before - size)
            terms += [replace(term, gains=F.pad(term.gains, border)) for term in part.terms]
            before += size
        return _Map(terms, torch.cat([part.mean for part in given], 1))

    def _resize(self, event: Event, given: _Map) -> _Map:
        step = round(event.shrink)
        if step <= 1:
            return given
        thinned = {
            source: self._add_step(_Step("thin", [source], number=step))
            for source in dict.fromkeys(term.source for term in given.terms)
        }
        return replace(given, terms=[replace(term, source=thinned[term.source]) for term in given.terms])


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


def hermite(scale: Tensor, shift: Tensor, terms: int) -> Tensor:
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
