"""Figures: what is drawn, what is grey, and independence of pyplot's state."""

from __future__ import annotations

import io
import itertools
import re
import warnings
from collections.abc import Callable
from typing import Any
from xml.etree import ElementTree

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from fscl.errors import FsclError
from fscl.plots import (
    accuracy_heatmap,
    accuracy_over_cost,
    accuracy_over_time,
    correlation_forest,
    counts_heatmap,
    figures,
    memory_against_accuracy,
    scatter_correlation,
    scatter_panels,
    similarity_by_layer,
    similarity_heatmap,
    similarity_limits,
)
from fscl.plots.clusters import clustered_heatmap, short_names
from fscl.plots.figures import abbreviate, inline_svg, learner_styles

RNG = np.random.default_rng(0)


def names(tasks: int) -> list[str]:
    return [f"aquarium_fish, maple_tree, pickup_truck, sweet_pepper, television {i}" for i in range(tasks)]


def similarity(tasks: int, layers: int = 1) -> np.ndarray:
    values = RNG.uniform(0.6, 0.9, (layers, tasks, tasks))
    values = (values + values.transpose(0, 2, 1)) / 2
    values[:, np.arange(tasks), np.arange(tasks)] = 1
    return values


def make_all(tasks: int) -> list[Figure]:
    pairs = RNG.uniform(size=(2, 2 * tasks))
    seeds = ["seed 0", "seed 1"] * tasks
    return [
        accuracy_heatmap(RNG.uniform(size=(tasks, tasks)), names(tasks)).figure,
        similarity_heatmap(similarity(tasks)[0], names(tasks)).figure,
        similarity_by_layer(similarity(tasks, 5), [f"features.{i}" for i in range(5)], names(tasks)),
        scatter_correlation(*pairs, groups=seeds).figure,
        accuracy_over_time({"One": RNG.uniform(size=(3, tasks)), "Two": RNG.uniform(size=(1, tasks))}).figure,
        accuracy_over_cost({"One": (np.arange(tasks), RNG.uniform(size=(3, tasks)))}, xlabel="MB", log=True).figure,
        counts_heatmap(RNG.integers(5, size=(tasks, 3)), ["ant", "bee", "cat"]).figure,
        memory_against_accuracy({"One": (17600.0, 0.8), "Two": (0.0, 0.4)}, bounds=["Two"]).figure,
        correlation_forest(
            {"Question": {f"Learner {i}": {"way": (0.1 * i, -0.5, 0.9, 0.01)} for i in range(tasks % 9)}}
        ),
        scatter_panels({f"Learner {i}": (*pairs, seeds) for i in range(5)}, xlabel="x", ylabel="y"),
    ]  # type: ignore[list-item]


@pytest.mark.parametrize("tasks", [2, 20])
def test_every_figure_draws_and_leaves_no_state(tasks: int) -> None:
    before = dict(mpl.rcParams)
    for figure in make_all(tasks):
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=60)
        with Image.open(file) as image:
            assert image.format == "PNG"
            assert len(image.getcolors(1 << 24) or []) > 5, "something is drawn"
    assert plt.get_fignums() == []
    assert dict(mpl.rcParams) == before


def test_figures_are_drawn_on_given_axes() -> None:
    axes = Figure().subplots()
    assert similarity_heatmap(similarity(4)[0], names(4), ax=axes) is axes
    other = Figure().subplots()
    assert accuracy_over_time({"One": [[0.1, 0.2]]}, ax=other) is other


def test_accuracy_heatmap_shows_only_learned_tasks() -> None:
    matrix = np.array([[0.5, 0.1], [0.25, 1.0]])
    mesh = accuracy_heatmap(matrix, names(2)).collections[0]
    shown = np.ma.masked_array(mesh.get_array()).reshape(2, 2)
    assert shown.mask.tolist() == [[False, True], [False, False]]
    assert shown[1].tolist() == [25.0, 100.0]


