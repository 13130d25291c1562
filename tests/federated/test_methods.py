"""What each method does at a client, and what of it the server gets to see."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

pytest.importorskip("flwr", reason="fscl.federated needs Flower")

from fscl.atoms.packing import PARTS
from fscl.errors import FsclError
from fscl.federated import (
    CFL,
    AtomClusters,
    Atoms,
    Ditto,
    FedAvg,
    FedAvgFineTuned,
    FedPer,
    FedProx,
    FedRep,
    Local,
    PFedGraph,
    SeparateAveraging,
    Update,
)

METHODS = [
    Local, FedAvg, FedAvgFineTuned, FedProx, FedPer, FedRep, Ditto, PFedGraph, CFL, SeparateAveraging, Atoms,
    AtomClusters,
]  # fmt: skip
EACH = pytest.mark.parametrize("make", METHODS, ids=lambda make: make.__name__)
HEAD_STAYS = {"normalisation", "head"}
STAYS = {Local: set(PARTS), FedPer: HEAD_STAYS, FedRep: HEAD_STAYS, Atoms: HEAD_STAYS, AtomClusters: HEAD_STAYS}
UNTIL = {Atoms: 1, AtomClusters: 1}  # the last round in which coefficients travel


def made(make):
    return make(coefficient_rounds=1) if make in UNTIL else make()


def trained(client, method, seed=0):
    """All parts of a client's network after a round, and the loss."""
    torch.manual_seed(seed)
    loss = method.train(client)
    return client.packing.packed(client.network), loss


@EACH
def test_what_travels_on_the_wire_is_what_the_method_declares(small, make):
    federation = small(lambda: made(make), clients=2)
    method = federation.run(rounds=3).method
    assert set(method.stays) == STAYS.get(make, {"normalisation"})
    had: set[int] = set()
    for round, client, brought, returned in federation.sent():
        travels = {part for part in method.packing.entries if part not in method.stays}
        if round > UNTIL.get(make, 3):
            travels -= {"shared"}
        assert set(returned) == travels == set(method.travels(round))
        once = {"shared"} if round > UNTIL.get(make, 3) and client not in had else set()
        assert set(brought) == travels | once
        had |= {client} if once else set()


@EACH
def test_a_round_trains_every_part_that_moves_and_no_other(small, make):
    federation = small(lambda: made(make))
    method = federation.federation.method
    client = federation.client(round=2)  # after the first round Atoms' coefficients are frozen
    before = client.packing.packed(client.network)
    after, loss = trained(client, method)
    still = {part for part in before if torch.equal(before[part], after[part])}
    assert still == ({"shared"} if make in UNTIL else set())
    assert 0 < loss < 10


@EACH
def test_clients_learn(small, make):
    federation = small(lambda: made(make), clients=2, each=60, training={"epochs": 4})
    (evaluation,) = federation.run(rounds=2, evaluate_every=2).history.evaluations
    assert min(evaluation.accuracy.values()) > 0.5  # by chance 0.1


def test_fedprox_without_pull_is_fedavg_to_the_last_bit(small, equal_parts):
    free, prox = small(FedAvg), small(lambda: FedProx(mu=0.0))
    assert equal_parts(free.run(2).method.mean, prox.run(2).method.mean)


def test_the_stronger_fedprox_pulls_the_nearer_the_network_stays(small):
    lengths = []
    for mu in (0.0, 3.0, 15.0):
        federation = small(lambda mu=mu: FedProx(mu=mu), training={"epochs": 3, "momentum": 0.0})
        client = federation.client()
        after, _ = trained(client, federation.federation.method)
        lengths.append(float((after["shared"] - client.received["shared"]).norm()))
    assert lengths[0] > lengths[1] > lengths[2] > 0
    assert lengths[2] < lengths[0] / 3


