"""The state of learners is saved as plain data and restored; anything else is refused."""

import copy
from collections import defaultdict

import pytest
import torch
from avalanche.benchmarks.utils import make_avalanche_dataset
from avalanche.benchmarks.utils.data_attribute import TensorDataAttribute
from avalanche.benchmarks.utils.flat_data import FlatData
from avalanche.benchmarks.utils.utils import concat_datasets
from avalanche.training.storage_policy import ClassBalancedBuffer, ReservoirSamplingBuffer
from torch import nn

from fscl.atoms import AtomBank
from fscl.continual.stream import split_classes
from fscl.continual.training.learner_state import Codec, stored_bytes
from fscl.errors import FsclError


@pytest.fixture
def model(network):
    return network()


@pytest.fixture
def codec(stream, model):
    return Codec(stream, lambda: model)


def through_a_file(value, path):
    torch.save(value, path / "state.pt")
    return torch.load(path / "state.pt", map_location="cpu", weights_only=True)


def exemplars(stream):
    """Exemplars of all tasks, in no order, some of them twice."""
    parts = [stream.train_stream[e].dataset for e in (2, 0, 1)]
    data = concat_datasets(parts)
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(1))[:50].tolist()
    return data.subset([*order, *order[:5]])


def same_samples(one, other):
    return len(one) == len(other) and all(
        torch.equal(a[0], b[0]) and a[1:3] == b[1:3] for a, b in zip(one, other, strict=True)
    )


def test_exemplars_are_restored_from_a_stream_built_anew(stream, digits, model, codec, tmp_path):
    data = exemplars(stream)
    written = through_a_file(codec.encode(data, "memory"), tmp_path)
    anew = split_classes(*digits, tasks=[["0", "1"], ["2", "3"], ["4", "5"]])
    found = Codec(anew, lambda: model).decode(written, "cpu")
    assert same_samples(found.eval(), data.eval())
    assert [int(t) for t in found.targets] == [int(t) for t in data.targets]
    assert [int(t) for t in found.targets_task_labels] == [int(t) for t in data.targets_task_labels]
    assert stored_bytes(written) == 55 * (8 * 8 + 8)


def test_restored_exemplars_are_augmented_as_before(digits, model):
    augmented = [split_classes(*digits, tasks=5, crop_padding=2, flip=True) for _ in range(2)]
    data = augmented[0].train_stream[3].dataset.subset([5, 0, 7])
    found = Codec(augmented[1], lambda: model).decode(Codec(augmented[0], lambda: model).encode(data, "memory"), "cpu")
    draws = []
    for samples in (data, found):
        torch.manual_seed(0)
        draws.append(torch.stack([x for x, *_ in samples]))
    assert torch.equal(*draws)
    assert not torch.equal(draws[0], torch.stack([x for x, *_ in data.eval()]))


def test_logits_attached_to_exemplars_are_restored(stream, codec, tmp_path):
    data = exemplars(stream)
    notes = torch.arange(2.0 * len(data)).view(-1, 2)
    attribute = TensorDataAttribute(FlatData([list(notes)]), name="logits", use_in_getitem=True)
    noted = make_avalanche_dataset(data, data_attributes=[attribute]).subset([4, 1, 30])
    written = codec.encode(noted, "memory")
    found = codec.decode(through_a_file(written, tmp_path), "cpu")
    assert torch.equal(torch.stack([sample[3] for sample in found]), notes[[4, 1, 30]])
    assert same_samples(found.eval(), data.subset([4, 1, 30]).eval())
    assert stored_bytes(written) == 3 * (8 * 8 + 8 + 2 * 4)


def test_an_empty_exemplar_buffer_is_restored(codec, tmp_path):
    found = codec.decode(through_a_file(codec.encode(ReservoirSamplingBuffer(5), "memory"), tmp_path), "cpu")
    assert (len(found.buffer), found.max_size) == (0, 5)


