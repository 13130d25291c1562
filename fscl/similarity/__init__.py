"""How tasks compare: by their filter atoms, by features on data, and how one task-by-task matrix goes with another."""

from fscl.similarity.correlation import Correlation, Spread, holm, mantel, seed_interval
from fscl.similarity.probing import SVCCA, linear_cka, mean_cca, minibatch_cka, probing_matrix, svcca
from fscl.similarity.subspace import (
    AtomStacks,
    FilterAtoms,
    aggregate_layers,
    atoms_of_filters,
    gram_matrix,
    similarity_matrix,
)

__all__ = [
    "SVCCA",
    "AtomStacks",
    "Correlation",
    "FilterAtoms",
    "Spread",
    "aggregate_layers",
    "atoms_of_filters",
    "gram_matrix",
    "holm",
    "linear_cka",
    "mantel",
    "mean_cca",
    "minibatch_cka",
    "probing_matrix",
    "seed_interval",
    "similarity_matrix",
    "svcca",
]