def test_the_gradient_of_the_pull_is_the_distance(small):
    """One step from a network that is not the anchor: the pull moves a parameter by lr * mu * (parameter - anchor)."""
    plain_sgd = {"momentum": 0.0, "weight_decay": 0.0, "lr": 0.01, "batch_size": 20}
    steps = []
    for pull in (0.0, 3.0):
        client = small(FedAvg, training=plain_sgd).client()
        towards = {part: torch.zeros_like(values) for part, values in client.received.items()}
        torch.manual_seed(0)
        client.fit(pull=pull, towards=towards)
        steps.append(client.packing.entries_of(client.packing.packed(client.network)))
        start = client.packing.entries_of(client.received)
    for name, _ in client.network.named_parameters():
        assert torch.allclose(steps[1][name] - steps[0][name], -0.01 * 3.0 * start[name], atol=1e-6), name


def test_a_pull_moves_only_what_it_is_told(small):
    client = small(FedAvg).client()
    torch.manual_seed(0)
    client.fit(pull=5.0, towards={})
    pulled = client.packing.packed(client.network)
    again = small(FedAvg).client()
    torch.manual_seed(0)
    again.fit()
    for part, values in again.packing.packed(again.network).items():
        assert torch.equal(values, pulled[part])


def test_clients_that_train_alone_do_not_influence_each_other(small, tmp_path):
    """Client 0 keeps the same network whoever the other clients are."""
    kept = []
    for name in ("digits", "twins"):
        federation = small(Local, folder=tmp_path / name)
        if name == "twins":
            federation.federation.train[1:] = federation.federation.train[:1] * 2
        federation.run(2)
        files = [tmp_path / name / f"client_{client:04}/round_000002.safetensors" for client in (0, 1)]
        kept.append([file.read_bytes() for file in files])
    (first, other), (second, twin) = kept
    assert first == second
    assert other != twin


@pytest.mark.parametrize("make", [FedPer, FedRep], ids=lambda make: make.__name__)
def test_heads_differ_and_bodies_are_equal_when_a_round_begins(small, make):
    federation, seen = small(make), {}
    method = federation.federation.method
    train = method.train

    def spied(client):
        seen[client.round, client.number] = client.packing.packed(client.network)
        return train(client)

    method.train = spied
    federation.run(2)
    for part in ("shared", "other"):
        assert torch.equal(seen[2, 0][part], seen[2, 1][part])
    assert not torch.equal(seen[2, 0]["head"], seen[2, 1]["head"])
    # a head is the one that its client had, not the start
    assert not torch.equal(seen[2, 0]["head"], seen[1, 0]["head"])
    assert torch.equal(seen[1, 0]["head"], seen[1, 1]["head"])


def test_fedrep_trains_the_head_first_and_the_body_from_there(small):
    client = small(FedRep).client()
    start = client.packing.packed(client.network)
    method, phases = FedRep(head_epochs=2), []
    fit = client.fit

    def spied(parts, **options):
        loss = fit(parts, **options)
        phases.append(client.packing.packed(client.network))
        return loss

    client.fit = spied
    method.train(client)
    head, body = phases
    assert not torch.equal(head["head"], start["head"])
    assert torch.equal(head["shared"], start["shared"])
    assert torch.equal(head["other"], start["other"])
    assert torch.equal(body["head"], head["head"])
    assert not torch.equal(body["shared"], head["shared"])


def test_ditto_returns_what_fedavg_returns(small, equal_parts):
    assert equal_parts(small(FedAvg).run(2).method.mean, small(Ditto).run(2).method.mean)


def own(client):
    return {name.removeprefix("own."): values for name, values in client.kept.items()}


def test_ditto_without_pull_trains_a_network_of_its_own_as_if_alone(small, equal_parts):
    """The own network has the numbers after those of the network that is returned."""
    ditto = small(Ditto).client()
    trained(ditto, Ditto(pull=0.0))
    before, alone = small(Local).client(), small(Local).client()
    torch.manual_seed(0)
    before.fit()
    alone.fit()
    assert equal_parts(own(ditto), alone.packing.packed(alone.network))


