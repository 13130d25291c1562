"""PackNet and WSN: the network of a former task never changes, whatever the optimizer does to frozen weights."""

import numpy as np
import pytest
import torch

from fscl.continual import PackNet, PackNetPlugin, WSNPlugin
from fscl.continual.learner import Learner
from fscl.continual.learners.masks import MaskPlugin, pack_bits, top_share, unpack_bits
from fscl.continual.training.trainer import Trainer
from fscl.errors import FsclError
from fscl.settings import Network, Training

CLASSES = {"packnet": "fscl.continual.PackNet", "wsn": "fscl.continual.WSN"}
PLUGINS = {"packnet": lambda: PackNetPlugin(0.6, 0.4), "wsn": lambda: WSNPlugin(0.4)}
WEIGHTS = ["features.0.weight", "features.4.weight"]
OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, weight_decay=0.05, nesterov=True, fused=True),
    "adam": lambda p: torch.optim.Adam(p, 0.01, weight_decay=0.05),
}


@pytest.fixture
def masked(learner, network):
    """Builds a ``Naive`` strategy with one of the plugins."""

    def build(kind, *others, optimizer="sgd", **options):
        plugin, model = PLUGINS[kind](), network()
        chosen = OPTIMIZERS[optimizer](model.parameters())
        return learner("naive", model, chosen, plugins=[plugin, *others], **options), plugin

    return build


def networks(plugin):
    return {task: {n: t.clone() for n, t in plugin.stored(task).items()} for task in plugin.masks}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[n], t) for n, t in b.items())


@pytest.mark.parametrize("count", [1, 8, 17])
def test_packed_bits_equal_those_of_numpy(count):
    mask = torch.rand(count, 3) < 0.5
    packed = pack_bits(mask)
    assert packed.numpy().tobytes() == np.packbits(mask.numpy(), bitorder="little").tobytes()
    assert torch.equal(unpack_bits(packed, mask.shape), mask)


def test_top_share_equals_sorting():
    values = torch.randn(7, 11)
    assert set(values[top_share(values, 0.3)].tolist()) == set(values.flatten().sort(descending=True)[0][:23].tolist())
    assert top_share(values, 1e-9).sum() == 1


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("kind", PLUGINS)
def test_masked_outputs_of_a_task_never_change(masked, stream, outputs, kind, optimizer):
    strategy, plugin = masked(kind, outputs, optimizer=optimizer)
    after_own, bodies = [], []
    for t, experience in enumerate(stream.train_stream):
        strategy.train(experience)
        test = stream.test_stream[t].dataset.eval()
        with torch.no_grad():  # the network as training left it
            x = torch.stack([test[i][0] for i in range(len(test))])
            after_own.append(strategy.model.eval()(x, torch.full((len(x),), t)).clone())
        bodies.append({n: plugin.shared[n].clone() for n in plugin.shared})
    assert list(plugin.shared) == [f"model.{n}" for n in WEIGHTS]
    assert all(not torch.equal(bodies[0][n], bodies[2][n]) for n in plugin.shared)  # weights were trained on
    plugin._networks.clear()  # so that networks are composed anew from bits and shared weights
    assert all(torch.equal(a, b) for a, b in zip(outputs.say(strategy, stream.test_stream), after_own, strict=True))


@pytest.mark.parametrize("kind", PLUGINS)
def test_a_masked_task_trained_again_does_not_change_other_tasks(masked, stream, starts, kind):
    strategy, plugin = masked(kind, starts)
    for t in (0, 1):
        strategy.train(stream.train_stream[t])
    before = networks(plugin)
    strategy.train(stream.train_stream[0])
    assert same(networks(plugin)[1], before[1])
    assert not same(networks(plugin)[0], before[0])
    norms = [n for n in plugin.own_entries[0] if n.startswith("model.features")]
    assert all(torch.equal(starts.states[2][n], before[0][n]) for n in norms)


@pytest.mark.parametrize("kind", PLUGINS)
def test_diverged_or_interrupted_training_does_not_change_stored_masked_tasks(masked, stream, kind):
    strategy, plugin = masked(kind)
    strategy.train(stream.train_stream[0])
    before = networks(plugin)
    plugin.after_training_iteration = lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        strategy.train(stream.train_stream[1])
    del plugin.after_training_iteration
    for group in strategy.optimizer.param_groups:
        group["lr"] = 1e30
    strategy.train(stream.train_stream[1])
    plugin._networks.clear()
    assert same(networks(plugin)[0], before[0])


def test_packnet_tasks_use_frozen_weights_and_a_share_of_free_ones(masked, stream):
    strategy, plugin = masked("packnet")
    left = {}
    for t, experience in enumerate(stream.train_stream):
        used = {n: plugin.used(n) for n in plugin.shared}
        strategy.train(experience)
        for name, weight in plugin.shared.items():
            old = used.get(name, torch.zeros_like(weight, dtype=torch.bool))
            mask = plugin.mask(t, name)
            assert bool(mask[old].all())  # all that earlier tasks froze is in use
            free = left.get(name, weight.numel())
            assert int((mask & ~old).sum()) == round(0.4 * free)
            left[name] = free - round(0.4 * free)


