"""Results -> the summary table, the same for the HTML page, the Markdown page and the terminal."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from rich import box
from rich.table import Table

from fscl.accuracy import (
    average_accuracy,
    average_incremental_accuracy,
    backward_transfer,
    forgetting,
    forward_transfer,
    learning_accuracy,
)
from fscl.errors import FsclError
from fscl.report.ranking import Difference, against_best
from fscl.runs.record import RunRecord

__all__ = [
    "COLUMNS",
    "DASH",
    "Estimate",
    "StrategyRuns",
    "SummaryRow",
    "group_runs",
    "human_bytes",
    "human_seconds",
    "rich_table",
    "small_p",
    "summary_rows",
]

DASH = "–"
COLUMNS = (
    "Strategy",
    "Seeds",
    "Accuracy (%)",
    "Against the best (points)",
    "p (is the best)",
    "Incremental accuracy (%)",
    "Learning accuracy (%)",
    "Backward transfer (points)",
    "Forgetting (points)",
    "Forward transfer (points)",
    "Stored per task",
    "Stored in all",
    "Training per run",
)
SHORT = ("Strategy", "n", "ACC", "best", "p", "AIA", "LA", "BWT", "Forg.", "FWT", "a task", "in all", "time")
A_TASK = SHORT[-3]
NARROW = 140  # columns of a terminal below which spreads go under their means, with one decimal


@dataclass(frozen=True)
class Estimate:
    """Mean and sample standard deviation (n - 1; None for a single value) over ``n`` seeds."""

    mean: float
    std: float | None
    n: int

    @staticmethod
    def of(values: Sequence[float]) -> Estimate | None:
        """None when there are no values."""
        if not len(values):
            return None
        std = float(np.std(values, ddof=1)) if len(values) > 1 else None
        return Estimate(float(np.mean(values)), std, len(values))

    def text(self, scale: float = 1.0, digits: int = 2, sign: bool = False) -> str:
        """
        >>> Estimate(-0.0123, 0.004, 3).text(scale=100, sign=True)
        '−1.23 ± 0.40'
        """
        value = round(self.mean * scale, digits) + 0.0  # no "-0.00"
        shown = f"{value:+.{digits}f}" if sign and value else f"{value:.{digits}f}"
        shown = shown.replace("-", "−")
        return shown if self.std is None else f"{shown} ± {self.std * scale:.{digits}f}"


@dataclass(frozen=True, eq=False)
class StrategyRuns:
    """Finished runs that may be averaged: one stream, one strategy, one recipe hash, different seeds."""

    benchmark: str
    name: str
    label: str
    recipe_hash: str
    runs: tuple[RunRecord, ...]

    @property
    def bound(self) -> str | None:
        return self.runs[0].strategy.bound

    @property
    def square(self) -> bool:
        return all(run.square for run in self.runs)

    @property
    def same_order(self) -> bool:
        """Whether every seed learned the same tasks in the same order."""
        return len({run.task_names for run in self.runs}) == 1

    @property
    def shown(self) -> tuple[RunRecord, ...]:
        """The runs that one task-by-task matrix can show: all if they learned the same tasks, else the first seed's."""
        return self.runs if self.same_order else self.runs[:1]

    def mean_accuracy(self) -> np.ndarray:
        """(T, T) mean over the shown runs."""
        return np.mean([run.accuracy for run in self.shown], axis=0)


@dataclass(frozen=True)
class SummaryRow:
    """One line of the table. Accuracies and differences are fractions; None where a number is not defined."""

    benchmark: str
    strategy: str
    label: str
    recipe_hash: str
    seeds: tuple[int, ...]
    bound: str | None
    accuracy: Estimate | None
    against_best: Difference | None
    incremental_accuracy: Estimate | None
    learning_accuracy: Estimate | None
    backward_transfer: Estimate | None
    forgetting: Estimate | None
    forward_transfer: Estimate | None
    bytes_per_task: Estimate | None
    bytes_in_all: Estimate | None
    train_seconds: Estimate | None

    def cells(self, digits: int = 2) -> tuple[str, ...]:
        """The row as text, in the order of :data:`COLUMNS`."""

        def points(value: Estimate | None, sign: bool = False) -> str:
            if value is None:
                return DASH
            text = value.text(scale=100, sign=sign, digits=digits)
            # A number that some seeds lack must not pass for one over all of them.
            return text if value.n == len(self.seeds) else f"{text} (n = {value.n})"

        return (
            self.label,
            str(len(self.seeds)),
            points(self.accuracy),
            *self._against_best(digits),
            points(self.incremental_accuracy),
            points(self.learning_accuracy),
            points(self.backward_transfer, sign=True),
            points(self.forgetting),
            points(self.forward_transfer, sign=True),
            _scaled(self.bytes_per_task, human_bytes),
            _scaled(self.bytes_in_all, human_bytes),
            _scaled(self.train_seconds, human_seconds),
        )

    def _against_best(self, digits: int) -> tuple[str, str]:
        difference = self.against_best
        if difference is None:
            return DASH, DASH
        n = difference.n
        mean = Estimate(difference.mean, None, n).text(scale=100, digits=digits, sign=True)
        if math.isfinite(difference.low):
            low, high = (Estimate(v, None, n).text(100, digits, True) for v in (difference.low, difference.high))
            mean += f" [{low}, {high}]"
        short = "" if n == len(self.seeds) else f" (n = {n})"
        return mean + short, small_p(difference.p_value)


