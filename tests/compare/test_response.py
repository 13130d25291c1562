"""Responses of tasks to images, by passes and by the tangent. Oracles: plain hooks, finite differences, numpy."""

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fscl.atoms import AtomBank, atom_layers, decompose, freeze_coefficients
from fscl.atoms.ownership import entry_kinds
from fscl.compare import READINGS, response_features, response_similarity, tangent_features, tangent_similarity
from fscl.errors import FsclError
from fscl.similarity import linear_cka

FEATURES = pytest.mark.parametrize("features", [response_features, tangent_features])
SIMILARITY = pytest.mark.parametrize("similarity", [response_similarity, tangent_similarity])
EVERY = pytest.mark.parametrize(
    "function", [response_features, response_similarity, tangent_features, tangent_similarity]
)


class Net(nn.Module):
    """A smooth network, so that all derivatives exist; one normalisation has scale and shift, the other does not."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6, eps=0.1)
        self.second = nn.Conv2d(6, 5, 3, bias=False)
        self.affineless = nn.BatchNorm2d(5, affine=False)
        self.third = nn.Conv2d(5, 4, (3, 2))
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.norm(self.first(x)))
        x = torch.tanh(self.affineless(self.second(x)))
        return self.head(self.drop(self.third(x)).mean((2, 3)))


LAYERS = ["first", "second", "third"]


class Tasks:
    """A network of atoms in float64 and its bank, whose tasks are made by changing the network."""

    def __init__(self, net: nn.Module, num_atoms: int = 9, heads: list[str] | None = None) -> None:
        self.model = decompose(net.double(), num_atoms).model.eval()
        freeze_coefficients(self.model)
        self.bank = AtomBank(self.model, heads)
        self.start = {name: values.clone() for name, values in self.model.state_dict().items()}

    @torch.no_grad()
    def store(self, task: int, moves: dict[str, Tensor], by: float = 1.0) -> None:
        self.model.load_state_dict(self.start)
        for name, move in moves.items():
            self.model.state_dict()[name].add_(by * move)
        self.bank.store(self.model, task)

    def move(self, *names: str) -> dict[str, Tensor]:
        """A direction in the named entries, or in all that a task has; variances grow."""
        kinds = entry_kinds(self.model)
        return {
            name: 0.3 * (torch.rand_like(values) if "running_var" in name else torch.randn_like(values))
            for name, values in self.start.items()
            if values.is_floating_point() and (name in names if names else name in kinds)
        }


@pytest.fixture
def images() -> Tensor:
    return torch.randn(5, 2, 7, 7, dtype=torch.float64)


@pytest.fixture
def empty() -> Tasks:
    return Tasks(Net())


@pytest.fixture
def tasks(empty) -> Tasks:
    """Three tasks that differ in every entry that belongs to a task."""
    for task in range(3):
        empty.store(task, empty.move())
    return empty


def hooked(tasks: Tasks, task: int, layer: str, images: Tensor) -> np.ndarray:
    """The output of a layer of a restored task, (n * h * w, channels)."""
    network, seen = copy.deepcopy(tasks.model), []
    tasks.bank.restore(network, task)
    network.get_submodule(layer).register_forward_hook(
        lambda module, inputs, output: seen.append(output.detach().clone())
    )
    network.eval()(images)
    return seen[0].permute(0, 2, 3, 1).flatten(0, 2).numpy()


def aligned(features: list[np.ndarray]) -> np.ndarray:
    flat = np.stack([(values - values.mean(0)).ravel() for values in features])
    flat /= np.linalg.norm(flat, axis=1, keepdims=True)
    return (flat @ flat.T) ** 2


class Calls:
    """Makes passes, and records the number of images of each."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def __call__(self, model: nn.Module, batch: Tensor) -> Tensor:
        self.sizes.append(len(batch))
        return model(batch)


