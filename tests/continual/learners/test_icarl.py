import copy
import io

import pytest
import torch
from avalanche.models import IncrementalClassifier
from avalanche.training import ICaRL as AvalancheICaRL
from torch import nn
from torch.nn import functional as F

from fscl.continual import ICaRL, build_network, split_classes
from fscl.continual.evaluate import features_of
from fscl.continual.learner import Learner
from fscl.continual.learners.icarl import herd
from fscl.continual.loader import samples_behind
from fscl.continual.training.trainer import Trainer
from fscl.errors import FsclError
from fscl.networks import ConvNet
from fscl.settings import Network, Training

NETWORK = {"widths": [8, 8], "pool_after": [0], "dropout": 0.1}
TASKS = [["0", "1"], ["2", "3", "4"], ["5", "6"]]


@pytest.fixture(scope="module")
def growing(digits):
    """Seven digits in three tasks, without task labels."""
    return split_classes(*digits, tasks=TASKS, scenario="class")


def trainer_of(stream, class_path="fscl.continual.ICaRL", **arguments):
    return Trainer(stream, Learner(class_path, arguments), Training(epochs=4, batch_size=16), Network(args=NETWORK))


@pytest.fixture(scope="module")
def learned(growing):
    """A learner after each of the first two tasks."""
    trainer, states = trainer_of(growing, memory_size=33), []
    for _ in range(2):
        trainer.train_next()
        states.append(copy.deepcopy(trainer.strategy))
    return trainer, states


def images_of(data):
    data = data.eval()
    return torch.stack([data[i][0] for i in range(len(data))])


def test_herding_chooses_each_row_that_brings_the_mean_nearest():
    features = torch.randn(30, 5, generator=torch.Generator().manual_seed(0))
    chosen = []
    for _ in range(12):
        means = {i: features[[*chosen, i]].double().mean(0) for i in range(30) if i not in chosen}
        chosen.append(min(means, key=lambda i: float((means[i] - features.double().mean(0)).norm())))
    assert herd(features, 12).tolist() == chosen
    assert sorted(herd(features, 99).tolist()) == list(range(30))


def test_icarl_divides_memory_evenly_and_keeps_the_best_exemplars(learned, growing):
    _, (first, second) = learned
    assert [(c, len(e)) for c, e in first.exemplars.items()] == [(0, 16), (1, 16)]
    assert [(c, len(e)) for c, e in second.exemplars.items()] == [(c, 6) for c in range(5)]
    for c, exemplars in second.exemplars.items():
        assert {int(exemplars[i][1]) for i in range(6)} == {c}
    for c in (0, 1):
        assert torch.equal(samples_behind(second.exemplars[c])[2], samples_behind(first.exemplars[c])[2][:6])
    data = growing.train_stream[0].dataset
    mine = images_of(data.subset([i for i, c in enumerate(data.targets) if c == 1]))
    with torch.no_grad():
        features = F.normalize(features_of(first.model, mine), dim=1)
    assert torch.equal(images_of(first.exemplars[1]), mine[herd(features, 16)])


def test_icarl_assigns_the_class_of_the_nearest_mean_of_exemplars(learned, growing, outputs):
    _, (_, strategy) = learned
    strategy = copy.deepcopy(strategy)
    strategy.plugins.insert(0, outputs)
    said = outputs.say(strategy, growing.test_stream)
    network = strategy.model.eval()
    with torch.no_grad():
        means = [F.normalize(features_of(network, images_of(e)), dim=1).mean(0) for e in strategy.exemplars.values()]
        features = F.normalize(
            features_of(network, torch.cat([images_of(e.dataset) for e in growing.test_stream])), dim=1
        )
    distance = torch.cdist(features, F.normalize(torch.stack(means), dim=1))
    known = torch.cat([answers[:, :5] for answers in said])
    assert torch.equal(known.argmax(1), distance.argmin(1))
    assert torch.allclose(known, 1 - distance.square() / 2, atol=1e-5)
    assert bool((said[2][:, 5:] < -1).all())


