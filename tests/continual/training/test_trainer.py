import sys
from collections import Counter
from types import ModuleType

import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.training import Naive
from avalanche.training.plugins import EWCPlugin

from fscl.atoms import AtomBank, decompose
from fscl.continual import build_network, class_mean_accuracy, split_classes
from fscl.continual.domains import rotated_stream
from fscl.continual.learner import Learner, strategy_class
from fscl.continual.training.trainer import Trainer
from fscl.errors import FsclError
from fscl.settings import Network, Training

LEARNERS = {
    "atom_swapping": ("fscl.continual.AtomSwapping", {"num_atoms": 9}),
    "atom_swapping_first": ("fscl.continual.AtomSwapping", {"num_atoms": 6, "warm_start": "first"}),
    "naive": ("avalanche.training.Naive", {}),
    "ewc": ("fscl.continual.repaired.EWC", {"ewc_lambda": 50.0}),
    "ewc_online": ("fscl.continual.repaired.EWC", {"ewc_lambda": 50.0, "mode": "online", "decay_factor": 0.5}),
    "from_scratch": ("fscl.continual.FromScratch", {}),
    "joint": ("fscl.continual.Joint", {}),
    "frozen": ("fscl.continual.FrozenFeatures", {}),
    "si": ("fscl.continual.repaired.SynapticIntelligence", {"si_lambda": 100.0}),
    "mas": ("fscl.continual.repaired.MAS", {"lambda_reg": 1.0}),
    "lwf": ("avalanche.training.LwF", {"alpha": 1.0, "temperature": 2.0}),
    "lfl": ("fscl.continual.repaired.LFL", {"lambda_e": 1.0}),
    "replay": ("avalanche.training.Replay", {"mem_size": 30}),
    "er_ace": ("avalanche.training.ER_ACE", {"mem_size": 30, "batch_size_mem": 10}),
    "der": ("fscl.continual.repaired.DER", {"mem_size": 30, "batch_size_mem": 10}),
    "agem": ("fscl.continual.repaired.AGEM", {"patterns_per_exp": 10, "sample_size": 16}),
    "gem": ("avalanche.training.GEM", {"patterns_per_exp": 10, "memory_strength": 0.5}),
}
KEEP_TASKS_APART = ("atom_swapping", "atom_swapping_first", "from_scratch")
BODY = 4 * (8 * 9 + 8 * 8 * 9) + 2 * (4 * 8 * 4 + 8)  # two convolutions; two batch normalisations with their counters
HEAD = 4 * (2 * 32 + 2) + 2 + 2  # a linear layer; which of its units are active, kept twice


def trainer_of(stream, kind, **options):
    class_path, arguments = LEARNERS[kind]
    defaults = {"epochs": 2, "batch_size": 16, "lr_next": 0.02}
    network = {"widths": [8, 8], "pool_after": [0], "dropout": 0.1}
    outside = {name: options.pop(name) for name in ("seed", "device", "loader", "progress") if name in options}
    training = Training(**{**defaults, **options})
    return Trainer(stream, Learner(class_path, arguments), training, Network(args=network), **outside)


def numbers(measured):
    return measured.accuracy, measured.transfer, measured.start, measured.stored


def through_a_file(trainer, path):
    torch.save(trainer.state_dict(), path)
    return torch.load(path, map_location="cpu", weights_only=True)


@pytest.mark.parametrize(
    ("kind", "optimizer"), [*((kind, "sgd") for kind in LEARNERS), ("atom_swapping", "adam"), ("ewc", "adam")]
)
def test_a_resumed_run_ends_as_an_uninterrupted_one(stream, tmp_path, kind, optimizer):
    options = {"optimizer": optimizer, "lr": 0.01 if optimizer == "adam" else 0.05}
    whole = trainer_of(stream, kind, **options)
    untrained = whole.untrained()
    expected = [numbers(whole.train_next()) for _ in range(3)]
    trainer, found = trainer_of(stream, kind, **options), []
    assert trainer.untrained() == untrained
    for _ in range(3):  # every experience in a process of its own, as it were
        state = through_a_file(trainer, tmp_path / "checkpoint.pt") if trainer.done else None
        if state is not None:
            torch.manual_seed(123)
            trainer = trainer_of(stream, kind, **options)
            trainer.load_state_dict(state)
        found.append(numbers(trainer.train_next()))
    assert found == expected
    layers, matrices, provenance = whole.similarity()
    again = trainer.similarity()
    assert (again[0], again[2]) == (layers, provenance)
    assert torch.equal(again[1], matrices)
    assert trainer.memory() == whole.memory()
    state, same = whole.strategy.model.state_dict(), trainer.strategy.model.state_dict()
    assert state.keys() == same.keys()
    assert all(torch.equal(t, same[n]) for n, t in state.items())


