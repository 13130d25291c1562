"""Which state of a network a bank stores, which changes of shared state it refuses, and what it warns of."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from fscl.atoms import AtomBank, decompose, freeze_coefficients
from fscl.errors import FsclError


class Statistics(nn.Module):
    """A user's own normalisation. It holds its running mean in one of several ways."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        zeros = torch.zeros(1, 4, 1, 1)
        if kind == "attribute":
            self.mean = zeros
        elif kind == "list":
            self.means = [zeros]
        elif kind == "dict of arrays":
            self.means = {"all": {"mean": zeros.numpy()}}
        elif kind == "array":
            self.mean = zeros.numpy()
        elif kind == "float":
            self.mean = 0.0
        else:
            self.register_buffer("mean", zeros, persistent=kind == "buffer")

    def forward(self, x):
        mean = x.detach().mean((0, 2, 3), keepdim=True)
        if self.kind == "list":
            if self.training:
                self.means[0] = mean
            return x - self.means[0]
        if self.kind == "dict of arrays":
            if self.training:
                self.means["all"]["mean"] = mean.numpy()
            return x - torch.from_numpy(self.means["all"]["mean"])
        if self.training:
            self.mean = mean.numpy() if self.kind == "array" else float(mean.mean()) if self.kind == "float" else mean
        return x - (torch.from_numpy(self.mean) if self.kind == "array" else self.mean)


def network(*modules):
    net = nn.Sequential(nn.Conv2d(1, 4, 3), *modules, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3))
    model = decompose(net).model
    model.train()(torch.randn(8, 1, 9, 9))
    freeze_coefficients(model)
    return model


def pass_of_training(model):
    """Changes a network as training does when the shared parameters are frozen."""
    model.train()(2 + torch.randn(8, 1, 9, 9))
    with torch.no_grad():
        model[0].atoms.add_(torch.randn_like(model[0].atoms))


def batch_renorm():
    from avalanche.models.batch_renorm import BatchRenorm2D

    return BatchRenorm2D(4)


def counting_scale():
    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

        def forward(self, x):
            self.steps += self.training
            return x / (1 + self.steps)

    return Scale()


KEPT = {
    "buffer": lambda: Statistics("buffer"),
    "buffer that is not saved": lambda: Statistics("hidden buffer"),
    "plain tensor": lambda: Statistics("attribute"),
    "Avalanche's BatchRenorm2D": batch_renorm,
    "integer buffer": counting_scale,
    "instance norm": lambda: nn.InstanceNorm2d(4, track_running_stats=True),
    "RMSNorm": lambda: nn.RMSNorm(7),
    "spectral norm's vectors": lambda: parametrizations.spectral_norm(nn.Conv2d(4, 4, 1)),
    "old spectral norm's vectors": lambda: nn.utils.spectral_norm(nn.Conv2d(4, 4, 1)),
}


@pytest.mark.filterwarnings("ignore:.*cannot be kept.*:UserWarning")  # BatchRenorm2D's limits of training
@pytest.mark.parametrize("kind", KEPT)
def test_state_that_changes_in_forward_passes_is_restored_with_its_task(kind, tmp_path):
    model, x = network(KEPT[kind]()), torch.randn(4, 1, 9, 9)
    bank, outputs = AtomBank(model), []
    for task in range(3):
        pass_of_training(model)
        bank.store(model, task)
        outputs.append(model.eval()(x).detach())
    assert not torch.equal(outputs[0], outputs[1])
    bank.save(tmp_path / "bank.safetensors")
    for kept in (bank, AtomBank.load(tmp_path / "bank.safetensors")):
        for task in (1, 0, 2):
            with kept.swapped(model, task):
                assert torch.equal(model.eval()(x), outputs[task])
            kept.restore(model, task)
            assert torch.equal(model.eval()(x), outputs[task])


@pytest.mark.parametrize("kind", ["float", "array", "list", "dict of arrays"])
def test_store_warns_of_plain_values_that_changed_and_cannot_be_stored(kind):
    model = network(Statistics(kind))
    bank = AtomBank(model)
    pass_of_training(model)
    with pytest.warns(UserWarning, match=r"1\.means? changed since the bank was made and cannot be kept: Statistics"):
        bank.store(model, 0)


def test_store_does_not_warn_of_plain_values_that_did_not_change():
    model = network(Statistics("buffer"), nn.Dropout(0.2), nn.BatchNorm2d(4, momentum=0.3))
    bank = AtomBank(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for task in range(2):
            pass_of_training(model)
            bank.store(model, task)


class Scale(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4, 1, 1))

    def forward(self, x):
        return x * self.scale


