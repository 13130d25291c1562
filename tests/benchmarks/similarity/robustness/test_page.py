"""The section on robustness says what its numbers say, however odd they turn out."""

import math

import pytest

from benchmarks.similarity.lab import Budget
from benchmarks.similarity.measures import MEASURES, YARDSTICKS
from benchmarks.similarity.robustness.page import robustness_part
from benchmarks.similarity.robustness.results import Draws, Probe, Robustness, Stimuli, WithoutData


def made_up(rho: float = 0.9, level: float = 0.8, images: str = "fmnist") -> Robustness:
    def probe(name: str, draws: int, rho: float, shift: float = 0.05) -> Probe:
        values = Draws(level=[level] * draws, shift=[shift] * draws, rho=[rho] * draws)
        return Probe(name=name, n=100, measures=dict.fromkeys(YARDSTICKS, values))

    ours = WithoutData(level=[0.7], shift=[0.001], rho=[0.99], agrees={"linear_cka": 0.6, "mean_cca": 0.7})
    return Robustness(
        images=images,
        networks=8,
        budget=Budget(images=64, epochs=2),
        accuracies=[0.5, 0.7],
        draws=2,
        places=(2, 40),
        stimuli=Stimuli(images=16, steps=5),
        ours={measure.robustness: ours for measure in MEASURES},
        probes=[probe("500 images", 1, 1.0, 0.0), probe("50 images", 2, 0.95), probe("white noise", 2, rho)],
    )


def test_the_lead_says_what_the_numbers_say(rendered):
    section = robustness_part({"robustness-fmnist": made_up(rho=0.9)})
    assert "CKA itself keeps less of that order on none of the other probes" in section.lead
    assert "on white noise (0.50)" in robustness_part({"robustness-fmnist": made_up(rho=0.5)}).lead
    assert "0.80 / 0.05 / 0.90" in rendered(section)


@pytest.mark.parametrize("odd", [math.nan, -1.0, 0.0])
def test_odd_results_are_shown(rendered, odd):
    results = {"robustness-fmnist": made_up(odd, odd), "robustness-cifar100": made_up(images="cifar100")}
    read = {name: Robustness.model_validate(result.to_json()) for name, result in results.items()}
    assert rendered(robustness_part(read)).count("CIFAR-100, class sets") > 3
