"""Ensembles of clients' networks: who is in them, what they answer, what is said of them, and what picking costs."""

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

pytest.importorskip("flwr", reason="needs the extra fscl[federated]")

from benchmarks.federated.ensembles import __main__ as study_module
from benchmarks.federated.ensembles.__main__ import finished, study
from benchmarks.federated.ensembles.cost import atom_flops, joint_flops, minibatch_flops
from benchmarks.federated.ensembles.networks import answers_of, client_atoms
from benchmarks.federated.ensembles.picking import DRAWS, PICKINGS, ensemble_accuracies, members_by, picked
from benchmarks.federated.ensembles.summary import Difference, Outcome, difference, finding, outcomes, over_draws
from benchmarks.speed.similarity import counted_flops
from fscl import load_network, load_runs
from fscl.errors import FsclError
from fscl.runs.federation.building import images_of
from fscl.runs.recipe import load_any_benchmark, load_strategy, with_overrides
from fscl.runs.run import run_one
from fscl.runs.spec import RunSpec
from fscl.similarity import minibatch_cka, seed_interval, similarity_matrix

CLIENTS, MEMBERS, PROBE = 7, 3, 100
SMALL = [
    f"federation.clients={CLIENTS}", "federation.fraction=0.5", "federation.rounds=3", "federation.evaluate_every=3",
    "federation.most_images=40", "training.epochs=1",
]  # fmt: skip
OWN_CLASSES = "federation.own_classes=true"
# name: method, further settings, share of validation images
CASES = {
    "joint": ("local", [], 0.0),
    "atom layers": ("atoms_graph", ["args.coefficient_rounds=1"], 0.0),
    "own classes": ("ditto", [OWN_CLASSES], 0.0),
    "held out": ("fedavg_finetuned", ["args.epochs=5", "args.lr=0.05"], 0.25),
    "equal filters": ("fedavg", [], 0.0),
}


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """What the networks of one small federation of each case answer."""
    made = {}
    for name, (method, settings, validation) in CASES.items():
        recipes = with_overrides(load_any_benchmark("federated_digits"), load_strategy(method), [*SMALL, *settings])
        folder = run_one(RunSpec(*recipes, 0, validation=validation), tmp_path_factory.mktemp("runs"))
        (record,) = load_runs(folder)
        made[name] = answers_of(record, PROBE, seed=0)
    return made


def accuracies(answers, members, seed=0):
    return ensemble_accuracies(answers, picked(answers, members, seed))


@pytest.mark.parametrize("case", CASES)
def test_one_member_alone_repeats_the_accuracies_of_the_run(answers, case):
    of_run = answers[case].record.accuracy[-1]
    assert 0.1 < of_run.mean() < 1
    alone = accuracies(answers[case], 1)
    for name in set(alone) - {"all", "group"}:
        assert all(np.array_equal(draw, of_run) for draw in alone[name].numpy()), name
    assert not np.array_equal(alone["all"][0], of_run)


@pytest.mark.parametrize("case", CASES)
def test_as_many_members_as_clients_are_all_of_them(answers, case):
    members = picked(answers[case], CLIENTS, 0)
    for name in set(members) - {"base", "group", "group_some"}:
        assert members[name].all(), name
    found = ensemble_accuracies(answers[case], members)
    assert torch.equal(found["atoms" if "atoms" in found else "cka"], found["all"])
    assert torch.equal(found["random"], found["all"].expand(DRAWS, -1))
    assert torch.equal(found["group_some"], found["group"].expand(DRAWS, -1))


def test_duplicates_of_one_network_answer_alike_in_every_ensemble(answers):
    one = answers["joint"]
    same = replace(one, outputs=one.outputs[:1].expand_as(one.outputs))
    found = accuracies(same, MEMBERS)
    assert all(torch.equal(draw, found["base"][0]) for draws in found.values() for draw in draws)
    assert found["base"].unique().numel() > 1  # clients still differ in their images


