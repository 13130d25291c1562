import pytest
import torch

from fscl.continual import split_classes
from fscl.continual.loader import samples_behind
from fscl.data.datasets import ImageSet
from fscl.errors import FsclError


def numbered(per_class=(10, 10, 10, 10, 10, 10), start=0):
    """Images whose pixels hold their number, so that each can be identified."""
    total = sum(per_class)
    images = torch.arange(start, start + total).view(-1, 1, 1, 1).expand(-1, 3, 2, 2).to(torch.uint8).clone()
    labels = torch.arange(len(per_class)).repeat_interleave(torch.tensor(per_class))
    shuffled = torch.randperm(total, generator=torch.Generator().manual_seed(1))
    return ImageSet(images[shuffled], labels[shuffled], [f"class {i}" for i in range(len(per_class))])


def numbers(experience):
    return set(source(experience).images[:, 0, 0, 0].tolist())


def source(experience):
    return samples_behind(experience.dataset)[0][0]


def test_tasks_have_disjoint_classes_and_all_images():
    train, test = numbered(), numbered((4,) * 6, start=100)
    stream = split_classes(train, test, tasks=3)
    flat = [name for group in stream.tasks for name in group]
    assert sorted(flat) == train.classes
    assert [len(group) for group in stream.tasks] == [2, 2, 2]
    for data, split in ((train, stream.train_stream), (test, stream.test_stream)):
        seen = []
        for t, experience in enumerate(split):
            images = source(experience)
            for number, target in zip(images.images[:, 0, 0, 0].tolist(), images.targets.tolist(), strict=True):
                label = int(data.labels[data.images[:, 0, 0, 0] == number])
                assert stream.tasks[t][target] == data.classes[label]
                seen.append(number)
            assert experience.current_experience == t
            assert list(experience.task_labels) == [t]
            assert sorted(experience.classes_in_this_experience) == [0, 1]
            assert experience.task_name == ", ".join(stream.tasks[t]) == stream.names[t]
        assert sorted(seen) == sorted(data.images[:, 0, 0, 0].tolist())
    assert stream.image_shape == (3, 2, 2)


def test_order_of_classes_follows_the_seed():
    data = numbered(), numbered((4,) * 6)
    orders = [split_classes(*data, tasks=6, seed=seed).tasks for seed in (0, 0, 1, 2)]
    assert orders[0] == orders[1]
    assert len({str(order) for order in orders}) == 3
    kept = split_classes(*data, tasks=2, seed=5, shuffle=False).tasks
    assert kept == [["class 0", "class 1", "class 2"], ["class 3", "class 4", "class 5"]]
    torch.manual_seed(7)
    assert split_classes(*data, tasks=6, seed=0).tasks == orders[0]


def test_tasks_can_be_lists_of_class_names_of_different_lengths():
    stream = split_classes(numbered(), numbered(), tasks=[["class 5"], ["class 0", "class 3", "class 1"]], seed=3)
    assert stream.tasks == [["class 5"], ["class 0", "class 3", "class 1"]]
    assert stream.classes_per_task == 3
    assert [len(e.dataset) for e in stream.train_stream] == [10, 30]
    assert sorted(stream.train_stream[1].classes_in_this_experience) == [0, 1, 2]


def test_validation_holds_out_training_images_and_no_test_images():
    train, test = numbered((10, 10, 7, 2)), numbered((5,) * 4, start=100)
    whole = split_classes(train, test, tasks=2, shuffle=False)
    held = split_classes(train, test, tasks=2, shuffle=False, validation=0.2)
    for t in range(2):
        kept, validated = numbers(held.train_stream[t]), numbers(held.test_stream[t])
        assert kept.isdisjoint(validated)
        assert kept | validated == numbers(whole.train_stream[t])
        assert validated.isdisjoint(numbers(whole.test_stream[t]))
    counts = [source(e).targets.bincount().tolist() for e in held.test_stream]
    assert counts == [[2, 2], [1, 1]]  # class by class, at least one
    again = split_classes(train, test, tasks=2, shuffle=False, validation=0.2)
    other = split_classes(train, test, tasks=2, shuffle=False, validation=0.2, seed=1)
    assert numbers(again.test_stream[0]) == numbers(held.test_stream[0]) != numbers(other.test_stream[0])


def test_images_are_normalised_by_the_training_images():
    train, test = numbered(), numbered(start=100)
    stream = split_classes(train, test, tasks=1, crop_padding=0)
    seen = torch.stack([stream.train_stream[0].dataset.eval()[i][0] for i in range(60)])
    assert seen.mean((0, 2, 3)).tolist() == pytest.approx([0] * 3, abs=1e-5)
    assert seen.std((0, 2, 3)).tolist() == pytest.approx([1] * 3, abs=1e-4)
    shifted = torch.stack([stream.test_stream[0].dataset.eval()[i][0] for i in range(60)])
    assert shifted.mean() > 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": [["class 0", "cat"]]}, "unknown class 'cat'; known classes: class 0, class 1, class 2"),
        ({"tasks": [["class 0"], ["class 1", "class 0"]]}, "class 'class 0' is in more than one task"),
        ({"tasks": [["class 0"], []]}, "task 1 has no classes"),
        ({"tasks": 4}, r"6 classes cannot be shared out evenly among 4 tasks; numbers that fit: \[1, 2, 3, 6\]"),
        ({"tasks": 0}, "cannot be shared out evenly among 0 tasks"),
        ({"tasks": -2}, "cannot be shared out evenly among -2 tasks"),
        ({"tasks": 2, "validation": 1.0}, "validation is 1.0; it is a share of the training images"),
        ({"tasks": 2, "validation": -0.1}, "validation is -0.1"),
    ],
)
def test_splits_that_do_not_fit_are_refused(options, message):
    with pytest.raises(FsclError, match=message):
        split_classes(numbered(), numbered(), **options)


def test_different_classes_and_tasks_without_images_are_refused():
    train = numbered()
    renamed = ImageSet(train.images, train.labels, [*train.classes[:5], "other"])
    with pytest.raises(FsclError, match="training and test images have different classes: class 5, other"):
        split_classes(train, renamed, tasks=2)
    none = numbered((10, 10, 10, 10, 10, 0))
    with pytest.raises(FsclError, match=r"task 5 \(class 5\) has no test images"):
        split_classes(train, none, tasks=6, shuffle=False)
    single = numbered((10, 1, 10, 10, 10, 10))
    with pytest.raises(FsclError, match=r"task 1 \(class 1\) has no train images"):
        split_classes(single, train, tasks=6, shuffle=False, validation=0.5)
