import copy
import warnings

import pytest
import torch
from avalanche.benchmarks import benchmark_from_datasets, with_classes_timeline, with_task_labels
from avalanche.models import IncrementalClassifier
from avalanche.training import Naive
from avalanche.training.plugins import EWCPlugin, MASPlugin, ReplayPlugin
from torch import nn

from fscl.accuracy import backward_transfer
from fscl.atoms import AtomBank, atom_layers
from fscl.continual import AccuracyRecorder, AtomSwapping, AtomSwappingPlugin, InMemoryLoader, build_network
from fscl.continual.stream import split_classes
from fscl.data.datasets import ImageSet
from fscl.errors import FsclError


def coefficients(model):
    return {name: layer.coefficients.detach().clone() for name, layer in atom_layers(model).items()}


def direct(strategy, experience):
    """The outputs of the present network, computed without Avalanche."""
    images = experience.dataset.eval()
    x = torch.stack([images[i][0] for i in range(len(images))])
    with torch.no_grad():
        return strategy.model.eval()(x, torch.full((len(x),), experience.task_labels[0])).clone()


def train_all(strategy, stream, **options):
    for experience in stream.train_stream:
        strategy.train(experience, **options)
    return strategy.bank if hasattr(strategy, "bank") else None


class Plain(nn.Module):
    """A network without batch normalisation and with one head."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, bias=False), nn.ReLU())
        self.classifier = nn.Linear(8, 2)

    def forward(self, x):
        return self.classifier(self.features(x).mean((2, 3)))


def optimizers():
    def groups(model):
        head = [p for n, p in model.named_parameters() if "classifiers" in n]
        body = [p for n, p in model.named_parameters() if "classifiers" not in n]
        return torch.optim.SGD([{"params": body, "lr": 0.05}, {"params": head, "lr": 0.01}], momentum=0.9)

    return {
        "sgd": lambda model: torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01),
        "adam": lambda model: torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=0.01),
        "two groups": groups,
    }


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "two groups"])
@pytest.mark.parametrize("warm_start", ["previous", "first"])
def test_atom_swapping_outputs_of_a_task_never_change(learner, network, stream, outputs, optimizer, warm_start):
    model, recorder = network(), AccuracyRecorder()
    strategy = learner(
        model=model,
        optimizer=optimizers()[optimizer](model),
        warm_start=warm_start,
        plugins=[outputs, recorder],
    )
    after_own, matrix, frozen = [], [], None
    for t, (train, test) in enumerate(zip(stream.train_stream, stream.test_stream, strict=True)):
        strategy.train(train)
        after_own.append(direct(strategy, test))
        matrix.append(recorder.accuracies(strategy, stream.test_stream))
        frozen = coefficients(strategy.model) if t == 0 else frozen
        now = coefficients(strategy.model)
        assert all(torch.equal(now[n], frozen[n]) for n in frozen)
        # what evaluation says of every task so far is what its network said right after its own training
        said = outputs.say(strategy, stream.test_stream)
        assert all(torch.equal(a, b) for a, b in zip(said, after_own, strict=False))
    assert not torch.equal(said[0], said[1])
    assert all(matrix[t][i] == matrix[i][i] for t in range(3) for i in range(t))
    assert backward_transfer(matrix) == 0
    assert strategy.bank.tasks == [0, 1, 2]
    assert strategy.bank.names == stream.names
    # and so it is with the bank alone, in a network built afresh
    fresh = learner(model=network()).model
    for t, test in enumerate(stream.test_stream):
        strategy.bank.restore(fresh, t)
        assert torch.equal(direct(type("", (), {"model": fresh}), test), after_own[t])


def test_atom_swapping_is_accurate_and_moves_atoms(learner, stream):
    recorder = AccuracyRecorder()
    strategy = learner(plugins=[recorder], train_epochs=6)
    train_all(strategy, stream)
    assert min(recorder.accuracies(strategy, stream.test_stream)) > 0.85
    atoms = [strategy.bank.stack(layer) for layer in strategy.bank.layers]
    assert all((a[1] - a[0]).norm() > 0.01 * a[0].norm() for a in atoms)


def test_after_the_first_task_only_what_belongs_to_the_task_is_trained(learner, stream, starts):
    strategy = learner(plugins=[starts])
    for t, experience in enumerate(stream.train_stream):
        strategy.train(experience)
        held = {id(p) for group in strategy.optimizer.param_groups for p in group["params"]}
        assert held == {id(p) for p in strategy.model.parameters()}
        state = strategy.model.state_dict()
        changed = {n for n in starts.states[t] if not torch.equal(starts.states[t][n], state[n])}
        if t == 0:
            assert changed >= {f"{name}.coefficients" for name in strategy.bank.layers}
        else:
            assert changed == {n for n in strategy.bank.entries(t) if "active_units" not in n}


def test_atom_swapping_does_not_change_the_model_passed_in(learner, network, stream):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = copy.deepcopy(model.state_dict())
    strategy = learner(model=model, optimizer=optimizer)
    strategy.train(stream.train_stream[0])
    assert not atom_layers(model)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held.isdisjoint(id(p) for p in model.parameters())


def test_decomposition_keeps_parameters_in_their_optimizer_groups(learner, network):
    model = network()
    optimizer = optimizers()["two groups"](model)
    strategy = learner(model=model, optimizer=optimizer)
    names = {id(p): n for n, p in strategy.model.named_parameters()}
    body, head = ({names[id(p)] for p in group["params"]} for group in optimizer.param_groups)
    assert body | head == set(names.values())
    assert head == {n for n in names.values() if "classifiers" in n}
    assert len(head) == 2
    assert {n for n in body if "features.0" in n} == {"model.features.0.coefficients", "model.features.0.atoms"}


@pytest.mark.parametrize("warm_start", ["previous", "first"])
def test_a_new_task_starts_from_the_warm_start_s_atoms_and_a_fresh_head(learner, stream, starts, warm_start):
    strategy = learner(warm_start=warm_start, plugins=[starts])
    train_all(strategy, stream)
    for t in (1, 2):
        source = strategy.bank.entries(t - 1 if warm_start == "previous" else 0)
        start = starts.states[t]
        assert all(torch.equal(start[n], v) for n, v in source.items() if "classifier" not in n)
        heads = [start[f"classifier.classifiers.{i}.classifier.weight"] for i in range(t + 1)]
        assert not torch.equal(heads[t], heads[t - 1])
        assert not torch.equal(heads[t], heads[0])
    if warm_start == "first":
        assert not torch.equal(strategy.bank.stack("model.features.0")[0], strategy.bank.stack("model.features.0")[1])


def test_a_task_trained_again_starts_from_its_stored_atoms(learner, stream, starts, outputs):
    strategy = learner(plugins=[starts, outputs])
    train_all(strategy, stream)
    before = outputs.say(strategy, stream.test_stream)
    stored = strategy.bank.entries(0)
    strategy.train(stream.train_stream[0])
    assert all(torch.equal(starts.states[-1][n], t) for n, t in stored.items())
    after = outputs.say(strategy, stream.test_stream)
    assert not torch.equal(after[0], before[0])
    assert all(torch.equal(a, b) for a, b in zip(after[1:], before[1:], strict=True))
    assert strategy.bank.tasks == [0, 1, 2]
    assert torch.equal(direct(strategy, stream.test_stream[0]), after[0])


def test_a_task_trained_again_is_evaluated_with_its_present_weights(learner, stream, outputs):
    class Watching(type(outputs)):
        def after_eval_iteration(self, strategy, **kwargs):
            super().after_eval_iteration(strategy, **kwargs)
            if strategy.experience.current_experience == 0:
                held = dict(strategy.model.named_parameters())["model.features.0.atoms"]
                self.own = any(held is p for group in strategy.optimizer.param_groups for p in group["params"])

    watching = Watching()
    strategy = learner(plugins=[watching], eval_every=1)
    for t in (0, 1):
        strategy.train(stream.train_stream[t], eval_streams=[stream.test_stream[t]])
    (before,) = watching.say(strategy, stream.test_stream[:1])
    assert not watching.own
    watching.of = {}
    strategy.train(stream.train_stream[0], eval_streams=[stream.test_stream[0]])
    assert watching.own
    first, *later = watching.of[0]
    assert torch.equal(first, before)  # Avalanche evaluates once before the training begins
    assert len(later) == 2
    assert not any(torch.equal(said, before) for said in later)


def test_evaluation_between_tasks_does_not_change_what_is_learned(learner, stream, same_bank):
    undisturbed = train_all(learner(), stream)
    disturbed = learner()
    disturbed.eval(list(stream.test_stream))  # before any training
    heads = set(disturbed.model.classifier.classifiers)
    assert heads == {"0"}
    for experience in stream.train_stream:
        disturbed.train(experience)
        disturbed.eval(list(stream.test_stream))  # of tasks never seen, too
    assert same_bank(undisturbed, disturbed.bank)


@pytest.mark.parametrize("every", [0, 1])
def test_evaluation_during_training_does_not_change_what_is_learned(learner, stream, same_bank, outputs, every):
    undisturbed = train_all(learner(), stream)
    disturbed = learner(eval_every=every, plugins=[outputs])
    train_all(disturbed, stream, eval_streams=[stream.test_stream])
    assert set(outputs.of) == {0, 1, 2}
    assert same_bank(undisturbed, disturbed.bank)


def test_an_interrupted_evaluation_does_not_change_what_is_learned(learner, stream, same_bank, outputs):
    class Interrupting(type(outputs)):
        armed = False

        def after_eval_iteration(self, strategy, **kwargs):
            if self.armed:
                raise KeyboardInterrupt

    interrupting = Interrupting()
    undisturbed = train_all(learner(), stream)
    strategy = learner(plugins=[interrupting])
    for experience in stream.train_stream:
        strategy.train(experience)
        random = torch.get_rng_state()
        interrupting.armed = True
        with pytest.raises(KeyboardInterrupt):
            strategy.eval([stream.test_stream[0]])
        interrupting.armed = False
        torch.set_rng_state(random)
    assert same_bank(undisturbed, strategy.bank)


def test_atom_swapping_evaluates_mixed_mini_batches(learner, network, stream, outputs):
    model = network()
    model.classifier.masking = False  # Avalanche masks units of experiences with one task only
    strategy = learner(model=model, plugins=[outputs])
    train_all(strategy, stream)
    apart = outputs.say(strategy, stream.test_stream)
    mixed = stream.test_stream[0].dataset.concat(stream.test_stream[1].dataset).concat(stream.test_stream[2].dataset)
    order = torch.randperm(len(mixed))
    benchmark = benchmark_from_datasets(train=[mixed], test=[mixed.subset(order.tolist())])
    (experience,) = with_task_labels(with_classes_timeline(benchmark)).test_stream
    experience.classes_in_this_experience = [0, 1]
    strategy.eval_mb_size = len(mixed)
    (together,) = outputs.say(strategy, [experience])
    back = torch.empty_like(together)
    back[order] = together
    # batches of another order are summed in another order inside the convolutions, by rounding only
    assert torch.allclose(back, torch.cat(apart), rtol=1e-5, atol=1e-6)
    wrong = torch.cat([direct(strategy, test) for test in stream.test_stream])  # the last task's atoms for all
    assert (wrong[: len(apart[0])] - apart[0]).abs().max() > 1e-2


@pytest.mark.parametrize("loader", [[], [InMemoryLoader]])
def test_replay_does_not_change_stored_tasks(learner, stream, outputs, loader):
    class Tasks(type(outputs)):
        seen: set = set()  # noqa: RUF012

        def before_training_iteration(self, strategy, **kwargs):
            self.seen |= set(strategy.mb_task_id.tolist())

    class Raw(Tasks):
        seen: set = set()  # noqa: RUF012

    outputs, raw = Tasks(), Raw()
    strategy = learner(plugins=[ReplayPlugin(mem_size=24), *(make() for make in loader), outputs])
    strategy.plugins.insert(0, raw)  # sees the mini-batches as they come
    after_own = []
    for t, (train, test) in enumerate(zip(stream.train_stream, stream.test_stream, strict=True)):
        raw.seen = set()
        outputs.seen = set()
        strategy.train(train)
        assert raw.seen == set(range(t + 1))  # the replay plugin did bring the others
        assert outputs.seen == {t}
        after_own.append(direct(strategy, test))
        said = outputs.say(strategy, stream.test_stream)
        assert all(torch.equal(a, b) for a, b in zip(said, after_own, strict=False))


def test_atom_swapping_works_without_normalisation_and_with_a_plain_head(learner, stream, outputs):
    strategy = learner(model=Plain(), plugins=[outputs])
    after_own = []
    for train, test in zip(stream.train_stream, stream.test_stream, strict=True):
        strategy.train(train)
        images = torch.stack([test.dataset.eval()[i][0] for i in range(len(test.dataset))])
        with torch.no_grad():
            after_own.append(strategy.model.eval()(images).clone())
    said = outputs.say(strategy, stream.test_stream)
    assert all(torch.equal(a, b) for a, b in zip(said, after_own, strict=True))
    memory = strategy.bank.memory()
    assert memory == {"atoms": (8 + 9) * 9 * 4, "normalisation": 0, "head": (8 * 2 + 2) * 4, "other": 8 * 4}


def test_naive_with_the_atom_swapping_plugin_equals_the_strategy(learner, stream, same_bank):
    bank = train_all(learner(), stream)
    plugin = AtomSwappingPlugin()
    train_all(learner("naive", plugins=[plugin]), stream)
    assert same_bank(bank, plugin.bank)


def test_atom_swapping_resumes_from_a_saved_bank(learner, stream, outputs, same_bank, tmp_path):
    strategy = learner(plugins=[outputs])
    for experience in stream.train_stream[:2]:
        strategy.train(experience)
    before = outputs.say(strategy, stream.test_stream[:2])
    strategy.bank.save(tmp_path / "bank")
    other = learner(seed=5, plugins=[outputs])
    other.atom_swapping.resume(other, AtomBank.load(tmp_path / "bank"))
    for each in (strategy, other):  # a new process, with a new optimizer, learns what the old one would have
        torch.manual_seed(7)
        each.train(stream.train_stream[2])
    assert same_bank(strategy.bank, other.bank)
    after = outputs.say(other, stream.test_stream)
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=False))
    now, then = coefficients(other.model), coefficients(strategy.model)
    assert all(torch.equal(now[n], then[n]) for n in then)


def test_atom_swapping_restores_tasks_of_different_sizes(digits, learner, network, outputs, tmp_path):
    stream = split_classes(*digits, tasks=[["0", "1"], ["2", "3", "4", "5"], ["6"]])
    strategy = learner(plugins=[outputs])  # heads start with two outputs and grow
    after_own = []
    for train, test in zip(stream.train_stream, stream.test_stream, strict=True):
        strategy.train(train)
        after_own.append(direct(strategy, test))
    said = outputs.say(strategy, stream.test_stream)
    for now, then in zip(said, after_own, strict=True):
        assert torch.equal(now[:, : then.shape[1]], then)
    strategy.bank.save(tmp_path / "bank")
    fresh = learner(model=network()).model
    for t, test in enumerate(stream.test_stream):
        AtomBank.load(tmp_path / "bank").restore(fresh, t)
        now = direct(type("", (), {"model": fresh}), test)
        width = min(now.shape[1], after_own[t].shape[1])
        assert torch.equal(now[:, :width], after_own[t][:, :width])


def grows_by_classes():
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten())
    return nn.Sequential(net, IncrementalClassifier(4 * 6 * 6, 1))


def test_a_growing_head_is_stored_for_each_task_and_evaluation_does_not_grow_it(digits, learner, outputs, tmp_path):
    stream = split_classes(*digits, tasks=[["0"], ["1", "2", "3"], ["4", "5"]])
    strategy = learner(model=grows_by_classes(), plugins=[outputs])
    images, after_own = torch.rand(6, 1, 8, 8), []
    for train in stream.train_stream:
        strategy.train(train)
        after_own.append(strategy.model.eval()(images).detach())
        before = {n: t.clone() for n, t in strategy.model.state_dict().items()}
        strategy.eval(list(stream.test_stream))  # tasks with more classes than the head has
        after = strategy.model.state_dict()
        assert before.keys() == after.keys()
        assert all(torch.equal(before[n], after[n]) for n in before)
    assert [said.shape[1] for said in after_own] == [1, 3, 3]
    bank = strategy.bank
    assert not any(name.startswith("1.") for name in bank.shared)  # the head, its mask included
    assert bank.memory(1)["head"] == (3 * 4 * 6 * 6 + 3) * 4 + 3
    bank.save(tmp_path / "bank")
    for kept in (bank, AtomBank.load(tmp_path / "bank")):
        fresh = learner(model=grows_by_classes()).model
        for task, said in enumerate(after_own):
            with kept.swapped(strategy.model, task):
                assert torch.equal(strategy.model.eval()(images), said)
            kept.restore(fresh, task)
            assert torch.equal(fresh.eval()(images), said)


@pytest.mark.parametrize("lr", [1e10, float("nan")])
@pytest.mark.parametrize("task", [0, 1])
def test_diverged_training_is_not_stored_in_the_bank(learner, stream, task, lr):
    strategy = learner()
    for experience in stream.train_stream[:task]:
        strategy.train(experience)
    for group in strategy.optimizer.param_groups:
        group["lr"] = lr
    with pytest.raises(FsclError, match="is not finite: training has diverged"):
        strategy.train(stream.train_stream[task])
    assert strategy.bank is None or strategy.bank.tasks == list(range(task))


@pytest.mark.parametrize(
    ("name", "options"), [("avalanche:SlimResNet18", {"nf": 4}), ("torchvision:resnet18", {}), ("convnet", {})]
)
def test_atom_swapping_trains_networks_of_other_libraries(learner, outputs, name, options):
    images = torch.randint(0, 256, (16, 3, 32, 32), dtype=torch.uint8)
    data = ImageSet(images, torch.arange(16) % 4, ["a", "b", "c", "d"])
    stream = split_classes(data, data, tasks=2)
    model = build_network(name, stream.image_shape, 2, options)
    strategy = learner(model=model, train_mb_size=8, train_epochs=1, plugins=[outputs])
    after_own = []
    for train, test in zip(stream.train_stream, stream.test_stream, strict=True):
        strategy.train(train)
        after_own.append(direct(strategy, test))
    said = outputs.say(strategy, stream.test_stream)
    assert all(torch.equal(a, b) for a, b in zip(said, after_own, strict=True))
    assert len(strategy.bank.layers) == sum(
        isinstance(m, nn.Conv2d) and m.kernel_size != (1, 1) for m in model.modules()
    )


def test_atom_swapping_refuses_arguments_that_do_not_fit(learner, network):
    with pytest.raises(FsclError, match="warm_start is 'last'; known: previous, first"):
        learner(warm_start="last")
    with pytest.raises(FsclError, match="num_atoms is 0; it must be at least 1"):
        AtomSwappingPlugin(num_atoms=0)
    with pytest.raises(FsclError, match="no spatial convolutions"):
        learner(model=nn.Linear(4, 2))
    with pytest.raises(FsclError, match="skip names no module 'stem'"):
        learner(skip=["stem"])


def test_skipped_convolutions_are_shared_by_tasks(learner, stream):
    strategy = learner(skip=["model.features.0"])
    bank = train_all(strategy, stream)
    assert bank.layers == ["model.features.4"]
    assert "model.features.0.weight" in bank.shared
    assert torch.equal(strategy.model.model.features[0].weight, bank.shared["model.features.0.weight"])


def test_atom_swapping_has_the_defaults_of_naive(network, capsys):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours, naive = AtomSwapping(model=model, optimizer=optimizer), Naive(model=model, optimizer=optimizer)
    for attribute in ("train_mb_size", "train_epochs", "eval_mb_size", "device"):
        assert getattr(ours, attribute) == getattr(naive, attribute)
    assert type(ours._criterion) is type(naive._criterion)


@pytest.mark.parametrize("plugin", [EWCPlugin(1.0), MASPlugin()], ids=lambda p: type(p).__name__)
def test_plugins_that_compute_gradients_after_training_run_beside_atom_swapping(learner, stream, outputs, plugin):
    strategy = learner(plugins=[plugin, outputs])
    strategy.train(stream.train_stream[0])
    (before,) = outputs.say(strategy, [stream.test_stream[0]])
    strategy.train(stream.train_stream[1])
    assert torch.equal(outputs.say(strategy, [stream.test_stream[0]])[0], before)


def test_a_second_experience_with_a_used_task_label_warns(learner, stream, digits):
    strategy = learner()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        strategy.train(stream.train_stream[0])
        strategy.train(stream.train_stream[1])
        strategy.train(stream.train_stream[0])  # the same experience again: a task taken up
    other = copy.copy(split_classes(*digits, tasks=[["4", "5"]]).train_stream[0])
    other.current_experience = 2
    with pytest.warns(UserWarning, match="experience 2 has task label 0, which experience 0 had"):
        strategy.train(other)
