import warnings

import pytest
import torch
from avalanche.benchmarks import benchmark_from_datasets, with_classes_timeline, with_task_labels
from avalanche.benchmarks.utils import DataAttribute, _make_taskaware_tensor_classification_dataset
from avalanche.benchmarks.utils.data_loader import TaskBalancedDataLoader
from avalanche.core import SupervisedPlugin
from avalanche.training import DER, Cumulative, Naive
from avalanche.training.plugins import EWCPlugin, LwFPlugin, ReplayPlugin
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from fscl.continual import ConvNet, ImageTransform, InMemoryLoader, build_network, loader, split_classes
from fscl.continual.loader import InMemoryBatches, Unservable, batches
from fscl.errors import FsclError


class Batches(SupervisedPlugin):
    """Keeps every mini-batch of training, and the classes of the loaders."""

    supports_distributed = False

    def __init__(self):
        super().__init__()
        self.epochs, self.loaders, self.evaluated = [], [], []

    def before_training_epoch(self, strategy, **kwargs):
        self.epochs.append([])
        self.loaders.append(type(strategy.dataloader))

    def before_training_iteration(self, strategy, **kwargs):
        self.epochs[-1].append([part.clone() for part in strategy.mbatch])

    def after_eval_iteration(self, strategy, **kwargs):
        self.evaluated.append([part.clone() for part in strategy.mbatch])


def rows(x):
    """The images as a sorted list, which does not depend on their order."""
    return sorted(map(tuple, x.flatten(1).tolist()))


def test_each_image_is_cropped_to_its_own_random_window():
    images = torch.randint(1, 256, (64, 3, 6, 5), dtype=torch.uint8)
    transform = ImageTransform([0.0] * 3, [1.0] * 3, crop_padding=2)
    cropped = (transform(images) * 255).round().to(torch.uint8)
    offsets = []
    for image, crop in zip(images, cropped, strict=True):
        padded = F.pad(image, (2, 2, 2, 2))
        found = [(i, j) for i in range(5) for j in range(5) if torch.equal(padded[:, i : i + 6, j : j + 5], crop)]
        assert len(found) == 1
        offsets += found
    assert len(set(offsets)) > 15  # of 25
    assert {i for i, _ in offsets} == {j for _, j in offsets} == set(range(5))


def test_flips_mirror_about_half_of_the_images():
    images = torch.randint(0, 256, (400, 1, 4, 4), dtype=torch.uint8)
    plain, flipped = ImageTransform([0.5], [0.5]), ImageTransform([0.5], [0.5], flip=True)
    out, straight = flipped(images), plain(images)
    mirrored = (out == straight.flip(-1)).flatten(1).all(1)
    assert bool((mirrored | (out == straight).flatten(1).all(1)).all())
    assert 150 < int(mirrored.sum()) < 250  # five deviations


