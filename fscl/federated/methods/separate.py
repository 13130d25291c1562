"""FedAvg of decomposed networks, whose coefficients and atoms are averaged separately."""

from torch import nn

from fscl.atoms import decompose
from fscl.federated.methods.atoms import NUM_ATOMS
from fscl.federated.methods.fedavg import FedAvg

__all__ = ["SeparateAveraging"]


class SeparateAveraging(FedAvg):
    """Clients train coefficients and atoms, and the server averages both: filters are mean coefficients x mean atoms.

    :class:`FedAvg` of an ordinary network averages filters. Here coefficients and atoms travel as parts of their own,
    so that the mean of each is taken, and the server's filters are those of all pairs of a client's coefficients and a
    client's atoms. Both are equal only if all clients have the same coefficients, or all have the same atoms.

    Args:
        num_atoms: atoms of each layer; for networks that have no atom layers yet.

    References:
        Chen, Qiu. Extra clients at no extra cost: overcome data heterogeneity in federated learning with filter
        decomposition. 2025.

    Example:
        >>> sorted(SeparateAveraging().prepare(nn.Sequential(nn.Conv2d(1, 8, 3, bias=False))).state_dict())
        ['0.atoms', '0.coefficients']
    """

    def __init__(self, num_atoms: int = NUM_ATOMS) -> None:
        self.num_atoms = num_atoms

    def prepare(self, model: nn.Module) -> nn.Module:
        return decompose(model, self.num_atoms).model
