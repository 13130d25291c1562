import copy
import io

import pytest
import torch
from avalanche.benchmarks import benchmark_from_datasets, with_classes_timeline, with_task_labels
from avalanche.benchmarks.utils.utils import concat_datasets
from avalanche.models import as_multitask
from avalanche.training import Replay
from torch import nn
from torch.nn import functional as F

from fscl.continual import PNN, FromScratch, PNNPlugin, build_network
from fscl.continual.learner import Learner
from fscl.continual.learners.laterals import Lateral
from fscl.continual.training.trainer import Trainer
from fscl.errors import FsclError
from fscl.settings import Network, Training

NETWORK = {"widths": [6, 8, 4], "pool_after": [0], "dropout": 0.1}


def network():
    return build_network("convnet", (1, 8, 8), 2, NETWORK)


def built(kind=PNN, model=None, groups=None, **options):
    torch.manual_seed(0)
    model = network() if model is None else model
    optimizer = torch.optim.SGD(groups(model) if groups else model.parameters(), 0.05, 0.9, weight_decay=0.01)
    defaults = {"train_mb_size": 16, "train_epochs": 2, "eval_mb_size": 64, "evaluator": None}
    return kind(model=model, optimizer=optimizer, criterion=nn.CrossEntropyLoss(), **{**defaults, **options})


def learn(strategy, stream, tasks=(0, 1, 2)):
    for t in tasks:
        strategy.train(stream.train_stream[t])
    return strategy


@pytest.fixture(scope="module")
def three(stream):
    """A learner of three tasks, and its outputs for each task's test images right after learning the task."""
    strategy, said = built(), []
    for t, experience in enumerate(stream.train_stream):
        strategy.train(experience)
        with torch.no_grad():
            said.append(strategy.model.eval()(images_of(stream.test_stream[t]), torch.full((40,), t)))
    return strategy, said


def images_of(experience):
    data = experience.dataset.eval()
    return torch.stack([data[i][0] for i in range(len(data))])


def test_pnn_outputs_of_a_task_never_change(three, stream, outputs):
    strategy, said = copy.deepcopy(three)
    strategy.plugins.insert(1, outputs)
    now = outputs.say(strategy, stream.test_stream)
    assert all(torch.equal(a, b) for a, b in zip(now, said, strict=True))


def test_a_pnn_column_follows_the_formula_of_the_paper(three, stream):
    """Computed column by column and layer by layer from the stored tensors only."""
    strategy, said = three
    x = images_of(stream.test_stream[2])
    received: list[list[torch.Tensor]] = [[], [], []]  # by convolution: in each column
    for task, w in strategy.pnn.networks.items():
        h = x
        for i, conv in enumerate(("0", "4", "7")):
            name = f"model.features.{conv}"
            received[i].append(h)
            h = F.conv2d(h, w[f"{name}.weight"], padding=1)
            if i and task:
                former = [a * f for a, f in zip(w[f"{name}.lateral.scale"], received[i], strict=False)]
                hidden = F.conv2d(torch.cat(former, 1), w[f"{name}.lateral.down"], w[f"{name}.lateral.bias"])
                h = h + F.conv2d(hidden.relu(), w[f"{name}.lateral.up"])
            norm = f"model.features.{int(conv) + 1}"
            h = F.batch_norm(h, *(w[f"{norm}.{n}"] for n in ("running_mean", "running_var", "weight", "bias")))
            h = (F.max_pool2d(h, 2) if i == 0 else h).relu()
        assert len(w["model.features.7.lateral.scale"]) == task
    head = [w[f"classifier.classifiers.2.classifier.{n}"] for n in ("weight", "bias")]
    assert torch.allclose(F.linear(F.adaptive_avg_pool2d(h, 2).flatten(1), *head), said[2], atol=1e-4)


