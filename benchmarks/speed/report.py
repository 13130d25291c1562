"""Writes the measured speeds as a page of tables and two figures."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from fscl.plots.figures import INK, new_axes, palette, quiet_grid, save_png, style

__all__ = ["write_report"]

LEARNERS = {"naive": "fine-tuning", "atom_swapping": "atom swapping"}
METHODS = {
    "atoms": "filter atoms",
    "matrix_products": "bare matrix products",
    "minibatch_cka": "minibatch CKA",
    "linear_cka": "linear CKA",
    "svcca": "SVCCA",
    "feature_extraction": "feature extraction alone",
}


def write_report(results: dict[str, Any], folder: Path) -> str:
    """Writes ``README.md`` and its figures, and returns the text of the page."""
    parts = [
        "# Speed",
        "Contenders took turns. A ratio is taken in each round. Tables show its median, with quartiles in brackets. "
        "This page is written by `python -m benchmarks.speed`. All numbers are in [results.json](results.json).",
    ]
    sections = {"training": _training, "layers": _layers, "similarity": _similarity, "startup": _startup, "runs": _runs}
    for name, write in sections.items():
        if name in results:
            parts += [*write(results[name], folder), _provenance(results[name])]
    text = "\n\n".join(parts) + "\n"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "README.md").write_text(text, encoding="utf-8")
    return text


def _training(results: dict[str, Any], folder: Path) -> list[str]:
    rows = []
    for row in results["rows"]:
        speeds = row["images_per_second"]
        rows.append(
            [
                f"{row['benchmark']}, {row['network'].removeprefix('avalanche:')}, {LEARNERS[row['learner']]}",
                row["precision"],
                *(f"{speeds[name]['median']:,.0f}" for name in ("bare", "fscl", "avalanche")),
                _range(row["fscl_over_bare"]),
                _range(row["fscl_over_avalanche"], 1),
            ]
        )
    if rows:
        save_png(_training_figure(results["rows"]), folder / "training.png")
    head = ["network and learner", "precision", "bare loop", "fscl", "stock Avalanche", "fscl / bare", "fscl / stock"]
    return [
        "## Training, images per second",
        "The bare loop is PyTorch alone on tensors in memory, with the same network, batch size, augmentation, "
        "optimizer, precision and memory layout. fscl trains as `fscl run` does: an Avalanche strategy with its "
        "plugins. Stock Avalanche is `Naive` in float32, with PIL images, torchvision's transforms and Avalanche's own "
        "loader. It trains the ordinary network, also in the rows of atom swapping. One epoch of the second task is "
        "timed, without the set-up of the experience, on "
        f"{results['threads']} thread{'s' * (results['threads'] > 1)}.",
        _table(head, rows),
        *(["![Training images per second](training.png)"] if rows else []),
        *(f"Left out: {reason}." for reason in results["skipped"]),
    ]


def _layers(results: dict[str, Any], folder: Path) -> list[str]:
    modes = {
        "evaluation": "forward, evaluation",
        "training": "forward and backward",
        "training, frozen": "forward and backward, coefficients frozen",
    }
    summary = [
        [modes[mode], f"{ratio['median']:.2f}", f"{ratio['worst']:.2f}"] for mode, ratio in results["by_mode"].items()
    ] + [["all", f"{results['median']:.2f}", f"{results['worst']:.2f}"]]
    rows = [
        [row["shape"], modes[row["mode"]], _range(row["ratio"]), f"{row['of_fastest']:.2f}", f"{row['conv_us']:,.0f}"]
        for row in results["rows"]
    ]
    swaps = [
        [
            name,
            str(swap["entries"]),
            f"{swap['point_us']['median']:.1f}",
            f"{swap['swapped_us']['median']:.1f}",
            f"{swap['pass_ms']['median']:.1f}",
            f"{swap['swap_and_pass_ms']['median']:.1f}",
        ]
        for name, swap in results["swap"].items()
    ]
    bank = results["bank"]
    return [
        "## `AtomConv2d` against `nn.Conv2d`",
        "Time of the atom layer divided by the time of an ordinary convolution with equal filters, on one thread. In "
        "evaluation the filters are composed in the first pass after a change and kept for later passes.",
        _table(["pass", "median over shapes", "worst shape"], summary),
        "<details><summary>Every shape</summary>",
        _table(["shape", "pass", "ratio", "of the fastest rounds", "nn.Conv2d, µs"], rows),
        "</details>",
        "## Swapping tasks",
        "A swap points the network at another task's tensors. The next pass composes each layer's filters again. A "
        "pass has 64 images of 32x32, in evaluation.",
        _table(
            ["network", "tensors a task", "swap, µs", "there and back, µs", "a pass, ms", "swap and pass, ms"], swaps
        ),
        f"A bank of {bank['tasks']:,} tasks ({bank['megabytes']:.0f} MB) was saved in {bank['save_s']:.1f} s. It opens "
        f"in {1e3 * bank['open_s']:.1f} ms. Reading one task then takes {1e3 * bank['first_task_s']:.1f} ms, the atoms "
        f"of a layer for all tasks {1e3 * bank['stack_of_a_layer_s']:.0f} ms, and all tensors of all tasks, one by "
        f"one, {bank['all_tasks_s']:.1f} s.",
    ]


def _similarity(results: dict[str, Any], folder: Path) -> list[str]:
    rows = []
    for row in results["rows"]:
        with_features, star = row["with_features"], " *" if row["extrapolated"] else ""
        rows.append(
            [
                f"{row['networks']:,}",
                METHODS[row["method"]],
                _seconds(row["seconds"]["median"]) + star,
                f"{row['flops']:.1e}" + (" (formula)" if row["flops_how"] == "formula" else ""),
                f"{row['times_atoms']:,.2g}" if row["times_atoms"] < 100 else f"{row['times_atoms']:,.0f}",
                f"{_seconds(with_features['seconds'])} *" if with_features else "",
            ]
        )
    against = [
        [f"{row['networks']:,}", _range(row["times_matrix_products"])]
        for row in results["rows"]
        if row.get("times_matrix_products")
    ]
    save_png(_similarity_figure(results["rows"]), folder / "similarity.png")
    head = ["networks", "method", "all pairs", "FLOPs", "times the atoms' time", "with feature extraction"]
    return [
        "## Similarity of all pairs of N networks",
        f"Measured on {results['threads']} thread{'s' * (results['threads'] > 1)}. A star marks times that were "
        "measured on fewer networks or images and scaled. The other methods work in float64 on random features of "
        "10,000 images. SVCCA keeps 99 % of the variance; for random features these are almost all directions.",
        _table(head, rows),
        "![Seconds for all pairs against the number of networks](similarity.png)",
        "Time of filter atoms divided by the time of bare matrix products of the same size, `x @ x.T` in float32 for "
        "each layer:",
        _table(["networks", "ratio"], against),
        "<details><summary>What is counted</summary>",
        "\n".join(f"- **{name}**: {text}" for name, text in results["counted"].items()),
        "</details>",
    ]


def _startup(results: dict[str, Any], folder: Path) -> list[str]:
    beyond = results["beyond_torch"]
    rows = [
        [
            f"`{name}`" if name.startswith(("fscl", "import")) else name,
            _range(taken),
            _range(beyond[name]) if name in beyond else "",
        ]
        for name, taken in results["processes"].items()
    ]
    return ["## Starting", _table(["process", "seconds", "beyond torch"], rows)]


def _runs(results: dict[str, Any], folder: Path) -> list[str]:
    digits = results["split_digits"]
    rows = [
        [
            "`fscl run`: split_digits, 4 learners, 3 seeds",
            f"{digits['before']['median']:.0f} s",
            f"{digits['after']['median']:.0f} s",
            _range(digits["before_over_after"], 1),
        ]
    ]
    if cifar := results.get("split_cifar100"):
        minutes = [f"{cifar[side] / 60:.1f} min" for side in ("before", "after")]
        rows.append(["split_cifar100, atom_swapping, one seed", *minutes, f"{cifar['before_over_after']:.1f} (n = 1)"])
    return [
        "## Whole runs",
        f"Wall time, with start-up and report, of revision `{results['before']}` and of this one. Both use the recipes "
        "of the earlier revision, but on CIFAR-100 this revision trains in mixed precision. On CIFAR-100 the two ran "
        "side by side, with a core each.",
        _table(["run", "before", "now", "before / now"], rows),
    ]


def _training_figure(rows: Sequence[dict[str, Any]]) -> Figure:
    names = {"fscl": "fscl", "avalanche": "stock Avalanche"}
    colours = palette(list(names.values()))
    with style():
        axes = new_axes((6.2, 0.55 * len(rows) + 0.8))
        for i, row in enumerate(rows):
            for j, (name, label) in enumerate(names.items()):
                share, y = row[f"{name}_over_bare"], i + (j - 0.5) * 0.36
                error = [[share["median"] - share["low"]], [share["high"] - share["median"]]]
                first = label if i == 0 else None
                axes.barh(
                    y,
                    share["median"],
                    0.33,
                    xerr=error,
                    color=colours[label],
                    label=first,
                    error_kw={"elinewidth": 0.8},
                )
                speed = f"{row['images_per_second'][name]['median']:,.0f}"
                axes.text(0.015, y, speed, va="center", color="white", fontsize=7.5)
        axes.axvline(1, color=INK, linewidth=0.8, linestyle="--")
        labels = [
            f"{row['benchmark']}\n{row['network'].removeprefix('avalanche:')}, {LEARNERS[row['learner']]}"
            for row in rows
        ]
        axes.set_yticks(range(len(rows)), labels)
        axes.invert_yaxis()
        axes.set_xlim(left=0)
        axes.set_xlabel("training speed, bare PyTorch loop = 1 (in the bars: images a second)")
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
        quiet_grid(axes)
        axes.grid(axis="y", visible=False)
        axes.grid(axis="x", color=(0.5, 0.5, 0.5, 0.22), linewidth=0.6)
    figure = axes.figure
    assert isinstance(figure, Figure)
    return figure


def _similarity_figure(rows: Sequence[dict[str, Any]]) -> Figure:
    colours = palette(list(METHODS.values()))
    with style():
        axes = new_axes((5.2, 3.4))
        for method, label in METHODS.items():
            points = [(row["networks"], row["seconds"]["median"]) for row in rows if row["method"] == method]
            if points:
                dashed = "--" if method in ("matrix_products", "feature_extraction") else "-"
                axes.plot(
                    *zip(*points, strict=True), dashed, marker="o", ms=3.5, lw=1.2, color=colours[label], label=label
                )
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("networks")
        axes.set_ylabel("seconds for all pairs")
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
        quiet_grid(axes)
    figure = axes.figure
    assert isinstance(figure, Figure)
    return figure


def _provenance(results: dict[str, Any]) -> str:
    machine = results["machine"]
    device = "" if machine["device"] == "cpu" else f", {machine['device']}"
    return (
        f"*{results['date']}, {results['mode']} mode, {results['seconds']:.0f} s; {machine['processor']}{device}; "
        f"Python {machine['python']}, torch {machine['torch']}.*"
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    align = ["---", *(["---:"] * (len(head) - 1))]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, align, *rows))


def _range(value: dict[str, float], digits: int = 2) -> str:
    return f"{value['median']:.{digits}f} [{value['low']:.{digits}f}, {value['high']:.{digits}f}]"


def _seconds(value: float) -> str:
    for limit, factor, unit in ((1e-3, 1e6, "µs"), (1.0, 1e3, "ms"), (600.0, 1.0, "s")):
        if value < limit:
            return f"{value * factor:.3g} {unit}"
    return f"{value / 60:.3g} min"
