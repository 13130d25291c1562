"""Reports of made-up federations: their numbers against numbers computed by hand, and what is left out or undefined."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from collections.abc import Callable
from html import unescape as html_unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from scipy.stats import spearmanr, ttest_rel
from sklearn.metrics import adjusted_rand_score

from fscl import FsclError, load_runs
from fscl.report.federation.measures import bytes_to_reach, federated_measures, worst_tenths
from fscl.report.federation.provenance import federated_budget
from fscl.report.federation.relations import GAIN, LABELS, relations
from fscl.report.federation.summary import FederationRow, federation_rows, group_federations, reference_of
from fscl.report.federation.table import FEDERATION_COLUMNS, federation_table
from fscl.report.page import escape_markdown, write_report
from fscl.report.runs import Runs
from fscl.runs.records.federated import FederatedRecord
from fscl.runs.records.record import RunRecord
from fscl.runs.results import read_record

Make = Callable[..., dict[str, Any]]
ROOT = Path(__file__).resolve().parents[2]
NASTY = "<script>alert('x')</script>|a*b & \"c\""
pytestmark = pytest.mark.usefixtures("undrawn")


def run_of(data: dict[str, Any]) -> FederatedRecord:
    record = read_record("made up", data)
    assert isinstance(record, FederatedRecord)
    return record


def after(number: int, **changes: Any) -> dict[str, Any]:
    """The evaluation after a round."""
    return {"round": number, "sent": 80, "received": 20, "seconds": 0.5, **changes}


def rows_of(*data: dict[str, Any]) -> dict[str, FederationRow]:
    return {row.strategy: row for row in federation_rows(group_federations(map(run_of, data)))}


def pages(folder: Path, *data: dict[str, Any]) -> tuple[str, str]:
    """The HTML and the Markdown page of a report of these runs."""
    written = write_report([read_record("made up", one) for one in data], folder)
    return written.html.read_text(encoding="utf-8"), written.markdown.read_text(encoding="utf-8")


class Page(HTMLParser):
    """The visible text of a page, and the texts of the cells of its tables."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text, self.cells, self.within = "", [""], ""
        self.tags: set[str] = set()
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.within = tag if tag in ("td", "th", "style", "script") else self.within
        self.tags.add(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        self.within = "" if tag == self.within else self.within

    def handle_data(self, data: str) -> None:
        if self.within in ("td", "th"):
            self.cells[-1] = f"{self.cells[-1]} {data.strip()}".strip()
        if self.within not in ("style", "script"):
            self.text += data


def test_the_numbers_of_the_table_are_those_of_the_records(federation: Make) -> None:
    records = [federation(method, seed) for method in ("atoms", "fedavg") for seed in range(3)]
    final = {(r["strategy"]["name"], r["seed"]): np.array(r["accuracy"][-1]) for r in records}
    rows = rows_of(*records)
    for method, row in rows.items():
        of_seed = [final[method, seed] for seed in range(3)]
        means = [accuracies.mean() for accuracies in of_seed]
        assert row.seeds == (0, 1, 2)
        assert row.accuracy is not None
        assert (row.accuracy.mean, row.accuracy.std) == pytest.approx((np.mean(means), np.std(means, ddof=1)))
        assert row.worst_tenth is not None
        assert row.worst_tenth.mean == pytest.approx(np.mean([a.min() for a in of_seed])), "a tenth of 8 is one client"
        assert row.client_spread is not None
        assert row.client_spread.mean == pytest.approx(
            np.mean([np.sqrt(((a - a.mean()) ** 2).mean()) for a in of_seed])
        )
        assert row.bytes_in_all is not None
        assert row.bytes_in_all.mean == 4 * (600 + 400)
        assert row.bytes_per_client_round is not None
        assert row.bytes_per_client_round.mean == (600 + 400) / 4
        assert row.train_seconds is not None
        assert row.train_seconds.mean == 4 * 1.5
    best, other = rows
    found = rows[other].against_best
    assert rows[best].against_best is None
    assert found is not None
    pairs = [[final[method, seed].mean() for seed in range(3)] for method in (other, best)]
    assert found.mean == pytest.approx(np.mean(pairs[0]) - np.mean(pairs[1]))
    assert (found.low, found.high) == pytest.approx(tuple(ttest_rel(*pairs).confidence_interval()))
    assert found.p_value == pytest.approx(ttest_rel(*pairs, alternative="less").pvalue)


@pytest.mark.parametrize(("clients", "worst"), [(1, 1), (9, 1), (10, 1), (19, 1), (20, 2), (35, 3)])
def test_the_worst_tenth_is_rounded_down_but_has_a_client(federation: Make, clients: int, worst: int) -> None:
    accuracy = np.random.default_rng(0).permutation(clients)[None] / clients
    data = federation(
        counts=[[1, 1, 1, 1]] * clients, tested=[1] * clients, groups=[], similarity=[], accuracy=accuracy,
        evaluated=[after(4)],
    )  # fmt: skip
    assert worst_tenths(run_of(data)).tolist() == pytest.approx([sum(range(worst)) / worst / clients])


def test_bytes_to_an_accuracy_are_those_of_the_first_evaluation_that_finds_it(federation: Make) -> None:
    means = (0.25, 0.75, 0.5, 0.75)
    rounds = [{**r, "sent": 10 * r["number"], "received": r["number"]} for r in federation()["rounds"]]
    data = federation(
        rounds=rounds, accuracy=np.array([[mean] * 8 for mean in means]),
        evaluated=[after(number) for number in range(1, 5)],
    )  # fmt: skip
    run = run_of(data)
    assert [bytes_to_reach(run, mean) for mean in (0.1, 0.25, 0.26, 0.75, 0.76)] == [11, 11, 33, 33, None]


def test_methods_are_asked_to_match_the_best_method_without_atoms_on_the_same_seed(federation: Make) -> None:
    def data(method: str, seed: int, first: float, last: float) -> dict[str, Any]:
        return federation(method, seed, accuracy=np.array([[first] * 8, [last] * 8]))

    records = [
        *(data("fedavg", seed, 0.3, 0.5) for seed in range(2)),
        *(data("fedrep", seed, 0.4, 0.6 + 0.1 * seed) for seed in range(2)),
        data("atoms", 0, 0.7, 0.8),
        data("atoms", 1, 0.5, 0.7),
        data("atoms_late", 0, 0.9, 0.9),
        data("atoms_late", 1, 0.5, 0.6),
        *(data("local", seed, 0.9, 0.95) for seed in range(2)),
    ]
    groups = group_federations(map(run_of, records))
    reference = reference_of(groups)
    assert reference is not None
    assert reference.name == "fedrep", "the bound is more accurate but no method"
    reached = {row.strategy: row.reached for row in federation_rows(groups)}
    assert reached["atoms"].bytes is not None
    assert reached["atoms"].bytes.mean == (2000 + 4000) / 2
    assert reached["fedrep"].bytes is not None
    assert reached["fedrep"].bytes.mean == 4000, "a method reaches its own accuracy at its end"
    assert (reached["atoms_late"].bytes, reached["atoms_late"].seeds) == (None, 1)
    assert (reached["fedavg"].bytes, reached["fedavg"].seeds, reached["fedavg"].asked) == (None, 0, 2)
    cells = {r.strategy: FEDERATION_COLUMNS["reached"].cell(r) for r in federation_rows(groups)}
    assert cells["fedavg"] == "not reached"
    assert cells["atoms_late"] == "in 1 of 2 seeds"
    assert cells["atoms"] == "3.0 kB ± 1.4 kB"
    only_atoms = reference_of([group for group in groups if group.has_atoms])
    assert only_atoms is not None
    assert only_atoms.name == "atoms"


def test_the_rand_index_is_that_of_the_groups_found_at_the_end(federation: Make) -> None:
    known = [0, 1] * 4
    first, last = [0] * 8, [1, 0, 1, 0, 1, 1, 1, 0]
    found = [after(n, groups=groups) for n, groups in ((2, first), (4, last))]
    assert federated_measures(run_of(federation())).rand_index == 1
    index = federated_measures(run_of(federation(evaluated=found))).rand_index
    assert index == pytest.approx(adjusted_rand_score(known, last))
    assert 0 < index < 1
    unknown = [{**found[1], "round": n, "groups": [-1, -1, 0, 1, 0, 1, 0, 1]} for n in (2, 4)]
    assert federated_measures(run_of(federation(evaluated=unknown))).rand_index == 1, "of the clients with a group"
    assert federated_measures(run_of(federation(groups=[]))).rand_index is None
    assert federated_measures(run_of(federation("fedavg"))).rand_index is None


def test_clients_that_were_not_tested_are_left_out_and_none_is_no_number(federation: Make, tmp_path: Path) -> None:
    accuracy = np.full((2, 8), 0.5)
    accuracy[1] = [np.nan, 0.25, 0.75, 1.0, np.nan, np.nan, np.nan, np.nan]
    some = federated_measures(run_of(federation(accuracy=accuracy)))
    assert some.accuracy == pytest.approx((0.25 + 0.75 + 1.0) / 3)
    assert some.worst_tenth == 0.25
    accuracy[1] = np.nan
    failed = dict.fromkeys(range(8), "it failed")
    evaluated = [after(2), after(4, failed=failed)]
    data = federation(accuracy=accuracy, evaluated=evaluated)
    none = federated_measures(run_of(data))
    assert (none.accuracy, none.worst_tenth, none.client_spread) == (None, None, None)
    assert none.bytes_in_all == 4000
    html, markdown = pages(tmp_path, data, federation("fedavg"))
    assert "Fedavg is the only method" not in markdown
    assert "| Atoms | 1 | – | – | – | – |" in markdown
    assert "left out: 8" in markdown
    assert "it failed" in html
    assert "nan" not in Page(html).text.lower().replace("finance", "")
    assert repr(run_of(data)).endswith("finished, 4 rounds)")


def test_numbers_of_a_federation_that_is_not_finished_are_undefined(federation: Make, tmp_path: Path) -> None:
    data = federation(status="failed", error="out of luck")
    assert set(vars(federated_measures(run_of(data))).values()) == {None}
    _, markdown = pages(tmp_path, data)
    assert "No run of this federation is finished yet" in markdown
    assert "Atoms, seed 0: failed, 4 of 4 rounds (out of luck)" in markdown


def test_similarity_is_correlated_with_labels_and_with_the_gain_over_training_alone(federation: Make) -> None:
    records = [federation(method, seed) for method in ("atoms", "local") for seed in range(2)]
    answers = {row.words: row for row in relations(group_federations(map(run_of, records)))}
    lower = np.tril_indices(8, -1)
    of_labels, of_gain = [], []
    for seed in range(2):
        own, alone = records[seed], records[2 + seed]
        counts, similarity = np.array(own["counts"], float), np.array(own["similarity"])
        units = counts / np.linalg.norm(counts, axis=1, keepdims=True)
        of_labels.append(spearmanr((units @ units.T)[lower], similarity[lower]).statistic)
        others = (similarity.sum(1) - 1) / 7
        of_gain.append(spearmanr(others, np.subtract(own["accuracy"][-1], alone["accuracy"][-1])).statistic)
    assert answers[LABELS].rho.statistic == pytest.approx(np.mean(of_labels))
    assert answers[GAIN].rho.statistic == pytest.approx(np.mean(of_gain))
    assert answers[GAIN].rho.each == pytest.approx(of_gain)
    assert answers[LABELS].p < 0.05, "clients of one group have similar atoms"
    assert answers[GAIN].p > 0.05, "accuracies are random"
    assert (answers[GAIN].rho.n_seeds, answers[GAIN].clients) == (2, 8)


def test_the_permutation_test_of_the_gain_has_the_p_of_all_permutations(federation: Make) -> None:
    """Of five clients: all 120 orders of their gains are counted."""
    from itertools import permutations

    from fscl.report.federation.relations import _pooled

    x, y = np.array([1.0, 2.0, 3.0, 4.0, 5.0]), np.array([1.0, 2.0, 3.0, 5.0, 4.0])
    own = spearmanr(x, y).statistic
    every = [spearmanr(x, order).statistic for order in permutations(y)]
    exact = np.mean(np.abs(every) >= abs(own) - 1e-9)
    found = _pooled([(x, y)], same_clients=False)
    assert found.statistic == pytest.approx(own)
    assert found.p_value == pytest.approx(exact, abs=4 * np.sqrt(exact * (1 - exact) / 9999))


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        ({"seed": 1}, "no finished run of Local has seed 0"),
        ({"counts": [[1, 1, 1, 1]] * 8}, "with seed 0 the clients of Local have other images"),
        ({"accuracy": np.full((2, 8), np.nan)}, "seed 0: 0 clients can be compared; at least 4 are needed"),
    ],
)
def test_a_gain_that_cannot_be_known_is_undefined_and_says_why(
    federation: Make, changes: dict[str, Any], note: str, tmp_path: Path
) -> None:
    data = federation(), federation("local", **changes)
    (gain,) = [row for row in relations(group_federations(map(run_of, data))) if row.words == GAIN]
    assert not gain.rho.defined
    assert np.isnan(gain.p)
    assert gain.note == note
    html, markdown = pages(tmp_path, *data)
    for text in (Page(html).text, markdown):
        assert "undefined" in text
        assert note in text


