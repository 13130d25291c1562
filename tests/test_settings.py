"""Settings of training and networks refuse wrong values and import no slow library."""

import subprocess
import sys

import pytest
from pydantic import ValidationError

from fscl.runs.recipe import load_benchmark
from fscl.runs.schema import BenchmarkRecipe
from fscl.settings import Network, Training


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("optimizer", "sgdm", "'sgd' or 'adam'"),
        ("schedule", "step", "'one-cycle', 'cosine' or 'constant'"),
        ("precision", "half", "'auto', 'float32', 'bfloat16' or 'float16'"),
        ("epochs", 0, "greater than or equal to 1"),
        ("lr", float("nan"), "finite number"),
        ("momentum", 1.0, "less than 1"),
        ("learning_rate", 0.1, "Extra inputs are not permitted"),
    ],
)
def test_training_refuses_unknown_and_wrong_options(option: str, value: object, says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        Training(**{option: value})


def test_a_benchmark_without_training_has_the_default_options() -> None:
    recipe = BenchmarkRecipe.model_validate({"data": {"name": "digits"}, "split": {"tasks": 5}})
    assert recipe.training == Training()
    assert recipe.model == Network()
    assert isinstance(load_benchmark("split_digits").training, Training)


def test_settings_and_recipes_import_neither_torch_nor_avalanche() -> None:
    code = "import sys, fscl.settings, fscl.runs.recipe; print({'torch', 'avalanche'} & set(sys.modules))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "set()"
