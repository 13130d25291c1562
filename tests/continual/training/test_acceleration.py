import copy
import functools
import pickle
import runpy
import shutil

import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.models import MultiTaskModule, avalanche_forward
from avalanche.training.plugins import AGEMPlugin, EWCPlugin, LwFPlugin, SynapticIntelligencePlugin
from torch import nn

from fscl.continual import Acceleration, AccuracyRecorder, InMemoryLoader
from fscl.continual.training import acceleration
from fscl.errors import FsclError
from fscl.settings import Training

SETTINGS = [("float32", True), ("bfloat16", False), ("bfloat16", True), ("float16", True)]


class Seen(SupervisedPlugin):
    """Records types and layouts of the inputs and outputs of convolutions and heads."""

    supports_distributed = False

    def __init__(self):
        super().__init__()
        self.convolutions, self.heads, self.outputs, self.gradients = [], [], [], []
        self.loss = None

    def before_training_exp(self, strategy, **kwargs):
        for module in strategy.model.modules():
            if isinstance(module, nn.Linear):
                module.register_forward_hook(lambda m, inputs, out: self.heads.append((inputs[0].dtype, out.dtype)))
            elif hasattr(module, "kernel_size") and not isinstance(module, nn.MaxPool2d):
                module.register_forward_hook(
                    lambda m, inputs, out: self.convolutions.append((out.dtype, inputs[0].stride()))
                )

    def after_forward(self, strategy, **kwargs):
        self.outputs.append(strategy.mb_output)

    def after_backward(self, strategy, **kwargs):
        self.loss = float(strategy.loss.detach())
        self.gradients.append({n: p.grad.clone() for n, p in strategy.model.named_parameters() if p.grad is not None})


@pytest.mark.parametrize("kind", ["naive", "atom_swapping", "from_scratch"])
def test_accuracy_in_lower_precision_is_close_to_float32(learner, stream, kind):
    accuracies = []
    for plugins in ([], *([Acceleration(*setting)] for setting in SETTINGS)):
        recorder = AccuracyRecorder()
        strategy = learner(kind, plugins=[InMemoryLoader(), *plugins, recorder], train_epochs=12)
        for experience in stream.train_stream:
            strategy.train(experience)
        assert all(p.dtype == torch.float32 for p in strategy.model.parameters())
        tested = stream.test_stream[-1:] if kind == "naive" else list(stream.test_stream)
        accuracies.append(recorder.accuracies(strategy, tested))
    plain, *faster = (sum(a) / len(a) for a in accuracies)
    assert plain > 0.9
    assert [setting for setting, fast in zip(SETTINGS, faster, strict=True) if abs(plain - fast) >= 0.06] == []


@pytest.mark.parametrize(("precision", "channels_last"), SETTINGS)
def test_convolutions_run_in_the_precision_and_heads_and_outputs_in_float32(learner, stream, precision, channels_last):
    seen = Seen()
    learner(plugins=[InMemoryLoader(), Acceleration(precision, channels_last), seen]).train(stream.train_stream[0])
    assert {dtype for dtype, _ in seen.convolutions} == {getattr(torch, precision)}
    assert set(seen.heads) == {(torch.float32, torch.float32)}
    assert {x.dtype for x in seen.outputs} == {torch.float32}
    first, second = seen.convolutions[0][1], seen.convolutions[1][1]
    assert (first[1] == 1 and second[1] == 1) == channels_last  # images of one channel too
    assert not torch.is_autocast_enabled("cpu")


def test_restored_tasks_have_equal_outputs_in_bfloat16(learner, stream, outputs):
    strategy = learner(plugins=[InMemoryLoader(), Acceleration("bfloat16"), outputs])
    before = []
    for experience in stream.train_stream:
        strategy.train(experience)
        before += outputs.say(strategy, stream.test_stream[len(before) : len(before) + 1])
    assert all(torch.equal(a, b) for a, b in zip(before, outputs.say(strategy, stream.test_stream), strict=True))


@pytest.mark.parametrize("plugin", [lambda: EWCPlugin(0.5), lambda: LwFPlugin(1.0, 2.0)])
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_ewc_and_lwf_train_in_lower_precision(learner, stream, plugin, precision):
    strategy = learner("naive", plugins=[InMemoryLoader(), Acceleration(precision), plugin()])
    for experience in stream.train_stream:
        strategy.train(experience)
    assert all(bool(p.isfinite().all()) for p in strategy.model.parameters())


