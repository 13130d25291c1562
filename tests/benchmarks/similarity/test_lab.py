"""Tasks made of a data set, and networks over shared coefficients: what is drawn, what is turned, what learns."""

import copy

import pytest
import torch
from torch import Tensor, nn

from benchmarks.similarity.lab import (
    ARCHITECTURES,
    NORMAL,
    Budget,
    Images,
    Task,
    accuracy,
    bank_of,
    blank,
    fit,
    head_of,
    learn,
    start,
)
from fscl.atoms import AtomConv2d
from fscl.data.places import find_data
from fscl.errors import FsclError

TINY = Budget(images=64, epochs=2, first_epochs=2, batch=16)
KEPT = Budget(images=64, epochs=1, rate=1e-12, batch=16)  # learns nothing


def pixels_of(images: Tensor, name: str) -> Tensor:
    """Normalised images as whole pixel values again."""
    mean, deviation = (torch.tensor(values).view(1, -1, 1, 1) for values in NORMAL[name])
    return ((images * deviation + mean) * 255).round().long()


# tasks


@pytest.mark.parametrize("name", ["fmnist", "cifar100"])
def test_upright_images_are_those_of_the_data_set(data, name):
    source = Images(name, data)
    budget = Budget(images=70)
    task = source.rotated(0, budget, 3) if name == "fmnist" else source.of_classes(range(10), budget, 3)
    for images, labels, given in (
        (task.images, task.labels, source.train),
        (task.test_images, task.test_labels, source.test),
    ):
        margin = (32 - given.images.shape[-1]) // 2
        whole = nn.functional.pad(given.images, [margin] * 4).long().flatten(1)
        same = (pixels_of(images, name).flatten(1)[:, None] == whole).all(2)
        assert same.sum(1).tolist() == [1] * len(images)  # each is one of the data set
        assert len(set(same.long().argmax(1).tolist())) == len(images)  # none twice
        assert torch.equal(given.labels[same.long().argmax(1)], labels)
    assert len(task.images) == 70
    assert task.images.shape[1:] == (source.channels, 32, 32)


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_right_angles_turn_counter_clockwise(data, quarters):
    source, budget = Images("fmnist", data), Budget(images=20)
    upright, turned = source.rotated(0, budget, 5), source.rotated(90 * quarters, budget, 5)
    torch.testing.assert_close(turned.images, torch.rot90(upright.images, quarters, (2, 3)), rtol=0, atol=1e-3)
    torch.testing.assert_close(
        turned.test_images, torch.rot90(upright.test_images, quarters, (2, 3)), rtol=0, atol=1e-3
    )
    assert torch.equal(turned.labels, upright.labels)


def test_a_sharp_angle_goes_the_same_way_about_the_centre(data, monkeypatch):
    source = Images("fmnist", data)
    arm = torch.zeros_like(source.train.images)
    arm[:, :, 13:15, 14:] = 255  # from the centre to the right
    monkeypatch.setattr(source, "train", type(source.train)(arm, source.train.labels, source.train.classes))
    turned = pixels_of(source.rotated(30, Budget(images=1), 0).images, "fmnist")[0, 0].double()
    rows, columns = torch.meshgrid(torch.arange(32.0) - 15.5, torch.arange(32.0) - 15.5, indexing="ij")
    weight = turned / turned.sum()
    angle = torch.atan2(-(weight * rows).sum(), (weight * columns).sum()).rad2deg()  # rows count downwards
    assert float(angle) == pytest.approx(30, abs=1.5)


@pytest.mark.parametrize("name", ["fmnist", "cifar100"])
def test_classes_are_labelled_in_the_order_given(data, name):
    source = Images(name, data)
    classes = [7, 3, 9, 0, 2] if name == "fmnist" else [29, 3, 17, 0, 11, 5, 23, 8, 2, 14]
    task = source.of_classes(classes, Budget(images=1000), 0)
    margin = (32 - source.train.images.shape[-1]) // 2
    for images, labels in ((task.images, task.labels), (task.test_images, task.test_labels)):
        shown = pixels_of(images, name)[:, 0, margin, margin]  # the first pixel tells the class
        assert set(shown.tolist()) == set(classes)
        assert [classes[label] for label in labels.tolist()] == shown.tolist()
    assert len(task.images) == 20 * len(classes), "all there are, where they are fewer than wanted"


