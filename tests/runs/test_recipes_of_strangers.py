"""Untrusted recipes and records run no code, write only to the output folder, and are refused in one line or right."""

import json
import os
import sys
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.hostile import recipes, records
from benchmarks.hostile.mutations import as_json, mutate_bytes, mutate_values
from fscl.errors import FsclError
from fscl.factories import check_network, network_factory
from fscl.runs.recipe import load_benchmark, load_strategy, with_overrides
from fscl.runs.run import run_one
from fscl.runs.spec import RunSpec
from fscl.runs.stream.building import check_trusted

Fscl = Any  # the fixture, see conftest.py
pytestmark = pytest.mark.usefixtures("undrawn")
RANDOM = st.randoms(use_true_random=False)
FUZZ = settings(
    max_examples=100, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
NET = """
from torch import nn

def net(num_classes):
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, num_classes))
"""
LEARNER = "from avalanche.training import Naive\n\n\nclass Mine(Naive):\n    pass\n"


def in_one_line(error: FsclError, *parts: str) -> None:
    assert "\n" not in str(error)
    assert len(str(error)) < 1500
    for part in parts:
        assert part in str(error)


def recipe(folder: Path, **changes: Any) -> Path:
    path = folder / "theirs.toml"
    path.write_text(recipes.as_toml(recipes.BENCHMARK | changes), encoding="utf-8")
    return path


def spec_of(path: Path, trust: bool = False, setting: tuple[str, ...] = ()) -> RunSpec:
    return RunSpec(*with_overrides(load_benchmark(path, trust), load_strategy("naive"), setting), 0)


# names


@pytest.mark.parametrize("name", recipes.NAMES, ids=ascii)
@pytest.mark.parametrize("kind", ["benchmark", "strategy"])
def test_a_name_that_is_not_a_folder_name_is_refused_with_file_and_value(tmp_path: Path, kind: str, name: str) -> None:
    names = {"benchmark": "mine", "strategy": "mine"} | {kind: name}
    with pytest.raises(FsclError) as caught:
        recipes.kept_inside(tmp_path, **names)
    in_one_line(caught.value, f"{'b' if kind == 'benchmark' else 's'}{os.getpid()}.toml: name = ")


@pytest.mark.parametrize(
    "name", ["split_digits", "my net", "Übung 2", "花", "v1.5", "a-b", "x" * 100, "naïve (2)", "CONsole"]
)
def test_runs_with_unusual_names_stay_below_the_output_folder(tmp_path: Path, name: str) -> None:
    assert recipes.kept_inside(tmp_path, name, name)


@pytest.mark.parametrize("stem", ["..", ".", "-x", "a\nb", " x", "con", "x" * 200, "x."])
def test_a_recipe_file_whose_name_is_not_a_folder_name_needs_a_name_key(tmp_path: Path, stem: str) -> None:
    path = tmp_path / f"{stem}.toml"
    path.write_text(recipes.as_toml(recipes.BENCHMARK))
    with pytest.raises(FsclError, match=r"a recipe without name = \.\.\."):
        load_benchmark(path)
    path.write_text("name = 'other'\n" + recipes.as_toml(recipes.BENCHMARK))
    assert load_benchmark(path).name == "other"


def test_recipes_made_in_python_cannot_put_runs_outside_the_output_folder(tmp_path: Path) -> None:
    spec = spec_of(recipe(tmp_path))
    for name in ("", "../x", "/x", "a/b"):
        with pytest.raises(FsclError, match=r"no folder for a run can be called|a run cannot be kept in a folder"):
            RunSpec(spec.benchmark.model_copy(update={"name": name}), spec.strategy, 0)
    with pytest.raises(FsclError, match="reports are written to a folder of this name"):
        recipes.kept_inside(tmp_path, "mine", "report")


def test_wrong_names_of_overridden_strategies_and_tasks_are_refused(tmp_path: Path) -> None:
    for changes in (
        {"strategies": {"../x": {}}},
        {"split": {"tasks": {"a\nb": ["0"]}}},
        {"split": {"tasks": {"": []}}},
    ):
        with pytest.raises(FsclError) as caught:
            load_benchmark(recipe(tmp_path, **changes))
        in_one_line(caught.value, "theirs.toml: ")


# what a recipe may build


@pytest.mark.parametrize("name", recipes.NETWORKS, ids=ascii)
def test_a_network_outside_the_known_libraries_is_refused_and_no_code_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FsclError) as caught:
        recipes.refused_network(tmp_path, name)
    in_one_line(caught.value, ".toml: ")
    assert not {"planted", "this", "antigravity", "torchvision.models.planted"} & set(sys.modules)