def test_a_restored_buffer_updates_as_the_original_does(stream, codec, tmp_path):
    buffer = ClassBalancedBuffer(20)
    buffer.update_from_dataset(stream.train_stream[0].dataset)
    found = codec.decode(through_a_file(codec.encode(buffer, "memory"), tmp_path), "cpu")
    assert type(found) is ClassBalancedBuffer
    for memory in (buffer, found):
        torch.manual_seed(2)
        memory.update_from_dataset(stream.train_stream[1].dataset)
    assert same_samples(found.buffer.eval(), buffer.buffer.eval())


def test_exemplars_that_are_not_of_the_stream_are_refused(stream, digits, model):
    other = split_classes(*digits, tasks=5)
    with pytest.raises(FsclError, match=r"Buffer\.memory holds images that are not training images of the stream"):
        Codec(stream, lambda: model).encode(other.train_stream[0].dataset, "Buffer.memory")


def test_a_former_network_is_saved_as_a_snapshot(model, codec, tmp_path):
    former = copy.deepcopy(model).eval()
    for name, parameter in former.named_parameters():
        parameter.requires_grad_("classifier" in name)
    written = codec.encode(former, "Plugin.teacher")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
        next(former.parameters()).zero_()  # what was written is a snapshot
    found = codec.decode(through_a_file(written, tmp_path), "cpu")
    assert found is not model
    assert not found.training
    state = found.state_dict()
    assert all(torch.equal(t, state[n]) for n, t in former.state_dict().items() if n != next(iter(state)))
    assert float(next(found.parameters()).detach().abs().sum()) > 0
    assert {n for n, p in found.named_parameters() if p.requires_grad} == {
        n for n, _ in found.named_parameters() if "classifier" in n
    }


def test_a_foreign_network_is_refused_and_a_module_without_tensors_stays_as_built(codec, model):
    with pytest.raises(FsclError, match=r"Plugin\.net is a Linear other than the strategy's network"):
        codec.encode(nn.Linear(2, 2), "Plugin.net")
    own = nn.CrossEntropyLoss()
    assert codec.decode(codec.encode(nn.CrossEntropyLoss(), "Plugin.loss"), "cpu", own) is own


def test_containers_keep_their_types(codec, tmp_path):
    value = {1: [torch.ones(2), (None, "a")], "b": defaultdict(set, {0: {1, 2}}), "c": {True}, "d": 0.5}
    found = codec.decode(through_a_file(codec.encode(value, "x"), tmp_path), "cpu")
    assert torch.equal(found[1].pop(0), value[1].pop(0))
    assert found == value
    assert found["b"][7] == set()
    assert isinstance(found[1][0], tuple)


def test_a_bank_is_saved_as_plain_data(codec, tmp_path):
    net = nn.Sequential(nn.Conv2d(1, 2, 3))
    from fscl.atoms import decompose, freeze_coefficients

    net = decompose(net).model
    freeze_coefficients(net)
    bank = AtomBank(net)
    bank.store(net, 0)
    found = codec.decode(through_a_file(codec.encode(bank, "x"), tmp_path), "cpu")
    assert found.tasks == [0]


@pytest.mark.parametrize(
    "name", ["os:system", "avalanche.training.plugins:EWCPlugin", "avalanche.training.storage_policy:random", "x"]
)
def test_a_checkpoint_that_names_another_class_is_refused(codec, name):
    with pytest.raises(FsclError, match="which is not a helper class of a learner"):
        codec.decode({"fscl: object": name, "attributes": {}}, "cpu")


@pytest.mark.parametrize("value", [iter([]), object(), {"a": {"b": [lambda: 0]}}, {object(): 1}])
def test_values_that_are_not_plain_data_are_refused(codec, value):
    with pytest.raises(FsclError, match=r"Plugin\.it (is a|has a) .*which a checkpoint cannot hold as plain data"):
        codec.encode(value, "Plugin.it")