def group_runs(runs: Iterable[RunRecord]) -> list[StrategyRuns]:
    """Finished runs by stream, strategy and recipe hash; best mean final accuracy first within a stream, and of equals
    the one that stores least.

    Runs of one strategy whose recipes differ stay apart, told apart by a short hash in the label. The same seed twice
    in a group raises :class:`FsclError`: counted twice, it would shrink the spread.
    """
    groups: dict[tuple[str, str, str], dict[int, RunRecord]] = {}
    for run in runs:
        if not run.finished:
            continue
        group = groups.setdefault((run.stream, run.strategy.name, run.recipe_hash), {})
        if run.seed in group:
            raise FsclError(
                f"seed {run.seed} of {run.strategy.name} on {run.benchmark.name} is there twice: "
                f"{group[run.seed].path} and {run.path}; give only one of them"
            )
        group[run.seed] = run
    titles = {key: next(iter(by_seed.values())).strategy.title or key[1] for key, by_seed in groups.items()}
    made = []
    for (benchmark, name, recipe_hash), by_seed in groups.items():
        title = titles[benchmark, name, recipe_hash]
        if len({key[1] for key, other in titles.items() if key[0] == benchmark and other == title}) > 1:
            title = f"{title} [{name}]"
        variants = sum(key[:2] == (benchmark, name) for key in groups)
        label = f"{title} ({recipe_hash[:7]})" if variants > 1 else title
        made.append(StrategyRuns(benchmark, name, label, recipe_hash, tuple(by_seed[s] for s in sorted(by_seed))))
    return sorted(made, key=_rank)


def _rank(group: StrategyRuns) -> tuple[str, float, float, str, str]:
    accuracy, stored = np.mean([(_final(run), run.stored) for run in group.runs], axis=0)
    # rounding must not break a tie
    return group.benchmark, -round(float(accuracy), 12), float(stored), group.name, group.recipe_hash


def summary_rows(runs: Iterable[RunRecord]) -> list[SummaryRow]:
    """One row for each strategy (and recipe hash) of each benchmark, over its finished seeds."""
    groups = group_runs(runs)
    rows = []
    for benchmark in dict.fromkeys(group.benchmark for group in groups):
        ours = [group for group in groups if group.benchmark == benchmark]
        accuracy = {group.label: {run.seed: _final(run) for run in group.runs} for group in ours}
        learners = frozenset(group.label for group in ours if group.bound is None)
        differences = against_best(accuracy, learners)
        rows += [_row(group, differences.get(group.label)) for group in ours]
    return rows


def rich_table(rows: Sequence[SummaryRow], title: str | None = None, width: int = 80) -> Table:
    """The table for a terminal, of 80 columns or more; a benchmark column appears when rows are of several benchmarks.

    In a narrow one the spread goes below the mean, and numbers have one decimal.
    """
    several = len({row.benchmark for row in rows}) > 1
    narrow = width < NARROW
    table = Table(
        title=title,
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
        padding=(0, 0 if narrow else 1),
        header_style="bold",
        caption="in % and points; mean ± sample standard deviation over n seeds; best: against the best learner, "
        "p of being itself the best (paired t-tests)",
        caption_justify="left",
    )
    if several:
        table.add_column("Benchmark", no_wrap=True)
    heads = [name for name in SHORT if not (narrow and name == A_TASK)]
    for position, name in enumerate(heads):
        table.add_column(
            name,
            justify="left" if position == 0 else "right",
            no_wrap=position > 0,
            min_width=11 if position == 0 else None,
        )
    for row in rows:
        cells = dict(zip(SHORT, row.cells(digits=1 if narrow else 2), strict=True))
        cells["best"] = re.sub(r" [\[(].*", "", cells["best"])  # the interval is in the report
        cells["time"] = re.sub(r"(?<=min) \d+ s", "", cells["time"])
        if narrow:
            cells["p"] = cells["p"].replace("< 0", "<")
            for name in ("in all", "time"):
                cells[name] = cells[name].partition(" ± ")[0]
        # Labels come from recipes: square brackets in them are text, not markup.
        texts = [cells[name].replace("[", r"\[").replace(" ± ", "\n±" if narrow else " ± ") for name in heads]
        table.add_row(*([row.benchmark.replace("[", r"\[")] if several else []), *texts)
    return table


