"""Recipes: which are refused with which error, the order of overrides, and what changes the hash."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fscl.errors import FsclError
from fscl.runs.recipe import (
    find_recipes,
    load_any_benchmark,
    load_benchmark,
    load_strategy,
    recipe_hash,
    with_overrides,
)

GOOD = """
title = "Mine"
[data]
name = "digits"
[split]
tasks = 5
"""


def write(folder: Path, text: str, name: str = "mine.toml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (GOOD + "[training]\nepoch = 3", r"'training.epoch' \(did you mean 'epochs'\?\).*batch_size.*lr_next"),
        (GOOD + "[model]\nname = 'convnet'\nwidth = 3", r"unknown key 'model.width'; known keys: name, args"),
        ("titel = 'x'" + GOOD, r"unknown key 'titel' \(did you mean 'title'\?\); known keys: .*data, .*split"),
        (GOOD + "[strategies.ewc]\narg = {}", r"unknown key 'strategies.ewc.arg' \(did you mean 'args'\?\)"),
        (GOOD + "[strategies.ewc.training]\nepoch = 1", r"strategies.ewc.training.*unknown key 'epoch'.*'epochs'"),
        (GOOD + "[strategies.interesting.training]\nlr = -1", r"strategies.interesting.training.*lr = -1"),
        (GOOD + "[training]\nepochs = 'ten'", r"training.epochs = 'ten': input should be a valid integer"),
        (GOOD + "[training]\nepochs = 0", r"training.epochs = 0: .*greater than or equal to 1"),
        (GOOD + "[training]\nlr = nan", r"training.lr = nan"),
        (GOOD + "[training]\nschedule = 'step'", r"training.schedule = 'step': .*'one-cycle', 'cosine' or 'constant'"),
        (GOOD + "[augment]\nflip = 1", r"augment.flip = 1: .*boolean"),
        (GOOD.replace("5", "0"), r"split.tasks = 0"),
        (GOOD.replace("5", "[['0', 1]]"), r"split.tasks.0.1 = 1: input should be a valid string"),
        ("[split]\ntasks = 5", r"'data' is missing"),
        ("[data]\nname = 'digits'\n[split]", r"'split.tasks' is missing"),
        ("title = ", r"not valid TOML"),
        (GOOD.replace("5", "[1, 0]"), r"split.tasks.1 = 0: .*greater than or equal to 1"),
        (GOOD.replace("5", "[['0'], '1']"), r"split.tasks.1 = '1': input should be a valid list"),
        (GOOD.replace("5", "{ number = ['0', 1] }"), r"split.tasks.number.1 = 1: input should be a valid string"),
        (GOOD.replace("5", "2.5"), r"split.tasks = 2.5: input should be a valid integer"),
        (GOOD + "rotations = 4", r"mine.toml: split.tasks and split.rotations exclude each other"),
        (GOOD + "scenario = 'klass'", r"split.scenario = 'klass': .*'task', 'domain' or 'class'"),
        (GOOD + "rotation = 4", r"unknown key 'split.rotation' \(did you mean 'rotations'\?\); known keys: tasks, rot"),
        (GOOD.replace("tasks", "rotations").replace("5", "0"), r"split.rotations = 0: .*greater than or equal to 1"),
        (GOOD.replace("tasks", "rotations").replace("5", "[0, nan]"), r"split.rotations.1 = nan: .*finite"),
        (GOOD.replace("tasks", "permutations").replace("5", "-1"), r"split.permutations = -1"),
        (
            GOOD.replace("tasks", "permutations") + "scenario = 'class'",
            r"split.scenario is 'class', but split.permutations have the same classes; use 'domain' or 'task'",
        ),
    ],
)
def test_a_wrong_recipe_is_refused_with_the_values_that_are_allowed(tmp_path: Path, text: str, says: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(FsclError, match=says) as caught:
        load_benchmark(path)
    assert "mine" in str(caught.value)  # which file
    assert "\n" not in str(caught.value)


def test_a_strategy_without_class_or_with_unknown_keys_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FsclError, match="'class' is missing"):
        load_strategy(write(tmp_path, "title = 'x'"))
    with pytest.raises(FsclError, match=r"'lamda'; known keys: name, title, description, paper, bound, class"):
        load_strategy(write(tmp_path, "class = 'a.B'\nlamda = 3"))
    with pytest.raises(FsclError, match=r"training.*unknown key 'learning_rate'.*known keys: .*lr"):
        load_strategy(write(tmp_path, "class = 'a.B'\n[training]\nlearning_rate = 3"))


def test_a_recipe_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(FsclError, match="not valid TOML"):
        load_benchmark(path)


def test_an_unknown_recipe_name_is_refused_with_the_known_names_and_a_guess() -> None:
    with pytest.raises(FsclError, match=r"'split_digit' \(did you mean 'split_digits'\?\); known: .*split_mnist"):
        load_benchmark("split_digit")
    with pytest.raises(FsclError, match=r"unknown strategy 'qqq'; known: .*atom_swapping, .*ewc.* or the path"):
        load_strategy("qqq")


def test_a_recipe_loads_from_a_path_as_from_a_name(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    recipe = load_benchmark(str(path))
    assert (recipe.name, recipe.title, recipe.split.tasks) == ("mine", "Mine", 5)
    assert load_benchmark(write(tmp_path, GOOD + "", "other.toml")).name == "other"
    assert load_benchmark(write(tmp_path, "name = 'called'" + GOOD)).name == "called"


def test_overrides_win_in_the_order_benchmark_strategy_benchmark_table_settings(tmp_path: Path) -> None:
    benchmark = (
        GOOD
        + """