def test_packnet_prunes_the_smallest_weights_and_trains_the_rest_further(masked, stream):
    strategy, plugin = masked("packnet", train_epochs=5)
    sparse, pruned = [], {}

    def look(s, **_):
        weights = plugin.weights(s.model)
        sparse.append(all(2 * w.count_nonzero() < w.numel() for w in weights.values()))
        if sparse[-1] and not pruned:
            pruned.update((n, (plugin.shared[n].clone(), weights[n].detach().clone())) for n in weights)

    plugin.after_training_iteration = look
    strategy.train(stream.train_stream[0])
    steps = 5 * 5  # 72 images in batches of 16: pruning adds no steps
    assert sparse == [i + 1 >= 0.6 * steps for i in range(steps)]
    for name, (whole, left) in pruned.items():
        mask = plugin.mask(0, name)
        assert torch.equal(left, whole * mask)
        assert float(whole[mask].abs().min()) > float(whole[~mask].abs().max())
        assert bool((plugin.stored(0)[name][~mask] == 0).all())
        assert float((plugin.stored(0)[name] - left)[mask].abs().min()) > 0  # those that are kept were trained on
        assert torch.equal(plugin.shared[name][~mask], whole[~mask])  # and the next task finds the others as they were


def test_wsn_masks_have_its_capacity_and_reuse_earlier_weights(masked, stream):
    strategy, plugin = masked("wsn")
    for experience in stream.train_stream:
        strategy.train(experience)
    for name, weight in plugin.shared.items():
        masks = [plugin.mask(t, name) for t in range(3)]
        assert [int(m.sum()) for m in masks] == [round(0.4 * weight.numel())] * 3
        assert bool((masks[0] & masks[1]).any())
        assert not torch.equal(masks[0], masks[1])
        for t in (1, 2):
            assert torch.equal(plugin.stored(t)[name][masks[0] & masks[t]], plugin.stored(0)[name][masks[0] & masks[t]])


def test_the_first_step_of_wsn_follows_its_formula(masked, stream):
    """Scores and weights after a step of gradient descent, computed from the gradient of a network built by hand."""
    strategy, plugin = masked("wsn", train_epochs=1)
    seen = {}

    def before(s, **_):
        if not seen:
            seen["scores"] = {n: t.clone() for n, t in plugin.scores.items()}
            seen["weights"] = {n: t.clone() for n, t in plugin.shared.items()}
            seen["gradients"] = {n: w.grad.clone() for n, w in plugin.weights(s.model).items()}

    def after(s, **_):
        if "moved" not in seen:
            seen["moved"] = {n: t.clone() for n, t in plugin.scores.items()}
            seen["network"] = {n: w.detach().clone() for n, w in plugin.weights(s.model).items()}

    first, second = plugin.before_update, plugin.after_update
    plugin.before_update = lambda s, **k: (before(s), first(s, **k))
    plugin.after_update = lambda s, **k: (second(s, **k), after(s))
    for group in strategy.optimizer.param_groups:
        group.update(momentum=0.0, nesterov=False, weight_decay=0.0)
    strategy.optimizer.defaults.update(momentum=0.0, nesterov=False)
    strategy.train(stream.train_stream[0])
    for name, weight in seen["weights"].items():
        scores, gradient = seen["scores"][name], seen["gradients"][name]
        moved = scores - 0.05 * gradient * weight / weight.pow(2).mean().sqrt()
        torch.testing.assert_close(seen["moved"][name], moved)
        mask = torch.zeros_like(weight).flatten()
        mask[scores.flatten().argsort(descending=True)[: round(0.4 * weight.numel())]] = 1
        stepped = weight - 0.05 * gradient * mask.view_as(weight)
        now = torch.zeros_like(weight).flatten()
        now[moved.flatten().argsort(descending=True)[: round(0.4 * weight.numel())]] = 1
        torch.testing.assert_close(seen["network"][name], stepped * now.view_as(weight))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", CLASSES)
def test_a_resumed_masked_run_ends_as_an_uninterrupted_one(stream, tmp_path, kind, precision):
    def trainer():
        network = {"widths": [8, 8], "pool_after": [0], "dropout": 0.1}
        options = {"epochs": 2, "batch_size": 16, "precision": precision}
        return Trainer(stream, Learner(CLASSES[kind]), Training(**options), Network(args=network))

    def taken_up(former):
        torch.save(former.state_dict(), tmp_path / "checkpoint.pt")
        torch.manual_seed(123)
        later = trainer()
        later.load_state_dict(torch.load(tmp_path / "checkpoint.pt", weights_only=True))
        return later

    def numbers(measured):
        return measured.accuracy, measured.transfer, measured.start, measured.stored

    whole, parts = trainer(), trainer()
    for t in range(3):
        parts = taken_up(parts) if t else parts
        assert numbers(parts.train_next()) == numbers(whole.train_next())
    a, b = (next(p for p in x.strategy.plugins if isinstance(p, MaskPlugin)) for x in (whole, parts))
    assert all(same(a.stored(t), b.stored(t)) for t in range(3))
    assert same(a.shared, b.shared)
    head, bits = 4 * (2 * 32 + 2) + 2 + 2, (8 * 9 + 8 * 8 * 9) // 8
    norms = 2 * (4 * 8 * 4 + 8)
    weights = 4 * (8 * 9 + 8 * 8 * 9)
    needed_to_go_on = {"scores": weights} if kind == "wsn" else {}
    expected = {"masks": bits, "normalisation": norms, "head": head}, {"network": weights, **needed_to_go_on}
    assert whole.memory() == parts.memory() == expected
    assert a.stored(0) is a.stored(0)  # made once, so that it is measured once


def test_packnet_and_wsn_refuse_shares_out_of_range(network):
    for share in (0.0, 1.0):
        with pytest.raises(FsclError, match=f"prune_proportion is {share}; it must be above 0 and below 1"):
            PackNetPlugin(prune_proportion=share)
    with pytest.raises(FsclError, match=r"post_prune_share is 1\.0; it must be at least 0 and below 1"):
        PackNet(model=network(), optimizer=None, post_prune_share=1.0)
    with pytest.raises(FsclError, match="capacity is 0; it must be above 0 and at most 1"):
        WSNPlugin(capacity=0)