def test_equal_gains_have_no_correlation(federation: Make) -> None:
    same = federation()["accuracy"]
    data = federation(), federation("local", accuracy=same)
    (gain,) = [row for row in relations(group_federations(map(run_of, data))) if row.words == GAIN]
    assert not gain.rho.defined
    assert gain.note == "seed 0: the gain is constant"
    (gain,) = [row for row in relations(group_federations([run_of(federation())])) if row.words == GAIN]
    assert gain.note == "no finished run in which clients train alone, such as of Local"


def test_a_report_without_similarity_has_no_part_on_it(federation: Make, tmp_path: Path) -> None:
    html, markdown = pages(tmp_path, federation("fedavg"))
    assert "Which clients are alike" not in html
    assert "Which clients are alike" not in markdown
    assert relations(group_federations([run_of(federation("fedavg"))])) == []
    few = np.full((8, 8), np.nan)
    few[:2, :2] = 1
    _, markdown = pages(tmp_path, federation(similarity=few))
    assert "6 clients are left out: the server has nothing of theirs to compare" in markdown
    assert "2 clients can be compared; at least 4 are needed" in markdown


def test_html_and_markdown_show_the_same_numbers(federation: Make, tmp_path: Path) -> None:
    records = [federation(method, seed) for method in ("atoms", "fedavg", "local") for seed in range(2)]
    html, markdown = pages(tmp_path, *records)
    cells = {" ".join(cell.split()) for cell in Page(html).cells}
    for row in federation_rows(group_federations(map(run_of, records))):
        texts = [column.cell(row) for column in FEDERATION_COLUMNS.values()]
        assert "| " + " | ".join(map(escape_markdown, texts)) + " |" in markdown
        assert set(texts) <= cells
    text = " ".join(Page(html).text.split())
    plain = html_unescape(re.sub(r"\\(.)", r"\1", markdown))
    facts = re.findall(r"^- \*\*(.*?)\*\*: (.*)$", plain.split("## Files")[0], flags=re.M)
    assert len(facts) >= 8
    for term, fact in facts:
        assert f"{term}{fact}" in text, "terms and texts follow each other"
    for caption in ("adjusted Rand index is 1.00 ± 0.00 (n = 2 seeds)", "Lines are means over seeds (n = 2)"):
        assert caption in text
        assert caption in plain


