"""Training without a federation: the lower bound of what clients gain by working together."""

from fscl.atoms.packing import PARTS
from fscl.federated.method import Method

__all__ = ["Local"]


class Local(Method):
    """Each client trains its own network whenever it is chosen. Nothing travels."""

    stays = PARTS
