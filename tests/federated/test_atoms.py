"""Federations of which only atoms travel."""

import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_rand_score

pytest.importorskip("flwr", reason="fscl.federated needs Flower")

from fscl.data.client_split import split_clients
from fscl.data.datasets import load_images
from fscl.federated import AtomClusters, Atoms, Update


def begun(network, **options):
    method = Atoms(**{"num_atoms": 4, "coefficient_rounds": 1} | options)
    method.begin(method.prepare(network()), 3)
    return method


def answers(method, round, clients=(0, 1, 2), seed=0):
    """What clients return that move every part at random."""
    numbers = torch.Generator().manual_seed(100 * round + seed)
    found = []
    for client in clients:
        sent = method.parts_for(client, round)
        parts = {
            part: sent[part] + 0.01 * torch.randn(len(sent[part]), generator=numbers) for part in method.travels(round)
        }
        found.append(Update(client, parts, 10 * (client + 1), sent))
    return found


def after(method, rounds, **options):
    for round in range(1, rounds + 1):
        method.combine(round, answers(method, round, **options))
    return method


def test_frozen_coefficients_are_sent_to_each_client_once(small):
    federation = small(lambda: Atoms(coefficient_rounds=1), clients=4)
    server = federation.run(6, fraction=0.5)
    had: dict[int, int] = {}
    for round, client, brought, returned in federation.sent():
        if round == 1:
            assert {"shared", "atoms"} <= brought.keys() == returned.keys()
            continue
        assert returned.keys() == {"atoms", "other"}
        assert ("shared" in brought) == (client not in had), (round, client)
        had.setdefault(client, round)
        assert "head" not in brought
        assert "normalisation" not in brought
    assert len(set(had.values())) > 1  # a client came later than others
    assert server.method.holders == set(had)


def test_coefficients_that_all_have_from_the_start_are_never_sent(small):
    federation = small(lambda: Atoms(coefficient_rounds=0))
    server = federation.run(2)
    assert [r.left_out for r in server.history.rounds] == [{}, {}]
    assert all(brought.keys() == {"atoms", "other"} for _, _, brought, _ in federation.sent())


def test_a_client_that_starts_with_other_coefficients_receives_the_server_s(small, network):
    federation = small(lambda: Atoms(coefficient_rounds=0))
    federation.federation.network = federation.federation.method.prepare(network(5))  # of all clients
    server = federation.run(2)
    assert [r.left_out for r in server.history.rounds] == [{}, {}]
    brought = {(round, client): set(parts) for round, client, parts, _ in federation.sent()}
    assert all(("shared" in parts) == (round == 1) for (round, _), parts in brought.items())


def test_messages_shrink_to_the_atoms(small):
    rounds = small(lambda: Atoms(coefficient_rounds=1)).run(3).history.rounds
    packing = small(Atoms).client().packing
    values = packing.size("atoms") + packing.size("other")
    headers = 3 * 2 * 250 + 3 * 250  # two arrays and the rest of each client's message
    assert 3 * 4 * values < rounds[2].received < 3 * 4 * values + headers
    assert rounds[2].sent < rounds[1].sent
    assert rounds[2].sent < 3 * 4 * values + headers + 3 * 250


def test_freezing_changes_no_answer_and_fixes_the_gauge(network):
    method, images = begun(network), torch.randn(5, 1, 8, 8)
    super_mean = begun(network)
    super_mean.travels_until, super_mean.coefficient_rounds = {}, 2  # not frozen yet
    for m in (method, super_mean):
        m.combine(1, answers(m, 1))
    model = method.prepare(network()).eval()
    outputs = []
    for m in (super_mean, method):
        m.packing.unpack(model, m.mean)
        outputs.append(model(images))
    assert torch.allclose(*outputs, atol=1e-4)
    assert not torch.allclose(super_mean.mean["shared"], method.mean["shared"], atol=1e-3)
    for name, values in method.packing.entries_of({"shared": method.mean["shared"]}).items():
        if name.endswith("coefficients"):
            gram = values.flatten(0, 1).T @ values.flatten(0, 1)
            assert torch.allclose(gram, gram[0, 0] * torch.eye(len(gram)), atol=1e-4), name


