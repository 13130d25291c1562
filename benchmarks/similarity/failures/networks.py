"""The same function written otherwise, comparisons of all pairs of networks, and what tells them apart."""

import copy
import itertools
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from benchmarks.similarity.lab import bank_of
from fscl.atoms import AtomBank, AtomConv2d, atom_layers
from fscl.compare import joint_decompose
from fscl.errors import FsclError
from fscl.similarity import atoms_of_filters, collect_features, gram_matrix, probing_matrix, similarity_matrix

__all__ = [
    "compared",
    "of_atoms",
    "outputs_apart",
    "own_bank",
    "permuted",
    "refused",
    "regauged",
    "weights_of",
    "whole_filters",
]

POSITIONS = 8  # of each image of a probe


def compared(networks: Sequence[nn.Module], probe: Tensor) -> dict[str, Tensor]:
    """All pairs of networks (N, N), by the fields of :class:`benchmarks.similarity.failures.results.Compared`."""
    features = [
        collect_features(network, probe.split(250), list(atom_layers(network)), maps="positions", positions=POSITIONS,
                         progress=False)
        for network in networks
    ]  # fmt: skip
    matrices = {
        name: torch.stack([probing_matrix([f[layer] for f in features], how) for layer in features[0]]).mean(0)
        for name, how in (("cka", "linear_cka"), ("cca", "mean_cca"))
    }
    layers = [atom_layers(network) for network in networks]
    stored = {name: torch.stack([own[name].atoms.detach() for own in layers]) for name in layers[0]}
    weights = [weights_of(network) for network in networks]
    joint = joint_decompose(weights)
    matrices["stored"] = similarity_matrix(stored, aggregate="depth")
    matrices["joint"] = similarity_matrix(joint, aggregate="depth")
    matrices["filters"] = whole_filters(weights)
    matrices["related"] = joint.relatedness()
    matrices["explained"] = torch.ones_like(matrices["related"])
    matrices["projected"] = torch.ones_like(matrices["related"])
    for i, j in itertools.combinations(range(len(networks)), 2):
        pair = joint.refit(names=[joint.names[i], joint.names[j]])
        matrices["explained"][i, j] = matrices["explained"][j, i] = pair.share
        both = [torch.stack([weights[i][name], weights[j][name]]) for name in weights[0]]
        shares = [atoms_of_filters(two, own).explained[1 - own] for two in both for own in (0, 1)]
        matrices["projected"][i, j] = matrices["projected"][j, i] = torch.stack(shares).mean()
    return {name: matrix.double() for name, matrix in matrices.items()}


def whole_filters(weights: Sequence[Mapping[str, Tensor]]) -> Tensor:
    """Cosine over depth of filters (out, in, kh, kw), with nothing left out: (N, N)."""
    stacks = {name: torch.stack([own[name].flatten(0, 1) for own in weights]) for name in weights[0]}
    return similarity_matrix(stacks, aggregate="depth")


@torch.no_grad()
def regauged(network: nn.Module, seed: int) -> nn.Module:
    """The same function with coefficients x inverse(M) and M x atoms, for a random invertible M in every layer.

    M turns atoms, stretches them by factors between 1/30 and 30, uniform in the logarithm, and turns them again.
    """
    changed, generator = copy.deepcopy(network), torch.Generator().manual_seed(seed)
    for layer in atom_layers(changed).values():
        drawn = torch.randn(2, layer.num_atoms, layer.num_atoms, generator=generator, dtype=torch.float64)
        first, last = torch.linalg.qr(drawn).Q
        stretch = 30 ** (2 * torch.rand(layer.num_atoms, generator=generator, dtype=torch.float64) - 1)
        layer.atoms.copy_((last * stretch @ first @ layer.atoms.double().flatten(1)).view_as(layer.atoms))
        layer.coefficients.copy_(layer.coefficients.double() @ first.mT / stretch @ last.mT)
    return changed.eval()  # filters that are kept from pass to pass are composed anew


@torch.no_grad()
def permuted(network: nn.Module, seed: int) -> nn.Module:
    """The same function with the channels of every convolution in another order; of a chain that ends in one head."""
    changed, generator = copy.deepcopy(network), torch.Generator().manual_seed(seed)
    order: Tensor | None = None
    for module in changed.modules():
        if isinstance(module, nn.Linear) and order is not None:
            columns = module.weight.unflatten(1, (len(order), -1))[:, order]  # channels, each with all its places
            module.weight.copy_(columns.flatten(1))
        if isinstance(module, AtomConv2d):
            if order is not None:
                module.coefficients.copy_(module.coefficients[:, order])
            order = torch.randperm(module.out_channels, generator=generator)
            module.coefficients.copy_(module.coefficients[order])
            if module.bias is not None:
                module.bias.copy_(module.bias[order])
        if isinstance(module, _BatchNorm) and order is not None:
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                if tensor is not None:
                    tensor.copy_(tensor[order])
    return changed.eval()


def of_atoms(networks: Sequence[nn.Module], metric: str = "cosine") -> Tensor:
    """Similarity over depth of the atoms as they are, with the first network's Gram matrices."""
    layers = [atom_layers(network) for network in networks]
    stacks = {name: torch.stack([own[name].atoms.detach() for own in layers]) for name in layers[0]}
    grams = {name: gram_matrix(layer.coefficients.detach()) for name, layer in layers[0].items()}
    return similarity_matrix(stacks, metric, "depth", grams=grams).double()


@torch.no_grad()
def outputs_apart(network: nn.Module, other: nn.Module, probe: Tensor) -> float:
    """The largest difference of two networks' outputs, in units of the outputs' deviation."""
    outputs = network(probe)
    return float((outputs - other(probe)).abs().max() / outputs.std())


def weights_of(network: nn.Module) -> dict[str, Tensor]:
    return {f"{name}.weight": layer.weight.detach() for name, layer in atom_layers(network).items()}


def own_bank(network: nn.Module) -> AtomBank:
    """A bank that holds this network alone."""
    return bank_of(network, [("", network.state_dict())])


def refused(bank: AtomBank, other: AtomBank) -> bool:
    """Whether a bank refuses to be merged with another one, because their atoms cannot be compared."""
    try:
        bank.merge(other)
    except FsclError:
        return True
    return False
