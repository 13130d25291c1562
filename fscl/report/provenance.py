"""The parts of a report on how its runs were made: budget, machine, versions, settings, and what was stored."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from fscl.report.summary import StrategyRuns
from fscl.report.table import Bytes, Column
from fscl.runs.record import RunRecord
from fscl.text import DASH, human_seconds

__all__ = ["SETTINGS", "budget", "memory_columns", "provenance"]


def provenance(name: str, runs: Sequence[RunRecord], groups: Sequence[StrategyRuns]) -> list[tuple[str, str]]:
    """Terms and texts that describe all runs of a benchmark.

    Args:
        name: the benchmark's name.
        runs: all its runs. They are described if none is finished.
        groups: its finished runs by strategy.
    """
    described = [run for group in groups for run in group.runs] or list(runs)
    count = len(described)
    seeds = sorted({run.seed for run in described})
    budgets = [budget(group.runs[0]) for group in groups] or [budget(described[0])]
    usual = max(dict.fromkeys(budgets), key=budgets.count)
    usual += "; some learners have another budget, see below" * (len(set(budgets)) > 1)
    versions = Counter(", ".join(f"{name} {version}" for name, version in run.versions.items()) for run in described)
    several = len(versions) > 1
    days = sorted({run.started[:10] for run in described if run.started})
    lines = [
        ("Benchmark", f"{name}, {max(len(run.tasks) for run in described)} tasks"),
        ("Seeds", f"{', '.join(map(str, seeds))} (n = {len(seeds)})"),
        ("Network", _network(described[0])),
        ("Budget", usual),
        ("Tested on", "; ".join(sorted({_tested(run) for run in described}))),
        ("Machine", _machines(described, groups)),
        ("Versions", "; ".join(text + f" ({n} of {count} runs)" * several for text, n in sorted(versions.items()))),
        ("Begun", " to ".join(dict.fromkeys((days[0], days[-1]))) if days else ""),
        ("Time", f"{human_seconds(sum(run.seconds.total for run in described))} in all, training and evaluation"),
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
        ("batch_size", "batches of {}" + (", the last one left out if smaller" if training.get("drop_last") else "")),
        ("optimizer", "{}"),
        ("schedule", "{}"),
        ("lr", "learning rate {}"),
        *[("lr_next", "{} from the second task on")] * (not run.at_once),
        *[("momentum", "momentum {}")] * (training.get("optimizer") == "sgd"),
        ("weight_decay", "weight decay {}"),
    )
    texts = [text.format(training[key]) for key, text in shown if training.get(key) is not None]
    if training.get("epochs") == 1:
        texts[0] = texts[0].replace("epochs", "epoch")
    return ", ".join(texts[: 1 + first_differs] if brief else texts)


def _network(run: RunRecord) -> str:
    model = run.benchmark.model
    return ", ".join([model.name, *_assigned(model.args)]).strip(", ")


SETTINGS: tuple[Column[StrategyRuns], ...] = (
    Column("Strategy", "", "", lambda group: group.label),
    Column("Class", "", "", lambda group: group.runs[0].strategy.class_path or DASH),
    Column("Settings", "", "", lambda group: ", ".join(_assigned(group.runs[0].strategy.args)) or DASH),
    Column("Budget", "", "", lambda group: budget(group.runs[0])),
    Column("Recipe", "", "", lambda group: group.recipe_hash[:12]),
)


def _assigned(arguments: Mapping[str, Any]) -> list[str]:
    return [f"{name} = {value}" for name, value in arguments.items()]


def _tested(run: RunRecord) -> str:
    if run.validation:
        return f"{run.validation:.0%} of the training images, held out from training (validation)"
    return "the test images"


def _machines(runs: Sequence[RunRecord], groups: Sequence[StrategyRuns]) -> str:
    """The machine of most runs, then each other machine with its learners: their times cannot be compared."""
    (usual, most), *other_machines = Counter(map(_machine, runs)).most_common()
    if not other_machines:
        return usual
    texts = [f"{usual} ({most} of {len(runs)} runs)"]
    for name, n in other_machines:
        labels = [group.label for group in groups if any(_machine(run) == name for run in group.runs)]
        texts.append(f"{name} ({n} of {len(runs)} runs: {', '.join(labels)})")
    return "; ".join(texts) + ". Times on different machines cannot be compared."


def _machine(run: RunRecord) -> str:
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
