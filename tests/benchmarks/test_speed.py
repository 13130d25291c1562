"""The speed benchmarks: ratios of timings, a measurement of training, and the committed page."""

import json
from pathlib import Path

from benchmarks.speed import timing, training
from benchmarks.speed.report import write_report

ROOT = Path(__file__).resolve().parents[2]


def test_timed_calls_take_turns_and_ratios_are_taken_in_each_round():
    order = []
    seconds = iter([1.0, 2.0, 4.0, 1.0, 1.0, 3.0])  # a, b | b, a | a, b

    def call(name):
        order.append(name)
        return next(seconds)

    taken = timing.alternately({n: lambda n=n: call(n) for n in "ab"}, rounds=3, warmup=0)
    assert "".join(order) == "abbaab"
    assert taken == {"a": [1.0, 1.0, 1.0], "b": [2.0, 4.0, 3.0]}
    ratio = timing.ratio(taken["b"], taken["a"])
    assert (ratio.median, ratio.low, ratio.high, ratio.n) == (3.0, 2.5, 3.5, 3)


def test_calls_are_timed_unless_they_return_their_own_time():
    taken = timing.alternately({"nothing": lambda: None}, rounds=4, warmup=1)["nothing"]
    assert len(taken) == 4
    assert all(0 < s < 1 for s in taken)
    assert len(timing.alternately({"x": lambda: 1.0}, rounds=9, warmup=0, budget=-1.0)["x"]) == 3


def test_training_speed_is_measured_for_bare_fscl_and_avalanche(monkeypatch):
    monkeypatch.setattr(training, "CASES", (("split_digits", {"training.precision": "bfloat16"}, "atom_swapping"),))
    found = training.measure(quick=True)
    (row,) = found["rows"]
    assert set(row["images_per_second"]) == {"bare", "fscl", "avalanche"}
    assert all(v["low"] <= v["median"] <= v["high"] for v in row["images_per_second"].values())
    assert row["precision"] == "bfloat16"
    assert found["skipped"] == []
    monkeypatch.setattr(training, "CASES", (("split_cifar100", {}, "naive"),))
    monkeypatch.setattr(training, "find_data", lambda *_: None)
    assert training.measure(quick=True)["skipped"] == ["split_cifar100: its images are missing"]


def test_the_committed_speed_page_is_written_from_its_committed_results(tmp_path):
    committed = ROOT / "reports" / "speed"
    numbers = json.loads((committed / "results.json").read_text(encoding="utf-8"))
    text = write_report(numbers, tmp_path)
    assert text == (committed / "README.md").read_text(encoding="utf-8")
    assert (tmp_path / "training.png").stat().st_size > 10_000
    assert (tmp_path / "similarity.png").stat().st_size > 10_000
