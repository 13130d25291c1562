"""Figures of accuracy, similarity and memory: arrays in, matplotlib Axes out."""

from fscl.plots.charts import correlation_forest, memory_against_accuracy
from fscl.plots.clusters import clustered_heatmap
from fscl.plots.counts import counts_heatmap
from fscl.plots.curves import accuracy_over_cost, accuracy_over_time
from fscl.plots.heatmaps import (
    accuracy_heatmap,
    similarity_by_layer,
    similarity_heatmap,
    similarity_label,
    similarity_limits,
)
from fscl.plots.scatter import scatter_correlation, scatter_panels

__all__ = [
    "accuracy_heatmap",
    "accuracy_over_cost",
    "accuracy_over_time",
    "clustered_heatmap",
    "correlation_forest",
    "counts_heatmap",
    "memory_against_accuracy",
    "scatter_correlation",
    "scatter_panels",
    "similarity_by_layer",
    "similarity_heatmap",
    "similarity_label",
    "similarity_limits",
]