def test_texts_of_records_are_escaped(federation: Make, tmp_path: Path) -> None:
    left_out = [{**r, "left_out": {3: NASTY}, "answered": [0, 1, 2]} for r in federation()["rounds"]]
    strategy = {"name": "atoms", "title": NASTY}
    data = federation(rounds=left_out, strategy=strategy, classes=[NASTY, "b", "c", "d"])
    html, markdown = pages(tmp_path, data)
    assert NASTY in Page(html).text
    assert "alert('x')" not in html.replace("&#39;", "")
    assert "<script>alert" not in html + markdown
    assert escape_markdown(NASTY) in markdown
    rows = federation_rows(group_federations([run_of(data)]))
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(federation_table(rows, width=160))
    assert "<script>" in console.export_text()


def test_bytes_of_evaluation_are_counted_apart_and_said_once(federation: Make, tmp_path: Path) -> None:
    more = [after(2, sent=3_000_000, received=500_000), after(4)]
    data = [federation(), federation("atoms", 1, evaluated=more), federation("fedavg")]
    measures = [federated_measures(run_of(run)) for run in data]
    assert [measure.evaluation_bytes for measure in measures] == [200, 3_500_100, 200]
    assert [measure.bytes_in_all for measure in measures] == [4000] * 3
    for page in pages(tmp_path, *data):
        assert page.count("Evaluation sent another 200 B to 3.5 MB a run, which is not counted above.") == 1
    assert "another 200 B a run" in pages(tmp_path / "equal", data[0])[1]
    assert "Evaluation sent" not in pages(tmp_path / "none", federation(status="failed"))[1]
    assert Runs(map(run_of, data)).to_dataframe("federations")["evaluation_bytes"].tolist() == [200, 3_500_100, 200]


