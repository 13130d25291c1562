"""The cost of comparing all pairs of N networks: filter atoms against CKA and CCA of features.

As a program it prints a table. `measure` returns the numbers as plain data.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.speed.timing import Quartiles, alternately, quartiles, ratio
from fscl.networks import ConvNet
from fscl.similarity import probing_matrix, similarity_matrix

ATOMS = (12, 3, 3)
LAYERS = 4
SAMPLES, FEATURES, BATCH = 10_000, 512, 256
COUNTS = (20, 100, 1_000, 10_000)
RIVALS = ("linear_cka", "minibatch_cka", "svcca")

COUNTED = {
    "atoms": f"similarity_matrix of {LAYERS} layers of {ATOMS} float32 atoms, metric cosine, aggregate product: "
    "validation, normalisation, all pairs",
    "matrix_products": "x @ x.T for the same layers as (N, 108) float32 matrices and nothing else",
    "rivals": f"probing_matrix of random ({SAMPLES}, {FEATURES}) float32 features of each network: centring or "
    f"decomposition of each, then all pairs, in float64; minibatch CKA in batches of at most {BATCH}",
    "features": f"forward passes of {SAMPLES} images of 3x32x32 through N ConvNets of 4 layers (32, 64, 128, 256)",
    "flops": "2 for a multiplication and addition; 'counted' by torch's FlopCounterMode, which sees matrix products "
    "and convolutions alone, on exactly this work; 'formula' where those of fewer networks or images are scaled by "
    "their exact number, and for svcca 6np^2 + 20p^3 for each thin SVD and 8/3 p^3 for singular values are added",
    "extrapolated": "timed on fewer networks or images (see measured_on) and scaled to all of them",
    "with_features": "the comparison and the forward passes that its features take; atoms take none",
    "low, high": "quartiles of the rounds",
}


def measure(quick: bool = False) -> dict[str, Any]:
    """Seconds and FLOPs of all pairs of N networks as plain data: the rows, and what each column counts."""
    began = time.perf_counter()
    forward = _forward(quick)
    rows = [row for n in COUNTS for row in _atoms(n, quick)]
    atoms = {row["networks"]: row["seconds"]["median"] for row in rows if row["method"] == "atoms"}
    measured = _rivals(quick)
    for n in (20, 100):
        features = _row("feature_extraction", n, scaled(forward["one"], n), forward["flops"] * n, "formula")
        features |= {"extrapolated": True, "measured_on": forward["measured_on"]}
        rows.append(features)
        for rival in measured[n]:
            with_features = {
                "seconds": rival["seconds"]["median"] + features["seconds"]["median"],
                "flops": rival["flops"] + features["flops"],
                "extrapolated": True,
            }
            rows.append(rival | {"with_features": with_features})
    for row in rows:
        n = row["networks"]
        row["times_atoms"] = row["seconds"]["median"] / atoms[n]
    threads, elapsed = torch.get_num_threads(), time.perf_counter() - began
    return {"quick": quick, "threads": threads, "elapsed_seconds": elapsed, "counted": COUNTED, "rows": rows}


def _row(method: str, n: int, seconds: Quartiles, flops: float, how: str) -> dict[str, Any]:
    timed = {"median": seconds.median, "low": seconds.low, "high": seconds.high, "n": seconds.n}
    row = {"method": method, "networks": n, "pairs": n * (n - 1) // 2, "seconds": timed, "flops": flops}
    return row | {"flops_how": how, "extrapolated": False, "measured_on": "all", "with_features": None}


def scaled(seconds: Quartiles, factor: float) -> Quartiles:
    return Quartiles(seconds.median * factor, seconds.low * factor, seconds.high * factor, seconds.n)


def counted_flops(call: Callable[[], object]) -> float:
    with FlopCounterMode(display=False) as counter:
        call()
    return float(counter.get_total_flops())


def _atoms(n: int, quick: bool) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(n)
    stacks = [torch.randn(n, *ATOMS, generator=generator) for _ in range(LAYERS)]
    matrices = [stack.flatten(1) for stack in stacks]

    def products() -> None:
        for matrix in matrices:
            matrix @ matrix.T

    calls: dict[str, Callable[[], object]] = {"atoms": lambda: similarity_matrix(stacks), "matrix_products": products}
    rounds = {20: 1000, 100: 500, 1000: 30}.get(n, 2 if quick else 9)
    seconds = alternately(calls, rounds, warmup=5 if n <= 1000 else 0 if quick else 1, budget=3 if quick else 40)
    rows = [_row(name, n, quartiles(seconds[name]), counted_flops(call), "counted") for name, call in calls.items()]
    against = ratio(seconds["atoms"], seconds["matrix_products"])
    rows[0]["times_matrix_products"] = {"median": against.median, "low": against.low, "high": against.high}
    rows[0]["working_bytes"] = {"float64_copy_of_atoms": sum(8 * s.numel() for s in stacks), "result": 4 * n * n}
    rows[0]["working_bytes"]["blocks_at_most"] = 32 * 2**20  # as similarity_matrix states
    return rows


def _rivals(quick: bool) -> dict[int, list[dict[str, Any]]]:
    """Rows of every rival for 20 and 100 networks. Rivals are timed on fewer networks, and their times are scaled."""
    timed = dict(zip(RIVALS, (4, 4, 2) if quick else (20, 20, 4), strict=True))  # number of networks by method
    features = [
        torch.randn(SAMPLES, FEATURES, generator=torch.Generator().manual_seed(i)) for i in range(max(timed.values()))
    ]
    rows: dict[int, list[dict[str, Any]]] = {20: [], 100: []}
    for method, k in timed.items():

        def compare(networks: int, samples: int = SAMPLES, method: str = method) -> Tensor:
            return probing_matrix([x[:samples] for x in features[:networks]], method, batch_size=BATCH)

        compare(2, 2 * FEATURES)  # the first call starts the libraries and is not timed
        rounds = 1 if quick and method == "svcca" else 3
        seconds = alternately({"one": partial(compare, 1), "k": partial(compare, k)}, rounds, warmup=0)
        flops = {name: counted_flops(partial(compare, networks)) for name, networks in (("one", 1), ("k", k))}
        for n, rows_of_n in rows.items():
            extrapolated = n != k
            times = [_all_pairs(*round_, k, n) for round_ in zip(seconds["one"], seconds["k"], strict=True)]
            work = _all_pairs(flops["one"], flops["k"], k, n)
            if method == "svcca":
                work += n * (6 * SAMPLES * FEATURES**2 + 20 * FEATURES**3) + n * (n - 1) / 2 * 8 / 3 * FEATURES**3
            how = "formula" if extrapolated or method == "svcca" else "counted"
            row = _row(method, n, quartiles(times), work, how) | {"extrapolated": extrapolated}
            if extrapolated:
                row["measured_on"] = f"measured on {k * (k - 1) // 2} of the {row['pairs']} pairs, scaled"
            rows_of_n.append(row)
    return rows


def _all_pairs(cost_of_one: float, cost_of_k: float, k: int, n: int) -> float:
    """Cost of comparing n networks, from the costs for 1 and for k networks.

    The cost has a part for each network and a part for each pair.
    """
    pair = max(0.0, cost_of_k - k * cost_of_one) / (k * (k - 1) / 2)
    return cost_of_k if n == k else n * cost_of_one + n * (n - 1) / 2 * pair


def _forward(quick: bool) -> dict[str, Any]:
    """Seconds and FLOPs of passing all images through one network, measured on a part of the images and scaled."""
    network, images = ConvNet(3, 5, (32, 64, 128, 256)).eval(), torch.randn(512, 3, 32, 32)

    @torch.inference_mode()
    def passes() -> None:
        for batch in images.split(BATCH):
            network(batch)

    seconds = quartiles(alternately({"forward": passes}, rounds=3 if quick else 9)["forward"])
    share = SAMPLES / len(images)
    where = f"measured on {len(images)} of the {SAMPLES} images through one network, scaled"
    return {"one": scaled(seconds, share), "flops": counted_flops(passes) * share, "measured_on": where}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds and fewer pairs, in under 45 seconds")
    parser.add_argument("--threads", type=int, help="threads of torch; all cores by default")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    data = measure(options.quick)
    print(f"{data['threads']} threads, {data['elapsed_seconds']:.0f} s; * extrapolated; FLOPs: c counted, f formula")
    print(f"{'method':20}{'N':>7}{'seconds [quartiles] (n)':>40}{'FLOPs':>11}{'/ atoms':>10}{'with features':>15}")
    for row in data["rows"]:
        timed, both = row["seconds"], row["with_features"]
        seconds = f"{timed['median']:.3g} [{timed['low']:.3g}, {timed['high']:.3g}] ({timed['n']})"
        print(
            f"{row['method']:20}{row['networks']:7}{seconds + ' *'[row['extrapolated']]:>40}"
            f"{row['flops']:9.2g} {row['flops_how'][0]}{row['times_atoms']:10.3g}"
            f"{format(both['seconds'], '.3g') + ' *' if both else '':>15}"
        )
    for row in data["rows"]:
        if against := row.get("times_matrix_products"):
            spreads = f"{against['median']:.2f} [{against['low']:.2f}, {against['high']:.2f}]"
            print(f"N = {row['networks']}: atoms take {spreads} of the time of the bare matrix products")


if __name__ == "__main__":
    main()
