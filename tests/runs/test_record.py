"""A run's record reads back as it was written, and a record that reports cannot show is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fscl.errors import FsclError
from fscl.report.runs import load_runs
from fscl.runs.recipe import load_benchmark, load_strategy
from fscl.runs.records.parts import Benchmark, Strategy
from fscl.runs.records.record import RunRecord
from fscl.runs.results import load_run, read_record, write_runs

ROOT = Path(__file__).resolve().parents[2]
REPORTS = sorted((ROOT / "reports").glob("*/runs.json"))
SMALL: dict[str, Any] = {
    "format": 1,
    "status": "running",
    "benchmark": {"name": "split_made_up"},
    "strategy": {"name": "ewc"},
    "recipe_hash": "0123",
    "seed": 3,
    "tasks": [{"name": "ant, bee", "classes": ["ant", "bee"]}, {"name": "cat", "classes": [2]}],
    "accuracy": [[0.1 + 0.2, None]],
    "seconds": {"train": [1e-17], "evaluate": [2]},
}


@pytest.mark.parametrize("file", REPORTS, ids=lambda file: file.parent.name)
def test_records_of_committed_reports_are_written_back_byte_for_byte(file: Path) -> None:
    for data in json.loads(file.read_text(encoding="utf-8"))["runs"]:
        assert json.dumps(read_record(file, data).to_json()) == json.dumps(data)


def test_a_written_record_reads_back_equal(tmp_path: Path) -> None:
    record = read_record("made up", SMALL)
    record.write(tmp_path / "run.json")
    again = load_run(tmp_path / "run.json")
    assert again.to_json() == record.to_json()
    assert np.array_equal(again.accuracy, record.accuracy, equal_nan=True)
    assert again.path == tmp_path / "run.json"


def test_missing_keys_are_not_written_and_unknown_keys_are_kept(tmp_path: Path) -> None:
    later = SMALL | {"weather": {"rain": [True, None]}, "memory": {"per_task": {"head": 7}, "colour": "red"}}
    assert read_record("made up", later).to_json() == later
    (tmp_path / "run.json").write_text(json.dumps(later))
    write_runs(load_runs([tmp_path]), tmp_path / "report" / "runs.json")
    assert json.loads((tmp_path / "report" / "runs.json").read_text())["runs"] == [later]


def test_arrays_of_a_run_before_its_first_task_have_no_rows() -> None:
    record = read_record("made up", SMALL | {"accuracy": [], "seconds": {"train": [], "evaluate": []}})
    assert (len(record.accuracy), len(record.transfer), record.seconds.total, record.similarity) == (0, 0, 0.0, None)
    assert not record.square


def test_recipes_in_a_record_have_the_keys_of_recipes_in_the_same_order() -> None:
    """If the types of a record change, the recipes in it must still be written with all keys."""
    for made, recipe in (
        (Benchmark, load_benchmark("split_cifar100")),
        (Strategy, load_strategy("atom_swapping")),
    ):
        data = recipe.model_dump(by_alias=True)
        assert json.dumps(made.model_validate(data).model_dump(by_alias=True, exclude_unset=True)) == json.dumps(data)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"accuracy": 0.5}, "accuracy is not a rectangular list of numbers"),
        ({"accuracy": {}}, "accuracy is not a rectangular list of numbers"),
        ({"accuracy": [[0.5], [0.5, 0.5]]}, "accuracy is not a rectangular list of numbers"),
        ({"accuracy": [[True, 0.5]]}, "accuracy is not a rectangular list of numbers"),
        ({"accuracy": [[0.5]]}, r"accuracy has shape \(1, 1\); it must be \(any, 2\)"),
        ({"untrained": [0.5, 0.5, 0.5]}, r"untrained has shape \(3,\); it must be \(2\)"),
        ({"transfer": [[-1, 0.5]]}, "transfer has -1; its numbers are from 0 to 1"),
        ({"seconds": {"train": [-1.0]}}, r"seconds\.train has -1\.0; its numbers are from 0 to 1e\+10"),
        ({"seconds": {"evaluate": [None]}}, r"seconds\.evaluate has a null"),
        ({"status": "finished"}, "the run is finished but has no accuracies"),
        ({"memory": {"per_task": {"head": True}}}, r"memory\.per_task\.head.* is True"),
        (
            {"similarity": {"metric": "cosine", "layers": ["a"], "matrix": [[[1.0, 0.5]]]}},
            r"similarity\.matrix has shape \(1, 1, 2\); it must be \(L, T, T\)",
        ),
    ],
)
def test_a_record_that_a_report_cannot_show_is_refused_with_the_key(change: dict[str, Any], says: str) -> None:
    with pytest.raises(FsclError, match=f"^made up: {says}"):
        read_record("made up", SMALL | change)


def test_a_task_name_made_of_hundreds_of_classes_is_read() -> None:
    """With two tasks, CIFAR-100 has such names. A limit of 500 characters once made these runs unreadable."""
    name = ", ".join(f"aquarium_fish_{number}" for number in range(200))
    tasks = [{"name": name, "classes": ["a"]}, {"name": "b", "classes": ["b"]}]
    assert read_record("made up", SMALL | {"tasks": tasks}).task_names == (name, "b")


def test_a_new_run_is_written_with_exactly_the_known_keys(tmp_path: Path) -> None:
    from fscl.runs.recipe import with_overrides
    from fscl.runs.run import run_one
    from fscl.runs.spec import RunSpec

    settings = ["training.epochs=1", "model.args.widths=[4]", "split.tasks=5"]
    spec = RunSpec(*with_overrides(load_benchmark("split_digits"), load_strategy("ewc"), settings), 0, first=2)
    data = json.loads((run_one(spec, tmp_path) / "run.json").read_text(encoding="utf-8"))
    kept = json.loads((ROOT / "reports/split_digits/runs.json").read_text(encoding="utf-8"))["runs"][0]
    assert list(data) == [key for key in RunRecord.model_fields if key in data]
    assert [key for key in data if key != "first"] == list(kept)
    assert list(data["similarity"]) == list(kept["similarity"])
    assert list(data["benchmark"]) == list(kept["benchmark"])
    assert list(data["strategy"]) == list(kept["strategy"])