[training]
epochs = 3
batch_size = 16
lr = 0.5
weight_decay = 0.25
[strategies.learner.training]
lr = 0.125
[strategies.learner.args]
b = 20
[strategies.another.args]
b = 30
"""
    )
    learner = "class = 'a.B'\n[args]\na = 1\nb = 2\n[training]\nbatch_size = 8\nlr = 0.25"
    b, s = load_benchmark(write(tmp_path, benchmark)), load_strategy(write(tmp_path, learner, "learner.toml"))
    merged, arguments = with_overrides(b, s, ["training.weight_decay=0", "args.c=hello", "split.tasks=2"])
    training = merged.training
    assert (training.epochs, training.batch_size, training.lr, training.weight_decay) == (3, 8, 0.125, 0.0)
    assert arguments.args == {"a": 1, "b": 20, "c": "hello"}
    assert merged.split.tasks == 2
    assert b.training.lr == 0.5  # the recipe itself is left as it is
    assert s.args == {"a": 1, "b": 2}


def test_settings_are_read_as_toml_values() -> None:
    b, s = load_benchmark("split_digits"), load_strategy("ewc")
    settings = [
        "model.args.widths=[4, 8]",
        "split.shuffle=false",
        "args.flag=true",
        "args.x=1e-3",
        "split.tasks=[['1']]",
    ]
    b, s = with_overrides(b, s, settings)
    assert b.model.args["widths"] == [4, 8]
    assert b.split.shuffle is False
    assert b.split.tasks == [["1"]]
    assert s.args["flag"] is True
    assert s.args["x"] == 1e-3


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("training.epochs", r"expected SECTION.KEY=VALUE"),
        ("epochs=3", r"expected SECTION.KEY=VALUE"),
        ("=3", r"expected SECTION.KEY=VALUE"),
        ("trainin.epochs=3", r"unknown section 'trainin'; known sections: args, augment, data, model, split, training"),
        ("training.epochs.x=3", r"unknown section 'training.epochs'"),
        ("strategies.ewc={ training = { epochs = 2 } }", r"unknown section 'strategies'; known sections: args, "),
        ("training.epoch=3", r"unknown key 'training.epoch' \(did you mean 'epochs'\?\)"),
        ("training.epochs=many", r"training.epochs = 'many': input should be a valid integer"),
        ("training.epochs=-1", r"training.epochs = -1"),
        ("training.epochs=", r"training.epochs = ''"),
        ("augment.flip=True", r"augment.flip = 'True': input should be a valid boolean"),
    ],
)
def test_a_wrong_setting_is_refused_with_the_values_that_are_allowed(setting: str, says: str) -> None:
    with pytest.raises(FsclError, match=rf"--set.*{says}"):
        with_overrides(load_benchmark("split_digits"), load_strategy("ewc"), [setting])


def hash_of(
    tmp_path: Path, change: tuple[str, str] = ("", ""), settings: tuple[str, ...] = (), learner: str = ""
) -> str:
    text = GOOD.replace(*change) if change[0] else GOOD
    b = load_benchmark(write(tmp_path, text))
    s = load_strategy(write(tmp_path, learner or "class = 'a.B'\n[args]\na = 1", "learner.toml"))
    return recipe_hash(*with_overrides(b, s, settings))


def test_the_recipe_hash_changes_with_numbers_and_not_with_descriptions(tmp_path: Path) -> None:
    plain = hash_of(tmp_path)
    assert re.fullmatch("[0-9a-f]{16}", plain)
    assert hash_of(tmp_path) == plain
    words = ('title = "Mine"', 'title = "Yours"\ndescription = "other words"')
    assert hash_of(tmp_path, words) == plain
    described = "title = 'T'\ndescription = 'D'\npaper = 'P'\nclass = 'a.B'\n[args]\na = 1"
    assert hash_of(tmp_path, learner=described) == plain
    settings = ["training.epochs=11", "training.lr=0.051", "training.lr_next=0.05", "training.batch_size=65"]
    settings += ["training.weight_decay=0.0", "training.momentum=0.8", "training.schedule=cosine"]
    settings += ["training.optimizer=adam", "training.label_smoothing=0.1", "split.tasks=2", "split.shuffle=false"]
    settings += ["augment.flip=true", "augment.crop_padding=1", "model.name=other", "model.args.grid=1"]
    settings += ["data.name=mnist", "data.image_size=8", "args.a=2", "args.b=1"]
    hashes = [hash_of(tmp_path, settings=(setting,)) for setting in settings]
    hashes.append(hash_of(tmp_path, learner="class = 'a.C'\n[args]\na = 1"))
    assert len({plain, *hashes}) == len(hashes) + 1


def test_the_recipe_hash_changes_with_classes_and_order_of_tasks(tmp_path: Path) -> None:
    def of(split: str) -> str:
        return hash_of(tmp_path, ("tasks = 5", split))

    plain = of("tasks = 5")
    assert of("tasks = 5\nscenario = 'task'") == plain
    listed, named = of("tasks = [['0', '1'], ['2', '3']]"), of("tasks = { a = ['0', '1'], b = ['2', '3'] }")
    assert listed == named == of("tasks = { z = ['0', '1'], y = ['2', '3'] }")  # names are words
    splits = ["tasks = [5]", "tasks = [2, 3]", "tasks = [['2', '3'], ['0', '1']]", "rotations = 5", "permutations = 5"]
    splits += ["tasks = { b = ['2', '1'], a = ['0', '3'] }", "rotations = [0, 36]", "rotations = [36, 0]"]
    splits += ["tasks = 5\nscenario = 'domain'", "tasks = 5\nscenario = 'class'", "rotations = 5\nscenario = 'domain'"]
    hashes = [plain, listed, *map(of, splits)]
    assert len(set(hashes)) == len(hashes)


def test_the_recipe_hash_of_earlier_runs_has_not_changed(tmp_path: Path) -> None:
    """The hash of a plain recipe is the one in the records of runs that were made before scenarios existed."""
    assert hash_of(tmp_path) == "477f686d9000986d"


def test_the_scenario_can_be_changed_by_a_setting() -> None:
    b, _ = with_overrides(load_benchmark("split_digits"), load_strategy("ewc"), ["split.scenario=class"])
    assert b.split.scenario == "class"
    named = load_benchmark("split_cifar100_superclass")
    b, _ = with_overrides(named, load_strategy("ewc"), ["split.tasks.insects=['bee']"])
    assert b.split.tasks == {**named.split.tasks, "insects": ["bee"]}
    assert list(b.split.tasks) == list(named.split.tasks)
    b, _ = with_overrides(named, load_strategy("ewc"), ["split.tasks=20"])
    assert b.split.tasks == 20


@pytest.mark.parametrize(
    ("benchmark", "strategy", "setting", "gone"),
    [
        ("federated_cifar100", "fedavg", "federation.dirichlet=0.1", "classes_per_client"),
        ("federated_cifar100", "fedavg", "federation.groups='split_cifar100_superclass'", "classes_per_client"),
        ("federated_digits", "fedavg", "federation.classes_per_client=2", "groups"),
        ("split_digits", "ewc", "split.permutations=3", "tasks"),
        ("rotated_fmnist", "ewc", "split.tasks=5", "rotations"),
    ],
)
def test_a_setting_of_one_way_to_divide_images_takes_the_place_of_the_recipes_way(benchmark, strategy, setting, gone):
    scenario = ["split.scenario='task'"] if setting.startswith("split.") else []
    before, learner = load_any_benchmark(benchmark), load_strategy(strategy)
    b, _ = with_overrides(before, learner, [setting, *scenario])
    section, name = setting.partition("=")[0].split(".")
    assert getattr(getattr(b, section), name) is not None
    assert getattr(getattr(before, section), gone) is not None
    assert getattr(getattr(b, section), gone) is None


def test_settings_of_two_ways_to_divide_images_are_refused():
    recipes = load_any_benchmark("federated_cifar100"), load_strategy("fedavg")
    with pytest.raises(FsclError, match=r"federation.dirichlet and federation.groups exclude each other"):
        with_overrides(*recipes, ["federation.groups=4", "federation.dirichlet=0.1"])


def test_overrides_of_another_strategy_do_not_change_the_recipe_hash(tmp_path: Path) -> None:
    more = ("[split]", "[strategies.another.args]\nx = 1\n[split]")
    assert hash_of(tmp_path, more) == hash_of(tmp_path)


def test_recipes_are_found_in_an_installed_package(tmp_path: Path) -> None:
    """As in a wheel, the recipes are inside the package, and there are none beside it."""
    root = Path(find_recipes("benchmarks")["split_digits"]).parent.parent
    package = Path(sys.modules["fscl"].__file__ or "").parent
    shutil.copytree(package, tmp_path / "fscl", ignore=shutil.ignore_patterns("__pycache__"))
    for kind in ("benchmarks", "strategies"):
        shutil.copytree(root / kind, tmp_path / "fscl" / "recipes" / kind)
    code = (
        "from fscl.runs.recipe import find_recipes, load_strategy;"
        "print(find_recipes('benchmarks')['split_digits'], load_strategy('ewc').name)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    path, name = done.stdout.split()
    assert Path(path).resolve() == (tmp_path / "fscl/recipes/benchmarks/split_digits.toml").resolve()
    assert name == "ewc"
    shutil.rmtree(tmp_path / "fscl" / "recipes")
    failed = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "this installation of fscl lacks its benchmarks" in failed.stderr
