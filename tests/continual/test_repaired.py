"""Repaired learners work, and Avalanche's own still fail. If one no longer fails, its repair can be removed."""

import pytest
import torch
from avalanche.training.plugins import AGEMPlugin, EWCPlugin, SynapticIntelligencePlugin
from torch import nn

from fscl.continual import build_network
from fscl.continual.evaluate import features_of
from fscl.continual.learner import Learner
from fscl.continual.repaired import LFL
from fscl.continual.training.trainer import Trainer
from fscl.errors import FsclError
from fscl.settings import Network, Training


def trainer_of(stream, class_path, **arguments):
    network = {"widths": [8, 8], "pool_after": [0], "dropout": 0.1}
    return Trainer(stream, Learner(class_path, arguments), Training(epochs=2, batch_size=16), Network(args=network))


def learned(stream, class_path, **arguments):
    """All weights at the end of the stream, as one vector."""
    trainer = trainer_of(stream, class_path, **arguments)
    for _ in stream.tasks:
        trainer.train_next()
    return torch.cat([p.detach().flatten() for p in trainer.strategy.model.parameters()])


def resumed(stream, class_path, **arguments):
    first = trainer_of(stream, class_path, **arguments)
    first.train_next()
    second = trainer_of(stream, class_path, **arguments)
    second.load_state_dict(first.state_dict())
    return second


def test_avalanche_s_a_gem_still_cannot_be_resumed(stream):
    trainer = resumed(stream, "avalanche.training.AGEM", patterns_per_exp=10, sample_size=16)
    with pytest.raises(StopIteration):
        trainer.train_next()


def test_a_gem_projects_gradients_that_would_undo_former_tasks(stream):
    trainer = resumed(stream, "fscl.continual.repaired.AGEM", patterns_per_exp=10, sample_size=16)
    (plugin,) = [p for p in trainer.strategy.plugins if isinstance(p, AGEMPlugin)]
    project, angles = plugin.after_backward, []

    def measured(strategy, **kwargs):
        def along():
            gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in strategy.model.parameters()]
            return float(torch.cat([g.flatten() for g in gradients]) @ plugin.reference_gradients)

        before = along()
        project(strategy, **kwargs)
        angles.append((before, along()))

    plugin.after_backward = measured
    trainer.train_next()
    assert any(before < 0 for before, _ in angles)
    # all but gone: the heads of former tasks, which a batch of the present one has no gradient of, are not projected
    assert all(after > before / 2 for before, after in angles if before < 0), min(angles)
    assert all(after == before for before, after in angles if before >= 0), angles


def test_avalanche_s_der_still_fails_on_multi_head_networks(stream):
    with pytest.raises(TypeError, match="task_labels"):
        trainer_of(stream, "avalanche.training.DER", mem_size=10).train_next()


def test_der_stores_the_logits_of_the_task_s_head(stream):
    trainer = trainer_of(stream, "fscl.continual.repaired.DER", mem_size=30)
    for task in range(2):
        trainer.train_next()
        model = trainer.strategy.model.eval()
        buffer = trainer.strategy.storage_policy.buffer.eval()
        samples = [sample for sample in buffer if sample[2] == task]
        assert len(samples) > 5
        with torch.no_grad():
            answers = model(torch.stack([x for x, *_ in samples]), task)
        assert torch.allclose(answers, torch.stack([logits for *_, logits in samples]), atol=1e-5)


def test_avalanche_s_lfl_still_accepts_only_its_own_networks(stream):
    with pytest.raises(NotImplementedError, match="get_features"):
        trainer_of(stream, "avalanche.training.LFL", lambda_e=1.0).train_next()


def test_lfl_holds_features_near_the_former_ones(stream):
    moved = {}
    for strength in (0.0, 2.0):
        trainer = trainer_of(stream, "fscl.continual.repaired.LFL", lambda_e=strength)
        trainer.train_next()
        x = torch.stack([stream.train_stream[1].dataset.eval()[i][0] for i in range(20)])
        before = features_of(trainer.strategy.model, x).detach()
        trainer.train_next()
        moved[strength] = float((features_of(trainer.strategy.model, x).detach() - before).norm() / before.norm())
    assert moved[2.0] < 0.9 * moved[0.0]


def test_lfl_trains_in_training_mode(stream):
    trainer, modes = trainer_of(stream, "fscl.continual.repaired.LFL", lambda_e=1.0), []
    trainer.train_next()
    update = trainer.strategy.optimizer_step
    trainer.strategy.optimizer_step = lambda: (modes.append(trainer.strategy.model.training), update())
    norms = [m for m in trainer.strategy.model.modules() if isinstance(m, nn.BatchNorm2d)]
    statistics = norms[0].num_batches_tracked.item()
    trainer.train_next()
    assert modes
    assert all(modes)
    assert norms[0].num_batches_tracked.item() == statistics + len(modes)  # and once a batch


def test_features_of_returns_the_inputs_of_the_head(stream):
    model = build_network("convnet", (1, 8, 8), 2, {"widths": [8, 8], "pool_after": [0], "dropout": 0.5}).train()
    x = torch.rand(5, 1, 8, 8)
    found = features_of(model, x)
    assert found.requires_grad
    assert all(m.training for m in model.modules())
    body = model.model.eval()
    assert torch.equal(found, body.pool(body.features(x)).flatten(1))
    with pytest.raises(FsclError, match="no linear layer"):
        features_of(nn.Conv2d(1, 1, 3), x)


def test_lfl_passes_on_the_arguments_of_avalanche():
    net = nn.Linear(4, 2)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    strategy = LFL(model=net, optimizer=optimizer, criterion=nn.CrossEntropyLoss(), lambda_e=3.0, train_epochs=7)
    assert strategy.train_epochs == 7
    assert [p.lambda_e for p in strategy.plugins if hasattr(p, "lambda_e")] == [3.0]