@pytest.mark.parametrize("kind", [k for k in LEARNERS if k not in KEEP_TASKS_APART])
def test_class_scenario_runs_are_resumed_to_the_same_end(digits, tmp_path, kind):
    stream = split_classes(*digits, tasks=[["0", "1"], ["2", "3"], ["4", "5"]], scenario="class")
    whole = trainer_of(stream, kind)
    whole.train_next()
    whole.train_next()
    state = through_a_file(whole, tmp_path / "checkpoint.pt")
    expected = numbers(whole.train_next())
    second = trainer_of(stream, kind)
    second.load_state_dict(state)
    assert numbers(second.train_next()) == expected
    state = second.strategy.model.state_dict()
    assert all(torch.equal(t, state[n]) for n, t in whole.strategy.model.state_dict().items())
    assert len(state["classifier.classifiers.0.classifier.bias"]) == 6


@pytest.mark.parametrize("kind", [k for k in LEARNERS if k not in KEEP_TASKS_APART])
def test_domain_scenario_runs_are_resumed_to_the_same_end(digits, tmp_path, kind):
    stream = rotated_stream(*digits, rotations=(0, 90, 180))
    whole = trainer_of(stream, kind, epochs=1, batch_size=64)
    whole.train_next()
    whole.train_next()
    state = through_a_file(whole, tmp_path / "checkpoint.pt")
    expected = numbers(whole.train_next())
    second = trainer_of(stream, kind, epochs=1, batch_size=64)
    second.load_state_dict(state)
    assert numbers(second.train_next()) == expected
    state = second.strategy.model.state_dict()
    assert all(torch.equal(t, state[n]) for n, t in whole.strategy.model.state_dict().items())


def test_memory_of_a_shared_head_is_counted_once(digits):
    trainer = trainer_of(rotated_stream(*digits, rotations=(0, 90)), "naive", epochs=1, batch_size=64)
    trainer.train_next()
    trainer.train_next()
    per_task, shared = trainer.memory()
    assert sum(per_task.values()) == 0
    assert sum(shared.values()) == sum(t.nbytes for t in trainer.strategy.model.state_dict().values())


@pytest.mark.parametrize("kind", KEEP_TASKS_APART)
@pytest.mark.parametrize("scenario", ["domain", "class"])
def test_learners_that_keep_tasks_apart_refuse_scenarios_without_task_labels(digits, kind, scenario):
    tasks = {"tasks": [["0", "1"], ["2", "3"]], "scenario": scenario}
    with pytest.raises(FsclError, match=f"of scenario '{scenario}', because it needs a test image's task label"):
        trainer_of(split_classes(*digits, **tasks), kind)


def test_a_checkpoint_does_not_change_with_later_training(stream, tmp_path):
    """A run resumes from the state at the time of saving, even if the first trainer is trained further."""
    first = trainer_of(stream, "ewc")
    first.train_next()
    state = through_a_file(first, tmp_path / "checkpoint.pt")
    expected = numbers(first.train_next())
    second = trainer_of(stream, "ewc")
    second.load_state_dict(state)
    assert numbers(second.train_next()) == expected


