"""Recipes that are not trusted: names that lead to other folders, networks that run code, values of any type."""

import json
import os
import tomllib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.hostile.mutations import mutate_bytes, mutate_values
from benchmarks.hostile.trial import Trial
from fscl.runs.recipe import load_benchmark, load_strategy, with_overrides
from fscl.runs.spec import RunSpec
from fscl.runs.stream.building import check_runnable, load_stream

__all__ = [
    "BENCHMARK",
    "CLASSES",
    "LARGE",
    "NAMES",
    "NETWORKS",
    "STRATEGY",
    "TEXTS",
    "as_bytes",
    "built",
    "load_pair",
    "mutated",
    "no_code",
    "read",
    "trials",
]

Load = Callable[[Path], Any]
Pair = tuple[dict[str, Any], dict[str, Any]]  # a benchmark and a strategy

BENCHMARK: dict[str, Any] = {
    "title": "Mine",
    "data": {"name": "digits"},
    "split": {"tasks": 5},
    "augment": {"crop_padding": 1, "flip": True},
    "model": {"name": "convnet", "args": {"widths": [4, 4], "pool_after": [0], "grid": 2, "dropout": 0.1}},
    "training": {"epochs": 1, "batch_size": 16, "lr": 0.05, "momentum": 0.9, "schedule": "cosine"},
    "strategies": {"ewc": {"args": {"ewc_lambda": 2.0}, "training": {"lr_next": 0.01}}},
}
STRATEGY: dict[str, Any] = {
    "title": "Mine",
    "class": "fscl.continual.repaired.EWC",
    "args": {"ewc_lambda": 1.0, "mode": "separate"},
    "training": {"epochs": 1},
    "tune": {"args": {"ewc_lambda": [1.0, 10.0]}, "training": {"lr": [0.1]}},
}
NAMES = (
    "../../x", "..", ".", "", "/x", "/tmp/x", "a/b", "a\\b", "..\\x", "C:x", "con", "NUL", "com1.txt", "x.", "x ",
    " x", "-x", "--out", ".x", "a\0b", "a\nb", "a\x1b[2Jb", "\u202ex", "x" * 300, "\u82b1" * 101, "a*", "a?", "<b>",
    "a|b", 'a"b', "~/../x", "x/../../y", "\u2028", "report/../../x",
)  # fmt: skip
NETWORKS = (
    "torch.hub:load", "torchvision.models:torch", "torchvision:os", "torchvision:get_model", "torchvision:_api",
    "torchvision.models:get_weight", "torchvision.models._api:get_model", "builtins:exec", "os:system", "this:s",
    "antigravity:fly", "runpy:run_path", "importlib:import_module", "subprocess:run", "pickle:loads", "torch:load",
    "avalanche.models:create_model", "avalanche.models.utils:as_multitask", "avalanche:avalanche_forward",
    "fscl.continual:build_network", "fscl.factories:network_factory", "fscl.cli.app:main", "planted:net",
    "planted.py:net", "./planted.py:net", "pytorchcv:planted", "timm:hf-hub:someone/net", "torchvision_planted:net",
    "torchvision.models.planted:net", "torchvision.datasets:CIFAR10", "torchvision:resnet18.__init__", "..x:y", ":",
    "x:",
    ":x", "a\0b:c", "convnet:x", "torchvision:", "torchvision:models:resnet18", "unittest.mock:Mock", "",
)  # fmt: skip
CLASSES = (
    "planted.Net", "this.s", "antigravity.fly", "os.system", "..x.y", "", ".", "x", "x.", ".x", "a..b", "a\0.b",
    "collections.OrderedDict", "avalanche.training.os", "avalanche.training.plugins.EWCPlugin", "torch.hub.load",
    "avalanche.trainingx.Naive", "fscl.continual.build_network", "fscl.cli.app.main", "avalanche.training.EWC.x",
    "unittest.mock.Mock", "avalanche.models.SimpleMLP", "fscl.continual.__class__", "fscl.continual.ConvNet",
    "\u82b1.x",
)  # fmt: skip
# networks with arguments that are too large or wrong, or that load weights from elsewhere
LARGE: tuple[dict[str, Any], ...] = (
    {"args": {"widths": [10**9]}}, {"args": {"widths": [10**5, 10**5]}}, {"args": {"grid": 10**6}},
    {"args": {"widths": [4] * 200_000}}, {"args": {"widths": [-1]}}, {"args": {"widths": "wide"}},
    {"args": {"widths": []}}, {"args": {"dropout": 7}}, {"args": {"pool_after": list(range(90))}}, {"args": {"x": 1}},
    {"name": "avalanche:SimpleMLP", "args": {"hidden_layers": 10**9}},
    {"name": "avalanche:SimpleMLP", "args": {"input_size": 10**12}},
    {"name": "torchvision:resnet18", "args": {"weights": "DEFAULT"}},
    {"name": "torchvision:resnet18", "args": {"pretrained": True}},
    {"name": "pytorchcv:resnet20_cifar10", "args": {"pretrained": True, "root": "/tmp/x"}},
    {"name": "torchvision.models:ResNet", "args": {"block": "os.system", "layers": [1, 1, 1, 1]}},
)  # fmt: skip
DOTS = """'a'."b"."""
_DIGITS = '[data]\nname = "digits"\n[split]\n'
TEXTS = (
    f"a = {'[' * 3000}{']' * 3000}", f"{'a.' * 20_000}b = 1",
    f"[{'a . ' * 200_000}b]", f"{DOTS * 100_000}b = 1", f"{_DIGITS}tasks = {'9' * 10_000}", "\ufeff", "[[data]]",
    f"{_DIGITS}tasks = 0x{'f' * 10_000}", f"{_DIGITS}tasks = 1979-05-27", f"{_DIGITS}tasks = inf", "x" * 2**21,
    f"{_DIGITS}tasks = 1000000000", f"{_DIGITS}rotations = 1000000", f"{_DIGITS}rotations = [1e999]", "a = 1\na = 2",
    f"{_DIGITS}permutations = 1000000000", f"{_DIGITS}tasks = 5\n[training]\nbatch_size = 1000000000000",
    f"{_DIGITS}tasks = 5\n[training]\nepochs = 1{'0' * 400}", f"{_DIGITS}tasks = 5\n[training]\nlr = nan",
    f"{_DIGITS}tasks = 5\n[training]\nlr = inf", f"{_DIGITS}tasks = 5\n[augment]\ncrop_padding = 1000000000",
    f"{_DIGITS}tasks = 5\n[model.args]\nwidths = 1979-05-27", f"{_DIGITS}tasks = 5\n[model.args]\nwidths = [nan]",
    f"{_DIGITS}image_size = 1000000000", f"{_DIGITS}tasks = {{ 'a\\u0000b' = ['0'] }}".replace("'", '"'),
    f"{_DIGITS}tasks = {{ '{'x' * 10_000}' = ['0'] }}".replace("'", '"'), "name = 1979-05-27", "data = 1", "split = []",
    f'{_DIGITS}tasks = 5\n[strategies."../x".args]\na = 1', f"{_DIGITS}tasks = 5\n[strategies]\newc = 3",
)  # fmt: skip


