"""The network that a finished run learned for a task or for a client, to be used on new images."""

from pathlib import Path
from typing import TYPE_CHECKING

from fscl.errors import FsclError
from fscl.runs.records.federated import FederatedRecord
from fscl.runs.results import run_in

if TYPE_CHECKING:
    import torch

    from fscl.continual.task_network import TaskNetwork
    from fscl.runs.federation.serving import ClientNetwork

__all__ = ["load_network"]


def load_network(
    run: str | Path,
    task: int | str | None = None,
    *,
    device: "str | torch.device" = "cpu",
    trust: bool = False,
    data: str | None = None,
) -> "TaskNetwork | ClientNetwork":
    """The network that a finished run learned for a task, of any learner, in evaluation mode; or for a client.

    Args:
        run: the run's folder.
        task: the number or the name of a task, counted from 0. None if the run has one task, or one network for the
            classes of all tasks (``split.scenario=class``, or ``domain`` with the same classes in every task). Of a
            federation, the number of a client.
        device: where the network goes; ``auto`` is a GPU if there is one, else the CPU. Networks of clients are on the
            CPU.
        trust: whether a learner, a method or a network that is neither of fscl nor of a known library may be imported.
        data: of a federation, the data folder: its methods may train on a client's images before they answer.

    Raises:
        FsclError: the folder has no finished run or no weights, the task is unknown or missing, the device is not
            available, or the run cannot be built by these versions.

    Example:
        >>> network = load_network("runs/split_digits/atom_swapping/seed_0", task=2)  # doctest: +SKIP
        >>> network.classes  # doctest: +SKIP
        ['3', '9']
        >>> network.probabilities(images)  # uint8 (N, 1, 8, 8)  # doctest: +SKIP
    """
    folder = Path(run)
    record = run_in(folder)
    if isinstance(record, FederatedRecord):
        from fscl.runs.federation.serving import load_client

        if task is None or not str(task).isdecimal():
            raise FsclError(f"{folder}: a federation; give the number of a client, 0 to {record.clients - 1}")
        return load_client(record, folder, int(task), trust, data)
    from fscl.runs.stream.serving import load_task

    return load_task(folder, task, device, trust)
