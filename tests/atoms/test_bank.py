import copy
import gc

import pytest
import torch
from torch import nn

from fscl.atoms import AtomBank, atom_layers, decompose, freeze_coefficients
from fscl.atoms.ownership import KINDS
from fscl.errors import FsclError
from fscl.similarity import similarity_matrix


def state_of(model):
    return {name: t.clone() for name, t in model.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_restore_gives_the_outputs_of_every_task_bit_for_bit(three_tasks):
    for task in (2, 0, 1, 0):
        three_tasks.bank.restore(three_tasks.model, task)
        assert torch.equal(three_tasks.say(three_tasks.model), three_tasks.outputs[task])
    assert not torch.equal(three_tasks.outputs[0], three_tasks.outputs[1])


def test_restore_into_a_new_network_gives_the_outputs_bit_for_bit(three_tasks):
    model = three_tasks.fresh()
    for task in (1, 2, 0):
        three_tasks.bank.restore(model, task)
        assert torch.equal(three_tasks.say(model), three_tasks.outputs[task])


def test_further_training_does_not_change_stored_tasks(three_tasks):
    entries = {n: t.clone() for n, t in three_tasks.bank.entries(2).items()}
    three_tasks.become_another()
    with torch.no_grad():
        for parameter in three_tasks.model.parameters():
            parameter.mul_(3)
    assert same(dict(three_tasks.bank.entries(2)), entries)


def test_a_network_is_unchanged_after_swapping(three_tasks):
    model, bank = three_tasks.model, three_tasks.bank
    three_tasks.become_another()
    before, parameters = state_of(model), dict(model.named_parameters())
    buffers = dict(model.named_buffers())
    stored = copy.deepcopy(bank.entries(0))
    with bank.swapped(model, 0) as shown:
        assert shown is model
        assert torch.equal(three_tasks.say(model), three_tasks.outputs[0])
        with bank.swapped(model, 1):
            assert torch.equal(three_tasks.say(model), three_tasks.outputs[1])
        assert torch.equal(three_tasks.say(model), three_tasks.outputs[0])
    assert same(state_of(model), before)
    assert all(p is parameters[n] for n, p in model.named_parameters())  # an optimizer still holds them
    assert all(b is buffers[n] for n, b in model.named_buffers())
    assert same(bank.entries(0), stored)


def test_a_network_is_unchanged_after_an_exception_while_swapped(three_tasks):
    before = state_of(three_tasks.model)
    with pytest.raises(ZeroDivisionError), three_tasks.bank.swapped(three_tasks.model, 0):
        1 / 0  # noqa: B018
    assert same(state_of(three_tasks.model), before)


def test_a_network_that_lacks_an_entry_is_unchanged_after_swapping_fails(three_tasks):
    model = three_tasks.model
    model.classifier = nn.Sequential(nn.Linear(8, 3))
    before = state_of(model)
    with (
        pytest.raises(FsclError, match=r"Net has no entry 'classifier\.weight'; is it the network"),
        three_tasks.bank.swapped(model, 0),
    ):
        pass
    assert same(state_of(model), before)


def test_swapping_works_after_modules_were_replaced_and_heads_grew(three_tasks):
    model, bank = three_tasks.model, three_tasks.bank
    with bank.swapped(model, 0):
        pass
    model.norm, model.classifier = copy.deepcopy(model.norm), nn.Linear(8, 7)
    own = dict(model.named_parameters())
    with bank.swapped(model, 1):
        assert torch.equal(three_tasks.say(model), three_tasks.outputs[1])
    assert all(p is own[n] for n, p in model.named_parameters())
    model.norm.running_var = None
    with pytest.raises(FsclError, match=r"Net has no entry 'norm\.running_var'"), bank.swapped(model, 2):
        pass
    assert all(p is own[n] for n, p in model.named_parameters())
    model.norm = None
    with pytest.raises(FsclError, match=r"Net has no entry 'norm\.weight'"), bank.swapped(model, 2):
        pass


def test_swapping_uses_the_same_frozen_parameters_each_time(three_tasks):
    model, bank = three_tasks.model, three_tasks.bank
    shown = []
    for _ in range(2):
        with bank.swapped(model, 1):
            shown.append(dict(model.named_parameters()))
            assert isinstance(model.first.atoms, nn.Parameter)
            assert not isinstance(model.norm.running_mean, nn.Parameter)
            assert not any(p.requires_grad for n, p in model.named_parameters() if n in bank.entries(1))
            assert model.first.atoms.data_ptr() == bank.atoms(1)["first"].data_ptr()
    assert all(shown[0][name] is shown[1][name] for name in shown[0])


def test_a_module_with_two_names_is_swapped_and_put_back(three_tasks):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.one = self.other = nn.Conv2d(1, 8, 3)
            self.head = nn.Linear(8, 2)

    model = decompose(Twice()).model
    freeze_coefficients(model)
    bank, own = AtomBank(model), model.one.atoms
    bank.store(model, 0)
    with bank.swapped(model, 0):
        assert model.other.atoms is model.one.atoms is not own
    assert model.other.atoms is own


def test_memory_is_the_bytes_of_the_entries_that_belong_to_a_task(three_tasks, of_a_task):
    bank = three_tasks.bank
    values = {n: t.numel() * t.element_size() for n, t in three_tasks.model.state_dict().items()}
    expected = {kind: sum(values[n] for n in names) for kind, names in of_a_task.items()}
    assert bank.memory() == bank.memory(1) == expected
    assert tuple(bank.memory()) == KINDS
    coefficients = sum(layer.coefficients.numel() * 4 for layer in atom_layers(three_tasks.model).values())
    rest = sum(values.values()) - sum(expected.values()) - coefficients
    assert bank.shared_memory() == {"coefficients": coefficients, "other": rest}
    # the shared entries and the entries of a task are the whole network, each once
    assert set(bank.shared).isdisjoint(bank.entries(0))
    assert set(bank.shared) | set(bank.entries(0)) == set(values)
    stored = [*bank.shared.values(), *(t for task in bank.tasks for t in bank.entries(task).values())]
    assert sum(t.untyped_storage().nbytes() for t in stored) == sum(t.nbytes for t in stored)


def test_stack_gram_and_similarity_agree_with_the_stored_atoms(three_tasks):
    bank = three_tasks.bank
    assert bank.tasks == [0, 1, 2]
    assert bank.names == ["task 0", "task 1", "task 2"]
    assert bank.layers == ["first", "second"]
    assert len(bank) == 3
    assert 2 in bank
    assert 3 not in bank
    stack = bank.stack("second")
    assert stack.shape == (3, 9, 3, 3)
    assert torch.equal(stack[1], bank.atoms(1)["second"])
    filters = torch.einsum("oim,tmhw->toihw", bank.shared["second.coefficients"].double(), stack.double()).flatten(1)
    expected = torch.stack([torch.cosine_similarity(f[None], filters) for f in filters]).float()
    for metric in ("cosine", "filter"):
        found = bank.similarity(metric, "mean", layers=["second"])
        assert torch.allclose(found, expected, rtol=0, atol=1e-6)
    coefficients = bank.shared["first.coefficients"].double()
    assert torch.allclose(bank.gram("first"), torch.einsum("oim,oin->mn", coefficients, coefficients), atol=1e-12)


def test_nearest_returns_the_most_similar_tasks_in_order(three_tasks):
    bank, model = three_tasks.bank, three_tasks.model
    bank.restore(model, 1)
    with torch.no_grad():
        model.second.atoms.add_(1e-3)
    bank.store(model, 7)
    assert bank.nearest(7) == [1]
    assert bank.nearest(1) == [7]
    similarity = similarity_matrix(bank)[3, :3]
    order = bank.nearest(7, k=3)
    assert order == similarity.argsort(descending=True).tolist()
    for k in (0, 4):
        with pytest.raises(FsclError, match=f"k is {k}; the bank holds 3 other tasks"):
            bank.nearest(0, k=k)


def test_storing_a_task_again_replaces_it_and_keeps_its_position(three_tasks):
    three_tasks.become_another()
    three_tasks.bank.store(three_tasks.model, 0)
    assert three_tasks.bank.tasks == [0, 1, 2]
    three_tasks.bank.restore(three_tasks.model, 1)
    three_tasks.bank.restore(three_tasks.model, 0)
    assert not torch.equal(three_tasks.say(three_tasks.model), three_tasks.outputs[0])


def test_store_refuses_a_network_with_other_coefficients(three_tasks):
    with torch.no_grad():
        three_tasks.model.second.coefficients[0, 0, 0] += 1e-6
    with pytest.raises(FsclError, match=r"second\.coefficients of this network differs from the bank's.*new bank"):
        three_tasks.bank.store(three_tasks.model, 3)
    with pytest.raises(FsclError, match=r"first\.coefficients of this network differs"):
        three_tasks.bank.store(three_tasks.fresh(), 3)
    with pytest.raises(FsclError, match=r"first\.coefficients of this network differs"):
        three_tasks.bank.store(nn.Linear(3, 2), 3)
    assert three_tasks.bank.tasks == [0, 1, 2]


def test_errors_of_unknown_tasks_layers_and_heads_list_the_known_ones(three_tasks):
    bank = three_tasks.bank
    for call in (bank.entries, bank.atoms, bank.memory, bank.nearest, lambda t: bank.restore(three_tasks.model, t)):
        with pytest.raises(FsclError, match="task 5 is not in the bank; tasks: 0, 1, 2"):
            call(5)
    for call in (bank.stack, bank.gram):
        with pytest.raises(FsclError, match="the bank has no layer 'third'; layers: first, second"):
            call("third")
    with pytest.raises(FsclError, match="unknown layer 'third'"):
        bank.similarity(layers=["third"])
    with pytest.raises(FsclError, match="Net has no atom layers"):
        AtomBank(type("Net", (nn.Linear,), {})(1, 1))
    with pytest.raises(FsclError, match="head 'fc' is no module or entry of Net"):
        AtomBank(three_tasks.model, heads=["fc"])
    empty = AtomBank(three_tasks.model)
    with pytest.raises(FsclError, match="task 0 is not in the bank; tasks: none yet"):
        empty.entries(0)
    with pytest.raises(FsclError, match="the bank is empty"):
        empty.stack("first")
    assert sum(empty.memory().values()) == 0


def test_a_bank_moved_to_another_device_is_separate_from_the_first(three_tasks):
    bank = three_tasks.bank
    moved = bank.to("meta")
    tensors = [*moved.shared.values(), *(t for task in moved.tasks for t in moved.entries(task).values())]
    assert {t.device.type for t in tensors} == {"meta"}
    assert (moved.tasks, moved.names, moved.fingerprint) == (bank.tasks, bank.names, bank.fingerprint)
    assert moved.memory() == bank.memory()
    here = bank.to("cpu")
    here.store(three_tasks.model, 3)
    assert bank.tasks == [0, 1, 2]
    here.restore(three_tasks.model, 1)
    assert torch.equal(three_tasks.say(three_tasks.model), three_tasks.outputs[1])


def test_banks_over_the_same_coefficients_can_be_merged(three_tasks):
    other = AtomBank(three_tasks.model)
    three_tasks.become_another()
    other.store(three_tasks.model, 2, "two")
    expected = three_tasks.say(three_tasks.model)
    other.store(three_tasks.model, 9, "nine")
    merged = three_tasks.bank.merge(other)
    assert merged.tasks == [0, 1, 2, 3, 9]
    assert merged.names == ["task 0", "task 1", "task 2", "two", "nine"]
    assert merged.fingerprint == three_tasks.bank.fingerprint
    for task, outputs in [*enumerate(three_tasks.outputs), (3, expected)]:
        merged.restore(three_tasks.model, task)
        assert torch.equal(three_tasks.say(three_tasks.model), outputs)
    assert three_tasks.bank.tasks == [0, 1, 2]
    merged.store(three_tasks.model, 0)  # changes neither of those it was made of
    three_tasks.bank.restore(three_tasks.model, 0)
    assert torch.equal(three_tasks.say(three_tasks.model), three_tasks.outputs[0])


def test_merging_banks_over_different_coefficients_is_refused(three_tasks):
    model = three_tasks.fresh()
    freeze_coefficients(model)
    with pytest.raises(
        FsclError, match=r"different coefficients .* cannot be compared; compare tasks of one bank, or "
    ):
        three_tasks.bank.merge(AtomBank(model))


def test_merging_banks_with_different_shared_parameters_is_refused(three_tasks):
    with torch.no_grad():
        three_tasks.model.hidden.weight.add_(1)
    other = AtomBank(three_tasks.model)
    other.store(three_tasks.model, 5)
    assert other.fingerprint == three_tasks.bank.fingerprint
    with pytest.raises(FsclError, match=r"'hidden\.weight' differs"):
        three_tasks.bank.merge(other)


class MultiHead(nn.Module):
    """Heads in a ModuleDict, added when tasks arrive. Each head has a buffer."""

    def __init__(self, widths):
        super().__init__()
        self.body = nn.Conv2d(1, 8, 3)
        self.heads = nn.Module()
        self.heads.classifiers = nn.ModuleDict()
        for task, width in widths.items():
            self.add(task, width)

    def add(self, task, width):
        self.heads.classifiers[str(task)] = nn.Linear(8, width)
        self.heads.register_buffer(f"mask_{task}", torch.ones(width, dtype=torch.int8))

    def forward(self, x, task):
        out = self.heads.classifiers[str(task)](torch.relu(self.body(x)).mean((2, 3)))
        return out * getattr(self.heads, f"mask_{task}")


def head_of(task):
    return [f"heads.classifiers.{task}", f"heads.mask_{task}"]


def test_each_task_has_its_head_and_restore_makes_a_missing_head():
    x = torch.randn(3, 1, 6, 6)
    model = decompose(MultiHead({0: 2})).model
    freeze_coefficients(model)
    bank = AtomBank(model, heads=["heads"])
    outputs = {}
    for task, width in ((0, 2), (1, 2), (2, 4)):
        if task:
            model.add(task, width)
        with torch.no_grad():
            model.body.atoms.add_(torch.randn_like(model.body.atoms))
            model.heads.classifiers[str(task)].weight.add_(1)
        bank.store(model, task, head=head_of(task))
        outputs[task] = model(x, task)
        assert {n for n in bank.entries(task) if n.startswith("heads")} == {
            f"heads.classifiers.{task}.weight",
            f"heads.classifiers.{task}.bias",
            f"heads.mask_{task}",
        }
        assert bank.memory(task)["head"] == (8 * 4 + 4 + 1) * width
    fresh = decompose(MultiHead({0: 2})).model
    for task in (2, 1, 0):
        bank.restore(fresh, task)
        assert torch.equal(fresh(x, task), outputs[task])
    for task in (0, 1, 2):  # every head is there now
        bank.restore(fresh, task)
        assert torch.equal(fresh(x, task), outputs[task])
    assert fresh.heads.classifiers["2"].out_features == 4


def test_normalisation_inside_a_head_belongs_only_to_the_task_of_the_head():
    model = decompose(MultiHead({0: 2, 1: 2})).model
    for task in ("0", "1"):
        model.heads.classifiers[task] = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 2))
    freeze_coefficients(model)
    bank = AtomBank(model, heads=["heads"])
    bank.store(model, 0, head=head_of(0))
    assert {n for n in bank.entries(0) if ".1." in n} == {"heads.classifiers.0.1.weight", "heads.classifiers.0.1.bias"}
    assert bank.memory(0)["normalisation"] == 0
    assert bank.memory(0)["head"] == 4 * (8 + 8 + 16 + 2) + 2


