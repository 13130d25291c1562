"""Progressive neural networks: a column for each task, fed by the frozen columns of earlier tasks."""

from typing import Any

from torch import nn

from fscl.atoms.ownership import entry_kinds
from fscl.continual.learner import PluginStrategy
from fscl.continual.learners.from_scratch import FromScratchPlugin
from fscl.continual.learners.laterals import Lateral, connect
from fscl.continual.task_switch import head_names
from fscl.errors import FsclError

__all__ = ["PNN", "PNNPlugin"]


class PNNPlugin(FromScratchPlugin):
    """Trains a column for each task, with lateral connections from the frozen former columns.

    A column is a separate network. All columns start from the same initial weights. Each convolution of a column,
    except the first, has a :class:`Lateral`: a small adapter that takes the inputs of the same convolution in former
    columns, and whose output is added to the output of the convolution. Each batch passes once through the former
    columns, in evaluation mode and without gradients. Heads have no lateral connections. In evaluation each sample
    passes through the column of its own task, so no task is ever forgotten.

    Args:
        columns: number of columns, from the first one, that feed later columns; None for all. Each batch of a task
            passes through these columns and its own, so without a limit the time grows with the number of tasks.

    Attributes:
        networks: task -> its column with the laterals that lead into it, in the order of learning.

    Raises:
        FsclError: ``columns`` is negative, the network has fewer than two convolutions, an experience has several task
            labels, or a task is learned again after later columns were built on its column.

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
        """Adds laterals to the strategy's network, once. They are empty until there is a former column."""
        model = strategy.model
        if any(isinstance(module, Lateral) for module in model.modules()):
            return
        convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
        if len(convolutions) < 2:
            raise FsclError(
                f"{type(model).__name__} has {len(convolutions)} convolutions; it needs two or more, because columns "
                "are connected from the second convolution on"
            )
        connect(model, convolutions[1:], self.columns, lambda: list(self.networks.values()))

    def before_training(self, strategy: Any, **kwargs: Any) -> None:
        self.attach(strategy)
        super().before_training(strategy, **kwargs)
        for name in [name for name in self._initial if ".lateral." in name]:
            del self._initial[name]  # their number grows with the columns, so each column makes new ones

    def before_train_dataset_adaptation(self, strategy: Any, **kwargs: Any) -> None:
        """Refuses an experience that cannot have a column, before anything is made for it."""
        experience, known = strategy.experience, list(self.networks)
        if len(labels := list(experience.task_labels)) != 1:
            raise FsclError(
                f"experience {experience.current_experience} has task labels {labels}; it needs exactly one"
            )
        if labels[0] in known[:-1]:
            later = ", ".join(map(str, known[known.index(labels[0]) + 1 :]))
            raise FsclError(
                f"task {labels[0]} is learned already, and its column is frozen because the columns of tasks {later} "
                "are built on it; give each experience its own task label"
            )
        for module in strategy.model.modules():
            if isinstance(module, Lateral):  # an interrupted training has left no column
                module.tasks = known

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        self._kinds |= entry_kinds(strategy.model, head_names(strategy.model))
        super().after_training_exp(strategy, **kwargs)

    def before_eval(self, strategy: Any, **kwargs: Any) -> None:
        self.attach(strategy)
        super().before_eval(strategy, **kwargs)

    def memory(self) -> dict[str, int]:
        """Bytes stored for each task (mean), by kind: column (filters and biases), lateral, normalisation, head."""
        sizes: dict[str, int] = {}
        for name, tensor in ((n, t) for network in self.networks.values() for n, t in network.items()):
            kind = "lateral" if ".lateral." in name else self._kinds.get(name, "column").replace("other", "column")
            sizes[kind] = sizes.get(kind, 0) + tensor.nbytes
        return {kind: round(size / len(self.networks)) for kind, size in sizes.items()}


class PNN(PluginStrategy, pnn=PNNPlugin):
    """Progressive neural networks: an Avalanche strategy with :class:`PNNPlugin` built in.

    ``avalanche.models.PNN`` is a network of linear layers. This strategy takes any feed-forward network with
    convolutions.

    Args:
        columns: as in :class:`PNNPlugin`.
        plugins: more plugins. They run after the columns are stored.
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
