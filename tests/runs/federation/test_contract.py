"""One contract for every federation and every method: two small rounds, a kill, the same numbers, a report."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("flwr", reason="needs the extra fscl[federated]")

from fscl.data.images import ImageSet
from fscl.errors import FsclError
from fscl.networks import make_network
from fscl.report.page import write_report
from fscl.report.runs import load_runs
from fscl.runs.recipe import load_any_benchmark, load_strategy, names_of, with_overrides
from fscl.runs.results import load_run
from fscl.runs.run import is_finished, run_one
from fscl.runs.spec import RunSpec

FEDERATIONS = names_of("benchmarks", federated=True)
METHODS = names_of("strategies", federated=True)
# what the data sets are known to hold: (channels, height, width) and names of classes
DATA = {
    "digits": ((1, 8, 8), list("0123456789")),
    "fmnist": (
        (1, 28, 28),
        [
            *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
            *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
        ],
    ),
    "cifar100": ((3, 32, 32), [f"class {c}" for c in range(100)]),
    "tinyimagenet": ((3, 32, 32), [f"class {c}" for c in range(200)]),
}
# (rounds, and so on) for a run of seconds
SMALL = ["federation.rounds=2", "federation.evaluate_every=1", "training.epochs=1", "federation.most_test_images=8"]
MEASURED = ("accuracy", "counts", "tested", "groups", "sizes", "stays", "travels", "similarity")


@pytest.fixture(autouse=True, scope="module")
def made_up() -> None:
    """Noise in place of the images of all data sets but digits: enough for each client to have some of its classes."""
    from fscl.runs.federation import building

    loaded, building.load_images = building.load_images, lambda name, *_: _noise(name)
    building.images_of.cache_clear()
    yield
    building.load_images = loaded
    building.images_of.cache_clear()


def _noise(name: str) -> tuple[ImageSet, ImageSet]:
    shape, classes = DATA[name]
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(len(classes)).repeat(20)
    images = torch.randint(0, 256, (len(labels), *shape), dtype=torch.uint8, generator=generator)
    return ImageSet(images, labels, classes), ImageSet(images[: 2 * len(classes)], labels[: 2 * len(classes)], classes)


@pytest.fixture
def start(tmp_path: Path) -> str:
    """A checkpoint of the network that federations of 32x32 images have, with a head of other classes."""
    recipe = load_any_benchmark("federated_cifar100")
    torch.save(make_network(recipe.model.name, (3, 32, 32), 7, recipe.model.args).state_dict(), tmp_path / "start.pt")
    return str(tmp_path / "start.pt")


def spec_of(federation: str, method: str, *settings: str, start: str = "") -> RunSpec:
    recipe = load_any_benchmark(federation)
    begins = [f"federation.start={start}"] if recipe.federation.start else []
    return RunSpec(*with_overrides(recipe, load_strategy(method), [*SMALL, *begins, *settings]), 0)


def stop_after_one(rounds: int, *_: int) -> None:
    if rounds == 1:
        raise KeyboardInterrupt


def check_contract(spec: RunSpec, folder: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_one(spec, folder / "interrupted", progress=stop_after_one)
    assert not is_finished(spec, folder / "interrupted")
    runs = [load_run(run_one(spec, folder / out) / "run.json") for out in ("interrupted", "whole")]
    assert [again.after for again in runs[0].resumed] == [1]
    resumed, whole = (run.to_json() for run in runs)
    for key in MEASURED:
        assert resumed.get(key) == whole.get(key), key
    for first, second in zip(resumed["rounds"], whole["rounds"], strict=True):
        assert {**first, "seconds": 0} == {**second, "seconds": 0}
    assert len(whole["rounds"]) == len(whole["accuracy"]) == 2
    assert all(r.left_out == {} for r in runs[1].rounds)
    assert not np.isnan(runs[1].accuracy).any()
    written = write_report(load_runs(folder / "whole"), folder / "report")
    assert spec.strategy.title in written.html.read_text()
    json.loads((folder / "report" / "runs.json").read_text())


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("name", METHODS)
def test_a_method_learns_resumes_and_reports(name: str, tmp_path: Path) -> None:
    small = ["federation.clients=3", "federation.fraction=0.7", "federation.most_images=60"]
    check_contract(spec_of("federated_digits", name, *small), tmp_path)


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("name", FEDERATIONS)
def test_a_federation_is_learned_and_resumed(name: str, tmp_path: Path, start: str) -> None:
    small = ["federation.clients=4", "federation.fraction=0.5", "federation.most_images=10"]
    check_contract(spec_of(name, "atoms", *small, "args.coefficient_rounds=1", start=start), tmp_path)


@pytest.mark.parametrize("name", FEDERATIONS)
def test_the_recipes_network_fits_and_every_client_has_images(name: str, start: str) -> None:
    from fscl.runs.federation.building import check_federation, split_of

    spec = spec_of(name, "atoms", start=start)
    spec = replace(spec, validation=0.2) if name == "federated_digits" else spec
    check_federation(spec)
    split = split_of(spec)
    assert min(map(len, split.train)) > 0
    assert min(map(len, split.test)) > 0


def test_the_server_refuses_more_images_than_the_recipe_gives_to_a_client() -> None:
    from fscl.runs.federation.building import build_server

    assert build_server(spec_of("federated_digits", "atoms", "federation.most_images=7")).most_images == 7


def test_a_method_is_refused_on_a_stream_and_a_learner_in_a_federation(fscl) -> None:
    ended = fscl("run", "split_digits", "-s", "atoms")
    assert ended.code == 2
    assert "atoms is a method of federations, for federated_" in ended.err
    ended = fscl("run", "federated_digits", "-s", "ewc")
    assert ended.code == 2
    assert "ewc is a learner of tasks, for " in ended.err


def test_groups_may_be_the_tasks_of_a_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    from fscl.runs.federation import building

    pairs = [f"federation.groups={name}" for name in ("split_digits", "rotated_fmnist")]
    with pytest.raises(FsclError, match="the tasks of this benchmark have the same classes"):
        building.split_of(spec_of("federated_digits", "atoms", pairs[1]))
