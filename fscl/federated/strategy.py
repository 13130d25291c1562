"""The server's side on Flower: chooses clients, sends parts, checks what comes back, and goes on from any round."""

import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy
from torch import Tensor, nn

from fscl.errors import FsclError
from fscl.federated.flower_private import wire_bytes
from fscl.federated.history import Evaluation, History, Round
from fscl.federated.messages import METRICS, LostError, arrays, request
from fscl.federated.method import Method, Update
from fscl.federated.replies import counts_in, introduction, update_in

__all__ = ["FederatedStrategy"]


class FederatedStrategy(Strategy):
    """A Flower strategy for any method of fscl. Answers that cannot be right are left out by name; the round goes on.

    An answer is left out if the client failed or did not answer in time; if a part is missing, unknown, not finite or
    of another shape; if its frozen coefficients are not the server's; or if a part moved more than ``largest_change``
    times the length of what was sent.

    Args:
        method: what is sent and how it is combined.
        model: the network, with the values that all clients start from. The server needs no images.
        clients: number of clients; the server waits until so many are connected.
        fraction: share of the clients that train in a round.
        least: answers that a round needs. With fewer, the server keeps its parts and goes on.
        evaluate_every: rounds between two evaluations of all clients; the last round is always evaluated. 0: never.
        largest_change: see above.
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
        seed: int = 0,
    ) -> None:
        if not 0 < fraction <= 1:
            raise FsclError(f"fraction is {fraction}; a share above 0 and up to 1 would do")
        for name, value, low in (("clients", clients, 1), ("least", least, 1), ("evaluate_every", evaluate_every, 0)):
            if value < low:
                raise FsclError(f"{name} is {value}; it must be at least {low}")
        self.method, self.clients, self.fraction, self.least = method, clients, fraction, least
        self.evaluate_every, self.largest_change, self.seed = evaluate_every, largest_change, seed
        method.begin(method.prepare(model), clients)
        self.round, self.last_round = 0, 0
        self.history = History()
        self._kept_in: dict[int, int] = {}  # the last round from which each client's answer counted
        self._nodes: dict[int, int] = {}  # number of the client at each of Flower's nodes
        self._warned: set[str] = set()
        self._asked: list[Message] = []  # Flower writes their identifiers into them when they are sent
        self._sent: dict[int, dict[str, Tensor]] = {}
        self._started = 0.0

    # Flower calls these

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """The messages to the clients of a round, in the order of their numbers."""
        self._started = time.perf_counter()
        present = self._present(grid)
        count = min(max(round(self.fraction * self.clients), self.least, 1), len(present))
        numbers = np.random.default_rng([self.seed, server_round])
        chosen = sorted(numbers.permutation(sorted(present))[:count].tolist())
        self.history.rounds.append(current := Round(server_round, chosen))
        self._sent = {client: self.method.parts_for(client, server_round) for client in chosen}
        self._asked = [self._message(client, present[client], server_round, "train") for client in chosen]
        current.sent = sum(map(wire_bytes, self._asked))
        return self._asked

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Combines the answers that count."""
        current = self.history.rounds[-1]
        updates: list[Update] = []
        loss_of: dict[int, float] = {}
        for reply in replies:
            current.received += wire_bytes(reply)
            client = self._client_of(reply)
            if client not in self._sent:
                continue
            try:
                update = update_in(
                    reply, client, self.method, server_round, self._sent[client], largest_change=self.largest_change
                )
            except FsclError as error:
                current.left_out[client] = str(error)
                if isinstance(error, LostError):
                    self._kept_in.pop(client, None)
                    self.method.forget(client)
                continue
            updates.append(update)
            loss = reply.content.metric_records[METRICS].get("loss")
            if isinstance(loss, int | float) and np.isfinite(loss):
                loss_of[client] = loss
        answered = {update.client for update in updates} | current.left_out.keys()
        current.left_out |= {c: "it did not answer in time" for c in current.chosen if c not in answered}
        updates.sort(key=lambda update: update.client)  # answers come in any order, and sums depend on it
        current.answered = [update.client for update in updates]
        if len(updates) >= self.least:
            self.method.combine(server_round, updates)
        # an answer that was not combined counts, too: the client kept what belongs to it
        self._kept_in |= dict.fromkeys(current.answered, server_round)
        if loss_of:
            with_loss = [update for update in updates if update.client in loss_of]
            current.loss = float(
                np.average([loss_of[u.client] for u in with_loss], weights=[u.images for u in with_loss])
            )
        self._sent = {}
        current.seconds = time.perf_counter() - self._started
        measured = MetricRecord({"clients": len(updates)})
        if current.loss is not None:
            measured["loss"] = current.loss
        return arrays(self.method.mean), measured

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Messages to all clients, if this round is evaluated. A message of evaluation changes nothing at a client."""
        due = self.evaluate_every and (server_round % self.evaluate_every == 0 or server_round == self.last_round)
        if not due:
            return []
        self.history.evaluations.append(Evaluation(server_round))
        self._asked = []
        for client, node in sorted(self._present(grid).items()):
            self._sent = {client: self.method.parts_for(client, server_round + 1)}
            self._asked.append(self._message(client, node, server_round, "evaluate"))
        return self._asked

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Notes how many images each client classified correctly."""
        current = self.history.evaluations[-1]
        answers = {client: reply for reply in replies if (client := self._client_of(reply)) is not None}
        for client, reply in sorted(answers.items()):
            try:
                current.correct[client], current.images[client] = counts_in(reply)
            except FsclError as error:
                current.failed[client] = str(error)
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
        self.last_round = num_rounds
        while self.round < num_rounds:
            number = self.round + 1
            now = arrays(self.method.mean)
            replies = grid.send_and_receive(self.configure_train(number, now, nothing, grid), timeout=timeout)
            now, trained = self.aggregate_train(number, replies)  # type: ignore[assignment]
            asked = list(self.configure_evaluate(number, now, nothing, grid))
            tested = self.aggregate_evaluate(number, grid.send_and_receive(asked, timeout=timeout)) if asked else None
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

    def _present(self, grid: Grid) -> dict[int, int]:
        """The connected clients: number -> node. For the first time it waits until all clients are there.

        Raises:
            FsclError: enough nodes are there, but they cannot be all clients.
        """
        is_first = not self._nodes
        least = self.clients if is_first else min(self.least, self.clients)
        while True:
            nodes = list(grid.get_node_ids())
            faults = self._introduce(grid, [node for node in nodes if node not in self._nodes])
            present: dict[int, int] = {}
            for node, number in self._nodes.items():
                if node in nodes:
                    if number in present:
                        # one of them may be a client that was started again, so that the newer one counts
                        faults.append(f"nodes {present[number]} and {node} both say that they are client {number}")
                    present[number] = node
            if is_first and len(nodes) >= self.clients > len(present):
                raise FsclError(f"{len(present)} of {self.clients} clients are there: {'; '.join(faults)}")
            if len(present) >= least:
                for fault in set(faults) - self._warned:
                    warnings.warn(fault, stacklevel=2)
                self._warned |= set(faults)
                return present
            time.sleep(0.2)

    def _introduce(self, grid: Grid, nodes: Iterable[int]) -> list[str]:
        """Asks nodes which client they are, and returns what is wrong with some of the answers."""
        asked = [Message(RecordDict(), node, "query") for node in nodes]
        faults = []
        for reply in grid.send_and_receive(asked, timeout=60) if asked else []:
            try:
                number, fingerprint = introduction(reply)
            except FsclError as error:
                faults.append(str(error))
                continue
            self._nodes[reply.metadata.src_node_id] = number
            self.method.introduced(number, fingerprint)
        return faults

    def _message(self, client: int, node: int, round: int, kind: str) -> Message:
        content = request(
            self._sent[client],
            round=round,
            returns=self.method.travels(round) if kind == "train" else (),
            keeps=self.method.stays,
            kept_in=self._kept_in.get(client, 0),
        )
        return Message(content, node, kind, group_id=str(round))

    def _client_of(self, reply: Message) -> int | None:
        """The number of the client that a reply is about; None if it is unknown.

        If a node is gone, the reply comes from Flower's SuperLink, and only the message that it replies to tells.
        """
        nodes = {message.metadata.message_id: message.metadata.dst_node_id for message in self._asked}
        message = reply.metadata.reply_to_message_id
        return self._nodes.get(nodes[message] if message and message in nodes else reply.metadata.src_node_id)
