"""How tasks compare: similarities of filter atoms, and honest correlations of task-by-task matrices."""

from fscl.similarity.correlation import Correlation, Spread, holm, mantel, seed_interval
from fscl.similarity.subspace import (
    AtomStacks,
    FilterAtoms,
    aggregate_layers,
    atoms_of_filters,
    gram_matrix,
    similarity_matrix,
)

__all__ = [
    "AtomStacks",
    "Correlation",
    "FilterAtoms",
    "Spread",
    "aggregate_layers",
    "atoms_of_filters",
    "gram_matrix",
    "holm",
    "mantel",
    "seed_interval",
    "similarity_matrix",
]
