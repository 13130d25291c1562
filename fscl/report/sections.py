"""The section of a report on one benchmark: rows of tables, and figures. Templates show it as HTML or Markdown."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

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
from fscl.plots.figures import LearnerStyle, learner_styles
from fscl.report.findings import Findings, findings
from fscl.report.grouping import RunGroup
from fscl.report.prediction import (
    Prediction,
    PredictionRow,
    atom_strategies,
    correlation_with_time,
    predictions,
    whole_similarity,
)
from fscl.report.provenance import memory_columns, provenance
from fscl.report.summary import StrategyRuns, SummaryRow, group_runs, summary_rows
from fscl.report.table import Column
from fscl.runs.records.record import RunRecord
from fscl.text import signed

__all__ = ["Picture", "Section", "build_section", "group_id", "picture", "slugged"]


@dataclass(frozen=True)
class Picture:
    """A figure of a report.

    Attributes:
        slug: file name without its ending.
        figure: the figure.
        title, caption: texts above and below it.
        learner: label of the only learner that it shows; empty if it shows several.
    """

    slug: str
    figure: Figure
    title: str
    caption: str
    learner: str = ""


@dataclass(frozen=True)
class Section:
    """Everything that a template shows for one benchmark."""

    kind: ClassVar[str] = "stream"

    name: str
    title: str
    description: str
    provenance: list[tuple[str, str]]
    groups: list[StrategyRuns]
    rows: list[SummaryRow]
    memory: list[Column[StrategyRuns]]
    overview: list[Picture]
    accuracy: list[Picture]
    similarity: list[Picture]
    answers: list[Picture]
    means: list[Prediction]
    details: list[PredictionRow]
    best: str
    bounds: frozenset[str]
    reference: str
    unfinished: list[str]
    findings: Findings

    @property
    def topics(self) -> list[tuple[str, str]]:
        """The parts that are not empty: the key and the heading of each."""
        topics = (
            ("summary", "Summary", True),
            ("overview", "Accuracy over time", self.overview),
            ("accuracy", "Accuracy, task by task", self.accuracy),
            ("similarity", "Which tasks are alike", self.similarity),
            ("answers", "Does similarity predict forgetting and transfer?", self.means),
        )
        return [(key, heading) for key, heading, content in topics if content]

    @property
    def pictures(self) -> list[Picture]:
        return [*self.overview, *self.accuracy, *self.similarity, *self.answers]

    def picture_of(self, learner: str) -> Picture | None:
        """The picture of one learner alone."""
        return next((picture for picture in self.accuracy if picture.learner == learner), None)


def build_section(name: str, runs: Sequence[RunRecord]) -> Section:
    """The section on benchmark ``name``, from all its runs. Unfinished runs are only listed."""
    groups = group_runs(runs)
    rows = summary_rows(groups)
    recipe = runs[0].benchmark
    references = atom_strategies(groups)
    details, means = predictions(groups)
    return Section(
        name=name,
        title=(recipe.title or recipe.name) + name.removeprefix(recipe.name),
        description=recipe.description,
        provenance=provenance(name, runs, groups),
        groups=groups,
        rows=rows,
        memory=memory_columns(groups),
        overview=_overview(name, groups, rows),
        accuracy=_accuracy(name, groups, rows),
        similarity=_similarity(name, references) if references else [],
        answers=_answers(name, means, details, _styles(groups)),
        means=means,
        details=details,
        reference=" or ".join(group.label for group in references),
        bounds=frozenset(row.label for row in rows if row.bound),
        best=next((row.label for row in rows if row.bound is None), ""),
        unfinished=[_unfinished(run) for run in runs if not run.finished],
        findings=findings(rows, means),
    )


def _unfinished(run: RunRecord) -> str:
    """A line on an unfinished run: strategy, seed, status, learned tasks, and the error if there was one."""
    learned = f"{len(run.accuracy)} of {len(run.tasks)} tasks" if run.tasks else "before its first task"
    error = f" ({run.error})" if run.error else ""
    return f"{run.strategy.title or run.strategy.name}, seed {run.seed}: {run.status}, {learned}{error}"


def _overview(name: str, groups: Sequence[StrategyRuns], rows: Sequence[SummaryRow]) -> list[Picture]:
    pictures = []
    bounds, styles = [group.label for group in groups if group.bound], _styles(groups)
    curves = {g.label: [seen_accuracy(run.accuracy) for run in g.runs] for g in groups if g.square}
    if curves:
        caption = (
            "Mean accuracy on the tasks seen so far, after each task. Lines are means over seeds. If there are only a "
            "few lines, bands show one sample standard deviation on either side. A line falls if the learner forgets, "
            "or if tasks get harder. Bounds are grey and dashed."
        )
        axes = accuracy_over_time(curves, bounds=bounds, styles=styles)
        pictures.append(picture(f"{name}-over-time", axes, "Tasks seen so far", caption))
    points = {
        row.label: (row.bytes_in_all.mean, row.accuracy.mean) for row in rows if row.bytes_in_all and row.accuracy
    }
    if len(points) > 1:
        caption = (
            "Everything that is stored after the last task, network and exemplars included, against final mean "
            "accuracy. Up and to the left is better. Bounds are hollow."
        )
        axes = memory_against_accuracy(points, bounds=bounds, styles=styles)
        pictures.append(picture(f"{name}-memory", axes, "Accuracy and storage", caption))
    return pictures


def _accuracy(name: str, groups: Sequence[StrategyRuns], rows: Sequence[SummaryRow]) -> list[Picture]:
    """A heatmap for each strategy: what forgets most first, as heatmaps without forgetting look alike; bounds last."""
    forgotten = {row.label: row.forgetting.mean if row.forgetting else -np.inf for row in rows}
    ordered = sorted(groups, key=lambda group: (group.bound is not None, -forgotten[group.label]))
    matrices = {group: group.mean_accuracy() for group in ordered if group.square}
    if not matrices:
        return []
    seen = np.concatenate([matrix[np.tril_indices(len(matrix))] for matrix in matrices.values()])
    # All strategies share one scale, so that equal colours mean equal accuracies.
    limits = (float(np.floor(20 * seen.min()) * 5), 100.0)
    pictures = []
    for group, matrix in matrices.items():
        axes = accuracy_heatmap(matrix, group.shown[0].task_names, limits=limits)
        seeds = f"mean over {len(group.shown)} seeds" if len(group.shown) > 1 else f"seed {group.shown[0].seed}"
        caption = f"Accuracy on each task (columns) after learning each task (rows); {seeds}."
        if not group.same_order:
            caption += " The other seeds learned other tasks."
        slug = f"{name}-accuracy-{group_id(group)}"
        pictures.append(picture(slug, axes, group.label, caption, learner=group.label))
    return pictures


def _similarity(name: str, groups: Sequence[StrategyRuns]) -> list[Picture]:
    """Heatmaps of the similarity of tasks by the atoms of each strategy, and layer by layer for the first strategy."""
    pictures = []
    for group in groups:
        runs, source = _averaged_runs(group)
        first = runs[0].similarity
        assert first is not None
        whole = np.mean([matrix for run in runs if (matrix := whole_similarity(run)) is not None], axis=0)
        low, high = similarity_limits(whole)
        label = similarity_label(first.metric, first.aggregate)
        measure, _, aggregate = label.partition(", ")
        caption = (
            f"{measure.capitalize()} of the atoms of {group.label}, {aggregate}; {source}. No data is used. "
            f"Colours span the values off the diagonal, {low:.2f} to {high:.2f}, not 0 to 1. "
            "The diagonal is 1 by definition and is grey." + _with_time(_of_atoms(group))
        )
        axes = similarity_heatmap(whole, runs[0].task_names[: len(whole)], label=label)
        slug, title = f"{name}-similarity", "Whole network"
        if len(groups) > 1:
            title += f": {group.label}"
        if group is not groups[0]:
            slug += f"-{group_id(group)}"
        pictures.append(picture(slug, axes, title, caption))
    return [*pictures, _by_layer(name, groups[0])]


def _by_layer(name: str, group: StrategyRuns) -> Picture:
    runs, source = _averaged_runs(group)
    first = runs[0].similarity
    assert first is not None
    stack = np.mean([run.similarity.matrix for run in runs if run.similarity is not None], axis=0)
    low, high = similarity_limits(stack)
    caption = (
        f"{first.metric.capitalize()} similarity of the atoms of each layer of {group.label}, from input to output; "
        f"{source}. All layers share one colour scale, {low:.2f} to {high:.2f}. Tasks are numbered in the order of "
        "learning."
    )
    names = runs[0].task_names[: stack.shape[-1]]
    figure = similarity_by_layer(stack, first.layers, names, label=f"{first.metric} similarity")
    return Picture(slugged(f"{name}-similarity-by-layer"), figure, "Layer by layer", caption)


def _of_atoms(group: StrategyRuns) -> list[RunRecord]:
    return [run for run in group.runs if run.similarity is not None and run.provenance == "atoms"]


def _averaged_runs(group: StrategyRuns) -> tuple[list[RunRecord], str]:
    """The runs whose mean similarity a heatmap shows, and a phrase for them.

    These are all runs if they learned the same tasks with the same layers, else only the first run.
    """
    runs = _of_atoms(group)
    layers = {tuple(run.similarity.layers) for run in runs if run.similarity is not None}
    chosen = runs if group.same_order and len(layers) == 1 else runs[:1]
    return chosen, f"mean over {len(chosen)} seeds" if len(chosen) > 1 else f"seed {chosen[0].seed}"


def _with_time(runs: Sequence[RunRecord]) -> str:
    """A sentence on how far the similarity follows the order of the tasks."""
    rho, seeds = correlation_with_time(runs)
    if not seeds:
        return ""
    over = f" (mean over {seeds} seeds)" if seeds > 1 else ""
    return (
        f" Spearman's ρ of similarity and the number of tasks in between is {signed(rho)}{over}. If it is near −1, "
        "similarity shows little more than the order in which tasks were learned."
    )


def _answers(
    name: str, answers: Sequence[Prediction], details: Sequence[PredictionRow], styles: Mapping[str, LearnerStyle]
) -> list[Picture]:
    defined = [answer for answer in answers if answer.all_pairs.defined]
    if not defined:
        return []
    correlations: dict[str, dict[str, dict[str, tuple[float, float, float, float]]]] = {}
    for answer in defined:
        correlations.setdefault(answer.words, {})[answer.label] = {
            pairs: (pooled.statistic, pooled.low, pooled.high, p)
            for pairs, pooled, p in (
                ("all pairs of tasks", answer.all_pairs, answer.p),
                ("later tasks equally far apart in the stream", answer.apart, answer.p_apart),
            )
        }
    caption = (
        "Mean over seeds of the rank correlation, with its 95 % interval over seeds if there are several. A marker is "
        "filled if p < 0.05 after Holm's adjustment, else hollow. Left of the line, less similar tasks are forgotten, "
        "dropped or transferred more. Right of the line, more similar tasks are forgotten, dropped or transferred more."
    )
    figure = correlation_forest(correlations)
    pictures = [Picture(slugged(f"{name}-answers"), figure, "Correlation with similarity", caption)]
    of_forgetting = [row for row in details if row.question == "atoms" and row.defined]
    for number, words in enumerate(dict.fromkeys(row.words for row in of_forgetting)):
        rows = [row for row in of_forgetting if row.words == words]
        slug = f"{name}-forgetting" + (f"-{number + 1}" if number else "")
        pictures.append(_scatter(slug, rows, styles))
    return pictures


def _scatter(slug: str, rows: Sequence[PredictionRow], styles: Mapping[str, LearnerStyle]) -> Picture:
    dots = {}
    for label in dict.fromkeys(row.label for row in rows):
        rows_of_label = [row for row in rows if row.label == label]
        dots[label] = (
            np.concatenate([row.x for row in rows_of_label]),
            100 * np.concatenate([row.y for row in rows_of_label]),
            [f"seed {row.seed}" for row in rows_of_label for _ in row.x],
        )
    atoms = rows[0].atoms
    xlabel = f"similarity of tasks i and t ({atoms})"
    figure = scatter_panels(dots, xlabel=xlabel, ylabel="forgetting (points)", styles=styles)
    caption = (
        f"Similarity of tasks i and t by the atoms of {atoms}, against how much of task i each learner lost after "
        "task t. Each dot is a pair of tasks, each shade a seed."
    )
    return Picture(slugged(slug), figure, rows[0].words, caption)


def _styles(groups: Sequence[StrategyRuns]) -> dict[str, LearnerStyle]:
    """The style of each learner, which is the same in all figures of a section."""
    return learner_styles([group.label for group in groups], [group.label for group in groups if group.bound])


def picture(slug: str, axes: Axes, title: str, caption: str, learner: str = "") -> Picture:
    figure = axes.figure
    assert isinstance(figure, Figure)
    return Picture(slugged(slug), figure, title, caption, learner)


def group_id(group: RunGroup) -> str:
    return group.name if group.label.find(group.recipe_hash[:7]) < 0 else f"{group.name}-{group.recipe_hash[:7]}"


def slugged(text: str) -> str:
    """The text as a part of a file name or address: small letters, digits and single hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:80]