def test_similarity_heatmap_colours_span_the_off_diagonal_values() -> None:
    matrix = np.array([[1, 0.2, 0.3], [0.2, 1, 0.25], [0.3, 0.25, 1]])
    mesh = similarity_heatmap(matrix, names(3)).collections[0]
    assert mesh.get_clim() == (0.2, 0.3)
    assert np.ma.masked_array(mesh.get_array()).reshape(3, 3).mask.tolist() == np.eye(3, dtype=bool).tolist()
    low, high = similarity_limits(np.full((3, 3), 0.7))
    assert low < 0.7 < high


def test_heatmap_cells_are_annotated_up_to_twelve_tasks() -> None:
    assert len(accuracy_heatmap(np.full((12, 12), 0.5), names(12)).texts) == 78
    assert not accuracy_heatmap(np.full((13, 13), 0.5), names(13)).texts


def test_similarity_by_layer_has_one_colour_scale() -> None:
    figure = similarity_by_layer(similarity(4, 3), ["a", "b", "c"], names(4))
    assert len({axes.images[0].get_clim() for axes in figure.axes if axes.images}) == 1


def test_accuracy_over_time_band_is_one_sample_deviation() -> None:
    axes = accuracy_over_time({"One": [[0.5, 0.4], [0.7, 0.8]]})
    np.testing.assert_allclose(axes.lines[0].get_ydata(), [60, 60])
    band = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert band.max() == pytest.approx(60 + 100 * np.std([0.4, 0.8], ddof=1))


def test_correlation_forest_places_each_answer_and_fills_significant_ones() -> None:
    sure, unsure, none = (-0.5, -0.7, -0.3, 0.01), (0.25, 0.0, 0.5, 0.2), (np.nan,) * 4
    figure = correlation_forest(
        {"First": {"A": {"plain": sure}, "B": {"plain": unsure}}, "Second": {"B": {"plain": none}}}
    )
    first, second = figure.axes
    filled, hollow = (line for line in first.lines if line.get_marker() == "o")
    assert list(filled.get_xdata()) == [-0.5]
    assert list(hollow.get_xdata()) == [0.25]
    assert hollow.get_markerfacecolor() == "white" != filled.get_markerfacecolor()
    (spans,) = first.collections
    assert [line[:, 0].tolist() for line in spans.get_segments()] == [[-0.7, -0.3], [0.0, 0.5]]
    assert [text.get_text() for text in first.get_yticklabels()] == ["A", "B"]
    assert not np.isfinite(
        np.concatenate([line.get_xdata() for line in second.lines if line.get_marker() == "o"])
    ).any()


def test_the_lowest_scatter_panel_of_each_column_has_a_scale() -> None:
    dots = {f"Learner {i}": ([0.0, 1.0], [1.0, 0.0], ["a", "a"]) for i in range(6)}
    figure = scatter_panels(dots, xlabel="x", ylabel="y", columns=4)
    figure.canvas.draw()
    labelled = [any(t.get_visible() and t.label1.get_visible() for t in a.xaxis.get_major_ticks()) for a in figure.axes]
    assert labelled[:6] == [False, False, True, True, True, True]


def test_bounds_are_dashed_and_labels_stay_beside_the_axes() -> None:
    curves = {f"Strategy {i}": [[0.9, 0.9 + 0.0001 * i]] for i in range(12)} | {"Low": [[0.1, 0.1]]}
    axes = accuracy_over_time(curves, bounds=["Low"])
    assert [line.get_linestyle() for line in axes.lines] == ["-"] * 8 + [":"] * 4 + ["--"]
    low, high = axes.get_ylim()
    places = [text.xyann[1] for text in axes.texts]
    assert all(low <= place <= high for place in places)


def test_numbers_in_heatmap_cells_have_enough_contrast() -> None:
    def luminance(colour: tuple[float, ...]) -> float:
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
        return float(np.dot([0.2126, 0.7152, 0.0722], linear))

    axes = similarity_heatmap(np.linspace(0, 1, 64).reshape(8, 8), names(8))
    mesh = axes.collections[0]
    for text in axes.texts:
        column, row = (int(place) for place in text.get_position())
        under = luminance(mesh.cmap(mesh.norm(mesh.get_array()[row, column])))  # type: ignore[union-attr,index]
        ink = luminance(to_rgb(text.get_color()))
        assert (max(under, ink) + 0.05) / (min(under, ink) + 0.05) > 3.5


