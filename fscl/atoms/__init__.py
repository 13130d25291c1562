"""What is learned: convolutions as ``coefficients x atoms``, networks made of them, and banks of atoms by task."""

from fscl.atoms.bank import AtomBank
from fscl.atoms.decompose import Decomposition, decompose, recompose
from fscl.atoms.layers import AtomConv2d, atom_layers
from fscl.atoms.learning import freeze_coefficients

__all__ = ["AtomBank", "AtomConv2d", "Decomposition", "atom_layers", "decompose", "freeze_coefficients", "recompose"]
