"""A network at a Flower client: takes what the server sent, and packs what it asked for. The rest stays here."""

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from fscl.atoms.bank_file import copied_tensors, write_safetensors
from fscl.atoms.entries import digest_of, fingerprint_of
from fscl.atoms.learning import train_only
from fscl.atoms.packing import Packing
from fscl.federated.messages import LOST, METRICS, SHORT, WISH, LostError, answer, parts_in, requested
from fscl.federated.wire import Wire

__all__ = ["ClientParts", "lost_parts_mod", "tested"]

Call = Callable[[Message, Context], Message]
KEPT = "fscl.kept."  # begins the names of records in a context's state; the round follows


class ClientParts:
    """Puts the parts that a message brings into a network, and answers with the parts that the server asks for.

    Parts that are to stay at the client, such as normalisation and head, are kept in ``context.state`` from round to
    round. Parts that are frozen, such as coefficients, have ``requires_grad`` False after :meth:`receive`.

    Args:
        model: the network, built alike at the server and at all clients, with equal values.
        context: Flower's context of the client.
        heads, own: as for :class:`fscl.AtomBank`.
        classes: numbers of the client's own classes, if only their rows of the head travel. The client introduces
            itself with the same classes, see :func:`fscl.federated.introduce`.
        folder: a folder in which to keep parts, in place of the context. They then outlive the client's process.

    Example:
        In a Flower ``ClientApp``::

            @app.train()
            def train(message, context):
                model = make_network()
                parts = ClientParts(model, context)
                parts.receive(message)
                loss = fit(model, my_images)
                return parts.answer(message, num_examples=len(my_images), loss=loss)
    """

    def __init__(
        self,
        model: nn.Module,
        context: Context,
        *,
        heads: Sequence[str] | None = None,
        own: Collection[str] = (),
        classes: Collection[int] | None = None,
        folder: str | Path | None = None,
    ) -> None:
        self.model, self.packing = model, Packing(model, heads, own)
        self.received: dict[str, Tensor] = {}
        self.kept: dict[str, Tensor] = {}
        self._context = context
        self._folder = None if folder is None else Path(folder)
        self._rows = None if classes is None else self.packing.rows(classes)
        self._wish: dict = {}

    def receive(self, message: Message) -> None:
        """Puts the received parts into the network, over what the client kept in its last round.

        Raises:
            LostError: the server goes on from a round of which nothing is kept here.
            FsclError: a part does not fit the network, or is not finite.
        """
        self._wish = requested(message)
        self.kept = self._load(self._wish["kept_in"]) if self._wish["kept_in"] else {}
        mine = {part: values for part, values in self.kept.items() if part in self.packing.entries}
        self.packing.unpack(self.model, mine)
        self._wire = Wire(self._wish["bits"], self._rows)
        self.received = self._wire.read(parts_in(message.content), self.packing.packed(self.model))
        self.packing.unpack(self.model, self.received)
        frozen = set(self.frozen_entries)
        train_only(self.model, [p for name, p in self.model.named_parameters() if name not in frozen])

    @property
    def round(self) -> int:
        """The server's round, from 1."""
        return int(self._wish["round"])

    @property
    def frozen_entries(self) -> tuple[str, ...]:
        """The entries that neither travel back nor stay here as the client's own: nobody may change them."""
        moving = {*self._wish["returns"], *self._wish["keeps"]}
        return tuple(n for part, names in self.packing.entries.items() if part not in moving for n in names)

    def answer(self, message: Message, *, num_examples: int, **metrics: float) -> Message:
        """The reply to a message of training. What is to stay at the client is kept now.

        Args:
            message: the message that was received.
            num_examples: images that the client trained on; the weight of its parts in a mean.
            metrics: further numbers, which the server averages.
        """
        wish = self._wish
        stay = {part for part in self.packing.entries if part in wish["keeps"] or part in self.received}
        self._keep(wish["round"], self.kept | self.packing.packed(self.model, stay - set(wish["returns"])))
        fingerprint = self.packing.fingerprint(self.model)[:SHORT] if self.frozen_entries else ""
        parts = self.packing.packed(self.model, wish["returns"])
        if wish["bits"] < 32:  # a change is small, and so is the error with which it travels
            parts = {part: values - self.received[part] for part, values in parts.items()}
        return Message(
            answer(self._wire.write(parts), fingerprint, {"num-examples": num_examples, **metrics}), reply_to=message
        )

    def _keep(self, round: int, parts: Mapping[str, Tensor]) -> None:
        # the server goes on from the last round if it dies before it has this answer; other rounds, also later ones,
        # are of no use
        needed = (round, self._wish["kept_in"])
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_safetensors(self._file(round), dict(parts), {"digest": self._digest(round, parts)})
            for file in self._folder.glob("round_*.safetensors"):
                if file not in map(self._file, needed):
                    file.unlink()
            return
        state = self._context.state
        state[f"{KEPT}{round}"] = ArrayRecord({name: Array(values.numpy()) for name, values in parts.items()})
        for name in [name for name in state if name.startswith(KEPT)]:
            if int(name.removeprefix(KEPT)) not in needed:
                del state[name]

    def _load(self, round: int) -> dict[str, Tensor]:
        if self._folder is not None and (parts := self._read(round)) is not None:
            return parts
        if self._folder is None and (name := f"{KEPT}{round}") in self._context.state:
            kept = self._context.state.array_records[name]
            return {part: torch.from_numpy(array.numpy().copy()) for part, array in kept.items()}
        place = "" if self._folder is None else f" ({self._file(round)})"
        raise LostError(f"what this client kept in round {round} is lost or damaged{place}; it begins anew")

    def _read(self, round: int) -> dict[str, Tensor] | None:
        """What a file holds; None if there is none, or if it is damaged or another client's."""
        try:
            if not self._file(round).is_file():
                return None
            with safe_open(self._file(round), framework="pt", device="cpu") as file:
                digest = (file.metadata() or {}).get("digest")
                parts = copied_tensors(file)
        except (SafetensorError, LookupError, ValueError, TypeError, RuntimeError, OSError):  # any bytes may be in it
            return None
        return parts if digest == self._digest(round, parts) else None

    def _digest(self, round: int, parts: Mapping[str, Tensor]) -> str:
        """Tells what this client kept in a round from damaged parts, and from those of other clients and rounds."""
        owner = f"client {self._context.node_config.get('partition-id')}, round {round}"
        return digest_of(owner.encode(), fingerprint_of(dict(sorted(parts.items()))).encode())

    def _file(self, round: int) -> Path:
        assert self._folder is not None
        return self._folder / f"round_{round:06}.safetensors"


def lost_parts_mod(message: Message, context: Context, call_next: Call) -> Message:
    """A mod of Flower for a ``ClientApp`` with :class:`ClientParts`: a client that lost what it kept begins anew.

    Without it such a client, for example one that was started again without its folder, fails in every round.
    """
    try:
        return call_next(message, context)
    except LostError:
        return Message(RecordDict({WISH: ConfigRecord({LOST: True})}), reply_to=message)


def tested(message: Message, *, correct: int, num_examples: int) -> Message:
    """The reply to a message of evaluation: how many of its own test images a client classifies correctly."""
    counts = MetricRecord({"correct": correct, "num-examples": num_examples})
    return Message(RecordDict({METRICS: counts}), reply_to=message)