SHARED = {
    "1x1 convolution": (lambda: nn.Conv2d(4, 4, 1), "1.weight"),
    "transposed convolution": (lambda: nn.ConvTranspose2d(4, 4, 3), "1.weight"),
    "parameter of a module of one's own": (Scale, "1.scale"),
    "hidden layer": (lambda: nn.Sequential(nn.Linear(7, 7)), "1.0.weight"),
    "bias of a hidden layer": (lambda: nn.Sequential(nn.Linear(7, 7)), "1.0.bias"),
    "PReLU": (lambda: nn.PReLU(4), "1.weight"),
    "weight-normed convolution": (
        lambda: parametrizations.weight_norm(nn.Conv2d(4, 4, 1)),
        "1.parametrizations.weight.original0",
    ),
    "coefficients": (nn.Identity, "0.coefficients"),
}


@pytest.mark.parametrize("kind", SHARED)
def test_store_refuses_a_changed_shared_parameter_by_name(kind):
    make, name = SHARED[kind]
    model = network(make())
    bank = AtomBank(model)
    bank.store(model, 0)
    before = dict(bank.entries(0))
    with torch.no_grad():
        model.get_parameter(name).view(-1)[0] += 1e-3
    with pytest.raises(FsclError, match=rf"^{name} of this network differs from the bank's"):
        bank.store(model, 1)
    assert bank.tasks == [0]
    assert all(torch.equal(bank.entries(0)[entry], before[entry]) for entry in before)


def test_stored_tasks_are_intact_after_the_whole_network_was_trained_further():
    model, x = network(nn.Conv2d(4, 4, 1)), torch.randn(4, 1, 9, 9)
    bank = AtomBank(model)
    bank.store(model, 0)
    said = model.eval()(x).detach()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1)
    moved = model(x).detach()
    assert not torch.equal(moved, said)
    with bank.swapped(model, 0):
        assert torch.equal(model(x), said)
    assert torch.equal(model(x), moved)


def test_a_parameter_named_as_own_may_change_between_tasks():
    model, x = network(nn.Conv2d(4, 4, 1)), torch.randn(4, 1, 9, 9)
    bank = AtomBank(model, own=["1"])
    bank.store(model, 0)
    said = model.eval()(x).detach()
    with torch.no_grad():
        model[1].weight.add_(1)
    bank.store(model, 1)
    bank.restore(model, 0)
    assert torch.equal(model(x), said)


def test_store_refuses_a_parameter_that_the_bank_does_not_know():
    model = network(nn.Identity())
    bank = AtomBank(model)
    model[1] = nn.Conv2d(4, 4, 1, bias=False)
    with pytest.raises(FsclError, match=r"^1\.weight of this network was not there when the bank was made"):
        bank.store(model, 0)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("name", ["0.atoms", "1.weight", "4.bias", "0.bias"])
def test_store_refuses_a_diverged_task_and_names_the_entry(name, value):
    model = network(nn.BatchNorm2d(4))
    bank = AtomBank(model)
    with torch.no_grad():
        model.get_parameter(name).view(-1)[-1] = value
    with pytest.raises(FsclError, match=rf"^{name} is not finite: training has diverged"):
        bank.store(model, 0)


def test_store_refuses_nan_statistics_and_accepts_masks_of_infinity():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("mask", torch.tensor(-torch.inf))

        def forward(self, x):
            return torch.maximum(x, self.mask)

    model = network(nn.BatchNorm2d(4), Masked())
    bank = AtomBank(model)
    bank.store(model, 0)
    model[1].running_mean[0] = torch.nan
    with pytest.raises(FsclError, match=r"^1\.running_mean is not finite"):
        bank.store(model, 1)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_bank_refuses_a_diverged_network_and_does_not_freeze_it(value):
    model = decompose(nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(16, 2))).model
    before = model[0].atoms.detach().clone()
    with torch.no_grad():
        model[2].weight[0, 0] = value
    with pytest.raises(FsclError, match=r"2\.weight is not finite: training has diverged"):
        freeze_coefficients(model)
    assert torch.equal(model[0].atoms, before)


@pytest.mark.parametrize("label", [np.int64(3), np.uint8(3), torch.tensor(3), np.array(3), True + 2])
def test_integers_of_every_library_are_accepted_as_task_labels(label, tmp_path):
    model = network()
    bank = AtomBank(model)
    bank.store(model, label)
    assert bank.tasks == [3]
    assert type(bank.tasks[0]) is int
    assert bank.names == ["3"]
    bank.save(tmp_path / "bank.safetensors")
    assert AtomBank.load(tmp_path / "bank.safetensors").entries(label).keys() == bank.entries(3).keys()


@pytest.mark.parametrize("label", ["cats", 1.0, None, np.float32(1), (1,), torch.zeros(2)])
def test_task_labels_that_are_not_integers_are_refused(label):
    model = network()
    bank = AtomBank(model)
    for call in (lambda: bank.store(model, label), lambda: bank.entries(label), lambda: bank.nearest(label)):
        with pytest.raises(FsclError, match=r"task label is .*; an integer would do"):
            call()
