"""Tables of the agreement with CKA and CCA."""

from collections.abc import Sequence
from statistics import fmean, median

from benchmarks.similarity.agreement.measure import AGAINST
from benchmarks.similarity.agreement.results import Agreement
from benchmarks.similarity.blocks import Table
from benchmarks.similarity.lab import ARCHITECTURES
from benchmarks.similarity.measures import MEASURES, METHODS, YARDSTICKS
from benchmarks.similarity.populations import REGIMES, TASKS

__all__ = [
    "GOALS",
    "ON_RECALLED",
    "all_yardsticks",
    "by_layer",
    "by_population",
    "correlations",
    "costs",
    "every_method",
    "of_regime",
    "regimes_of",
    "summary",
]

GOALS = {"sequence": 0.97, "first": 0.90, "snapshots": 0.97}  # by regime: the correlation to reach
ON_RECALLED = {"linear_cka": "recalled_cka", "mean_cca": "recalled_cca"}  # each yardstick itself on recalled images
Results = Sequence[Agreement]


def of_regime(results: Results, regime: str) -> list[Agreement]:
    return [result for result in results if result.regime == regime]


def regimes_of(results: Results) -> list[str]:
    """The regimes of which there are results, as the page has them."""
    return [regime for regime in REGIMES if of_regime(results, regime)]


def correlations(results: Results, method: str, yardstick: str) -> list[float]:
    """Pearson's correlation of a method with a yardstick in each population."""
    return [result.pearson(method, yardstick) for result in results]


def summary(results: Results) -> Table:
    """The five measures, and the yardsticks on recalled images, in each regime."""
    columns = [(regime, yardstick) for regime in regimes_of(results) for yardstick in ON_RECALLED]
    rows = [["goal", *(f"{GOALS[regime]:.2f}" for regime, _ in columns)]]
    methods: dict[str, dict[str, str]] = {
        measure.title: dict.fromkeys(ON_RECALLED, measure.agreement) for measure in MEASURES
    }
    methods["the yardstick, on recalled images"] = ON_RECALLED
    for title, method in methods.items():
        cells = [title]
        for regime, yardstick in columns:
            values = correlations(of_regime(results, regime), method[yardstick], yardstick)
            cells.append(f"{median(values):.3f} [{min(values):.2f}, {max(values):.2f}]")
        rows.append(cells)
    header = [f"{REGIMES[regime].short}: {YARDSTICKS[yardstick]}" for regime, yardstick in columns]
    return Table(["method", *header], rows)


def by_population(results: Results, yardstick: str) -> Table:
    """The five measures, and the yardstick on recalled images, in each population."""
    methods = [*(measure.agreement for measure in MEASURES), ON_RECALLED[yardstick]]
    rows = []
    for result in _in_order(results):
        cells = [*_population(result), f"{100 * fmean(result.accuracies):.1f}"]
        for method in methods:
            value = result.agreement[method][yardstick].pearson
            cells.append(f"{value.r:.3f} [{value.low:.2f}, {value.high:.2f}]")
        rows.append(cells)
    return Table(["tasks", "images", "network", "accuracy (%)", *(METHODS[method].title for method in methods)], rows)


def every_method(results: Results) -> Table:
    """Medians of all methods against linear CKA and mean CCA, in each regime."""
    regimes = regimes_of(results)
    rows = [
        [
            method.title,
            method.needs,
            *(
                f"{median(correlations(of_regime(results, regime), name, yardstick)):.2f}"
                for regime in regimes
                for yardstick in ON_RECALLED
            ),
        ]
        for name, method in METHODS.items()
    ]
    header = [f"{REGIMES[regime].short}: {short}" for regime in regimes for short in ("CKA", "CCA")]
    return Table(["method", "needs", *header], rows)


def all_yardsticks(results: Results) -> Table:
    """Medians of all methods against all yardsticks, over the populations of one regime."""
    rows = []
    for name, method in METHODS.items():
        cells = [
            f"{median(result.pearson(name, yardstick) for result in results):.2f} / "
            f"{median(result.spearman(name, yardstick) for result in results):.2f}"
            for yardstick in AGAINST
        ]
        rows.append([method.title, method.needs, *cells])
    return Table(["method", "needs", *(YARDSTICKS[yardstick] for yardstick in AGAINST)], rows)


def by_layer(results: Results) -> Table:
    """Three methods, from the first layer to the last, in each population."""
    rows = [
        [
            *_population(result),
            METHODS[method].title,
            *(
                " ".join(f"{value:.2f}" for value in result.by_layer[method][yardstick])
                for yardstick in ("linear_cka", "mean_cca")
            ),
        ]
        for result in _in_order(results)
        for method in ("cosine_depth", "moments", "recalled")
    ]
    header = ["tasks", "images", "network", "method", "with linear CKA, first layer to last", "with mean CCA"]
    return Table(header, rows)


def costs(results: Results) -> Table:
    """Seconds of each measure, once and for all pairs: means over populations."""

    def seconds(*names: str) -> float:
        return fmean(sum(result.seconds[name] for name in names) for result in results)

    recall = f"{seconds('recall'):.0f} s"
    readings = seconds("recalled_passes", "recalled", "recalled_cka", "recalled_cca")
    rows = [
        [METHODS["cosine_depth"].title, "nothing", f"{1e3 * seconds('cosine_depth'):.1f} ms"],
        [METHODS["moments"].title, "nothing", f"{1e3 * seconds('moments'):.0f} ms"],
        [METHODS["tangent_recalled"].title, recall, f"{seconds('tangent_recalled'):.2f} s"],
        ["response to 1/f noise or dead leaves", "nothing", f"{seconds('noise_passes', 'noise'):.2f} s"],
        [METHODS["recalled"].title, recall, f"{seconds('recalled_passes', 'recalled'):.2f} s"],
        [METHODS["recalled_three"].title, recall, f"{readings:.2f} s"],
        [METHODS["real_cka"].title, "data", f"{seconds('real_passes', 'real_cka'):.2f} s"],
    ]
    return Table(["method", "once", "all pairs"], rows)


def _in_order(results: Results) -> list[Agreement]:
    return [result for regime in REGIMES for result in of_regime(results, regime)]


def _population(result: Agreement) -> list[str]:
    return [REGIMES[result.regime].short, TASKS[result.images], ARCHITECTURES[result.architecture]]
