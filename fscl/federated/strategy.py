"""The server's side on Flower: chooses clients, sends parts, checks what comes back, and goes on from any round."""

import time
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy
from torch import Tensor, nn

from fscl.errors import FsclError
from fscl.federated.flower_private import wire_bytes
from fscl.federated.history import Evaluation, History, Round
from fscl.federated.messages import METRICS, SHORT, LostError, arrays, request
from fscl.federated.method import Method, Update
from fscl.federated.replies import counts_in, update_in
from fscl.federated.roll import Introduction, Roll
from fscl.federated.wire import Wire, decoded

__all__ = ["FederatedStrategy"]

EVALUATED_AT_ONCE = 100  # clients; a message to a client holds parts of a network


class FederatedStrategy(Strategy):
    """A Flower strategy for any method of fscl. Answers that cannot be right are left out by name; the round goes on.

    An answer is left out if the client failed or did not answer in time; if a part is missing, unknown, not finite or
    of another shape; if its frozen coefficients are not the server's; if a part moved more than ``largest_change``
    times the length of what was sent; or if it claims more training images than its client did when it introduced
    itself. The number of images is a client's weight in a mean.

    This protects from faults, and ``most_images`` bounds the weight of a client. It does not protect from a client that
    claims up to this number whatever it has, that takes part under several numbers, or that returns wrong parts of a
    believable length.

    Args:
        method: what is sent and how it is combined.
        model: the network, with the values that all clients start from. The server needs no images.
        clients: number of clients; the server waits until so many are connected.
        fraction: share of the clients that train in a round.
        least: answers that a round needs. With fewer, the server keeps its parts and goes on.
        evaluate_every: rounds between two evaluations of all clients; the last round is always evaluated. 0: never.
        largest_change: see above.
        most_images: training images that a client may have; one that claims more is refused. None: no bound, and one
            client may outweigh all others.
        seed: decides which clients train in which round.

    Attributes:
        method, history: see :class:`~fscl.federated.method.Method` and :class:`~fscl.federated.history.History`.
        round: the last finished round.

    Raises:
        FsclError: a number is out of range.
    """

    def __init__(
        self,
        method: Method,
        model: nn.Module,
        clients: int = 2,
        *,
        fraction: float = 1.0,
        least: int = 1,
        evaluate_every: int = 1,
        largest_change: float = 100.0,
        most_images: int | None = None,
        seed: int = 0,
    ) -> None:
        if not 0 < fraction <= 1:
            raise FsclError(f"fraction is {fraction}; a share above 0 and up to 1 would do")
        for name, value, low in (
            ("clients", clients, 1), ("least", least, 1), ("evaluate_every", evaluate_every, 0),
            ("most_images", most_images, 1),
        ):  # fmt: skip
            if value is not None and value < low:
                raise FsclError(f"{name} is {value}; it must be at least {low}")
        self.method, self.clients, self.fraction, self.least = method, clients, fraction, least
        self.evaluate_every, self.largest_change, self.seed = evaluate_every, largest_change, seed
        self.most_images = most_images
        method.begin(method.prepare(model), clients)
        self.round, self.last_round = 0, 0
        self.history = History()
        self._kept_in: dict[int, int] = {}  # the last round from which each client's answer counted
        self._roll = Roll(clients)
        self._sent: dict[int, dict[str, Tensor]] = {}
        self._wires: dict[int, Wire] = {}
        self._images: dict[int, int] = {}  # of each client, as it said when it introduced itself
        self._started = 0.0

    # Flower calls these

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """The messages to the clients of a round, in the order of their numbers."""
        self._started = time.perf_counter()
        present = self._roll.present(grid, self.least, self._introduced)
        count = max(round(self.fraction * self.clients), self.least, 1)
        drawn = np.random.default_rng([self.seed, server_round]).permutation(self.clients).tolist()
        chosen = sorted([client for client in drawn if client in present][:count])
        self.history.rounds.append(current := Round(server_round, chosen))
        self._sent = {}
        messages = [self._message(client, present[client], server_round, "train") for client in chosen]
        current.sent = sum(map(wire_bytes, messages))
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Combines the answers that count."""
        current = self.history.rounds[-1]
        updates: list[Update] = []
        losses: list[tuple[float, int]] = []
        fingerprint = self.method.fingerprint(server_round)[:SHORT]  # once: it reads all that is frozen
        for client, answers in self._roll.by_client(replies).items():
            current.received += sum(map(wire_bytes, answers))
            try:
                update = update_in(
                    answers,
                    client,
                    self.method.packing,
                    self.method.travels(server_round),
                    fingerprint,
                    self._sent[client],
                    self._wires[client],
                    self.largest_change,
                    self._images[client],
                )
            except FsclError as error:
                current.left_out[client] = str(error)
                self._forget_if_lost(client, error)
                continue
            updates.append(update)
            loss = answers[0].content.metric_records[METRICS].get("loss")
            if isinstance(loss, int | float) and np.isfinite(loss):
                losses.append((loss, update.images))
        current.answered = [update.client for update in updates]
        if len(updates) >= self.least:
            self.method.combine(server_round, updates)
        # an answer that was not combined counts, too: the client kept what belongs to it
        self._kept_in |= dict.fromkeys(current.answered, server_round)
        if losses:
            values, images = np.array(losses).T
            current.loss = float(values @ images / images.sum())
        self._sent = {}
        current.seconds = time.perf_counter() - self._started
        measured = MetricRecord({"clients": len(updates)})
        if current.loss is not None:
            measured["loss"] = current.loss
        return self._mean(), measured

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Messages to all clients, if this round is evaluated. A message of evaluation changes nothing at a client."""
        due = self.evaluate_every and (server_round % self.evaluate_every == 0 or server_round == self.last_round)
        if not due:
            return
        self._started = time.perf_counter()
        self.history.evaluations.append(current := Evaluation(server_round))
        for client, node in self._roll.present(grid, self.least, self._introduced).items():
            message = self._message(client, node, server_round, "evaluate")
            current.sent += wire_bytes(message)
            yield message

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Notes how many images each client classified correctly. It may be called for some clients at a time."""
        current = self.history.evaluations[-1]
        for client, answers in self._roll.by_client(replies).items():
            current.received += sum(map(wire_bytes, answers))
            try:
                current.correct[client], current.images[client] = counts_in(answers)
            except FsclError as error:
                current.failed[client] = str(error)
                self._forget_if_lost(client, error)
        current.seconds = time.perf_counter() - self._started
        if not current.accuracy:
            return None
        return MetricRecord(
            {"accuracy": float(np.mean(list(current.accuracy.values()))), "clients": len(current.accuracy)}
        )

    def summary(self) -> None:
        """Says nothing: the history holds it all."""

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord | None = None,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,
        after_round: Callable[[], object] = lambda: None,
    ) -> Result:
        """Does all rounds that are left of ``num_rounds``. Other arguments as in Flower.

        Args:
            grid: Flower's connection to the clients.
            initial_arrays: must be None: all start from the network that this strategy was made with.
            num_rounds: rounds in all, those included that were done before :meth:`load_state_dict`.
            timeout: seconds that a round waits for answers.
            train_config, evaluate_config: not sent; must be None.
            evaluate_fn: called with the round and the server's parts after each round.
            after_round: called when a round is finished; a good moment to save :meth:`state_dict`.
        """
        for name, value in (("initial_arrays", initial_arrays), ("train_config", train_config),
                            ("evaluate_config", evaluate_config)):  # fmt: skip
            if value is not None:
                raise FsclError(f"{name} is not used by {type(self).__name__}; leave it out")
        result, nothing = Result(), ConfigRecord()
        self.last_round, now = num_rounds, self._mean()
        while self.round < num_rounds:
            number = self.round + 1
            replies = grid.send_and_receive(self.configure_train(number, now, nothing, grid), timeout=timeout)
            now, trained = self.aggregate_train(number, replies)  # type: ignore[assignment]
            tested = None
            evaluated = iter(self.configure_evaluate(number, now, nothing, grid))
            while asked := list(islice(evaluated, EVALUATED_AT_ONCE)):
                tested = self.aggregate_evaluate(number, grid.send_and_receive(asked, timeout=timeout))
            result.arrays = now
            if trained is not None:
                result.train_metrics_clientapp[number] = trained
            if tested is not None:
                result.evaluate_metrics_clientapp[number] = tested
            if evaluate_fn is not None and (measured := evaluate_fn(number, now)) is not None:
                result.evaluate_metrics_serverapp[number] = measured
            self.round = number
            after_round()
        return result

    # to go on later

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values from which another strategy, made alike, goes on after the last finished round."""
        return {
            "round": self.round,
            "method": self.method.state_dict(),
            "kept_in": dict(self._kept_in),
            "history": self.history.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.round = state["round"]
        self.method.load_state_dict(state["method"])
        self._kept_in = dict(state["kept_in"])
        self.history = History.of(state["history"])

    def question(self, client: int, node: int, classes: list[int] | None = None) -> Message:
        """The message of evaluation to a client after the last finished round.

        Args:
            client: its number.
            node: where it is.
            classes: with which it would introduce itself, see :func:`introduce`, if it has not done so yet.
        """
        if client not in self._wires:
            self._wires[client] = self._wire(classes)
        return self._message(client, node, self.round, "evaluate")

    def _mean(self) -> ArrayRecord:
        """The server's parts, as Flower's callers expect them."""
        return arrays({part: values.numpy() for part, values in self.method.mean.items()})

    def _forget_if_lost(self, client: int, error: FsclError) -> None:
        if isinstance(error, LostError):
            self._kept_in.pop(client, None)
            self.method.forget(client)

    def _introduced(self, introduction: Introduction) -> None:
        """Notes what a client says of itself.

        Raises:
            FsclError: it claims too many images, or its classes are no rows of the head.
        """
        images, classes = introduction.images, introduction.classes
        if self.most_images is not None and images > self.most_images:
            raise FsclError(f"says that it has {images} training images; most_images is {self.most_images}")
        self._wires[introduction.client] = self._wire(classes)
        self._images[introduction.client] = images
        self.method.introduced(introduction.client, introduction.fingerprint)

    def _wire(self, classes: list[int] | None) -> Wire:
        """How parts travel to and from a client with these classes.

        Raises:
            FsclError: they are no rows of the head.
        """
        return Wire(self.method.bits, None if classes is None else self.method.packing.rows(classes))

    def _message(self, client: int, node: int, round: int, kind: str) -> Message:
        """A message to a client. What it will read from it is noted in ``_sent``, in training."""
        wire = self._wires.setdefault(client, Wire(self.method.bits))
        training = kind == "train"
        # an evaluation sends what the next round would send
        parts = self.method.parts_for(client, round if training else round + 1)
        frozen = parts.keys() - set(self.method.travels(round))  # the same at all clients, to the bit
        written = wire.write(parts, exact=frozen)
        if training:
            self._sent[client] = wire.read({part: decoded(values) for part, values in written.items()}, parts)
        content = request(
            written,
            round=round,
            returns=self.method.travels(round) if training else (),
            keeps=self.method.stays,
            kept_in=self._kept_in.get(client, 0),
            bits=wire.bits,
        )
        return self._roll.sends(client, Message(content, node, kind, group_id=str(round)))
