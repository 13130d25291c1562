"""The cost of picking: atoms of all pairs of clients against unbiased minibatch CKA of features."""

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.speed.similarity import BATCH, SAMPLES, counted_flops, scaled
from benchmarks.speed.timing import Quartiles, alternately, quartiles
from fscl.similarity import probing_matrix, similarity_matrix

__all__ = ["CLIENTS", "GOAL", "RATIOS", "atom_flops", "forward_flops", "joint_flops", "measure", "minibatch_flops"]

CLIENTS, GOAL = 100, 1_000_000  # times fewer FLOPs for so many clients
# how many times fewer FLOPs atoms take than CKA
RATIOS = {
    "with_forward": "with the forward passes that make the features",
    "given": "for given features, without forward passes",
    "decomposed": "with forward passes, if the clients' filters must first be decomposed jointly",
}
IMAGES_TIMED = 256  # of the pass through one network that is timed
REPEATS = 20  # of the comparison of atoms in a round: it takes less than a millisecond
ROUNDS, BUDGET = 5, 120.0

Shapes = Mapping[str, Sequence[int]]  # (m, kh, kw) by layer


def measure(
    network: nn.Module,
    image: Sequence[int],
    shapes: Shapes,
    filters: Mapping[str, int],
    channels: int,
    clients: int,
    probe: int,
) -> dict[str, Any]:
    """FLOPs and seconds of comparing all pairs of clients, as plain data.

    Args:
        network: the recipe's network of ordinary convolutions, from which features come.
        image: (channels, height, width) of its images.
        shapes: (m, kh, kw) of the atoms of each layer.
        filters: of each layer, out * in / groups.
        channels: features of an image.
        clients: number of clients at hand.
        probe: number of probe images in use.
    """
    one = forward_flops(network, image)
    flops = [
        _flops(shapes, filters, channels, one, number, images)
        for number in dict.fromkeys((clients, CLIENTS))
        for images in dict.fromkeys((probe, SAMPLES))
    ]
    return {
        "goal": GOAL, "goal_clients": CLIENTS, "shapes": dict(shapes), "features": channels, "image": list(image),
        "flops_of_one_pass": one, "flops": flops,
        "seconds": _seconds(network, image, shapes, channels, clients, probe), "threads": torch.get_num_threads(),
    }  # fmt: skip


def _flops(
    shapes: Shapes, filters: Mapping[str, int], channels: int, one: float, clients: int, images: int
) -> dict[str, Any]:
    atoms, compared, made = (
        atom_flops(shapes, clients),
        minibatch_flops(clients, images, channels),
        clients * images * one,
    )
    decomposed = atoms + joint_flops(shapes, filters, clients)
    ratios = ((compared + made) / atoms, compared / atoms, (compared + made) / decomposed)
    return {
        "clients": clients, "images": images,
        "atoms": atoms, "decomposed": decomposed, "cka": compared, "forward": made,
        "ratios": dict(zip(RATIOS, ratios, strict=True)),
    }  # fmt: skip


def atom_flops(shapes: Shapes, clients: int) -> float:
    """Counted on random atoms of these shapes; the number does not depend on their values.

    The metric is the plain cosine: where coefficients are frozen, it is that of the filters.
    """
    stacks = _random_atoms(shapes, clients)
    return counted_flops(lambda: similarity_matrix(stacks, "cosine", "mean"))


def joint_flops(shapes: Shapes, filters: Mapping[str, int], clients: int) -> float:
    """What networks without atom layers take first: inner products of all filters, and their projection.

    The eigenvectors of the inner products are not counted.
    """
    kernels = {name: clients * math.prod(shape[1:]) for name, shape in shapes.items()}
    return float(sum(2 * filters[name] * kernels[name] * (kernels[name] + shapes[name][0]) for name in shapes))


def minibatch_flops(clients: int, images: int, channels: int) -> float:
    """Matrix products of `minibatch_cka` for all pairs: a kernel of each client, and inner products of all kernels."""
    count = min(math.ceil(images / BATCH), images // 4)
    sizes = [len(part) for part in torch.arange(images).tensor_split(count)]
    return float(sum(2 * clients * b * b * channels + 2 * clients * clients * b * b for b in sizes))


def forward_flops(network: nn.Module, image: Sequence[int]) -> float:
    """FLOPs of one image's pass through one network."""
    return counted_flops(lambda: _passed(network, torch.zeros(1, *image)))


@torch.no_grad()
def _passed(network: nn.Module, images: Tensor) -> None:
    network.eval()(images)


def _random_atoms(shapes: Shapes, clients: int) -> dict[str, Tensor]:
    lot = torch.Generator().manual_seed(0)
    return {name: torch.randn(clients, *shape, generator=lot) for name, shape in shapes.items()}


def _seconds(
    network: nn.Module, image: Sequence[int], shapes: Shapes, channels: int, clients: int, probe: int
) -> list[dict[str, Any]]:
    """Seconds for the clients at hand, side by side. The passes are timed with one network, and scaled."""
    stacks, lot = _random_atoms(shapes, clients), torch.Generator().manual_seed(1)
    features = [torch.randn(probe, channels, generator=lot) for _ in range(clients)]
    images = torch.randn(min(probe, IMAGES_TIMED), *image, generator=lot)

    def atoms() -> float:
        began = time.perf_counter()
        for _ in range(REPEATS):
            similarity_matrix(stacks, "cosine", "mean")
        return (time.perf_counter() - began) / REPEATS

    taken = alternately(
        {
            "atoms": atoms,
            "cka": lambda: probing_matrix(features, "minibatch_cka", batch_size=BATCH),
            "forward": lambda: _passed(network, images),
        },
        ROUNDS,
        budget=BUDGET,
    )
    timed = {name: quartiles(values) for name, values in taken.items()}
    rows = []
    for number in dict.fromkeys((probe, SAMPLES)):
        # the work of CKA grows with its batches
        growth = minibatch_flops(clients, number, channels) / minibatch_flops(clients, probe, channels)
        compared, made = scaled(timed["cka"], growth), scaled(timed["forward"], clients * number / len(images))
        both = [(c * growth + f * clients * number / len(images)) / a
                for a, c, f in zip(taken["atoms"], taken["cka"], taken["forward"], strict=True)]  # fmt: skip
        rows.append(
            {
                "clients": clients, "images": number, "extrapolated": number != probe,
                "atoms": _plain(timed["atoms"]), "cka": _plain(compared), "forward": _plain(made),
                "ratio": _plain(quartiles(both)),
            }
        )  # fmt: skip
    return rows


def _plain(values: Quartiles) -> dict[str, float]:
    return {"median": values.median, "low": values.low, "high": values.high, "n": values.n}
