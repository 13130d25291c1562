"""Clustered federated learning: a network for each cluster of clients, divided by the directions of their changes."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fscl.errors import FsclError
from fscl.federated.groups import groups_of
from fscl.federated.method import Update, weighted_mean
from fscl.federated.methods.fedavg import FedAvg

__all__ = ["CFL"]


class CFL(FedAvg):
    """FedAvg within clusters. A cluster is divided in two when it stands still although its clients do not.

    All clients begin as one cluster. It stands still when the mean of its clients' changes is short beside the longest
    of them. It is then divided by the cosines of the changes, by complete linkage as in the authors' code. A client
    that has not sent a change yet since its cluster was made delays the division.

    Args:
        still: a cluster is divided if the length of its mean change is below this share of the longest change. The
            share has no unit, so that it fits networks of any size; the paper compares both lengths with constants. A
            large share divides clusters by chance: on digits, three known groups were found with 0.2, and seven
            clusters with 0.5.
        first_round: the first round after which a cluster may be divided.

    Attributes:
        clusters: the cluster of each client, from 0.

    Raises:
        FsclError: a number is out of range.

    References:
        Sattler, Müller, Samek. Clustered federated learning: model-agnostic distributed multitask optimization under
        privacy constraints. IEEE TNNLS 2021.

    Example:
        >>> CFL(still=0.3).stays
        ('normalisation',)
    """

    def __init__(self, still: float = 0.2, first_round: int = 5) -> None:
        if not 0 < still <= 1:
            raise FsclError(f"still is {still}; a share above 0 and up to 1 would do")
        if first_round < 1:
            raise FsclError(f"first_round is {first_round}; it must be at least 1")
        super().__init__()
        self.still, self.first_round = still, first_round

    def begin(self, model: nn.Module, clients: int) -> None:
        super().begin(model, clients)
        self.clusters = dict.fromkeys(range(clients), 0)
        self.means = [dict(self.mean)]  # of each cluster
        self.changes: dict[int, tuple[Tensor, int]] = {}  # each client's last change in its cluster, and its images

    def groups(self) -> dict[int, int]:
        """The cluster of each client."""
        return dict(self.clusters)

    def parts_for(self, client: int, round: int) -> dict[str, Tensor]:
        mean = self.means[self.clusters.get(client, 0)]
        return {part: mean[part] for part in self.travels(round)}

    def combine(self, round: int, updates: Sequence[Update]) -> None:
        super().combine(round, updates)
        for update in updates:
            self.clusters.setdefault(update.client, 0)
            change = torch.cat([update.change(part) for part in update.parts])
            self.changes[update.client] = change, update.images
        for cluster, mean in list(enumerate(self.means)):
            own = [update for update in updates if self.clusters[update.client] == cluster]
            if own:
                mean |= weighted_mean(own)
                if round >= self.first_round:
                    self._divide(cluster)

    def _divide(self, cluster: int) -> None:
        members = [client for client, its_cluster in self.clusters.items() if its_cluster == cluster]
        if len(members) < 2 or not self.changes.keys() >= set(members):
            return
        changes = torch.stack([self.changes[client][0] for client in members]).double()
        images = torch.tensor([float(self.changes[client][1]) for client in members]).double()
        mean_change = images @ changes / images.sum()
        if mean_change.norm() >= self.still * changes.norm(dim=1).max():
            return
        directions = torch.nn.functional.normalize(changes, dim=1)
        halves = groups_of(directions @ directions.T, 2, "complete")
        for client, half in zip(members, halves, strict=True):
            del self.changes[client]
            if half:
                self.clusters[client] = len(self.means)
        self.means.append(dict(self.means[cluster]))

    def state_dict(self) -> dict[str, Any]:
        clusters = {"clusters": dict(self.clusters), "means": [dict(m) for m in self.means], "changes": self.changes}
        return super().state_dict() | clusters

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.clusters, self.changes = dict(state["clusters"]), dict(state["changes"])
        self.means = [dict(mean) for mean in state["means"]]
