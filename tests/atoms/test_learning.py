"""A training loop of one's own: what a bank freezes, what a task trains, and that every task comes back."""

import copy

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torchvision.models import resnet18

from fscl import AtomBank, FsclError, decompose, freeze_coefficients
from fscl.atoms import atom_layers
from fscl.atoms.entries import live_state


class Net(nn.Module):
    """What tasks share beside coefficients: a 1x1 convolution, a hidden linear layer, a bare parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.second, self.down = nn.Conv2d(12, 16, 3, stride=2, padding=1), nn.Conv2d(12, 16, 1, stride=2)
        self.hidden, self.head = nn.Linear(16 * 16, 32), nn.Linear(32, 2)
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, images: Tensor) -> Tensor:
        x = self.norm(self.first(images)).relu()
        x = (self.second(x) + self.down(x)).relu().flatten(1)
        return self.head(self.hidden(x).relu() * self.scale)


def digits(classes: tuple[int, int]) -> tuple[Tensor, Tensor]:
    found = load_digits()
    of_task = torch.tensor((found.target == classes[0]) | (found.target == classes[1]))
    labels = torch.tensor(found.target == classes[1]).long()
    return torch.tensor(found.images / 16, dtype=torch.float32)[of_task, None], labels[of_task]


TASKS = [digits(classes) for classes in ((0, 1), (2, 3), (4, 5))]


def fit(model: nn.Module, task: tuple[Tensor, Tensor], parameters: list[nn.Parameter], epochs: int = 4) -> None:
    optimizer = torch.optim.SGD(parameters, 0.1, momentum=0.9, weight_decay=1e-3)
    model.train()
    for _ in range(epochs):
        for images, labels in zip(task[0].split(32), task[1].split(32), strict=True):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()


@torch.no_grad()
def outputs(model: nn.Module, task: tuple[Tensor, Tensor]) -> Tensor:
    return model.eval()(task[0])


def accuracy(model: nn.Module, task: tuple[Tensor, Tensor]) -> float:
    return float((outputs(model, task).argmax(1) == task[1]).float().mean())


@pytest.fixture
def learned() -> tuple[nn.Module, AtomBank]:
    """A network that has learned its first task, and the bank of it."""
    torch.manual_seed(0)
    model = decompose(Net()).model
    fit(model, TASKS[0], list(model.parameters()))
    bank = AtomBank(model)
    bank.store(model, 0)
    return model, bank


def test_every_task_of_a_plain_loop_comes_back_bit_for_bit(learned: tuple[nn.Module, AtomBank]) -> None:
    model, bank = learned
    expected = [outputs(model, TASKS[0])]
    for task in (1, 2):
        bank.begin(model, start=0)
        fit(model, TASKS[task], bank.parameters(model))
        bank.store(model, task)
        expected.append(outputs(model, TASKS[task]))
    for task in (0, 2, 1):
        bank.restore(model, task)
        assert torch.equal(outputs(model, TASKS[task]), expected[task])
        assert accuracy(model, TASKS[task]) > 0.95
        with bank.swapped(model, 0) as first:
            assert torch.equal(outputs(first, TASKS[0]), expected[0])
        assert torch.equal(outputs(bank.network(model, task), TASKS[task]), expected[task])


def test_a_torchvision_resnet_with_1x1_downsampling_comes_back_bit_for_bit() -> None:
    torch.manual_seed(0)
    net = resnet18(num_classes=2)
    model = decompose(net).model
    batches = [(torch.randn(8, 3, 32, 32), torch.randint(2, (8,))) for _ in range(2)]
    fit(model, batches[0], list(model.parameters()), epochs=1)
    bank = AtomBank(model)
    bank.store(model, 0)
    before = outputs(model, batches[0])
    bank.begin(model, start=0)
    fit(model, batches[1], bank.parameters(model), epochs=2)
    bank.store(model, 1)
    assert not torch.equal(outputs(model, batches[0]), before)
    bank.restore(model, 0)
    assert torch.equal(outputs(model, batches[0]), before)
    with torch.no_grad():
        model.layer2[0].downsample[0].weight.add_(1e-3)
    with pytest.raises(FsclError, match=r"^layer2\.0\.downsample\.0\.weight of this network differs from the bank's"):
        bank.store(model, 2)
    with pytest.raises(FsclError, match=r"^layer2\.0\.downsample\.0\.weight of this network differs from the bank's"):
        bank.begin(model, start=0)


def test_a_bank_changes_no_output_and_freezes_what_tasks_share() -> None:
    torch.manual_seed(0)
    model = decompose(Net().double()).model
    images = TASKS[0][0].double()
    with torch.no_grad():
        before = model.eval()(images)
    bank = AtomBank(model)
    with torch.no_grad():
        assert torch.allclose(model(images), before, atol=1e-12)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained.isdisjoint(bank.shared)
    assert {"down.weight", "hidden.weight", "hidden.bias", "scale", "first.coefficients"} <= bank.shared.keys()
    assert trained == {
        "first.atoms", "first.bias", "norm.weight", "norm.bias", "second.atoms", "second.bias", "down.bias",
        "head.weight", "head.bias",
    }  # fmt: skip


def test_an_optimizer_of_all_parameters_moves_nothing_that_tasks_share(learned: tuple[nn.Module, AtomBank]) -> None:
    """Neither its decay nor the momentum that it has of the first task, for both need a gradient."""
    torch.manual_seed(0)
    model = decompose(Net()).model
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=0.1)
    for task in (0, 1):
        nn.functional.cross_entropy(model(TASKS[task][0]), TASKS[task][1]).backward()
        optimizer.step()
        if task == 0:
            bank = AtomBank(model)
            bank.begin(model)
            atoms = model.first.atoms.clone()
    bank.store(model, 1)
    assert not torch.equal(model.first.atoms, atoms)


def test_a_task_starts_from_another_with_a_fresh_head(learned: tuple[nn.Module, AtomBank]) -> None:
    model, bank = learned
    bank.begin(model, start=0)
    fit(model, TASKS[1], bank.parameters(model))
    bank.store(model, 1)
    fit(model, TASKS[1], bank.parameters(model))  # further, so that the network is neither task
    bank.begin(model, start=0)
    state, first = live_state(model), bank.entries(0)
    heads = [name for name in first if name.startswith("head.")]
    assert all(torch.equal(state[name], first[name]) for name in first if name not in heads)
    assert not any(torch.equal(state[name], entries[name]) for name in heads for entries in (first, bank.entries(1)))
    bank.begin(model, start=1, fresh_head=False)
    assert all(torch.equal(state[name], bank.entries(1)[name]) for name in first if name not in heads)
    before = {name: state[name].clone() for name in first}
    bank.begin(model, fresh_head=False)
    assert all(torch.equal(state[name], before[name]) for name in first)


def test_gradients_and_flags_are_those_of_the_new_task_alone(learned: tuple[nn.Module, AtomBank]) -> None:
    model, bank = learned
    model.requires_grad_(True)
    nn.functional.cross_entropy(model(TASKS[1][0]), TASKS[1][1]).backward()
    bank.begin(model, start=0)
    own = {id(parameter) for parameter in bank.parameters(model)}
    for parameter in model.parameters():
        assert parameter.requires_grad == (id(parameter) in own)
        assert parameter.requires_grad or parameter.grad is None


def test_of_several_heads_a_task_trains_its_own(learned: tuple[nn.Module, AtomBank]) -> None:
    class TwoHeads(Net):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.ModuleDict({"a": nn.Linear(32, 2), "b": nn.Linear(32, 5)})

        def forward(self, images: Tensor, head: str = "a") -> Tensor:
            x = self.norm(self.first(images)).relu()
            x = (self.second(x) + self.down(x)).relu().flatten(1)
            return self.head[head](self.hidden(x).relu() * self.scale)

    torch.manual_seed(0)
    model = decompose(TwoHeads()).model
    bank = AtomBank(model, heads=["head"])
    bank.store(model, 0, head=["head.a"])
    other = model.head["a"].weight.clone()
    bank.begin(model, start=0, head=["head.b"])
    assert not model.head["a"].weight.requires_grad
    assert model.head["b"].weight.requires_grad
    assert torch.equal(model.head["a"].weight, other)
    ids = {id(parameter) for parameter in bank.parameters(model, head=["head.b"])}
    assert id(model.head["b"].weight) in ids
    assert id(model.head["a"].weight) not in ids


def test_a_head_of_another_size_is_a_module_in_its_place(learned: tuple[nn.Module, AtomBank]) -> None:
    model, bank = learned
    model.head = nn.Linear(32, 7)
    bank.begin(model, start=0)
    bank.store(model, 1)
    assert bank.network(model, 0)(TASKS[0][0]).shape[1] == 2
    assert bank.network(model, 1)(TASKS[0][0]).shape[1] == 7


def test_a_network_of_a_task_is_a_copy(learned: tuple[nn.Module, AtomBank]) -> None:
    model, bank = learned
    before = copy.deepcopy(model.state_dict())
    network = bank.network(model.train(), 0)
    assert model.training
    assert not any(module.training for module in network.modules())
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert any(bool(tensor.any()) for tensor in bank.entries(0).values())


def test_a_head_that_cannot_begin_anew_is_named(learned: tuple[nn.Module, AtomBank]) -> None:
    class Bare(Net):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Identity()
            self.last = nn.Parameter(torch.randn(32, 2))

        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images) @ self.last

    model = decompose(Bare()).model
    bank = AtomBank(model, heads=["last"])
    with pytest.raises(FsclError, match=r"head 'last' has no reset_parameters; initialise it yourself"):
        bank.begin(model)
    bank.begin(model, fresh_head=False)
    assert model.last.requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_gauge_that_is_fixed_stays_to_the_bit(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = decompose(resnet18(num_classes=2).to(dtype)).model
    freeze_coefficients(model)
    before = copy.deepcopy(model.state_dict())
    freeze_coefficients(model)
    AtomBank(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with torch.no_grad():  # and where it is not fixed any more, it is fixed again
        atom_layers(model)["conv1"].coefficients[0, 0, 0] *= 1.01
    freeze_coefficients(model)
    gram = atom_layers(model)["conv1"].gram()
    assert (gram - gram.diagonal().mean() * torch.eye(len(gram), dtype=dtype)).abs().max() < 1e-5 * gram.max()
