"""Several networks over one set of coefficients: what ordinary checkpoints need to be compared by their atoms."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce

import torch
from torch import Tensor, nn

from fscl.atoms.bank import AtomBank
from fscl.atoms.decompose import decompose
from fscl.atoms.entries import live_state, put_entries
from fscl.atoms.layers import AtomConv2d
from fscl.compare.convolutions import LeftOut, State, convolutions, misfit_of_kind, same_layers
from fscl.compare.effective import effective_state
from fscl.compare.filters import LayerFilters
from fscl.errors import FsclError
from fscl.similarity.subspace import gram_matrix

__all__ = ["JointDecomposition", "joint_decompose"]


@dataclass(frozen=True, eq=False)
class JointDecomposition:
    """Networks as coefficients that they share times atoms of their own; :func:`joint_decompose` makes it.

    :func:`fscl.similarity.similarity_matrix` takes it as it takes a bank. The coefficients are orthonormal, so that
    the plain cosine of two networks' atoms is the cosine of their filters as far as these are explained: with a share
    e of both explained, it is at most 2 (1 - e) away from the cosine of the filters themselves. The networks' tensors
    are referred to, not copied: what is asked for later is of the values that they then have.

    Attributes:
        names: of the T networks.
        layers: of the convolutions, in the order of the first network's entries.
        num_atoms: atoms of a layer with 3x3 kernels, or smaller ones.
        coefficients: by layer, (out, in / groups, m) with orthonormal columns, or zero where the filters span less.
        atoms: by layer, (T, m, height, width).
        explained: by layer, the share of each network's filters (squared norm) that the coefficients explain, (T,).
        energies: by layer, the squared norm of each network's filters, (T,).
        filters: by layer, what was decomposed.
        states: all entries of each network, by which :meth:`bank` restores what is no filter.
        left_out: the spatial convolutions that could not be compared in some network, and why.
        pointwise: the first network's convolutions of 1x1, which have no spatial part.
    """

    names: tuple[str, ...]
    layers: tuple[str, ...]
    num_atoms: int
    coefficients: Mapping[str, Tensor]
    atoms: Mapping[str, Tensor]
    explained: Mapping[str, Tensor]
    energies: Mapping[str, Tensor]
    filters: Mapping[str, LayerFilters]
    states: Sequence[State]
    left_out: Mapping[str, LeftOut] = field(default_factory=dict)
    pointwise: tuple[str, ...] = ()

    def __repr__(self) -> str:
        share = f"{100 * self.share:.1f} % explained"
        return f"JointDecomposition({len(self.names)} networks, {len(self.layers)} layers, {share})"

    @property
    def shares(self) -> Tensor:
        """The share of each network's filters that is explained, all layers together, (T,) float64."""
        return _share(self._all(self.explained), self._all(self.energies))

    @property
    def share(self) -> float:
        """The share of all networks' filters that is explained, in [0, 1]."""
        return float(_share(self._all(self.explained).flatten(), self._all(self.energies).flatten()))

    def stack(self, layer: str) -> Tensor:
        """The atoms of one layer for all networks, (T, m, height, width)."""
        self._check_layer(layer)
        return self.atoms[layer]

    def gram(self, layer: str) -> Tensor:
        """The (m, m) Gram matrix of the layer's coefficients: the identity, but for coefficients that are zero."""
        self._check_layer(layer)
        return gram_matrix(self.coefficients[layer].double())

    def refit(self, num_atoms: int | None = None, names: Sequence[str] | None = None) -> "JointDecomposition":
        """The same networks, or some of them, with their own best coefficients; inner products are not taken again.

        Raises:
            FsclError: a name is unknown, there is none, or the number of atoms is below 1.
        """
        wanted = self.names if names is None else tuple(names)
        if unknown := [name for name in wanted if name not in self.names] or ([] if wanted else [""]):
            raise FsclError(f"no network {unknown[0]!r} was decomposed; networks: {', '.join(self.names)}")
        members = [self.names.index(name) for name in wanted]
        filters = {layer: stack.of(members) for layer, stack in self.filters.items()}
        size = self.num_atoms if num_atoms is None else num_atoms
        fitted = _fit(wanted, [self.states[t] for t in members], filters, size)
        return replace(fitted, left_out=self.left_out, pointwise=self.pointwise)

    def relatedness(self) -> Tensor:
        """How far each two networks share their coefficients, as networks of one start do: (T, T) float64.

        1 where the filters of each lie in the span of the other's, about 0 for unrelated networks, which share no
        more than chance: a layer's share of filters in the other's span, kh * kw / n of them by chance for
        n = out * in / groups filters, with the chance taken off and layers weighted by what it leaves. It depends on
        neither the scale of filters nor how their energy is spread over atoms, as the explained share of two networks
        does. Networks of which chance explains everything (n <= kh * kw in every layer) count as related.
        """
        above, room = torch.zeros(2, len(self.names), len(self.names), dtype=torch.float64)
        for layer in self.layers:
            share, chance = self.filters[layer].overlap()
            above += share - chance
            room += 1 - chance
        related = torch.where(room > 0, above / room, 1.0).clamp(max=1)
        related.fill_diagonal_(1)
        return related

    @torch.no_grad()
    def bank(self, network: nn.Module, heads: Sequence[str] | None = None) -> AtomBank:
        """A bank with a task for each network: what the coefficients explain of its filters, and all else as it was.

        Entries that differ between the networks are stored with each (normalisation, biases, heads; 1x1 convolutions
        and hidden layers too); those that agree are stored once. To put a network back::

            model = fscl.decompose(network, joint.num_atoms).model
            bank.restore(model, task)

        To be compared, networks need be explained but well; to work as before, nearly in full. ResNet-18s trained from
        one random initialisation, 99.6 % explained by 9 atoms, fell from 98 % to 60 % of the test images or less.
        ``9 * len(joint.names)`` atoms give everything back to float32 precision.

        Args:
            network: one of their architecture, whose own values do not matter; it is left as it is.
            heads: dotted names of the modules or entries that are heads; None takes the last ``nn.Linear``. They may
                differ in size.

        Raises:
            FsclError: a network's entries do not fit.
        """
        ours = convolutions(type(network).__name__, network)
        shapes = {layer: filters for layer, filters in ours.filters.items() if layer in self.layers}
        same_layers("the network", shapes, self.names[0], self._shapes())
        known = dict(network.named_modules())
        others = [n for n in (*ours.filters, *ours.left_out) if n not in self.layers and n in known]
        model = decompose(network, self.num_atoms, skip=others).model
        states = [effective_state(live_state(s) if isinstance(s, nn.Module) else s) for s in self.states]
        modules = model.named_modules(remove_duplicate=False)  # a module used twice has two names in the state
        decomposed = [n for n, module in modules if isinstance(module, AtomConv2d)]
        live = live_state(model)
        factors = {f"{layer}.{part}" for layer in decomposed for part in ("coefficients", "atoms")}
        rest = [name for name in live if name not in factors]
        saved = model.state_dict().keys()  # a checkpoint has no others
        for name, state in zip(self.names, states, strict=True):
            if missing := [n for n in rest if n in saved and n not in state and not n.endswith("num_batches_tracked")]:
                raise FsclError(f"{name}: entry {missing[0]!r} of {type(network).__name__} is missing")
            for n in rest:
                if n in state and (why := misfit_of_kind(state[n], live[n])):
                    raise FsclError(f"{name}: entry {n!r} {why} in {type(network).__name__}")
        layers = [layer for layer in self.layers if layer in decomposed]  # not transposed convolutions
        put_entries(model, {f"{layer}.coefficients": self.coefficients[layer] for layer in layers})
        bank: AtomBank | None = None
        for task, (name, state) in enumerate(zip(self.names, states, strict=True)):
            put_entries(model, {n: state[n].detach() for n in rest if n in state})
            put_entries(model, {f"{layer}.atoms": self.atoms[layer][task] for layer in layers})
            bank = bank or AtomBank(model, heads, own=_differing(rest, states))
            bank.store(model, task, name)
        assert bank is not None  # there is a network
        return bank

    def _all(self, by_layer: Mapping[str, Tensor]) -> Tensor:
        return torch.stack([by_layer[layer] for layer in self.layers])

    def _shapes(self) -> dict[str, Tensor]:
        return {layer: self.filters[layer].filters[0] for layer in self.layers}

    def _check_layer(self, layer: str) -> None:
        if layer not in self.layers:
            raise FsclError(f"no layer {layer!r} was decomposed; layers: {', '.join(self.layers)}")


