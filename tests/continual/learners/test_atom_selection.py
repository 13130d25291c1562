"""Atom selection: it learns the same as with task labels, and chooses the experience of least entropy."""

import copy

import pytest
import torch
from avalanche.training.plugins import ReplayPlugin
from torch import nn

from fscl.atoms import AtomBank
from fscl.continual import AtomSelection, AtomSwapping, InMemoryLoader, build_network, split_classes
from fscl.continual.domains import rotated_stream
from fscl.continual.learner import Learner
from fscl.continual.metrics import SubspaceSimilarity
from fscl.continual.training.trainer import Trainer
from fscl.errors import FsclError
from fscl.settings import Network, Training

NETWORK = {"widths": [8, 8], "pool_after": [0], "dropout": 0.1}
TASKS = [["0", "1"], ["4", "7", "2"], ["3", "6"]]


def streams(digits, scenario):
    if scenario == "class":
        return [split_classes(*digits, tasks=TASKS, scenario=s) for s in ("class", "task")]
    return [rotated_stream(*digits, [0, 30, 60], scenario=s) for s in ("domain", "task")]


def built(kind=AtomSelection, model=None, outputs=3, **options):
    torch.manual_seed(0)
    model = build_network("convnet", (1, 8, 8), outputs, NETWORK) if model is None else model
    optimizer = torch.optim.SGD(model.parameters(), 0.05, 0.9, weight_decay=0.01)
    defaults = {"train_mb_size": 16, "train_epochs": 2, "eval_mb_size": 64, "evaluator": None}
    return kind(model=model, optimizer=optimizer, criterion=nn.CrossEntropyLoss(), **{**defaults, **options})


def learned(kind, stream, outputs):
    torch.manual_seed(0)
    strategy = built(kind, outputs=outputs, plugins=[InMemoryLoader()])
    for experience in stream.train_stream:
        strategy.train(experience)
    return strategy


@pytest.fixture(scope="module", params=["class", "domain"])
def pair(request, digits):
    """(stream, learner) without task labels, and with task labels, of the same images."""
    unlabelled, labelled = streams(digits, request.param)
    width = unlabelled.classes_per_task
    return (unlabelled, learned(AtomSelection, unlabelled, width)), (labelled, learned(AtomSwapping, labelled, width))


def images_of(experience):
    data = experience.dataset.eval()
    return torch.stack([data[i][0] for i in range(len(data))]), torch.tensor(
        [int(data[i][1]) for i in range(len(data))]
    )


def test_atom_selection_learns_the_bank_of_atom_swapping(pair, same_bank):
    """With known tasks it would therefore answer as AtomSwapping does."""
    (stream, ours), (_, theirs) = pair
    assert same_bank(ours.bank, theirs.bank)
    assert ours.bank.tasks == [0, 1, 2]
    assert ours.bank.names == stream.names
    assert torch.equal(ours.bank.similarity(), theirs.bank.similarity())


def test_the_experience_of_least_entropy_answers_in_the_columns_of_its_classes(pair, outputs):
    """Computed image by image from the bank only, with the entropies of torch."""
    (stream, strategy), _ = copy.deepcopy(pair)
    strategy.plugins.insert(1, outputs)
    said = outputs.say(strategy, stream.test_stream)
    network = copy.deepcopy(strategy.model).eval()
    images = torch.cat([images_of(e)[0] for e in stream.test_stream])
    classes = [e.classes_in_this_experience for e in stream.train_stream]
    answers, entropies = [], []
    for task, own in enumerate(classes):
        strategy.bank.restore(network, task)
        with torch.no_grad():
            answers.append(network(images, task)[:, : len(own)])
        entropy = torch.distributions.Categorical(logits=answers[-1].double()).entropy()
        entropies.append(entropy / torch.tensor(float(len(own)), dtype=torch.float64).log())
    chosen = torch.stack(entropies).argmin(0).tolist()
    assert set(chosen) == {0, 1, 2}
    found = torch.cat(said)
    assert found.shape == (len(images), 1 + max(map(max, classes)))
    for row, (task, output) in enumerate(zip(chosen, found, strict=True)):
        assert torch.allclose(output[classes[task]], answers[task][row], atol=1e-5)
        others = [c for c in range(len(output)) if c not in classes[task]]
        assert bool((output[others] == -1000).all())
    assert bool(found.isfinite().all())


def test_atom_selection_tells_tasks_apart_better_than_chance(digits):
    stream = split_classes(*digits, tasks=TASKS, scenario="class")
    for class_path, least, most in (("fscl.continual.AtomSelection", 0.6, 1.0), ("avalanche.training.Naive", 0.0, 0.4)):
        trainer = Trainer(stream, Learner(class_path), Training(epochs=6, batch_size=16), Network(args=NETWORK))
        while trainer.done < 3:
            measured = trainer.train_next()
        assert least < sum(measured.accuracy) / 3 < most, class_path


