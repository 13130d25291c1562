"""Recipes: benchmarks and strategies as TOML files, read into types that refuse unknown keys and wrong values."""

import difflib
import hashlib
import json
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ValidationError

from fscl.errors import FsclError
from fscl.plain import check_plain, check_size, name_fault
from fscl.runs.schema import (
    SPLITS,
    TAGS,
    WAYS,
    WRONG_SPLIT,
    BenchmarkRecipe,
    FederationRecipe,
    Override,
    Recipe,
    StrategyRecipe,
)
from fscl.settings import Settings, Training
from fscl.text import brief

__all__ = [
    "BenchmarkRecipe",
    "FederationRecipe",
    "StrategyRecipe",
    "find_recipe",
    "find_recipes",
    "load_any_benchmark",
    "load_benchmark",
    "load_strategy",
    "names_of",
    "recipe_hash",
    "with_overrides",
]

# Keys of [split] that are newer than the first runs, with their defaults.
NEWER_KEYS = {"rotations": None, "permutations": None, "scenario": "task"}

FEDERATED = "fscl.federated"  # the package of the methods of federations
MOST_BYTES = 2**20  # of a recipe file; the largest one of fscl has a few thousand
# strings and comments, which may hold any number of dots
STRINGS = re.compile(r"""\"{3}(?:\\.|[^\\])*?\"{3}|'{3}.*?'{3}|"(?:\\.|[^"\\\n])*"|'[^'\n]*'|#[^\n]*""", re.DOTALL)
LONG_KEY = re.compile(r"(?:\.[ \t]*[\w-]+[ \t]*){16}")

R = TypeVar("R", bound=Recipe)
B = TypeVar("B", bound=BenchmarkRecipe | FederationRecipe)
S = TypeVar("S", bound=Settings)


def find_recipes(kind: Literal["benchmarks", "strategies"]) -> dict[str, Path]:
    """Recipe files by name. A checkout has them beside the package, an installed wheel inside it.

    Raises:
        FsclError: the installation lacks them.
    """
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "recipes" / kind, package.parent / kind):
        if folder.is_dir():
            return {path.stem: path for path in sorted(folder.glob("*.toml"))}
    raise FsclError(f"this installation of fscl lacks its {kind}; reinstall it")


def names_of(kind: Literal["benchmarks", "strategies"], federated: bool) -> list[str]:
    """The names of the recipes for federations, or of those for streams of tasks.

    Example:
        >>> "ewc" in names_of("strategies", federated=False), "fedavg" in names_of("strategies", federated=False)
        (True, False)
    """
    marks = {"benchmarks": "[federation]", "strategies": f'class = "{FEDERATED}.'}
    files = find_recipes(kind).items()
    return [name for name, file in files if (marks[kind] in file.read_text(encoding="utf-8")) == federated]


def load_benchmark(name_or_path: str | Path, trust: bool = False) -> BenchmarkRecipe:
    """Loads a benchmark of tasks by its name, or from the path of a TOML file.

    Args:
        name_or_path: the name or the path.
        trust: whether the file may name a network of any module, and so run any code that is installed. If False, its
            runs are refused unless the network comes from fscl, torchvision, timm, pytorchcv or Avalanche, without
            downloaded weights. Recipes made in Python, and settings (:func:`with_overrides`), are always trusted.

    Raises:
        FsclError: the benchmark is unknown, not TOML, or has a wrong key or value; or it is a federation.

    Example:
        >>> load_benchmark("split_digits").split.tasks
        5
    """
    recipe = load_any_benchmark(name_or_path, trust)
    if isinstance(recipe, FederationRecipe):
        raise FsclError(
            f"{brief(str(name_or_path))} is a federation; a benchmark of tasks, such as split_digits, would do"
        )
    return recipe


def load_any_benchmark(name_or_path: str | Path, trust: bool = False) -> BenchmarkRecipe | FederationRecipe:
    """Loads a benchmark of tasks, or a federation, which has a table ``[federation]`` in place of ``[split]``.

    Arguments and errors are those of :func:`load_benchmark`.

    Example:
        >>> load_any_benchmark("federated_digits").federation.clients
        12
    """
    where, data = _read("benchmarks", name_or_path)
    kind: type[BenchmarkRecipe] | type[FederationRecipe]
    kind = FederationRecipe if "federation" in data else BenchmarkRecipe
    recipe: BenchmarkRecipe | FederationRecipe = _trusted(where, data, kind, name_or_path, "benchmarks", trust)
    for strategy, override in recipe.strategies.items():
        _validate(f"{where}: strategies.{strategy}.training", override.training, Training)
    return recipe


