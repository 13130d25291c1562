"""The parts of a report on how its runs were made: budget, machine, versions, settings, and what was stored."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from fscl.report.grouping import RunGroup
from fscl.report.summary import StrategyRuns
from fscl.report.table import Bytes, Column
from fscl.runs.records.record import Record, RunRecord
from fscl.text import DASH, human_seconds

__all__ = [
    "SETTINGS",
    "budget",
    "how_made",
    "memory_columns",
    "optimizer_words",
    "provenance",
    "runs_described",
    "settings_columns",
]

R = TypeVar("R", bound=Record)


def provenance(name: str, runs: Sequence[RunRecord], groups: Sequence[RunGroup[RunRecord]]) -> list[tuple[str, str]]:
    """Terms and texts that describe all runs of a benchmark.

    Args:
        name: the benchmark's name.
        runs: all its runs. They are described if none is finished.
        groups: its finished runs by strategy.
    """
    described = runs_described(runs, groups)
    benchmark = f"{name}, {max(len(run.tasks) for run in described)} tasks"
    return how_made([("Benchmark", benchmark)], described, groups, budget, "learners")


def runs_described(runs: Sequence[R], groups: Sequence[RunGroup[R]]) -> list[R]:
    """The finished runs, or all runs if none is finished."""
    return [run for group in groups for run in group.runs] or list(runs)


def how_made(
    first: Sequence[tuple[str, str]],
    described: Sequence[R],
    groups: Sequence[RunGroup[R]],
    budget: Callable[[R], str],
    kind: str,
) -> list[tuple[str, str]]:
    """Terms and texts on how runs were made, without those that are empty.

    Args:
        first: terms and texts on the benchmark itself.
        described: the runs.
        groups: the finished runs by strategy.
        budget: how long and how a run was trained, in words.
        kind: the word for several strategies.
    """
    count = len(described)
    seeds = sorted({run.seed for run in described})
    budgets = [budget(group.runs[0]) for group in groups] or [budget(described[0])]
    usual = max(dict.fromkeys(budgets), key=budgets.count)
    usual += f"; some {kind} have another budget, see below" * (len(set(budgets)) > 1)
    versions = Counter(", ".join(f"{name} {version}" for name, version in run.versions.items()) for run in described)
    several = len(versions) > 1
    days = sorted({run.started[:10] for run in described if run.started})
    lines = [
        *first,
        ("Seeds", f"{', '.join(map(str, seeds))} (n = {len(seeds)})"),
        ("Network", _network(described[0])),
        ("Budget", usual),
        ("Tested on", "; ".join(sorted({_tested(run) for run in described}))),
        ("Machine", _machines(described, groups)),
        ("Versions", "; ".join(text + f" ({n} of {count} runs)" * several for text, n in sorted(versions.items()))),
        ("Begun", " to ".join(dict.fromkeys((days[0], days[-1]))) if days else ""),
        ("Time", f"{human_seconds(sum(sum(run.step_seconds) for run in described))} in all, training and evaluation"),
    ]
    return [(term, text) for term, text in lines if text]


def budget(run: RunRecord, brief: bool = False) -> str:
    """How long and how a run was trained; with ``brief`` only how long."""
    training = run.benchmark.training
    first_differs = training.get("epochs_next") is not None and not run.at_once
    tasks = "of all tasks at once" if run.at_once else "on the first task" if first_differs else "a task"
    shown = (
        ("epochs", f"{{}} epochs {tasks}"),
        *[("epochs_next", "{} on each later one")] * first_differs,
    )
    texts = [text.format(training[key]) for key, text in shown if training.get(key) is not None]
    if training.get("epochs") == 1:
        texts[0] = texts[0].replace("epochs", "epoch")
    if not brief:
        texts += optimizer_words(training, [("lr_next", "{} from the second task on")] * (not run.at_once))
    return ", ".join(texts)


def optimizer_words(training: Mapping[str, Any], after_lr: Sequence[tuple[str, str]] = ()) -> list[str]:
    """The settings of a training in words, without its epochs. ``after_lr`` are keys and words after the rate's."""
    shown = (
        ("batch_size", "batches of {}" + (", the last one left out if smaller" if training.get("drop_last") else "")),
        ("optimizer", "{}"),
        ("schedule", "{}"),
        ("lr", "learning rate {}"),
        *after_lr,
        *[("momentum", "momentum {}")] * (training.get("optimizer") == "sgd"),
        ("weight_decay", "weight decay {}"),
    )
    return [text.format(training[key]) for key, text in shown if training.get(key) is not None]


def _network(run: Record) -> str:
    model = run.benchmark.model
    return ", ".join([model.name, *_assigned(model.args)]).strip(", ")


def settings_columns(title: str, budget: Callable[[R], str]) -> tuple[Column[RunGroup[R]], ...]:
    """The columns of the table of settings; ``title`` is the heading of the strategies' names."""
    return (
        Column(title, "", "", lambda group: group.label),
        Column("Class", "", "", lambda group: group.runs[0].strategy.class_path or DASH),
        Column("Settings", "", "", lambda group: ", ".join(_assigned(group.runs[0].strategy.args)) or DASH),
        Column("Budget", "", "", lambda group: budget(group.runs[0])),
        Column("Recipe", "", "", lambda group: group.recipe_hash[:12]),
    )


SETTINGS = settings_columns("Strategy", budget)


def _assigned(arguments: Mapping[str, Any]) -> list[str]:
    return [f"{name} = {value}" for name, value in arguments.items()]


def _tested(run: Record) -> str:
    if run.validation:
        return f"{run.validation:.0%} of the training images, held out from training (validation)"
    return "the test images"


def _machines(runs: Sequence[Record], groups: Sequence[RunGroup[R]]) -> str:
    """The machine of most runs, then each other machine with its learners: their times cannot be compared."""
    (usual, most), *other_machines = Counter(map(_machine, runs)).most_common()
    if not other_machines:
        return usual
    texts = [f"{usual} ({most} of {len(runs)} runs)"]
    for name, n in other_machines:
        labels = [group.label for group in groups if any(_machine(run) == name for run in group.runs)]
        texts.append(f"{name} ({n} of {len(runs)} runs: {', '.join(labels)})")
    return "; ".join(texts) + ". Times on different machines cannot be compared."


def _machine(run: Record) -> str:
    threads = run.machine.get("threads")
    count = f"{threads} thread{'s' * (threads != 1)}" if threads else None
    parts = [run.machine.get("processor"), run.machine.get("device"), count, run.machine.get("precision")]
    return ", ".join(str(part) for part in parts if part) or "not recorded"


def memory_columns(groups: Sequence[StrategyRuns]) -> list[Column[StrategyRuns]]:
    """The columns of the table of stored bytes by kind; none if no run says what it stored."""
    kinds = list(dict.fromkeys(kind for group in groups for run in group.runs for kind in run.memory.per_task))

    def mean(title: str, size: Callable[[RunRecord], float]) -> Column[StrategyRuns]:
        return Bytes(title, "", "", lambda group: float(np.mean([size(run) for run in group.runs])))

    def of_kind(kind: str) -> Column[StrategyRuns]:
        return mean(kind.capitalize(), lambda run: run.memory.per_task.get(kind, 0.0))

    columns = [
        Column("Strategy", "", "", lambda group: group.label),
        *map(of_kind, kinds),
        mean("One more task", lambda run: run.memory.bytes_per_task),
        mean("Shared by all tasks", lambda run: run.memory.bytes_shared),
        mean("In all", lambda run: run.stored),
    ]
    return columns if kinds else []
