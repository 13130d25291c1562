"""Several networks over one set of coefficients, so that ordinary checkpoints can be compared by their atoms."""

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
from fscl.compare.effective import effective_state
from fscl.compare.filters import LayerFilters, as_filters
from fscl.compare.layers import (
    LeftOut,
    State,
    common_layers,
    comparable_layers,
    is_spatial,
    misfit_of_kind,
    same_layers,
)
from fscl.errors import FsclError
from fscl.similarity.filters import gram_matrix

__all__ = ["JointDecomposition", "joint_decompose"]


@dataclass(frozen=True, eq=False)
class JointDecomposition:
    """Networks written as shared coefficients times atoms of their own. :func:`joint_decompose` makes it.

    :func:`fscl.similarity.similarity_matrix` accepts it like a bank. The coefficients are orthonormal. So the plain
    cosine of two networks' atoms is the cosine of the explained part of their filters. If a share e of both is
    explained, it differs from the cosine of the filters by at most 2 (1 - e). The networks' tensors are not copied:
    methods that are called later use the values that the tensors have then.

    Attributes:
        names: names of the T networks.
        layers: names of the layers, in the order of the first network's entries.
        num_atoms: atoms of a layer whose kernels are 3x3 or smaller.
        coefficients: by layer, (out, in / groups, m) with orthonormal columns. Columns that the filters do not need are
            zero.
        atoms: by layer, (T, m, height, width).
        explained: by layer, the share of each network's filters (squared norm) that the coefficients explain, (T,).
        energies: by layer, the squared norm of each network's filters, (T,).
        filters: by layer, the filters that were decomposed.
        states: all entries of each network. :meth:`bank` takes entries that are not filters from them.
        left_out: the layers that cannot be compared in some network, and why.
        pointwise: the layers without a spatial part: 1x1 convolutions, linear layers, projections of attention. Their
            weights are cut in blocks, see :func:`fscl.compare.filters.as_filters`, and their atoms are 4x4.
        head: the first network's layer that is taken as the head, which each task has for itself, and is not compared.
        compared: how many values of a network are compared.
        parameters: how many values the first network learns: weights, biases, normalisation, positions, head.
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
    head: str | None = None
    compared: int = 0
    parameters: int = 0

    def __repr__(self) -> str:
        share = f"{100 * self.share:.1f} % explained"
        return f"JointDecomposition({len(self.names)} networks, {len(self.layers)} layers, {share})"

    @property
    def shares(self) -> Tensor:
        """The share of each network's filters that is explained, all layers together, (T,) float64."""
        return _share(self._all(self.explained), self._all(self.energies))

    @property
    def bank_shares(self) -> Tensor:
        """The share of each network's spatial filters that is explained, all of which :meth:`bank` restores, (T,)."""
        spatial = [layer for layer in self.layers if layer not in self.pointwise]
        if not spatial:
            return torch.ones(len(self.names), dtype=torch.float64)
        return _share(*(torch.stack([table[layer] for layer in spatial]) for table in (self.explained, self.energies)))

    @property
    def share(self) -> float:
        """The share of all networks' filters that is explained, in [0, 1]."""
        return float(_share(self._all(self.explained).flatten(), self._all(self.energies).flatten()))

    def stack(self, layer: str) -> Tensor:
        """The atoms of one layer for all networks, (T, m, height, width)."""
        self._check_layer(layer)
        return self.atoms[layer]

    def gram(self, layer: str) -> Tensor:
        """The (m, m) Gram matrix of the layer's coefficients: the identity, with 0 where coefficients are zero."""
        self._check_layer(layer)
        return gram_matrix(self.coefficients[layer].double())

    def refit(self, num_atoms: int | None = None, names: Sequence[str] | None = None) -> "JointDecomposition":
        """The same networks, or some of them, with the coefficients that are best for them.

        Inner products are not computed again.

        Raises:
            FsclError: a name is unknown, ``names`` is empty, or the number of atoms is below 1.
        """
        chosen = self.names if names is None else tuple(names)
        if unknown := [name for name in chosen if name not in self.names] or ([] if chosen else [""]):
            raise FsclError(f"no network {unknown[0]!r} was decomposed; networks: {', '.join(self.names)}")
        members = [self.names.index(name) for name in chosen]
        filters = {layer: stack.of(members) for layer, stack in self.filters.items()}
        size = self.num_atoms if num_atoms is None else num_atoms
        fitted = _fit(chosen, [self.states[t] for t in members], filters, size)
        kept = ("left_out", "pointwise", "head", "compared", "parameters")
        return replace(fitted, **{name: getattr(self, name) for name in kept})

    def relatedness(self) -> Tensor:
        """How far each pair of networks shares coefficients, as networks of one start do: (T, T) float64.

        It is 1 if the filters of each network lie in the span of the other's, and about 0 for unrelated networks. It
        sums, over layers, the share of filters in the other's span minus the share expected by chance, and divides by
        the sum of 1 - chance. For n = out * in / groups filters the chance is kh * kw / n. Unlike the explained share
        of two networks, it depends neither on the scale of filters nor on how their energy is spread over atoms.
        Networks whose every layer has n <= kh * kw count as related, because chance explains them in full.
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
        """A bank with a task for each network: the explained part of its filters, and all other entries unchanged.

        Entries that differ between the networks are stored with each task: normalisation, biases and heads, but also
        1x1 convolutions and hidden layers. Entries that agree are stored once. To put a network back::

            model = fscl.decompose(network, joint.num_atoms).model
            bank.restore(model, task)

        A network needs a higher explained share to work as before than to be compared. ResNet-18s trained from one
        random initialisation were 99.6 % explained by 9 atoms, and their test accuracy fell from 98 % to 60 % or less.
        ``9 * len(joint.names)`` atoms restore every network to float32 precision.

        Args:
            network: a network of the same architecture. Its values do not matter, and it is not changed.
            heads: dotted names of the modules or entries that are heads; None takes the last ``nn.Linear``. Heads may
                differ in size.

        Raises:
            FsclError: the entries of a network do not fit ``network``.
        """
        own = comparable_layers(type(network).__name__, network)
        shapes = {layer: filters for layer, filters in own.filters.items() if layer in self.layers}
        same_layers("the network", shapes, self.names[0], self._shapes())
        modules_by_name = dict(network.named_modules())
        not_decomposed = [n for n in (*own.filters, *own.left_out) if n not in self.layers and n in modules_by_name]
        model = decompose(network, self.num_atoms, skip=not_decomposed).model
        states = [effective_state(live_state(s) if isinstance(s, nn.Module) else s) for s in self.states]
        modules = model.named_modules(remove_duplicate=False)  # the state has both names of a module used twice
        decomposed = [n for n, module in modules if isinstance(module, AtomConv2d)]
        live = live_state(model)
        factors = {f"{layer}.{part}" for layer in decomposed for part in ("coefficients", "atoms")}
        other_entries = [name for name in live if name not in factors]
        saved = model.state_dict().keys()  # only these are in a checkpoint
        for name, state in zip(self.names, states, strict=True):
            if missing := [
                n for n in other_entries if n in saved and n not in state and not n.endswith("num_batches_tracked")
            ]:
                raise FsclError(f"{name}: entry {missing[0]!r} of {type(network).__name__} is missing")
            for n in other_entries:
                if n in state and (why := misfit_of_kind(state[n], live[n])):
                    raise FsclError(f"{name}: entry {n!r} {why} in {type(network).__name__}")
        layers = [layer for layer in self.layers if layer in decomposed]  # transposed convolutions are not
        put_entries(model, {f"{layer}.coefficients": self.coefficients[layer] for layer in layers})
        bank: AtomBank | None = None
        for task, (name, state) in enumerate(zip(self.names, states, strict=True)):
            put_entries(model, {n: state[n].detach() for n in other_entries if n in state})
            put_entries(model, {f"{layer}.atoms": self.atoms[layer][task] for layer in layers})
            bank = bank or AtomBank(model, heads, own=_differing(other_entries, states))
            bank.store(model, task, name)
        assert bank is not None  # there is at least one network
        return bank

    def _all(self, by_layer: Mapping[str, Tensor]) -> Tensor:
        return torch.stack([by_layer[layer] for layer in self.layers])

    def _shapes(self) -> dict[str, Tensor]:
        return {layer: self.filters[layer].filters[0] for layer in self.layers if layer not in self.pointwise}

    def _check_layer(self, layer: str) -> None:
        if layer not in self.layers:
            raise FsclError(f"no layer {layer!r} was decomposed; layers: {', '.join(self.layers)}")


def joint_decompose(
    states: Mapping[str, State] | Sequence[State], num_atoms: int = 9, layers: Sequence[str] | None = None
) -> JointDecomposition:
    """Writes the weights of several networks of one architecture with shared coefficients, layer by layer.

    A layer's filters in network t are a matrix W_t of out * in / groups rows and kh * kw columns, scaled to norm 1. The
    coefficients U are the leading left singular vectors of all W_t side by side: no other coefficients of the same
    number explain more of the networks on average. The atoms are U^T W_t, at the filters' own scale. As in
    :func:`fscl.decompose`, a kernel larger than 3x3 gets more atoms in proportion, and no layer gets more atoms than it
    has filters. All filters of T networks are exact to float32 precision with ``num_atoms`` of 9 T. If the networks
    were fine-tuned from one start, 9 are nearly enough. Check :attr:`JointDecomposition.share` before any similarity:
    unrelated networks share no coefficients.

    Layers without a spatial part (1x1 convolutions, linear layers, projections of attention) take part with blocks of
    16 input channels in place of kernels, see :func:`fscl.compare.filters.as_filters`. The last linear layer is the
    head and left out. Left out by name (:attr:`JointDecomposition.left_out`) are layers that not all networks have, or
    whose number of outputs differs, and layers whose weight cannot be computed from the state. Pruned layers, and those
    under weight or spectral normalisation, are compared by the weight that they compute with.

    All is computed in float64 on the CPU, and never more than one layer of all networks is in memory.

    Args:
        states: the networks, each as a ``state_dict`` or a module. The keys of a mapping name them; in a sequence they
            are named "0", "1", ...
        num_atoms: atoms of a layer whose kernels are 3x3 or smaller.
        layers: the layers to use; by default all that can be compared in the first network.

    Raises:
        FsclError: there are no networks or no layers to compare, layers differ in name or shape, a layer is unknown,
            filters are not finite, or the number of atoms is below 1.

    References:
        Chen, Miao, Qiu. Exploring Neural Network Representational Similarity using Filter Subspaces. 2023.
        Miao, Wang, Chen, Qiu. Continual Learning with Filter Atom Swapping. ICLR 2022.
        Chen, Miao, Qiu. Large Convolutional Model Tuning via Filter Subspace. ICLR 2025 (blocks of linear layers).

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
    sorted_entries = {name: comparable_layers(name, state) for name, state in named.items()}
    weights_by_network = {name: entries.weights for name, entries in sorted_entries.items()}
    left_out: dict[str, LeftOut] = {}
    if layers is not None:  # the head, too, if it is among them
        every = {name: {**entries.weights, **entries.head} for name, entries in sorted_entries.items()}
        if unknown := [layer for layer in layers if layer not in every[first]] or ([] if layers else [""]):
            raise FsclError(f"{first}: no layer {unknown[0]!r} to decompose; layers: {', '.join(every[first])}")
        weights_by_network = {
            name: {n: w for n, w in weights.items() if n in layers} for name, weights in every.items()
        }
    for name, entries in sorted_entries.items():
        same_layers(name, weights_by_network[name], first, weights_by_network[first], entries.left_out)
        left_out |= entries.left_out
    common, differing = common_layers(list(weights_by_network.values()))
    if not common or (layers is not None and differing):
        layer, why = next(iter(differing.items()))
        raise FsclError(f"{first}: layer {layer!r} cannot be compared with the other networks: {why.reason}")
    left_out |= differing
    chosen = common if layers is None else list(dict.fromkeys(layers))
    stacks = {
        layer: LayerFilters([as_filters(weights[layer]) for weights in weights_by_network.values()]) for layer in chosen
    }
    fitted = _fit(tuple(named), list(named.values()), stacks, num_atoms)
    of_first = sorted_entries[first]
    return replace(
        fitted,
        left_out=left_out,
        pointwise=tuple(layer for layer in chosen if not is_spatial(weights_by_network[first][layer])),
        head=next((layer for layer in of_first.head if layer not in chosen), None),
        compared=sum(weights_by_network[first][layer].numel() for layer in chosen),
        parameters=of_first.parameters,
    )


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
        fitted, explained_energies = stack.project(basis, dtype)
        energies[layer] = stack.norms.square()
        explained[layer] = _share(explained_energies[None] / energies[layer], energies[layer][None])
        coefficients[layer] = basis.unflatten(0, stack.shape[:2]).to(dtype)
        atoms[layer] = fitted.unflatten(2, stack.shape[2:])
    return JointDecomposition(
        names, tuple(filters), num_atoms, coefficients, atoms, explained, energies, filters, states
    )


def _share(explained: Tensor, energy: Tensor) -> Tensor:
    """Mean of shares weighted by energy, over the first dimension. It is 1 where there is no energy to explain."""
    total = energy.sum(0)
    return torch.where(total > 0, (explained * energy).nan_to_num(0.0).sum(0) / total, 1.0).clamp(max=1)


def _differing(entries: Sequence[str], states: Sequence[Mapping[str, Tensor]]) -> list[str]:
    """The entries whose values differ between networks."""
    return [name for name in entries if not all(_same(state.get(name), states[0].get(name)) for state in states[1:])]


def _same(first: Tensor | None, second: Tensor | None) -> bool:
    return (
        first is not None
        and second is not None
        and first.dtype == second.dtype
        and torch.equal(first.cpu(), second.cpu())
    )
