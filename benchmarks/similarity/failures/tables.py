"""Tables of where comparing atoms misleads."""

from collections.abc import Sequence

import numpy as np

from benchmarks.similarity.blocks import Table
from benchmarks.similarity.failures.results import Compared, CosineAgainstCka, Level, MovedCoefficients, Starts
from benchmarks.similarity.formats import ranged, text
from benchmarks.similarity.populations import REGIMES
from benchmarks.similarity.units import spread

__all__ = ["REGIMES_SHOWN", "mean_level", "of_regime", "rates", "rewritten"]

REGIMES_SHOWN = ("first", "sequence")  # as the page has them


def of_regime(runs: Sequence[MovedCoefficients], regime: str) -> list[MovedCoefficients]:
    return [run for run in runs if run.regime == regime]


def mean_level(runs: Sequence[MovedCoefficients], place: int) -> Level:
    """The numbers of one rate of the coefficients, mean over starts."""
    levels = [run.levels[place] for run in runs]
    numbers = [name for name in Level.model_fields if name not in ("rate", "times", "ours")]
    cosines = CosineAgainstCka.model_fields
    return Level(
        rate=levels[0].rate,
        times=levels[0].times,
        **{name: float(np.mean([getattr(level, name) for level in levels])) for name in numbers},
        ours={
            key: CosineAgainstCka(
                **{name: float(np.mean([getattr(level.ours[key], name) for level in levels])) for name in cosines}
            )
            for key in levels[0].ours
        },
    )


def rewritten(result: Starts) -> Table:
    """Pairs of networks of the same and of other starts, and networks whose functions are written otherwise."""
    rows = []
    for kind, compared in result.pairs.items():
        is_refused = result.refused and kind.startswith("other start")
        rows.append([f"{kind} ({compared.cka.n} pairs)", "–", *_cosines(compared), _warnings(compared, is_refused)])
    gauge, permuted = result.gauge, result.permuted
    pairs = gauge.networks * (gauge.networks - 1) // 2
    outputs, moved = text(gauge.outputs.high, ".0e"), text(gauge.filter.high, ".0e")
    rows.append([
        f"all networks of one start in another gauge, the same for all ({gauge.draws} gauges, {pairs} pairs)",
        outputs, f"{ranged(gauge.level)}, was {text(gauge.level_before)}", "the same", "the same",
        f"{text(gauge.cka)}, the same",
        f"nothing; but the metric `filter` moves by at most {moved}, and `freeze_coefficients` fixes the gauge",
    ])  # fmt: skip
    rows.append([
        f"one network against itself in another gauge ({gauge.draws} gauges)", outputs, ranged(gauge.alone),
        ranged(gauge.alone_joint), "the same", ranged(gauge.alone_cka), _bank(gauge.alone_refused.low == 1),
    ])  # fmt: skip
    rows.append([
        f"one network against itself, channels permuted ({permuted.draws} orders)", text(permuted.outputs.high, ".0e"),
        *_cosines(permuted), _warnings(permuted, permuted.refused.low == 1),
    ])  # fmt: skip
    header = ["change", "outputs move by", "atoms as stored", "atoms of a joint decomposition", "whole filters", "CKA"]
    return Table([*header, "what warns"], rows)


def rates(runs: Sequence[MovedCoefficients]) -> Table:
    """Every rate of the coefficients: means over starts."""
    rows = []
    for regime in REGIMES_SHOWN:
        of_this = of_regime(runs, regime)
        for place, level in enumerate(of_this[0].levels if of_this else []):
            mean = mean_level(of_this, place)
            rate = f"{100 * level.rate:.0f} %" + (f", {level.times} times as long" if level.times > 1 else "")
            levels = [run.levels[place] for run in of_this]
            rows.append([
                REGIMES[regime].short, rate, text(100 * mean.accuracy, ".1f"),
                *map(text, (mean.explained, mean.least_explained, mean.joint_explained, mean.cka)),
                text(mean.ours["first"].level), text(mean.ours["first"].difference),
                ranged(spread([level.ours["first"].rho for level in levels])),
                ranged(spread([level.ours["first"].rho_cca for level in levels])),
                ranged(spread([level.ours["joint"].rho for level in levels])),
                ranged(spread([level.ours["filters"].rho for level in levels])),
            ])  # fmt: skip
    header = [
        "tasks", "rate of the coefficients", "accuracy (%)", "explained", "least of any layer", "explained, joint",
        "CKA", "cosine", "difference from CKA", "Spearman with CKA", "with CCA", "of joint atoms with CKA",
        "of filters with CKA",
    ]  # fmt: skip
    return Table(header, rows)


def _cosines(compared: Compared) -> list[str]:
    return [ranged(values) for values in (compared.stored, compared.joint, compared.filters, compared.cka)]


def _warnings(compared: Compared, is_refused: bool) -> str:
    shares = {"relatedness": compared.related, "explained": compared.explained, "projected": compared.projected}
    return ", ".join([*(f"{name} {text(share.mean)}" for name, share in shares.items()), _bank(is_refused)])


def _bank(is_refused: bool) -> str:
    return "a bank refuses" if is_refused else "a bank takes both"