def test_memory_axis_is_in_kB_or_MB() -> None:
    small = memory_against_accuracy({"One": (2000.0, 0.8), "Two": (5000.0, 0.4)})
    large = memory_against_accuracy({"One": (2000.0, 0.8), "Two": (5e6, 0.4)})
    assert small.get_xlabel() == "stored in all (kB)"
    assert large.get_xlabel() == "stored in all (MB)"
    assert small.lines[0].get_xdata()[0] == 2.0
    assert large.get_xscale() == "log"


def test_labels_at_the_ends_of_curves_do_not_overlap() -> None:
    axes = accuracy_over_time({f"Strategy {i}": [[0.5, 0.5 + 0.001 * i]] for i in range(5)} | {"Low": [[0.1, 0.1]]})
    file = io.BytesIO()
    axes.figure.savefig(file, format="png", dpi=100)
    # the extent of the text only: an annotation's extent includes its arrow
    boxes = sorted((box.y0, box.y1) for box in (Text.get_window_extent(text) for text in axes.texts))
    assert all(below[1] <= above[0] + 1 for below, above in itertools.pairwise(boxes))


# names from users

STRANGE = [
    "$\\frac{a$",
    "$$",
    "a$b$c",
    "$\\undefined{x}$",
    "\\",
    "%d {0} %",
    "_hidden",
    "<b>&amp;</b>",
    "a\nb\tc",
    "\ud800",
    "",
    "x" * 500,
]
SCRIPTS = ["花", "树, 鸟", "пёс", "강아지", "कुत्ता", "שלום", "😀", "𝔘𝔫𝔦"]


def draw_with(names: list[str]) -> None:
    count = len(names)
    matrix = np.full((count, count), 0.5) + 0.5 * np.eye(count)
    pairs = RNG.uniform(size=(2, count))
    made: list[Any] = [
        accuracy_heatmap(matrix, names).figure,
        similarity_heatmap(matrix, names, label=names[0]).figure,
        clustered_heatmap(matrix, names, beside={names[0]: range(count)}),
        counts_heatmap(matrix, names, label=names[0]).figure,
        accuracy_over_cost({name: ([1, 2], RNG.uniform(size=(2, 2))) for name in names}, xlabel=names[0]).figure,
        similarity_by_layer(np.stack([matrix] * count), names, names),
        scatter_correlation(*pairs, groups=names, xlabel=names[0], ylabel=names[1]).figure,
        accuracy_over_time({name: RNG.uniform(size=(2, 3)) for name in names}).figure,
        memory_against_accuracy({name: (1000.0 + i, 0.1 * i) for i, name in enumerate(names)}).figure,
        correlation_forest({name: {name: {name: (0.1, -0.5, 0.9, 0.01)}} for name in names}),
        scatter_panels(dict.fromkeys(names, (*pairs, names)), xlabel=names[0], ylabel=names[0]),
    ]
    for drawn in made:
        drawn.savefig(io.BytesIO(), format="svg", dpi=20)


def test_names_are_drawn_as_plain_text_in_every_figure() -> None:
    draw_with(STRANGE)
    given = similarity_heatmap(np.eye(len(STRANGE)), STRANGE, ax=Figure().subplots()).figure
    given.savefig(io.BytesIO(), format="png", dpi=40)


def test_letters_that_no_font_has_are_logged_once_for_all_figures(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figures, "_unknown_said", [])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        draw_with(SCRIPTS)
    assert not [w for w in caught if "Glyph" in str(w.message)]
    said = [record.message for record in caplog.records if record.name.startswith("fscl")]
    assert len(said) <= 1
    if said:
        assert re.match(r"Figures show boxes for letters that no installed font has \(", said[0])


def test_letters_are_drawn_with_a_font_that_has_them() -> None:
    axes = similarity_heatmap(np.eye(2), ["∮ℵ", "plain"])  # not in the first font
    label = axes.get_yticklabels()[0]
    label.set_fontfamily(["cmr10"])
    axes.figure.savefig(io.BytesIO(), format="png", dpi=40)
    assert label.get_fontfamily()[0] == "cmr10"
    assert len(label.get_fontfamily()) > 1
    assert axes.get_yticklabels()[1].get_fontfamily() == ["sans-serif"]


