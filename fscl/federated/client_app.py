"""Flower's ClientApp for any method of fscl, over clients whose images are at hand."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from torch import Tensor, nn

from fscl.atoms.packing import Packing
from fscl.data.transforms import ImageTransform
from fscl.errors import FsclError
from fscl.federated.client import Client, LabelledImages, seed_of
from fscl.federated.client_parts import ClientParts, lost_parts_mod, tested
from fscl.federated.flower_private import SERVER, use_identity
from fscl.federated.messages import SHORT, WISH
from fscl.federated.method import Method
from fscl.settings import Training

__all__ = ["Federation", "client_app", "introduce"]


@dataclass
class Federation:
    """What all clients of a federation have in common.

    Attributes:
        method: the clients' own object of the method, apart from the server's.
        network: a network as the server's, with the values that all start from. Each message uses it anew.
        training: how clients train; ``epochs`` are local epochs.
        train, test: the images of each client.
        augmented, plain: transforms of training and test images.
        own_classes: whether the network of a client chooses among the classes of its training images alone.
        rounds: over which the learning rate falls to zero along a cosine; None keeps it.
        seed: decides batches, augmentation and dropout of every client in every round.
        folder: where clients keep what stays at them; None keeps it in Flower's contexts.
    """

    method: Method
    network: nn.Module
    training: Training
    train: Sequence[LabelledImages]
    test: Sequence[LabelledImages]
    augmented: ImageTransform
    plain: ImageTransform
    own_classes: bool = False
    rounds: int | None = None
    seed: int = 0
    folder: Path | None = None

    def __post_init__(self) -> None:
        self._start: dict[str, Tensor] | None = None

    def fresh_network(self) -> nn.Module:
        """The network, with the values that all start from."""
        if self._start is None:
            self._start = {name: values.clone() for name, values in self.network.state_dict().items()}
        self.network.load_state_dict(self._start)
        return self.network

    def client(self, message: Message, context: Context) -> tuple[Client, ClientParts]:
        """The client that a message is for, with the network that it is to train or to answer with.

        Raises:
            LostError: the client has lost what it kept.
        """
        number = number_of(context, len(self.train))
        folder = None if self.folder is None else self.folder / f"client_{number:04}"
        classes = self.classes_of(number)
        parts = ClientParts(self.fresh_network(), context, classes=classes, folder=folder)
        parts.receive(message)
        client = Client(
            number=number,
            round=parts.round,
            network=self.network,
            packing=parts.packing,
            training=self.training_in(parts.round),
            train=self.train[number],
            test=self.test[number],
            augmented=self.augmented,
            plain=self.plain,
            classes=classes,
            received=parts.received,
            kept=parts.kept,
        )
        return client, parts

    def answering_now(self, number: int, ask: Callable[[int, int, list[int] | None], Message]) -> Client:
        """A client as it would answer now. All clients use one network: the next call changes its values.

        Args:
            number: of the client.
            ask: gives the server's message of evaluation to a client at a node, with the client's own classes,
                :meth:`~fscl.federated.FederatedStrategy.question`.
        """
        use_identity(SERVER)
        node = SERVER + 1 + number
        context = Context(0, node, {"partition-id": number}, RecordDict(), {})
        return self.answering(ask(number, node, self.classes_of(number)), context)

    def training_in(self, round: int) -> Training:
        """How clients train in a round, from 1."""
        if self.rounds is None:
            return self.training
        share = (1 + math.cos(math.pi * min(round - 1, self.rounds - 1) / self.rounds)) / 2
        return self.training.model_copy(update={"lr": share * self.training.lr})

    def classes_of(self, number: int) -> list[int] | None:
        """The classes of a client, if its network chooses among them alone."""
        own = self.train[number]
        return own.labels[own.chosen].unique().tolist() if self.own_classes else None

    def answering(self, message: Message, context: Context) -> Client:
        """The client that a message of evaluation is for, with the network that answers for it.

        Raises:
            LostError: the client has lost what it kept.
        """
        client, _ = self.client(message, context)
        client.training = self.training  # what prepares answers is not part of a round, whose rate may be near zero
        with _seeded(self.seed, client.round, client.number, 1):
            self.method.prepare_answers(client)
        return client


def client_app(load: Callable[[Context], Federation]) -> ClientApp:
    """A ClientApp that trains and tests the client of its context, ``node_config["partition-id"]``.

    Args:
        load: gives the federation. It is called for each message, so it should keep what it has made.
    """
    app = ClientApp(mods=[lost_parts_mod])

    @app.query()
    def query(message: Message, context: Context) -> Message:
        federation = load(context)
        number = number_of(context, len(federation.train))
        images, classes = len(federation.train[number]), federation.classes_of(number)
        return introduce(message, context, federation.fresh_network(), num_examples=images, classes=classes)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        federation = load(context)
        client, parts = federation.client(message, context)
        with _seeded(federation.seed, client.round, client.number, 0):
            loss = federation.method.train(client)
        parts.kept = client.kept
        return parts.answer(message, num_examples=len(client.train), loss=loss)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        client = load(context).answering(message, context)
        return tested(message, correct=client.correct(), num_examples=len(client.test))

    return app


def introduce(
    message: Message,
    context: Context,
    model: nn.Module | None = None,
    *,
    num_examples: int,
    classes: Sequence[int] | None = None,
) -> Message:
    """Answers the query of :class:`~fscl.federated.FederatedStrategy`: which client is this?

    Args:
        message: the query.
        context: its ``node_config`` has the client's number, ``partition-id``.
        model: the network from which the client starts. If its coefficients are the server's, they need not be sent.
        num_examples: the number of the client's training images. No answer of the client may claim more.
        classes: numbers of the client's own classes, if only their rows of the head are to travel.
    """
    fingerprint = "" if model is None else Packing(model).fingerprint(model)[:SHORT]
    wish = ConfigRecord({"client": number_of(context), "fingerprint": fingerprint, "num-examples": num_examples})
    if classes is not None:
        wish["classes"] = list(classes)
    return Message(RecordDict({WISH: wish}), reply_to=message)


def number_of(context: Context, clients: int | None = None) -> int:
    """The number of a context's client, from 0.

    Raises:
        FsclError: the node has no ``partition-id``, or there are fewer clients.
    """
    number = context.node_config.get("partition-id")
    if not isinstance(number, int) or number < 0 or (clients is not None and number >= clients):
        there_are = "" if clients is None else f", and there are {clients} clients"
        raise FsclError(f"partition-id is {number!r}{there_are}; start each node with --node-config 'partition-id=0'")
    return number


@contextmanager
def _seeded(*numbers: int) -> Iterator[None]:
    """Within the block torch's generator has a seed of its own; afterwards it goes on as before."""
    state = torch.random.get_rng_state()
    # where there is no GPU, torch.manual_seed keeps a traceback for each kind of GPU at each call, for ever
    generator = torch if torch.accelerator.is_available() else torch.random.default_generator
    generator.manual_seed(seed_of(*numbers))
    try:
        yield
    finally:
        torch.random.set_rng_state(state)