def test_icarl_loss_distils_former_classes_and_learns_new_ones(learned, growing):
    trainer, (_, strategy) = learned
    strategy, losses = copy.deepcopy(strategy), []
    former = copy.deepcopy(strategy.model).eval()

    def compare():
        given = type(strategy).criterion(strategy)
        x, y, tasks = strategy.mbatch
        wanted = F.one_hot(y, strategy.mb_output.shape[1]).float()
        with torch.no_grad():
            wanted[:, :5] = torch.sigmoid(former(x, tasks))[:, :5]
        p = torch.sigmoid(strategy.mb_output.detach())
        each = -(wanted * p.clamp_min(1e-30).log() + (1 - wanted) * (1 - p).clamp_min(1e-30).log())
        losses.append((float(given), float(each.sum(1).mean()), y))
        return given

    strategy.criterion = compare
    strategy.train_epochs = 1
    strategy.train(growing.train_stream[2])
    assert all(a == pytest.approx(b, rel=1e-3) for a, b, _ in losses)
    seen = torch.cat([y for *_, y in losses])
    assert torch.equal(seen.bincount(minlength=7), torch.tensor([6, 6, 6, 6, 6, 36, 36]))
    assert all(
        torch.equal(a, b)
        for a, b in zip(former.state_dict().values(), trainer.strategy.former.state_dict().values(), strict=True)
    )


def test_icarl_remembers_what_fine_tuning_forgets(growing):
    last = {}
    for path, arguments in (("fscl.continual.ICaRL", {"memory_size": 70}), ("avalanche.training.Naive", {})):
        trainer = trainer_of(growing, path, **arguments)
        for _ in range(3):
            measured = trainer.train_next()
        last[path] = measured.accuracy
    assert max(last["avalanche.training.Naive"][:2]) < 0.3
    assert min(last["fscl.continual.ICaRL"]) > 0.6


def test_icarl_resumes_to_the_bit_and_its_memory_is_counted(learned, growing):
    _, (_, second) = learned
    through = trainer_of(growing, memory_size=33)
    through.train_next()
    measured = through.train_next()
    network = sum(t.nbytes for t in second.model.state_dict().values())
    assert measured.stored == network + 5 * (6 * (64 + 8) + 4 * second.means.shape[1])  # images, labels and means
    state = io.BytesIO()
    torch.save(through.state_dict(), state)
    last = through.train_next()
    state.seek(0)
    resumed = trainer_of(growing, memory_size=33)
    resumed.load_state_dict(torch.load(state, weights_only=True))
    assert resumed.train_next().accuracy == last.accuracy
    a, b = through.strategy, resumed.strategy
    assert torch.equal(a.means, b.means)
    for one, other in ((a.model, b.model), (a.former, b.former)):
        assert all(
            torch.equal(x, y) for x, y in zip(one.state_dict().values(), other.state_dict().values(), strict=True)
        )
    for c, exemplars in a.exemplars.items():
        assert torch.equal(images_of(exemplars), images_of(b.exemplars[c]))


@pytest.mark.parametrize("scenario", ["task", "domain"])
def test_icarl_refuses_task_and_domain_scenarios(digits, scenario):
    stream = split_classes(*digits, tasks=[["0", "1"], ["2", "3"]], scenario=scenario)
    with pytest.raises(FsclError, match=rf"ICaRL.*scenario {scenario!r}.*split\.scenario=class"):
        trainer_of(stream)


def test_icarl_refuses_too_little_memory_and_known_classes(digits, growing):
    net = build_network("convnet", (1, 8, 8), 2, NETWORK)
    options = {"model": net, "optimizer": torch.optim.SGD(net.parameters(), 0.1), "evaluator": None}
    with pytest.raises(FsclError, match="memory_size is 0"):
        ICaRL(memory_size=0, **options)
    with pytest.raises(FsclError, match="memory_size is 1, and there are 2 classes"):
        ICaRL(memory_size=1, **options).train(growing.train_stream[0])
    again = split_classes(*digits, tasks=[["0", "1"], ["2", "3"]], scenario="domain")
    strategy = ICaRL(**options, train_mb_size=32)
    strategy.train(again.train_stream[0])
    with pytest.raises(FsclError, match=r"classes \[0, 1\], which were learned before"):
        strategy.train(again.train_stream[1])


def test_avalanche_s_icarl_still_refuses_present_streams(growing):
    network = ConvNet(1, 2, **NETWORK)
    parts = nn.Sequential(network.features, network.pool), IncrementalClassifier(network.classifier.in_features, 2)
    optimizer = torch.optim.SGD(network.parameters(), 0.05)
    options = {
        "memory_size": 20,
        "buffer_transform": None,
        "fixed_memory": True,
        "train_mb_size": 16,
        "evaluator": None,
    }
    strategy = AvalancheICaRL(feature_extractor=parts[0], classifier=parts[1], optimizer=optimizer, **options)
    with pytest.raises(AttributeError, match="no attribute 'benchmark'"):
        strategy.train(growing.train_stream[0])