def load_strategy(name_or_path: str | Path, trust: bool = False) -> StrategyRecipe:
    """Loads a strategy by its name, or from the path of a TOML file.

    Args:
        name_or_path: the name or the path.
        trust: whether the file may name a class of any module; if False, only strategies of fscl and Avalanche.

    Raises:
        FsclError: the strategy is unknown, not TOML, or has a wrong key or value.

    Example:
        >>> load_strategy("ewc").class_path
        'fscl.continual.repaired.EWC'
    """
    where, data = _read("strategies", name_or_path)
    recipe = _trusted(where, data, StrategyRecipe, name_or_path, "strategies", trust)
    _validate(f"{where}: training", recipe.training, Training)
    for key, values in recipe.tune.training.items():
        for value in values:
            _validate(f"{where}: tune.training", {key: value}, Training)
    # A key that [args] lacks has no own setting to compare with, and may be no argument of the class.
    if unknown := next((key for key in recipe.tune.args if key not in recipe.args), None):
        known = ", ".join(recipe.args) or "none"
        raise FsclError(f"{where}: tune.args: unknown key {brief(unknown)}; known keys, those of [args]: {known}")
    return recipe


def with_overrides(benchmark: B, strategy: StrategyRecipe, settings: Sequence[str] = ()) -> tuple[B, StrategyRecipe]:
    """The recipes of one run, with all overrides applied.

    Later sources win: the benchmark's training, the strategy's training, the benchmark's table for this strategy, then
    ``key=value`` settings (``training.epochs=2``, ``args.ewc_lambda=10``, ``split.tasks=2``). Settings come from the
    user, so a network that a setting names may be of any module. A setting of one way to divide images, such as
    ``federation.dirichlet=0.1``, takes the place of the recipe's way.

    Raises:
        FsclError: a setting is not of the form ``key=value``, or has a wrong key or value.
    """
    own = benchmark.strategies.get(strategy.name, Override())
    benchmark_data, strategy_data = benchmark.model_dump(by_alias=True), strategy.model_dump(by_alias=True)
    benchmark_data["training"] |= {**strategy.training, **own.training}
    strategy_data["args"] |= own.args
    strategy_data["training"] = {}
    del benchmark_data["strategies"]  # all that is used of it is applied, and no setting can add to it
    for setting in settings:
        key, equals, text = setting.partition("=")
        *path, leaf = key.strip().split(".")
        if not equals or not path:
            raise FsclError(
                f"--set {setting}: expected SECTION.KEY=VALUE, such as training.epochs=2 or args.num_atoms=6"
            )
        target: Any = strategy_data if path[0] == "args" else benchmark_data
        for part in path:
            if not isinstance(target, dict) or not isinstance(target.get(part), dict):
                sections = {k for k, v in benchmark_data.items() if isinstance(v, dict) and v} | {"args"}
                known = ", ".join(sorted(sections))
                raise FsclError(f"--set {setting}: unknown section {'.'.join(path)!r}; known sections: {known}")
            target = target[part]
        target[leaf] = _value(text)
    named = {setting.partition("=")[0].strip() for setting in settings}
    for section, ways in (("split", WAYS), ("federation", SPLITS)):
        if chosen := [way for way in ways if f"{section}.{way}" in named]:  # TOML has no value that takes one back
            benchmark_data[section] |= dict.fromkeys(set(ways) - set(chosen))
    merged = _validate("--set", benchmark_data, type(benchmark))
    learner = _validate("--set", strategy_data, StrategyRecipe)
    if not any(setting.partition("=")[0].strip() == "model.name" for setting in settings):
        merged._stranger = benchmark._stranger
    learner._stranger = strategy._stranger or (benchmark._stranger if own.args else "")
    return merged, learner


def recipe_hash(*recipes: Recipe, **more: Any) -> str:
    """A hash of everything that decides a run's numbers. Descriptions and grids do not change it."""
    parts = [_decisive(recipe) for recipe in recipes]
    return hashlib.sha256(json.dumps([*parts, more], sort_keys=True).encode()).hexdigest()[:16]


def _decisive(recipe: Recipe) -> dict[str, Any]:
    content = recipe.model_dump(exclude={"title", "description", "paper", "bound", "tune"})
    if (federation := content.get("federation")) and federation["start_digest"]:
        federation["start"] = ""  # what the file holds counts, wherever it lies
    if split := content.get("split"):
        # A newer key with its default is left out, so that earlier runs keep their hash and stay finished.
        content["split"] = {k: v for k, v in split.items() if k not in NEWER_KEYS or v != NEWER_KEYS[k]}
        # Task names decide nothing, but the order of tasks does. JSON with sorted keys would lose it, so it is a list.
        if isinstance(split["tasks"], dict):
            content["split"]["tasks"] = list(split["tasks"].values())
    return content


def _value(text: str) -> Any:
    """A TOML value; a bare word is a string."""
    try:
        return tomllib.loads(f"x = {text}")["x"]
    except (ValueError, RecursionError):  # not TOML, too many digits, or nested too deep
        return text