def test_coefficients_stay_after_the_freeze(network, equal_parts):
    method = after(begun(network), 1)
    frozen, fingerprint = method.mean["shared"].clone(), method.fingerprint(2)
    for round in (2, 3):
        method.combine(round, answers(method, round))
    assert torch.equal(method.mean["shared"], frozen)
    assert method.fingerprint(4) == fingerprint != ""
    assert method.fingerprint(1) == ""  # nothing is frozen in the first round


def test_a_client_that_forgot_receives_the_coefficients_again(network):
    method = after(begun(network), 2)
    assert "shared" not in method.parts_for(1, 3)
    method.forget(1)
    assert "shared" in method.parts_for(1, 3)
    assert "shared" not in method.parts_for(0, 3)


def test_clients_are_compared_by_their_changes_of_filters_less_those_of_the_other_clients(network):
    method, unfrozen = begun(network, coefficient_rounds=1), begun(network, coefficient_rounds=2)
    updates = answers(method, 1)
    for m in (method, unfrozen):
        m.combine(1, updates)
    changes = torch.stack([update.parts["atoms"] - update.sent["atoms"] for update in updates])
    changes = torch.stack([changes[i] - changes[[j for j in range(3) if j != i]].mean(0) for i in range(3)])
    cosines = []
    for name, coefficients in unfrozen.packing.entries_of({"shared": unfrozen.mean["shared"]}).items():
        if name.endswith("coefficients"):
            atoms = [unfrozen.packing.atoms(change)[name.removesuffix(".coefficients")] for change in changes]
            filters = torch.stack([torch.einsum("oim,mhw->oihw", coefficients, a).flatten() for a in atoms])
            cosines.append(torch.nn.functional.cosine_similarity(filters[:, None], filters[None], dim=2))
    assert len(cosines) == 2
    later = answers(method, 2)
    for update in later:
        update.parts["atoms"] = update.sent["atoms"]  # who is compared has sent atoms after the freeze
    method.combine(2, later)
    assert torch.allclose(method.similarity(), torch.stack(cosines).mean(0), atol=1e-4)


def test_what_all_clients_of_a_round_have_in_common_is_not_compared(network):
    method, moved = after(begun(network), 1), after(begun(network), 1)
    for round in (2, 3):
        updates = answers(method, round)
        method.combine(round, updates)
        for update in updates:
            update.parts["atoms"] += 5
        moved.combine(round, updates)
    assert torch.allclose(method.similarity(), moved.similarity(), atol=1e-3)