def test_equal_seeds_give_equal_results_and_other_seeds_others(stream):
    runs = [trainer_of(stream, "naive", seed=seed) for seed in (0, 0, 1)]
    for run in runs:
        run.train_next()
    a, b, c = (run.strategy.model.state_dict()["model.features.0.weight"] for run in runs)
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_measured_accuracy_transfer_and_start_equal_direct_measurements(stream):
    trainer = trainer_of(stream, "naive")
    assert len(trainer.untrained()) == 3
    for t in range(3):
        measured = trainer.train_next()
        model = trainer.strategy.model
        assert len(measured.accuracy) == t + 1
        assert len(measured.transfer) == 3
        data = [(a.dataset, b.dataset) for a, b in zip(stream.train_stream, stream.test_stream, strict=True)]
        assert measured.transfer == [class_mean_accuracy(model, *d) for d in data]
        for i, found in enumerate(measured.accuracy):
            test = stream.test_stream[i].dataset.eval()
            x = torch.stack([test[j][0] for j in range(len(test))])
            y = torch.tensor([test[j][1] for j in range(len(test))])
            with torch.no_grad():
                assert found == pytest.approx(float((model.eval()(x, i).argmax(1) == y).double().mean()))
        if t:
            assert measured.start == before[t]  # noqa: F821 - nothing is trained between the two
        before = measured.transfer  # noqa: F841
        assert measured.train_seconds > 0
        assert measured.evaluate_seconds > 0


class Passes(SupervisedPlugin):
    """Counts the images of each task that pass through the network in evaluations."""

    supports_distributed = False

    def __init__(self):
        super().__init__()
        self.images = Counter()

    def after_eval_iteration(self, strategy, **kwargs):
        self.images[strategy.experience.current_experience] += len(strategy.mb_y)


@pytest.mark.parametrize("kind", ["atom_swapping", "from_scratch", "naive"])
def test_stored_networks_are_evaluated_once_and_at_the_end(stream, kind):
    trainer, passes = trainer_of(stream, kind), Passes()
    trainer.strategy.plugins.append(passes)
    rows = [trainer.train_next().accuracy for _ in range(3)]
    sizes = [len(e.dataset) for e in stream.test_stream]
    times = [3, 2, 1] if kind == "naive" else [2, 2, 1]
    assert [passes.images[i] for i in range(3)] == [n * k for n, k in zip(sizes, times, strict=True)]
    if kind != "naive":
        assert rows[0] == rows[1][:1] == rows[2][:1]
        assert rows[1] == rows[2][:2]


def test_a_stored_network_that_was_written_to_is_evaluated_again(stream):
    trainer, passes = trainer_of(stream, "atom_swapping"), Passes()
    trainer.strategy.plugins.append(passes)
    trainer.train_next()
    with torch.no_grad():
        trainer.bank.entries(0)["model.features.0.atoms"].zero_()
    before = passes.images[0]
    trainer.train_next()
    assert passes.images[0] == 2 * before


def test_test_images_pass_through_a_shared_network_once(stream, monkeypatch):
    """Accuracy and class means use the same features."""
    trainer = trainer_of(stream, "naive")
    trainer.train_next()
    trainer.train_next()
    seen = Counter()
    body = trainer.strategy.model.model
    body.register_forward_hook(lambda m, inputs, out: seen.update(images=0 if m.training else len(out)))
    trainer.train_next()
    tests = sum(len(e.dataset) for e in stream.test_stream)
    few = sum(min(50, count) for e in stream.train_stream for count in Counter(e.dataset.targets).values())
    start = len(stream.test_stream[2].dataset) + few // 3
    assert seen["images"] == tests + few + start


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_bank_in_a_newly_built_network_has_the_outputs_of_training(stream, tmp_path, precision):
    trainer = trainer_of(stream, "atom_swapping", precision=precision, epochs=4)
    measured = [trainer.train_next() for _ in range(3)][-1]
    trainer.bank.save(tmp_path / "bank.safetensors")
    network = build_network("convnet", (1, 8, 8), 2, {"widths": [8, 8], "pool_after": [0], "dropout": 0.1})
    model, bank = decompose(network, 9).model.eval(), AtomBank.load(tmp_path / "bank.safetensors")
    for task, accuracy in enumerate(measured.accuracy):
        bank.restore(model, task)
        test = stream.test_stream[task].dataset.eval()
        x = torch.stack([test[i][0] for i in range(len(test))])
        y = torch.tensor([test[i][1] for i in range(len(test))])
        with torch.no_grad():
            outputs = model(x, task)
        assert float(outputs.min()) > -100  # no answer is masked
        assert float((outputs.argmax(1) == y).double().mean()) == pytest.approx(accuracy, abs=0.026)  # of 40 images
        if precision == "float32":
            assert float((outputs.argmax(1) == y).double().mean()) == pytest.approx(accuracy)