@pytest.mark.parametrize("path", recipes.CLASSES, ids=ascii)
def test_a_learner_outside_fscl_and_avalanche_is_refused_and_no_code_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FsclError) as caught:
        recipes.refused_class(tmp_path, path)
    in_one_line(caught.value, ".toml: ")
    unknown = path in ("a\0.b", "avalanche.training.os", "avalanche.training.EWC.x")
    assert unknown or ("avalanche.training and fscl.continual" in str(caught.value) and "--trust" in str(caught.value))


@pytest.mark.parametrize("model", recipes.LARGE, ids=lambda model: json.dumps(model)[:60])
def test_wrong_or_huge_arguments_of_a_network_are_refused_before_memory_is_allocated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: dict[str, Any]
) -> None:
    monkeypatch.setattr("fscl.networks.MOST_BYTES", 2**26)
    with pytest.raises(FsclError) as caught:
        recipes.built(tmp_path, recipes.BENCHMARK | {"model": model}, recipes.STRATEGY)
    in_one_line(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        "convnet", "torchvision:resnet18", "torchvision:MobileNetV2", "torchvision.models:resnet18",
        "torchvision.models.resnet:resnet34", "pytorchcv:resnet20_cifar10", "avalanche:SlimResNet18",
        "avalanche:SimpleMLP", "avalanche.models:IcarlNet", "avalanche:MobilenetV1", "fscl.networks:ConvNet",
        "avalanche:make_icarl_net",
    ],
)  # fmt: skip
def test_an_untrusted_recipe_may_name_networks_of_known_libraries(name: str) -> None:
    check_network(name, {"num_classes": 10, "pretrained": False})


def test_an_untrusted_recipe_may_name_all_networks_of_torchvision_and_nothing_else() -> None:
    from torchvision import models

    known = set(models.list_models(module=models))
    for name, item in vars(models).items():
        try:
            check_network(f"torchvision:{name}", {})
        except FsclError:
            assert name not in known
        else:
            is_class = isinstance(item, type) and issubclass(item, models.resnet.nn.Module)
            assert name in known or is_class or name == "list_models", name


@pytest.mark.parametrize("argument", ["weights", "weights_backbone", "pretrained", "pretrained_cfg", "checkpoint_path"])
def test_downloaded_weights_are_refused_in_a_recipe_and_allowed_in_settings(tmp_path: Path, argument: str) -> None:
    model = {"name": "torchvision:resnet18", "args": {argument: "x"}}
    with pytest.raises(FsclError, match=rf"model.args.{argument} = 'x': a recipe may not name weights .*--trust"):
        check_trusted(spec_of(recipe(tmp_path, model=model)))
    check_trusted(spec_of(recipe(tmp_path, model=model), trust=True))
    check_trusted(spec_of(recipe(tmp_path, model=model | {"args": {argument: False}})))


def test_the_error_of_an_untrusted_network_names_file_value_known_names_and_trust(tmp_path: Path) -> None:
    path = recipe(tmp_path, model={"name": "torch.hub:load"})
    with pytest.raises(FsclError) as caught:
        check_trusted(spec_of(path))
    in_one_line(
        caught.value, str(path), "model.name = 'torch.hub:load'", "convnet, torchvision:NAME", "timm:NAME", "--trust"
    )


