"""A plain training loop: what a bank freezes, what a task trains, and that every task is restored."""

import copy

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.utils import prune
from torchvision.models import resnet18

from fscl import AtomBank, FsclError, decompose, freeze_coefficients
from fscl.atoms import atom_layers
from fscl.atoms.entries import live_state


class Net(nn.Module):
    """A network with shared parameters besides coefficients: a 1x1 convolution, a hidden linear layer, a parameter."""

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


def test_every_task_of_a_plain_training_loop_is_restored_bit_for_bit(learned: tuple[nn.Module, AtomBank]) -> None:
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


def test_a_torchvision_resnet_with_1x1_downsampling_is_restored_bit_for_bit() -> None:
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


def test_an_optimizer_of_all_parameters_does_not_change_shared_parameters(learned: tuple[nn.Module, AtomBank]) -> None:
    """Neither weight decay nor momentum of the first task moves them, because both need a gradient."""
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


def test_begin_starts_from_another_task_with_a_fresh_head(learned: tuple[nn.Module, AtomBank]) -> None:
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


def test_after_begin_only_parameters_of_the_new_task_need_gradients(learned: tuple[nn.Module, AtomBank]) -> None:
    model, bank = learned
    model.requires_grad_(True)
    nn.functional.cross_entropy(model(TASKS[1][0]), TASKS[1][1]).backward()
    bank.begin(model, start=0)
    own = {id(parameter) for parameter in bank.parameters(model)}
    for parameter in model.parameters():
        assert parameter.requires_grad == (id(parameter) in own)
        assert parameter.requires_grad or parameter.grad is None


def test_a_task_trains_only_its_own_head_of_several(learned: tuple[nn.Module, AtomBank]) -> None:
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


def test_a_head_of_another_size_can_replace_the_head_between_tasks(learned: tuple[nn.Module, AtomBank]) -> None:
    model, bank = learned
    model.head = nn.Linear(32, 7)
    bank.begin(model, start=0)
    bank.store(model, 1)
    assert bank.network(model, 0)(TASKS[0][0]).shape[1] == 2
    assert bank.network(model, 1)(TASKS[0][0]).shape[1] == 7


def test_network_returns_a_copy_that_is_independent_of_the_model(learned: tuple[nn.Module, AtomBank]) -> None:
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


def test_begin_names_a_head_that_cannot_initialise_itself(learned: tuple[nn.Module, AtomBank]) -> None:
    class Bare(Net):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Identity()
            self.last = nn.Parameter(torch.randn(32, 2))

        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images) @ self.last

    model = decompose(Bare()).model
    bank = AtomBank(model, heads=["last"])
    with pytest.raises(FsclError, match=r"head 'last' cannot initialise itself .*; initialise it yourself"):
        bank.begin(model)
    bank.begin(model, fresh_head=False)
    assert model.last.requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_fixing_a_fixed_gauge_changes_no_bit(dtype: torch.dtype) -> None:
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


# what must not damage a task


def as_stored(bank: AtomBank, task: int) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in (bank.shared | bank.entries(task)).items()}


def write_begin(model: nn.Module, bank: AtomBank) -> None:
    bank.begin(model, start=1)


def write_fit(model: nn.Module, bank: AtomBank) -> None:
    bank.begin(model)
    fit(model, TASKS[1], bank.parameters(model), epochs=1)


def write_restore(model: nn.Module, bank: AtomBank) -> None:
    bank.restore(model, 1)


def write_statistics(model: nn.Module, bank: AtomBank) -> None:
    model.train()(TASKS[1][0])


def write_lower_precision(model: nn.Module, bank: AtomBank) -> None:
    for name in ("norm", "head"):
        getattr(model, name).bfloat16().float()


@pytest.mark.parametrize("write", [write_begin, write_fit, write_restore, write_statistics, write_lower_precision])
def test_writing_to_a_swapped_network_does_not_change_the_bank(learned: tuple[nn.Module, AtomBank], write) -> None:
    model, bank = learned
    bank.begin(model, start=0)
    fit(model, TASKS[1], bank.parameters(model))
    bank.store(model, 1)
    before, mine = as_stored(bank, 0), {name: t.clone() for name, t in live_state(model).items()}
    with bank.swapped(model, 0):
        write(model, bank)
    assert all(torch.equal(tensor, before[name]) for name, tensor in as_stored(bank, 0).items())
    assert not any(tensor.requires_grad for tensor in bank.entries(0).values())
    assert all(torch.equal(tensor, mine[name]) for name, tensor in live_state(model).items())