def test_the_budget_says_that_the_learning_rate_falls_over_the_rounds(federation: Make) -> None:
    data = federation()
    data["benchmark"]["training"] |= {"lr": 0.02}
    assert "cosine" not in federated_budget(run_of(data))
    data["benchmark"]["federation"]["schedule"] = "cosine"
    assert "learning rate 0.02, falling over the rounds along a cosine" in federated_budget(run_of(data))


def test_an_evaluation_without_its_bytes_is_refused(federation: Make) -> None:
    with pytest.raises(FsclError, match=r"key 'evaluated\.0\.sent' is missing"):
        run_of(federation(evaluated=[{"round": n, "received": 1, "seconds": 0.5} for n in (2, 4)]))


def test_answers_that_were_left_out_are_listed_with_their_reasons(federation: Make, tmp_path: Path) -> None:
    rounds = federation()["rounds"]
    rounds[1] = {**rounds[1], "left_out": {3: "it failed: no luck"}, "answered": [0, 1, 2]}
    evaluated = federation()["evaluated"]
    evaluated[1] = {**evaluated[1], "failed": {5: "it did not answer"}}
    html, markdown = pages(tmp_path, federation(rounds=rounds, evaluated=evaluated))
    assert "| Atoms | 0 | training | 2 | 3 | it failed: no luck |" in markdown
    assert "| Atoms | 0 | test | 4 | 5 | it did not answer |" in markdown
    assert "Answers of clients that were left out: 2" in html
    (row,) = [row for row in csv_rows(tmp_path / "rounds.csv") if row["left_out"] == "1"]
    assert (row["round"], row["reasons"], row["answered"]) == ("2", "client 3: it failed: no luck", "3")
    assert "No answer of a client was left out" in pages(tmp_path / "all", federation())[1]


