"""Two small data sets in the place of Fashion-MNIST and CIFAR-100, and how a section of the page is read."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from benchmarks.similarity import lab
from benchmarks.similarity.blocks import Part, Picture, Table
from fscl.data.datasets import ImageSet

SHAPES = {"fmnist": (10, 1, 28), "cifar100": (30, 3, 32)}  # classes, channels, side


def drawn(name: str, per_class: int, seed: int) -> ImageSet:
    """Gratings of each class in noise; the first pixels of an image tell its class and its number."""
    classes, channels, side = SHAPES[name]
    labels = torch.arange(classes).repeat(per_class)
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(len(labels), channels, side, side, generator=generator)
    angle = (labels * 180 / classes).deg2rad()[:, None, None]
    rows, columns = torch.arange(float(side))[:, None], torch.arange(float(side))
    waves = torch.sin(0.7 * (rows * angle.sin() + columns * angle.cos()))[:, None]
    images = (100 + 80 * waves + 60 * noise).round().to(torch.uint8)
    images[:, :, 0, 0] = labels.to(torch.uint8)[:, None]
    images[:, :, 0, 1] = torch.arange(per_class).repeat_interleave(classes).to(torch.uint8)[:, None]
    return ImageSet(images, labels, [f"{name}_{c}" for c in range(classes)])


@pytest.fixture(scope="session")
def load_small() -> Callable[[str, str | None], tuple[ImageSet, ImageSet]]:
    """In the place of `load_images`."""

    def load(name: str, root: str | None) -> tuple[ImageSet, ImageSet]:
        return drawn(name, 20, 0), drawn(name, 10, 1)

    return load


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, load_small: Callable[..., object]) -> str:
    """A folder from which the laboratory reads the small data sets."""
    monkeypatch.setattr(lab, "load_images", load_small)
    return str(tmp_path / "data")  # a name of its own: what is loaded is kept by name


@pytest.fixture
def rendered() -> Callable[[Part], str]:
    """All text of a section, after its tables were found whole and its figures were drawn."""

    def read(part: Part) -> str:
        texts = [part.title, part.lead, *part.points]
        texts += [text for goal in part.goals for text in (goal.statement, *map(str, goal.reached.values()))]
        for block in part.blocks:
            if isinstance(block, Table):
                assert block.rows
                assert all(len(row) == len(block.header) for row in block.rows)
                assert all(isinstance(cell, str) and cell for row in block.rows for cell in row)
                texts += [block.caption, *(cell for row in block.rows for cell in row)]
            elif isinstance(block, Picture):
                block.figure.draw_without_rendering()
                texts += [block.title, block.caption]
            else:
                texts.append(block)
        return "\n".join(texts)

    return read