# a thousand items in each figure


def thousand(kind: str) -> Figure:
    count = 1000
    names = [f"class {i}, class {i + 1}" for i in range(count)]
    alike = similarity(count)[0] if kind in ("accuracy", "similarity", "given", "clusters", "chain", "layers") else None
    if kind == "chain":  # things that join one after another, as deep as there are things
        steps = np.abs(np.subtract.outer(np.arange(count) ** 1.1, np.arange(count) ** 1.1))
        alike = 1 - steps / steps.max()
    made: dict[str, Callable[[], Any]] = {
        "accuracy": lambda: accuracy_heatmap(alike, names).figure,
        "similarity": lambda: similarity_heatmap(alike, names).figure,
        "clusters": lambda: clustered_heatmap(alike, names, groups=[i % 7 for i in range(count)]),
        "chain": lambda: clustered_heatmap(alike, names, beside={"known": [i % 70 for i in range(count)]}),
        "counts": lambda: (
            counts_heatmap(RNG.uniform(size=(count, count)), names, groups=[i % 7 for i in range(count)]).figure
        ),
        "cost": lambda: accuracy_over_cost({n: ([1, 2], RNG.uniform(size=(2, 2))) for n in names}, xlabel="x").figure,
        "layers": lambda: similarity_by_layer(np.broadcast_to(alike, (30, count, count)), names[:30], names),
        "many layers": lambda: similarity_by_layer(similarity(5, count), names, names[:5]),
        "scatter": lambda: scatter_correlation(*RNG.uniform(size=(2, count)), groups=names).figure,
        "curves": lambda: accuracy_over_time({name: RNG.uniform(size=(2, count)) for name in names}).figure,
        "memory": lambda: memory_against_accuracy({n: (10 ** RNG.uniform(3, 7), RNG.uniform()) for n in names}).figure,
        "forest": lambda: correlation_forest({"Question": {n: {"way": (0.1, -0.5, 0.9, 0.01)} for n in names}}),
        "panels": lambda: scatter_panels({n: ([0, 1], [1, 0], ["a", "b"]) for n in names}, xlabel="x", ylabel="y"),
    }
    return made[kind]()


@pytest.mark.parametrize(
    "kind",
    [
        "accuracy",
        "similarity",
        "clusters",
        "chain",
        "counts",
        "cost",
        "layers",
        "many layers",
        "scatter",
        "curves",
        "memory",
        "forest",
        "panels",
    ],
)
def test_figures_of_a_thousand_items_have_bounded_size_and_separate_names(kind: str) -> None:
    figure = thousand(kind)
    width, height = figure.get_size_inches()
    assert max(width, height) <= 30
    figure.draw_without_rendering()
    for axes in figure.axes:
        boxes = sorted((b.y0, b.y1) for b in (t.get_window_extent() for t in axes.get_yticklabels() if t.get_text()))
        assert all(below[1] <= above[0] + 1 for below, above in itertools.pairwise(boxes)), "names do not overlap"
        assert len(axes.get_xticklabels()) <= 100
        assert len(axes.texts) <= 100


@pytest.mark.parametrize(
    "name", ["a", "apple, bear, beaver, bed, bee", "x" * 80, ", ".join(["long_class_name" * 3] * 5)]
)
def test_abbreviate_keeps_names_within_the_width(name: str) -> None:
    assert 0 < len(abbreviate(name, 18)) <= 18


def test_no_two_learners_share_a_colour_and_a_line_style() -> None:
    labels = [f"Learner {i}" for i in range(32)] + ["Lower", "Upper", "Other bound"]
    styles = learner_styles(labels, labels[-3:])
    assert list(styles) == labels
    assert len({(style.colour, style.line) for style in styles.values()}) == len(labels)
    bounds = {styles[label].colour for label in labels[-3:]}
    assert len(bounds) == 1
    assert not bounds & {styles[label].colour for label in labels[:-3]}