def test_laterals_are_trained_in_the_group_of_their_convolution(stream):
    def groups(model):
        parts = {"features": [], "others": []}
        for name, parameter in model.named_parameters():
            parts["features" if "features" in name else "others"].append(parameter)
        return [{"params": p, "lr": rate} for p, rate in zip(parts.values(), (0.05, 0.04), strict=True)]

    strategy = built(groups=groups)
    untouched = {}
    for t, experience in enumerate(stream.train_stream):
        strategy.train(experience)
        ours = {n: p for n, p in strategy.model.named_parameters() if ".lateral." in n}
        assert len(ours) == 8
        for parameter in ours.values():
            found = [g["lr"] for g in strategy.optimizer.param_groups for p in g["params"] if p is parameter]
            assert found == [0.05]
        if t:  # each of the numbers was moved, by gradients and not by decay alone
            scale = ours["model.features.4.lateral.scale"]
            assert len(scale) == t
            assert all(abs(float(s) - 0.1) > 1e-4 for s in scale)
            assert bool((ours["model.features.4.lateral.bias"] != 0).any())
        untouched[t] = {n: v.clone() for n, v in strategy.pnn.networks[t].items()}
    for t, before in untouched.items():
        assert all(torch.equal(strategy.pnn.networks[t][n], v) for n, v in before.items())


def test_pnn_without_feeding_columns_equals_independent_networks(stream):
    alone, scratch = learn(built(columns=0), stream), learn(built(FromScratch), stream)
    for t, wanted in scratch.from_scratch.networks.items():
        assert all(torch.equal(alone.pnn.networks[t][n], v) for n, v in wanted.items())


