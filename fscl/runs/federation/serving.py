"""The network that answers for a client of a finished federation, to be used on new images."""

from pathlib import Path

import torch
from torch import Tensor, nn

from fscl.data.transforms import ImageTransform
from fscl.errors import FsclError
from fscl.federated import FederatedStrategy, Federation
from fscl.runs.federation.building import build_clients, build_server
from fscl.runs.federation.run import KEPT, SERVER, check_images
from fscl.runs.records.federated import FederatedRecord
from fscl.runs.resume import line, load_into, read_checkpoint
from fscl.runs.spec import spec_of_record

__all__ = ["ClientNetwork", "load_client", "open_federation"]


class ClientNetwork(nn.Module):
    """What a federation answers for images of one client. It answers in evaluation mode and records no gradients.

    Attributes:
        task: the number of the client.
        classes: the name of each output.
        image_shape: (C, H, W) of an image.
        transform: what must be applied to uint8 images before they are passed.
        network: the client's network.
        own: numbers of the classes among which the client chooses; None: among all.
    """

    def __init__(
        self,
        client: int,
        network: nn.Module,
        classes: list[str],
        shape: tuple[int, int, int],
        transform: ImageTransform,
        own: list[int] | None = None,
    ) -> None:
        super().__init__()
        self.task, self.classes, self.image_shape, self.transform = client, classes, shape, transform
        self.network, self.own = network, own
        self.eval()

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """The outputs of every class, (N, classes), for transformed images (N, C, H, W).

        The outputs of classes that the client does not choose are minus infinity.

        Raises:
            FsclError: images of another shape.
        """
        if images.ndim != 4 or tuple(images.shape[1:]) != self.image_shape:
            shape = "x".join(map(str, images.shape))
            raise FsclError(f"images are {shape}; the network takes N x {' x '.join(map(str, self.image_shape))}")
        outputs = self.network(images)
        if self.own is None:
            return outputs
        return torch.full_like(outputs, -torch.inf).index_copy(
            1, torch.tensor(self.own, device=outputs.device), outputs[:, self.own]
        )

    def probabilities(self, images: Tensor) -> Tensor:
        """(N, classes), the softmax of the outputs for uint8 images (N, C, H, W) that are not transformed."""
        return self(self.transform(images)).float().softmax(1)


def load_client(
    record: FederatedRecord, folder: Path, client: int, trust: bool, data: str | None = None
) -> ClientNetwork:
    """The network that answers for a client. Methods that fine-tune before they answer do so now, on its images.

    Args:
        record, folder: of the finished run.
        client: the number of the client, from 0.
        trust: as for :func:`fscl.load_network`.
        data: the data folder, as for :class:`fscl.runs.spec.RunSpec`.

    Raises:
        FsclError: there is no such client, the run kept no weights, its data is missing, or its recipes are not trusted
            and name code of others.
    """
    if not 0 <= client < record.clients:
        raise FsclError(f"{folder}: no client {client}; there are clients 0 to {record.clients - 1}")
    server, clients = open_federation(record, folder, trust, data)
    _, channels, height, width = clients.test[0].images.shape
    try:
        answering = clients.answering_now(client, server.question)
    except FsclError as error:
        raise FsclError(f"{folder}: {error}") from error
    except Exception as error:  # the state may be that of another version
        raise FsclError(f"{folder}: client {client} cannot be served from its {SERVER}: {line(error)}") from error
    shape = channels, height, width
    return ClientNetwork(client, answering.network, list(record.classes), shape, clients.plain, answering.classes)


def open_federation(
    record: FederatedRecord, folder: Path, trust: bool = False, data: str | None = None
) -> tuple[FederatedStrategy, Federation]:
    """The server and the clients of a finished federation, as they were after its last round.

    ``clients.answering_now(client, server.question)`` is a client with the network that answers for it.

    Args:
        record, folder, trust, data: as for :func:`load_client`.

    Raises:
        FsclError: as for :func:`load_client`.
    """
    if not (folder / SERVER).is_file():
        raise FsclError(f"{folder}: no {SERVER} in it; the run is unfinished, or was made with --no-weights")
    spec = spec_of_record(record, trust, data)
    _, state = read_checkpoint(folder / SERVER, spec)
    check_images(record, spec, folder)
    server, clients = build_server(spec), build_clients(spec, folder / KEPT)
    load_into(server, state, folder / SERVER, "method")
    return server, clients
