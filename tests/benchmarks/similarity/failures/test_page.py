"""The section on failures is made of any of its units, and shows odd numbers."""

import math

import pytest

from benchmarks.similarity.failures.page import failures_part
from benchmarks.similarity.failures.results import (
    Across,
    Compared,
    CosineAgainstCka,
    Gauge,
    Level,
    MovedCoefficients,
    Order,
    Permuted,
    Starts,
)
from benchmarks.similarity.lab import Budget
from benchmarks.similarity.units import Spread

BUDGET = Budget(images=64, epochs=2, first_epochs=2)


def spread(mean: float) -> Spread:
    return Spread(mean=mean, low=mean - 0.1, high=mean + 0.1, n=4)


def made_up(odd: float = 0.5) -> dict[str, Starts | MovedCoefficients]:
    kinds = ("same start, other task", "other start, same task", "other start, other task")
    gauge = {"networks": 3, "draws": 3, "level_before": 0.9, "cka": 0.9, "order_before": odd}
    starts = Starts(
        networks=6,
        starts=2,
        tasks=3,
        budget=BUDGET,
        accuracies=[0.5],
        probe=250,
        pairs={kind: Compared(**dict.fromkeys(Compared.model_fields, spread(odd))) for kind in kinds},
        across=Across(pairs=9, order=Order(stored=odd, joint=odd, filters=0.1)),
        refused=True,
        gauge=Gauge(**{**dict.fromkeys(Gauge.model_fields, spread(odd)), **gauge}),
        permuted=Permuted(**{**dict.fromkeys(Permuted.model_fields, spread(odd)), "draws": 3}),
    )
    cosine = CosineAgainstCka(level=odd, difference=0.1, rho=odd, rho_cca=0.3)
    numbers = ("accuracy", "explained", "least_explained", "joint_explained", "cka", "cca")
    ours = dict.fromkeys(("first", "joint", "filters"), cosine)
    levels = [Level(rate=rate, times=1, **dict.fromkeys(numbers, odd), ours=ours) for rate in (0.0, 1.0)]

    def run(regime: str, seed: int) -> MovedCoefficients:
        return MovedCoefficients(regime=regime, seed=seed, networks=4, probe=250, budget=BUDGET, levels=levels)

    return {
        "failures-starts": starts,
        "failures-first-0": run("first", 0),
        "failures-first-1": run("first", 1),
        "failures-sequence-0": run("sequence", 0),
    }


@pytest.mark.parametrize("odd", [0.5, math.nan, -1.0])
def test_odd_results_are_shown(rendered, odd):
    read = {name: type(result).model_validate(result.to_json()) for name, result in made_up(odd).items()}
    text = rendered(failures_part(read))
    assert "nan" not in text
    assert ("undefined" in text) == math.isnan(odd)


@pytest.mark.parametrize("only", ["failures-starts", "failures-first-0", "failures-sequence-0"])
def test_some_of_the_units_make_a_page(rendered, only):
    assert rendered(failures_part({only: made_up()[only]}))
