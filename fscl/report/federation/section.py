"""The section of a report on one federation: rows of tables, and figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from fscl.plots.figures import learner_styles
from fscl.report.federation.pictures import accuracy_pictures, gain_pictures, similarity_pictures, split_picture
from fscl.report.federation.provenance import METHOD_SETTINGS, TRAVEL, federated_provenance
from fscl.report.federation.relations import RELATIONS, Relation, relations
from fscl.report.federation.summary import (
    FederationRow,
    MethodRuns,
    federation_rows,
    group_federations,
    reference_of,
)
from fscl.report.federation.table import FEDERATION_COLUMNS
from fscl.report.findings import accuracy_sentences, tested_and_rivals
from fscl.report.sections import Picture
from fscl.report.table import Column
from fscl.runs.records.federated import FederatedRecord
from fscl.text import human_bytes

__all__ = ["FederationSection", "LeftOut", "build_federation"]

MOST_LISTED = 200  # answers that were left out; the tables of the report have all of them


@dataclass(frozen=True)
class LeftOut:
    """An answer of a client that does not count."""

    label: str
    seed: int
    what: str
    round: int
    client: str
    reason: str


LEFT_OUT: tuple[Column[LeftOut], ...] = (
    Column("Method", "", "", lambda row: row.label),
    Column("Seed", "", "", lambda row: row.seed),
    Column("Answer to", "", "", lambda row: row.what),
    Column("Round", "", "", lambda row: row.round),
    Column("Client", "", "", lambda row: row.client),
    Column("Reason", "", "", lambda row: row.reason),
)


@dataclass(frozen=True)
class FederationSection:
    """Everything that a template shows for one federation."""

    kind: ClassVar[str] = "federation"
    columns: ClassVar[tuple[Column[FederationRow], ...]] = tuple(FEDERATION_COLUMNS.values())
    settings: ClassVar = METHOD_SETTINGS
    travel: ClassVar = TRAVEL
    questions: ClassVar = RELATIONS
    left_out_columns: ClassVar = LEFT_OUT

    name: str
    title: str
    description: str
    lead: str
    provenance: list[tuple[str, str]]
    groups: list[MethodRuns]
    rows: list[FederationRow]
    reference: str
    evaluation: str
    best: str
    bounds: frozenset[str]
    split: list[Picture]
    curves: list[Picture]
    similarity: list[Picture]
    answers: list[Picture]
    relations: list[Relation]
    left_out: list[LeftOut]
    all_left_out: int
    unfinished: list[str]

    @property
    def topics(self) -> list[tuple[str, str]]:
        """The parts that are not empty: the key and the heading of each."""
        topics = (
            ("summary", "Summary", True),
            ("curves", "Accuracy, rounds and bytes", self.curves),
            ("travel", "What travels and what stays", self.groups),
            ("split", "How images are divided", self.split),
            ("similarity", "Which clients are alike", self.similarity),
            ("answers", "Does similarity go with labels and gain?", self.relations),
        )
        return [(key, heading) for key, heading, content in topics if content]

    @property
    def pictures(self) -> list[Picture]:
        return [*self.curves, *self.split, *self.similarity, *self.answers]

    def picture_of(self, learner: str) -> Picture | None:
        """The picture of one method alone."""
        return next((picture for picture in self.similarity if picture.learner == learner), None)


def build_federation(name: str, runs: Sequence[FederatedRecord]) -> FederationSection:
    """The section on federation ``name``, from all its runs. Unfinished runs are only listed."""
    groups = group_federations(runs)
    rows = federation_rows(groups)
    reference = reference_of(groups)
    recipe = runs[0].benchmark
    styles = learner_styles([group.label for group in groups], [group.label for group in groups if group.bound])
    answers = relations(groups)
    left_out = [answer for group in groups for answer in _left_out(group)]
    return FederationSection(
        name=name,
        title=(recipe.title or recipe.name) + name.removeprefix(recipe.name),
        description=recipe.description,
        lead=" ".join(text for text in (_accuracy(rows), _bytes(rows, reference), _groups(rows)) if text),
        provenance=federated_provenance(name, runs, groups),
        groups=groups,
        rows=rows,
        reference=_reference(reference),
        evaluation=_evaluation(groups),
        best=next((row.label for row in rows if row.bound is None and row.accuracy), ""),
        bounds=frozenset(row.label for row in rows if row.bound),
        split=split_picture(name, [run for group in groups for run in group.runs]),
        curves=accuracy_pictures(name, groups, styles),
        similarity=similarity_pictures(name, groups),
        answers=gain_pictures(name, answers, styles),
        relations=answers,
        left_out=left_out[:MOST_LISTED],
        all_left_out=len(left_out),
        unfinished=[_unfinished(run) for run in runs if not run.finished],
    )


def _left_out(group: MethodRuns) -> list[LeftOut]:
    found = []
    for run in group.runs:
        trained = [("training", r.number, r.left_out) for r in run.rounds]
        tested = [("test", evaluation.round, evaluation.failed) for evaluation in run.evaluated]
        found += [
            LeftOut(group.label, run.seed, what, number, client, " ".join(reason.split()))
            for what, number, reasons in sorted([*trained, *tested], key=lambda part: part[1])
            for client, reason in reasons.items()
        ]
    return found


def _unfinished(run: FederatedRecord) -> str:
    """A line on an unfinished run: method, seed, status, rounds, and the error if there was one."""
    error = f" ({run.error})" if run.error else ""
    rounds = f"{len(run.rounds)} of {run.steps_in_all} rounds"
    return f"{run.strategy.title or run.strategy.name}, seed {run.seed}: {run.status}, {rounds}{error}"


def _reference(reference: MethodRuns | None) -> str:
    if reference is None:
        return ""
    return f"{reference.label}, the best method{'' if reference.has_atoms else ' without atoms'}"


def _accuracy(rows: Sequence[FederationRow]) -> str:
    methods = [row for row in rows if row.bound is None]
    tested, rivals = tested_and_rivals(methods)
    best = next(iter(methods), None)
    return accuracy_sentences(len(methods), best, rivals, tested, FEDERATION_COLUMNS["accuracy"], "method")


def _bytes(rows: Sequence[FederationRow], reference: MethodRuns | None) -> str:
    """A sentence on the method that was with the fewest bytes as accurate as the reference."""
    reached = {row.label: row.reached.bytes.mean for row in rows if row.reached.bytes and row.bound is None}
    if reference is None or reference.label not in reached or len(reached) < 2:
        return ""
    least = min(reached, key=lambda label: reached[label])
    own = human_bytes(reached[reference.label])
    if least == reference.label:
        return f"No method was as accurate as {reference.label} at its end with fewer bytes ({own})."
    return (
        f"{least} sent {human_bytes(reached[least])} until it was as accurate as {_reference(reference)}, is at its "
        f"end; {reference.label} itself sent {own}."
    )


def _evaluation(groups: Sequence[MethodRuns]) -> str:
    """A sentence on the bytes of evaluation, which the columns of bytes leave out."""
    sent = sorted(run.evaluation_bytes for group in groups for run in group.runs)
    if not sent:
        return ""
    ends = " to ".join(dict.fromkeys((human_bytes(sent[0]), human_bytes(sent[-1]))))
    return f"Evaluation sent another {ends} a run, which is not counted above."


def _groups(rows: Sequence[FederationRow]) -> str:
    found = [row for row in rows if row.rand_index is not None]
    if not found:
        return ""
    best = max(found, key=lambda row: row.rand_index.mean if row.rand_index else 0)
    column = FEDERATION_COLUMNS["rand_index"]
    return (
        f"The groups of clients that {best.label} found agree with the known ones with an adjusted Rand index of "
        f"{column.cell(best)}."
    )