@pytest.mark.parametrize("tasks", [2, 5, 8, 10, 12])
def test_numbers_fit_their_cells(tasks: int) -> None:
    values = np.full((tasks, tasks), 0.99812345) - 1e-4 * np.eye(tasks, k=1)
    for axes in (accuracy_heatmap(np.ones((tasks, tasks)), names(tasks)), similarity_heatmap(values, names(tasks))):
        axes.figure.draw_without_rendering()
        (left, _), (right, _) = axes.transData.transform([(0, 0), (1, 0)])
        widths = [text.get_window_extent().width for text in axes.texts]
        assert len(widths) in (tasks * (tasks + 1) / 2, tasks * (tasks - 1))
        assert max(widths) < right - left


def test_an_inline_svg_says_which_lines_and_names_belong_to_a_learner() -> None:
    labels = ["One", 'A "second" <learner> & more']
    svg = inline_svg(accuracy_over_time({name: RNG.uniform(size=(2, 3)) for name in labels}).figure, "p", "alt")  # type: ignore[arg-type]
    root = ElementTree.fromstring(svg.replace("<svg ", '<svg xmlns:xlink="x" ', 1))
    marked = [(e.get("data-learner"), [c.tag for c in e]) for e in root.iter() if e.get("data-learner")]
    assert {label for label, _ in marked} == set(labels)
    for label in labels:
        kinds = [tags for name, tags in marked if name == label]
        assert len(kinds) == 4, "line, band, name, and the line to its name"
    ids = [e.get("id") for e in root.iter() if e.get("id")]
    assert len(ids) == len(set(ids))
    assert all(str(identity).startswith("p-") for identity in ids)


def test_numbers_on_coloured_cells_keep_their_colour_on_a_dark_page() -> None:
    axes = similarity_heatmap(np.linspace(0, 1, 64).reshape(8, 8), names(8))
    svg = inline_svg(axes.figure, "p", "alt")  # type: ignore[arg-type]
    colours = {str(text.get_color()) for text in axes.texts}
    assert len(colours) == 2
    for colour in colours:
        assert f"fill: {colour}" in svg
        assert colour not in figures.THEMED


def test_inline_svg_has_the_text_colour_of_the_page() -> None:
    svg = inline_svg(similarity_heatmap(similarity(3)[0], names(3)).figure, "one", 'says "this" & <that>')  # type: ignore[arg-type]
    assert svg.startswith("<svg ")
    assert "currentColor" in svg
    assert "http" not in svg
    assert 'aria-label="says &#34;this&#34; &amp; &lt;that&gt;"' in svg


def test_plots_refuse_wrong_shapes_and_name_them() -> None:
    with pytest.raises(FsclError, match=r"shape \(2, 3\); 3 task names"):
        accuracy_heatmap(np.zeros((2, 3)), names(3))
    with pytest.raises(FsclError, match=r"2 layers need \(L, T, T\)"):
        similarity_by_layer(similarity(4, 3), ["a", "b"], names(4))
    with pytest.raises(FsclError, match="got 3 x and 2 y"):
        scatter_correlation([1, 2, 3], [1, 2])


@pytest.mark.parametrize("tasks", [2, 3, 12, 40, 60])
def test_clustered_heatmap_draws_at_any_size_and_leaves_no_state(tasks: int) -> None:
    before = dict(mpl.rcParams)
    figure = clustered_heatmap(similarity(tasks)[0], names(tasks), groups=[i % 2 for i in range(tasks)])
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=60)
    assert plt.get_fignums() == []
    assert dict(mpl.rcParams) == before
    labels = figure.axes[0].get_yticklabels()
    boxes = [label.get_window_extent() for label in labels]
    assert all(above.y0 >= below.y1 - 1 for above, below in itertools.pairwise(boxes)), "names do not overlap"


