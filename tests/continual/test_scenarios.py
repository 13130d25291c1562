"""Task labels, targets and heads in each scenario. Avalanche's own learners train in all scenarios."""

import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.training import Naive
from torch import nn

from fscl.continual import AccuracyRecorder, InMemoryLoader, build_network, split_classes
from fscl.continual.domains import permuted_stream, rotated_stream
from fscl.continual.learner import Learner
from fscl.continual.loader import InMemoryBatches, samples_behind
from fscl.continual.training.trainer import Trainer
from fscl.data.class_split import share_out
from fscl.data.images import ImageSet, join_images
from fscl.errors import FsclError
from fscl.settings import Network, Training

SMALL = {"widths": [8, 8], "pool_after": [0], "dropout": 0.1}
NAIVE = Learner("avalanche.training.Naive")
PAIRS = [["0", "1"], ["4", "7"], ["3", "2"]]


def numbered(classes: int = 6, per_class: int = 5, first: int = 0) -> ImageSet:
    """Images with a grey value of their own; the class is the value divided by ``per_class``."""
    labels = torch.arange(classes).repeat_interleave(per_class)
    images = torch.arange(first, first + len(labels)).to(torch.uint8)[:, None, None, None].expand(-1, 1, 4, 4).clone()
    mixed = torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))
    return ImageSet(images[mixed], labels[mixed], [f"class {c}" for c in range(classes)])


def samples(experience) -> dict[int, int]:
    """Grey value -> target, read through Avalanche's data set."""
    data = experience.dataset
    greys = samples_behind(data)[0][0].images[:, 0, 0, 0].tolist()
    return dict(zip(greys, map(int, data.targets), strict=True))


@pytest.mark.parametrize("scenario", ["task", "domain", "class"])
def test_the_scenario_decides_labels_and_targets_but_not_images(scenario: str) -> None:
    data = numbered(), numbered(first=100)
    stream = split_classes(*data, tasks=3, seed=1, scenario=scenario)
    plain = split_classes(*data, tasks=3, seed=1)
    assert stream.scenario == scenario
    assert stream.tasks == plain.tasks
    assert stream.names == plain.names
    for first, which in ((0, "train_stream"), (100, "test_stream")):
        seen: set[int] = set()
        for t, (experience, same) in enumerate(zip(getattr(stream, which), getattr(plain, which), strict=True)):
            found = samples(experience)
            assert found.keys() == samples(same).keys()
            assert not seen & found.keys()
            seen |= found.keys()
            start = 2 * t if scenario == "class" else 0
            for grey, target in found.items():
                assert stream.tasks[t][target - start] == f"class {(grey - first) // 5}"
            label = t if scenario == "task" else 0
            assert list(experience.task_labels) == [label]
            assert {int(x) for x in experience.dataset.targets_task_labels} == {label}
            assert experience.classes_in_this_experience == [start, start + 1]
        assert len(seen) == 30


@pytest.mark.parametrize("scenario", ["task", "domain", "class"])
def test_an_experience_to_answer_differs_from_the_test_experience_in_its_images_alone(scenario: str) -> None:
    stream = split_classes(numbered(), numbered(first=100), tasks=3, seed=1, scenario=scenario)
    images = torch.randn(4, 1, 4, 4)
    for task, test in enumerate(stream.test_stream):
        before, dataset = samples(test), test.dataset
        answered = stream.to_answer(task, images)
        assert torch.equal(torch.stack([sample[0] for sample in answered.dataset.eval()]), images)
        assert {int(label) for label in answered.dataset.targets_task_labels} == set(test.task_labels)
        assert vars(answered).keys() == vars(test).keys()
        # the stream is that of all tasks, and is not made again for every batch
        assert {key for key, value in vars(answered).items() if value is not vars(test)[key]} == {"_dataset"}
        assert test.dataset is dataset
        assert samples(test) == before


