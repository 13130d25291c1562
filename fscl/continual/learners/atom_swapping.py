"""Filter atom swapping as an Avalanche strategy, and as a plugin for other strategies."""

from fscl.continual.learners.atoms import AtomBankPlugin, BankStrategy
from fscl.continual.task_switch import LabelSwitchPlugin

__all__ = ["AtomSwapping", "AtomSwappingPlugin"]


class AtomSwappingPlugin(AtomBankPlugin, LabelSwitchPlugin):
    """Learns new atoms for each task over coefficients that are frozen after the first task.

    On the first experience the whole network is trained. Then the gauge of the coefficients is fixed and all shared
    parameters are frozen. Each later task trains its own atoms, normalisation, biases and head. They are stored in
    :attr:`bank`.

    In evaluation each sample passes through the network of its own task, so no task is ever forgotten. The plugin can
    be used beside other plugins.

    If the strategy's model is not decomposed yet, it is decomposed (:func:`fscl.decompose`), and its optimizer is
    pointed at the new parameters, group by group.

    Args:
        num_atoms: number of atoms of a 3x3 layer when the model is decomposed, see :func:`fscl.decompose`.
        warm_start: the task whose atoms a new task starts from, ``"previous"`` or ``"first"``. Heads of Avalanche's
            multi-head modules always start newly initialised.
        skip: dotted names of modules that are not decomposed.

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
    """Filter atom swapping: an Avalanche strategy that can replace ``Naive``.

    The model may be any network with spatial convolutions. ``strategy.model`` is its decomposition; the model that was
    passed in does not change.

    Args:
        num_atoms, warm_start, skip: as in :class:`AtomSwappingPlugin`.
        plugins: more plugins. They run after the atoms are stored.
        **arguments: as in ``avalanche.training.Naive``.

    Attributes:
        atom_swapping: the plugin.
        bank: the bank of the plugin.

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