def gap(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def listed(found: dict[str, list[Tensor]] | Tensor) -> list[Tensor]:
    return [values for layer in found.values() for values in layer] if isinstance(found, dict) else [found]


# Responses


def test_response_features_equal_what_hooks_see_in_restored_networks(tasks, images):
    found = response_features(tasks.bank, tasks.model, images, positions=None, batch_size=2)
    assert list(found) == LAYERS
    for layer, features in found.items():
        expected = [hooked(tasks, task, layer, images) for task in range(3)]
        np.testing.assert_allclose(torch.stack(features), expected, atol=1e-12)
        assert np.abs(expected[0] - expected[1]).max() > 0.1
    per_layer = response_similarity(tasks.bank, tasks.model, images, positions=None, per_layer=True)
    expected = [aligned([hooked(tasks, task, layer, images) for task in range(3)]) for layer in LAYERS]
    np.testing.assert_allclose(per_layer, expected, atol=1e-12)
    np.testing.assert_allclose(
        response_similarity(tasks.bank, tasks.model, images, positions=None), np.mean(expected, 0), atol=1e-12
    )


@FEATURES
def test_positions_are_the_same_in_every_task_and_function(tasks, images, features):
    drawn = features(tasks.bank, tasks.model, images, positions=6, seed=3)
    every = features(tasks.bank, tasks.model, images, positions=None)
    for layer, side in (("first", 49), ("second", 25), ("third", 12)):
        whole = torch.stack(every[layer]).unflatten(1, (5, side))
        part = torch.stack(drawn[layer]).unflatten(1, (5, 6))
        for image in range(5):
            at = torch.cdist(part[0, image], whole[0, image]).argmin(1)
            assert len(at.unique()) == 6
            assert torch.allclose(part[:, image], whole[:, image, at], atol=1e-12)  # in all tasks
        assert drawn[layer][0].shape == (30, every[layer][0].shape[1])
        plain = response_features(tasks.bank, tasks.model, images, positions=6, seed=3, batch_size=2)[layer][0]
        assert torch.allclose(drawn[layer][0], plain, atol=1e-12)  # of the reference
    other = features(tasks.bank, tasks.model, images, positions=6, seed=4)
    assert not torch.allclose(other["first"][0], drawn["first"][0])
    assert features(tasks.bank, tasks.model, images, positions=20)["third"][0].shape == (60, 4)  # all there are


def test_response_similarity_uses_the_named_measure(tasks, images):
    found = response_similarity(tasks.bank, tasks.model, images, "linear_cka", per_layer=True, positions=None)
    for layer, matrix in zip(LAYERS, found, strict=True):
        x, y = (torch.from_numpy(hooked(tasks, task, layer, images)) for task in (0, 2))
        assert matrix[0, 2] == pytest.approx(linear_cka(x, y), abs=1e-9)


# Similarities


@SIMILARITY
def test_response_and_tangent_similarity_are_symmetric_bounded_and_1_on_the_diagonal(tasks, images, similarity):
    for per_layer, shape in ((False, (3, 3)), (True, (3, 3, 3))):
        found = similarity(tasks.bank, tasks.model, images, per_layer=per_layer)
        assert found.dtype == torch.float64
        assert found.shape == shape
        assert torch.equal(found, found.mT)
        assert (found.diagonal(dim1=-2, dim2=-1) == 1).all()
        assert 0 <= found.min() < 0.9
        assert found.max() == 1
    assert torch.allclose(found.mean(0), similarity(tasks.bank, tasks.model, images), atol=1e-12)
    some = similarity(tasks.bank, tasks.model, images, layers=("third", "first"), per_layer=True)
    assert torch.allclose(some, found[[2, 0]], atol=1e-12)


@SIMILARITY
def test_equal_tasks_have_similarity_1_and_a_single_task_gives_a_1x1_matrix(empty, images, similarity):
    empty.store(4, empty.move())
    assert torch.equal(similarity(empty.bank, empty.model, images), torch.ones(1, 1, dtype=torch.float64))
    empty.bank.store(empty.model, 9)
    assert torch.allclose(similarity(empty.bank, empty.model, images), torch.ones(2, 2, dtype=torch.float64))


@SIMILARITY
def test_similarity_of_responses_to_impulses_is_the_squared_cosine_of_atoms(similarity):
    """The metric of its atoms is then the identity."""
    tasks = Tasks(nn.Sequential(nn.Conv2d(1, 6, 3, padding=2, bias=False), nn.Flatten(), nn.Linear(294, 2)))
    for task in range(4):
        tasks.store(task, tasks.move())
    impulse = torch.zeros(1, 1, 5, 5, dtype=torch.float64)
    impulse[..., 2, 2] = 1
    found = similarity(tasks.bank, tasks.model, torch.cat([impulse, -impulse]), positions=None)
    expected = tasks.bank.similarity("cosine", "product")
    assert expected.fill_diagonal_(0).max() > 0.1
    assert torch.allclose(found.fill_diagonal_(0), expected, atol=1e-9)


@SIMILARITY
@pytest.mark.parametrize("how", ["scale", "mixture"])
def test_a_change_of_gauge_changes_only_the_plain_cosine_of_atoms(tasks, images, similarity, how, monkeypatch):
    other = Tasks(Net())
    other.model.load_state_dict(tasks.start)
    gauge = {}
    for name, layer in atom_layers(other.model).items():
        noise = torch.randn(layer.num_atoms, layer.num_atoms, dtype=torch.float64)
        gauge[name] = 3 * torch.eye(len(noise)).double() if how == "scale" else torch.eye(len(noise)) + 0.4 * noise
        layer.coefficients.data = layer.coefficients @ torch.linalg.inv(gauge[name])
    monkeypatch.setattr("fscl.atoms.ownership.freeze_coefficients", lambda model: None)  # else it fixes the gauge
    other.bank = AtomBank(other.model)
    for task in tasks.bank.tasks:
        entries = tasks.bank.entries(task)
        for name in LAYERS:
            entries[f"{name}.atoms"] = torch.einsum("mn,nhw->mhw", gauge[name], entries[f"{name}.atoms"])
        other.model.load_state_dict(entries, strict=False)
        other.bank.store(other.model, task)
    before, after = (similarity(each.bank, each.model, images) for each in (tasks, other))
    assert torch.allclose(before, after, atol=1e-9)
    cosines = [each.bank.similarity("cosine", "mean") for each in (tasks, other)]
    assert (cosines[0] - cosines[1]).abs().max() > 0.01 if how == "mixture" else torch.allclose(*cosines)


@SIMILARITY
@pytest.mark.parametrize(
    ("entries", "seen_by"),
    [
        (["first.atoms"], LAYERS),
        (["second.atoms"], ["second", "third"]),
        (["first.bias"], ["second", "third"]),  # features are centred
        (["norm.weight"], ["second", "third"]),
        (["norm.running_mean"], ["second", "third"]),
        (["norm.running_var"], ["second", "third"]),
        (["affineless.running_var"], ["third"]),
        (["third.atoms"], ["third"]),
        (["head.weight", "head.bias"], []),
    ],
)
def test_a_changed_entry_changes_only_the_layers_after_it(empty, images, similarity, entries, seen_by):
    empty.store(0, {})
    empty.store(1, empty.move(*entries))
    found = similarity(empty.bank, empty.model, images, per_layer=True)[:, 0, 1]
    assert [layer for layer, value in zip(LAYERS, found, strict=True) if value < 1 - 1e-6] == seen_by


@SIMILARITY
def test_similarity_does_not_depend_on_the_scale_of_a_layer(empty, images, similarity):
    start = empty.start
    empty.store(0, {})
    empty.store(1, {name: 2 * start[name] for name in ("first.atoms", "first.bias")})  # three times what they were
    found = similarity(empty.bank, empty.model, images, per_layer=True)[:, 0, 1]
    assert found[0] == pytest.approx(1, abs=1e-12)
    assert found[1] < 0.99


# The tangent


@pytest.mark.parametrize("reference", [None, 0, 1, 2])
def test_tangent_features_are_exact_only_at_the_reference(tasks, images, reference):
    found = tangent_features(tasks.bank, tasks.model, images, reference=reference)
    true = response_features(tasks.bank, tasks.model, images)
    for layer in LAYERS:
        exact = [gap(x, y) < 1e-12 for x, y in zip(found[layer], true[layer], strict=True)]
        assert exact == ([True] * 3 if layer == "first" else [task == (reference or 0) for task in range(3)])


def test_the_error_of_tangent_features_falls_with_the_squared_distance(empty, images):
    move, distances = empty.move(), (0.08, 0.04, 0.02, 0.01)
    wrong = {layer: [] for layer in LAYERS}
    for distance in distances:
        empty.store(0, {})
        empty.store(1, move, by=distance)
        found, true = (f(empty.bank, empty.model, images) for f in (tangent_features, response_features))
        for layer in LAYERS:
            wrong[layer].append(gap(found[layer][1], true[layer][1]))
            assert wrong[layer][-1] < 0.2 * gap(true[layer][0], true[layer][1])
    assert max(wrong["first"]) < 1e-12  # linear in its atoms and bias
    for layer in ("second", "third"):
        ratios = np.divide(wrong[layer][:-1], wrong[layer][1:])
        assert ratios == pytest.approx(4, rel=0.15)
        assert ratios[-1] == pytest.approx(4, rel=0.03)


def test_tangent_slopes_equal_central_differences_of_responses(empty, images):
    moves = [{n: m for n, m in empty.move().items() if "running" not in n} for _ in range(2)]  # all are coordinates
    empty.store(0, {})
    for task, move in enumerate(moves, 1):
        empty.store(task, move)
    found = tangent_features(empty.bank, empty.model, images, positions=4)
    near = Tasks(Net())
    near.model.load_state_dict(empty.start)
    near.start, near.bank = empty.start, AtomBank(near.model)
    h = 1e-5
    for task, move in enumerate(moves, 1):
        near.store(2 * task, move, by=h)
        near.store(2 * task + 1, move, by=-h)
    passed = response_features(near.bank, near.model, images, positions=4)
    for layer in LAYERS:
        for task in (1, 2):
            ahead, behind = passed[layer][2 * task - 2 : 2 * task]
            assert gap(found[layer][task] - found[layer][0], (ahead - behind) / (2 * h)) < 1e-7


class Reversed(nn.BatchNorm2d):
    """A subclass of a normalisation with another forward pass."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).flip(1)


@pytest.mark.parametrize(
    "norm",
    [
        nn.BatchNorm2d(4, eps=0.5),
        nn.BatchNorm2d(4, affine=False),
        nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
        Reversed(4),
    ],
    ids=["affine", "bare", "instance", "subclass"],
)
@pytest.mark.parametrize("reference", [0, 2])
def test_tangent_features_fold_normalisation_exactly(images, norm, reference):
    """Between two unchanged convolutions, features are linear in scale and shift at any distance."""
    tasks = Tasks(nn.Sequential(nn.Conv2d(2, 4, 3), norm, nn.Conv2d(4, 3, 3), nn.Flatten(), nn.Linear(27, 2)))
    entries = [f"1.{name}" for name in ("weight", "bias", "running_mean", "running_var")]
    for task in range(3):
        tasks.store(task, tasks.move(*entries), by=3)
    found = tangent_features(tasks.bank, tasks.model, images, reference=reference)["2"]
    true = response_features(tasks.bank, tasks.model, images)["2"]
    for x, y in zip(found, true, strict=True):
        assert gap(x, y) < 1e-12
    assert gap(true[0], true[1]) > 0.1


def test_tangent_features_of_a_single_layer_are_exact(images):
    """There are more tasks than dimensions: two atoms of nine values, and five biases."""
    tasks = Tasks(nn.Sequential(nn.Conv2d(2, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(125, 2)), num_atoms=2)
    for task in range(30):
        tasks.store(task, tasks.move("0.atoms", "0.bias"), by=10)
    calls = Calls()
    found = tangent_features(tasks.bank, tasks.model, images, reference=7, call=calls)["0"]
    assert len(calls.sizes) == 1 + 18 + 5
    true = response_features(tasks.bank, tasks.model, images)["0"]
    assert max(gap(x, y) for x, y in zip(found, true, strict=True)) < 1e-11
    similarities = [f(tasks.bank, tasks.model, images) for f in (tangent_similarity, response_similarity)]
    assert torch.allclose(*similarities, atol=1e-9)


def test_the_tangent_takes_one_pass_for_each_dimension_that_tasks_span(empty, images):
    moves = [empty.move("second.atoms", "norm.bias") for _ in range(2)]
    for task, (one, two) in enumerate([(0, 0), (1, 0), (-2, 0), (0.5, 0), (1, 3), (2, -1)]):
        empty.store(task, {name: one * moves[0][name] + two * moves[1][name] for name in moves[0]})
    calls = Calls()
    found = tangent_features(empty.bank, empty.model, images, call=calls)
    assert calls.sizes == [5] * 3  # the reference itself, and two derivatives
    base, one, two = found["third"][0], found["third"][1] - found["third"][0], found["third"][4] - found["third"][1]
    assert torch.allclose(found["third"][2], base - 2 * one, atol=1e-9)
    assert torch.allclose(found["third"][5], base + 2 * one - two / 3, atol=1e-9)


@pytest.mark.parametrize("reference", [0, 2])
def test_tangent_similarity_is_the_squared_cosine_of_tangent_features(tasks, images, reference):
    found = tangent_similarity(tasks.bank, tasks.model, images, reference=reference, positions=8, per_layer=True)
    features = tangent_features(tasks.bank, tasks.model, images, reference=reference, positions=8)
    for layer, matrix in zip(LAYERS, found, strict=True):
        np.testing.assert_allclose(matrix, aligned([values.numpy() for values in features[layer]]), atol=1e-9)
    other = tangent_similarity(tasks.bank, tasks.model, images, reference=1, positions=8, per_layer=True)
    assert (other - found).abs().max() > 1e-3


def test_near_the_reference_tangent_and_response_similarity_agree(empty, images):
    for task in range(4):
        empty.store(task, empty.move(), by=0.02)
    tangent, response = (f(empty.bank, empty.model, images) for f in (tangent_similarity, response_similarity))
    assert (1 - response).max() > 100 * (tangent - response).abs().max()


def test_the_tangent_in_float32_agrees_with_float64(tasks, images):
    half = AtomBank(copy.deepcopy(tasks.model).float())
    for task in tasks.bank.tasks:
        tasks.bank.restore(tasks.model, task)
        half.store(copy.deepcopy(tasks.model).float(), task)
    tasks.model.float()
    for similarity in (response_similarity, tangent_similarity):
        expected = similarity(tasks.bank, copy.deepcopy(tasks.model).double(), images)
        assert torch.allclose(similarity(half, tasks.model, images.float()), expected, atol=1e-5)


# Unusual networks


@FEATURES
def test_a_head_that_only_one_task_has_changes_no_feature(images, features):
    heads = {str(task): nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 2 + task)) for task in range(2)}
    tasks = Tasks(nn.ModuleDict({"conv": nn.Conv2d(2, 4, 3), "heads": nn.ModuleDict(heads)}), heads=["heads"])
    for task in range(2):
        tasks.model.load_state_dict(tasks.start | {"conv.atoms": torch.randn_like(tasks.start["conv.atoms"])})
        tasks.bank.store(tasks.model, task, head=[f"heads.{task}"])
    found = features(tasks.bank, tasks.model, images, positions=None, call=lambda net, batch: net["conv"](batch))
    for task in range(2):
        filters = torch.einsum("oim,mhw->oihw", tasks.bank.shared["conv.coefficients"], tasks.bank.atoms(task)["conv"])
        expected = torch.conv2d(images, filters, tasks.bank.entries(task)["conv.bias"]).detach()
        assert torch.allclose(found["conv"][task], expected.permute(0, 2, 3, 1).flatten(0, 2), atol=1e-12)


@FEATURES
def test_a_head_that_grew_between_tasks_changes_no_feature(empty, images, features):
    empty.store(0, {})
    empty.model.head = nn.Linear(4, 7).double()
    empty.bank.store(empty.model, 1)
    found = features(empty.bank, empty.model, images)
    assert all(torch.allclose(*values, atol=1e-12) for values in found.values())


@FEATURES
def test_in_place_layers_do_not_change_collected_features(features):
    """Maps of one pixel are not copied when features are flattened."""
    tasks = Tasks(nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(4, 2)))
    for task in range(2):
        tasks.store(task, tasks.move())
    images = torch.randn(20, 2, 3, 3, dtype=torch.float64)
    found = features(tasks.bank, tasks.model, images)["0"]
    for task in range(2):
        assert found[task].min() < 0
        np.testing.assert_allclose(found[task], hooked(tasks, task, "0", images), atol=1e-12)


@FEATURES
def test_features_can_be_collected_from_layers_without_atoms(images, features):
    """A 1x1 convolution, a whole block, and a linear layer, whose features are not maps."""
    block = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3))
    tasks = Tasks(nn.Sequential(block, nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Linear(100, 6)))
    for task in range(2):
        tasks.store(task, tasks.move("0.0.atoms", "0.0.bias"))  # all of it is linear in these
    layers = iter(["3", "1", "0", "3"])
    found = features(tasks.bank, tasks.model, images, layers=layers, positions=5)
    assert {name: values[0].shape for name, values in found.items()} == {"3": (5, 6), "1": (25, 4), "0": (25, 3)}
    for task in range(2):
        network = copy.deepcopy(tasks.model)
        tasks.bank.restore(network, task)
        assert torch.allclose(found["3"][task], network.eval()(images), atol=1e-12)
    one = features(tasks.bank, tasks.model, images, layers="0.0")
    assert list(one) == ["0.0"]


@FEATURES
def test_tokens_of_a_linear_layer_are_positions(images, features):
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patch, self.mix = nn.Conv2d(2, 4, 2, 2), nn.Linear(4, 6)

        def forward(self, x: Tensor) -> Tensor:
            return self.mix(self.patch(x).flatten(2).mT)

    tasks = Tasks(Tokens())
    for task in range(2):
        tasks.store(task, tasks.move("patch.atoms"))
    found = features(tasks.bank, tasks.model, images, layers="mix", positions=None)["mix"]
    for task in range(2):
        network = copy.deepcopy(tasks.model)
        tasks.bank.restore(network, task)
        torch.testing.assert_close(found[task], network.eval()(images).detach().flatten(0, 1))


@FEATURES
def test_features_of_modules_with_two_names_are_collected(images, features):
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = self.again = nn.Conv2d(2, 4, 3)
            self.norm = self.other = nn.BatchNorm2d(4)
            self.last = nn.Conv2d(4, 3, 3)
            self.head = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.last(self.other(self.again(x))).mean((2, 3)))

    tasks = Tasks(Twice())
    for task in range(2):
        tasks.store(task, tasks.move("other.weight", "other.running_mean"))
    found = features(tasks.bank, tasks.model, images, layers=["last"], positions=None)["last"]
    for task in range(2):
        np.testing.assert_allclose(found[task], hooked(tasks, task, "last", images), atol=1e-12)
    assert gap(found[0], found[1]) > 0.1


@EVERY
def test_a_newly_built_network_gives_the_same_responses(tasks, images, function):
    fresh = decompose(Net().double()).model
    found, expected = (function(tasks.bank, net, images) for net in (fresh, tasks.model))
    for ours, theirs in zip(listed(found), listed(expected), strict=True):
        assert torch.equal(ours, theirs)


@EVERY
def test_bank_and_network_are_unchanged_even_if_a_pass_fails(tasks, images, function):
    model = tasks.model.train()
    model.norm.eval()  # frozen statistics, as in fine-tuning
    model.drop.register_forward_hook(lambda *_: None)
    model.first.atoms.grad = torch.ones_like(model.first.atoms)
    parameters, buffers = list(model.parameters()), list(model.buffers())
    wanted = [parameter.requires_grad for parameter in parameters]
    state = {name: values.clone() for name, values in model.state_dict().items()}
    stored = copy.deepcopy([tasks.bank.entries(task) for task in tasks.bank.tasks])
    modes, luck, given = [module.training for module in model.modules()], torch.get_rng_state(), images.clone()
    calls = Calls()

    def broken(net: nn.Module, batch: Tensor) -> None:
        calls(net, batch)
        if len(calls.sizes) == 2:  # one later than the first
            raise KeyboardInterrupt

    function(tasks.bank, model, images)
    with pytest.raises(KeyboardInterrupt):
        function(tasks.bank, model, images, call=broken)
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert all(a is b for a, b in zip(model.buffers(), buffers, strict=True))
    assert [parameter.requires_grad for parameter in parameters] == wanted
    assert all(torch.equal(values, state[name]) for name, values in model.state_dict().items())
    assert torch.equal(model.first.atoms.grad, torch.ones_like(model.first.atoms))
    assert [module.training for module in model.modules()] == modes
    assert [len(module._forward_hooks) for module in model.modules()] == [int(m is model.drop) for m in model.modules()]
    for task, before in zip(tasks.bank.tasks, stored, strict=True):
        assert all(torch.equal(values, before[name]) for name, values in tasks.bank.entries(task).items())
    assert torch.equal(torch.get_rng_state(), luck)
    assert torch.equal(images, given)


@EVERY
def test_responses_on_a_gpu_agree_with_the_cpu(tasks, images, function):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    expected = function(tasks.bank, tasks.model, images)
    for bank, net in ((tasks.bank, tasks.model.cuda()), (tasks.bank.to("cuda"), tasks.model.cuda())):
        found = function(bank, net, images)
        for ours, theirs in zip(listed(found), listed(expected), strict=True):
            assert ours.device.type == "cpu"
            assert torch.allclose(ours, theirs, atol=1e-9)


# Mistakes


@EVERY
def test_responses_of_an_empty_bank_are_refused(empty, images, function):
    with pytest.raises(FsclError, match="the bank is empty; store a task first"):
        function(empty.bank, empty.model, images)


@EVERY
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": ["first", "fifth"]}, "Net has no layer 'fifth'; perhaps 'first'"),
        ({"layers": "body"}, "Net has no layer 'body'; perhaps"),
        ({"layers": []}, "layers is empty; a name, several, or None"),
        ({"positions": 0}, "positions is 0; None for all, or 1 or more would do"),
        ({"layers": ["second"], "call": lambda net, x: net.first(x)}, "layer 'second' is never called in a pass"),
        ({"layers": ["first"], "call": lambda net, x: net(x + net.first(x)[:, :2])}, "layer 'first' is called 2 times"),
    ],
)
def test_unknown_layers_and_options_of_responses_are_refused(tasks, images, function, options, message):
    with pytest.raises(FsclError, match=message):
        function(tasks.bank, tasks.model, images, **options)


@EVERY
def test_networks_of_another_architecture_are_refused(tasks, images, function):
    other = decompose(nn.Sequential(nn.Conv2d(2, 6, 3), nn.Flatten(), nn.Linear(150, 3)).double()).model
    with pytest.raises(
        FsclError, match=r"Sequential has no entry '\S+'; is it the network that the task was stored from\?"
    ):
        function(tasks.bank, other, images)


@pytest.mark.parametrize("function", [tangent_features, tangent_similarity])
def test_unknown_reference_tasks_are_refused(tasks, images, function):
    with pytest.raises(FsclError, match="task 3 is not in the bank; tasks: 0, 1, 2"):
        function(tasks.bank, tasks.model, images, reference=3)


def test_unknown_measures_of_responses_are_refused(tasks, images):
    with pytest.raises(FsclError, match=r"unknown metric 'cka'; known: linear_cka, .*aligned_cosine"):
        response_similarity(tasks.bank, tasks.model, images, "cka")


def test_response_similarity_of_several_measures_is_their_mean(tasks, images):
    bank, model = tasks.bank, tasks.model
    each = [response_similarity(bank, model, images, how, positions=4, per_layer=True) for how in READINGS]
    found = response_similarity(bank, model, images, READINGS, positions=4, per_layer=True)
    assert torch.allclose(found, sum(each) / 3)
    assert not torch.allclose(found, each[0])
    with pytest.raises(FsclError, match="no measure; one or more of linear_cka"):
        response_similarity(bank, model, images, ())