def joint_decompose(
    states: Mapping[str, State] | Sequence[State], num_atoms: int = 9, layers: Sequence[str] | None = None
) -> JointDecomposition:
    """Writes the filters of several networks of one architecture with shared coefficients, layer by layer.

    A layer's filters in network t are a matrix W_t of out * in / groups rows and kh * kw columns, scaled to norm 1. The
    leading left singular vectors of all W_t side by side are the coefficients: no others of their number explain more
    of the networks on the average. The atoms are U^T W_t, at the filters' own scale. As in :func:`fscl.decompose`, a
    kernel larger than 3x3 gets atoms in proportion, and no layer more than it has filters. With ``num_atoms`` of 9 a
    network, and so 9 T, all filters are exact to float32 precision; so they are nearly with 9 if the networks were
    fine-tuned from one start. Look at :attr:`JointDecomposition.share` before any similarity: unrelated networks share
    no coefficients. 1x1 convolutions have no spatial part and are left out. So are convolutions whose weight the state
    does not tell, see :attr:`JointDecomposition.left_out`; pruned, weight- and spectral-normed ones are compared by the
    weight with which they compute.

    Computed in float64 on the CPU; at no time is more than one layer of all networks held.

    Args:
        states: the networks as ``state_dict`` or module; by name, or named "0", "1", ...
        num_atoms: atoms of a layer with 3x3 kernels, or smaller ones.
        layers: the layers to use; by default all spatial convolutions of the first network.

    Raises:
        FsclError: no networks, no spatial convolutions, layers that differ in name or shape, an unknown layer, filters
            that are not finite, or a number of atoms below 1.

    References:
        Chen, Miao, Qiu. Exploring Neural Network Representational Similarity using Filter Subspaces. 2023.
        Miao, Wang, Chen, Qiu. Continual Learning with Filter Atom Swapping. ICLR 2022.

    Example:
        >>> import copy
        >>> start = nn.Sequential(nn.Conv2d(1, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3))
        >>> tuned = copy.deepcopy(start)
        >>> for p in tuned.parameters():
        ...     p.data += 0.01 * torch.randn_like(p)
        >>> other = nn.Sequential(nn.Conv2d(1, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3))
        >>> joint = joint_decompose({"start": start, "tuned": tuned, "other": other.state_dict()})
        >>> joint.layers, tuple(joint.stack("2").shape)
        (('0', '2'), (3, 9, 3, 3))
        >>> joint.share < 0.9 < joint.refit(names=["start", "tuned"]).share  # the third has another start
        True
        >>> related = joint.relatedness()
        >>> bool(related[0, 1] > 0.9), bool(related[0, 2] < 0.1)
        (True, True)
    """
    named = dict(states) if isinstance(states, Mapping) else {str(i): state for i, state in enumerate(states)}
    if not named:
        raise FsclError("no networks to decompose; give state_dicts or modules")
    first = next(iter(named))
    sorted_entries = {name: convolutions(name, state) for name, state in named.items()}
    found = {name: entries.filters for name, entries in sorted_entries.items()}
    known = list(found[first])
    if layers is not None:
        if unknown := [layer for layer in layers if layer not in known] or ([] if layers else [""]):
            raise FsclError(f"{first}: no layer {unknown[0]!r} to decompose; layers: {', '.join(known)}")
        found = {name: {n: f for n, f in filters.items() if n in layers} for name, filters in found.items()}
        known = list(dict.fromkeys(layers))
    left_out: dict[str, LeftOut] = {}
    for name, entries in sorted_entries.items():
        same_layers(name, found[name], first, found[first], entries.left_out)
        left_out |= entries.left_out
    stacks = {layer: LayerFilters([filters[layer] for filters in found.values()]) for layer in known}
    fitted = _fit(tuple(named), list(named.values()), stacks, num_atoms)
    return replace(fitted, left_out=left_out, pointwise=tuple(sorted_entries[first].pointwise))