def test_drop_last_refuses_tasks_smaller_than_a_batch(stream):
    with pytest.raises(FsclError, match="drop_last leaves no batch of a task of 72 images, because batch_size is 100"):
        trainer_of(stream, "naive", batch_size=100, drop_last=True)


def test_diverged_training_is_reported_with_a_remedy(stream):
    trainer = trainer_of(stream, "naive", lr=1e12)
    with pytest.raises(FsclError, match=r"diverged on task 1: .* is not finite; a smaller training\.lr"):
        trainer.train_next()


def test_epochs_next_applies_from_the_second_task_on(stream):
    calls = []
    trainer = trainer_of(stream, "naive", epochs=3, epochs_next=1, progress=lambda *call: calls.append(call))
    trainer.train_next()
    trainer.train_next()
    assert calls == [(0, 1, 3), (0, 2, 3), (0, 3, 3), (1, 1, 1)]


def test_progress_is_called_after_each_epoch(stream):
    calls = []
    trainer = trainer_of(stream, "naive", epochs=3, progress=lambda *call: calls.append(call))
    trainer.train_next()
    trainer.train_next()
    assert calls == [(t, epoch, 3) for t in (0, 1) for epoch in (1, 2, 3)]


def memory_of(stream, kind):
    trainer = trainer_of(stream, kind, epochs=1)
    for _ in range(3):
        trainer.train_next()
    return trainer.memory()


def test_memory_of_atom_swapping_is_its_bank(stream):
    per_task, shared = memory_of(stream, "atom_swapping")
    norms = 2 * (4 * 8 * 4 + 8)
    assert per_task == {"atoms": (8 + 9) * 9 * 4, "normalisation": norms, "head": HEAD, "other": 0}
    assert shared == {"coefficients": 4 * (8 * 8 + 8 * 8 * 9), "other": 0}


def test_memory_of_fine_tuning_is_one_network_and_the_heads(stream):
    per_task, shared = memory_of(stream, "naive")
    assert per_task == {"head": HEAD, "other": 0}
    assert shared == {"network": BODY, "other": 0}


def test_memory_of_independent_networks_is_one_network_for_each_task(stream):
    per_task, shared = memory_of(stream, "from_scratch")
    assert sum(per_task.values()) == BODY + HEAD
    assert sum(shared.values()) == 0


@pytest.mark.parametrize("kind", ["ewc", "ewc_online"])
def test_memory_of_ewc_is_weights_and_importances_once_for_all_tasks(stream, kind):
    per_task, shared = memory_of(stream, kind)
    assert per_task["head"] == HEAD
    weights = 4 * (8 * 9 + 8 * 8 * 9 + 4 * 8)  # all that has a gradient, but the heads
    head = 4 * (2 * 32 + 2)
    kept = 2 * (weights + 3 * head)
    assert 3 * per_task["other"] + shared["other"] == pytest.approx(kept, abs=3)
    assert shared["network"] == BODY


@pytest.mark.parametrize(("kind", "images", "more"), [
    ("replay", 30, 30 * 4), ("er_ace", 30, 30 * 4), ("der", 30, 30 * (4 + 2 * 4)), ("agem", 3 * 10, 0)
])  # fmt: skip
def test_memory_of_rehearsal_is_its_exemplars(stream, kind, images, more):
    """It also holds the rank of each exemplar in the reservoir, and the two logits that DER stores."""
    per_task, shared = memory_of(stream, kind)
    kept = images * (8 * 8 + 8) + more  # uint8 pixels and a label each
    assert 3 * per_task["other"] + shared["other"] == pytest.approx(kept, abs=3)
    assert (per_task["head"], shared["network"]) == (HEAD, BODY)


@pytest.mark.parametrize("kind", ["lwf", "lfl"])
def test_memory_of_distillation_is_a_former_network(stream, kind):
    per_task, shared = memory_of(stream, kind)
    assert 3 * per_task["other"] + shared["other"] == pytest.approx(BODY + 3 * HEAD, abs=3)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_fused_sgd_equals_plain_sgd_for_a_weight_with_a_late_first_gradient(stream, momentum):
    trainer = trainer_of(stream, "naive", momentum=momentum, lr=0.1, weight_decay=0.01)
    made = [torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(2))]
    expected = [torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(2))]
    optimizer = trainer.strategy.optimizer
    assert optimizer.defaults["fused"]
    optimizer.param_groups[0]["params"] = made
    plain = torch.optim.SGD(expected, 0.1, momentum, weight_decay=0.01, nesterov=momentum > 0, foreach=False)
    for step in range(4):
        for weights in (made, expected):
            weights[0].grad = torch.full((3,), 1.0 + step)
            weights[1].grad = torch.full((2,), 2.0) if step >= 2 else None
        optimizer.step()
        plain.step()
    for weight, other in zip(made, expected, strict=True):
        torch.testing.assert_close(weight, other)


