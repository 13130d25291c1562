"""Results in Python and as CSV: their numbers against numbers computed by hand, and what is refused."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import fscl
from fscl import FsclError, load_runs
from fscl.report.page import write_report
from fscl.report.runs import Runs
from fscl.report.tables import TABLES
from fscl.runs.results import federations_of, read_record

ROOT = Path(__file__).resolve().parents[2]
TEXT = {"recipe_hash": str, "name_learned": str, "name_tested": str, "name_a": str, "name_b": str}


def record(strategy: str = "ewc", seed: int = 0, /, **changes: Any) -> dict[str, Any]:
    """Three tasks, of which the first is forgotten, with numbers that are exact in binary."""
    return {
        "format": 1,
        "status": "finished",
        "benchmark": {"name": "made_up"},
        "strategy": {"name": strategy, "title": strategy.upper()},
        "recipe_hash": "012e45",  # a number, were it not text
        "seed": seed,
        "tasks": [{"name": name, "classes": [name]} for name in ('ant, "bee"', "cat", "dog")],
        "accuracy": [[1.0, None, None], [0.75, 0.5, None], [0.5, 0.75, 1.0]],
        "start": [0.0, 0.5, 0.75],
        "untrained": [0.0, 0.25, 0.25],
        "seconds": {"train": [1.5, 2.0, 2.5], "evaluate": [9.0, 9.0, 9.0]},
        "memory": {"per_task": {"head": 100, "atoms": 50}, "shared": {"other": 1000}},
        "similarity": {
            "metric": "cosine",
            "aggregate": "mean",
            "layers": ["a", "b"],
            "matrix": [
                [[1.0, 0.5, 0.25], [0.5, 1.0, 0.0], [0.25, 0.0, 1.0]],
                [[1.0, 0.0, 0.75], [0.0, 1.0, 0.5], [0.75, 0.5, 1.0]],
            ],
        },
        "provenance": "atoms",
        **changes,
    }


def runs_of(*records: dict[str, Any]) -> Runs:
    return Runs(read_record("made up", data) for data in records)


def test_the_summary_of_a_run_has_the_numbers_of_its_matrix() -> None:
    (row,) = runs_of(record()).to_dataframe("summary").to_dict("records")
    assert row == {
        "benchmark": "made_up",
        "strategy": "ewc",
        "recipe_hash": "012e45",
        "seed": 0,
        "status": "finished",
        "title": "EWC",
        "tasks": 3,
        "tasks_learned": 3,
        "accuracy": (0.5 + 0.75 + 1.0) / 3,
        "incremental_accuracy": (1.0 + (0.75 + 0.5) / 2 + (0.5 + 0.75 + 1.0) / 3) / 3,
        "learning_accuracy": (1.0 + 0.5 + 1.0) / 3,
        "backward_transfer": ((0.5 - 1.0) + (0.75 - 0.5)) / 2,
        "forgetting": ((1.0 - 0.5) + (0.5 - 0.75)) / 2,
        "forward_transfer": ((0.5 - 0.25) + (0.75 - 0.25)) / 2,
        "bytes_per_task": 150,
        "bytes_in_all": 3 * 150 + 1000,
        "train_seconds": 6.0,
    }


def test_the_accuracy_table_has_a_row_for_every_accuracy_that_was_measured() -> None:
    frame = runs_of(record(), record(seed=1, status="running", accuracy=[[0.25, None, None]])).to_dataframe()
    assert list(frame["seed"]) == [0] * 6 + [1]
    assert list(frame["status"]) == ["finished"] * 6 + ["running"]
    matrix = frame[frame.seed == 0].pivot(index="task_learned", columns="task_tested", values="accuracy").to_numpy()
    assert np.array_equal(matrix, np.array(runs_of(record())[0].accuracy), equal_nan=True)
    assert list(frame.loc[1, ["name_learned", "name_tested"]]) == ["cat", 'ant, "bee"']


def test_tasks_that_were_learned_together_were_tested_once_after_the_last() -> None:
    joint = {"name": "joint", "class": "fscl.continual.Joint", "bound": "upper"}
    repeated = [[0.5, None, None], [0.5, 0.75, None], [0.5, 0.75, 1.0]]
    for accuracy in (repeated, repeated[-1:]):
        runs = runs_of(record(strategy=joint, accuracy=accuracy))
        assert runs.to_dataframe()[["task_learned", "task_tested", "accuracy"]].to_numpy().tolist() == [
            [2, 0, 0.5],
            [2, 1, 0.75],
            [2, 2, 1.0],
        ]
        (row,) = runs.to_dataframe("summary").to_dict("records")
        assert row["accuracy"] == 0.75
        assert math.isnan(row["forgetting"])
        assert math.isnan(row["incremental_accuracy"])


def test_numbers_of_a_run_that_is_not_finished_are_undefined() -> None:
    for status in ("running", "failed"):
        (row,) = runs_of(record(status=status)).to_dataframe("summary").to_dict("records")
        assert (row["status"], row["tasks_learned"]) == (status, 3)
        assert all(math.isnan(row[name]) for name in ("accuracy", "forgetting", "bytes_in_all", "train_seconds"))


def test_the_similarity_of_tasks_is_the_mean_over_layers_and_seeds() -> None:
    other = record(seed=1)
    other["similarity"] = {**other["similarity"], "matrix": [np.eye(3).tolist()] * 2}
    runs = runs_of(record(), other, record("naive"))
    names = ['ant, "bee"', "cat", "dog"]
    of_seed_0 = pd.DataFrame([[1.0, 0.25, 0.5], [0.25, 1.0, 0.25], [0.5, 0.25, 1.0]], names, names)
    pd.testing.assert_frame_equal(runs.similarity("ewc", seed=0), of_seed_0)
    pd.testing.assert_frame_equal(runs.similarity("ewc"), (of_seed_0 + np.eye(3)) / 2)
    pairs = runs.to_dataframe("similarity")
    assert pairs[(pairs.strategy == "ewc") & (pairs.seed == 0)].similarity.tolist() == [0.25, 0.5, 0.25]
    assert pairs[["name_a", "name_b"]].to_numpy().tolist()[1] == ['ant, "bee"', "dog"]


def test_a_similarity_that_would_mix_different_runs_is_refused_by_name() -> None:
    swapped = record(seed=1, tasks=record()["tasks"][::-1])
    with pytest.raises(FsclError, match=r"where seed 0 has 'ant, \"bee\"', seed 1 has 'dog'; give one seed of 0, 1"):
        runs_of(record(), swapped).similarity()
    assert list(runs_of(record(), swapped).similarity(seed=1)) == ["dog", "cat", 'ant, "bee"']
    with pytest.raises(FsclError, match="several values of strategy: ewc, naive; filter by one of them"):
        runs_of(record(), record("naive")).similarity()
    with pytest.raises(FsclError, match="several values of recipe_hash: 012e45, ff"):
        runs_of(record(), record(seed=1, recipe_hash="ff")).similarity("ewc")
    with pytest.raises(FsclError, match="several values of benchmark: made_up, made_up, first 3 tasks"):
        runs_of(record(), record(seed=1, first=3)).similarity()
    for change in ({"similarity": None}, {"status": "failed"}):
        with pytest.raises(FsclError, match="none of these runs is finished and has a similarity: <1 runs, "):
            runs_of(record(**change)).similarity()


def test_runs_are_a_sequence_that_is_filtered_by_name() -> None:
    runs = runs_of(record(), record(seed=1), record("naive"), record("naive", benchmark={"name": "another"}))
    assert [run.seed for run in runs] == [0, 1, 0, 0]
    assert runs[-1].benchmark.name == "another"
    assert isinstance(runs[1:], Runs)
    assert len(runs[1:]) == 3
    assert [run.seed for run in runs.filter(strategy="ewc", benchmark="made_up")] == [0, 1]
    assert len(runs.filter(strategy=["ewc", "naive"], seed=0)) == 3
    for seed in runs.to_dataframe("summary")["seed"].unique():  # numbers of NumPy
        assert {run.seed for run in runs.filter(seed=seed)} == {seed}
    with pytest.raises(FsclError, match="no run has strategy 'ewcc'; there is ewc, naive"):
        runs.filter(strategy="ewcc")
    with pytest.raises(FsclError, match="no run has seed 7; there is 0, 1"):
        runs.filter(seed=[0, 7])
    with pytest.raises(FsclError, match="no table 'wide'; use summary, accuracy, similarity"):
        runs.to_dataframe("wide")


def test_a_notebook_shows_means_over_seeds_with_names_escaped() -> None:
    nasty = {"name": "ewc", "title": "<script>alert(1)</script>"}
    accuracy = [[1.0, None, None], [0.75, 0.5, None], [0.25, 0.5, 0.75]]
    runs = runs_of(
        record(strategy=nasty), record(seed=1, strategy=nasty, accuracy=accuracy), record(seed=2, status="failed")
    )
    html = runs._repr_html_()
    assert "<td>&lt;script&gt;alert(1)&lt;/script&gt;</td><td>2</td><td>62.50 ± 17.68</td>" in html
    assert "<script>" not in html
    assert "1 unfinished runs are not shown" in html


def test_csv_files_of_a_report_read_back_as_the_tables(tmp_path: Path) -> None:
    folders = []
    for number, data in enumerate((record(), record("naive", 3), record("lwf", status="failed"))):
        folders.append(tmp_path / "runs" / str(number) / "run.json")
        folders[-1].parent.mkdir(parents=True)
        folders[-1].write_text(json.dumps(data))
    runs = load_runs(str(tmp_path / "runs"))
    assert len(load_runs(folders[:2])) == 2
    written = write_report(runs, tmp_path / "report")
    assert [file.name for file in written.tables] == ["summary.csv", "accuracy.csv", "similarity.csv"]
    markdown, html = written.markdown.read_text(), written.html.read_text()
    for file in written.tables:
        frame = runs.to_dataframe(file.stem)
        assert len(frame) >= 3
        # before version 3.1 pandas reads some last digits wrong
        pd.testing.assert_frame_equal(pd.read_csv(file, dtype=TEXT), frame, rtol=1e-15, atol=1e-15)
        assert f"- `{file.name}`: " in markdown
        assert f'<a href="{file.name}">' in html
    for kept in (tmp_path / "report", tmp_path / "report" / "runs.json"):
        pd.testing.assert_frame_equal(load_runs(kept).to_dataframe("summary"), runs.to_dataframe("summary"))


def test_names_that_a_spreadsheet_would_compute_are_written_as_text() -> None:
    names = ("=1+1", "+a", "-a", "@a", " =1", "ant")
    tasks = [{"name": name, "classes": [name]} for name in names]
    accuracy = np.where(np.tri(6), 0.5, None).tolist()
    runs = runs_of(record(tasks=tasks, accuracy=accuracy, similarity=None, start=[], untrained=[]))
    lines = TABLES["accuracy"].csv(runs).splitlines()
    assert [line.split(",")[-2] for line in lines[-6:]] == ["'=1+1", "'+a", "'-a", "'@a", "' =1", "ant"]
    assert list(runs.to_dataframe()["name_tested"])[-6:] == list(names), "the names themselves stay as they are"
    assert TABLES["similarity"].csv(runs).count("\n") == 1, "only the names of columns"


def test_reading_results_imports_neither_torch_nor_avalanche() -> None:
    code = f"""