@torch.no_grad()
def _fit(
    names: tuple[str, ...], states: Sequence[State], filters: Mapping[str, LayerFilters], num_atoms: int
) -> JointDecomposition:
    if num_atoms < 1:
        raise FsclError(f"num_atoms is {num_atoms}; it must be at least 1")
    coefficients, atoms, explained, energies = {}, {}, {}, {}
    for layer, stack in filters.items():
        size = min(max(num_atoms, math.ceil(num_atoms * stack.pixels / 9)), stack.rows)
        basis = stack.basis(size)
        dtype = reduce(torch.promote_types, [f.dtype for f in stack.filters], torch.float32)
        fitted, kept = stack.project(basis, dtype)
        energies[layer] = stack.norms.square()
        explained[layer] = _share(kept[None] / energies[layer], energies[layer][None])
        coefficients[layer] = basis.unflatten(0, stack.shape[:2]).to(dtype)
        atoms[layer] = fitted.unflatten(2, stack.shape[2:])
    return JointDecomposition(
        names, tuple(filters), num_atoms, coefficients, atoms, explained, energies, filters, states
    )


def _share(explained: Tensor, energy: Tensor) -> Tensor:
    """Shares of energy as one, over the first dimension; nothing is explained in full."""
    total = energy.sum(0)
    return torch.where(total > 0, (explained * energy).nan_to_num(0.0).sum(0) / total, 1.0).clamp(max=1)


def _differing(entries: Sequence[str], states: Sequence[Mapping[str, Tensor]]) -> list[str]:
    """The entries whose values are not the same in all networks."""
    return [name for name in entries if not all(_same(state.get(name), states[0].get(name)) for state in states[1:])]


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    return one is not None and other is not None and one.dtype == other.dtype and torch.equal(one.cpu(), other.cpu())
