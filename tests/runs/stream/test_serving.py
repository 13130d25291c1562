"""Networks of finished runs are what the runs measured, and change nothing of their caller's."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from fscl import load_network
from fscl.data.datasets import load_images
from fscl.errors import FsclError
from fscl.runs.recipe import load_benchmark, load_strategy, with_overrides
from fscl.runs.results import find_task
from fscl.runs.run import run_one
from fscl.runs.schema import BenchmarkRecipe, StrategyRecipe
from fscl.runs.spec import RunSpec
from fscl.runs.stream.weights import read_weights, write_weights

SETTINGS = ["training.epochs=4", "model.args.widths=[8, 8]", "split.tasks=[['0', '1'], ['2', '3']]"]


def run(folder: Path, *settings: str, learner: str = "atom_swapping", weights: bool = True) -> Path:
    pair = with_overrides(load_benchmark("split_digits"), load_strategy(learner), [*SETTINGS, *settings])
    return run_one(RunSpec(*pair, 0, weights=weights), folder)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("runs"))


def test_a_network_knows_its_classes_and_the_transform_of_images(finished: Path) -> None:
    _, test = load_images("digits")
    for task, classes in (("0, 1", ["0", "1"]), (1, ["2", "3"]), ("1", ["2", "3"]), (-1, ["2", "3"])):
        network = load_network(finished, task)
        assert network.classes == classes
        assert not network.training
        mine = torch.isin(test.labels, torch.tensor([int(name) for name in classes]))
        shares = network.probabilities(test.images[mine])
        assert shares.sum(1).numpy() == pytest.approx(1, abs=1e-5)
        answers = torch.tensor([int(classes[i]) for i in shares.argmax(1)])
        assert (answers == test.labels[mine]).double().mean() > 0.9
        assert torch.equal(shares, network(network.transform(test.images[mine])).softmax(1))


def test_one_network_answers_for_the_classes_of_all_tasks_without_labels(tmp_path: Path) -> None:
    folder = run(tmp_path, "split.scenario=class", learner="replay")
    network = load_network(folder)
    assert network.classes == ["0", "1", "2", "3"]
    assert network(torch.zeros(0, 1, 8, 8)).shape == (0, 4)
    with pytest.raises(FsclError, match="one network answers for the classes of all tasks; leave out the task"):
        load_network(folder, 0)


@pytest.mark.parametrize("learner", ["naive", "atom_selection"])
def test_in_domains_a_network_answers_without_the_task_as_with_any_task(tmp_path: Path, learner: str) -> None:
    pair = with_overrides(
        load_benchmark("rotated_fmnist"),
        load_strategy(learner),
        ["data.name=digits", "split.rotations=2", "model.args.widths=[8, 8, 8]"],
    )
    folder = run_one(RunSpec(*pair, 0), tmp_path)
    images = torch.randint(256, (5, 1, 8, 8), dtype=torch.uint8)
    answers = [load_network(folder, task).probabilities(images) for task in (None, 0, 1)]
    assert torch.equal(answers[0], answers[1])
    assert torch.equal(answers[0], answers[2])


def test_domains_whose_outputs_have_names_of_their_own_need_the_task(tmp_path: Path) -> None:
    folder = run(tmp_path, "split.scenario=domain", learner="naive")
    with pytest.raises(FsclError, match="the run has 2 tasks; give one of them"):
        load_network(folder)
    assert load_network(folder, 1).classes == ["2", "3"]


def test_networks_of_two_tasks_do_not_disturb_each_other_or_random_numbers(finished: Path) -> None:
    images = torch.randn(5, 1, 8, 8)
    torch.manual_seed(1)
    expected = torch.rand(3), np.random.rand(3) if np.random.seed(1) is None else None  # noqa: NPY002
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    first, second = load_network(finished, 0), load_network(finished, 1)
    before = first(images)
    second(images)
    assert torch.equal(first(images), before)
    assert not torch.equal(second(images), before)
    assert torch.equal(torch.rand(3), expected[0])
    assert np.random.rand(3) == pytest.approx(expected[1])  # noqa: NPY002


def test_wrong_tasks_images_and_runs_are_refused(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(FsclError, match=r"the run has 2 tasks; give one of them: 0: 0, 1; 1: 2, 3$"):
        load_network(finished)
    for task in (2, "7", "cats", "", 1.5):
        with pytest.raises(FsclError, match=f"no task '?{task}'?; tasks: 0: 0, 1; 1: 2, 3$"):
            load_network(finished, task)
    with pytest.raises(FsclError, match="images are 4x3x8x8; the network takes N x 1 x 8 x 8"):
        load_network(finished, 0)(torch.zeros(4, 3, 8, 8))
    with pytest.raises(FsclError, match=r"^device cuda:77: not available here"):
        load_network(finished, 0, device="cuda:77")
    with pytest.raises(FsclError, match="no run in it"):
        load_network(tmp_path, 0)
    without = run(tmp_path, weights=False)
    assert not (without / "weights.safetensors").exists()
    with pytest.raises(FsclError, match="no such file; runs with --no-weights have none"):
        load_network(without, 0)


@pytest.mark.parametrize(
    ("section", "key", "value", "says"),
    [
        ("strategy", "class", "os.system", "a recipe may name strategies of"),
        ("benchmark", "model", {"name": "os:system"}, "os:system"),
        ("benchmark", "training", {"epochs": "many"}, "its recipe does not fit this fscl"),
        ("strategy", "args", {"num_atoms": 3}, "its recipes have hash"),
    ],
)
def test_a_changed_record_runs_no_code_and_is_refused(
    finished: Path, tmp_path: Path, section: str, key: str, value: object, says: str
) -> None:
    record = json.loads((finished / "run.json").read_text())
    record[section][key] = value
    if key in ("class", "model"):  # forged well
        recipes = BenchmarkRecipe(**record["benchmark"]), StrategyRecipe(**record["strategy"])
        record["recipe_hash"] = RunSpec(*recipes, 0).hash
    (tmp_path / "run.json").write_text(json.dumps(record))
    (tmp_path / "weights.safetensors").write_bytes((finished / "weights.safetensors").read_bytes())
    with pytest.raises(FsclError, match=says):
        load_network(tmp_path, 0)


def test_a_text_that_is_the_number_of_a_task_is_no_name(finished: Path, tmp_path: Path) -> None:
    record = json.loads((finished / "run.json").read_text())
    for number, task in enumerate(record["tasks"]):
        task["name"] = str(len(record["tasks"]) - number)  # so that all numbers but 0 are names of other tasks, too
    (tmp_path / "run.json").write_text(json.dumps(record))
    last = len(record["tasks"]) - 1
    assert find_task(tmp_path, "1")[1] == find_task(tmp_path, 1)[1] == 1
    assert find_task(tmp_path, str(last + 1))[1] == 0, "a name that is no number of a task"


def test_damaged_weights_are_refused(finished: Path, tmp_path: Path) -> None:
    whole = (finished / "weights.safetensors").read_bytes()
    file = tmp_path / "weights.safetensors"
    for damaged in (whole[:-1], whole[:-5] + bytes([whole[-5] ^ 1]) + whole[-4:], whole.replace(b"task", b"tusk", 1)):
        file.write_bytes(damaged)
        with pytest.raises(FsclError, match="damaged or truncated"):
            read_weights(file)
    save_file(load_file(finished / "weights.safetensors"), file)
    with pytest.raises(FsclError, match="a safetensors file, but not the weights of a run"):
        read_weights(file)


def test_tensors_and_values_come_back_and_equal_tensors_are_written_once(tmp_path: Path) -> None:
    tensor = torch.randn(1000)
    state = {
        "a": tensor, 3: [tensor.clone(), (1, None, True)], "b": torch.nn.Parameter(tensor[:10]), "c": {"d": 0.5},
        "e": torch.tensor(float("nan")), "f": tensor.half(), "g": [],
    }  # fmt: skip
    write_weights(tmp_path / "w.safetensors", state)
    back = read_weights(tmp_path / "w.safetensors")
    assert list(back) == list(state)
    assert torch.equal(back["a"], tensor)
    assert torch.equal(back[3][0], tensor)
    assert back[3][1] == (1, None, True)
    assert isinstance(back["b"], torch.nn.Parameter)
    assert back["c"] == {"d": 0.5}
    assert back["e"].isnan()
    assert back["f"].dtype == torch.float16
    assert (tmp_path / "w.safetensors").stat().st_size < 4000 + 2000 + 1500
    with pytest.raises(FsclError, match="weights cannot hold a object"):
        write_weights(tmp_path / "w.safetensors", {"a": object()})


def test_fscl_predict_prints_classes_and_probabilities(fscl, finished: Path, tmp_path: Path) -> None:
    _, test = load_images("digits")
    (tmp_path / "images").mkdir()
    for digit in (2, 3):
        pixels = test.images[int((test.labels == digit).nonzero()[0])][0].numpy()
        Image.fromarray(pixels).convert("RGB").save(tmp_path / "images" / f"{digit} [b].png")
    ended = fscl("predict", finished, "images", "--task", "1", "--top", 1)
    assert ended.code == 0
    rows = [line.split() for line in ended.out.splitlines() if "images/" in line]
    assert [(row[0], row[2]) for row in rows] == [("images/2", "2"), ("images/3", "3")]
    ended = fscl("predict", finished, "images/2 [b].png", "--task", "2, 3", "--json")
    (answer,) = json.loads(ended.out)
    assert answer["file"] == "images/2 [b].png"
    assert list(answer["probabilities"]) == ["2", "3"]
    assert sum(answer["probabilities"].values()) == pytest.approx(1)
    for arguments, says in (
        ([finished, "images"], "give one of them"),
        ([finished, "nowhere", "--task", 0], "nowhere: no such file"),
        ([finished, finished, "--task", 0], "no images in it"),
        ([tmp_path, "images"], "no run in it"),
    ):
        ended = fscl("predict", *arguments)
        assert (ended.code, ended.err.count("\n")) == (2, 1)
        assert says in ended.err