def test_a_batch_of_several_tasks_uses_each_task_s_head_in_bfloat16(learner, stream):
    """Avalanche writes the outputs of heads into a float32 tensor, so heads must not answer in lower precision."""
    strategy = learner("naive", plugins=[Acceleration("bfloat16")], train_epochs=1)
    for experience in stream.train_stream[:2]:
        strategy.train(experience)
    model, x = strategy.model.eval(), torch.randn(6, 1, 8, 8)
    tasks = torch.tensor([0, 1, 0, 1, 1, 0])
    with torch.no_grad():
        mixed = avalanche_forward(model, x, tasks)
        apart = torch.stack([model(x, int(t))[i] for i, t in enumerate(tasks)])
    assert torch.allclose(mixed, apart, atol=0.02)
    assert mixed.dtype == torch.float32


def test_a_failed_forward_pass_ends_autocast(learner, stream):
    strategy = learner("naive", plugins=[Acceleration("bfloat16")])
    strategy.train(stream.train_stream[0])
    with pytest.raises(RuntimeError):
        strategy.model(torch.randn(2, 7, 8, 8), 0)
    assert not torch.is_autocast_enabled("cpu")
    assert strategy.model(torch.randn(2, 1, 8, 8), 0).dtype == torch.float32


def test_copies_and_pickles_of_an_accelerated_network_do_not_depend_on_it(learner, stream):
    strategy = learner("naive", plugins=[Acceleration("bfloat16")], train_epochs=1)
    strategy.train(stream.train_stream[0])
    strategy.train(stream.train_stream[1])
    twin, x = copy.deepcopy(strategy.model).eval(), torch.randn(3, 1, 8, 8)
    assert torch.equal(twin(x, 0), strategy.model.eval()(x, 0))
    assert sum(len(m._forward_pre_hooks) for m in strategy.model.modules()) == 1  # however many experiences
    with torch.no_grad():
        for parameter in strategy.model.parameters():
            parameter.zero_()
    assert bool((twin(x, 0) != 0).any())
    assert torch.equal(pickle.loads(pickle.dumps(twin))(x, 0), twin(x, 0))


def test_an_interrupted_forward_pass_ends_autocast(learner, stream):
    strategy = learner("naive", plugins=[Acceleration("bfloat16")], train_epochs=1)
    strategy.train(stream.train_stream[0])

    def stop(*_):
        raise KeyboardInterrupt

    hook = strategy.model.model.features[0].register_forward_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        strategy.model(torch.randn(2, 1, 8, 8), 0)
    hook.remove()
    assert not torch.is_autocast_enabled("cpu")
    assert (torch.eye(2) @ torch.eye(2)).dtype == torch.float32


def test_networks_of_other_signatures_have_float32_outputs(learner):
    """Keyword arguments, one head, a user's multi-task module: outputs and inputs of the last layer are float32."""

    class Single(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(1, 4, 3), nn.Linear(144, 2)

        def forward(self, x):
            return self.head(self.conv(x).flatten(1))

    class Several(MultiTaskModule):
        def __init__(self):
            super().__init__()
            self.body, self.max_class_label = Single(), 2

        def forward_single_task(self, x, task_label):
            return self.body(x) * (1 + task_label)

    seen, x = [], torch.randn(4, 1, 8, 8)
    for model, inputs in ((Single(), {"x": x}), (Several(), {"x": x, "task_labels": torch.tensor([0, 1, 0, 1])})):
        head = model.head if isinstance(model, Single) else model.body.head
        head.register_forward_hook(lambda m, given, out: seen.append(out.dtype))
        strategy = learner("naive", model, plugins=[])
        Acceleration("bfloat16").before_eval(strategy)
        assert strategy.model(**inputs).dtype == torch.float32
    assert set(seen) == {torch.float32}


@pytest.mark.parametrize("make", [AGEMPlugin, SynapticIntelligencePlugin], ids=["agem", "si"])
def test_channels_last_does_not_change_the_layout_of_parameters(learner, stream, make):
    plugin = make(20, 16) if make is AGEMPlugin else make(si_lambda=1.0)
    strategy = learner("naive", plugins=[InMemoryLoader(), Acceleration("float32"), plugin], train_epochs=1)
    for experience in stream.train_stream[:2]:
        strategy.train(experience)
    assert all(p.is_contiguous() for p in strategy.model.parameters())


class TestFloat16:
    def test_float16_gives_the_gradients_and_loss_of_float32(self, learner, stream):
        found = []
        for precision in ("float32", "float16"):
            seen = Seen()
            strategy = learner("naive", plugins=[InMemoryLoader(), Acceleration(precision), seen], train_epochs=1)
            strategy.train(stream.train_stream[0])
            found.append((seen.gradients[0], strategy.loss, seen.loss))
        (exact, _, _), (scaled, _, _) = found
        assert exact.keys() == scaled.keys()
        for name in exact:
            assert torch.allclose(
                exact[name], scaled[name], rtol=0.1, atol=2e-2 * float(exact[name].abs().max() + 1e-3)
            )

    def test_float16_leaves_out_a_step_with_infinite_gradients(self, learner, network, stream):
        class Spoil(SupervisedPlugin):
            supports_distributed = False

            def before_training_exp(self, strategy, **kwargs):
                self.before = copy.deepcopy(list(strategy.model.parameters()))

            def before_backward(self, strategy, **kwargs):
                strategy.loss = strategy.loss * float("inf")

            def after_update(self, strategy, **kwargs):
                assert all(bool(p.grad.isfinite().all()) for p in strategy.model.parameters() if p.grad is not None)

        spoil = Spoil()
        optimizer = functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.1)
        model = network()
        plugins = [Acceleration("float16"), spoil]
        strategy = learner("naive", model, optimizer(model.parameters()), plugins=plugins, train_epochs=1)
        strategy.train(stream.train_stream[0])
        assert "optimizer_step" not in vars(strategy)
        assert all(torch.equal(a, b) for a, b in zip(spoil.before, strategy.model.parameters(), strict=True))

    def test_float16_restores_the_strategy_s_backward_after_training(self, learner, stream):
        strategy = learner("naive", plugins=[Acceleration("float16")], train_epochs=1)
        strategy.train(stream.train_stream[0])
        assert "backward" not in vars(strategy)