def test_writing_to_shared_tensors_of_a_swapped_network_is_an_error(learned: tuple[nn.Module, AtomBank]) -> None:
    model, bank = learned

    def write() -> None:
        with bank.swapped(model, 0), torch.no_grad():
            model.hidden.weight.mul_(2)

    with pytest.raises(FsclError, match=r"^hidden\.weight was written to while the network was swapped"):
        write()


class HeadsOfTasks(Net):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.ModuleDict({"0": nn.Linear(32, 2)})
        self.task = "0"

    def forward(self, images: Tensor) -> Tensor:
        x = self.norm(self.first(images)).relu()
        x = (self.second(x) + self.down(x)).relu().flatten(1)
        return self.head[self.task](self.hidden(x).relu())


def test_a_head_added_for_a_task_is_stored_with_that_task() -> None:
    torch.manual_seed(0)
    model = decompose(HeadsOfTasks()).model
    bank = AtomBank(model, heads=["head"])
    bank.store(model, 0)
    model.head["1"], model.task = nn.Linear(32, 2), "1"
    bank.begin(model, start=0)
    fit(model, TASKS[1], bank.parameters(model), epochs=1)
    bank.store(model, 1)
    expected = outputs(model, TASKS[1])
    with torch.no_grad():
        model.head["1"].weight.zero_()
    bank.restore(model, 0)  # the head of another task beside it does no harm
    assert torch.equal(outputs(bank.network(model, 1), TASKS[1]), expected)


def deeper(model: nn.Module) -> None:
    model.head = nn.Sequential(model.head[0], nn.ReLU(), nn.Linear(2, 2))


def with_bias(model: nn.Module) -> None:
    model.head[0] = nn.Linear(32, 2)


def with_norm(model: nn.Module) -> None:
    model.extra = nn.BatchNorm1d(2)


@pytest.mark.parametrize("change", [deeper, with_bias, with_norm])
def test_restore_refuses_a_network_with_parameters_that_the_task_did_not_have(change) -> None:
    class Deep(Net):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Sequential(nn.Linear(32, 2, bias=False))

    model = decompose(Deep()).model
    bank = AtomBank(model, heads=["head"])
    bank.store(model, 0)
    change(model)
    says = r"of this network was not there when the task was stored, and would change what it computes"
    for restore in (bank.restore, bank.network, lambda *of: bank.swapped(*of).__enter__()):
        with pytest.raises(FsclError, match=says):
            restore(model, 0)


def test_restore_refuses_a_network_in_another_precision(learned: tuple[nn.Module, AtomBank]) -> None:
    model, bank = learned
    lower = copy.deepcopy(model).bfloat16()
    for restore in (bank.restore, bank.network, lambda *of: bank.swapped(*of).__enter__()):
        with pytest.raises(FsclError, match=r"is torch\.bfloat16 in this network and torch\.float32 in the bank"):
            restore(lower, 0)


def test_network_refuses_to_copy_a_network_whose_hooks_hold_its_modules(learned: tuple[nn.Module, AtomBank]) -> None:
    model, bank = learned
    head = model.head
    model.hidden.register_forward_hook(lambda module, inputs, output: output + head.weight.sum())
    with pytest.raises(FsclError, match=r"holds a part of the network, which a copy would share with it"):
        bank.network(model, 0)
    bank.restore(model, 0)


@pytest.mark.parametrize("part", ["coefficients", "atoms"])
def test_freeze_coefficients_refuses_layers_that_share_only_one_factor(part: str) -> None:
    torch.manual_seed(0)
    model = decompose(nn.Sequential(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 2))).model
    setattr(model[1], part, getattr(model[0], part))
    with pytest.raises(FsclError, match=rf"0 and 1 share {part} but not their other factor"):
        AtomBank(model)


@pytest.mark.parametrize("part", ["coefficients", "atoms"])
def test_freeze_coefficients_refuses_pruned_factors(part: str) -> None:
    model = decompose(Net()).model
    prune.l1_unstructured(model.second, part, amount=0.3)
    with pytest.raises(FsclError, match=rf"second\.{part} is computed by pruning or a parametrisation"):
        AtomBank(model)