def test_avalanche_s_ewc_still_diverges_with_a_strong_penalty(stream):
    trainer = trainer_of(stream, "avalanche.training.EWC", ewc_lambda=1e8)
    trainer.train_next()
    with pytest.raises(FsclError, match="diverged on task 2"):
        trainer.train_next()


def test_ewc_of_any_strength_holds_important_weights(stream):
    moved = []
    for strength in (0.0, 1e2, 1e5, 1e12):
        trainer = trainer_of(stream, "fscl.continual.repaired.EWC", ewc_lambda=strength)
        trainer.train_next()
        (plugin,) = [p for p in trainer.strategy.plugins if isinstance(p, EWCPlugin)]
        network = dict(trainer.strategy.model.named_parameters())
        importance = {n: i.data.clone() for n, i in plugin.importances[0].items() if n.startswith("model.features")}
        before = {n: network[n].detach().clone() for n in importance}
        for _ in stream.tasks[1:]:
            trainer.train_next()
        moved.append(sum(float((i * (network[n].detach() - before[n]) ** 2).sum()) for n, i in importance.items()))
    assert moved[0] > 3 * moved[1] > 9 * moved[2] > 9 * moved[3], moved


@pytest.mark.parametrize("mode", [{}, {"mode": "online", "decay_factor": 0.5}], ids=["separate", "online"])
def test_a_weak_ewc_penalty_equals_avalanche_s(stream, mode):
    theirs = learned(stream, "avalanche.training.EWC", ewc_lambda=20.0, **mode)
    ours = learned(stream, "fscl.continual.repaired.EWC", ewc_lambda=20.0, **mode)
    free = learned(stream, "avalanche.training.Naive")
    assert torch.allclose(theirs, ours, atol=1e-4)
    assert (free - ours).abs().max() > 0.01


@pytest.mark.parametrize("mode", [{}, {"mode": "online", "decay_factor": 0.5}], ids=["separate", "online"])
def test_ewc_stores_one_penalty_for_all_tasks(stream, mode):
    trainer = trainer_of(stream, "fscl.continual.repaired.EWC", ewc_lambda=20.0, **mode)
    for _ in stream.tasks:
        trainer.train_next()
    weights = sum(p.nbytes for p in trainer.strategy.model.parameters())
    per_task, shared = trainer.memory()
    assert per_task["other"] * len(stream.tasks) + shared["other"] == pytest.approx(2 * weights, rel=0.01)


def without_loss(trainer):
    trainer.train_next()
    trainer.strategy._criterion = lambda answers, labels: (0 * answers).sum()
    trainer.train_next()


def test_avalanche_s_mas_still_fails_on_a_loss_of_zero(stream):
    with pytest.raises(ValueError, match="Loss is not available"):
        without_loss(trainer_of(stream, "avalanche.training.MAS", lambda_reg=1.0))


def test_mas_trains_on_a_loss_of_zero(stream):
    without_loss(trainer_of(stream, "fscl.continual.repaired.MAS", lambda_reg=1.0))


def test_mas_equals_avalanche_s_on_a_positive_loss(stream):
    theirs = learned(stream, "avalanche.training.MAS", lambda_reg=0.1, alpha=0.3)
    ours = learned(stream, "fscl.continual.repaired.MAS", lambda_reg=0.1, alpha=0.3)
    assert torch.equal(theirs, ours)


def importances(trainer):
    (plugin,) = [p for p in trainer.strategy.plugins if isinstance(p, SynapticIntelligencePlugin)]
    return plugin.ewc_data[1]


def test_avalanche_s_si_still_finds_no_weight_important_on_the_cpu(stream):
    trainer = trainer_of(stream, "avalanche.training.SynapticIntelligence", si_lambda=1.0)
    trainer.train_next()
    assert not any(kept.data.any() for kept in importances(trainer).values())


def test_si_importance_is_the_loss_gained_along_each_weight(stream):
    trainer = trainer_of(stream, "fscl.continual.repaired.SynapticIntelligence", si_lambda=1.0, eps=1.0)
    (plugin,) = [p for p in trainer.strategy.plugins if isinstance(p, SynapticIntelligencePlugin)]
    weight = dict(trainer.strategy.model.named_parameters())["model.features.4.weight"]
    gained, began, before = torch.zeros(weight.numel()), weight.detach().clone(), {}
    first, last = plugin.before_training_iteration, plugin.after_training_iteration

    def note(strategy, **kwargs):
        before["weight"] = weight.detach().clone()
        first(strategy, **kwargs)

    def add(strategy, **kwargs):
        last(strategy, **kwargs)
        gained.sub_((weight.grad * (weight.detach() - before["weight"])).flatten())

    plugin.before_training_iteration, plugin.after_training_iteration = note, add
    trainer.train_next()
    moved = (weight.detach() - began).flatten()
    found = importances(trainer)["model.features.4.weight"].data
    expected = (gained / (moved**2 + 1.0)).clamp(0, 0.001)  # cut off by Avalanche
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-9)
    assert found.std() > 0.1 * found.mean() > 0


def test_si_holds_important_weights(stream):
    moved = []
    for si_lambda in (0.0, 3000.0):  # more, times the learning rate, and steps would overshoot
        trainer = trainer_of(stream, "fscl.continual.repaired.SynapticIntelligence", si_lambda=si_lambda)
        trainer.train_next()
        before = {n: p.detach().clone() for n, p in trainer.strategy.model.named_parameters()}
        trainer.train_next()
        after = dict(trainer.strategy.model.named_parameters())
        moved.append(sum(float((after[n].detach() - before[n]).norm()) for n in before if "features" in n))
    assert moved[1] < 0.7 * moved[0]