def test_pnn_passes_a_batch_through_at_most_the_given_columns(stream):
    for columns, passes in ((None, [1, 2, 3]), (1, [1, 2, 2])):
        strategy = learn(built(columns=columns, train_epochs=1), stream)
        counted = []
        first = strategy.model.model.features[0]
        hook = first.register_forward_hook(lambda *_, counted=counted: counted.append(torch.is_grad_enabled()))
        for t, wanted in enumerate(passes):
            counted.clear()
            strategy.eval_mb_size = 40
            strategy.eval([stream.test_stream[t]])
            assert len(counted) == wanted
        counted.clear()
        strategy.model.train()(torch.rand(4, 1, 8, 8), 2).sum().backward()
        assert counted == [False] * (passes[2] - 1) + [True]
        hook.remove()
        assert all(m.training for m in strategy.model.modules())


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": 3},
        {"kernel_size": 5, "padding": 1, "stride": 2},
        {"kernel_size": 3, "padding": "same", "dilation": 2},
        {"kernel_size": (3, 1), "padding": (2, 0), "stride": (1, 3)},
    ],
)
def test_a_lateral_sees_the_positions_of_its_convolution(options):
    """A convolution whose filters are 0 except at their centre equals the 1x1 convolution of the lateral."""
    conv = nn.Conv2d(2, 3, bias=False, **options)
    nn.init.zeros_(conv.weight)
    centre = [k // 2 for k in conv.kernel_size]
    lateral = Lateral(conv)
    lateral._make(1, conv.weight)
    with torch.no_grad():
        lateral.scale.fill_(1)
        lateral.down.copy_(torch.eye(2)[:, :, None, None])
        conv.weight[:, :, centre[0], centre[1]] = lateral.up[:, :, 0, 0]
    x = torch.rand(2, 2, 9, 11)
    lateral.fed = [x]
    assert torch.allclose(lateral(), conv(x), atol=1e-6)


def test_pnn_evaluates_each_sample_of_a_mixed_mini_batch_with_its_column(three, stream, outputs):
    strategy, said = copy.deepcopy(three)
    strategy.model.classifier.masking = False  # Avalanche masks units of experiences with one task only
    mixed = concat_datasets([e.dataset for e in stream.test_stream])
    order = torch.randperm(len(mixed))
    benchmark = benchmark_from_datasets(train=[mixed], test=[mixed.subset(order.tolist())])
    (experience,) = with_task_labels(with_classes_timeline(benchmark)).test_stream
    experience.classes_in_this_experience = [0, 1]
    strategy.plugins.insert(1, outputs)
    strategy.eval_mb_size = len(mixed)
    (together,) = outputs.say(strategy, [experience])
    assert torch.allclose(together, torch.cat(said)[order], atol=1e-5)


def test_pnn_resumes_to_the_bit(stream):
    def trainer():
        return Trainer(stream, Learner("fscl.continual.PNN"), Training(epochs=1, batch_size=16), Network(args=NETWORK))

    through = trainer()
    states = []
    for _ in range(2):
        through.train_next()
        states.append(io.BytesIO())
        torch.save(through.state_dict(), states[-1])
    last = through.train_next()
    for done, state in enumerate(states, start=1):
        state.seek(0)
        resumed = trainer()
        resumed.load_state_dict(torch.load(state, weights_only=True))
        while resumed.done < 3:
            measured = resumed.train_next()
        assert measured.accuracy == last.accuracy, done
        for t, wanted in through.strategy.pnn.networks.items():
            assert all(torch.equal(resumed.strategy.pnn.networks[t][n], v) for n, v in wanted.items())


def test_pnn_memory_counts_columns_and_laterals_separately(three):
    strategy, _ = three
    networks = strategy.pnn.networks.values()
    memory = strategy.pnn.memory()
    assert sum(memory.values()) == pytest.approx(sum(t.nbytes for n in networks for t in n.values()) / 3, abs=2)
    assert memory["column"] == 4 * 9 * (6 + 6 * 8 + 8 * 4)
    shapes = [(6, 8), (8, 4)]  # scale, down, bias, up: of one former column and of two
    assert memory["lateral"] == round(sum(4 * (n + n * c * c + c + c * o) for c, o in shapes for n in (1, 2)) / 3)


def test_pnn_trains_only_its_last_task_again(stream, starts):
    strategy = learn(built(plugins=[starts]), stream, (0, 1))
    second = dict(strategy.pnn.networks[1])
    strategy.train(stream.train_stream[1])
    assert all(torch.equal(starts.states[2][n], v) for n, v in second.items())
    with pytest.raises(FsclError, match=r"task 0 is learned already.*the columns of tasks 1 are built on it"):
        strategy.train(stream.train_stream[0])


def test_an_interrupted_training_adds_no_pnn_column(stream):
    strategy = learn(built(), stream, (0,))
    strategy.train_epochs, step = 1, strategy.optimizer_step
    strategy.optimizer_step = lambda: 1 / 0
    with pytest.raises(ZeroDivisionError):
        strategy.train(stream.train_stream[1])
    strategy.optimizer_step = step
    learn(strategy, stream, (2,))
    assert {t: len(n["model.features.4.lateral.scale"]) for t, n in strategy.pnn.networks.items()} == {0: 0, 2: 1}


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3)
        self.shortcut = nn.Conv2d(4, 6, 1, stride=2)  # defined before what is computed before it
        self.body = nn.Sequential(nn.Conv2d(4, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 6, 3, padding=1, groups=2))
        self.classifier = nn.Linear(6, 2)

    def forward(self, x):
        x = self.stem(x).relu()
        x = self.body(x) + self.shortcut(x)
        return self.classifier(x.relu().mean((2, 3)))


def test_pnn_plugin_runs_on_residual_networks_beside_replay(stream):
    plugin = PNNPlugin()
    strategy = learn(built(Replay, as_multitask(Residual(), "classifier"), plugins=[plugin], mem_size=20), stream)
    for t, network in plugin.networks.items():
        assert [len(v) for n, v in network.items() if n.endswith("lateral.scale")] == [t] * 3
    strategy.eval(list(stream.test_stream))


def test_pnn_refuses_negative_columns_and_networks_of_one_convolution():
    with pytest.raises(FsclError, match="columns is -1"):
        PNNPlugin(columns=-1)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(144, 2))
    with pytest.raises(FsclError, match="Sequential has 1 convolutions"):
        built(model=model)
