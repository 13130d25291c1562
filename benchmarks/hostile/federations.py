"""Federations: recipes, records, weights, clients' files and images that are damaged, have any values, or lie."""

import json
import os
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.hostile import records
from benchmarks.hostile.mutations import as_json, flip_bit, mutate_bytes, mutate_values
from benchmarks.hostile.recipes import CLASSES, NAMES, NETWORKS, load_pair, mutated, no_code
from benchmarks.hostile.trial import Trial
from fscl import load_network
from fscl.report.federation.provenance import METHOD_SETTINGS, TRAVEL, federated_provenance
from fscl.report.federation.relations import RELATIONS, relations
from fscl.report.federation.summary import federation_rows, group_federations
from fscl.report.federation.table import FEDERATION_COLUMNS, federation_table
from fscl.report.runs import Runs, load_runs
from fscl.report.tables import TABLES
from fscl.runs.federation.building import check_federation, images_of
from fscl.runs.recipe import load_any_benchmark, load_strategy
from fscl.runs.records.federated import FederatedRecord
from fscl.runs.resume import read_checkpoint, write_checkpoint
from fscl.runs.run import run_one
from fscl.runs.spec import RunSpec

__all__ = [
    "CHANGES", "FEDERATION", "LIES", "METHOD", "OTHERS", "built", "image_folder", "learned", "probabilities",
    "served", "starts", "told", "trials",
]  # fmt: skip

FEDERATION: dict[str, Any] = {
    "title": "Mine",
    "data": {"name": "digits"},
    "federation": {
        "clients": 3, "groups": 1, "most_images": 20, "most_test_images": 10, "fraction": 1.0, "rounds": 2,
        "evaluate_every": 1,
    },
    "augment": {"crop_padding": 1, "flip": True},
    "model": {"name": "convnet", "args": {"widths": [4, 4], "pool_after": [0], "grid": 2, "dropout": 0.1}},
    "training": {"epochs": 1, "batch_size": 16, "lr": 0.05, "momentum": 0.9, "schedule": "constant"},
    "strategies": {"mine": {"args": {"num_atoms": 9}}},
}  # fmt: skip
METHOD: dict[str, Any] = {
    "title": "Mine",
    "class": "fscl.federated.Atoms",
    "args": {
        "num_atoms": 9, "coefficient_rounds": 1, "also": ["normalisation"], "mix": "nearest", "nearest": 2,
        "sharpness": 5.0, "lr": 0.05, "bits": 16, "head_rounds": 0,
    },
}  # fmt: skip
METHODS = ("fscl.federated.wire.Wire", "fscl.federated.HeadFirst", "fscl.federated.simulate",
           "fscl.federated.Mixture", "fscl.federated.torch", "fscl.federated.client_app.nn.Module",
           "fscl.federatedx.Atoms")  # fmt: skip
