"""Members of the ensemble: which tasks they are, what their heads are, and that they change nothing else."""

import copy

import pytest
import torch
from avalanche.benchmarks import benchmark_from_datasets, with_classes_timeline, with_task_labels
from avalanche.training import Naive
from sklearn.linear_model import LogisticRegression
from torch import nn

from fscl.atoms import AtomBank
from fscl.continual import (
    AtomEnsemble,
    AtomEnsemblePlugin,
    AtomSwapping,
    InMemoryLoader,
    build_network,
    split_classes,
)
from fscl.continual.evaluate import features_of
from fscl.continual.learner import Learner
from fscl.continual.training.trainer import Trainer
from fscl.errors import FsclError
from fscl.settings import Network, Training

NETWORK = {"widths": [8, 8], "pool_after": [0], "dropout": 0.1}
TASKS = [["0", "1"], ["2", "3", "8"], ["4", "5", "9"], ["6", "7"]]


def built(kind=AtomEnsemble, model=None, plugins=(), **options):
    torch.manual_seed(0)
    model = build_network("convnet", (1, 8, 8), 2, NETWORK) if model is None else model  # heads of two and more
    optimizer = torch.optim.SGD(model.parameters(), 0.05, 0.9, weight_decay=0.01)
    defaults = {"train_mb_size": 16, "train_epochs": 1, "eval_mb_size": 64, "evaluator": None}
    options = {**defaults, **options, "plugins": [InMemoryLoader(), *plugins]}
    return kind(model=model, optimizer=optimizer, criterion=nn.CrossEntropyLoss(), **options)


@pytest.fixture(scope="module")
def tasks(digits):
    return split_classes(*digits, tasks=TASKS)


@pytest.fixture(scope="module")
def learned(tasks):
    """A learner with two members after four tasks, and its outputs for each task's test images before the next task."""
    said = []
    strategy = built(members=2, head_epochs=500)
    for t, experience in enumerate(tasks.train_stream):
        strategy.train(experience)
        said.append(answers(strategy, tasks.test_stream[t]))
    return strategy, said


def answers(strategy, *experiences):
    """The outputs of an evaluation."""
    found = []
    forward = strategy._after_eval_iteration
    strategy._after_eval_iteration = lambda **k: (found.append(strategy.mb_output.clone()), forward(**k))
    strategy.eval(list(experiences))
    strategy._after_eval_iteration = forward
    return torch.cat(found)


def images_of(data):
    data = data.eval()
    return torch.stack([data[i][0] for i in range(len(data))]), torch.tensor(
        [int(data[i][1]) for i in range(len(data))]
    )


def test_atom_ensemble_learns_the_bank_of_atom_swapping(learned, tasks, same_bank):
    plain = built(AtomSwapping)
    for experience in tasks.train_stream:
        plain.train(experience)
    assert same_bank(learned[0].bank, plain.bank)


def test_members_are_the_most_similar_earlier_tasks(learned):
    strategy, _ = learned
    similarity = strategy.bank.similarity()
    assert list(strategy.atom_ensemble.heads[0]) == []
    for task in (1, 2, 3):
        order = sorted(range(task), key=lambda other: -float(similarity[task, other]))
        assert list(strategy.atom_ensemble.heads[task]) == order[:2]


def test_atom_ensemble_averages_probabilities_of_own_network_and_members(learned, tasks):
    """Computed network by network from the bank only. A task has outputs only for its own classes."""
    strategy, said = learned
    network = copy.deepcopy(strategy.model).eval()
    for task in range(4):
        x, _ = images_of(tasks.test_stream[task].dataset)
        width = len(TASKS[task])
        strategy.bank.restore(network, task)
        with torch.no_grad():
            shares = [network(x, task)[:, :width].softmax(1)]
            for member, head in strategy.atom_ensemble.heads[task].items():
                strategy.bank.restore(network, member)
                weight, bias = head.values()
                shares.append((features_of(network, x) @ weight.T + bias).softmax(1))
        assert len(shares) == 1 + min(task, 2)
        assert torch.allclose(said[task][:, :width].softmax(1), torch.stack(shares).mean(0), atol=1e-5)


def test_a_member_s_head_equals_logistic_regression_on_its_features(learned, tasks):
    strategy, _ = learned
    network = copy.deepcopy(strategy.model).eval()
    x, y = images_of(tasks.train_stream[2].dataset)
    for member, (weight, bias) in ((m, h.values()) for m, h in strategy.atom_ensemble.heads[2].items()):
        strategy.bank.restore(network, member)
        with torch.no_grad():
            features = features_of(network, x)
        oracle = LogisticRegression(C=1 / (1e-3 * len(y)), max_iter=5000, tol=1e-8).fit(features, y)
        wanted = torch.from_numpy(oracle.predict_proba(features)).float()
        assert torch.allclose((features @ weight.T + bias).softmax(1), wanted, atol=0.01)


