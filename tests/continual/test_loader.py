import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.training import Cumulative, Naive
from avalanche.training.plugins import ReplayPlugin
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from fscl.continual import ImageTransform, InMemoryLoader, split_classes
from fscl.continual.loader import _Batches, batches


class Batches(SupervisedPlugin):
    """Keeps every mini-batch of training, and the kind of loader that it came from."""

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
    """The images, as a sorted list that two orders of the same images share."""
    return sorted(map(tuple, x.flatten(1).tolist()))


def test_crops_are_windows_of_the_padded_image_drawn_image_by_image():
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


def test_normalisation_is_that_of_the_formula_and_of_single_images():
    images = torch.randint(0, 256, (8, 3, 4, 4), dtype=torch.uint8)
    mean, std = [0.1, 0.5, 0.7], [0.2, 0.3, 0.4]
    transform = ImageTransform(mean, std)
    expected = (images.double() / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    assert torch.allclose(transform(images).double(), expected, rtol=0, atol=1e-6)
    assert torch.equal(torch.stack([transform(image) for image in images]), transform(images))
    assert transform(images).dtype == torch.float32
    assert images.dtype == torch.uint8
    before = images.clone()
    ImageTransform(mean, std, crop_padding=1, flip=True)(images)
    assert torch.equal(images, before)


def test_evaluation_batches_are_those_of_the_ordinary_loader_to_the_bit(stream):
    data = stream.test_stream[1].dataset.eval()
    ordinary = list(DataLoader(data, batch_size=7, collate_fn=data.collate_fn))
    ours = batches(data, 7)
    assert isinstance(ours, _Batches)
    assert len(ours) == len(ordinary) == 6
    for a, b in zip(ours, ordinary, strict=True):
        assert len(a) == len(b) == 3
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_strategies_see_the_same_with_it_and_without(learner, stream):
    outputs = []
    for plugins in ([], [InMemoryLoader()]):
        seen = Batches()
        strategy = learner("naive", plugins=[*plugins, seen])
        strategy.eval(list(stream.test_stream))
        outputs.append(seen.evaluated)
    assert len(outputs[0]) == 3
    for a, b in zip(*outputs, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("plugins", [[], [InMemoryLoader]])
def test_every_sample_is_seen_once_an_epoch(learner, stream, plugins):
    seen = Batches()
    learner("naive", plugins=[*(make() for make in plugins), seen]).train(stream.train_stream[1])
    data = stream.train_stream[1].dataset.eval()
    everything = rows(torch.stack([data[i][0] for i in range(len(data))]))
    orders = []
    for epoch in seen.epochs:
        assert [len(x) for x, _, _ in epoch] == [16, 16, 16, 16, 8]  # the last one is not dropped
        assert rows(torch.cat([x for x, _, _ in epoch])) == everything
        assert torch.cat([t for *_, t in epoch]).unique().tolist() == [1]
        orders.append(torch.cat([x for x, _, _ in epoch]))
    assert not torch.equal(orders[0], orders[1])
    assert seen.loaders == [_Batches] * 2 if plugins else _Batches not in seen.loaders


def test_labels_stay_with_their_images(learner, digits, stream):
    seen = Batches()
    learner("naive", plugins=[InMemoryLoader(), seen]).train(stream.train_stream[2])
    data = stream.train_stream[2].dataset.eval()
    label = {tuple(data[i][0].flatten().tolist()): data[i][1] for i in range(len(data))}
    for x, y, _ in seen.epochs[0]:
        assert [label[tuple(row)] for row in x.flatten(1).tolist()] == y.tolist()


def test_shuffling_and_dropping_are_asked_for_as_ever(learner, stream):
    seen = Batches()
    strategy = learner("naive", plugins=[InMemoryLoader(), seen], train_epochs=1)
    strategy.train(stream.train_stream[0], shuffle=False, drop_last=True)
    data = stream.train_stream[0].dataset.eval()
    assert [len(x) for x, _, _ in seen.epochs[0]] == [16] * 4
    assert torch.equal(torch.cat([x for x, _, _ in seen.epochs[0]]), torch.stack([data[i][0] for i in range(64)]))


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


@pytest.mark.parametrize("order", ["replay first", "loader first"])
def test_replay_is_left_alone_wherever_it_stands(learner, stream, order):
    plugins = [ReplayPlugin(mem_size=20), InMemoryLoader()]
    seen = Batches()
    strategy = learner("naive", plugins=[*(plugins if order == "replay first" else plugins[::-1]), seen])
    for experience in stream.train_stream[:2]:
        strategy.train(experience)
    assert seen.loaders[0] is _Batches
    assert _Batches not in seen.loaders[2:]
    assert torch.cat([t for *_, t in seen.epochs[-1]]).unique().tolist() == [0, 1]


def test_data_that_was_changed_is_left_alone(network, stream):
    seen = Batches()
    model = network()
    strategy = Cumulative(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), 0.1),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=16,
        plugins=[InMemoryLoader(), seen],
        evaluator=None,
    )
    for experience in stream.train_stream[:2]:
        strategy.train(experience)
    assert seen.loaders[0] is _Batches
    assert seen.loaders[1] is not _Batches
    assert sum(len(x) for x, _, _ in seen.epochs[1]) == 144
    data = stream.train_stream[0].dataset
    changed = [
        data.subset([0, 1, 2]),
        data.concat(stream.train_stream[1].dataset),
        data.replace_current_transform_group(lambda x: x.float()),
    ]
    for other in changed:
        assert not isinstance(batches(other, 4), _Batches)
    assert [len(x) for x, *_ in batches(data.eval().subset([5, 1, 2]), 2)] == [2, 1]


def test_other_data_sets_are_left_alone(network):
    from avalanche.benchmarks import benchmark_from_datasets, with_classes_timeline, with_task_labels
    from avalanche.benchmarks.utils import _make_taskaware_tensor_classification_dataset

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
        plugins=[InMemoryLoader(), seen],
        evaluator=None,
    )
    strategy.train(benchmark.train_stream[0])
    strategy.eval(benchmark.test_stream)
    assert _Batches not in seen.loaders
    assert rows(torch.cat([b[0] for b in seen.epochs[0]])) == rows(x)
