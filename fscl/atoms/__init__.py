"""What is learned: convolutions as ``coefficients x atoms``, networks made of them, and banks of atoms by task."""

from fscl.atoms.bank import AtomBank
from fscl.atoms.decompose import Decomposition, decompose, recompose
from fscl.atoms.joint import JointDecomposition, joint_decompose
from fscl.atoms.layers import AtomConv2d, atom_layers, freeze_coefficients
from fscl.atoms.moments import moment_similarity
from fscl.atoms.response import (
    READINGS,
    response_features,
    response_similarity,
    tangent_features,
    tangent_similarity,
)

__all__ = [
    "READINGS",
    "AtomBank",
    "AtomConv2d",
    "Decomposition",
    "JointDecomposition",
    "atom_layers",
    "decompose",
    "freeze_coefficients",
    "joint_decompose",
    "moment_similarity",
    "recompose",
    "response_features",
    "response_similarity",
    "tangent_features",
    "tangent_similarity",
]
