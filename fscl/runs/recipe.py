"""Recipes: benchmarks and strategies as TOML files, read into types that refuse what they do not know."""

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
from fscl.runs.schema import TAGS, WRONG_SPLIT, BenchmarkRecipe, Override, Recipe, StrategyRecipe
from fscl.settings import Settings, Training
from fscl.text import brief

__all__ = [
    "BenchmarkRecipe",
    "StrategyRecipe",
    "find_recipe",
    "find_recipes",
    "load_benchmark",
    "load_strategy",
    "recipe_hash",
    "with_overrides",
]

YOUNGER = {"rotations": None, "permutations": None, "scenario": "task"}  # keys of [split], and their defaults

MOST_BYTES = 2**20  # of a recipe; the largest of ours has a few thousand
# strings and comments; and after them a key such as a.b.c
STRINGS = re.compile(r"""\"{3}(?:\\.|[^\\])*?\"{3}|'{3}.*?'{3}|"(?:\\.|[^"\\\n])*"|'[^'\n]*'|#[^\n]*""", re.DOTALL)
LONG_KEY = re.compile(r"(?:\.[ \t]*[\w-]+[ \t]*){16}")

R = TypeVar("R", bound=Recipe)
S = TypeVar("S", bound=Settings)


def find_recipes(kind: Literal["benchmarks", "strategies"]) -> dict[str, Path]:
    """Recipe files by name: beside the package in a checkout, inside it in an installed wheel.

    Raises:
        FsclError: the installation lacks them.
    """
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "recipes" / kind, package.parent / kind):
        if folder.is_dir():
            return {path.stem: path for path in sorted(folder.glob("*.toml"))}
    raise FsclError(f"this installation of fscl lacks its {kind}; reinstall it")


def load_benchmark(name_or_path: str | Path, trust: bool = False) -> BenchmarkRecipe:
    """A benchmark by name, or from the path of a TOML file.

    Args:
        name_or_path: either.
        trust: whether the file may name a network of any module, and so run any code that is installed. If not, runs
            of it are refused unless the network is ours or one of torchvision, timm, pytorchcv or Avalanche, without
            downloaded weights. Recipes that Python code makes, and settings (:func:`with_overrides`), are trusted.

    Raises:
        FsclError: it is unknown, not TOML, or has a key or value that does not fit.

    Example:
        >>> load_benchmark("split_digits").split.tasks
        5
    """
    where, recipe = _load("benchmarks", name_or_path, BenchmarkRecipe, trust)
    for strategy, override in recipe.strategies.items():
        _validate(f"{where}: strategies.{strategy}.training", override.training, Training)
    return recipe


def load_strategy(name_or_path: str | Path, trust: bool = False) -> StrategyRecipe:
    """A strategy by name, or from the path of a TOML file.

    Args:
        name_or_path: either.
        trust: whether the file may name a class of any module; if not, only ours and Avalanche's strategies are built.

    Raises:
        FsclError: it is unknown, not TOML, or has a key or value that does not fit.

    Example:
        >>> load_strategy("ewc").class_path
        'fscl.continual.repaired.EWC'
    """
    where, recipe = _load("strategies", name_or_path, StrategyRecipe, trust)
    _validate(f"{where}: training", recipe.training, Training)
    for key, values in recipe.tune.training.items():
        for value in values:
            _validate(f"{where}: tune.training", {key: value}, Training)
    # a key that is not there could be no argument at all; and what it is by default would not be known
    if strange := next((key for key in recipe.tune.args if key not in recipe.args), None):
        known = ", ".join(recipe.args) or "none"
        raise FsclError(f"{where}: tune.args: unknown key {brief(strange)}; known keys, those of [args]: {known}")
    return recipe


