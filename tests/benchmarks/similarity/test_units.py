"""Results are plain JSON, in which what is undefined is null, and are read from it as they were."""

import json
import math

import numpy as np
import pytest
from pydantic import ValidationError

from benchmarks.similarity.units import Array, Number, Result, spread


class Measured(Result):
    name: str
    values: dict[str, list[Number]]
    matrix: Array
    left_out: Number | None = None


def test_results_are_json_without_what_is_undefined():
    result = Measured(name="a", values={"b": [0.5, math.nan, math.inf]}, matrix=np.array([[1 / 3, np.nan]]))
    kept = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert kept == {"name": "a", "values": {"b": [0.5, None, None]}, "matrix": [[0.333333, None]]}
    read = Measured.model_validate(kept)
    assert read.to_json() == kept
    assert np.isnan(read.matrix).tolist() == [[False, True]]
    assert math.isnan(read.values["b"][1])


@pytest.mark.parametrize("change", [{"other": 1}, {"values": None}, {"name": 3}])
def test_what_is_no_such_result_is_refused(change):
    with pytest.raises(ValidationError):
        Measured.model_validate({"name": "a", "values": {}, "matrix": [], **change})


def test_a_spread_is_of_finite_values():
    values = spread([math.nan, 3.0, 1.0])
    assert (values.mean, values.low, values.high, values.n) == (2, 1, 3, 3)
    nothing = spread([math.nan])
    assert math.isnan(nothing.mean)
    assert nothing.n == 1