def csv_rows(file: Path) -> list[dict[str, str]]:
    return pd.read_csv(file, dtype=str, keep_default_na=False).to_dict("records")


def test_tables_of_federations_have_a_row_for_each_run_client_and_round(federation: Make, tmp_path: Path) -> None:
    data = federation(), federation("fedavg", groups=[], status="running", accuracy=federation()["accuracy"])
    runs = Runs(map(run_of, data))
    table = runs.to_dataframe("federations")
    assert table[["strategy", "clients", "groups", "rounds", "evaluations"]].to_numpy().tolist()[0] == [
        "atoms", 8, 2, 4, 2,
    ]  # fmt: skip
    assert table["accuracy"][0] == np.mean(data[0]["accuracy"][-1])
    assert np.isnan(table["accuracy"][1])
    clients = runs.to_dataframe("clients")
    assert len(clients) == 2 * 2 * 8
    mine = clients[(clients.strategy == "atoms") & (clients["round"] == 4)]
    assert mine.accuracy.tolist() == data[0]["accuracy"][-1]
    assert mine.group.tolist() == mine.group_found.tolist() == [0, 1] * 4
    assert mine.images.tolist() == [sum(row) for row in data[0]["counts"]]
    assert clients[clients.strategy == "fedavg"].group.isna().all()
    rounds = runs.to_dataframe("rounds")
    assert rounds[["round", "sent", "received", "chosen", "loss"]].to_numpy().tolist()[:2] == [
        [1, 600, 400, 4, 1.0],
        [2, 600, 400, 4, 0.5],
    ]
    assert runs.to_dataframe("summary").empty
    written = write_report(runs, tmp_path)
    assert [file.name for file in written.tables] == ["federations.csv", "clients.csv", "rounds.csv"]
    for file in written.tables:
        read = pd.read_csv(file, dtype={"recipe_hash": str, "reasons": str}, keep_default_na=False, na_values={
            name: [""] for name in runs.to_dataframe(file.stem).select_dtypes("number")})  # fmt: skip
        pd.testing.assert_frame_equal(read, runs.to_dataframe(file.stem), rtol=1e-15, check_dtype=False)