def small_p(value: float) -> str:
    """
    >>> small_p(0.00012), small_p(0.0314), small_p(float("nan"))
    ('< 0.001', '0.031', '–')
    """
    if math.isnan(value):
        return DASH
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def human_bytes(size: float) -> str:
    """Decimal units: 1 kB = 1000 B.

    >>> human_bytes(17600), human_bytes(432), human_bytes(16e6)
    ('17.6 kB', '432 B', '16.0 MB')
    """
    if size < 1000:
        return f"{size:.0f} B"
    for unit in ("kB", "MB", "GB"):
        size /= 1000
        if size < 999.95 or unit == "GB":
            break
    return f"{size:.1f} {unit}"


def human_seconds(seconds: float) -> str:
    """
    >>> human_seconds(4.27), human_seconds(140), human_seconds(7260)
    ('4.3 s', '2 min 20 s', '2 h 01 min')
    """
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"


def _row(group: StrategyRuns, difference: Difference | None) -> SummaryRow:
    def over_seeds(number: Callable[[RunRecord], float], usable: Callable[[RunRecord], bool]) -> Estimate | None:
        return Estimate.of([number(run) for run in group.runs if usable(run)])

    def of_matrix(number: Callable[[np.ndarray], float]) -> Estimate | None:
        return over_seeds(lambda run: number(run.accuracy), lambda run: run.square and not run.at_once)

    def in_turn(number: Callable[[np.ndarray], float]) -> Estimate | None:
        return over_seeds(lambda run: number(run.accuracy), _in_turn)

    return SummaryRow(
        benchmark=group.benchmark,
        strategy=group.name,
        label=group.label,
        recipe_hash=group.recipe_hash,
        seeds=tuple(run.seed for run in group.runs),
        bound=group.bound,
        accuracy=over_seeds(_final, lambda run: True),
        against_best=difference,
        incremental_accuracy=of_matrix(average_incremental_accuracy),
        learning_accuracy=of_matrix(learning_accuracy),
        backward_transfer=in_turn(backward_transfer),
        forgetting=in_turn(forgetting),
        forward_transfer=over_seeds(_forward, _transfers),
        bytes_per_task=over_seeds(lambda run: run.memory.bytes_per_task, lambda run: bool(run.memory.per_task)),
        bytes_in_all=over_seeds(lambda run: run.stored, lambda run: bool(run.memory.per_task)),
        train_seconds=over_seeds(lambda run: float(run.seconds.train.sum()), lambda run: run.seconds.train.size > 0),
    )


def _final(run: RunRecord) -> float:
    try:
        return average_accuracy(run.accuracy) if run.square else float(_complete(run.accuracy[-1]).mean())
    except FsclError as error:
        raise FsclError(f"{run.path}: {error}") from error


def _complete(row: np.ndarray) -> np.ndarray:
    if np.isnan(row).any():
        raise FsclError(f"the run is finished, but its last row of accuracies lacks {int(np.isnan(row).sum())} task(s)")
    return row


def _in_turn(run: RunRecord) -> bool:
    """Whether one network learned one task after another, so that something can be lost, or pass to the next."""
    return run.square and run.strategy.bound != "upper" and len(run.tasks) > 1


def _transfers(run: RunRecord) -> bool:
    """Whether features were measured before each task, too."""
    return _in_turn(run) and run.start.size > 0 and run.untrained.size > 0


def _forward(run: RunRecord) -> float:
    try:
        return forward_transfer(run.start, run.untrained)
    except FsclError as error:
        raise FsclError(f"{run.path}: {error}") from error


def _scaled(value: Estimate | None, human: Callable[[float], str]) -> str:
    if value is None:
        return DASH
    return f"{human(value.mean)} ± {human(value.std)}" if value.std else human(value.mean)
