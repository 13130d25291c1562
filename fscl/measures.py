"""The measures of similarity by name: how a layer's atoms are compared, and how layers are combined."""

from fscl.errors import FsclError

__all__ = ["AGGREGATES", "METRICS", "SPANS", "check_measure"]

METRICS = ("cosine", "filter", "grassmann", "projection")
SPANS = ("grassmann", "projection")
AGGREGATES = ("product", "mean", "depth")


def check_measure(metric: str, aggregate: str) -> None:
    """Raises :class:`FsclError` for an unknown metric or aggregate. To be called before files are read."""
    for argument, value, allowed in (("metric", metric, METRICS), ("aggregate", aggregate, AGGREGATES)):
        if value not in allowed:
            raise FsclError(f"unknown {argument} {value!r}; known: {', '.join(allowed)}")