def test_coefficients_in_eight_bits_arrive_as_the_server_has_them(small):
    def method():
        chosen = Atoms(coefficient_rounds=1, also=["normalisation", "head"])
        chosen.bits = 8
        return chosen

    federation = small(method)
    server = federation.run(3)
    assert all(not r.left_out for r in server.history.rounds)
    frozen = [brought["shared"] for round, _, brought, _ in federation.sent() if round == 2]
    assert frozen
    assert all(torch.equal(values, server.method.mean["shared"]) for values in frozen)
    size = server.method.packing.size("shared")
    assert server.history.rounds[1].sent < 3 * (size + 2 * -(-size // 64) + 2000)


def test_a_bank_of_rounded_coefficients_has_the_clients_networks(network):
    method = begun(network)
    method.bits = 8
    after(method, 2)
    model, images = method.prepare(network()), torch.randn(5, 1, 8, 8)
    bank = method.bank()
    for client, update in method.latest.items():
        method.packing.unpack(model, method.mean | update.parts)
        answered = model.eval()(images)
        assert torch.allclose(bank.network(model, client).eval()(images), answered, atol=1e-5)


def test_rounds_of_coefficients_may_have_more_epochs(small, equal_parts):
    longer = small(lambda: Atoms(coefficient_rounds=1, coefficient_epochs=3))
    usual = small(lambda: Atoms(coefficient_rounds=1), training={"epochs": 3})
    assert equal_parts(longer.run(1).method.mean, usual.run(1).method.mean)
    assert not equal_parts(longer.run(2).method.mean, usual.run(2).method.mean)


def test_a_mix_is_sent_to_its_client_and_the_mean_to_all_others(network):
    method = after(begun(network, mix="nearest", nearest=2), 1)
    method.combine(2, answers(method, 2, clients=(0, 1)))
    assert torch.equal(method.parts_for(2, 3)["atoms"], method.mean["atoms"])
    method.combine(3, answers(method, 3))
    latest = torch.stack([method.latest[client].parts["atoms"] for client in method.latest])
    for client, row in zip(method.latest, method.weights(), strict=True):
        assert (row > 0).sum() == 2
        assert torch.allclose(method.parts_for(client, 4)["atoms"], row @ latest, atol=1e-6)
    # the mean is of those who took part in the last round, as in FedAvg
    mean = after(begun(network), 2)
    updates = answers(mean, 3, clients=(1,))
    mean.combine(3, updates)
    assert torch.equal(mean.parts_for(0, 4)["atoms"], updates[0].parts["atoms"])


@pytest.mark.parametrize("mix", ["mean", "nearest", "soft", "graph"])
def test_a_federation_of_atoms_goes_on_from_its_state(network, mix, equal_parts):
    whole = after(begun(network, mix=mix), 2)
    resumed = begun(network, mix=mix)
    resumed.load_state_dict(whole.state_dict())
    for method in (whole, resumed):
        method.combine(3, answers(method, 3, clients=(0, 2)))
    for client in range(4):
        assert equal_parts(whole.parts_for(client, 4), resumed.parts_for(client, 4)), client
    assert resumed.fingerprint(4) == whole.fingerprint(4)
    assert torch.equal(resumed.similarity(), whole.similarity())


@pytest.mark.parametrize("resumed", [False, True])
def test_the_bank_puts_back_the_atoms_of_each_client(network, resumed):
    method = after(begun(network), 3)
    if resumed:
        fresh = begun(network)
        fresh.load_state_dict(method.state_dict())
        method = fresh
    bank = method.bank()
    assert bank.tasks == [0, 1, 2] if isinstance(bank.tasks, list) else list(bank.tasks) == [0, 1, 2]
    net = method.prepare(network())
    for client in range(3):
        restored = bank.network(net, client)
        assert torch.equal(method.packing.pack(restored, "atoms"), method.latest[client].parts["atoms"])
        assert torch.equal(method.packing.pack(restored, "shared"), method.mean["shared"])


def test_known_groups_of_clients_are_found_from_atoms_and_each_has_atoms_of_its_own(small):
    train, test = load_images("digits")
    groups = [list("0123"), list("456"), list("789")]
    split = split_clients(train.labels.numpy(), test.labels.numpy(), train.classes, 9, groups=groups, most_images=60)
    federation = small(lambda: AtomClusters(coefficient_rounds=1, num_atoms=9), clients=9, training={"epochs": 2})
    for client, own in enumerate(split.train):
        images = federation.federation.train[client]
        federation.federation.train[client] = type(images)(images.images, images.labels, torch.from_numpy(own))
    method = federation.run(4).method
    found = method.groups()
    assert list(found) == list(range(9))
    assert adjusted_rand_score(split.groups, list(found.values())) == 1
    for client in range(9):
        members = [method.latest[c] for c in found if found[c] == found[client]]
        images = np.array([update.images for update in members])
        mean = sum(u.parts["atoms"] * (n / images.sum()) for u, n in zip(members, images, strict=True))
        assert torch.allclose(method.parts_for(client, 5)["atoms"], mean, atol=1e-6)


def test_one_cluster_is_the_mean_and_as_many_clusters_as_clients_are_each_alone(network):
    for clusters in (1, 3):
        method = AtomClusters(clusters, num_atoms=4, coefficient_rounds=1)
        method.begin(method.prepare(network()), 3)
        after(method, 2)
        for client in range(3):
            expected = method.mean if clusters == 1 else method.latest[client].parts
            assert torch.allclose(method.parts_for(client, 3)["atoms"], expected["atoms"], atol=1e-6)


def test_parts_that_travel_beside_the_atoms_are_returned(small):
    federation = small(lambda: Atoms(coefficient_rounds=1, also=["head"]))
    federation.run(2)
    assert all("head" in returned for *_, returned in federation.sent())


def test_nobody_is_in_a_group_before_atoms_were_sent(network):
    assert begun(network).groups() == {}
