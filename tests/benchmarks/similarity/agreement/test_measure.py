"""Agreement with CKA and CCA: a small unit from its images to its section, and its correlations against SciPy's."""

import json
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr, spearmanr
from torch import Tensor

from benchmarks.similarity import lab, populations
from benchmarks.similarity.agreement import measure as module
from benchmarks.similarity.agreement.measure import AGAINST, agreement, units
from benchmarks.similarity.agreement.page import agreement_part
from benchmarks.similarity.agreement.results import Agreement
from benchmarks.similarity.lab import Budget
from benchmarks.similarity.measures import METHODS
from benchmarks.similarity.populations import REGIMES, Population
from benchmarks.similarity.units import Context
from fscl.compare.response import response_features
from fscl.errors import FsclError
from fscl.similarity import linear_cka, recall_images

TINY = Budget(images=96, epochs=2, first_epochs=3, batch=16)
NETWORKS, LAYERS = 4, 5  # of the plain network
WHOLE = ("cosine_product",)  # an aggregate that is no mean over layers


@pytest.fixture(scope="module")
def measured(
    tmp_path_factory: pytest.TempPathFactory, load_small: Callable[..., object]
) -> tuple[Agreement, Population]:
    """A unit's result, and its networks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lab, "load_images", load_small)
        patch.setattr(populations, "QUICK", TINY)
        patch.setattr(populations, "QUICK_NETWORKS", NETWORKS)
        patch.setattr(populations, "QUICK_PROBE", 60)
        patch.setattr(module, "STIMULI", 10)
        patch.setattr(module, "recall_images", lambda model, images, steps: recall_images(model, images, 2))
        work = tmp_path_factory.mktemp("work")
        context = Context(str(work), work, quick=True)
        unit = next(unit for unit in units(True) if unit.name == "agreement-fmnist-plain-first")
        return unit.measure(context), populations.population("fmnist", "plain", "first", context)


@pytest.fixture
def result(measured) -> Agreement:
    return measured[0]


def test_a_result_is_json_and_says_what_was_measured(result):
    kept = result.to_json()
    assert json.loads(json.dumps(kept, allow_nan=False)) == kept
    assert Agreement.model_validate(kept) == result
    assert (result.images, result.architecture, result.regime) == ("fmnist", "plain", "first")
    assert (result.networks, result.probe, len(result.layers)) == (NETWORKS, 60, LAYERS)
    assert result.budget == TINY
    assert len(result.accuracies) == NETWORKS
    assert result.methods.keys() == result.agreement.keys() == METHODS.keys()
    assert tuple(result.values) == tuple(result.levels) == AGAINST
    assert set(result.by_layer) == METHODS.keys() - set(WHOLE)
    for values in (*result.values.values(), *result.methods.values()):
        assert len(values) == math.comb(NETWORKS, 2)
    assert all(seconds >= 0 for seconds in result.seconds.values())


def test_similarities_are_of_networks_that_differ(result):
    for name, values in (result.values | result.methods).items():
        low = -0.2 if name == "minibatch_cka" else 0  # which is unbiased
        assert low <= min(values) < max(values) < 1, name


def test_reported_correlations_are_those_of_the_reported_similarities(result):
    for name, by_yardstick in result.agreement.items():
        assert tuple(by_yardstick) == AGAINST
        for yardstick, found in by_yardstick.items():
            known = np.array(result.methods[name]), np.array(result.values[yardstick])
            assert found.pearson.r == pytest.approx(pearsonr(*known).statistic, abs=2e-3)
            for value in (found.pearson, found.spearman):
                assert -1 <= value.low <= value.high <= 1
                assert -1 <= value.r <= 1
                assert 0 < value.p <= 1
    for by_yardstick in result.by_layer.values():
        assert by_yardstick.keys() == {"linear_cka", "mean_cca"}
        for values in by_yardstick.values():
            assert len(values) == LAYERS
            assert all(-1 <= value <= 1 for value in values)


def test_similarities_are_those_of_the_population(measured):
    result, networks = measured
    order = [(i, j) for i in range(NETWORKS) for j in range(i)]
    for how in ("mean", "product", "depth"):
        matrix = networks.bank.similarity("cosine", how)
        assert result.methods[f"cosine_{how}"] == pytest.approx([float(matrix[pair]) for pair in order], abs=1e-5)
    features = response_features(networks.bank, networks.model, networks.probe, positions=module.PROBED)
    for place, (i, j) in list(enumerate(order))[::4]:
        expected = np.mean([float(linear_cka(values[i], values[j])) for values in features.values()])
        assert result.values["linear_cka"][place] == pytest.approx(expected, abs=1e-5)
    own = pearsonr(result.values["linear_cka"], result.values["mean_cca"]).statistic
    assert result.yardsticks_agree.pearson.r == pytest.approx(own, abs=2e-3)


def test_a_similarity_of_ones_own_is_measured_as_the_study_measures(measured):
    result, networks = measured
    matrix = networks.bank.similarity("cosine", "mean")
    found = agreement(matrix, networks.bank, networks.model, networks.probe, ["svcca", "linear_cka"])
    assert list(found) == ["svcca", "linear_cka"]
    for yardstick, correlations in found.items():
        known = result.agreement["cosine_mean"][yardstick]
        assert correlations.pearson.r == pytest.approx(known.pearson.r, abs=1e-3)
        assert correlations.spearman.r == pytest.approx(known.spearman.r, abs=1e-3)
    with pytest.raises(FsclError, match="unknown yardstick 'cka'; known: linear_cka, minibatch_cka"):
        agreement(matrix, networks.bank, networks.model, networks.probe, ["cka"])


def symmetric(seed: int, size: int = 9) -> Tensor:
    matrix = torch.rand(size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return matrix + matrix.mT


@pytest.mark.parametrize("seed", range(3))
def test_correlations_are_those_of_scipy(seed):
    matrix, other = symmetric(seed), symmetric(seed + 10) + 0.5 * symmetric(seed)
    rows, columns = np.triu_indices(9, 1)
    known = matrix.numpy()[rows, columns], other.numpy()[rows, columns]
    found = module.correlations(matrix, other, resamples=49)
    assert found.pearson.r == pytest.approx(pearsonr(*known).statistic, abs=1e-12)
    assert found.spearman.r == pytest.approx(spearmanr(*known).statistic, abs=1e-12)
    assert module.pearson(matrix, other) == pytest.approx(pearsonr(*known).statistic, abs=1e-12)
    assert -1 <= found.pearson.low < found.pearson.r < found.pearson.high <= 1


def test_what_follows_a_yardstick_correlates_fully():
    matrix = symmetric(0)
    for other, pearson, spearman in ((2 * matrix + 1, 1, 1), (-matrix, -1, -1), (matrix**5, None, 1)):
        found = module.correlations(matrix, other, resamples=199)
        assert found.spearman.r == pytest.approx(spearman)
        assert pearson is None or found.pearson.r == pytest.approx(pearson)
        assert found.spearman.p < 0.05
    assert module.correlations(matrix, matrix**5, 49).pearson.r < 0.999


@pytest.mark.parametrize("regimes", [["snapshots"], list(REGIMES)])
def test_a_section_of_any_regimes(result, rendered, regimes):
    results = {
        f"agreement-{images}-plain-{regime}": result.model_copy(update={"regime": regime, "images": images})
        for images, regime in zip(("fmnist", "cifar100", "fmnist"), regimes, strict=False)
    }
    section = agreement_part({name: Agreement.model_validate(r.to_json()) for name, r in results.items()})
    text = rendered(section)
    for method in METHODS.values():
        assert method.title in text
    assert ("Snapshots" in section.lead) == ("snapshots" in regimes)
    assert f"{result.pearson('recalled', 'linear_cka'):.2f}" in section.lead
    assert "nan" not in text


def test_units_are_all_there():
    quick, full = ([unit.name for unit in units(quick)] for quick in (True, False))
    assert quick == [f"agreement-fmnist-plain-{regime}" for regime in REGIMES]
    assert len(set(full)) == len(full) == 2 * 3 * 3
    assert set(quick) < set(full)