def test_draws_of_a_probe_depend_on_its_seed_alone(data):
    source, turns = Images("fmnist", data), (0, 77, 180)
    first = source.probe(30, 4, turns)
    torch.manual_seed(99)
    source.rotated(0, TINY, 0)
    assert torch.equal(source.probe(30, 4, turns), first)
    assert torch.equal(Images("fmnist", data).probe(30, 4, turns), first)
    assert not torch.equal(source.probe(30, 5, turns), first)
    assert not torch.equal(source.probe(30, 4, turns, train=True), first)


def test_a_probe_has_as_many_images_of_each_rotation(data):
    source = Images("fmnist", data)
    pixels = pixels_of(source.probe(30, 0, (0, 90, 180)), "fmnist")[:, 0]
    known = nn.functional.pad(source.test.images[:, 0], [2] * 4).long()
    for quarters in range(3):
        turned = torch.rot90(known, quarters, (1, 2)).flatten(1)
        distance = (pixels.flatten(1)[:, None] - turned).abs().amax(2).amin(1)
        assert int((distance <= 1).sum()) == 10


@pytest.mark.parametrize("name", ["fmnist", "cifar100"])
def test_real_images_have_mean_zero_and_variance_one(name):
    if find_data(name) is None:
        pytest.skip(f"no {name}: name its folder with FSCL_DATA")
    probe = Images(name, None).probe(2000, 0)
    inside = probe[:, :, 2:30, 2:30] if name == "fmnist" else probe  # its margin is no part of the data set
    assert inside.mean((0, 2, 3)).abs().max() < 0.05
    assert (inside.std((0, 2, 3)) - 1).abs().max() < 0.05


def test_unknown_images_and_networks_are_named():
    with pytest.raises(FsclError, match="unknown images 'mnist'; known: fmnist, cifar100"):
        Images("mnist", None)
    with pytest.raises(FsclError, match="unknown architecture 'vit'; known: plain, vgg, resnet"):
        blank("vit", 1)


# networks


@pytest.fixture
def task(data) -> Task:
    return Images("fmnist", data).rotated(0, TINY, 0)


def shared(model: nn.Module) -> dict[str, Tensor]:
    """Coefficients, and filters of the convolutions that stay whole."""
    names = {AtomConv2d: "coefficients", nn.Conv2d: "weight"}
    return {
        f"{path}.{names[type(module)]}": getattr(module, names[type(module)]).detach().clone()
        for path, module in model.named_modules()
        if type(module) in names
    }


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_first_task_trains_all_and_others_only_what_is_theirs(data, architecture):
    source, short = Images("fmnist", data), Budget(images=32, epochs=1, first_epochs=1, batch=16)
    torch.manual_seed(8)
    untrained = blank(architecture, 1)
    model, bank, reached = start(architecture, source.rotated(0, short, 0), short, 8)
    assert 0 <= reached <= 1
    assert (bank.tasks, bank.names) == ([0], ["0°"])
    frozen = shared(model)
    for name, value in shared(untrained).items():
        known, now = (v.double().flatten(0, 1).flatten(1) for v in (value, frozen[name]))
        # the gauge of coefficients may be another; what they span is not
        same = known @ torch.linalg.lstsq(known, now).solution if name.endswith("coefficients") else known
        assert (now - same).norm() > 1e-5 * known.norm(), name
    assert {name for name, p in model.named_parameters() if not p.requires_grad} == set(frozen)
    for name, value in frozen.items():
        if name.endswith("coefficients"):  # orthogonal and of one scale: a cosine of atoms is one of filters
            gram = value.flatten(0, 1).T @ value.flatten(0, 1)
            torch.testing.assert_close(gram / gram[0, 0], torch.eye(len(gram)), rtol=0, atol=1e-4)

    before = {name: value.clone() for name, value in model.state_dict().items()}
    learn(model, bank, source.rotated(90, short, 1), short, 1)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) == (name in frozen), name