class TestCompile:
    @pytest.fixture
    def traced(self, monkeypatch):
        """Compiles with a back end that runs the traced graph unchanged, in seconds instead of a minute."""
        graphs = []

        def backend(graph, inputs):
            graphs.append(graph)
            return graph

        ordinary = nn.Module.compile
        monkeypatch.setattr(nn.Module, "compile", functools.partialmethod(ordinary, backend=backend))
        torch._dynamo.reset()
        yield graphs
        torch._dynamo.reset()

    @pytest.mark.parametrize("kind", ["naive", "atom_swapping", "from_scratch"])
    @pytest.mark.parametrize("precision", ["float32", "bfloat16"])
    def test_compiled_multi_head_networks_learn_the_same(self, learner, stream, outputs, traced, kind, precision):
        said = []
        for compiled in (False, True):
            plugins = [InMemoryLoader(), Acceleration(precision, compile=compiled), outputs]
            strategy = learner(kind, plugins=plugins)
            for experience in stream.train_stream[:2]:
                strategy.train(experience)
            said.append(outputs.say(strategy, stream.test_stream[:2]))
        assert traced
        assert not torch.equal(said[1][0], said[1][1])  # tasks are told apart
        tolerance = 1e-4 if precision == "float32" else 0.3
        assert all(torch.allclose(a, b, atol=tolerance, rtol=0.1) for a, b in zip(*said, strict=True))

    @pytest.mark.slow
    @pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++"))), reason="needs a C++ compiler")
    def test_code_of_the_default_compiler_back_end_learns(self, learner, stream):
        recorder = AccuracyRecorder()
        strategy = learner(plugins=[InMemoryLoader(), Acceleration("auto", compile=True), recorder], train_epochs=12)
        for experience in stream.train_stream:
            strategy.train(experience)
        assert min(recorder.accuracies(strategy, list(stream.test_stream))) > 0.85

    def test_compile_without_a_compiler_is_refused(self, learner, stream, monkeypatch):
        monkeypatch.setattr("fscl.continual.training.acceleration.shutil.which", lambda name: None)
        with pytest.raises(FsclError, match=r"torch.compile needs a C\+\+ compiler on the CPU \(g\+\+, clang\+\+"):
            learner(plugins=[Acceleration(compile=True)]).train(stream.train_stream[0])


def test_auto_is_bfloat16_only_if_the_processor_multiplies_in_it(monkeypatch):
    for capabilities, expected in (
        ({}, "float32"),
        ({"avx512_bf16": True}, "bfloat16"),
        ({"amx_bf16": True}, "bfloat16"),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=capabilities: found, raising=False)
        assert Acceleration("auto").resolved(torch.device("cpu")) == expected
    assert Acceleration("float16").resolved(torch.device("cpu")) == "float16"


def test_an_unknown_precision_is_refused_with_the_known_ones():
    with pytest.raises(FsclError, match="precision is 'half'; known: auto, float32, bfloat16, float16"):
        Acceleration("half")


def test_defaults_that_recipes_have_too_come_from_the_settings_of_recipes(monkeypatch):
    class Other(Training):
        channels_last: bool = not Training().channels_last
        compile: bool = not Training().compile

    for settings in (Training, Other):
        monkeypatch.setattr("fscl.settings.Training", settings)
        made = runpy.run_path(acceleration.__file__)["Acceleration"]()
        assert (made.channels_last, made.compile) == (settings().channels_last, settings().compile)