CHANGES: tuple[tuple[str, Any], ...] = (
    ("counts", []), ("counts", [[1]]), ("counts", [[-1] * 10] * 3), ("counts", [[1e300] * 10] * 3), ("counts", None),
    ("tested", []), ("tested", [1]), ("tested", [-1, 1, 1]), ("tested", "x"), ("groups", [9, 9, 9]), ("groups", [[]]),
    ("groups", [2**62] * 3), ("groups", [0]), ("rounds", []), ("rounds", {}), ("rounds", [{}]), ("evaluated", []),
    ("accuracy", []), ("accuracy", [[None] * 3] * 2), ("accuracy", [[9, 9, 9]] * 2), ("accuracy", [[0.5]] * 2),
    ("sizes", {"": 1}), ("sizes", {"atoms": -1}), ("sizes", {"atoms": 10**18}), ("sizes", []), ("stays", ["x"] * 1000),
    ("travels", [3]), ("travels", ["nothing"]), ("similarity", [[1]]), ("similarity", [[None] * 3] * 3),
    ("similarity", [[2] * 3] * 3), ("similarity", "x"), ("classes", []), ("classes", ["a\nb"] * 10), ("classes", [3]),
    ("seed", 10**400), ("status", "running"), ("status", "failed"), ("machine", {"device": []}), ("versions", {"a": 3}),
    ("benchmark", {"name": "x", "federation": {"rounds": "x"}}), ("benchmark", {"name": "x", "federation": {"a": 1}}),
    ("benchmark", {"name": "x", "federation": {"rounds": 2}, "training": {"epochs": {}}}),
    ("benchmark", {"name": "x", "federation": {"rounds": 2, "evaluate_every": [[]], "dirichlet": "x"}}),
    ("benchmark", {"name": "x", "federation": {}}), ("strategy", {"name": "x", "class": "os.system"}),
)  # fmt: skip
SPLITS: tuple[dict[str, Any], ...] = (
    {"clients": 100_000}, {"clients": 10**9}, {"clients": 0}, {"groups": 0}, {"groups": 7}, {"groups": [[]]},
    {"groups": [["0"], ["x"]]}, {"groups": [["0", "0"]]}, {"groups": "../../x"}, {"groups": "x\0y"}, {"groups": ""},
    {"groups": "federated_digits"}, {"groups": "rotated_fmnist"}, {"groups": "split_digits"}, {"fraction": 1e-300},
    {"groups": None, "dirichlet": 1e-300}, {"groups": None, "dirichlet": 1e300}, {"groups": None, "dirichlet": 1e-3},
    {"groups": None, "classes_per_client": 11}, {"groups": None, "classes_per_client": 10**9}, {"most_images": 10**12},
    {"groups": None}, {"dirichlet": 0.1}, {"rounds": 10**6}, {"least": 10**9}, {"own_classes": True}, {"schedule": "x"},
    {"clients": 500, "groups": None, "dirichlet": 0.01}, {"clients": 100_000, "groups": None, "classes_per_client": 10},
)  # fmt: skip


