"""What the page shows of the grounding tests: one table of all, what was to be reached and what was, and figures."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.similarity.contents import Block, Goal, Part, Table
from benchmarks.similarity.grounding_networks import MEASURES, OURS, SHORT, VARIANTS
from benchmarks.similarity.grounding_pictures import pictures
from benchmarks.similarity.grounding_text import (
    IMAGES,
    STREAMS,
    count,
    explained,
    interval,
    number,
    scaled,
    setting,
)
from fscl.text import decimal

__all__ = ["Trial", "part", "trials"]

LEAST = 0.75
Results = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Trial:
    """A test of all similarities on one population, and what is to be reached."""

    name: str
    statistic: str
    goal: str  # "rival": not below CKA; "least": at least LEAST; "p": Mantel's test in every run; "chance": above it
    scores: Mapping[str, Mapping[str, Any]]
    chance: float = math.nan

    @property
    def aim(self) -> str:
        return {
            "rival": "not below CKA",
            "least": f"at least {LEAST}",
            "p": "rho > 0, p < 0.05, in every run",
            "chance": "interval above chance",
        }[self.goal]

    def verdict(self, measure: str) -> str:
        """``met``, ``failed``, ``no difference told`` (below CKA by less than the interval), or ``unknown``."""
        row = self.scores.get(measure, {})
        if math.isnan(number(row.get("score"))):
            return "unknown"
        if self.goal == "least":
            return "met" if row["score"] >= LEAST else "failed"
        if self.goal == "chance":
            return "met" if number(row["low"]) > self.chance else "failed"
        if self.goal == "p":
            won = sum(number(p) < 0.05 and number(r) > 0 for p, r in zip(row["p"], row["each"], strict=True))
            if won == len(row["p"]):
                return "met"
            return f"failed in {len(row['p']) - won} of {len(row['p'])} runs" if len(row["p"]) > 1 else "failed"
        if number(row.get("less")) >= 0:
            return "met"
        if math.isnan(number(row.get("less"))):
            return "unknown"
        return "failed" if number(row.get("less_high")) < 0 else "no difference told"


def part(units: Mapping[str, Mapping[str, Any]]) -> Part:
    """The section, from the results of its units by name."""
    results = list(units.values())
    tests = trials(results)
    blocks: list[Block] = [setting(results), _all_tests(tests), _goals(tests)]
    blocks += [text for text in map(explained, results) if text]
    blocks += [table for table in (_advice(results),) if table]
    blocks += pictures(
        results, [(t.name, t.statistic, t.scores) for t in tests if not t.statistic.startswith("nearest")]
    )
    blocks.append(_variants(tests))
    return Part("Grounding", _lead(tests), blocks, _aims(tests))


def _aims(tests: Sequence[Trial]) -> list[Goal]:
    """The goals, those of one kind together: of how many tests each rung meets it."""
    kinds: dict[str, list[Trial]] = {}
    for t in tests:
        kinds.setdefault(f"{t.name.split(',')[0].capitalize()}: {t.statistic}, {t.aim}", []).append(t)
    found = []
    for what, alike in kinds.items():
        reached = {}
        for rung, key in {
            "atoms": "atoms",
            "moments": "moments",
            "tangent": "tangent",
            "response": "responses",
            "readings": "readings",
        }.items():
            said = [t.verdict(key) for t in alike]
            open_ = said.count("no difference told")
            reached[rung] = f"{said.count('met')} of {len(said)}" + (f", {open_} undecided" if open_ else "")
        found.append(Goal(what, reached))
    return found


def trials(results: Results) -> list[Trial]:
    """All tests of which there are results, in the order in which the page has them."""
    found = []
    for r in results:
        kind, images, scores = r["kind"], IMAGES[r["images"]], r["scores"]
        if kind in ("noise", "seeds"):
            base = base_rate(r["groups"])
            name = f"{'label noise' if kind == 'noise' else 'seeds'}, {images}"
            found.append(Trial(name, "AUPRC, same group", "rival", scores["separation"], base))
            if kind == "seeds":
                chance = nearest_chance(r["groups"])
                found.append(Trial(name, "nearest of own task", "chance", scores["nearest"], chance))
        elif kind == "damage":
            found += [
                Trial(f"damage, {where}, {images}", "rho with lost accuracy", "least", scores[where], 0.0)
                for where in ("all layers", "any one layer")
            ]
        else:
            stream = STREAMS[kind]
            known = {"angle": "angle between", "line": "angle, 180° as 0°", "shared": "shared classes"}
            for truth, what in known.items():
                if truth in scores:
                    found.append(Trial(stream, f"rho, {what}", "p", scores[truth], 0.0))
            if "separation" in scores:
                base, chance = base_rate(r["groups"]), nearest_chance(r["groups"])
                found.append(Trial(f"{stream}, {images}", "AUPRC, same group", "chance", scores["separation"], base))
                found.append(Trial(f"{stream}, {images}", "nearest of own pair", "chance", scores["nearest"], chance))
            found.append(Trial(stream, "rho, transfer", "p", scores["transfer"], 0.0))
            found.append(Trial(stream, "rho, transfer less task's mean", "p", scores["transfer_less"], 0.0))
    return found


def base_rate(groups: Sequence[str]) -> float:
    """Share of pairs that are of one group: the AUPRC of chance."""
    sizes = np.unique(groups, return_counts=True)[1]
    pairs = len(groups) * (len(groups) - 1)
    return float((sizes * (sizes - 1)).sum() / pairs) if pairs else math.nan


def nearest_chance(groups: Sequence[str]) -> float:
    """How often a random other network is of the own group: the same number, by network."""
    return base_rate(groups)


def _lead(tests: Sequence[Trial]) -> str:
    """How many goals each meets, and which none of ours does."""
    alone = [t for t in tests if t.goal != "rival"]
    against = [t for t in tests if t.goal == "rival"]
    sentences = []
    for key, name in MEASURES.items():
        sentences.append(f"{name} {sum(t.verdict(key) == 'met' for t in alone)}")
    text = f"Of {count(len(alone), 'goal')} that do not refer to CKA, met by: {', '.join(sentences)}."
    if against:
        parts = []
        for key, name in OURS.items():
            said = [t.verdict(key) for t in against]
            parts.append(
                f"{name} {said.count('met')} (below by less than the interval tells: "
                f"{said.count('no difference told')}, below for certain: {said.count('failed')})"
            )
        text += f" Of {count(len(against), 'goal')} not to be below CKA: {'; '.join(parts)}."
    missed = [t for t in alone if all(t.verdict(key) != "met" for key in OURS)]
    if missed:
        both = [t for t in missed if all(t.verdict(key) != "met" for key in MEASURES)]
        names = "; ".join(f"{t.name}, {t.statistic}{'' if t in both else ' (CKA or CCA does)'}" for t in missed)
        text += f" None of ours meets: {names}."
    return text


def _all_tests(tests: Sequence[Trial]) -> Table:
    rows = [
        [t.name, t.statistic, *(cell(t.scores.get(key)) for key in MEASURES), decimal(t.chance)] for t in tests
    ]  # fmt: skip
    return Table(
        "All tests. Larger is better; in brackets 95 % intervals. Where there are several runs, each with a first "
        "network of its own, scores are their means, and p is the largest.",
        ["test", "score", *SHORT.values(), "chance"],
        rows,
    )


def _goals(tests: Sequence[Trial]) -> Table:
    rows = []
    for t in tests:
        cells = [t.name, t.statistic, t.aim]
        for key in MEASURES:
            if t.goal == "rival" and key not in OURS:
                cells.append("–")
                continue
            said = t.verdict(key)
            cells.append(f"**{said}**" if said.startswith("failed") else said)
        for key in OURS:
            row = t.scores.get(key, {})
            cells.append(interval(row.get("less"), row.get("less_low"), row.get("less_high"), "+.2f"))
        rows.append(cells)
    return Table(
        "What was to be reached, and what was. The last columns are our scores less that of linear CKA, with "
        "intervals of the difference.",
        ["test", "score", "goal", *SHORT.values(), *(f"{SHORT[key]} less CKA" for key in OURS)],
        rows,
    )


def _advice(results: Results) -> Table | None:
    rows = []
    for r in results:
        if "transfer" not in r["scores"]:
            continue
        chance, tasks = r["scores"]["chance"], len(r["groups"])
        for key, what, scale in (
            ("top", "best partner found, %", 100),
            ("rank", f"rank, of {tasks - 1}", 1),
            ("regret", "points lost to the best", 100),
        ):
            cells = [scaled(r["scores"][key].get(m, {}), scale) for m in MEASURES]
            rows.append([f"{STREAMS[r['kind']]} ({tasks} tasks)", what, *cells, f"{scale * chance[key]:.1f}"])
    if not rows:
        return None
    return Table(
        "Similarity as advice: the most similar task, as the partner whose features are used. How often it is the best "
        "of all, its mean rank among all (1 is best), and how many points of accuracy it is worse than the best. In "
        "brackets t intervals over tasks.",
        ["tasks", "score", *SHORT.values(), "chance"],
        rows,
    )


def _variants(tests: Sequence[Trial]) -> Table:
    names = {key: name for key, name in VARIANTS.items() if any(key in t.scores for t in tests)}
    rows = [[t.name, t.statistic, *(decimal(t.scores.get(key, {}).get("score")) for key in names)] for t in tests]
    return Table(
        "Other choices, computed along with the above and not chosen by how they did: other means over layers; the "
        "real images for our measure and the recalled ones for CKA, which tells what is due to the images and what to "
        "the measure; and the changes since the first task in place of the networks.",
        ["test", "score", *names.values()],
        rows,
    )


def cell(row: Mapping[str, Any] | None) -> str:
    """A score with its interval, and the largest p of its runs."""
    if not row:
        return "–"
    text = interval(row.get("score"), row.get("low"), row.get("high"))
    worst = max((number(p) for p in row["p"]), default=math.nan) if "p" in row else math.nan
    return text if math.isnan(worst) else f"{text}, p ≤ {worst:.2g}"
