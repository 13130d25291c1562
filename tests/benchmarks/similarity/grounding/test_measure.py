"""The units of the grounding tests, shortened, with the section that each makes; and damage."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks.similarity.grounding import measure, networks
from benchmarks.similarity.grounding.measure import damaged, units
from benchmarks.similarity.grounding.page import grounding_part
from benchmarks.similarity.lab import Budget
from benchmarks.similarity.units import Context, Result
from fscl.similarity import noise_images, recall_images

TINY = Budget(images=48, epochs=1, first_epochs=2, batch=16)


def test_damage_is_of_its_size_and_where_it_is_said(first):
    state = first.model.state_dict()
    layers = [name.removesuffix(".atoms") for name in state if name.endswith(".atoms")]
    for size in (0.1, 2.0):
        changed = damaged(state, layers[1:3], size, seed=4)
        for name, value in changed.items():
            if name in (f"{layers[1]}.atoms", f"{layers[2]}.atoms"):
                noise = (value - state[name]).square().mean().sqrt() / state[name].square().mean().sqrt()
                assert float(noise) == pytest.approx(size, rel=0.3)  # of 81 numbers
            else:
                assert torch.equal(value, state[name]), name
    assert not torch.equal(
        damaged(state, layers[:1], 1.0, 4)[f"{layers[0]}.atoms"],
        damaged(state, layers[:1], 1.0, 5)[f"{layers[0]}.atoms"],
    )


def short(name: str, data: str, work: Path, monkeypatch: pytest.MonkeyPatch) -> Result:
    """The quick unit of that name, made shorter."""
    monkeypatch.setattr(networks, "QUICK", TINY)
    monkeypatch.setattr(networks, "dead_leaves", noise_images)
    monkeypatch.setattr(networks, "recall_images", lambda model, images, steps: recall_images(model, images, 1))
    monkeypatch.setattr(measure, "ANGLES", {"fan": (12, 40, 60, 77)})
    (unit,) = (unit for unit in units(True) if unit.name == name)
    return unit.measure(Context(data, work, quick=True))


@pytest.mark.parametrize(
    "kind", ["noise", "fan", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("seeds", "damage"))]
)
def test_a_unit_is_json_and_makes_a_section(data, tmp_path, monkeypatch, rendered, kind):
    name = f"grounding-{kind}-fmnist"
    result = short(name, data, tmp_path, monkeypatch)
    kept = result.to_json()
    assert json.loads(json.dumps(kept, allow_nan=False)) == kept
    assert kept["kind"] == kind
    for by_measure in kept["scores"].values():
        for row in (row for row in by_measure.values() if isinstance(row, dict) and row["score"] is not None):
            assert row["low"] is None or row["low"] <= row["score"] + 1e-9
            assert row["high"] is None or row["score"] <= row["high"] + 1e-9
    text = rendered(grounding_part({name: type(result).model_validate(kept)}))
    assert all(title in text for title in ("linear CKA", "mean CCA"))
    assert "nan" not in text