def test_a_layer_of_zeros_can_be_trained_in_later_tasks() -> None:
    torch.manual_seed(0)
    net = Net()
    nn.init.zeros_(net.second.weight)
    model = decompose(net).model
    bank = AtomBank(model)
    bank.store(model, 0)
    bank.begin(model, start=0)
    fit(model, TASKS[1], bank.parameters(model))
    assert model.second.weight.abs().max() > 0


def test_a_bank_warns_of_a_network_without_a_linear_layer_for_a_head() -> None:
    net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.warns(UserWarning, match=r"no nn\.Linear that could be a task's head.*name the heads"):
        AtomBank(decompose(net).model)
    bank = AtomBank(model := decompose(net).model, heads=["2"])
    assert {id(model[2].weight)} <= {id(parameter) for parameter in bank.parameters(model)}


@pytest.mark.parametrize(
    ("head", "says"),
    [
        (["heds"], r"'heds' is no head of Net; its heads: head"),
        (["first"], r"'first' is no head of Net"),
        ("head", r"head is the text 'head'; a list of names would do, such as \['head'\]"),
    ],
)
def test_begin_and_store_refuse_a_wrong_head_and_change_nothing(
    learned: tuple[nn.Module, AtomBank], head, says: str
) -> None:
    model, bank = learned
    before = copy.deepcopy(model.state_dict())
    for call in (bank.begin, bank.parameters, lambda m, head: bank.store(m, 1, head=head)):
        with pytest.raises(FsclError, match=says):
            call(model, head=head)
    with pytest.raises(FsclError, match="is the text '10'"):
        AtomBank(model, heads="10")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_tied_parameter_cannot_be_both_shared_and_own() -> None:
    net = Net()
    net.head = nn.Linear(32, 32)
    net.between = nn.Linear(32, 32)
    net.between.weight = net.head.weight
    model = decompose(net).model
    with pytest.raises(FsclError, match=r"head\.weight and between\.weight are one parameter, which tasks would both"):
        AtomBank(model, heads=["head"])


def test_a_parameter_tied_between_heads_is_trained_with_each_head() -> None:
    net = HeadsOfTasks()
    net.head["1"] = nn.Linear(32, 2)
    net.head["1"].weight = net.head["0"].weight
    model = decompose(net).model
    bank = AtomBank(model, heads=["head"])
    bank.begin(model, head=["head.1"])
    assert model.head["1"].weight.requires_grad
    assert id(model.head["1"].weight) in {id(parameter) for parameter in bank.parameters(model, head=["head.1"])}


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_begin_refuses_a_fresh_head_whose_weight_is_computed() -> None:
    net = Net()
    net.head = nn.utils.spectral_norm(net.head)
    bank = AtomBank(model := decompose(net).model)
    with pytest.raises(FsclError, match=r"head 'head' cannot initialise itself"):
        bank.begin(model)


def test_begin_drops_the_gradients_of_the_previous_task(learned: tuple[nn.Module, AtomBank]) -> None:
    model, bank = learned
    nn.functional.cross_entropy(model(TASKS[0][0]), TASKS[0][1]).backward()
    bank.begin(model, start=0)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_bank_refuses_a_spatial_convolution_in_a_head() -> None:
    with pytest.raises(FsclError, match=r"second cannot be part of a head: its coefficients are what tasks share"):
        AtomBank(decompose(Net()).model, heads=["second", "head"])


def test_a_wrapper_of_the_network_is_refused_by_name(learned: tuple[nn.Module, AtomBank]) -> None:
    model, bank = learned
    with pytest.raises(FsclError, match=r"DataParallel has no entry '.*'; give the network that the bank was"):
        bank.parameters(nn.DataParallel(model))


def test_cosine_of_atoms_is_the_cosine_of_filters_in_low_precision() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(128, 128, 3), nn.Flatten(), nn.Linear(128, 2)).bfloat16()
    model = decompose(net).model
    with torch.no_grad():  # as it is when an atom layer is made
        model[0].coefficients.normal_(std=0.03)
    bank = AtomBank(model)
    for task in range(2):
        with torch.no_grad():
            model[0].atoms.normal_()
        bank.store(model, task)
    cosine, filters = (bank.similarity(metric)[0, 1] for metric in ("cosine", "filter"))
    assert abs(cosine - filters) < 1e-4