def test_normalisation_follows_its_formula_and_keeps_the_input():
    images = torch.randint(0, 256, (8, 3, 4, 4), dtype=torch.uint8)
    mean, std = [0.1, 0.5, 0.7], [0.2, 0.3, 0.4]
    transform = ImageTransform(mean, std)
    expected = (images.double() / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    assert torch.allclose(transform(images).double(), expected, rtol=0, atol=1e-6)
    assert transform(images).dtype == torch.float32
    assert images.dtype == torch.uint8
    before = images.clone()
    ImageTransform(mean, std, crop_padding=1, flip=True)(images)
    assert torch.equal(images, before)


@pytest.mark.parametrize(("crop_padding", "flip"), [(0, False), (2, False), (0, True), (3, True)])
def test_transforming_a_batch_equals_transforming_single_images_to_the_bit(crop_padding, flip):
    images = torch.randint(0, 256, (50, 3, 6, 5), dtype=torch.uint8)
    transform = ImageTransform([0.1, 0.5, 0.7], [0.2, 0.3, 0.4], crop_padding, flip)
    torch.manual_seed(3)
    together, drawn_next = transform(images), torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(torch.stack([transform(image) for image in images]), together)
    assert torch.rand(1) == drawn_next
    torch.manual_seed(4)
    assert torch.equal(transform(images), together) == (not crop_padding and not flip)


def test_evaluation_batches_equal_those_of_torch_s_loader_to_the_bit(stream):
    data = stream.test_stream[1].dataset.eval()
    ordinary = list(DataLoader(data, batch_size=7, collate_fn=data.collate_fn))
    ours = batches(data, 7)
    assert isinstance(ours, InMemoryBatches)
    assert len(ours) == len(ordinary) == 6
    for a, b in zip(ours, ordinary, strict=True):
        assert len(a) == len(b) == 3
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


LEARNERS = {
    "fine-tuning": (Naive, lambda ours: ours),
    "all data so far": (Cumulative, lambda ours: ours),
    "replay before it": (Naive, lambda ours: [ReplayPlugin(mem_size=20), *ours]),
    "replay after it": (Naive, lambda ours: [*ours, ReplayPlugin(mem_size=20)]),
    "replay by task": (Naive, lambda ours: [ReplayPlugin(20, 16, 16, task_balanced_dataloader=True), *ours]),
    "penalties": (Naive, lambda ours: [*ours, EWCPlugin(1.0), LwFPlugin(1.0, 2.0)]),
}


@pytest.mark.filterwarnings("error:Avalanche loads the images")
@pytest.mark.parametrize("options", [{}, {"drop_last": True}, {"shuffle": False}])
@pytest.mark.parametrize("name", LEARNERS)
def test_training_with_the_in_memory_loader_equals_training_without_to_the_bit(digits, network, name, options):
    """Three augmented tasks of three epochs have equal images, order and random numbers afterwards."""
    stream = split_classes(*digits, tasks=[["0", "1"], ["2", "3"], ["4", "5"]], crop_padding=1, flip=True)
    kind, arrange = LEARNERS[name]
    ends = []
    for ours in ([], [InMemoryLoader()]):
        torch.manual_seed(5)
        model, seen = network(), Batches()
        strategy = kind(
            model=model,
            optimizer=torch.optim.SGD(model.parameters(), 0.05, 0.9),
            criterion=nn.CrossEntropyLoss(),
            train_mb_size=16,
            train_epochs=3,
            eval_mb_size=32,
            plugins=[*arrange(ours), seen],
            evaluator=None,
        )
        for experience in stream.train_stream:
            strategy.train(experience, **options)
        strategy.eval(list(stream.test_stream))
        assert all((kind is InMemoryBatches) == bool(ours) for kind in seen.loaders)
        ends.append((model.state_dict(), torch.rand(1), [*seen.epochs, seen.evaluated]))
    (a, drawn, batches_a), (b, drawn_too, batches_b) = ends
    assert drawn == drawn_too
    assert all(torch.equal(a[n], b[n]) for n in a)
    for x, y in zip(batches_a, batches_b, strict=True):
        assert all(torch.equal(p, q) for m, n in zip(x, y, strict=True) for p, q in zip(m, n, strict=True))
    assert not torch.equal(batches_a[0][0][0], batches_a[1][0][0])  # each epoch has images, or an order, of its own


def test_outputs_are_as_wide_as_the_widest_head(digits, learner):
    """With either loader a multi-head network has as many outputs as its widest head."""
    stream = split_classes(*digits, tasks=[["0", "1", "2"], ["3", "4"]])
    widths = []
    for ours in ([], [InMemoryLoader()]):
        model = build_network("convnet", (1, 8, 8), 3, {"widths": [8], "pool_after": [0]})
        said = Said()
        strategy = learner("naive", model, plugins=[*ours, said], train_epochs=1)
        for experience in stream.train_stream:
            strategy.train(experience)
        widths.append(said.widths)
    assert widths[0] == widths[1] == {3}


class Said(SupervisedPlugin):
    supports_distributed = False

    def __init__(self):
        super().__init__()
        self.widths = set()

    def after_training_iteration(self, strategy, **kwargs):
        assert strategy.mb_task_id.shape == strategy.mb_y.shape  # whatever the network was given
        self.widths.add(strategy.mb_output.shape[1])


class Mixing(SupervisedPlugin):
    """Adds samples of the task before to each mini-batch, as rehearsal does."""

    supports_distributed = False

    def __init__(self):
        super().__init__()
        self.kept = None

    def before_training_iteration(self, strategy, **kwargs):
        if strategy.experience.current_experience == 0:
            self.kept = [part[:4].clone() for part in strategy.mbatch]
        else:
            strategy.mbatch = [torch.cat(pair) for pair in zip(strategy.mbatch, self.kept, strict=True)]


def test_samples_that_a_plugin_adds_train_the_head_of_their_task(learner, stream):
    ends = []
    for ours in ([], [InMemoryLoader()]):
        strategy = learner("naive", plugins=[*ours, Mixing()])
        strategy.train(stream.train_stream[0])
        head = strategy.model.classifier.classifiers["0"].classifier.weight.clone()
        strategy.train(stream.train_stream[1])
        assert not torch.equal(head, strategy.model.classifier.classifiers["0"].classifier.weight)
        ends.append(strategy.model.state_dict())
    assert all(torch.equal(ends[0][n], ends[1][n]) for n in ends[0])


def test_der_and_networks_with_several_outputs_train_with_the_in_memory_loader(digits, network):
    """DER appends to the labels within a step; some networks return more than one tensor."""
    stream = split_classes(*digits, tasks=[["0", "1"], ["2", "3"]])
    model = ConvNet(1, 2, widths=(8,), pool_after=(0,))
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    strategy = DER(model=model, optimizer=optimizer, mem_size=20, train_mb_size=16, plugins=[InMemoryLoader()])
    for experience in stream.train_stream:
        strategy.train(experience)

    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = ConvNet(1, 2, widths=(8,), pool_after=(0,))

        def forward(self, x):
            return self.inner(x), x

    model = Pair()
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    criterion = lambda out, y: nn.functional.cross_entropy(out[0], y)  # noqa: E731
    Naive(
        model=model,
        optimizer=optimizer,
        criterion=criterion,
        train_mb_size=16,
        plugins=[InMemoryLoader()],
        evaluator=None,
    ).train(stream.train_stream[0])


def test_a_loader_with_its_own_iteration_is_not_replaced(stream):
    class EverySecond(TaskBalancedDataLoader):
        def __iter__(self):
            yield from list(super().__iter__())[::2]

    with pytest.raises(Exception, match="EverySecond is an unknown loader"):
        InMemoryBatches(EverySecond(stream.train_stream[0].dataset, batch_size=16), torch.device("cpu"))


def test_images_keep_their_labels_through_the_in_memory_loader(learner, digits, stream):
    seen = Batches()
    learner("naive", plugins=[InMemoryLoader(), seen]).train(stream.train_stream[2])
    data = stream.train_stream[2].dataset.eval()
    label = {tuple(data[i][0].flatten().tolist()): data[i][1] for i in range(len(data))}
    for x, y, task in seen.epochs[0]:
        assert [label[tuple(row)] for row in x.flatten(1).tolist()] == y.tolist()
        assert set(task.tolist()) == {2}


def test_training_images_are_augmented_and_evaluated_ones_are_not(digits, learner):
    stream = split_classes(*digits, tasks=[["0", "1"]], crop_padding=1, flip=True)
    seen = Batches()
    strategy = learner("naive", plugins=[InMemoryLoader(), seen])
    strategy.train(stream.train_stream[0])
    data = stream.train_stream[0].dataset.eval()
    plain = set(rows(torch.stack([data[i][0] for i in range(len(data))])))
    first, second = (set(rows(torch.cat([x for x, _, _ in epoch]))) for epoch in seen.epochs)
    assert len(first & plain) < len(plain) / 2
    assert first != second
    strategy.eval(list(stream.test_stream))
    test = stream.test_stream[0].dataset.eval()
    assert torch.equal(seen.evaluated[0][0], torch.stack([test[i][0] for i in range(len(test))]))


def test_subsets_and_mixtures_keep_their_order_of_samples(stream):
    first, second = (e.dataset.eval() for e in stream.train_stream[:2])
    for data in (first.subset([5, 1, 1, 2]), first.concat(second), first.subset([3, 4]).concat(second.subset([9]))):
        ours = batches(data, 3)
        assert isinstance(ours, InMemoryBatches)
        for a, b in zip(ours, DataLoader(data, 3), strict=True):
            assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert batches(first, 3).task == 0
    assert batches(first.concat(second), 3).task is None


def test_the_outermost_wrapper_decides_whether_parts_are_augmented(digits):
    stream = split_classes(*digits, tasks=[["0", "1"], ["2", "3"]], crop_padding=2, flip=True)
    first, second = (e.dataset for e in stream.train_stream)
    part = first.subset(range(9))
    mixed = part.eval().concat(second)  # both as the first is
    for data in (part.eval(), first.eval().subset(range(9)), mixed, part.concat(second).eval()):
        ours = batches(data, 4)
        assert isinstance(ours, InMemoryBatches)
        for (a, *_), (b, *_) in zip(ours, DataLoader(data, 4), strict=True):
            assert torch.equal(a, b)  # Avalanche's is not augmented, and so equal from pass to pass
    plain = torch.cat([x for x, *_ in batches(part.eval(), 4)])
    for data in (part, first.eval().subset(range(9)).train()):
        assert not torch.equal(torch.cat([x for x, *_ in batches(data, 4)]), plain)


def strange(stream, digits, reason):
    data = stream.train_stream[0].dataset
    if reason == "not an ImageTransform":
        return data.replace_current_transform_group(lambda x: x.float())
    if reason == "different transforms":
        return data.concat(split_classes(*digits, tasks=5).train_stream[1].dataset)
    if reason == "carry logits":
        logits = DataAttribute(torch.zeros(len(data), 2), "logits", use_in_getitem=True)
        return data.update_data_attribute("logits", logits)
    changed = data.subset(range(len(data)))
    changed.collate_fn = lambda samples: [torch.stack([s[0] for s in samples])]
    return changed


REASONS = ["not an ImageTransform", "different transforms", "carry logits", "collate function"]


@pytest.mark.parametrize("reason", REASONS)
def test_data_that_cannot_be_served_from_memory_is_loaded_by_avalanche(stream, digits, reason):
    data = strange(stream, digits, reason)
    loader = DataLoader(data, 4, collate_fn=data.collate_fn)
    with pytest.raises(Exception, match=reason):
        InMemoryBatches(loader, torch.device("cpu"))
    assert isinstance(batches(data, 4), DataLoader)


def test_other_data_sets_are_loaded_by_avalanche_with_one_warning(network):
    x, y = torch.randn(20, 1, 8, 8), torch.arange(20) % 2
    data = _make_taskaware_tensor_classification_dataset(x, y, task_labels=[0] * 20)
    benchmark = with_task_labels(with_classes_timeline(benchmark_from_datasets(train=[data], test=[data])))
    for experience in (*benchmark.train_stream, *benchmark.test_stream):
        experience.classes_in_this_experience = [0, 1]
    seen, model = Batches(), network()
    strategy = Naive(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), 0.1),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=8,
        train_epochs=2,
        plugins=[InMemoryLoader(), seen],
        evaluator=None,
    )
    with pytest.warns(UserWarning, match="one at a time, because .* is not a stream of fscl"):
        strategy.train(benchmark.train_stream[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        strategy.eval(benchmark.test_stream)
    assert InMemoryBatches not in seen.loaders
    assert rows(torch.cat([b[0] for b in seen.epochs[0]])) == rows(x)


def free_memory(monkeypatch, size):
    memory = type("Memory", (), {"available": size})
    monkeypatch.setattr(loader.psutil, "virtual_memory", lambda: memory)
    monkeypatch.setattr(loader.torch.cuda, "mem_get_info", lambda device: (size, size))


@pytest.mark.parametrize("place", ["auto", "host", "device"])
def test_a_mixture_is_not_copied_if_memory_is_short(learner, network, stream, monkeypatch, place):
    model = network()  # which needs memory, too
    free_memory(monkeypatch, 100)
    seen = Batches()
    strategy = learner("naive", model, plugins=[ReplayPlugin(mem_size=20), InMemoryLoader(place), seen], train_epochs=1)
    strategy.train(stream.train_stream[0])
    with pytest.warns(UserWarning, match="a copy of them takes 0 MiB and 0 MiB are free in memory"):
        strategy.train(stream.train_stream[1])
    assert [kind is InMemoryBatches for kind in seen.loaders] == [True, False]


def test_a_copy_may_take_half_of_the_free_memory_or_all_of_it_if_a_place_is_given(stream, monkeypatch):
    whole, part = stream.train_stream[0].dataset, stream.train_stream[0].dataset.subset(range(10))
    size = 10 * 8 * 8  # bytes of ten images

    def served(data, place):
        try:
            InMemoryBatches(DataLoader(data, 4), torch.device("cpu"), place)
        except Unservable:
            return False
        return True

    for free, auto, given in ((2 * size, True, True), (2 * size - 1, False, True), (size - 1, False, False)):
        free_memory(monkeypatch, free)
        assert (served(part, "auto"), served(part, "host"), served(part, "device")) == (auto, given, given)
        assert served(whole, "auto")  # without a copy


def test_images_larger_than_a_gpu_are_not_sent_there(stream, monkeypatch):
    whole = stream.train_stream[0].dataset
    free_memory(monkeypatch, 100)
    gpu = torch.device("cuda", 0)
    with pytest.raises(Unservable, match="a copy of them takes 0 MiB and 0 MiB are free on cuda:0"):
        InMemoryBatches(DataLoader(whole, 4), gpu, "device")
    assert not InMemoryBatches(DataLoader(whole, 4), gpu, "auto").on_device


def test_the_in_memory_loader_can_be_off_and_refuses_unknown_places(learner, stream):
    seen = Batches()
    learner("naive", plugins=[InMemoryLoader("off"), seen]).train(stream.train_stream[0])
    assert InMemoryBatches not in seen.loaders
    with pytest.raises(FsclError, match="place is 'disk'; known: auto, device, host, off"):
        InMemoryLoader("disk")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("place", ["auto", "device", "host"])
def test_batches_on_a_gpu_equal_those_on_the_cpu(digits, place):
    stream = split_classes(*digits, tasks=[["0", "1"]], crop_padding=1, flip=True)
    data = stream.train_stream[0].dataset
    sides = []
    for device in ("cpu", "cuda"):
        torch.manual_seed(1)
        ours = InMemoryBatches(DataLoader(data, 16, shuffle=True), torch.device(device), place)
        assert ours.on_device == (device == "cuda" and place != "host")
        sides.append([[part.cpu() for part in batch] for batch in ours])
    for a, b in zip(*sides, strict=True):
        assert torch.allclose(a[0], b[0], atol=1e-6)
        assert all(torch.equal(x, y) for x, y in zip(a[1:], b[1:], strict=True))
