"""Networks compared without training: checkpoints, the atoms they share, and what their filters do without data."""

from fscl.compare.filter_history import FilterHistory
from fscl.compare.joint import JointDecomposition, joint_decompose
from fscl.compare.moments import moment_similarity
from fscl.compare.response import (
    READINGS,
    response_features,
    response_similarity,
    tangent_features,
    tangent_similarity,
)

__all__ = [
    "READINGS",
    "FilterHistory",
    "JointDecomposition",
    "joint_decompose",
    "moment_similarity",
    "response_features",
    "response_similarity",
    "tangent_features",
    "tangent_similarity",
]