def test_clustered_heatmap_puts_similar_tasks_side_by_side() -> None:
    groups = [0, 1, 2, 1, 0, 2, 1, 0]
    matrix = np.where(np.equal.outer(groups, groups), 0.8, 0.1) + 0.2 * np.eye(8)
    figure = clustered_heatmap(matrix, [f"{g}{i}" for i, g in enumerate(groups)], groups=groups)
    order = [label.get_text()[0] for label in figure.axes[0].get_yticklabels()]
    assert [len(list(run)) for _, run in itertools.groupby(order)] in ([3, 3, 2], [3, 2, 3], [2, 3, 3])
    outlines = [(p.get_x(), p.get_width()) for p in figure.axes[0].patches]
    assert sorted(width for _, width in outlines) == [2, 3, 3]
    assert [x for x, _ in outlines] == [0, *np.cumsum([w for _, w in outlines])[:-1]]
    (tree,) = figure.axes[0].child_axes
    heights = {round(y, 6) for line in tree.collections[0].get_segments() for y in line[:, 1]}
    assert heights == {0, 0.2, 0.9}, "average linkage of 1 - similarity"


def tree_of(figure: Figure) -> Axes:
    (tree,) = figure.axes[0].child_axes
    return tree


def test_the_tree_of_a_clustered_heatmap_shows_joins_at_any_scale() -> None:
    groups = np.array([0, 0, 0, 1, 1, 2])
    matrix = np.where(np.equal.outer(groups, groups), 0.9996, 0.0)
    matrix[0, 1] = matrix[1, 0] = 0.9998
    np.fill_diagonal(matrix, 1)
    tree = tree_of(clustered_heatmap(matrix, "abcdef"))
    assert tree.get_yscale() == "log"
    assert [t.get_text() for t in tree.get_yticklabels()] == ["0.9999", "0.999", "0.99", "0.9", "0"]
    matrix[0, 1] = matrix[1, 0] = 1
    tree = tree_of(clustered_heatmap(matrix, "abcdef"))
    assert [t.get_text() for t in tree.get_yticklabels()] == ["0.9999", "0.999", "0.99", "0.9", "0", "1"]
    assert tree.get_yticks()[-1] == min(y for line in tree.collections[0].get_segments() for y in line[:, 1])
    assert tree_of(clustered_heatmap(np.full((3, 3), 0.9), "abc")).get_yscale() == "linear"
    for same in (np.ones((3, 3)), np.ones((2, 2))):
        tree = tree_of(clustered_heatmap(same, "abc"[: len(same)]))
        assert tree.get_yscale() == "linear"


def test_groups_of_one_are_not_outlined() -> None:
    assert not clustered_heatmap(similarity(4)[0], "abcd", groups=[1, 2, 3, 4]).axes[0].patches
    assert len(clustered_heatmap(similarity(4)[0], "abcd", groups=[1, 2, 2, 4]).axes[0].patches) >= 3


def test_strips_beside_a_clustered_heatmap_have_the_groups_in_its_order() -> None:
    groups = [0, 1, 0, 1, 0, 1]
    alike = np.where(np.equal.outer(groups, groups), 0.9, 0.1) + 0.1 * np.eye(6)
    figure = clustered_heatmap(alike, "abcdef", beside={"known": groups, "found": [27, -1, 27, -1, 27, -1]})
    axes = figure.axes[0]
    strips = {strip.get_yticklabels()[0].get_text(): strip for strip in axes.child_axes if strip.patches}
    assert sorted(text.get_text() for text in strips["known"].texts) == ["A", "B"], "a letter for each run of a group"
    assert [text.get_text() for text in strips["found"].texts] == ["AB"], "a client without a group has none"
    order = ["abcdef".index(text.get_text()) for text in axes.get_xticklabels()]
    for patch, text in zip(strips["known"].patches, strips["known"].texts, strict=True):
        members = order[int(patch.get_x()) : int(patch.get_x() + patch.get_width())]
        assert {"AB"[groups[member]] for member in members} == {text.get_text()}


def test_accuracy_over_cost_has_means_over_seeds_and_gaps_where_nothing_is_known() -> None:
    curves = {
        "One": ([0.0, 1.0, 10.0], [[0.1, 0.2, 0.4], [0.1, 0.4, 0.8]]),
        "Two": ([1.0, 2.0, 4.0], [[0.9, np.nan, 0.7]]),
        "None": ([0.0], [[0.5]]),
    }
    axes = accuracy_over_cost(curves, xlabel="megabytes", log=True)
    one, two = axes.lines
    assert one.get_xdata().tolist() == [1.0, 10.0], "a logarithmic axis has no 0"
    assert one.get_ydata().tolist() == pytest.approx([30.0, 60.0])
    assert np.isnan(two.get_ydata()).tolist() == [False, True, False]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["Two", "One"], "the most accurate first"
    assert axes.get_xscale() == "log"
    assert len(accuracy_over_cost(curves, xlabel="round").lines) == 3