@pytest.mark.parametrize("case", CASES)
def test_ensembles_hold_the_client_itself_and_distinct_members(answers, case):
    members, groups = picked(answers[case], MEMBERS, 0), torch.tensor(answers[case].record.groups)
    same_group = groups[:, None] == groups
    sizes = {"base": torch.tensor(1), "all": torch.tensor(CLIENTS), "group": same_group.sum(1)}
    sizes["group_some"] = same_group.sum(1).clamp(max=MEMBERS)
    for name, draws in members.items():
        assert draws.shape[1:] == (CLIENTS, CLIENTS)
        assert draws.diagonal(dim1=1, dim2=2).all(), name
        assert (draws.sum(2) == sizes.get(name, torch.tensor(MEMBERS))).all(), name
    assert not (members["group_some"] & ~same_group).any()
    by_atoms = {"atoms", "centred", "least"}
    assert by_atoms & set(members) == (set() if case == "equal filters" else by_atoms)
    assert ("server" in members) == (case == "atom layers")


def test_random_members_are_all_other_clients_equally_often():
    lot = torch.Generator().manual_seed(0)
    often = torch.stack([members_by(torch.zeros(6, 6), 3, lot) for _ in range(3000)]).double().mean(0)
    others = often[~torch.eye(6, dtype=torch.bool)]
    assert (others - 2 / 5).abs().max() < 0.05  # 5 standard deviations


def test_similar_members_come_first_and_unknown_ones_last():
    similarity = torch.tensor([[0.0, 0.2, 0.9, torch.nan], [0.2, 0, 0.1, torch.nan], [0.9, 0.1, 0, -1], [0, 0, 0, 0]])
    members = members_by(similarity, 3, torch.Generator())
    assert members[:3].tolist() == [[True, True, True, False], [True, True, True, False], [True, True, True, False]]
    assert members[3, 3]  # itself, however unlike


