"""Who is picked as a member of each client's ensemble, and how well these ensembles answer."""

import torch
from torch import Tensor

from benchmarks.federated.ensembles.networks import Answers
from fscl.errors import FsclError
from fscl.report.federation.relations import label_similarity
from fscl.similarity import probing_matrix, similarity_matrix

__all__ = ["BY_ATOMS", "DRAWS", "PICKINGS", "ensemble_accuracies", "members_by", "picked"]

DRAWS = 50  # random ensembles of each client
PICKINGS = {
    "base": "only itself",
    "random": "at random",
    "atoms": "most similar atoms",
    "centred": "most similar atoms, less their mean over clients",
    "server": "most similar as the server compares them",
    "least": "least similar atoms",
    "cka": "most similar features, CKA (probe)",
    "svcca": "most similar features, SVCCA (probe)",
    "labels": "most similar labels (oracle)",
    "group_some": "from its true group (oracle)",
    "group": "all of its true group (oracle)",
    "all": "all clients",
}
BY_ATOMS = ("atoms", "centred", "least")
TIE = 9  # decimals in which two similarities must be equal to be decided by lot


def picked(answers: Answers, members: int, seed: int) -> dict[str, Tensor]:
    """The members of each client's ensemble by the names of `PICKINGS`, those that the run has.

    Every ensemble holds the client's own network. An ensemble from a group has fewer members if the group is smaller.

    Args:
        answers: of all networks.
        members: of an ensemble, the client's own network included.
        seed: of what is drawn.

    Returns:
        (draws, N, N) bool by picking: which networks (last) answer for each client. Only what is drawn has several
        draws.

    Raises:
        FsclError: there are fewer clients than members; or features cannot be compared, see `probing_matrix`.
    """
    n, record = answers.clients, answers.record
    if not 1 <= members <= n:
        raise FsclError(f"{record.path}: {members} members of {n} clients; 1 to {n} would do")
    lot = torch.Generator().manual_seed(seed)
    similarity: dict[str, Tensor] = {}
    if answers.atoms is not None:
        stacks, grams = answers.atoms.stacks, answers.atoms.grams
        centred = {name: stack - stack.mean(0) for name, stack in stacks.items()}
        similarity["atoms"] = similarity_matrix(stacks, "filter", "mean", grams=grams)
        similarity["centred"] = similarity_matrix(centred, "filter", "mean", grams=grams)
        similarity["least"] = -similarity["atoms"]
    if len(record.similarity):
        similarity["server"] = torch.from_numpy(record.similarity)
    features = list(answers.features)
    similarity["cka"] = probing_matrix(features, "minibatch_cka")
    similarity["svcca"] = probing_matrix(features, "svcca")
    similarity["labels"] = torch.from_numpy(label_similarity(record.counts))
    result = {name: members_by(matrix, members, lot)[None] for name, matrix in similarity.items()}
    result["base"], result["all"] = torch.eye(n, dtype=torch.bool)[None], torch.ones(1, n, n, dtype=torch.bool)
    result["random"] = torch.stack([members_by(torch.zeros(n, n), members, lot) for _ in range(DRAWS)])
    if record.groups:
        groups = torch.tensor(record.groups)
        same = groups[:, None] == groups
        result["group"] = same[None]
        drawn = [members_by(same.double(), members, lot) for _ in range(DRAWS)]
        result["group_some"] = torch.stack(drawn) & same
    return {name: result[name] for name in PICKINGS if name in result}


def members_by(similarity: Tensor, members: int, lot: torch.Generator) -> Tensor:
    """For each client itself and the others that are most similar to it: (N, N) bool with ``members`` True in a row.

    Equal similarities are decided by lot. A NaN is less than any number.

    >>> similarity = torch.tensor([[1.0, 0.5, 0.9], [0.5, 1.0, 0.6], [0.9, 0.6, 1.0]])
    >>> members_by(similarity, 2, torch.Generator()).int()
    tensor([[1, 0, 1],
            [0, 1, 1],
            [1, 0, 1]], dtype=torch.int32)
    """
    values = similarity.double().round(decimals=TIE).nan_to_num(-torch.inf)
    values = values.clone().fill_diagonal_(torch.inf)
    shuffled = torch.rand(values.shape, generator=lot).argsort(1)
    order = values.gather(1, shuffled).argsort(dim=1, descending=True, stable=True)
    chosen = shuffled.gather(1, order)[:, :members]
    return torch.zeros(values.shape, dtype=torch.bool).scatter(1, chosen, True)


def ensemble_accuracies(answers: Answers, members: dict[str, Tensor]) -> dict[str, Tensor]:
    """The accuracy of each client's ensembles on its own test images, by picking: (draws, N) float64.

    The answer of an ensemble is the largest mean probability. As in the run, probabilities are those of the classes
    among which the client chooses.
    """
    every = torch.cat(list(members.values())).double()
    accuracies = torch.empty(every.shape[:2], dtype=torch.float64)
    for client, (places, columns) in enumerate(zip(answers.places, answers.columns, strict=True)):
        probabilities = answers.outputs[:, places][:, :, columns].softmax(2)
        # sums order classes as means do, and in float64 they lose nothing
        sums = (every[:, client] @ probabilities.double().flatten(1)).unflatten(1, probabilities.shape[1:])
        accuracies[:, client] = (columns[sums.argmax(2)] == answers.labels[places]).double().mean(1)
    sizes = [len(draws) for draws in members.values()]
    return dict(zip(members, accuracies.split(sizes), strict=True))