def test_learning_is_reproducible_and_its_seed_matters(task):
    model, bank, _ = start("plain", task, TINY, 0)
    states = []
    for seed in (1, 1, 2):
        network = copy.deepcopy(model)
        torch.rand(seed)  # whatever was drawn before
        learn(network, bank, task, TINY, seed)
        states.append(network.state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert any(not torch.equal(value, states[2][name]) for name, value in states[0].items())


def test_the_order_of_images_alone_makes_a_difference(task):
    model, _, _ = start("plain", task, TINY, 0)
    states = []
    for seed in (1, 1, 2):
        network = copy.deepcopy(model)
        parameters = [p for p in network.parameters() if p.requires_grad]
        fit(network, task, parameters, TINY.epochs, TINY.rate, TINY, seed)
        states.append(network.state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert any(not torch.equal(value, states[2][name]) for name, value in states[0].items())


def test_a_task_has_a_fresh_head_over_the_atoms_that_it_begins_from(task):
    model, bank, _ = start("plain", task, TINY, 0)
    moved = copy.deepcopy(model)
    learn(moved, bank, task, TINY, 5)
    for begin_from, origin in ((None, moved), (0, model)):
        network = copy.deepcopy(moved)
        learn(network, bank, task, KEPT, 3, begin_from)
        assert not torch.allclose(head_of(network).weight, head_of(origin).weight, rtol=0, atol=1e-6)
        for layer, other in zip(network.modules(), origin.modules(), strict=True):
            if isinstance(layer, AtomConv2d):
                torch.testing.assert_close(layer.atoms, other.atoms, rtol=0, atol=1e-6)


def test_what_is_not_to_be_trained_is_not_moved(task):
    model, _, _ = start("plain", task, TINY, 0)
    before = copy.deepcopy(model.state_dict())
    fit(model, task, list(head_of(model).parameters()), TINY.epochs, TINY.rate, TINY, 0)
    after = dict(model.named_parameters())
    assert {name for name, value in after.items() if not torch.equal(value, before[name])} == {
        name for name in after if after[name].data_ptr() in {p.data_ptr() for p in head_of(model).parameters()}
    }


def test_with_an_optimizer_a_network_is_trained_in_float32_by_plain_steps(task):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(task.images.shape[1], 4, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 15 * 15, 10))
    expected = copy.deepcopy(model)
    given = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=TINY.decay)
    fit(model, task, [], 2, 0.01, TINY, 3, optimizer=given)
    optimizer = torch.optim.AdamW(expected.parameters(), lr=0.01, weight_decay=TINY.decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=8)
    generator = torch.Generator().manual_seed(3)
    for _ in range(2):
        for batch in torch.randperm(64, generator=generator).split(16):
            optimizer.zero_grad()
            nn.functional.cross_entropy(expected(task.images[batch]), task.labels[batch]).backward()
            optimizer.step()
            schedule.step()
    for name, value in model.state_dict().items():
        assert torch.equal(value, expected.state_dict()[name]), name


def test_every_step_is_counted(task):
    model, bank, _ = start("plain", task, TINY, 0)
    budget, steps = Budget(epochs=3, batch=20), []
    learn(model, bank, task, budget, 0, after_step=steps.append)
    assert steps == list(range(1, 10))  # of 64 images three whole batches an epoch
    assert budget.steps(task, 3) == 9


def test_accuracy_is_the_share_of_images_labelled_rightly():
    class Brightest(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            assert not self.training
            return images.flatten(1)

    labels = torch.randint(4, (1200,))
    images = nn.functional.one_hot(labels, 4).float().view(-1, 1, 2, 2)
    assert accuracy(Brightest(), images, labels) == 1
    assert accuracy(Brightest(), images, torch.where(torch.arange(1200) < 300, (labels + 1) % 4, labels)) == 0.75


@torch.no_grad()
@pytest.mark.parametrize("architecture", ["plain", "resnet"])
def test_a_bank_gives_every_network_back_exactly(data, architecture):
    source, short = Images("fmnist", data), Budget(images=32, epochs=1, first_epochs=1, batch=16)
    with torch.enable_grad():
        model, first, _ = start(architecture, source.rotated(0, short, 0), short, 0)
        networks = [copy.deepcopy(model)]
        for number in (1, 2):
            learn(model, first, source.rotated(50 * number, short, number), short, number)
            networks.append(copy.deepcopy(model))
        model.load_state_dict(networks[1].state_dict())
    bank = bank_of(model, [(f"task {k}", network.state_dict()) for k, network in enumerate(networks)])
    assert len(bank) == 3
    images, other = source.probe(8, 0), blank(architecture, 1)  # one that shares nothing yet
    for k in (2, 0, 1):
        bank.restore(other, bank.tasks[k])
        assert all(torch.equal(v, networks[k].state_dict()[name]) for name, v in other.state_dict().items())
        assert torch.equal(other.eval()(images), networks[k].eval()(images))
    assert torch.equal(model.eval()(images), networks[1](images)), "the network itself is left as it was"


def test_what_cannot_train_is_refused(task):
    with pytest.raises(FsclError, match="task '0°' has 64 images; a batch is 65"):
        start("plain", task, Budget(batch=65), 0)
    model, bank, _ = start("plain", task, TINY, 0)
    broken = Task("broken", task.images * float("inf"), task.labels, task.test_images, task.test_labels)
    with pytest.raises(FsclError, match="training on 'broken' ended with loss nan; lower the rate"):
        learn(model, bank, broken, TINY, 0)