def stream_data() -> dict[str, Any]:
    return {
        "format": 1,
        "status": "finished",
        "benchmark": {"name": "split_made_up", "title": "Split Made-Up"},
        "strategy": {"name": "ewc", "title": "EWC"},
        "recipe_hash": "0123",
        "seed": 0,
        "tasks": [{"name": name, "classes": [name]} for name in ("ant", "bee")],
        "accuracy": [[1.0, None], [0.5, 0.75]],
        "seconds": {"train": [1.0, 1.0], "evaluate": [1.0, 1.0]},
    }


def test_one_report_has_streams_and_federations_and_reads_back(federation: Make, tmp_path: Path) -> None:
    records = [federation(), federation("fedavg"), stream_data()]
    for number, data in enumerate(records):
        (tmp_path / "runs" / str(number)).mkdir(parents=True)
        (tmp_path / "runs" / str(number) / "run.json").write_text(json.dumps(data))
    runs = load_runs(tmp_path / "runs")
    assert [type(run) for run in runs] == [FederatedRecord, FederatedRecord, RunRecord]
    assert repr(runs) == "<3 runs, 3 finished; federated_made_up, split_made_up; atoms, fedavg, ewc>"
    written = write_report(runs, tmp_path / "report")
    markdown, html = (file.read_text(encoding="utf-8") for file in (written.markdown, written.html))
    assert markdown.index("## Split Made-Up") < markdown.index("## Federated Made-Up")
    for note in ("**Backward transfer**", "**Adjusted Rand index**"):
        assert note in markdown
    assert len(written.tables) == 6
    for text in ("62.50", "Federated Made-Up", "Which clients are alike"):
        assert text in html
    again = load_runs(tmp_path / "report")
    for name in ("summary", "accuracy", "federations", "clients", "rounds"):
        pd.testing.assert_frame_equal(again.to_dataframe(name), runs.to_dataframe(name))
    assert len(runs.filter(benchmark="federated_made_up")) == 2
    assert runs.filter(strategy="ewc").to_dataframe()["accuracy"].tolist() == [1.0, 0.5, 0.75]
    shown = runs._repr_html_()
    assert shown.count("<table>") == 2
    only_stream = write_report(runs.filter(strategy="ewc"), tmp_path / "stream").markdown.read_text(encoding="utf-8")
    assert "Adjusted Rand index" not in only_stream