def test_counts_are_sorted_by_group_and_none_is_grey() -> None:
    axes = counts_heatmap([[3, 0], [0, 5], [4, 0]], ["ant", "bee"], groups=[0, 1, 0])
    assert [text.get_text() for text in axes.get_xticklabels()] == ["0", "2", "1"]
    assert [line.get_xdata()[0] for line in axes.lines] == [2], "a line between the groups"
    shown = np.ma.masked_array(axes.collections[0].get_array()).reshape(2, 3)
    assert shown.filled(-1).tolist() == [[3, 4, -1], [-1, -1, 5]]
    for counts, classes, says in (([[1, 2]], ["ant"], "shape"), ([[1]], ["ant"], "1 groups for 1|2 groups for 1")):
        with pytest.raises(FsclError, match=says):
            counts_heatmap(counts, classes, groups=[0, 1])
    many = counts_heatmap(np.ones((300, 200)), [f"class {i}" for i in range(200)])
    assert len(many.get_xticks()) <= 60


def test_clustered_heatmap_refuses_matrices_that_cannot_be_clustered() -> None:
    for matrix, labels in (([[1.0]], ["a"]), (np.eye(3), ["a", "b"]), ([[1, np.nan], [np.nan, 1]], ["a", "b"])):
        with pytest.raises(FsclError, match=r"the matrix has shape .*; finite similarities \(T, T\) of two or more"):
            clustered_heatmap(matrix, labels)


def test_nearly_equal_similarities_are_shown_with_more_digits() -> None:
    matrix = np.array([[1, 0.9981, 0.9979], [0.9981, 1, 0.9985], [0.9979, 0.9985, 1]])
    assert similarity_heatmap(matrix, "abc").texts[0].get_text() == "0.99810"
    larger = np.pad(matrix, (0, 9), constant_values=0.998)  # whose cells have room for less
    assert similarity_heatmap(larger, "abcdefghijkl").texts[0].get_text() == "0.9981"
    far = [[1, 0.9981, 0], [0.9981, 1, 1], [0, 1, 1]]
    assert [t.get_text() for t in similarity_heatmap(far, "abc").texts] == [
        ".9981",
        "0.00",
        ".9981",
        "1.00",
        "0.00",
        "1.00",
    ]
    assert similarity_heatmap([[1, -0.001, 0.5], [-0.001, 1, 0], [0.5, 0, 1]], "abc").texts[0].get_text() == "0.00"


@pytest.mark.parametrize(
    "given",
    [
        [f"resnet18_imagenet_finetuned_flowers_{i:03d}_best_checkpoint" for i in range(60)],
        ["a" * 40 + str(i) for i in range(12)],
        ["x" * 30 + str(i) + "y" * 30 for i in range(12)],
        ["one", "two", "three"],
        ["runs/a/model", "runs/b/model", "a_very_long_name/of_another_kind/model"],
        ["same_long_name_of_all_and", "same_long_name_of_all_and_more_of_it"],
        [*(f"experiment_start{i % 3}_from_task{i % 4}_to_task{i % 5}_seed{i:02d}_best" for i in range(36)), "another"],
    ],
)
def test_short_names_fit_and_differ(given: list[str]) -> None:
    short = short_names(given)
    assert len(set(short)) == len(given)
    assert all(0 < len(name) <= 18 for name in short)


def test_short_names_keep_words_that_no_other_name_has() -> None:
    long = [f"experiment_start{i % 3}_from_task{i % 4}_to_task{i % 5}_seed{i:02d}_best" for i in range(36)]
    short = short_names([*long, "another_1"], 26)
    assert all(f"seed{i:02d}" in name for i, name in enumerate(short[:-1]))
    assert short[-1] == "another_1"
