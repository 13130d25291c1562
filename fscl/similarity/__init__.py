"""Compares tasks by their filter atoms or by features on data, and correlates task-by-task matrices."""

from fscl.aggregates import aggregate_layers
from fscl.estimate import Estimate, seed_interval
from fscl.similarity.canonical import kept_directions, mean_cca, pwcca, svcca
from fscl.similarity.correlation import Correlation, holm, mantel
from fscl.similarity.features import collect_features
from fscl.similarity.filters import FilterAtoms, atoms_of_filters, gram_matrix
from fscl.similarity.kernels import aligned_cosine, linear_cka, minibatch_cka, procrustes, rbf_cka
from fscl.similarity.matrices import flatten_maps
from fscl.similarity.metrics import (
    PWCCA,
    SVCCA,
    AlignedCosine,
    FeatureMetric,
    LinearCKA,
    MeanCCA,
    MinibatchCKA,
    Procrustes,
)
from fscl.similarity.pooled import PooledCorrelation, pooled_mantel
from fscl.similarity.probing import PROBES, probing_matrix
from fscl.similarity.stimuli import dead_leaves, noise_images, recall_images
from fscl.similarity.subspace import AtomStacks, similarity_matrix

__all__ = [
    "PROBES",
    "PWCCA",
    "SVCCA",
    "AlignedCosine",
    "AtomStacks",
    "Correlation",
    "Estimate",
    "FeatureMetric",
    "FilterAtoms",
    "LinearCKA",
    "MeanCCA",
    "MinibatchCKA",
    "PooledCorrelation",
    "Procrustes",
    "aggregate_layers",
    "aligned_cosine",
    "atoms_of_filters",
    "collect_features",
    "dead_leaves",
    "flatten_maps",
    "gram_matrix",
    "holm",
    "kept_directions",
    "linear_cka",
    "mantel",
    "mean_cca",
    "minibatch_cka",
    "noise_images",
    "pooled_mantel",
    "probing_matrix",
    "procrustes",
    "pwcca",
    "rbf_cka",
    "recall_images",
    "seed_interval",
    "similarity_matrix",
    "svcca",
]
