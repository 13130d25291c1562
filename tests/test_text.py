"""Functions that write numbers for people give known texts, also where rounding changes the unit."""

import math
from collections.abc import Callable

import pytest

from fscl.text import (
    brief,
    clock,
    decimal,
    decimals,
    human_bytes,
    human_seconds,
    interval,
    percent,
    points,
    signed,
    small_p,
)

NAN = math.nan


@pytest.mark.parametrize(
    ("write", "texts"),
    [
        (decimal, {0.0: "0.00", -0.004: "0.00", -1.5: "−1.50", 0.995: "0.99", 12.345: "12.35", NAN: "–", None: "–"}),
        (signed, {0.0: "0.00", 0.004: "0.00", -0.004: "0.00", 0.006: "+0.01", -0.006: "−0.01", 1.0: "+1.00", NAN: "–"}),
        (points, {0.8336: "83.36", -0.01: "−1.00", 1.0: "100.00", NAN: "–", None: "–"}),
        (small_p, {0.0: "< 0.001", 0.00099: "< 0.001", 0.001: "0.001", 0.0496: "0.050", 1.0: "1.000", NAN: "–"}),
        (percent, {0.0: "0.0 %", 0.5: "50.0 %", 0.9999: "99.9 %", 1 - 1e-12: "100 %", 1.0: "100 %"}),
        (decimals, {2.0: 2, 1.0: 2, 0.1: 2, 0.04: 3, 0.0: 4}),
        (human_bytes, {0: "0 B", 999: "999 B", 1000: "1.0 kB", 1024: "1.0 kB", 999_960: "1.0 MB", 5e13: "50000.0 GB"}),
        (
            human_seconds,
            {0.04: "0.0 s", 59.94: "59.9 s", 59.96: "1 min 00 s", 3599.6: "1 h 00 min", 7260: "2 h 01 min"},
        ),
        (clock, {None: "–", 0: "0:00", 59.6: "1:00", 3599.4: "59:59", 3600: "1:00:00"}),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_numbers_are_written_as_the_known_texts(
    write: Callable[[float | None], object], texts: dict[float | None, object]
) -> None:
    assert {number: write(number) for number in texts} == texts


def test_a_sign_and_the_number_of_decimals_can_be_asked_for() -> None:
    assert (points(-0.05, 1, sign=True), points(0.05, 1, sign=True), points(0.0, sign=True)) == ("−5.0", "+5.0", "0.00")
    assert (decimal(2.345, 1), signed(2.345, 0), interval(-1, 0.5, 1)) == ("2.3", "+2", "[−1.0, +0.5]")
    assert human_seconds(140, whole_minutes=True) == "2 min"
    assert (decimals(0.002, most=3), decimals(0.5, least=3)) == (3, 3)


def test_an_undefined_interval_is_written_as_empty_text() -> None:
    assert interval(NAN, NAN) == ""


def test_a_long_value_is_shortened_to_one_line() -> None:
    for value in ("x" * 10_000, list(range(10_000)), 10**5000, "a\nb", {"key": "\u2028"}):
        assert len(brief(value)) <= 200
        assert brief(value).isprintable()
