"""Damaged and lying files of federations are refused in one line, and nothing wrong is answered from them."""

import json
import re
import tomllib
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

pytest.importorskip("flwr", reason="needs the extra fscl[federated]")

from benchmarks.hostile import federations
from benchmarks.hostile.mutations import as_json, mutate_values
from benchmarks.hostile.recipes import as_bytes, read
from fscl import load_network
from fscl.errors import FsclError
from fscl.runs.federation.building import images_of
from fscl.runs.recipe import load_any_benchmark, load_strategy, with_overrides
from fscl.runs.run import run_one
from fscl.runs.spec import RunSpec

Pictures = dict[str, tuple[int, int]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished federation on digits."""
    return federations.learned(tmp_path_factory.mktemp("learned"))


def in_one_line(error: FsclError) -> None:
    assert "\n" not in str(error)
    assert len(str(error)) < 1500


@pytest.mark.parametrize("method", [False, True], ids=["federation", "method"])
def test_recipes_of_any_values_are_right_or_refused(tmp_path: Path, method: bool) -> None:
    accepted = 0
    for seed in range(60):
        text = as_bytes(mutate_values(federations.METHOD if method else federations.FEDERATION, Random(seed)))
        try:
            assert read(tmp_path, text, load_strategy if method else load_any_benchmark)
            data = tomllib.loads(text.decode())
            pair = (federations.FEDERATION, data) if method else (data, federations.METHOD)
            assert federations.built(tmp_path, *pair)
            accepted += 1
        except FsclError as error:
            in_one_line(error)
    assert accepted > 0


@pytest.mark.parametrize(("name", "value"), [("lr", "fast"), ("sharpness", [1.0]), ("num_atoms", 2.5), ("mix", 3)])
def test_an_argument_of_another_type_is_refused_before_training(tmp_path: Path, name: str, value: Any) -> None:
    """The learning rate is used by clients alone, and the sharpness in the first round after the coefficients."""
    method = {**federations.METHOD, "args": {**federations.METHOD["args"], name: value}}
    with pytest.raises(FsclError, match=rf"args\.{name} is .*{re.escape(str(value))}.*; it must be a valid "):
        federations.built(tmp_path, federations.FEDERATION, method)


@pytest.mark.parametrize(("key", "value"), federations.CHANGES)
def test_a_record_with_an_odd_value_makes_a_report_or_is_refused(run: Path, tmp_path: Path, key: str, value: Any):
    record = json.loads((run / "run.json").read_text())
    try:
        assert federations.told(tmp_path, as_json({**record, key: value}))
    except FsclError as error:
        in_one_line(error)


@pytest.mark.parametrize("rounds", [None, "many", 0, 2.0, True], ids=repr)
def test_a_record_without_a_number_of_rounds_is_refused(run: Path, tmp_path: Path, rounds: Any) -> None:
    record = json.loads((run / "run.json").read_text())
    record["benchmark"]["federation"]["rounds"] = rounds
    with pytest.raises(FsclError, match=rf"benchmark\.federation\.rounds is {rounds!r}; a number of at least 1"):
        federations.told(tmp_path, json.dumps(record).encode())


@pytest.mark.parametrize("start", ["long.pt", "list.pt", "pipe", "text.pt"])
def test_a_start_that_is_none_is_refused(tmp_path: Path, start: str) -> None:
    (path,) = [path for path in federations.starts(tmp_path) if path.name == start]
    changed = {**federations.FEDERATION["federation"], "start": str(path)}
    with pytest.raises(FsclError) as caught:
        federations.built(tmp_path, {**federations.FEDERATION, "federation": changed}, federations.METHOD)
    in_one_line(caught.value)
    assert start in str(caught.value)


@pytest.mark.parametrize("file", ["server.pt", "clients/client_0001/round_000002.safetensors"])
@pytest.mark.parametrize("damage", ["one bit", "cut short", "empty"])
def test_no_network_is_served_from_a_damaged_file(run: Path, tmp_path: Path, file: str, damage: str) -> None:
    answers = [federations.probabilities(run, client) for client in range(3)]
    content = bytearray((run / file).read_bytes())
    content[-100] ^= 1  # in the tensors of a client's file
    damaged = {"one bit": bytes(content), "cut short": bytes(content[:-200]), "empty": b""}[damage]
    with pytest.raises(FsclError, match="damaged") as caught:
        federations.served(tmp_path, run, {Path(file): damaged}, answers)
    in_one_line(caught.value)
    assert Path(file).name in str(caught.value)


def test_another_clients_file_is_not_served_as_ones_own(run: Path, tmp_path: Path) -> None:
    name = "round_000002.safetensors"
    other = (run / "clients/client_0001" / name).read_bytes()
    with pytest.raises(FsclError, match=r"lost or damaged \(.*client_0000"):
        federations.served(tmp_path, run, {Path("clients/client_0000", name): other}, [torch.empty(0)])


def on_images(folder: Path, pictures: Pictures, rounds: int = 2) -> RunSpec:
    data = federations.image_folder(folder, pictures)
    images_of.cache_clear()  # as in another process
    recipe = {**federations.FEDERATION, "data": {"name": "mine", "image_size": 8}}
    (folder / "images.toml").write_bytes(as_bytes(recipe))
    recipes = with_overrides(load_any_benchmark(folder / "images.toml"), load_strategy("fedrep"))
    return RunSpec(*recipes, 0, data=str(data))


@pytest.mark.parametrize("pictures", federations.OTHERS)
def test_a_run_goes_on_and_is_served_only_with_the_images_of_its_beginning(tmp_path: Path, pictures: Pictures) -> None:
    def stop(rounds: int, *_: int) -> None:
        if rounds == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_one(on_images(tmp_path, federations.LIES["enough"]), tmp_path / "out", progress=stop)
    with pytest.raises(FsclError, match="of its clients are not those of the images that are there now"):
        run_one(on_images(tmp_path, pictures), tmp_path / "out")
    again = on_images(tmp_path, federations.LIES["enough"])
    folder = run_one(again, tmp_path / "out")
    assert load_network(folder, 0, data=again.data).classes == ["a", "b"]
    other = on_images(tmp_path, pictures)
    with pytest.raises(FsclError, match="of its clients are not those of the images that are there now"):
        load_network(folder, 0, data=other.data)