def test_restore_refuses_a_network_of_another_shape(three_tasks):
    model = decompose(nn.Sequential(nn.Conv2d(1, 8, 3))).model
    with pytest.raises(FsclError, match=r"Sequential has no entry 'first\.coefficients'; is it the network"):
        three_tasks.bank.restore(model, 0)
    narrower = three_tasks.fresh()
    narrower.norm = nn.BatchNorm2d(4)
    with pytest.raises(FsclError, match=r"norm\.\w+ of Net has no place for a tensor of shape \(8,\)"):
        three_tasks.bank.restore(narrower, 0)


def test_a_bank_does_not_keep_its_network_in_memory(three_tasks):
    import weakref

    model = three_tasks.fresh()
    freeze_coefficients(model)
    bank = AtomBank(model)
    bank.store(model, 0)
    watch = weakref.ref(model)
    del model
    gc.collect()
    assert watch() is None
    assert bank.stack("first").grad_fn is None


def test_entries_named_as_own_are_stored_with_each_task(three_tasks, tmp_path):
    model, x = three_tasks.model, three_tasks.x
    shared = AtomBank(model).shared_memory()
    bank = AtomBank(model, own=["hidden", "pointwise.weight"])
    said = []
    for task in range(3):
        three_tasks.become_another()
        with torch.no_grad():
            model.hidden.weight.normal_()
            model.hidden.bias.normal_()
            model.pointwise.weight.normal_()
        bank.store(model, task)
        said.append(three_tasks.say(model))
    bank.save(tmp_path / "bank.safetensors")
    for found in (bank, AtomBank.load(tmp_path / "bank.safetensors")):
        assert "hidden.weight" not in found.shared
        for task in (1, 0, 2):
            found.restore(model, task)
            assert torch.equal(three_tasks.say(model), said[task])
            with found.swapped(model, (task + 1) % 3):
                assert torch.equal(model(x), said[(task + 1) % 3])
        own = 4 * (8 * 8 + 8 + 8 * 8)
        assert found.memory()["other"] == 4 * (8 + 8) + own
        assert found.shared_memory() == shared | {"other": shared["other"] - own}
        found.store(model, 7)  # and what is its own stays so
        assert found.entries(7).keys() == found.entries(0).keys()
        assert found.merge(bank).tasks[:4] == [0, 1, 2, 7]