def test_ensemble_outputs_never_change_and_unknown_tasks_have_no_members(learned, tasks):
    strategy, said = learned
    for t, test in enumerate(tasks.test_stream):
        assert torch.equal(answers(strategy, test)[:, : said[t].shape[1]], said[t])
    short, plain = built(), built(AtomSwapping)
    for each in (short, plain):
        each.train(tasks.train_stream[0])
    torch.manual_seed(1)  # of the head that evaluation makes for a task that was not learned
    found = answers(short, tasks.test_stream[2])
    torch.manual_seed(1)
    assert torch.equal(found, answers(plain, tasks.test_stream[2]))


def test_atom_ensemble_evaluates_mixed_mini_batches(learned, tasks):
    strategy = copy.deepcopy(learned[0])
    strategy.model.classifier.masking = False  # Avalanche masks units of experiences with one task only
    parts = [e.dataset for e in tasks.test_stream]
    mixed = parts[0].concat(parts[1]).concat(parts[2]).concat(parts[3])
    order = torch.randperm(len(mixed))
    benchmark = benchmark_from_datasets(train=[mixed], test=[mixed.subset(order.tolist())])
    (experience,) = with_task_labels(with_classes_timeline(benchmark)).test_stream
    experience.classes_in_this_experience = [0, 1, 2]
    strategy.eval_mb_size = len(mixed)
    together, at = answers(strategy, experience), 0
    for task, said in enumerate(learned[1]):
        rows = torch.tensor([int((order == i).nonzero()) for i in range(at, at + len(said))])
        width = len(TASKS[task])
        assert torch.allclose(together[rows, :width], said[:, :width], atol=1e-4)
        at += len(said)


def test_atom_ensemble_resumes_to_the_bit(tasks, interrupted):
    def trainer():
        path = "fscl.continual.AtomEnsemble"
        return Trainer(tasks, Learner(path, {"members": 2}), Training(epochs=1, batch_size=16), Network(args=NETWORK))

    through, resumed = interrupted(trainer, 3)
    ours, theirs = (t.strategy.atom_ensemble.heads for t in (through, resumed))
    assert {t: list(h) for t, h in ours.items()} == {t: list(h) for t, h in theirs.items()}
    for t in ours:
        for m, head in ours[t].items():
            assert all(torch.equal(v, theirs[t][m][n]) for n, v in head.items())
    assert through.memory() == resumed.memory()


def test_atom_ensemble_memory_counts_the_members_heads(learned):
    plugin = learned[0].atom_ensemble
    values = sum((32 + 1) * len(TASKS[t]) * min(t, 2) for t in range(4))
    assert plugin.memory() == {**plugin.bank.memory(), "members": round(4 * values / 4)}


def test_atom_ensemble_resumes_from_a_saved_bank_and_heads(learned, tasks, tmp_path):
    strategy, _ = learned
    strategy.bank.save(tmp_path / "bank")
    other = built(members=2)
    other.atom_ensemble.resume(other, AtomBank.load(tmp_path / "bank"), strategy.atom_ensemble.heads)
    assert torch.equal(answers(other, tasks.test_stream[3]), answers(strategy, tasks.test_stream[3]))
    plain = built(AtomSwapping)
    plain.atom_swapping.resume(plain, AtomBank.load(tmp_path / "bank"))
    other.atom_ensemble.resume(other, AtomBank.load(tmp_path / "bank"))
    assert torch.equal(answers(other, tasks.test_stream[3]), answers(plain, tasks.test_stream[3]))


def test_a_task_trained_again_is_removed_from_other_tasks_members(learned, tasks):
    strategy = copy.deepcopy(learned[0])
    before = {t: dict(h) for t, h in strategy.atom_ensemble.heads.items()}
    strategy.train(tasks.train_stream[1])
    after = strategy.atom_ensemble.heads
    assert list(after[1]) == [0]
    for task in (2, 3):
        assert list(after[task]) == [m for m in before[task] if m != 1]
        assert all(after[task][m] is before[task][m] for m in after[task])


def test_atom_ensemble_plugin_runs_beside_naive_with_a_plain_head(digits):
    stream = split_classes(*digits, tasks=[["0", "1"], ["4", "7"]])
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 2, bias=False)
    )
    plugin = AtomEnsemblePlugin(members=1, metric="grassmann")
    strategy = built(Naive, net, [plugin], train_epochs=3)
    strategy.train(stream.train_stream[0])
    strategy.train(stream.train_stream[1])
    assert {n: tuple(t.shape) for n, t in plugin.heads[1][0].items()} == {"4.weight": (2, 32)}
    _, y = images_of(stream.test_stream[1].dataset)
    assert (answers(strategy, stream.test_stream[1]).argmax(1) == y).double().mean() > 0.8


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"members": 0}, "members is 0; it must be at least 1"),
        ({"head_epochs": 0}, "head_epochs is 0; it must be at least 1"),
        ({"head_decay": -1.0}, "head_decay is -1.0; it must be at least 0"),
        ({"metric": "cka"}, "metric is 'cka'; known: cosine"),
    ],
)
def test_atom_ensemble_refuses_arguments_that_do_not_fit(options, says):
    with pytest.raises(FsclError, match=says):
        AtomEnsemblePlugin(**options)