@pytest.mark.parametrize("kind", ["der", "er_ace"])
def test_label_smoothing_is_refused_for_learners_with_their_own_loss(stream, kind):
    with pytest.raises(FsclError, match=r"loss of its own.*label_smoothing=0"):
        trainer_of(stream, kind, label_smoothing=0.1)


class Streaming(Naive):
    """Holds an iterator, which cannot be saved."""

    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.source = iter([])


class Naming(Naive):
    """Keeps data under attribute names that plugins of Avalanche and fscl declare transient."""

    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.G, self._tasks, self._before = torch.ones(2), [1, 2], {"a": 3}


def test_a_user_s_attributes_are_resumed_although_plugins_declare_their_names_transient(stream, tmp_path, monkeypatch):
    users = ModuleType("learners_of_a_user")
    users.Naming = Naming
    monkeypatch.setitem(sys.modules, users.__name__, users)
    first, second = (
        Trainer(stream, Learner("learners_of_a_user.Naming"), Training(epochs=1), Network()) for _ in range(2)
    )
    first.strategy.G += 1
    first.strategy._tasks.append(3)
    first.strategy._before["a"] = 4
    first.train_next()
    second.load_state_dict(through_a_file(first, tmp_path / "checkpoint.pt"))
    assert torch.equal(second.strategy.G, torch.full((2,), 2.0))
    assert (second.strategy._tasks, second.strategy._before) == ([1, 2, 3], {"a": 4})


def test_a_learner_that_cannot_be_saved_is_refused_before_it_trains(stream, monkeypatch):
    users = ModuleType("learners_of_a_user")
    users.Streaming = Streaming
    monkeypatch.setitem(sys.modules, users.__name__, users)
    with pytest.raises(FsclError, match=r"Streaming\.source is a list_iterator, which a checkpoint cannot hold"):
        Trainer(stream, Learner("learners_of_a_user.Streaming"), Training(), Network())
    trainer = trainer_of(stream, "naive")
    trainer.strategy.plugins.append(EWCPlugin(1.0))
    trainer.strategy.plugins[-1].importances = {0: iter([])}
    with pytest.raises(FsclError, match=r"EWCPlugin\.importances is a list_iterator, which a checkpoint cannot hold"):
        trainer.state_dict()


@pytest.mark.parametrize(
    ("class_path", "arguments", "message"),
    [
        (
            "avalanche.training.EWCC",
            {},
            r"unknown strategy class 'avalanche\.training\.EWCC'; expected a dotted path",
        ),
        ("no.such.module.Naive", {}, "unknown strategy class 'no.such.module.Naive'"),
        ("Naive", {}, "unknown strategy class 'Naive'"),
        ("", {}, "unknown strategy class ''"),
        ("torch.nn.Linear", {}, "torch.nn.Linear is not an Avalanche strategy"),
        ("avalanche.training.plugins.EWCPlugin", {}, "is not an Avalanche strategy"),
        ("math.pi", {}, "math.pi is not an Avalanche strategy"),
        ("avalanche.training.EWC", {"lamda": 1}, "takes no recipe argument 'lamda'; arguments: .*ewc_lambda"),
        ("fscl.continual.AtomSwapping", {"atoms": 9}, "takes no recipe argument 'atoms'; arguments: .*num_atoms"),
        ("fscl.continual.AtomSwapping", {"train_epochs": 9}, "takes no recipe argument 'train_epochs'"),
    ],
)
def test_unknown_strategy_classes_and_arguments_are_refused(class_path, arguments, message):
    with pytest.raises(FsclError, match=message):
        strategy_class(class_path, arguments)


def test_strategy_class_returns_the_class_of_known_learners():
    for class_path, arguments in LEARNERS.values():
        assert strategy_class(class_path, arguments).__name__ == class_path.rpartition(".")[2]
