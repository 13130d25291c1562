"""Progressive neural networks: a column a task, fed by the frozen columns of the tasks before."""

from typing import Any

from torch import nn

from fscl.atoms.entries import entry_kinds
from fscl.continual.learner import PluginStrategy
from fscl.continual.learners.from_scratch import FromScratchPlugin
from fscl.continual.learners.laterals import Lateral, connect
from fscl.continual.task_switch import head_names
from fscl.errors import FsclError

__all__ = ["PNN", "PNNPlugin"]


class PNNPlugin(FromScratchPlugin):
    """A column a task, former columns frozen, with lateral connections from them into the new one.

    A column is a network of its own that starts from the same initial weights as every other, with a :class:`Lateral`
    beside each of its convolutions but the first: what the same convolution received in former columns is added, by way
    of a small adapter, to what it gives. Former columns see each batch as in evaluation, once, without gradients. Heads
    have no lateral connections. During evaluation each sample is seen by its own task's column, so that no task is ever
    forgotten.

    Args:
        columns: how many columns, from the first one on, feed those that come after them; None for all. Each batch of a
            task passes through them and the task's own, so that without a limit time grows with the number of tasks.

    Attributes:
        networks: the columns by task, in the order in which they were learned, with the laterals that lead into them.

    Raises:
        FsclError: ``columns`` is negative, the network has no second convolution, an experience has several task
            labels, or one that is learned again has columns built on its own.

    References:
        Rusu et al. Progressive Neural Networks. 2016.

    Example:
        >>> plugin = PNNPlugin(columns=5)
        >>> # Naive(model=model, optimizer=optimizer, plugins=[plugin]).train(experience)
        >>> plugin.networks
        {}
    """

    def __init__(self, columns: int | None = None) -> None:
        super().__init__()
        if columns is not None and columns < 0:
            raise FsclError(f"columns is {columns}; it must be at least 0, or None for all")
        self.columns = columns
        self._kinds: dict[str, str] = {}

    def attach(self, strategy: Any) -> None:
        """Gives the strategy's network its laterals, once; they are empty until there is a column to come from."""
        model = strategy.model
        if any(isinstance(module, Lateral) for module in model.modules()):
            return
        convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
        if len(convolutions) < 2:
            raise FsclError(
                f"{type(model).__name__} has {len(convolutions)} convolutions; columns are connected at the second and "
                "those after it"
            )
        connect(model, convolutions[1:], self.columns, lambda: list(self.networks.values()))

    def before_training(self, strategy: Any, **kwargs: Any) -> None:
        self.attach(strategy)
        super().before_training(strategy, **kwargs)
        for name in [name for name in self._initial if ".lateral." in name]:
            del self._initial[name]  # each column has more of them than the one before

    def before_train_dataset_adaptation(self, strategy: Any, **kwargs: Any) -> None:
        """Refuses an experience before anything is made for it."""
        experience, known = strategy.experience, list(self.networks)
        if len(labels := list(experience.task_labels)) != 1:
            raise FsclError(f"experience {experience.current_experience} has task labels {labels}; a column is of one")
        if labels[0] in known[:-1]:
            later = ", ".join(map(str, known[known.index(labels[0]) + 1 :]))
            raise FsclError(
                f"task {labels[0]} is learned already, and its column is frozen, for those of tasks {later} are built "
                "on it; give each experience a task label of its own"
            )
        for module in strategy.model.modules():
            if isinstance(module, Lateral):  # a training that was broken off left no column
                module.tasks = known

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        self._kinds |= entry_kinds(strategy.model, head_names(strategy.model))
        super().after_training_exp(strategy, **kwargs)

    def before_eval(self, strategy: Any, **kwargs: Any) -> None:
        self.attach(strategy)
        super().before_eval(strategy, **kwargs)

    def memory(self) -> dict[str, int]:
        """Mean bytes kept of a task, by kind: ``column`` (filters and biases), ``lateral``, normalisation, head."""
        sizes: dict[str, int] = {}
        for name, tensor in ((n, t) for network in self.networks.values() for n, t in network.items()):
            kind = "lateral" if ".lateral." in name else self._kinds.get(name, "column").replace("other", "column")
            sizes[kind] = sizes.get(kind, 0) + tensor.nbytes
        return {kind: round(size / len(self.networks)) for kind, size in sizes.items()}


class PNN(PluginStrategy, pnn=PNNPlugin):
    """Progressive neural networks: an Avalanche strategy with :class:`PNNPlugin` built in.

    ``avalanche.models.PNN`` is a network of linear layers; this takes any feed-forward network with convolutions.

    Args:
        columns: as in :class:`PNNPlugin`.
        plugins: more plugins; they run after the columns are kept.
        **arguments: as in ``avalanche.training.Naive``.

    References:
        Rusu et al. Progressive Neural Networks. 2016.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten())
        >>> strategy = PNN(model=net, optimizer=torch.optim.SGD(net.parameters(), lr=0.1), evaluator=None)
        >>> strategy.pnn.networks
        {}
    """

    pnn: PNNPlugin