def with_overrides(
    benchmark: BenchmarkRecipe, strategy: StrategyRecipe, settings: Sequence[str] = ()
) -> tuple[BenchmarkRecipe, StrategyRecipe]:
    """The recipes of one run: the strategy's training over the benchmark's, then the benchmark's words on the strategy,
    then ``key=value`` settings (``training.epochs=2``, ``args.ewc_lambda=10``, ``split.tasks=2``). A network that a
    setting names is the user's own word, and may be of any module.

    Raises:
        FsclError: a setting is not of that form, or does not fit.
    """
    own = benchmark.strategies.get(strategy.name, Override())
    b, s = benchmark.model_dump(by_alias=True), strategy.model_dump(by_alias=True)
    b["training"] |= {**strategy.training, **own.training}
    s["args"] |= own.args
    s["training"], b["strategies"] = {}, {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        *path, leaf = key.strip().split(".")
        if not equals or not path:
            raise FsclError(
                f"--set {setting}: expected SECTION.KEY=VALUE, such as training.epochs=2 or args.num_atoms=6"
            )
        target: Any = s if path[0] == "args" else b
        for part in path:
            if not isinstance(target, dict) or not isinstance(target.get(part), dict):
                known = ", ".join(sorted({k for k, v in b.items() if isinstance(v, dict) and v} | {"args"}))
                raise FsclError(f"--set {setting}: unknown section {'.'.join(path)!r}; known sections: {known}")
            target = target[part]
        target[leaf] = _value(text)
    merged, learner = _validate("--set", b, BenchmarkRecipe), _validate("--set", s, StrategyRecipe)
    if not any(setting.partition("=")[0].strip() == "model.name" for setting in settings):
        merged._stranger = benchmark._stranger
    learner._stranger = strategy._stranger or (benchmark._stranger if own.args else "")
    return merged, learner


def recipe_hash(*recipes: Recipe, **more: Any) -> str:
    """A hash of all that decides a run's numbers; what only describes, and grids, are not in it."""
    parts = [_decisive(recipe) for recipe in recipes]
    return hashlib.sha256(json.dumps([*parts, more], sort_keys=True).encode()).hexdigest()[:16]


def _decisive(recipe: Recipe) -> dict[str, Any]:
    found = recipe.model_dump(exclude={"title", "description", "paper", "bound", "tune"})
    if split := found.get("split"):
        # keys that are younger than the first runs are left out where they change nothing: those runs stay finished
        found["split"] = {k: v for k, v in split.items() if k not in YOUNGER or v != YOUNGER[k]}
        if isinstance(split["tasks"], dict):  # what tasks are called decides nothing; their order, which is lost, does
            found["split"]["tasks"] = list(split["tasks"].values())
    return found


def _value(text: str) -> Any:
    """A TOML value; a bare word is a string."""
    try:
        return tomllib.loads(f"x = {text}")["x"]
    except (ValueError, RecursionError):  # no TOML, too many digits, too deep
        return text


def find_recipe(kind: Literal["benchmarks", "strategies"], name_or_path: str | Path) -> Path:
    """The file of a recipe by name, or from the path of a TOML file.

    Raises:
        FsclError: there is none.

    Example:
        >>> find_recipe("strategies", "ewc").name
        'ewc.toml'
    """
    known = find_recipes(kind)
    path = known.get(str(name_or_path), Path(name_or_path))
    try:
        there = path.is_file()
    except (OSError, ValueError):  # too long for a path, or with a NUL
        there = False
    if not there:
        near = difflib.get_close_matches(str(name_or_path), known, 1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise FsclError(
            f"unknown {'benchmark' if kind == 'benchmarks' else 'strategy'} {brief(str(name_or_path))}{hint}; "
            f"known: {', '.join(known)}, or the path of a TOML file"
        )
    return path


def _load(
    kind: Literal["benchmarks", "strategies"], name_or_path: str | Path, model: type[R], trust: bool
) -> tuple[str, R]:
    path = find_recipe(kind, name_or_path)
    try:
        check_size(path, MOST_BYTES)
        text = path.read_text(encoding="utf-8")
        if LONG_KEY.search(STRINGS.sub("s", text)):  # which tomllib reads in quadratic time
            raise ValueError("a key of more than 16 parts")
        data = tomllib.loads(text)
    except OSError as error:
        raise FsclError(f"{path}: cannot be read ({error.strerror})") from error
    except FsclError:
        raise
    except (ValueError, RecursionError) as error:  # no TOML, not UTF-8, too many digits, too deep
        raise FsclError(f"{path}: not valid TOML ({' '.join(str(error).split())[:200]})") from error
    if "name" not in data and (fault := name_fault(path.stem)):
        raise FsclError(f"{path}: a recipe is called as its file unless it says name = ..., and this file's {fault}")
    data.setdefault("name", path.stem)
    ours = str(name_or_path) in find_recipes(kind)
    where = f"{kind}/{path.name}" if ours else str(path)
    recipe = _validate(where, data, model)
    recipe._stranger = "" if ours or trust else where
    return where, recipe


def _validate(where: str, data: dict[str, Any], model: type[S]) -> S:
    check_plain(where, data)
    try:
        return model.model_validate(data)
    except ValidationError as error:
        found = error.errors()
        # an unknown key says more than the missing one that it was meant to be; and a value that may be of two kinds is
        # wrong in two ways, of which the one that went deepest was meant
        first = next((e for e in found if e["type"] == "extra_forbidden"), found[0])
        first = max((e for e in found if e["loc"][:2] == first["loc"][:2]), key=lambda e: len(e["loc"]))
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
            kind = field.annotation
            if name == part and isinstance(kind, type) and issubclass(kind, BaseModel):
                model = kind
                break
        else:
            model = Override if model is BenchmarkRecipe else model
    return [field.alias or name for name, field in model.model_fields.items()]