def test_later_experiences_do_not_change_stored_ones(digits, outputs):
    stream, _ = streams(digits, "class")
    strategy = built(plugins=[outputs], train_epochs=1)
    kept, width = {}, 0
    for t, experience in enumerate(stream.train_stream):
        strategy.train(experience)
        width += len(TASKS[t])
        assert outputs.say(strategy, [stream.test_stream[0]])[0].shape[1] == width
        kept[t] = {n: v.clone() for n, v in strategy.bank.entries(t).items()}
        for task, entries in kept.items():
            assert all(torch.equal(strategy.bank.entries(task)[n], v) for n, v in entries.items())
    heads = strategy.model.classifier.classifiers
    assert sorted(heads) == ["0", "1", "2"]


def test_evaluation_during_training_does_not_change_atom_selection(digits, same_bank):
    stream, _ = streams(digits, "class")
    quiet, disturbed = (built(plugins=[InMemoryLoader()], **o) for o in ({}, {"eval_every": 1}))
    for experience in list(stream.train_stream)[:2]:
        torch.manual_seed(5)
        quiet.train(experience)
        torch.manual_seed(5)
        disturbed.train(experience, eval_streams=[stream.test_stream])
    assert same_bank(quiet.bank, disturbed.bank)


@pytest.mark.parametrize("scenario", ["class", "domain"])
def test_atom_selection_resumes_to_the_bit(digits, scenario, same_bank, interrupted):
    stream, _ = streams(digits, scenario)

    def trainer():
        path = "fscl.continual.AtomSelection"
        return Trainer(stream, Learner(path), Training(epochs=1, batch_size=16), Network(args=NETWORK))

    through, resumed = interrupted(trainer, 2)
    assert same_bank(through.bank, resumed.bank)
    assert through.similarity()[1].shape == (2, 3, 3)
    assert through.memory()[0]["head"] > 0


def test_atom_selection_resumes_from_a_saved_bank_and_classes(pair, outputs, tmp_path):
    (stream, strategy), _ = copy.deepcopy(pair)
    strategy.plugins.insert(1, outputs)
    said = outputs.say(strategy, stream.test_stream)
    strategy.bank.save(tmp_path / "bank")
    other = built(outputs=stream.classes_per_task, plugins=[outputs])
    bank = AtomBank.load(tmp_path / "bank")
    with pytest.raises(FsclError, match=r"the classes of experiences \[0, 1, 2\] are missing"):
        other.atom_selection.resume(other, bank)
    other.atom_selection.resume(other, bank, strategy.atom_selection.classes)
    assert all(torch.equal(a, b) for a, b in zip(outputs.say(other, stream.test_stream), said, strict=True))


def test_atom_selection_with_one_head_of_all_classes_trains_only_the_experience_s_outputs(digits, outputs):
    """Outputs of other experiences' classes get no gradient, even if replay adds images of these classes."""
    stream, _ = streams(digits, "class")
    net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 7))
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    metric = SubspaceSimilarity(heatmap=False)
    options = {"train_mb_size": 16, "train_epochs": 4, "eval_mb_size": 64, "evaluator": None}
    replay = ReplayPlugin(mem_size=30)
    strategy = AtomSelection(model=net, optimizer=optimizer, plugins=[replay, metric, outputs], **options)
    for t, experience in enumerate(stream.train_stream):
        before = strategy.model[4].weight.detach().clone()
        strategy.train(experience)
        own = experience.classes_in_this_experience
        others = [c for c in range(7) if c not in own]
        after = strategy.model[4].weight
        assert torch.equal(after[others], before[others]), t
        assert not torch.equal(after[own], before[own]), t
    said = outputs.say(strategy, stream.test_stream)
    right = [
        (answers.argmax(1) == images_of(e)[1]).double().mean()
        for answers, e in zip(said, stream.test_stream, strict=True)
    ]
    assert sum(right) / 3 > 0.3
    assert torch.allclose(metric.result(), strategy.bank.similarity())


def test_atom_selection_refuses_single_classes_growing_heads_and_the_task_scenario(digits):
    from avalanche.models import IncrementalClassifier

    alone = split_classes(*digits, tasks=[["0"], ["1", "2"]], scenario="class")
    with pytest.raises(FsclError, match="experience 0 has only class 0; it needs two or more"):
        built().train(alone.train_stream[0])
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), IncrementalClassifier(144, 2))
    with pytest.raises(FsclError, match="has one head that grows"):
        built(model=net)
    with pytest.raises(FsclError, match=r"AtomSelection cannot learn.*'task'; use split\.scenario=domain or split"):
        Trainer(
            split_classes(*digits, tasks=TASKS),
            Learner("fscl.continual.AtomSelection"),
            Training(),
            Network(args=NETWORK),
        )
