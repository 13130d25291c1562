import pytest
import torch
from torch import nn

from fscl.continual import AccuracyRecorder, class_mean_accuracy, split_classes
from fscl.data.datasets import ImageSet
from fscl.errors import FsclError


def toy(seed, per_class=30, noise=20, swap=0):
    """Each class lights up its own quarter of a 4x4 image; ``swap`` images of class 0 light up class 1's quarter."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(4).repeat_interleave(per_class)
    images = torch.randint(0, noise, (len(labels), 1, 4, 4), generator=generator)
    for i, label in enumerate(labels.tolist()):
        lit = 1 if i < swap else label
        images[i, 0, 2 * (lit // 2) :, 2 * (lit % 2) :][:2, :2] += 200
    return ImageSet(images.to(torch.uint8), labels, ["a", "b", "c", "d"])


class Pixels(nn.Module):
    """A network whose features are the pixels; its head is not trained."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(1)
        self.drop = nn.Dropout(0.9)
        self.head = nn.Linear(16, 2)

    def forward(self, x):
        return self.head(self.drop(self.norm(x)).flatten(1))


def task(train, test):
    stream = split_classes(train, test, tasks=[["a", "b"]])
    return stream.train_stream[0].dataset, stream.test_stream[0].dataset


def test_class_mean_accuracy_is_1_for_separable_features():
    assert class_mean_accuracy(Pixels(), *task(toy(0), toy(1))) == 1


def test_class_mean_accuracy_counts_the_wrong_images():
    assert class_mean_accuracy(Pixels(), *task(toy(0), toy(1, swap=9))) == (60 - 9) / 60


def test_class_means_use_only_the_first_images_of_a_class():
    """The first nine images of class a look like b. The mean of nine is then that of b; the mean of 30 is not."""
    data = task(toy(0, swap=9), toy(1))
    assert class_mean_accuracy(Pixels(), *data, per_class=30) == 1
    assert class_mean_accuracy(Pixels(), *data, per_class=9) < 0.9


def test_class_mean_accuracy_is_nearest_mean_by_cosine_of_the_head_s_inputs(network, digits):
    stream = split_classes(*digits, tasks=[["3", "8", "5"], ["0", "1"]], crop_padding=1, flip=True)
    model = network().eval()
    train, test = ([e.dataset.eval() for e in s] for s in (stream.train_stream, stream.test_stream))

    def features(data):
        x = torch.stack([data[i][0] for i in range(len(data))])
        with torch.no_grad():
            return model.model.pool(model.model.features(x)), torch.tensor([data[i][1] for i in range(len(data))])

    (a, ya), (b, yb) = features(train[0]), features(test[0])
    means = torch.stack([nn.functional.normalize(a[ya == c][:10], dim=1).mean(0) for c in range(3)])
    guess = torch.stack([torch.cosine_similarity(x[None], means).argmax() for x in b])
    expected = float((guess == yb).double().mean())
    assert class_mean_accuracy(model, train[0], test[0], per_class=10, batch_size=7) == pytest.approx(expected)
    assert 0.34 < expected < 1


def test_class_mean_accuracy_does_not_change_the_model(network, stream):
    model = network()
    model.train()
    model.model.features[1].eval()
    modes = {n: m.training for n, m in model.named_modules()}
    state = {n: t.clone() for n, t in model.state_dict().items()}
    random = torch.get_rng_state()
    data = stream.train_stream[0].dataset, stream.test_stream[0].dataset
    first = class_mean_accuracy(model, *data)
    assert {n: m.training for n, m in model.named_modules()} == modes
    assert len(set(modes.values())) == 2
    assert all(torch.equal(t, state[n]) for n, t in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert not any(m._forward_pre_hooks for m in model.modules())
    assert all(p.grad is None for p in model.parameters())
    assert class_mean_accuracy(model, *data) == first


def test_class_mean_accuracy_refuses_a_model_without_a_linear_layer():
    with pytest.raises(FsclError, match="Conv2d has no linear layer whose inputs could be its features"):
        class_mean_accuracy(nn.Conv2d(1, 1, 3), *task(toy(0), toy(1)))


def test_recorded_accuracies_are_shares_of_samples_not_of_batches(learner, stream):
    recorder = AccuracyRecorder()
    strategy = learner("naive", plugins=[recorder], eval_mb_size=7)
    strategy.train(stream.train_stream[0])
    found = recorder.accuracies(strategy, stream.test_stream[:2])
    data = stream.test_stream[0].dataset.eval()
    x, y = torch.stack([data[i][0] for i in range(len(data))]), torch.tensor([data[i][1] for i in range(len(data))])
    with torch.no_grad():
        expected = float((strategy.model.eval()(x, 0).argmax(1) == y).double().mean())
    assert found[0] == pytest.approx(expected)
    assert found[0] > 0.8
    assert recorder.accuracies(strategy, [stream.test_stream[0]]) == found[:1]