def find_recipe(kind: Literal["benchmarks", "strategies"], name_or_path: str | Path) -> Path:
    """The file of a recipe, by its name or its path.

    Raises:
        FsclError: there is no such recipe.

    Example:
        >>> find_recipe("strategies", "ewc").name
        'ewc.toml'
    """
    known = find_recipes(kind)
    path = known.get(str(name_or_path), Path(name_or_path))
    try:
        exists = path.is_file()
    except (OSError, ValueError):  # too long for a path, or with a NUL
        exists = False
    if not exists:
        if Path(name_or_path).suffix == ".toml":
            raise FsclError(f"{brief(str(name_or_path))}: no such file")
        near = difflib.get_close_matches(str(name_or_path), known, 1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise FsclError(
            f"unknown {'benchmark' if kind == 'benchmarks' else 'strategy'} {brief(str(name_or_path))}{hint}; "
            f"known: {', '.join(known)}, or the path of a TOML file"
        )
    return path


def _read(kind: Literal["benchmarks", "strategies"], name_or_path: str | Path) -> tuple[str, dict[str, Any]]:
    """The content of a recipe's file, and the file's name in messages."""
    path = find_recipe(kind, name_or_path)
    try:
        check_size(path, MOST_BYTES)
        text = path.read_text(encoding="utf-8")
        if LONG_KEY.search(STRINGS.sub("s", text)):  # tomllib takes quadratic time for such keys
            raise ValueError("a key of more than 16 parts")
        data = tomllib.loads(text)
    except OSError as error:
        raise FsclError(f"{path}: cannot be read ({error.strerror})") from error
    except FsclError:
        raise
    except (ValueError, RecursionError) as error:  # not TOML, not UTF-8, too many digits, or nested too deep
        raise FsclError(f"{path}: not valid TOML ({' '.join(str(error).split())[:200]})") from error
    if "name" not in data and (fault := name_fault(path.stem)):
        raise FsclError(f"{path}: a recipe without name = ... has the name of its file, and this file's {fault}")
    data.setdefault("name", path.stem)
    return f"{kind}/{path.name}" if _is_shipped(kind, name_or_path) else str(path), data


def _trusted(
    where: str,
    data: dict[str, Any],
    model: type[R],
    name_or_path: str | Path,
    kind: Literal["benchmarks", "strategies"],
    trust: bool,
) -> R:
    """The recipe in a file, which notes whether it is trusted."""
    recipe = _validate(where, data, model)
    recipe._stranger = "" if trust or _is_shipped(kind, name_or_path) else where
    return recipe


def _is_shipped(kind: Literal["benchmarks", "strategies"], name_or_path: str | Path) -> bool:
    return str(name_or_path) in find_recipes(kind)


def _validate(where: str, data: dict[str, Any], model: type[S]) -> S:
    check_plain(where, data)
    try:
        return model.model_validate(data)
    except ValidationError as error:
        errors = error.errors()
        # A misspelt key gives two errors, unknown and missing; the unknown key tells more. A value that may have one of
        # two types gives an error for each; the one with the deepest place is for the type that was meant.
        first = next((e for e in errors if e["type"] == "extra_forbidden"), errors[0])
        first = max((e for e in errors if e["loc"][:2] == first["loc"][:2]), key=lambda e: len(e["loc"]))
        at = [str(part) for part in first["loc"]]
        if first["type"] == "extra_forbidden":
            keys = _known_keys(model, at[:-1])
            near = difflib.get_close_matches(at[-1], keys, 1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise FsclError(
                f"{where}: unknown key {brief('.'.join(at))}{hint}; known keys: {', '.join(keys)}"
            ) from error
        if first["type"] == "missing":
            raise FsclError(f"{where}: {brief('.'.join(at))} is missing") from error
        if first["type"] == WRONG_SPLIT:
            raise FsclError(f"{where}: {first['msg']}") from error
        at = [part for before, part in zip(["", *at], at, strict=False) if before != "tasks" or part not in TAGS]
        place = ".".join(p for p in at if p != "int" and not p.startswith(("constrained-", "list[")))
        place = place if place.isprintable() and len(place) < 200 else brief(place)
        raise FsclError(f"{where}: {place} = {brief(first['input'])}: {first['msg'].lower()}") from error


def _known_keys(model: type[BaseModel], path: Sequence[str]) -> list[str]:
    for part in path:
        for name, field in model.model_fields.items():
            annotation = field.annotation
            if name == part and isinstance(annotation, type) and issubclass(annotation, BaseModel):
                model = annotation
                break
        else:
            model = Override if model is BenchmarkRecipe else model
    return [field.alias or name for name, field in model.model_fields.items()]
