"""Modules that note how wide their heads are hear of heads that entries make or widen."""

import torch
from torch import nn

from fscl.atoms import entries
from fscl.atoms.entries import put_entries, when_head_grows


class Noting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head, self.other, self.widths = nn.Linear(3, 2), nn.Linear(3, 2), []


def test_those_above_a_head_are_told_once_for_each_entry(monkeypatch):
    monkeypatch.setattr(entries, "_WHEN_HEAD_GROWS", [])
    when_head_grows(Noting, lambda module, outputs: module.widths.append(outputs))
    model = nn.Sequential(Noting(), Noting())
    put_entries(model, {"0.head.weight": torch.ones(4, 3), "0.head.bias": torch.ones(4)})
    assert (model[0].widths, model[1].widths) == ([4, 4], [])
    put_entries(model, {"0.head.weight": torch.zeros(4, 3), "0.other.bias": torch.zeros(2)})
    assert model[0].widths == [4, 4]  # nothing grew