def test_ditto_goes_on_with_its_own_network_and_not_with_what_was_sent(small, equal_parts):
    federation = small(Ditto)
    first = federation.client()
    trained(first, Ditto(pull=0.0))
    second = federation.client(round=2, kept=first.kept)  # has received the start once more
    trained(second, Ditto(pull=0.0), seed=1)
    before, alone = federation.client(), federation.client()
    alone.packing.unpack(alone.network, own(first))
    torch.manual_seed(1)
    before.fit()
    alone.fit()
    assert equal_parts(own(second), alone.packing.packed(alone.network))


def test_ditto_with_a_huge_pull_keeps_what_was_sent(small):
    client = small(Ditto, training={"lr": 1e-6, "momentum": 0.0}).client()
    trained(client, Ditto(pull=1e4, epochs=3))
    for part in ("shared", "head"):
        assert torch.allclose(own(client)[part], client.received[part], atol=1e-4)


def test_ditto_answers_with_its_own_network_and_a_client_that_was_never_chosen_with_the_server_s(small):
    federation = small(Ditto)
    client = federation.client()
    trained(client, Ditto())
    Ditto().prepare_answers(client)
    assert torch.equal(client.packing.pack(client.network, "head"), own(client)["head"])
    new = federation.client()
    new.received = {part: 2 * values for part, values in new.received.items()}
    Ditto().prepare_answers(new)
    assert torch.equal(new.packing.pack(new.network, "head"), new.received["head"])


def test_fine_tuning_changes_the_answers(small):
    client = small(FedAvgFineTuned).client()
    before = client.probabilities()
    FedAvgFineTuned(epochs=1, lr=0.01).prepare_answers(client)
    assert not torch.allclose(client.probabilities(), before)
    assert torch.allclose(client.probabilities().sum(1), torch.ones(len(client.test)), atol=1e-5)


def test_a_part_that_the_network_lacks_cannot_be_trained(small):
    client = small(FedAvg).client()
    with pytest.raises(FsclError, match="no parameters in atoms; its parts: normalisation, head, other, shared"):
        client.fit(["atoms"])


def test_the_only_batch_is_used_even_if_it_is_small(small):
    client = small(FedAvg, training={"batch_size": 50, "drop_last": True}).client()
    before = client.packing.pack(client.network, "head")
    assert client.fit() > 0
    assert not torch.equal(client.packing.pack(client.network, "head"), before)


# methods that group clients

TURNS = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]])


def moved(method, client, direction, length=1.0):
    """An update in which the first two shared values move, and everything else a little."""
    sent = method.parts_for(client, 1)
    parts = {part: values.clone() for part, values in sent.items()}
    parts["shared"][:2] += length * direction
    return Update(client, parts, 10, sent)


def test_pfedgraph_mixes_those_who_moved_in_the_same_direction(network):
    method = PFedGraph()
    method.begin(network(), 4)
    start = method.mean["shared"].clone()
    method.combine(1, [moved(method, c, TURNS[c]) for c in range(4)])
    cosines = torch.nn.functional.normalize(TURNS, dim=1) @ torch.nn.functional.normalize(TURNS, dim=1).T
    assert torch.allclose(method.similarity(), torch.where(cosines > 0.9, 1.0, cosines), atol=1e-3)
    for client, neighbour in ((0, 1), (2, 3)):
        got = method.parts_for(client, 2)["shared"][:2] - start[:2]
        assert torch.allclose(got, (TURNS[client] + TURNS[neighbour]) / 2, atol=0.06)
    # a client that has not answered yet receives the mean
    assert torch.allclose(method.parts_for(9, 2)["shared"][:2] - start[:2], TURNS.mean(0), atol=1e-6)


def test_pfedgraph_s_weights_minimise_the_paper_s_program(network):
    """alpha * |w - p|^2 - w . s, with shares of images p and cosines s."""
    method = PFedGraph(alpha=1.5)
    method.begin(network(), 4)
    updates = [moved(method, c, TURNS[c]) for c in range(4)]
    method.combine(1, [Update(u.client, u.parts, 10 + 30 * u.client, u.sent) for u in updates])
    p = method.images().double().numpy() / method.images().sum().item()
    for row, s in zip(method.weights().double().numpy(), method.similarity().double().numpy(), strict=True):
        solved = minimize(
            lambda w, s=s: 1.5 * ((w - p) ** 2).sum() - w @ s, p, bounds=[(0, 1)] * 4, method="SLSQP",
            constraints=[{"type": "eq", "fun": lambda w: w.sum() - 1}], options={"ftol": 1e-14, "maxiter": 500},
        )  # fmt: skip
        assert np.allclose(row, solved.x, atol=1e-5)


