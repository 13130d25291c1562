"""The values that options of federated methods may have."""

MIXES = ("mean", "nearest", "soft", "graph")