def test_own_refuses_unknown_names_and_coefficients(three_tasks):
    with pytest.raises(FsclError, match=r"own entry 'hiden' is no module or entry of Net"):
        AtomBank(three_tasks.model, own=["hiden"])
    with pytest.raises(FsclError, match=r"first\.coefficients cannot be a task's own: coefficients are what tasks sh"):
        AtomBank(three_tasks.model, own=["first"])


def test_merging_banks_that_share_different_entries_is_refused(three_tasks):
    one, other = AtomBank(three_tasks.model), AtomBank(three_tasks.model, own=["hidden.weight"])
    for bank in (one, other):
        bank.store(three_tasks.model, 0)
    for first, second in ((one, other), (other, one)):
        with pytest.raises(FsclError, match=r"'hidden\.weight' differs between these banks"):
            first.merge(second)


def test_a_bank_is_used_like_a_mapping_from_tasks_to_their_entries() -> None:
    model = decompose(nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(16, 2))).model
    bank = AtomBank(model)
    for task, name in ((3, "<b>cats"), (1, "dogs")):
        nn.init.normal_(model[0].atoms)
        bank.store(model, task, name=name)
    assert list(bank) == [3, 1]
    assert 3 in bank
    assert torch.tensor(3) in bank  # bank[torch.tensor(3)] is a task, and bank[3.0] is none
    assert not any(other in bank for other in (2, 3.0, "3", [3], None))
    assert {task: set(bank[task]) for task in bank} == {task: set(bank.entries(task)) for task in (3, 1)}
    assert torch.equal(bank[1]["0.atoms"], model[0].atoms)
    assert "&lt;b&gt;cats" in bank._repr_html_()
    del bank[3]
    assert list(bank) == [1]
    assert torch.equal(bank.stack("0")[0], model[0].atoms)
    with pytest.raises(FsclError, match="task 3 is not in the bank; tasks: 1"):
        del bank[3]


@pytest.mark.parametrize("num_atoms", [4, 9, 12])
def test_a_bank_makes_a_network_from_the_one_before_decomposition(num_atoms: int) -> None:
    def build() -> nn.Module:
        layers = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 5), nn.Flatten(), nn.Linear(24, 2)
        return nn.Sequential(*layers)

    model = decompose(build(), num_atoms).model
    bank = AtomBank(model)
    for task in (0, 1):
        for layer in (0, 3):
            nn.init.normal_(model[layer].atoms)
        bank.store(model, task)
    x, plain = torch.randn(3, 1, 8, 8), build()
    before = plain.eval()(x)
    for task in (0, 1):
        assert torch.equal(bank.network(plain, task)(x), bank.network(model, task)(x))
    assert torch.equal(plain(x), before)
    with pytest.raises(FsclError, match="Sequential has no convolution '3'; give the network whose atoms"):
        bank.network(nn.Sequential(nn.Conv2d(1, 4, 3)), 0)