def trials(folder: Path, rng: Random, count: int) -> Iterator[Trial]:
    built(folder, BENCHMARK, STRATEGY)  # slow imports, before the trials' processes are forked
    for name in NAMES:
        yield Trial("a benchmark's name", lambda name=name: kept_inside(folder, name, "mine"))
        yield Trial("a strategy's name", lambda name=name: kept_inside(folder, "mine", name))
    for name in NETWORKS:
        yield Trial("a network that runs code", lambda name=name: refused_network(folder, name))
    for path in CLASSES:
        yield Trial("a learner that runs code", lambda path=path: refused_class(folder, path))
    for model in LARGE:
        yield Trial("a network's arguments", lambda model=model: built(folder, _with_model(model), STRATEGY))
    for text in TEXTS:
        yield Trial("a file of odd text", lambda text=text: read(folder, text.encode(), load_benchmark))
    for _ in range(count):
        seed = rng.random()
        for place, (what, load) in enumerate((("benchmark", load_benchmark), ("strategy", load_strategy))):
            act = partial(mutated, folder, seed, (BENCHMARK, STRATEGY), place, load, built)
            yield Trial(f"a {what} of any values", act)
    for _ in range(count):
        damaged = mutate_bytes(as_bytes(BENCHMARK), rng)
        yield Trial("random damage of the file", lambda damaged=damaged: read(folder, damaged, load_benchmark))


