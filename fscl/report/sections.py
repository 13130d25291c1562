"""One benchmark's part of a report: its tables as text and its figures, for whichever template shows them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fscl.accuracy import seen_accuracy
from fscl.plots import (
    accuracy_heatmap,
    accuracy_over_time,
    correlation_forest,
    memory_against_accuracy,
    scatter_panels,
    similarity_by_layer,
    similarity_heatmap,
    similarity_label,
    similarity_limits,
)
from fscl.plots.figures import learner_palette
from fscl.report.prediction import (
    Prediction,
    PredictionRow,
    atom_strategies,
    correlation_with_time,
    predictions,
    whole_similarity,
)
from fscl.report.provenance import memory, provenance, settings
from fscl.report.summary import StrategyRuns, SummaryRow, group_runs, summary_rows
from fscl.runs.record import RunRecord
from fscl.text import signed

__all__ = ["Picture", "Section", "build_section"]


@dataclass(frozen=True)
class Picture:
    """A figure with its file name (no ending), caption, and whether it is too wide to shrink on a narrow screen."""

    slug: str
    figure: Figure
    title: str
    caption: str
    wide: bool = False


@dataclass(frozen=True)
class Section:
    """Everything a template shows for one benchmark."""

    name: str
    title: str
    description: str
    provenance: list[tuple[str, str]]
    rows: list[SummaryRow]
    memory: tuple[tuple[str, ...], list[tuple[str, ...]]]
    overview: list[Picture]
    accuracy: list[Picture]
    similarity: list[Picture]
    answers: list[Picture]
    settings: list[tuple[str, ...]]
    means: list[tuple[str, ...]]
    details: list[tuple[str, ...]]
    best: str
    bounds: frozenset[str]
    reference: str
    unfinished: list[str]


def build_section(name: str, runs: Sequence[RunRecord]) -> Section:
    """From all runs of benchmark ``name``; unfinished ones are only listed."""
    groups = group_runs(runs)
    rows = summary_rows(groups)
    recipe = runs[0].benchmark
    references = atom_strategies(groups)
    found, means = predictions(groups)
    return Section(
        name=name,
        title=(recipe.title or recipe.name) + name.removeprefix(recipe.name),
        description=recipe.description,
        provenance=provenance(name, runs, groups),
        rows=rows,
        memory=memory(groups),
        settings=[settings(group) for group in groups],
        overview=_overview(name, groups, rows),
        accuracy=_accuracy(name, groups),
        similarity=_similarity(name, references) if references else [],
        answers=_answers(name, means, found, _colours(groups)),
        means=[mean.cells() for mean in means],
        details=[row.cells() for row in found],
        reference=" or ".join(group.label for group in references),
        bounds=frozenset(row.label for row in rows if row.bound),
        best=next((row.label for row in rows if row.bound is None), ""),
        unfinished=[_unfinished(run) for run in runs if not run.finished],
    )


def _unfinished(run: RunRecord) -> str:
    """Which run, how far it came, and what stopped it, if it was an error."""
    far = f"{len(run.accuracy)} of {len(run.tasks)} tasks" if run.tasks else "before its first task"
    error = f" ({run.error})" if run.error else ""
    return f"{run.strategy.title or run.strategy.name}, seed {run.seed}: {run.status}, {far}{error}"


def _overview(name: str, groups: Sequence[StrategyRuns], rows: Sequence[SummaryRow]) -> list[Picture]:
    pictures = []
    bounds, colours = [group.label for group in groups if group.bound], _colours(groups)
    curves = {g.label: [seen_accuracy(run.accuracy) for run in g.runs] for g in groups if g.square}
    if curves:
        caption = (
            "Mean accuracy on the tasks seen so far, after each task. Lines are means over seeds, bands of a "
            "few lines one sample standard deviation on either side. A line that falls is a learner that forgets, or "
            "tasks that get harder. Dashed: bounds."
        )
        axes = accuracy_over_time(curves, bounds=bounds, colours=colours)
        pictures.append(_picture(f"{name}-over-time", axes, "Tasks seen so far", caption))
    points = {
        row.label: (row.bytes_in_all.mean, row.accuracy.mean) for row in rows if row.bytes_in_all and row.accuracy
    }
    if len(points) > 1:
        caption = (
            "All that is stored after the last task, network and exemplars included, against final mean accuracy. Up "
            "and to the left is better. Hollow: bounds."
        )
        axes = memory_against_accuracy(points, bounds=bounds, colours=colours)
        pictures.append(_picture(f"{name}-memory", axes, "Accuracy and storage", caption))
    return pictures


def _accuracy(name: str, groups: Sequence[StrategyRuns]) -> list[Picture]:
    learners_first = sorted(groups, key=lambda group: group.bound is not None)  # bounds have nothing to forget
    matrices = {group: group.mean_accuracy() for group in learners_first if group.square}
    if not matrices:
        return []
    seen = np.concatenate([matrix[np.tril_indices(len(matrix))] for matrix in matrices.values()])
    # One scale for all strategies, or equal colours would not mean equal accuracies.
    limits = (float(np.floor(20 * seen.min()) * 5), 100.0)
    pictures = []
    for group, matrix in matrices.items():
        axes = accuracy_heatmap(matrix, group.shown[0].task_names, limits=limits)
        seeds = f"mean over {len(group.shown)} seeds" if len(group.shown) > 1 else f"seed {group.shown[0].seed}"
        caption = f"Accuracy on each task (columns) after each task learned (rows); {seeds}."
        if not group.same_order:
            caption += " The other seeds learned other tasks."
        pictures.append(_picture(f"{name}-accuracy-{_id(group)}", axes, group.label, caption))
    return pictures


def _similarity(name: str, groups: Sequence[StrategyRuns]) -> list[Picture]:
    """Which tasks are alike by the atoms of each strategy; layer by layer for the first alone."""
    pictures = []
    for group in groups:
        runs, source = _alike(group)
        first = runs[0].similarity
        assert first is not None
        whole = np.mean([matrix for run in runs if (matrix := whole_similarity(run)) is not None], axis=0)
        low, high = similarity_limits(whole)
        label = similarity_label(first.metric, first.aggregate)
        kind, _, how = label.partition(", ")
        caption = (
            f"{kind.capitalize()} of the atoms of {group.label}, {how}; {source}. No data is used. "
            f"Colours span the off-diagonal values, {low:.2f} to {high:.2f}, not 0 to 1; "
            "the diagonal, 1 by definition, is greyed." + _with_time(_of_atoms(group))
        )
        axes = similarity_heatmap(whole, runs[0].task_names[: len(whole)], label=label)
        slug, title = f"{name}-similarity", "Whole network"
        if len(groups) > 1:
            title += f": {group.label}"
        if group is not groups[0]:
            slug += f"-{_id(group)}"
        pictures.append(_picture(slug, axes, title, caption))
    return [*pictures, _by_layer(name, groups[0])]


def _by_layer(name: str, group: StrategyRuns) -> Picture:
    runs, source = _alike(group)
    first = runs[0].similarity
    assert first is not None
    stack = np.mean([run.similarity.matrix for run in runs if run.similarity is not None], axis=0)
    low, high = similarity_limits(stack)
    caption = (
        f"{first.metric.capitalize()} similarity of the atoms of each layer of {group.label}, from input to output; "
        f"{source}. All layers share one colour scale, {low:.2f} to {high:.2f}; tasks are numbered as learned."
    )
    names = runs[0].task_names[: stack.shape[-1]]
    figure = similarity_by_layer(stack, first.layers, names, label=f"{first.metric} similarity")
    wide = min(len(first.layers), 4) > 2
    return Picture(_slug(f"{name}-similarity-by-layer"), figure, "Layer by layer", caption, wide=wide)


def _of_atoms(group: StrategyRuns) -> list[RunRecord]:
    return [run for run in group.runs if run.similarity is not None and run.provenance == "atoms"]


def _alike(group: StrategyRuns) -> tuple[list[RunRecord], str]:
    """The runs whose similarities one picture can show, and what they are: all that learned the same, else one."""
    runs = _of_atoms(group)
    layers = {tuple(run.similarity.layers) for run in runs if run.similarity is not None}
    chosen = runs if group.same_order and len(layers) == 1 else runs[:1]
    return chosen, f"mean over {len(chosen)} seeds" if len(chosen) > 1 else f"seed {chosen[0].seed}"


def _with_time(runs: Sequence[RunRecord]) -> str:
    """What a similarity that only told when a task was learned would explain."""
    rho, seeds = correlation_with_time(runs)
    if not seeds:
        return ""
    over = f" (mean over {seeds} seeds)" if seeds > 1 else ""
    return (
        f" Spearman's ρ of similarity and the number of tasks from one to the other is {signed(rho)}"
        f"{over}: near −1, when a task was learned tells as much as what it is."
    )


def _answers(
    name: str, answers: Sequence[Prediction], found: Sequence[PredictionRow], colours: Mapping[str, Any]
) -> list[Picture]:
    defined = [answer for answer in answers if answer.found.defined]
    if not defined:
        return []
    shown: dict[str, dict[str, dict[str, tuple[float, float, float, float]]]] = {}
    for answer in defined:
        shown.setdefault(answer.words, {})[answer.label] = {
            way: (pooled.statistic, pooled.low, pooled.high, p)
            for way, pooled, p in (
                ("all pairs of tasks", answer.found, answer.p),
                ("later tasks equally far apart in the stream", answer.apart, answer.p_apart),
            )
        }
    caption = (
        "Mean over seeds of the rank correlation, with its 95 % interval over seeds where there are several. Filled "
        "where p < 0.05 after Holm's adjustment, hollow where not. Left of the line: the less alike tasks "
        "are, the more is forgotten, dropped or transferred. Right of it: the more alike they are."
    )
    figure = correlation_forest(shown)
    pictures = [Picture(_slug(f"{name}-answers"), figure, "Correlation with similarity", caption, wide=True)]
    of_forgetting = [row for row in found if row.question == "atoms" and row.defined]
    for number, words in enumerate(dict.fromkeys(row.words for row in of_forgetting)):
        rows = [row for row in of_forgetting if row.words == words]
        slug = f"{name}-forgetting" + (f"-{number + 1}" if number else "")
        pictures.append(_scatter(slug, rows, colours))
    return pictures


def _scatter(slug: str, rows: Sequence[PredictionRow], colours: Mapping[str, Any]) -> Picture:
    dots = {}
    for label in dict.fromkeys(row.label for row in rows):
        mine = [row for row in rows if row.label == label]
        dots[label] = (
            np.concatenate([row.x for row in mine]),
            100 * np.concatenate([row.y for row in mine]),
            [f"seed {row.seed}" for row in mine for _ in row.x],
        )
    atoms = rows[0].atoms
    xlabel = f"similarity of tasks i and t ({atoms})"
    figure = scatter_panels(dots, xlabel=xlabel, ylabel="forgetting (points)", colours=colours)
    caption = (
        f"Similarity of tasks i and t by the atoms of {atoms}, against how much of task i each learner lost after "
        "task t. One dot a pair of tasks, shades are seeds."
    )
    return Picture(_slug(slug), figure, rows[0].words, caption, wide=len(dots) > 2)


def _colours(groups: Sequence[StrategyRuns]) -> dict[str, tuple[float, float, float]]:
    """A learner has one colour in all figures of a page."""
    return learner_palette([group.label for group in groups], [group.label for group in groups if group.bound])


def _picture(slug: str, axes: Axes, title: str, caption: str) -> Picture:
    figure = axes.figure
    assert isinstance(figure, Figure)
    return Picture(_slug(slug), figure, title, caption)


def _id(group: StrategyRuns) -> str:
    return group.name if group.label.find(group.recipe_hash[:7]) < 0 else f"{group.name}-{group.recipe_hash[:7]}"


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:80]
