"""Transformers and ConvNeXt-like networks: small units from their images to their section."""

import copy
import json
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from benchmarks.similarity import lab
from benchmarks.similarity.lab import Budget, Task
from benchmarks.similarity.transformers import measure as module
from benchmarks.similarity.transformers.measure import METHODS, units
from benchmarks.similarity.transformers.networks import NETWORKS, REGIMES, networks_of_regime
from benchmarks.similarity.transformers.page import transformers_part
from benchmarks.similarity.transformers.results import AllLayers
from benchmarks.similarity.units import Context
from fscl.compare import joint_decompose
from fscl.errors import FsclError

TINY = Budget(images=96, epochs=1, first_epochs=1, rate=1e-3, first_rate=2e-3, decay=0.01, batch=16)


def task(number: int) -> Task:
    generator = torch.Generator().manual_seed(number)

    def drawn(n: int) -> tuple[Tensor, Tensor]:
        return torch.randn(n, 1, 16, 16, generator=generator), torch.randint(10, (n,), generator=generator)

    return Task(str(number), *drawn(96), *drawn(32))


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory, load_small: Callable[..., object]) -> dict[str, AllLayers]:
    """The results of all units of the quick mode, by name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lab, "load_images", load_small)
        patch.setattr(module, "QUICK", replace(TINY, images=48, batch=8))
        patch.setattr(module, "QUICK_PROBE", 40)
        patch.setattr(module, "STIMULI", 16)
        patch.setattr(module, "QUICK_RESAMPLES", 19)
        work = tmp_path_factory.mktemp("work")
        context = Context(str(work), work, quick=True)
        return {unit.name: unit.measure(context) for unit in units(True)}


def test_a_result_is_json_and_says_what_was_measured(measured):
    assert [result.regime for result in measured.values()] == list(REGIMES)
    for result in measured.values():
        kept = result.to_json()
        assert json.loads(json.dumps(kept, allow_nan=False)) == kept
        assert AllLayers.model_validate(kept) == result
        assert (result.images, result.architecture, result.networks) == ("fmnist", "vit", module.QUICK_COUNT)
        assert len(result.layers) == 1 + 4 * 6
        assert set(result.agreement) == set(METHODS)
        assert 0.9 < result.compared_share < 1
        assert all(len(values) == len(result.layers) for values in result.by_layer.values())
    assert [result.groups for result in measured.values()] == [[6], [6], [2, 2, 2]]


def test_the_section_has_its_numbers(measured, rendered):
    text = rendered(transformers_part(measured))
    assert "3 populations of 6 networks" in text
    assert "groups of 2, 2, 2" in text
    assert all(title in text for title, _ in METHODS.values())


@pytest.mark.parametrize("architecture", NETWORKS)
def test_networks_of_a_regime_begin_from_their_starts(architecture):
    def share_start(first: torch.nn.Module, second: torch.nn.Module) -> bool:
        return bool(joint_decompose([first, second]).relatedness()[0, 1] > 0.5)

    networks, accuracies = networks_of_regime(architecture, "starts", task, 6, TINY, 0)
    assert len(networks) == len(accuracies) == 6
    assert [share_start(networks[0], other) for other in networks[1:]] == [True, False, False, False, False]
    assert share_start(networks[4], networks[5])
    networks, accuracies = networks_of_regime(architecture, "snapshots", task, 4, TINY, 0)
    assert (len(networks), len(accuracies)) == (4, 2)
    distances = [float((n.head.weight - networks[1].head.weight).norm().detach()) for n in networks[1:]]
    assert distances == sorted(distances)
    assert networks[-1].training is False
    first, _ = networks_of_regime(architecture, "first", task, 3, TINY, 0)
    again, _ = networks_of_regime(architecture, "first", task, 3, TINY, 0)
    x = task(0).test_images
    for network, other in zip(first, again, strict=True):
        torch.testing.assert_close(copy.deepcopy(network)(x), other(x))


def test_unknown_networks_are_refused():
    with pytest.raises(FsclError, match="unknown network 'mlp' or regime 'first'; known: "):
        networks_of_regime("mlp", "first", task, 3, TINY, 0)
