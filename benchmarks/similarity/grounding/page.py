"""The section on grounding tests: all tests, their goals, how each was done and what it can show."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.similarity.blocks import Goal, Part, Tally
from benchmarks.similarity.grounding import pictures, tables
from benchmarks.similarity.grounding.results import Damage, Grounding, Groups, Score, Transfer
from benchmarks.similarity.grounding.trials import STREAMS, Trial, trials
from benchmarks.similarity.lab import DATA
from benchmarks.similarity.measures import COMPARED, MEASURES, OURS, SHORT
from benchmarks.similarity.prose import section

__all__ = ["grounding_part"]


def grounding_part(units: Mapping[str, Grounding]) -> Part:
    """The section, from the results of its units by name."""
    results = list(units.values())
    tests = trials(results)
    damage = [result for result in results if isinstance(result, Damage)]
    noise = [result for result in results if isinstance(result, Groups) and result.kind == "noise"]
    transfer = [result for result in results if isinstance(result, Transfer)]
    geometry = [result for result in transfer if result.truths]
    return section(
        "grounding/page.j2",
        goals=_goals(tests),
        **_lead(tests),
        first=results[0],
        settings=[
            (DATA[images], next(result for result in results if result.images == images))
            for images in dict.fromkeys(result.images for result in results)
        ],
        tests=[_finding(result) for result in results],
        all_tests=tables.all_tests(tests),
        table_of_goals=tables.goals(tests),
        advice=tables.advice(transfer) if transfer else None,
        variants=tables.variants(tests),
        differences=pictures.differences([test for test in tests if not test.statistic.startswith("nearest")]),
        damage=pictures.damage(damage) if damage else None,
        noise=pictures.noise(noise) if noise else None,
        geometry=pictures.geometry(geometry) if geometry else None,
    )


def _goals(tests: Sequence[Trial]) -> list[Goal]:
    """The goals, those of one kind together: in how many tests each measure meets them."""
    kinds: dict[str, list[Trial]] = {}
    for test in tests:
        kinds.setdefault(f"{test.name.split(',')[0].capitalize()}: {test.statistic}, {test.aim}", []).append(test)
    return [
        Goal(statement, {measure.title: _tally(alike, measure.grounding) for measure in MEASURES})
        for statement, alike in kinds.items()
    ]


def _tally(tests: Sequence[Trial], measure: str) -> Tally:
    verdicts = [test.verdict(measure) for test in tests]
    return Tally(verdicts.count("met"), len(verdicts), verdicts.count("no difference told"))


def _lead(tests: Sequence[Trial]) -> dict[str, Any]:
    """In how many tests each measure meets the goal, and the goals that none of our measures meets."""
    alone = [test for test in tests if test.goal != "rival"]
    against = [test for test in tests if test.goal == "rival"]
    missed = [test for test in alone if not any(test.is_met(key) for key in OURS)]
    return {
        "alone": len(alone),
        "met_alone": [(title, _tally(alone, key).met) for key, title in COMPARED.items()],
        "against": len(against),
        "met_against": [
            (title, _tally(against, key), sum(test.verdict(key) == "failed" for test in against))
            for key, title in OURS.items()
        ],
        "missed": [
            f"{test.name}, {test.statistic}"
            + (" (CKA or CCA does)" if any(test.is_met(key) for key in COMPARED) else "")
            for test in missed
        ],
    }


def _finding(result: Grounding) -> dict[str, Any]:
    """What the template says of one test beside its result."""
    about: dict[str, Any] = {"result": result, "images": DATA[result.images]}
    if isinstance(result, Groups):
        names = list(dict.fromkeys(result.groups))
        groups, accuracy = np.array(result.groups), np.array(result.accuracy)
        about |= {
            "names": names,
            "each": len(result.groups) // len(names),
            "accuracies": [100 * float(accuracy[groups == name].mean()) for name in names],
            "trivial": _score(result.scores.separation, "accuracy"),
        }
    elif isinstance(result, Damage):
        layers = [where for where in result.scores if where not in ("all layers", "any one layer")]
        about |= {
            "sizes": len(result.size) // (result.draws * len(set(result.where))),
            "trivial": {where: _score(scores, "size") for where, scores in result.scores.items()},
            "lowest": [
                (SHORT[key], min((_score(result.scores[where], key) for where in layers), default=math.nan))
                for key in COMPARED
            ],
        }
    elif isinstance(result, Transfer):
        truth = result.scores.angle or result.scores.shared or {}
        about |= {"stream": STREAMS[result.kind], "behaviour": truth.get("transfer")}
    return about


def _score(scores: Mapping[str, Score], key: str) -> float:
    return scores[key].score if key in scores else math.nan
