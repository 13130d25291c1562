"""Units are measured once, results are kept whatever comes after, and sections are made of the results there are."""

import importlib
import json
import math
import multiprocessing
import pickle
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import joblib
import pytest

from benchmarks.similarity import page, run
from benchmarks.similarity.blocks import Part
from benchmarks.similarity.page import parts_of
from benchmarks.similarity.run import SECTIONS, Results, gather, read_results
from benchmarks.similarity.units import Context, Number, Result, Unit
from fscl.errors import FsclError

ROOT = Path(__file__).resolve().parents[3]


class Said(Result):
    by: str
    new: int = 0
    lost: Number = 0.5


Answer = Callable[[Context], Said]


class Made:
    """Two sections in place of the study's: what their units measure, and how often each was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.answers: dict[str, Answer] = {}
        self.version = 1
        self.needs: dict[str, tuple[str, ...]] = {}

    def units(self, part: str, quick: bool) -> list[Unit]:
        names = [f"{part}-one", f"{part}-two"] if quick else [f"{part}-{n}" for n in ("one", "two", "three")]
        return [Unit(name, partial(self.measure, name), Said, self.version, self.needs.get(name, ())) for name in names]

    def measure(self, name: str, context: Context) -> Said:
        self.asked.append(name)
        return self.answers.get(name, lambda _: Said(by=name))(context)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Made:
    made = Made()
    sections = ("dogs", "cats")
    monkeypatch.setattr(run, "SECTIONS", {name: partial(made.units, name) for name in sections})
    monkeypatch.setattr(page, "PARTS", {name: partial(part_of, name) for name in sections})
    return made


def part_of(title: str, results: dict[str, Said]) -> Part:
    return Part(title, " ".join(f"{name}={result.by}" for name, result in results.items()), [])


@pytest.fixture
def context(tmp_path: Path) -> Context:
    return Context(None, tmp_path / "work", quick=True)


def kept(out: Path) -> dict[str, Any]:
    return json.loads((out / "results.json").read_text(encoding="utf-8"))


def failing(message: str) -> Answer:
    def answer(context: Context) -> dict[str, Any]:
        raise ValueError(message)

    return answer


def test_every_unit_is_done_once_and_kept(made, context, tmp_path):
    results = gather(context, tmp_path / "out", 1)
    assert sorted(made.asked) == list(results.units) == ["cats-one", "cats-two", "dogs-one", "dogs-two"]
    assert results.model_dump() == kept(tmp_path / "out")
    for name, unit in results.units.items():
        assert unit.result == {"by": name, "new": 0, "lost": 0.5}
        assert unit.seconds >= 0
        assert unit.date
        assert unit.machine
    assert gather(context, tmp_path / "out", 1) == results
    assert len(made.asked) == 4


def test_several_at_a_time_are_all_kept(made, context, tmp_path):
    with joblib.parallel_config(backend="threading"):
        results = gather(context, tmp_path, 3)
    assert sorted(made.asked) == list(results.units)
    assert kept(tmp_path) == results.model_dump()


def test_a_unit_that_fails_costs_no_other(made, context, tmp_path):
    made.answers = {"dogs-one": failing("no bone"), "cats-one": failing("no fish")}
    with pytest.raises(FsclError, match=r"2 of 4 units failed; .*dogs-one: ValueError: no bone") as error:
        gather(context, tmp_path, 1)
    assert "cats-one: ValueError: no fish" in str(error.value)
    assert list(kept(tmp_path)["units"]) == ["cats-two", "dogs-two"]
    made.asked.clear()
    made.answers = {}
    assert len(gather(context, tmp_path, 1).units) == 4
    assert sorted(made.asked) == ["cats-one", "dogs-one"]


def test_units_whose_packages_are_not_installed_are_left_out_by_name(made, context, tmp_path, capsys):
    made.needs = {"dogs-one": ("json", "no_such_package", "none_either"), "cats-one": ("json",)}
    results = gather(context, tmp_path, 1)
    assert list(results.units) == ["cats-one", "cats-two", "dogs-two"]
    assert results.of == 4
    said = capsys.readouterr().out
    assert "dogs-one: left out; no_such_package and none_either are not installed" in said
    assert said.count("left out") == 1
    made.needs["cats-one"] = ("no_such_package",)
    gather(context, tmp_path, 1, only="cats-one")
    assert "left out" not in capsys.readouterr().out, "it was measured where the package was"
    made.answers["cats-one"] = failing("asked")
    gather(context, tmp_path, 1, only="cats-one", overwrite=True)
    assert "cats-one" in kept(tmp_path)["units"]
    assert "cats-one: left out; no_such_package is not installed" in capsys.readouterr().out


def test_an_interrupted_run_goes_on_with_what_is_missing(made, context, tmp_path):
    def interrupted(context: Context) -> dict[str, Any]:
        raise KeyboardInterrupt

    made.answers["cats-one"] = interrupted
    with pytest.raises(KeyboardInterrupt):
        gather(context, tmp_path, 1)
    assert list(kept(tmp_path)["units"]) == ["dogs-one", "dogs-two"]
    made.asked.clear()
    made.answers = {}
    gather(context, tmp_path, 1)
    assert made.asked == ["cats-one", "cats-two"]


@pytest.mark.parametrize("units", ["cats-two", "cats", "c"])
def test_only_some_of_the_units(made, context, tmp_path, units):
    gather(context, tmp_path, 1, only="dogs-one")
    results = gather(context, tmp_path, 1, only=units)
    wanted = ["cats-two"] if units == "cats-two" else ["cats-one", "cats-two"]
    assert list(results.units) == [*wanted, "dogs-one"]
    assert sorted(made.asked) == [*wanted, "dogs-one"]


def test_unknown_units_are_answered_by_the_known(made, context, tmp_path):
    with pytest.raises(FsclError, match=r"birds: no such units; known: dogs-one, dogs-two, cats-one, cats-two"):
        gather(context, tmp_path, 1, only="birds")
    assert not made.asked
    assert not (tmp_path / "results.json").exists()


@pytest.mark.parametrize("quick", [True, False])
def test_results_of_the_two_modes_are_not_mixed(made, tmp_path, quick):
    first, other = (Context(None, tmp_path / "work", mode) for mode in (quick, not quick))
    results = gather(first, tmp_path, 1)
    made.asked.clear()
    with pytest.raises(FsclError, match=f"holds results of the {'quick' if quick else 'full'} mode"):
        gather(other, tmp_path, 1, overwrite=True)
    assert not made.asked
    assert kept(tmp_path) == results.model_dump()
    assert len(gather(other, tmp_path / "other", 1).units) == (6 if quick else 4)


def test_units_are_done_again_when_asked(made, context, tmp_path):
    gather(context, tmp_path, 1)
    made.asked.clear()
    made.answers["dogs-one"] = lambda _: Said(by="a dog", new=1)
    results = gather(context, tmp_path, 1, only="dogs", overwrite=True)
    assert made.asked == ["dogs-one", "dogs-two"]
    assert results.units["dogs-one"].result["new"] == 1
    assert list(results.units) == ["cats-one", "cats-two", "dogs-one", "dogs-two"]
    made.answers["dogs-one"] = failing("no bone")
    with pytest.raises(FsclError, match="1 of 4 units failed"):
        gather(context, tmp_path, 1, overwrite=True)
    assert kept(tmp_path)["units"]["dogs-one"]["result"]["new"] == 1, "the former result is better than none"


def test_units_that_measure_something_new_are_done_again(made, context, tmp_path):
    old = gather(context, tmp_path, 1)
    made.asked.clear()
    made.version = 2
    assert parts_of(old) == [], "what was measured otherwise is not shown"
    results = gather(context, tmp_path, 1, only="dogs")
    assert made.asked == ["dogs-one", "dogs-two"]
    assert [part.title for part in parts_of(results)] == ["dogs"]


@pytest.mark.parametrize("text", ["", '{"quick": true, "units": {', "[]", '{"quick": true}', '{"units": {}}'])
def test_a_file_of_something_else_is_named_and_left(made, context, tmp_path, text):
    (tmp_path / "results.json").write_text(text, encoding="utf-8")
    with pytest.raises(FsclError, match=r"results.json does not hold results of this command; move it away"):
        gather(context, tmp_path, 1)
    assert (tmp_path / "results.json").read_text(encoding="utf-8") == text
    assert made.asked == []


def test_a_full_disk_leaves_the_former_results_whole(made, context, tmp_path, monkeypatch):
    gather(context, tmp_path, 1, only="dogs-one")
    before = kept(tmp_path)
    write = Path.write_text

    def half(file: Path, text: str, *options: Any, **more: Any) -> int:
        write(file, text[: len(text) // 2], *options, **more)
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", half)
        with pytest.raises(FsclError, match="No space left on device"):
            gather(context, tmp_path, 1)
    assert kept(tmp_path) == before
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]
    assert len(gather(context, tmp_path, 1).units) == 4


def test_sections_are_made_of_the_units_there_are(made, context, tmp_path):
    results = gather(context, tmp_path, 1, only="cats")
    assert [part.title for part in parts_of(results)] == ["cats"]
    results = gather(context, tmp_path, 1, only="dogs-two")
    dogs, cats = parts_of(results)  # in the order of the page, not of what was done
    assert (dogs.title, dogs.lead) == ("dogs", "dogs-two=dogs-two")
    assert cats.lead == "cats-one=cats-one cats-two=cats-two"
    results.units["birds-one"] = results.units["cats-one"]  # of an older version
    assert parts_of(results) == [dogs, cats]
    assert parts_of(Results(quick=True, units={})) == []


def test_an_undefined_number_is_null_in_the_file_and_nan_when_it_is_read(made, context, tmp_path):
    made.answers["dogs-one"] = lambda _: Said(by="a dog", lost=math.nan)
    gather(context, tmp_path, 1, only="dogs-one")
    assert kept(tmp_path)["units"]["dogs-one"]["result"]["lost"] is None
    read = read_results(tmp_path / "results.json").of_section("dogs")["dogs-one"]
    assert isinstance(read, Said)
    assert math.isnan(read.lost)


@pytest.mark.parametrize("quick", [True, False])
def test_units_of_the_study_have_names_of_their_own_and_can_be_pickled(quick):
    units = run._units(quick)
    names = [unit.name for unit in units]
    assert len(set(names)) == len(names)
    assert {name.split("-")[0] for name in names} == set(SECTIONS)
    for unit in units:
        assert pickle.loads(pickle.dumps(unit)).name == unit.name


def test_committed_results_are_read_and_written_by_the_same_types():
    """So that the committed page can be made again."""
    results = read_results(ROOT / "reports" / "similarity" / "results.json")
    read = {name: result for section in SECTIONS for name, result in results.of_section(section).items()}
    assert read.keys() == results.units.keys()
    assert len(read) == results.of == 51
    for name, result in read.items():
        assert result.to_json() == results.units[name].result, name


def test_the_committed_page_is_that_of_the_committed_results(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "save_png", lambda figure, file: None)
    monkeypatch.setattr(page, "inline_svg", lambda figure, slug, text: "")
    reports = ROOT / "reports"
    results = read_results(reports / "similarity" / "results.json")
    page.write_page(results, parts_of(results, reports / "speed" / "results.json"), tmp_path)
    committed = (reports / "similarity" / "README.md").read_text(encoding="utf-8")
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == committed


def test_measuring_knows_nothing_of_pages():
    def load() -> None:
        for name in [name for name in sys.modules if name.startswith("benchmarks.similarity.")]:
            del sys.modules[name]
        importlib.import_module("benchmarks.similarity.run")
        sender.send([name for name in sys.modules if name.startswith("benchmarks.similarity.")])

    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=load)  # forked, it need not import PyTorch again
    process.start()
    process.join(100)
    study = receiver.recv() if receiver.poll() else []
    assert "benchmarks.similarity.agreement.measure" in study
    words = ("blocks", "prose", "page", "pictures", "tables", "formats")
    assert not {name for name in study if name.rpartition(".")[2] in words}
