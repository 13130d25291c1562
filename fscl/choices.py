"""Names that users choose from, by option or argument. They are known before anything slow is imported."""

from typing import Literal, get_args

__all__ = ["AGGREGATES", "LOGS", "METRICS", "MIXES", "SPANS", "Aggregate", "Engine", "Log", "Metric", "Mix", "Place"]

Metric = Literal["cosine", "filter", "grassmann", "projection"]
"""How two atom sets of a layer are compared, see :func:`fscl.similarity_matrix`."""
Aggregate = Literal["product", "mean", "depth"]
"""How similarities of layers become one number, see :func:`fscl.similarity_matrix`."""
Place = Literal["auto", "device", "host", "off"]
"""Where images are kept, see :class:`fscl.continual.InMemoryLoader`."""
Engine = Literal["local", "ray"]
"""What does runs: this machine, or a Ray cluster."""
Log = Literal["tensorboard", "csv", "wandb"]
"""Where a run is logged while it trains, see :mod:`fscl.runs.logs`."""

Mix = Literal["mean", "nearest", "soft", "graph"]
"""How atoms of clients are mixed, see :func:`fscl.federated.mixing_weights`."""

METRICS: tuple[str, ...] = get_args(Metric)
SPANS = ("grassmann", "projection")  # the metrics that compare the spans of atoms
AGGREGATES: tuple[str, ...] = get_args(Aggregate)
LOGS: tuple[str, ...] = get_args(Log)
MIXES: tuple[str, ...] = get_args(Mix)