def test_least_similar_members_are_the_opposite_of_the_most_similar(answers):
    members = picked(answers["joint"], 1 + (CLIENTS - 1) // 2, 0)
    others = ~torch.eye(CLIENTS, dtype=torch.bool)
    assert not (members["atoms"][0] & members["least"][0] & others).any()
    assert ((members["atoms"][0] | members["least"][0]) == 1).all()


@pytest.mark.parametrize("case", ["joint", "atom layers"])
def test_an_ensemble_answers_by_the_mean_of_its_members_probabilities(answers, case):
    """Against the networks that `load_network` serves, asked client by client."""
    own = answers[case]
    members, found = picked(own, MEMBERS, 0), accuracies(own, MEMBERS)
    folder = own.record.path.parent
    networks = [load_network(folder, client) for client in range(CLIENTS)]
    (_, test), split = images_of("digits", None, None), _split(own)
    for client in (0, 4):
        images, labels = test.images[split.test[client]], test.labels[split.test[client]]
        for name in ("atoms", "random", "all"):
            chosen = members[name][0, client].nonzero().flatten().tolist()
            mean = torch.stack([networks[member].probabilities(images) for member in chosen]).mean(0)
            assert float((mean.argmax(1) == labels).double().mean()) == found[name][0, client]


def test_an_ensemble_chooses_among_the_clients_own_classes(answers):
    own = answers["own classes"]
    assert [columns.tolist() for columns in own.columns[:3]] == [[0, 1, 2, 3], [4, 5, 6], [7, 8, 9]]
    client, columns = 1, own.columns[1]
    outputs = own.outputs[:, own.places[client]][:, :, columns]
    answered = columns[outputs.softmax(2).mean(0).argmax(1)]
    expected = (answered == own.labels[own.places[client]]).double().mean()
    assert accuracies(own, MEMBERS)["all"][0, client] == expected


def _split(answers):
    from fscl.runs.federation.building import split_of
    from fscl.runs.spec import spec_of_record

    return split_of(spec_of_record(answers.record, trust=False))


def test_atoms_are_those_of_the_layers_or_of_a_joint_decomposition(answers):
    sources = {case: own.atoms and own.atoms.source for case, own in answers.items()}
    assert sources == {"joint": "joint", "atom layers": "layers", "own classes": "joint", "held out": "joint",
                       "equal filters": None}  # fmt: skip
    assert 0.3 < answers["joint"].atoms.explained < 1
    atoms = answers["atom layers"].atoms
    plain = similarity_matrix(atoms.stacks, "cosine", "mean")
    of_filters = similarity_matrix(atoms.stacks, "filter", "mean", grams=atoms.grams)
    assert torch.allclose(plain, of_filters, atol=1e-6)  # the gauge is fixed, so costs are those of the plain cosine


def test_atoms_of_layers_without_common_coefficients_are_decomposed_jointly():
    lot = torch.Generator().manual_seed(0)
    coefficients, atoms = torch.randn(6, 5, 4, generator=lot), torch.randn(3, 4, 3, 3, generator=lot)
    shared = client_atoms([{"conv": (coefficients, own)} for own in atoms])
    # the second client's layer is the same in another gauge
    turn = torch.linalg.qr(torch.randn(4, 4, generator=lot)).Q
    turned = [(coefficients @ turn, torch.einsum("km,mhw->khw", turn.mT, own)) if client == 1 else (coefficients, own)
              for client, own in enumerate(atoms)]  # fmt: skip
    joint = client_atoms([{"conv": pair} for pair in turned])
    assert (shared.source, joint.source) == ("layers", "joint")
    assert joint.explained == pytest.approx(1, abs=1e-6)
    first, second = (similarity_matrix(a.stacks, "filter", "mean", grams=a.grams) for a in (shared, joint))
    assert torch.allclose(first, second, atol=1e-5)
    assert client_atoms([{"conv": (coefficients, atoms[0])}] * 3) is None


@pytest.mark.parametrize(("clients", "images", "channels"), [(3, 40, 5), (5, 256, 8), (4, 700, 6)])
def test_the_formula_for_minibatch_cka_is_what_the_counter_counts(clients, images, channels):
    features = list(torch.randn(clients, images, channels))
    assert minibatch_flops(clients, images, channels) == counted_flops(lambda: minibatch_cka(features, batch_size=256))


def test_atoms_take_a_multiplication_and_an_addition_for_each_pair_and_value():
    shapes = {"first": (9, 3, 3), "second": (4, 5, 5)}
    assert atom_flops(shapes, 20) == 2 * 20 * 20 * (81 + 100)
    rows = {"first": 48, "second": 64}
    kernels = {"first": 20 * 9, "second": 20 * 25}
    expected = sum(2 * rows[n] * kernels[n] ** 2 + 2 * shapes[n][0] * rows[n] * kernels[n] for n in shapes)
    assert joint_flops(shapes, rows, 20) == expected


def runs_with(gains, clients=20):
    """A run a seed: atoms are better than random members by a gain, and all clients by twice 0.1."""
    numbers = np.random.default_rng(0)
    runs = []
    for gain in gains:
        base = numbers.uniform(0.4, 0.6, clients)
        runs.append({"base": [base - 0.1], "random": [base - 0.01, base + 0.01], "atoms": [base + gain],
                     "all": [base + 0.1]})  # fmt: skip
    return [{name: over_draws(np.array(draws)) for name, draws in run.items()} for run in runs]


def test_differences_are_paired_by_client_and_seed():
    over_seeds = difference(runs_with([0.01, 0.02, 0.03]), "atoms", "random")
    assert (over_seeds.over, over_seeds.n) == ("seeds", 3)
    assert over_seeds.mean == pytest.approx(0.02)
    half = 4.302653 * 0.01 / 3**0.5  # t of 2 degrees of freedom
    assert (over_seeds.low, over_seeds.high) == pytest.approx((0.02 - half, 0.02 + half), abs=1e-7)
    (one,) = runs_with([0.0])
    noise = np.random.default_rng(1).normal(0.05, 0.1, 20)
    one["atoms"]["accuracy"] = (np.array(one["atoms"]["accuracy"]) + noise).tolist()
    over_clients = difference([one], "atoms", "random")
    assert (over_clients.over, over_clients.n) == ("clients", 20)
    assert over_clients.mean == pytest.approx(noise.mean())
    assert (over_clients.high - over_clients.low) / (noise.std() / 20**0.5) == pytest.approx(2 * 1.96, abs=0.2)


def test_the_share_of_the_gain_of_all_is_undefined_without_such_a_gain():
    found = outcomes(runs_with([0.05, 0.05]))
    shares = {name: outcome.share for name, outcome in found.items()}
    assert shares == pytest.approx({"base": 0, "random": 0.5, "atoms": 0.75, "all": 1})
    worst = found["random"].worst_tenth.mean
    assert worst == pytest.approx(found["atoms"].worst_tenth.mean - 0.05)
    runs = runs_with([0.05, 0.05])
    for run in runs:
        run["all"] = run["base"]
    assert {outcome.share for outcome in outcomes(runs).values()} == {None}


@pytest.mark.parametrize(
    ("intervals", "expected"),
    [
        ([(0.01, 0.03), (0.02, 0.04)], "are better than random ones with all 2 methods: +2.50 points on average"),
        ([(-0.01, 0.03), (-0.02, 0.02)], "are not better than random ones with all 2 methods: +0.50 points on average"),
        ([(0.01, 0.03), (-0.04, -0.02), (0.01, 0.01)],
         "are better than random ones with 2 of 3 methods, but worse with 1: 0.00 points on average"),
        ([(-0.04, -0.02)], "are worse than random ones with the one method: −3.00 points on average"),
    ],
)  # fmt: skip
def test_the_finding_follows_from_the_intervals(intervals, expected):
    accuracy = seed_interval([0.5])
    by_method = [
        {"atoms": Outcome(accuracy, accuracy, gain, Difference((low + high) / 2, low, high, 3, "seeds"), share=None)}
        for (low, high), gain in zip(intervals, (0.01, -0.02, -0.02), strict=False)
    ]
    gain = {1: "+1.00", 2: "−0.50", 3: "−1.00"}[len(intervals)]
    assert finding("atoms", by_method) == (
        f"Members with the most similar atoms {expected}, and {gain} over the client alone"
    )


def test_the_study_goes_on_where_it_stopped_and_states_its_finding_first(answers, tmp_path, monkeypatch, capsys):
    runs = tmp_path / "runs"
    for case in ("joint", "atom layers", "equal filters"):
        folder = answers[case].record.path.parent
        (runs / case).mkdir(parents=True)
        for name in ("run.json", "server.pt", "clients"):
            (runs / case / name).symlink_to(folder / name)
    out = tmp_path / "out"
    results = study(runs, out, members=MEMBERS, probe=PROBE)
    text = (out / "README.md").read_text(encoding="utf-8")
    by_method = {row["method"]: row for row in results["runs"]}
    own = [outcomes([by_method[name]["pickings"]]) for name in ("atoms_graph", "local")]
    assert text.startswith(f"# {finding('centred', own)}\n\n{finding('atoms', own)}. ")
    assert all(title in text for title in PICKINGS.values())
    assert "FedAvg: all clients have the same filters" in text
    assert "those of the runs' records, to the last image" in text
    for row in results["cost"]["flops"]:
        assert row["ratios"]["with_forward"] == pytest.approx((row["cka"] + row["forward"]) / row["atoms"])
    assert {(row["clients"], row["images"]) for row in results["cost"]["flops"]} == {
        (7, 100), (7, 10_000), (100, 100), (100, 10_000)
    }  # fmt: skip
    assert json.loads((out / "results.json").read_text()) == json.loads(json.dumps(results))

    asked = []
    monkeypatch.setattr(study_module, "answers_of", lambda record, *rest: asked.append(record.strategy.name))
    again = study(runs, out, members=MEMBERS, probe=PROBE)
    assert asked == []
    assert again["runs"] == results["runs"]
    with pytest.raises(AttributeError):  # other settings are measured anew, here by a stub
        study(runs, out, members=MEMBERS + 1, probe=PROBE)
    assert asked == ["atoms_graph"]


def test_runs_that_cannot_be_compared_are_refused(answers, tmp_path):
    folders = [answers[case].record.path.parent for case in ("joint", "held out")]
    for number, folder in enumerate(folders):
        (tmp_path / "two" / str(number)).mkdir(parents=True)
        (tmp_path / "two" / str(number) / "run.json").symlink_to(folder / "run.json")
    with pytest.raises(FsclError, match=r"runs of federated_digits; federated_digits, 25 % .* one of them would do"):
        finished(tmp_path / "two")
    with pytest.raises(FsclError, match="9 members of 7 clients; 1 to 7 would do"):
        picked(answers["joint"], 9, 0)
    data = copy.deepcopy(answers["joint"].record)
    data.status = "running"
    (tmp_path / "none").mkdir()
    data.write(tmp_path / "none" / "run.json")
    with pytest.raises(FsclError, match="no finished run of a federation"):
        finished(tmp_path / "none")