def test_pfedgraph_far_from_its_graph_is_fedavg(network):
    method = PFedGraph(alpha=1e6)
    method.begin(network(), 4)
    method.combine(1, [moved(method, c, TURNS[c]) for c in range(4)])
    for client in range(4):
        assert torch.allclose(method.parts_for(client, 2)["shared"], method.mean["shared"], atol=1e-4)


def test_cfl_divides_a_cluster_that_stands_still_and_no_other(network):
    method = CFL(still=0.4, first_round=1)
    method.begin(network(), 4)
    for _ in range(2):
        method.combine(1, [moved(method, c, torch.tensor([1.0, 0.1 * c])) for c in range(4)])
    assert method.groups() == {0: 0, 1: 0, 2: 0, 3: 0}  # all move alike
    directions = torch.tensor([[1.0, 0.0], [-1.0, 0.1], [1.0, 0.2], [-1.0, -0.1]])
    method.combine(2, [moved(method, c, directions[c]) for c in range(4)])
    assert method.groups() == {0: 0, 1: 1, 2: 0, 3: 1}
    before = [method.parts_for(c, 3)["shared"][:2].clone() for c in range(2)]
    assert torch.equal(*before)  # both halves go on from the cluster's mean
    method.combine(3, [moved(method, c, directions[c]) for c in range(4)])
    after = [method.parts_for(c, 4)["shared"][:2] for c in range(4)]
    assert torch.allclose(after[0] - before[0], torch.tensor([1.0, 0.1]), atol=1e-6)
    assert torch.allclose(after[1] - before[1], torch.tensor([-1.0, 0.0]), atol=1e-6)
    assert torch.equal(after[1], after[3])
    assert method.groups() == {0: 0, 1: 1, 2: 0, 3: 1}


def test_cfl_waits_for_the_first_round_and_for_every_client_of_a_cluster(network):
    directions = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [1.0, 0.1]])
    method = CFL(still=0.4, first_round=3)
    method.begin(network(), 3)
    for round, clients in ((2, (0, 1, 2)), (3, (0, 1)), (4, (0, 1, 2))):
        if round == 3:
            method.changes.clear()
        method.combine(round, [moved(method, c, directions[c]) for c in clients])
        assert len(set(method.groups().values())) == (2 if round == 4 else 1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PFedGraph(alpha=0), "alpha is 0; a positive number"),
        (lambda: CFL(still=0), "still is 0; a share above 0"),
        (lambda: CFL(first_round=0), "first_round is 0"),
        (lambda: AtomClusters(0), "clusters is 0; it must be at least 1"),
        (lambda: Atoms(coefficient_rounds=-1), "coefficient_rounds is -1"),
        (lambda: Atoms(coefficient_epochs=0), "coefficient_epochs is 0; it must be at least 1"),
        (lambda: Atoms(also="head"), "also is 'head'; a list"),
        (lambda: Atoms(also=["shared"]), "also is 'shared'; a list"),
        (lambda: Atoms(mix="median"), "mix is 'median'; known: mean"),
    ],
)
def test_wrong_arguments_are_refused_with_their_value(make, message):
    with pytest.raises(FsclError, match=message):
        make()


@pytest.mark.parametrize(("channels_last", "stride"), [(True, 1), (False, 64)])
def test_images_of_one_channel_are_laid_out_with_channels_last_too(small, channels_last, stride):
    """Pooling is ten times slower without."""
    federation = small(FedAvg, training={"channels_last": channels_last})
    strides = []
    federation.federation.network[0].register_forward_hook(lambda _, inputs, output: strides.append(output.stride(1)))
    federation.run(1)
    assert set(strides) == {stride}