def test_run_one_refuses_an_untrusted_recipe_unless_it_is_loaded_with_trust(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net_of_mine.py").write_text(NET)
    path = recipe(tmp_path, model={"name": "net_of_mine:net"})
    short = ("split.tasks=2",)
    with pytest.raises(FsclError, match=r"model.name = 'net_of_mine:net'"):
        run_one(spec_of(path, setting=short), tmp_path / "out")
    for spec in (
        spec_of(path, trust=True, setting=short),
        spec_of(path, setting=(*short, "model.name=net_of_mine:net")),
    ):
        check_trusted(spec)
    run_one(spec_of(path, trust=True, setting=short), tmp_path / "out")


# the command line


def test_a_network_of_a_local_module_runs_if_a_setting_names_it(fscl: Fscl, tmp_path: Path) -> None:
    (tmp_path / "nets").mkdir()
    (tmp_path / "nets/of_mine.py").write_text(NET)
    short = ["run", "-s", "naive", "--seeds", 1, "--jobs", 1]
    for setting in ("training.epochs=1", "split.tasks=2", "model.args={}"):
        short += ["--set", setting]
    before = list(sys.path)
    for name in ("nets.of_mine:net", "nets/of_mine.py:net"):
        ended = fscl(*short, "--set", f"model.name={name}", "--out", name.replace("/", "_"))
        assert ended.code == 0, ended.err
    assert sys.path == before
    ended = fscl(*short, "--set", "model.name=nets.of_mime:net")
    assert ended.code == 2
    assert "there is no module 'nets.of_mime' in the current folder, nor installed" in ended.err


def test_an_untrusted_recipe_is_refused_without_trust_and_runs_with_it(fscl: Fscl, tmp_path: Path) -> None:
    (tmp_path / "net_of_them.py").write_text(NET + f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    (tmp_path / "learner_of_them.py").write_text(LEARNER)
    tune = {"training": {"lr": [0.1, 0.01]}}
    recipe(tmp_path, model={"name": "net_of_them:net"})
    (tmp_path / "learner.toml").write_text(recipes.as_toml({"class": "learner_of_them.Mine", "tune": tune}))
    short = ["--jobs", 1, "--set", "training.epochs=1"]
    for command in (["run", "theirs.toml", "-s", "naive", "--seeds", 1], ["tune", "theirs.toml", "-s", "naive"]):
        ended = fscl(*command, *short)
        assert ended.code == 2
        assert ended.err.startswith("error: theirs.toml: model.name = 'net_of_them:net': a recipe may name convnet, ")
        assert ended.err.count("\n") == 1
    ended = fscl("run", "split_digits", "-s", "learner.toml", "--seeds", 1, *short)
    assert ended.code == 2
    assert ended.err.startswith("error: learner.toml: class = 'learner_of_them.Mine': a recipe may name strategies of ")
    assert not (tmp_path / "ran").exists()
    ended = fscl("run", "theirs.toml", "-s", "learner.toml", "--seeds", 1, *short, "--trust")
    assert ended.code == 0, ended.err
    assert (tmp_path / "ran").exists()
    ended = fscl("tune", "theirs.toml", "-s", "learner.toml", "--tasks", 2, *short, "--trust")
    assert ended.code == 0, ended.err


def test_fscl_run_writes_nothing_outside_the_output_folder(fscl: Fscl, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("../../escaped", str(tmp_path / "escaped"), "..", "a/../../../escaped"):
        recipe(tmp_path / "in", name=name)
        ended = fscl("run", "in/theirs.toml", "-s", "naive", "--seeds", 1, "--out", "in/out/sub")
        assert (ended.code, ended.err.count("\n")) == (2, 1)
        assert "in/theirs.toml: name = " in ended.err
    assert {path.name for path in tmp_path.rglob("*")} == {"in", "theirs.toml"}


# any values


@pytest.mark.parametrize("text", recipes.TEXTS, ids=lambda text: ascii(text[:40]))
def test_a_recipe_with_odd_text_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    try:
        assert recipes.read(tmp_path, text.encode(), load_benchmark)
    except FsclError as error:
        in_one_line(error, str(tmp_path), ".toml: ")
    else:
        assert "1000000000" in text, "a number that the data decides on"


@FUZZ
@given(random=RANDOM)
def test_a_benchmark_with_random_values_is_refused_or_loads_as_its_toml(
    tmp_path_factory: pytest.TempPathFactory, random: Random
) -> None:
    _recipe_of(tmp_path_factory.getbasetemp(), recipes.BENCHMARK, load_benchmark, random)


@FUZZ
@given(random=RANDOM)
def test_a_strategy_with_random_values_is_refused_or_loads_as_its_toml(
    tmp_path_factory: pytest.TempPathFactory, random: Random
) -> None:
    _recipe_of(tmp_path_factory.getbasetemp(), recipes.STRATEGY, load_strategy, random)


def _recipe_of(folder: Path, good: dict[str, Any], load: Any, random: Random) -> None:
    text = recipes.as_bytes(mutate_values(good, random))
    if random.random() < 0.3:
        text = mutate_bytes(text, random)
    try:
        assert recipes.read(folder, text, load)
    except FsclError as error:
        in_one_line(error, str(folder))


@pytest.mark.parametrize(("key", "value"), records.CHANGES, ids=lambda x: ascii(x)[:40] if isinstance(x, str) else "")
def test_a_record_with_a_wrong_value_is_refused_or_shown_right(tmp_path: Path, key: str, value: Any) -> None:
    text = as_json({**records._finished(), key: value})
    try:
        assert records.told(tmp_path, text)
    except FsclError as error:
        in_one_line(error, "run.json: ")


@pytest.mark.parametrize("text", records.TEXTS, ids=lambda text: ascii(text[:30]))
def test_a_record_with_odd_text_is_refused_in_one_line(tmp_path: Path, text: bytes) -> None:
    with pytest.raises(FsclError) as caught:
        records.told(tmp_path, text)
    in_one_line(caught.value, "run.json: ")


RECORD = records._finished()


@FUZZ
@given(random=RANDOM)
def test_a_record_with_random_values_is_refused_or_shown_right(
    tmp_path_factory: pytest.TempPathFactory, random: Random
) -> None:
    text = as_json(mutate_values(RECORD, random))
    if random.random() < 0.3:
        text = mutate_bytes(text, random)
    try:
        assert records.told(tmp_path_factory.getbasetemp(), text)
    except FsclError as error:
        in_one_line(error, "run.json: ")


def test_a_hostile_record_is_named_and_the_other_runs_are_reported(fscl: Fscl, tmp_path: Path) -> None:
    good = tmp_path / "runs/good/run.json"
    good.parent.mkdir(parents=True)
    good.write_text(json.dumps(RECORD))
    bad = [b"{", b"[" * 100_000, as_json({**RECORD, "accuracy": [[7]]}), as_json({**RECORD, "seconds": 3})]
    for number, text in enumerate(bad):
        (tmp_path / f"runs/bad{number}").mkdir()
        (tmp_path / f"runs/bad{number}/run.json").write_bytes(text)
    ended = fscl("report", "runs")
    assert ended.code == 0
    lines = ended.err.splitlines()
    assert len(lines) == 4
    assert all(f"/runs/bad{n}/run.json: " in line for n, line in enumerate(sorted(lines)))
    assert all(line.startswith("left out: ") for line in lines)
    assert "Atom swapping" in (tmp_path / "report/README.md").read_text()
    good.unlink()
    ended = fscl("report", "runs")
    assert ended.code == 2
    assert ended.err.splitlines()[-1].startswith("error: no run.json can be read (runs)")


@pytest.mark.usefixtures("drawn")
def test_names_with_markup_are_escaped_on_the_page(fscl: Fscl, tmp_path: Path) -> None:
    name = "<script>alert(1)</script>|*b*"
    tasks = [{"name": f"{name} {n}", "classes": [name]} for n, _ in enumerate(RECORD["tasks"])]
    record = {**RECORD, "tasks": tasks, "strategy": RECORD["strategy"] | {"title": name}}
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/run.json").write_text(json.dumps(record))
    assert fscl("report", "runs").code == 0
    page = (tmp_path / "report/index.html").read_text()
    assert "<script" not in page.replace('<script id="behaviour">', "")  # the page's own
    assert "<script" not in (tmp_path / "report/README.md").read_text()


@pytest.mark.parametrize(
    "report", [b"", b"[", b"3", b"[]", b'["x"]', b"[null]", b"[1e999]", b"[NaN]", b"[[]]", b'{"0": 1}']
)
def test_the_live_table_survives_any_report_of_a_worker(tmp_path: Path, report: bytes) -> None:
    assert records.watched(tmp_path, report)


def test_each_way_of_naming_a_network_finds_its_factory() -> None:
    assert network_factory("torchvision:resnet18") is network_factory("torchvision.models.resnet:resnet18")
