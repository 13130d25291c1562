"""Filter atom swapping as an Avalanche strategy, and as a plugin for others."""

from fscl.continual.learners.atoms import AtomBankPlugin, BankStrategy
from fscl.continual.task_switch import LabelSwitchPlugin

__all__ = ["AtomSwapping", "AtomSwappingPlugin"]


class AtomSwappingPlugin(AtomBankPlugin, LabelSwitchPlugin):
    """Learns a new set of atoms a task over coefficients frozen after the first; use beside other plugins.

    On the first experience the whole network is trained. Then the coefficients' gauge is fixed, everything shared is
    frozen, and each later task trains its own atoms, normalisation, biases and head, which end up in :attr:`bank`.
    During evaluation each sample is seen by its own task's network, so no task is ever forgotten.

    The strategy's model is decomposed (:func:`fscl.decompose`) if it is not already; its optimizer is pointed at the
    new parameters, group by group.

    Args:
        num_atoms: atoms of a 3x3 layer, if the model is to be decomposed, see :func:`fscl.decompose`.
        warm_start: a new task starts from the ``"previous"`` task's atoms or from the ``"first"`` task's. Heads of
            Avalanche's multi-head modules always start fresh.
        skip: modules that are not decomposed, by dotted name.

    Attributes:
        bank: the :class:`~fscl.atoms.AtomBank`, or None before the first experience has ended.

    Raises:
        FsclError: an argument does not fit.

    References:
        Miao, Wang, Chen, Qiu. Continual Learning with Filter Atom Swapping. ICLR 2022.

    Example:
        >>> plugin = AtomSwappingPlugin(num_atoms=9)
        >>> # Naive(model=model, optimizer=optimizer, plugins=[plugin]).train(experience)
        >>> plugin.bank is None
        True
    """


class AtomSwapping(BankStrategy, atom_swapping=AtomSwappingPlugin):
    """Filter atom swapping: an Avalanche strategy to put in the place of ``Naive``.

    The model may be any network with spatial convolutions; ``strategy.model`` is its decomposition, the model passed in
    stays as it is.

    Args:
        num_atoms, warm_start, skip: as in :class:`AtomSwappingPlugin`.
        plugins: more plugins; they run after the atoms are kept.
        **arguments: as in ``avalanche.training.Naive``.

    Attributes:
        atom_swapping: the plugin.
        bank: its bank.

    Raises:
        FsclError: the model has no spatial convolutions, or an argument does not fit.

    References:
        Miao, Wang, Chen, Qiu. Continual Learning with Filter Atom Swapping. ICLR 2022.

    Example:
        >>> import torch
        >>> from avalanche.models import as_multitask
        >>> from torch import nn
        >>> net = nn.Sequential()
        >>> net.features = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten())
        >>> net.classifier = nn.Linear(288, 2)
        >>> model = as_multitask(net, "classifier")
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        >>> strategy = AtomSwapping(model=model, optimizer=optimizer, num_atoms=9, evaluator=None)
        >>> strategy.model.model.features[0]
        AtomConv2d(1, 8, kernel_size=(3, 3), num_atoms=8)
    """

    atom_swapping: AtomSwappingPlugin
