import io
import warnings
from collections import OrderedDict, namedtuple
from collections.abc import Iterator

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from fscl import AtomConv2d
from fscl.errors import FsclError
from fscl.similarity import collect_features, features, flatten_maps


class Net(nn.Module):
    """Two convolutions, each followed by a module that changes its output in place; dropout; two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(inplace=True), AtomConv2d(4, 5, 3, stride=2), nn.ReLU(inplace=True)
        )
        self.norm = nn.BatchNorm2d(5)
        self.drop = nn.Dropout(0.5)
        self.heads = nn.ModuleList([nn.Linear(45, 2), nn.Linear(45, 2)])
        self.unused = nn.Linear(1, 1)

    def forward(self, x: Tensor, task: int = 0) -> Tensor:
        return self.heads[task](self.drop(self.norm(self.body(x))).flatten(1))


@pytest.fixture
def net() -> Net:
    return Net()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(10, 3, 8, 8)


def collect(*args, **options) -> dict[str, Tensor]:
    return collect_features(*args, progress=False, **options)


# Features


def test_features_are_the_outputs_of_layers_before_in_place_changes(net, images):
    found = collect(net, images.split(4), ["body.2", "body.0", "heads.0", "norm"])
    assert list(found) == ["body.2", "body.0", "heads.0", "norm"]
    net.eval()
    first = net.body[0](images)
    second = net.body[2](first.relu())
    expected = {"body.0": first, "body.2": second, "norm": net.norm(second.relu()), "heads.0": net(images)}
    for name, values in found.items():
        assert torch.allclose(values, expected[name], atol=1e-6)
        assert not values.requires_grad
        assert values.device.type == "cpu"
    assert (found["body.0"] < 0).any()


def test_layers_none_takes_all_convolutions_and_linear_layers_called_once_in_every_pass(net, images):
    assert list(collect(net, images.split(4))) == ["body.0", "body.2", "heads.0"]
    either = iter([0, 1])
    assert list(collect(net, images.split(5), call=lambda model, x: model(x, next(either)))) == ["body.0", "body.2"]

    class Twice(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return self[1](self[1](self[0](x)))

    assert list(collect(Twice(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)), [images])) == ["0"]


def test_layers_accepts_one_name_the_model_itself_and_both_names_of_a_shared_module(images):
    shared = nn.Conv2d(3, 3, 1)
    found = collect(nn.Sequential(nn.Identity(), shared), [images], "1")
    assert list(found) == ["1"]
    net = nn.Sequential(OrderedDict(first=nn.Identity(), inner=nn.Sequential(shared)))
    net.first.alias = shared
    found = collect(net, [images], ["first.alias", "inner.0", "first.alias"])
    assert list(found) == ["first.alias", "inner.0"]
    assert torch.equal(found["first.alias"], found["inner.0"])
    assert collect(shared, [images], "")[""].shape == (10, 3, 8, 8)


@pytest.mark.parametrize("how", ["positions", "features", "pooled"])
def test_collect_features_flattens_maps_as_flatten_maps_does(net, images, how):
    plain = collect(net, images.split(4))
    found = collect(net, images.split(4), maps=how)
    for name, values in plain.items():
        assert torch.allclose(found[name], flatten_maps(values, how), atol=1e-7)
    assert found["heads.0"].shape == (10, 2)


def test_features_have_the_dtype_of_the_network_and_pooled_ones_float32_at_least(net, images):
    assert collect(net.double(), [images.double()], "body.0")["body.0"].dtype == torch.float64
    net.bfloat16()
    assert collect(net, [images.bfloat16()], "body.0")["body.0"].dtype == torch.bfloat16
    assert collect(net, [images.bfloat16()], "body.0", maps="pooled")["body.0"].dtype == torch.float32


# Positions and samples


def test_drawn_positions_are_the_same_for_every_network_layer_and_batch_size(images):
    where = torch.arange(64.0).reshape(1, 1, 8, 8).expand(10, 3, 8, 8) + 100 * torch.arange(10.0)[:, None, None, None]
    first, second = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 2, 1)
    net = nn.Sequential(first, second)
    with torch.no_grad():
        for layer in net:
            layer.weight.zero_()[:, 0] = 1
            layer.bias.zero_()
    found = collect(net, where.split(4), maps="positions", positions=5, seed=3)
    drawn = found["0"][:, 0].reshape(10, 5)
    assert torch.equal(found["0"][:, :2], found["1"])
    assert (drawn // 100 == torch.arange(10)[:, None]).all()  # five of each image, image by image
    assert all(len(row.unique()) == 5 for row in drawn)
    assert len({tuple(row.tolist()) for row in drawn % 100}) == 10  # others in each image
    for batch in (1, 7, 10):
        assert torch.equal(collect(net, where.split(batch), maps="positions", positions=5, seed=3)["0"], found["0"])
    assert torch.equal(
        collect(net, where.split(4), maps="positions", positions=5, seed=3, samples=6)["0"], found["0"][:30]
    )
    assert not torch.equal(collect(net, where.split(4), maps="positions", positions=5, seed=4)["0"], found["0"])


def test_drawn_positions_cover_the_map_evenly():
    where = torch.arange(16.0).reshape(1, 1, 4, 4).expand(2000, 1, 4, 4)
    net = nn.Sequential(nn.Identity())
    counts = collect(net, where.split(500), "0", maps="positions", positions=4)["0"].long().flatten().bincount()
    assert counts.sum() == 8000
    assert (counts - 500).abs().max() < 100  # binomial with deviation 19.4


def test_all_positions_are_taken_from_maps_with_fewer_than_drawn(net, images):
    found = collect(net, images.split(4), ["body.0", "body.2"], maps="positions", positions=20)
    assert found["body.0"].shape == (200, 4)
    assert found["body.2"].shape == (90, 5)
    assert torch.equal(found["body.2"], collect(net, images.split(4), "body.2", maps="positions")["body.2"])


def test_samples_stops_reading_the_loader(net, images):
    served = []

    def loader() -> Iterator[Tensor]:
        for batch in images.split(4):
            served.append(len(batch))
            yield batch

    found = collect(net, loader(), "body.0", samples=6)
    assert served == [4, 4]
    assert torch.equal(found["body.0"], collect(net, images.split(4), "body.0")["body.0"][:6])
    assert len(collect(net, images.split(4), "body.0", samples=8)["body.0"]) == 8
    assert len(collect(net, images.split(4), "body.0", samples=99)["body.0"]) == 10


# Loaders


class Stream(IterableDataset):
    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.images)


def test_batches_can_be_tensors_tuples_lists_and_mappings(net, images):
    expected = collect(net, [images])
    labels = torch.arange(10)
    Batch = namedtuple("Batch", ["images", "labels"])
    for loader in (
        images.split(4),
        DataLoader(TensorDataset(images, labels), 4),
        DataLoader(Stream(images), 4),
        [(images, labels)],
        [{"images": images, "labels": labels}],
        [Batch(images, labels)],
        [("name", [images, labels])],
        [(torch.tensor(3), images)],
    ):
        for name, values in collect(net, loader).items():
            assert torch.allclose(values, expected[name], atol=1e-6)


def test_call_gets_whole_batches_on_the_device(net, images):
    Batch = namedtuple("Batch", ["images", "task"])
    seen = []

    def call(model: nn.Module, batch: Batch) -> None:
        seen.append(batch)
        model(batch.images, batch.task["id"])

    batches = [Batch(part, {"id": 1, "more": [part[0]]}) for part in images.split(4)]
    assert list(collect(net, batches, call=call)) == ["body.0", "body.2", "heads.1"]
    assert isinstance(seen[0], Batch)
    with pytest.raises(NotImplementedError, match="meta"):
        collect(net, batches, call=call, device="meta")
    assert seen[-1].images.device.type == seen[-1].task["more"][0].device.type == "meta"


def test_features_of_avalanche_loaders_and_multi_head_models():
    from avalanche.benchmarks.utils.data_loader import TaskBalancedDataLoader
    from avalanche.models import as_multitask
    from avalanche.models.utils import avalanche_model_adaptation

    from fscl.continual import ConvNet, load_images, split_classes

    stream = split_classes(*load_images("digits"), tasks=5, seed=0)
    model = as_multitask(ConvNet(1, 2, (4, 6), (0,)), "classifier")
    for experience in stream.train_stream:
        avalanche_model_adaptation(model, experience)
    data = stream.test_stream[2].dataset.eval()
    loader = TaskBalancedDataLoader(data, batch_size=16)
    found = collect(model, loader, samples=40, maps="pooled", call=lambda net, batch: net(batch[0], batch[-1]))
    assert {name: tuple(x.shape) for name, x in found.items()} == {
        "model.features.0": (40, 4),
        "model.features.4": (40, 6),
        "classifier.classifiers.2.classifier": (40, 2),
    }
    images = torch.stack([data[i][0] for i in range(40)])
    assert torch.allclose(found["model.features.0"], model.model.features[0](images).mean((2, 3)), atol=1e-6)
    every = collect(model, loader, samples=16, call=lambda net, batch: net(batch[0], None))
    assert len(every) == 2 + 5  # the body once, and all heads
    with pytest.raises(FsclError, match=r"gives shape \(8, 4, 8, 8\) for 16 images; .* batches of one task"):
        collect(model, loader, "model.features.0", call=lambda net, batch: net(batch[0], torch.arange(16) % 2))


def test_features_of_a_network_on_a_gpu_agree_with_the_cpu(net, images):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    expected = collect(net, images.split(4), maps="positions", positions=5)
    found = collect(net.cuda(), images.split(4), maps="positions", positions=5)
    for name, values in expected.items():
        assert found[name].device.type == "cpu"
        assert torch.allclose(found[name], values, atol=1e-2)


# The network is not changed


def test_collect_features_restores_modes_hooks_buffers_and_random_state(net, images):
    net.train()
    net.norm.eval()  # frozen statistics, as in fine-tuning
    modes = [module.training for module in net.modules()]
    state = {name: values.clone() for name, values in net.state_dict().items()}
    luck = torch.get_rng_state()
    inside = []
    net.drop.register_forward_hook(lambda module, *_: inside.append((module.training, torch.is_grad_enabled())))
    collect(net, images.split(4), maps="positions", positions=2)
    assert inside == [(False, False)] * 3

    def broken(model: nn.Module, batch: Tensor) -> None:
        model(batch)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect(net, images.split(4), call=broken)
    with pytest.raises(FsclError):
        collect(net, images.split(4), "unused")
    assert [module.training for module in net.modules()] == modes
    assert sum(len(module._forward_hooks) for module in net.modules()) == 1
    assert all(torch.equal(values, state[name]) for name, values in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), luck)


def test_the_progress_bar_is_shown_only_on_terminals(net, images, monkeypatch, capsys):
    collect_features(net, images.split(4))
    assert capsys.readouterr() == ("", "")
    shown = io.StringIO()

    def terminal(stderr: bool = False) -> Console:
        assert stderr
        return Console(file=shown, force_terminal=True, width=80)

    monkeypatch.setattr(features, "Console", terminal)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        collect_features(net, images.split(4), progress=False)
        assert shown.getvalue() == ""
        collect_features(net, iter(images.split(4)))
    assert "features" in shown.getvalue()
    assert shown.getvalue().endswith("\x1b[2K")  # wiped


# Mistakes


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ("body.4", r"Net has no layer 'body.4'; perhaps 'body.\d'"),
        (["body.0", "qqq"], "Net has no layer 'qqq'; perhaps 'body.0', 'body.2', 'heads.0', 'heads.1', 'unused'"),
        ([], "layers is empty; a name, several, or None"),
        ("unused", "layer 'unused' is never called in a pass; leave it out, or give a `call`"),
        ("heads.1", "layer 'heads.1' is never called"),
    ],
)
def test_unknown_layers_are_refused_with_suggestions(net, images, layers, message):
    with pytest.raises(FsclError, match=message):
        collect(net, [images], layers)


def test_layers_called_several_times_or_without_a_row_for_each_image_are_refused(images):
    shared = nn.Conv2d(3, 3, 1)
    with pytest.raises(FsclError, match="layer '0' is called 2 times in a pass; name one that is called once"):
        collect(nn.Sequential(shared, shared), [images], "0")
    with pytest.raises(FsclError, match=r"no convolution or linear layer of Sequential .*once"):
        collect(nn.Sequential(shared, shared), [images])
    with pytest.raises(FsclError, match=r"no convolution or linear layer of ReLU"):
        collect(nn.ReLU(), [images])

    class Pair(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x, x

    with pytest.raises(FsclError, match=r"layer '' \(Pair\) gives tuple; a layer that gives one tensor"):
        collect(Pair(), [images], "")
    with pytest.raises(FsclError, match=r"layer '0' gives shape \(30, 8, 8\) for 10 images"):
        collect(nn.Sequential(nn.Flatten(0, 1), nn.Flatten(1)), [images], "0")
    with pytest.raises(FsclError, match=r"layer '0' gives shape \(10, 3, 64\); maps='pooled' takes"):
        collect(nn.Sequential(nn.Flatten(2)), [images], "0", maps="pooled")
    sizes = [images, images[:, :, :4]]
    with pytest.raises(FsclError, match=r"layer '' gives \(3, 4, 8\) after \(3, 8, 8\) for each sample"):
        collect(shared, sizes, "")
    assert collect(shared, sizes, "", maps="pooled")[""].shape == (20, 3)
    assert collect(shared, sizes, "", maps="positions", positions=3)[""].shape == (60, 3)


@pytest.mark.parametrize(
    ("loader", "message"),
    [
        ([], "the loader gave no images; one batch or more"),
        ([("a", 3)], "a batch of type tuple holds no tensor of images"),
        (["images"], "a batch of type str holds no tensor"),
        ([torch.tensor(3)], "a batch of type Tensor holds no tensor"),
        (torch.zeros(4, 3, 8, 8), r"loader is a tensor \(4, 3, 8, 8\); an iterable of batches would do: x.split"),
    ],
)
def test_loaders_without_images_are_refused(net, loader, message):
    with pytest.raises(FsclError, match=message):
        collect(net, loader)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"maps": "pool"}, "maps is 'pool'; None, 'positions', 'features', 'pooled' would do"),
        ({"positions": 3}, "positions is 3 with maps=None; positions are drawn only with maps='positions'"),
        ({"positions": 0, "maps": "positions"}, "positions is 0; None for all, or 1 or more"),
        ({"samples": 0}, "samples is 0"),
    ],
)
def test_options_of_collect_features_that_do_not_fit_are_refused(net, images, options, message):
    with pytest.raises(FsclError, match=message):
        collect(net, [images], **options)


@torch.no_grad()
def test_tokens_of_linear_layers_and_attention_are_positions():
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patch = nn.Conv2d(3, 8, 2, 2)
            self.norm, self.attention = nn.LayerNorm(8), nn.MultiheadAttention(8, 2, batch_first=True)
            self.widen, self.on_map = nn.Linear(8, 12), nn.Linear(8, 5)

        def forward(self, x):
            maps = self.patch(x)
            tokens = self.norm(maps.flatten(2).mT)
            self.on_map(maps.permute(0, 2, 3, 1))
            return self.widen(self.attention(tokens, tokens, tokens)[0])

    model, images = Block().eval(), torch.randn(4, 3, 6, 6)
    found = collect_features(model, images.split(3), list(dict(model.named_children())), maps="positions")
    maps = model.patch(images)
    tokens = model.norm(maps.flatten(2).mT)
    attended = model.attention(tokens, tokens, tokens)[0]
    for name, expected in (
        ("norm", tokens),
        ("attention", attended),
        ("widen", model.widen(attended)),
        ("on_map", model.on_map(maps.permute(0, 2, 3, 1))),
    ):
        torch.testing.assert_close(found[name], expected.flatten(0, -2), rtol=1e-4, atol=1e-5)
    few = collect_features(model, [images], ["widen", "norm", "patch"], maps="positions", positions=2)
    assert {name: tuple(x.shape) for name, x in few.items()} == {"widen": (8, 12), "norm": (8, 8), "patch": (8, 8)}
    pooled = collect_features(model, [images], "widen", maps="pooled")["widen"]
    torch.testing.assert_close(pooled, model.widen(attended).mean(1), rtol=1e-4, atol=1e-5)