def kept_inside(folder: Path, benchmark: str, strategy: str) -> bool:
    """Whether a run with these names has a folder three levels below the output folder: benchmark, strategy, seed."""
    b, s = load_pair(folder, {**BENCHMARK, "name": benchmark}, {**STRATEGY, "name": strategy})
    out = folder / "out"
    place = Path(os.path.normpath(RunSpec(b, s, 0).folder(out)))
    return len(place.relative_to(out).parts) == 3


def refused_network(folder: Path, name: str) -> bool:
    return no_code(folder, lambda: built(folder, _with_model({"name": name}), STRATEGY))


def refused_class(folder: Path, class_path: str) -> bool:
    return no_code(folder, lambda: built(folder, BENCHMARK, {"class": class_path}))


def no_code(folder: Path, build: Callable[[], object]) -> bool:
    """Tries to build a recipe. Returns False if it is accepted, and raises if planted code was run."""
    marker = _planted(folder)
    try:
        build()
    finally:
        if marker.exists():
            raise RuntimeError("code ran")
    return False


def built(folder: Path, benchmark: dict[str, Any], strategy: dict[str, Any]) -> bool:
    """Builds everything that a run of the recipes needs before training. True if nothing was refused."""
    spec = RunSpec(*load_pair(folder, benchmark, strategy), 0)
    check_runnable(spec, load_stream(spec))
    return True


def read(folder: Path, text: bytes, load: Load) -> bool:
    """Whether a recipe is loaded with exactly the contents that a TOML reader finds in the file."""
    path = folder / f"recipe{os.getpid()}.toml"
    path.write_bytes(text)
    recipe = load(path)
    expected = {"name": path.stem, **tomllib.loads(text.decode())}
    return bool(recipe.model_dump(by_alias=True, exclude_unset=True) == expected)


def as_toml(value: Any, top: bool = True) -> str:
    """Plain data as TOML. Null values are left out."""
    if isinstance(value, dict):
        there = {json.dumps(key, ensure_ascii=False): item for key, item in value.items() if item is not None}
        pairs = [f"{key} = {as_toml(item, False)}" for key, item in there.items()]
        return "\n".join(pairs) if top else "{" + ", ".join(pairs) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(as_toml(item, False) for item in value if item is not None) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


def as_bytes(value: Any) -> bytes:
    """Plain data as the bytes of a TOML file. The bytes may be invalid, and the file is then refused."""
    try:
        return as_toml(value if isinstance(value, dict) else {"x": value}).encode("utf-8", "surrogatepass")
    except RecursionError:  # nested too deep for `as_toml`
        return f"a = {'[' * 5000}{']' * 5000}".encode()


def mutated(folder: Path, seed: float, pair: Pair, place: int, load: Load, build: Callable[..., bool]) -> bool:
    """Builds a benchmark and a strategy of which one, at a place, has any values. Whether it was also read right."""
    text = as_bytes(mutate_values(pair[place], Random(seed)))
    right = read(folder, text, load)
    changed = list(pair)
    changed[place] = tomllib.loads(text.decode())
    return build(folder, *changed) and right


def load_pair(
    folder: Path, benchmark: dict[str, Any], strategy: dict[str, Any], load: Load = load_benchmark
) -> tuple[Any, Any]:
    """The recipes of a run, by way of files."""
    paths = [folder / f"{kind}{os.getpid()}.toml" for kind in ("b", "s")]
    for path, data in zip(paths, (benchmark, strategy), strict=True):
        path.write_bytes(as_bytes(data))
    return with_overrides(load(paths[0]), load_strategy(paths[1]))


def _with_model(model: dict[str, Any]) -> dict[str, Any]:
    return {**BENCHMARK, "model": model}


def _planted(folder: Path) -> Path:
    """Puts a module into the current folder, as beside a downloaded recipe. Returns the file that it writes if run."""
    marker = folder / f"code_ran_{os.getpid()}"
    (folder / "planted.py").write_text(f"open({str(marker)!r}, 'w').close()\nnet = Net = dict\n")
    os.chdir(folder)
    return marker