def test_federations_on_other_images_are_apart(federation: Make, tmp_path: Path) -> None:
    _, markdown = pages(tmp_path, federation(), federation("fedavg", validation=0.1))
    assert "## Federated Made-Up, 10 % of the training images held out" in markdown
    rows = rows_of(federation(), federation("fedavg", validation=0.1))
    assert all(row.against_best is None for row in rows.values())


def test_the_similarity_of_clients_is_a_mean_over_seeds_with_the_same_groups(federation: Make) -> None:
    first, second = federation(), federation("atoms", 1)
    runs = Runs(map(run_of, (first, second, federation("fedavg"))))
    frame = runs.similarity("atoms")
    assert list(frame)[:2] == ["client 0", "client 1"]
    assert np.allclose(frame, (np.array(first["similarity"]) + np.array(second["similarity"])) / 2)
    assert np.array_equal(runs.similarity("atoms", seed=1), second["similarity"])
    apart = Runs(map(run_of, (federation(groups=[]), federation("atoms", 1, groups=[]))))
    with pytest.raises(FsclError, match=r"have other images with seed 1 than with seed 0.*give one seed of 0, 1"):
        apart.similarity()
    with pytest.raises(FsclError, match="none of these runs is finished and has a similarity"):
        runs.similarity("fedavg")


def test_a_record_whose_lists_do_not_fit_its_clients_is_refused(federation: Make) -> None:
    for changes, says in (
        ({"counts": []}, "counts has 0 rows for 8 clients"),
        ({"groups": [0]}, "groups has 1 numbers for 8 clients"),
        ({"evaluated": federation()["evaluated"][:1]}, "accuracy has 2 rows for 1 evaluations"),
        ({"evaluated": [after(n, groups=[1]) for n in (2, 4)]}, "evaluated.groups has 1 numbers"),
    ):
        with pytest.raises(FsclError, match=says):
            run_of(federation(**changes))


def test_a_terminal_shows_the_table_in_80_columns(federation: Make) -> None:
    rows = list(
        rows_of(*(federation(method, seed) for method in ("atoms", "fedavg", "local") for seed in range(2))).values()
    )
    for width in (80, 160):
        console = Console(width=width, record=True, file=io.StringIO())
        console.print(federation_table(rows, width=width))
        lines = console.export_text().splitlines()
        assert max(map(len, lines)) <= width
        assert any("4.0 kB" in line and "1.00" in line for line in lines)


def test_reports_of_federations_import_neither_torch_nor_avalanche_nor_flower(federation: Make, tmp_path: Path) -> None:
    for method in ("atoms", "local"):
        (tmp_path / method).mkdir()
        (tmp_path / method / "run.json").write_text(json.dumps(federation(method)))
    code = f"""
import sys, fscl
sys.argv = ["fscl", "report", {str(tmp_path)!r}, "-q", "-o", {str(tmp_path / "report")!r}]
runs = fscl.load_runs({str(tmp_path)!r})
assert len(runs.to_dataframe("clients")) == 32 and len(runs.similarity("atoms")) == 8
from fscl.cli.app import main
try:
    main()
except SystemExit as stop:
    assert not stop.code
print(sorted({{"torch", "avalanche", "flwr"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "[]"
    assert len(list((tmp_path / "report/figures").glob("*.png"))) == 7