import sys, fscl
runs = fscl.load_runs({str(ROOT / "reports/rotated_fmnist")!r})
assert len(runs.to_dataframe("similarity")) and len(runs.similarity("atom_selection")) == 10
runs._repr_html_()
print(sorted({{"torch", "avalanche", "matplotlib"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "[]"


def test_fscl_report_imports_neither_torch_nor_avalanche(tmp_path: Path) -> None:
    kept = json.loads((ROOT / "reports/rotated_fmnist/runs.json").read_text(encoding="utf-8"))
    kept["runs"] = [run for run in kept["runs"] if run["strategy"]["name"] in ("atom_selection", "ewc")]
    (tmp_path / "few").mkdir()
    (tmp_path / "few/runs.json").write_text(json.dumps(kept), encoding="utf-8")
    code = f"""
import sys
sys.argv = ["fscl", "report", {str(tmp_path / "few/runs.json")!r}, "--quiet"]
from fscl.cli.app import main
try:
    main()
except SystemExit as stop:
    assert not stop.code
assert "fscl.similarity.pooled" in sys.modules
print(sorted({{"torch", "avalanche"}} & set(sys.modules)))
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120, cwd=tmp_path)
    assert done.stdout.strip() == "[]"
    assert "Mantel test" in (tmp_path / "report/README.md").read_text(encoding="utf-8")


def test_load_runs_is_a_name_of_the_package() -> None:
    assert fscl.load_runs is load_runs


@pytest.mark.parametrize("file", sorted((ROOT / "reports").glob("*/runs.json")), ids=lambda file: file.parent.name)
def test_a_committed_summary_agrees_with_its_committed_runs(file: Path) -> None:
    runs = load_runs(file)
    table = "federations" if federations_of(runs) else "summary"
    assert (file.parent / f"{table}.csv").read_text(encoding="utf-8") == TABLES[table].csv(runs)


@pytest.mark.parametrize("file", sorted((ROOT / "reports").glob("*/runs.json")), ids=lambda file: file.parent.name)
def test_links_of_a_committed_report_lead_to_files_that_are_committed(file: Path) -> None:
    page = file.with_name("README.md")
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    assert links
    ignored = [line for line in (ROOT / ".gitignore").read_text().splitlines() if line.startswith("reports/")]
    for link in links:
        place = page.parent / link
        assert place.exists(), link
        assert not any(place.relative_to(ROOT).match(pattern) for pattern in ignored), link
