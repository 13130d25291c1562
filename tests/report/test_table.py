"""The columns of the tables of answers, and of what learners were given and stored."""

import math

import numpy as np

from fscl.report.prediction import Prediction, PredictionRow
from fscl.report.table import ANSWERS, ANSWERS_BY_SEED
from fscl.similarity.pooled import PooledCorrelation

NAN = math.nan
ASKED = ("own", "", "Own similarity and forgetting", "EWC")
NONE = PooledCorrelation(NAN, NAN, NAN, NAN, 0, 5, (NAN,) * 3)


def cells(columns, row):
    return [column.cell(row) for column in columns]


def test_an_answer_over_seeds_shows_its_correlations_with_intervals_and_p_values():
    everywhere = PooledCorrelation(-0.831, 0.0002, -0.93, -0.73, 3, 20, (-0.8, -0.83, -0.86))
    one_seed = PooledCorrelation(0.25, 0.04, NAN, NAN, 1, 19, (0.25,))
    answer = Prediction(*ASKED, everywhere, one_seed, 0.0004, 0.08, 3, "seed 2 forgets nothing")
    assert cells(ANSWERS, answer) == [
        "Own similarity and forgetting",
        "EWC",
        "−0.83 [−0.93, −0.73]",
        "< 0.001",
        "+0.25",
        "0.080",
        "3 of 3",
        "20",
        "seed 2 forgets nothing",
    ]


def test_an_undefined_answer_shows_no_number():
    answer = Prediction(*ASKED, NONE, NONE, NAN, NAN, 3, "constant")
    assert cells(ANSWERS, answer)[2:] == ["undefined", "–", "undefined", "–", "0 of 3", "5", "constant"]
    row = PredictionRow(*ASKED, 1, NAN, NAN, NAN, NAN, NAN, 5, "constant", np.empty(0), np.empty(0))
    assert cells(ANSWERS_BY_SEED, row)[2:] == ["1", "undefined", "–", "–", "–", "5", "constant"]


def test_the_answer_of_one_seed_shows_rho_interval_tau_and_p_in_columns_of_their_own():
    row = PredictionRow(*ASKED, 1, -0.5, -0.9, 0.125, 0.333, 0.0314, 8, "", np.empty(0), np.empty(0))
    assert cells(ANSWERS_BY_SEED, row)[2:] == ["1", "−0.50", "[−0.90, +0.12]", "+0.33", "0.031", "8", ""]


def test_headings_on_one_line_have_title_and_unit():
    assert [column.heading for column in ANSWERS] == [
        "Question",
        "Strategy",
        "Spearman ρ, mean over seeds [95 %]",
        "p (Mantel, Holm)",
        "ρ, later tasks equally far apart [95 %]",
        "p (Mantel, Holm)",
        "Seeds where defined",
        "Tasks",
        "Note",
    ]
    assert ANSWERS_BY_SEED[4].heading == "95 % interval over tasks"