def test_class_scenario_counts_targets_on_over_tasks_of_different_sizes() -> None:
    tasks = [["class 5"], ["class 0", "class 3", "class 1"], ["class 4", "class 2"]]
    stream = split_classes(numbered(), numbered(), tasks, scenario="class")
    assert [e.classes_in_this_experience for e in stream.train_stream] == [[0], [1, 2, 3], [4, 5]]
    assert stream.classes_per_task == 3
    assert {g // 5: t for g, t in samples(stream.train_stream[1]).items()} == {0: 1, 3: 2, 1: 3}


@pytest.mark.parametrize("scenario", ["task", "domain", "class"])
def test_validation_holds_out_the_same_training_images_in_every_scenario(scenario: str) -> None:
    data = numbered(per_class=10), numbered(first=100)
    stream = split_classes(*data, tasks=3, seed=4, validation=0.3, scenario=scenario)
    plain = split_classes(*data, tasks=3, seed=4, validation=0.3)
    for t in range(3):
        kept, held = samples(stream.train_stream[t]), samples(stream.test_stream[t])
        assert not kept.keys() & held.keys()
        assert held.keys() == samples(plain.test_stream[t]).keys()
        assert len(held) == 6
        assert set(held.values()) == set(kept.values()) == set(stream.train_stream[t].classes_in_this_experience)


def test_domain_scenario_refuses_tasks_of_different_sizes() -> None:
    with pytest.raises(
        FsclError, match=r"scenario is 'domain', so all tasks must have the same classes; these have \[1, 2\]"
    ):
        split_classes(numbered(), numbered(), [["class 1"], ["class 0", "class 3"]], scenario="domain")
    with pytest.raises(FsclError, match=r"scenario is 'classes'; known: task, domain, class"):
        split_classes(numbered(), numbered(), 3, scenario="classes")  # type: ignore[arg-type]


def test_tasks_can_be_named() -> None:
    tasks = {"odd": ["class 1", "class 3"], "even": ["class 4", "class 0"]}
    stream = split_classes(numbered(), numbered(), tasks, seed=3)
    assert stream.names == ["odd", "even"]
    assert stream.tasks == [["class 1", "class 3"], ["class 4", "class 0"]]
    assert [e.task_name for e in stream.test_stream] == ["odd", "even"]
    with pytest.raises(FsclError, match="class 'class 1' is in more than one task"):
        split_classes(numbered(), numbered(), {"a": ["class 1"], "b": ["class 1"]})


def joined() -> tuple[ImageSet, ImageSet]:
    """A joined data set: four classes of letters, then six classes of numbers."""
    letters = ImageSet(numbered(4).images, numbered(4).labels, list("abcd"))
    return join_images({"letters": (letters, letters), "numbers": (numbered(), numbered())})


def test_parts_of_a_joined_data_set_are_shuffled_separately() -> None:
    orders = []
    for seed in (0, 0, 1):
        stream = split_classes(*joined(), tasks=[1, 3], seed=seed)
        assert [len(task) for task in stream.tasks] == [4, 2, 2, 2]
        assert sorted(stream.tasks[0]) == list("abcd")
        assert sorted(name for task in stream.tasks[1:] for name in task) == [f"class {i}" for i in range(6)]
        orders.append(stream.tasks)
    assert orders[0] == orders[1] != orders[2]
    kept = split_classes(*joined(), tasks=[2, 2], seed=1, shuffle=False).tasks
    assert kept == [["a", "b"], ["c", "d"], ["class 0", "class 1", "class 2"], ["class 3", "class 4", "class 5"]]
    mixed = {str(sorted(split_classes(*joined(), tasks=5, seed=seed).tasks[0])) for seed in range(20)}
    assert any("class" in task and any(letter in task for letter in ("'a'", "'b'", "'c'", "'d'")) for task in mixed)


@pytest.mark.parametrize(
    ("tasks", "says"),
    [
        ([1], r"tasks is \[1\]; give one number for each joined data set \(there are 2, of 4, 6 classes\)"),
        ([1, 2, 3], r"tasks is \[1, 2, 3\]; give one number for each joined data set"),
        ([1, 4], r"6 classes cannot be shared out evenly among 4 tasks; numbers that fit: \[1, 2, 3, 6\]"),
        ([0, 1], r"4 classes cannot be shared out evenly among 0 tasks"),
    ],
)
def test_numbers_of_tasks_that_do_not_fit_the_parts_are_refused(tasks: list[int], says: str) -> None:
    with pytest.raises(FsclError, match=says):
        split_classes(*joined(), tasks=tasks)


def test_share_out_of_one_part_equals_share_out_of_a_number() -> None:
    assert share_out("abcdef", [3], seed=2) == share_out("abcdef", 3, seed=2)
    assert len(share_out("abcdef", 3, seed=2)) == 3


def streams(digits) -> dict[str, object]:
    return {
        "task": split_classes(*digits, PAIRS),
        "domain": split_classes(*digits, PAIRS, scenario="domain"),
        "class": split_classes(*digits, PAIRS, scenario="class"),
        "rotations": rotated_stream(*digits, [0, 30], crop_padding=1),
        "rotations with heads": rotated_stream(*digits, 2, scenario="task"),
        "permutations": permuted_stream(*digits, 2),
    }


class Widths(SupervisedPlugin):
    """Records the width of outputs while each experience is trained, and the class of the loader."""

    supports_distributed = False

    def __init__(self) -> None:
        super().__init__()
        self.outputs: list[int] = []
        self.loaders: set[type] = set()

    def after_training_iteration(self, strategy, **kwargs) -> None:
        self.outputs.append(strategy.mb_output.shape[1])
        self.loaders.add(type(strategy.dataloader))


WIDTHS = {
    "task": {2}, "domain": {2}, "class": {2, 4, 6},
    "rotations": {10}, "rotations with heads": {10}, "permutations": {10},
}  # fmt: skip
HEADS = {"task": 3, "domain": 1, "class": 1, "rotations": 1, "rotations with heads": 2, "permutations": 1}


@pytest.mark.filterwarnings("error:Avalanche loads the images")
@pytest.mark.parametrize("kind", WIDTHS)
def test_naive_learns_every_scenario_equally_with_whole_batches(digits, kind: str) -> None:
    ends = []
    for ours in ([], [InMemoryLoader()]):
        stream = streams(digits)[kind]
        torch.manual_seed(3)
        model = build_network("convnet", (1, 8, 8), stream.classes_per_task, SMALL)
        seen, recorder = Widths(), AccuracyRecorder()
        strategy = Naive(
            model=model,
            optimizer=torch.optim.SGD(model.parameters(), 0.05, 0.9),
            criterion=nn.CrossEntropyLoss(),
            train_mb_size=16,
            train_epochs=6,
            eval_mb_size=64,
            plugins=[*ours, recorder, seen],
            evaluator=None,
        )
        for experience in stream.train_stream:
            strategy.train(experience)
        assert set(seen.outputs) == WIDTHS[kind]
        assert (seen.loaders == {InMemoryBatches}) == bool(ours)
        assert len(strategy.model.classifier.classifiers) == HEADS[kind]
        accuracies = recorder.accuracies(strategy, list(stream.test_stream))
        chance = 1 / max(WIDTHS[kind])
        assert accuracies[-1] > 1.25 * chance  # it has learned what it was trained on last
        ends.append((strategy.model.state_dict(), accuracies))
    assert ends[0][1] == ends[1][1]
    assert all(torch.equal(ends[0][0][name], ends[1][0][name]) for name in ends[0][0])


def test_naive_forgets_more_in_the_class_scenario_than_in_the_task_scenario(digits) -> None:
    """In the class scenario the classes of the last task suppress all others in the shared head."""
    ends = {}
    for scenario in ("task", "class"):
        stream = split_classes(*digits, PAIRS, scenario=scenario)
        trainer = Trainer(stream, NAIVE, Training(epochs=6, batch_size=16), Network(args=SMALL))
        while trainer.done < 3:
            measured = trainer.train_next()
        ends[scenario] = measured.accuracy
    assert ends["class"][-1] > 0.8
    assert max(ends["class"][:2]) < min(ends["task"][:2])


def test_a_run_with_a_head_that_grows_is_resumed(digits) -> None:
    stream = split_classes(*digits, PAIRS, scenario="class")

    def fresh() -> Trainer:
        return Trainer(stream, NAIVE, Training(epochs=1, batch_size=16), Network(args=SMALL))

    whole, first, second = fresh(), fresh(), fresh()
    expected = [whole.train_next().accuracy for _ in range(3)]
    found = [first.train_next().accuracy for _ in range(2)]
    second.load_state_dict(first.state_dict())
    assert [*found, second.train_next().accuracy] == expected
    assert second.strategy.model.classifier.classifiers["0"].classifier.out_features == 6