def trials(folder: Path, rng: Random, count: int) -> Iterator[Trial]:
    built(folder, FEDERATION, METHOD)  # slow imports and images, before the trials' processes are forked
    for name in NAMES:
        yield Trial("a federation's name", lambda name=name: built(folder, {**FEDERATION, "name": name}, METHOD))
    for name in NETWORKS:
        changed = {**FEDERATION, "model": {"name": name}}
        yield Trial("a network that runs code", partial(no_code, folder, partial(built, folder, changed, METHOD)))
    for path in (*CLASSES, *METHODS):
        method = {**METHOD, "class": path, "args": {}}
        yield Trial("a method that runs code", partial(no_code, folder, partial(built, folder, FEDERATION, method)))
    for split in SPLITS:
        changed = {**FEDERATION, "federation": {**FEDERATION["federation"], **split}}
        yield Trial("a split of any numbers", lambda changed=changed: built(folder, changed, METHOD))
    for start in starts(folder):
        changed = {**FEDERATION, "federation": {**FEDERATION["federation"], "start": str(start)}}
        yield Trial("a start that is none", lambda changed=changed: not built(folder, changed, METHOD))
    for _ in range(count):
        seed = rng.random()
        for place, (what, load) in enumerate((("federation", load_any_benchmark), ("method", load_strategy))):
            act = partial(mutated, folder, seed, (FEDERATION, METHOD), place, load, built)
            yield Trial(f"a {what} of any values", act)
    run = learned(folder)
    record = json.loads((run / "run.json").read_text())
    for key, value in CHANGES:
        yield Trial(f"a record's {key}", lambda key=key, value=value: told(folder, as_json({**record, key: value})))
    for _ in range(count):
        text = as_json(mutate_values(record, rng))
        yield Trial("a record of any values", lambda text=text: told(folder, text))
    answers = [probabilities(run, client) for client in range(3)]
    for file in sorted(path.relative_to(run) for path in run.rglob("*.*") if path.suffix in (".pt", ".safetensors")):
        if file.name == "bank.safetensors":  # banks.py has them
            continue
        group = "the server's file" if file.suffix == ".pt" else "a client's file"
        content = (run / file).read_bytes()
        for damaged in [b"", *(mutate_bytes(content, rng) for _ in range(count // 10))]:
            act = partial(served, folder, run, {file: damaged}, answers)
            yield Trial(f"{group}, damaged", act)
        for _ in range(count // 10):
            act = partial(served, folder, run, {file: flip_bit(content, rng)}, answers)
            yield Trial(f"{group}, one bit", act)
    other = (run / "clients/client_0001").glob("*.safetensors")
    swapped = {Path("clients/client_0000", file.name): file.read_bytes() for file in other}
    yield Trial("another client's file", partial(served, folder, run, swapped, answers))
    for _ in range(count // 4):
        seed = rng.random()
        yield Trial("the server's file, of any values", lambda seed=seed: _server_of_any_values(folder, run, seed))
        yield Trial("a served record of any values", lambda seed=seed: _served_record(folder, run, record, seed))
    for lie, pictures in LIES.items():
        yield Trial(f"images: {lie}", lambda pictures=pictures: _on_images(folder, pictures))
    for changed in OTHERS:
        yield Trial("other images than those of the run", lambda changed=changed: _served_elsewhere(folder, changed))


# recipes


def built(folder: Path, benchmark: dict[str, Any], method: dict[str, Any]) -> bool:
    """Builds everything that a run of the recipes needs before its first round. True if nothing was refused."""
    check_federation(RunSpec(*_load(folder, benchmark, method), 0))
    return True


def starts(folder: Path) -> list[Path]:
    """Files and folders that no federation can start from."""
    place = folder / "starts"
    (place / "folder").mkdir(parents=True, exist_ok=True)
    (place / "text.pt").write_text("no checkpoint")
    (place / "empty.safetensors").touch()
    torch.save({"a": torch.zeros(3)}, place / "other.pt")
    torch.save([1, 2], place / "list.pt")
    with open(place / "long.pt", "wb") as file:
        file.truncate(40 * 2**30)  # no byte of it is on the disk
    if not (place / "pipe").exists():
        os.mkfifo(place / "pipe")
    names = ("folder", "text.pt", "empty.safetensors", "other.pt", "list.pt", "long.pt", "pipe", "none.pt", "a\0b")
    return [*(place / name for name in names), Path("/dev/zero"), Path("/"), Path("x" * 5000)]


_load = partial(load_pair, load=load_any_benchmark)


# records


def told(folder: Path, text: bytes) -> bool:
    """As for the records of streams, see :func:`benchmarks.hostile.records.told`."""
    return records.told(folder, text, _shown)


def _shown(runs: Runs) -> list[object]:
    groups = group_federations(runs)
    rows, answers = federation_rows(groups), relations(groups)
    cells: list[object] = [column.cell(row) for row in rows for column in FEDERATION_COLUMNS.values()]
    cells += [column.cell(group) for group in groups for column in (*METHOD_SETTINGS, *TRAVEL)]
    cells += [column.cell(answer) for answer in answers for column in RELATIONS]
    federation_table(rows)
    federated_provenance(runs[0].stream, [run for run in runs if isinstance(run, FederatedRecord)], groups)
    for name in TABLES:
        runs.to_dataframe(name)
    return cells


# what a finished run keeps


def learned(folder: Path, **changes: Any) -> Path:
    """The folder of a finished federation."""
    out = folder / "learned"
    spec = RunSpec(*_load(folder, {**FEDERATION, "name": "federation", **changes}, {**METHOD, "name": "method"}), 0)
    return run_one(spec, out, overwrite=True)


def probabilities(run: Path, client: int, data: str | None = None) -> torch.Tensor:
    """What a client's network says of random images, (8, classes)."""
    network = load_network(run, client, data=data)
    generator = torch.Generator().manual_seed(0)
    return network.probabilities(torch.randint(0, 256, (8, *network.image_shape), generator=generator).byte())


def served(folder: Path, run: Path, files: dict[Path, bytes], answers: list[torch.Tensor]) -> bool:
    """Whether all clients of a run with changed files answer as before, or are refused."""
    place = _copied(folder, run)
    for file, content in files.items():
        (place / file).write_bytes(content)
    clients = {int(file.parent.name[-4:]) for file in files if file.parent.name} or range(len(answers))
    return all(torch.equal(probabilities(place, client), answers[client]) for client in clients)


def _server_of_any_values(folder: Path, run: Path, seed: float) -> bool:
    """Whether a server's file with a right checksum and any values is served or refused."""
    place = _copied(folder, run)
    (record,) = load_runs(run)
    spec = RunSpec(*_load(folder, {**FEDERATION, "name": "federation"}, {**METHOD, "name": "method"}), 0)
    _, state = read_checkpoint(run / "server.pt", spec)
    write_checkpoint(place / "server.pt", record, mutate_values(state, Random(seed)))
    return probabilities(place, 0).shape == (8, 10)


def _served_record(folder: Path, run: Path, record: dict[str, Any], seed: float) -> bool:
    place = _copied(folder, run)
    (place / "run.json").write_bytes(as_json(mutate_values(record, Random(seed))))
    return probabilities(place, 0).shape == (8, 10)


def _copied(folder: Path, run: Path) -> Path:
    place = folder / f"served{os.getpid()}"
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(run, place)
    return place


# images

Pictures = dict[str, tuple[int, int]]  # class -> images for training and for tests

LIES: dict[str, Pictures] = {
    "enough": {"a": (30, 9), "b": (30, 9)},
    "a class without training images": {"a": (30, 9), "b": (0, 9)},
    "a class without test images": {"a": (30, 9), "b": (30, 0)},
    "fewer images than clients": {"a": (1, 1), "b": (1, 1)},
    "one class": {"a": (30, 9)},
    "no class": {},
    "no images": {"a": (0, 0)},
}
OTHERS: tuple[Pictures, ...] = (
    {"a": (30, 9), "b": (30, 9), "c": (30, 9)}, {"a": (30, 9), "x": (30, 9)}, {"a": (15, 9), "b": (45, 9)},
)  # fmt: skip


def _on_images(folder: Path, pictures: Pictures) -> bool:
    """Whether a federation on an image folder is learned, or refused."""
    data = image_folder(folder, pictures)
    spec = RunSpec(*_load(folder, _of_images(), METHOD), 0, data=str(data))
    check_federation(spec)
    run = run_one(spec, folder / f"out{os.getpid()}", overwrite=True)
    return probabilities(run, 0, str(data)).shape == (8, len(pictures))


def _served_elsewhere(folder: Path, pictures: Pictures) -> bool:
    """Whether clients of a run are refused with a data folder that has other images."""
    first = image_folder(folder, LIES["enough"])
    run = run_one(RunSpec(*_load(folder, _of_images(), METHOD), 0, data=str(first)), folder / f"out{os.getpid()}")
    images_of.cache_clear()
    probabilities(run, 0, str(image_folder(folder, pictures)))
    return False


def _of_images() -> dict[str, Any]:
    return {**FEDERATION, "data": {"name": "mine", "image_size": 8}, "name": f"images{os.getpid()}"}


def image_folder(folder: Path, pictures: Pictures) -> Path:
    data = folder / f"data{os.getpid()}"
    shutil.rmtree(data, ignore_errors=True)
    values = np.random.default_rng(0)
    (data / "mine").mkdir(parents=True)
    for kind, place in (("train", 0), ("test", 1)):
        for name, numbers in pictures.items():
            (data / "mine" / kind / name).mkdir(parents=True, exist_ok=True)
            for number in range(numbers[place]):
                pixels = values.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(data / "mine" / kind / name / f"{number}.png")
    return data
