"""The cost of atoms: a layer against ``nn.Conv2d``, swapping a task, and a bank of ten thousand tasks.

    uv run python -m benchmarks.speed.layers [--quick] [--device cuda]

Calls take turns on one thread, and ratios are taken in each round.
"""

import argparse
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.speed.timing import alternately, quartiles, ratio, synchronise
from fscl.atoms import AtomBank, AtomConv2d, decompose, freeze_coefficients
from fscl.atoms.entries import point_entries
from fscl.networks import ConvNet

__all__ = ["measure"]

AT_LEAST = 5e-3  # seconds of one timing; shorter calls are repeated
MODES = ("evaluation", "training", "training, frozen")
TASKS = 10_000


@dataclass(frozen=True)
class Shape:
    """A convolution and its input. The atom layer has as many atoms as pixels in a kernel, so its filters are equal."""

    channels: tuple[int, int]
    side: int
    batch: int = 64
    kernel: int = 3
    stride: int = 1
    groups: int = 1

    def __str__(self) -> str:
        extra = f" stride {self.stride}" if self.stride > 1 else ""
        extra += f" groups {self.groups}" if self.groups > 1 else ""
        return (
            f"{self.channels[0]}->{self.channels[1]} {self.kernel}x{self.kernel} on {self.side}^2 x{self.batch}{extra}"
        )


QUICK = (
    Shape((3, 32), 32),
    Shape((64, 128), 8),
    Shape((128, 128), 4),
    Shape((256, 256), 4),
    Shape((64, 64), 16, stride=2),
    Shape((128, 128), 8, batch=8),
)
FULL = (
    *QUICK,
    Shape((32, 64), 16),
    Shape((64, 64), 32),
    Shape((128, 256), 8),
    Shape((256, 256), 8),
    Shape((64, 64), 16, groups=4),
    Shape((32, 32), 16, kernel=5),
)


def measure(quick: bool, device: str = "cpu") -> dict[str, Any]:
    """All timings as plain data: ratios to ``nn.Conv2d``, microseconds of a swap, seconds of a large bank."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rows = [
            _layer(shape, mode, device, 0.6 if quick else 4) for shape in (QUICK if quick else FULL) for mode in MODES
        ]
        ratios = [row["ratio"]["median"] for row in rows]
        return {
            "device": device,
            "rows": rows,
            "median": statistics.median(ratios),
            "worst": max(ratios),
            "by_mode": {
                mode: {"median": statistics.median(of_mode), "worst": max(of_mode)}
                for mode in MODES
                if (of_mode := [row["ratio"]["median"] for row in rows if row["mode"] == mode])
            },
            "swap": _swaps(device, 50 if quick else 300),
            "bank": _large_bank(),
        }
    finally:
        torch.set_num_threads(threads)


def _layer(shape: Shape, mode: str, device: str, budget: float) -> dict[str, Any]:
    conv = nn.Conv2d(*shape.channels, shape.kernel, shape.stride, shape.kernel // 2, groups=shape.groups, device=device)
    layer = AtomConv2d.from_conv(conv, shape.kernel**2)
    layer.coefficients.requires_grad_(mode != "training, frozen")
    # images need no gradient, so a layer with at most 3 input channels is timed without one
    x = torch.randn(shape.batch, shape.channels[0], shape.side, shape.side, device=device)
    x.requires_grad_(shape.channels[0] > 3 and mode != "evaluation")
    calls = {name: _pass(m.train(mode != "evaluation"), x) for name, m in (("atoms", layer), ("conv", conv))}
    calls["conv"]()
    repetitions = max(1, round(AT_LEAST / _seconds(calls["conv"]) + 0.5))

    def repeated(call: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            for _ in range(repetitions):
                call()
            synchronise(device)

        return run

    times = alternately({name: repeated(call) for name, call in calls.items()}, rounds=200, warmup=2, budget=budget)
    return {
        "shape": str(shape),
        "mode": mode,
        "ratio": asdict(ratio(times["atoms"], times["conv"])),
        "of_fastest": min(times["atoms"]) / min(times["conv"]),  # the fastest rounds have no interruptions
        "conv_us": 1e6 * quartiles(times["conv"]).median / repetitions,
    }


def _pass(module: nn.Module, x: Tensor) -> Callable[[], None]:
    """A call that makes a forward pass, and in training mode also the backward pass."""
    if not module.training:

        def evaluate() -> None:
            with torch.no_grad():
                module(x)

        return evaluate
    seed = torch.randn_like(module(x))

    def train() -> None:
        x.grad = None
        module.zero_grad()
        module(x).backward(seed)

    return train


def _swaps(device: str, rounds: int) -> dict[str, dict[str, Any]]:
    """Microseconds to point a network at another task's tensors, and to do this and go back."""
    from torchvision.models import resnet18

    results = {}
    for name, network in (("ConvNet", ConvNet(3, 10)), ("ResNet-18", resnet18(num_classes=10))):
        model = decompose(network).model.to(device)
        freeze_coefficients(model)
        bank = AtomBank(model)
        for task in range(4):
            bank.store(model, task)
        entries = itertools.cycle([bank.entries(task) for task in bank.tasks])
        tasks = itertools.cycle(bank.tasks)
        swaps = 50

        def point(model: nn.Module = model, entries: Any = entries, swaps: int = swaps) -> None:
            for _ in range(swaps):
                point_entries(model, next(entries))

        def there_and_back(
            model: nn.Module = model, bank: AtomBank = bank, tasks: Any = tasks, swaps: int = swaps
        ) -> None:
            for _ in range(swaps):
                with bank.swapped(model, next(tasks)):
                    pass

        times = alternately({"point_us": point, "swapped_us": there_and_back}, rounds)
        results[name] = {"entries": len(bank.entries(0))}
        results[name] |= {key: asdict(quartiles([1e6 * s / swaps for s in values])) for key, values in times.items()}
        x = torch.randn(64, 3, 32, 32, device=device)
        model.eval()

        @torch.no_grad()
        def forward(model: nn.Module = model, x: Tensor = x) -> None:
            model(x)
            synchronise(device)

        @torch.no_grad()
        def swap_and_forward(model: nn.Module = model, entries: Any = entries, x: Tensor = x) -> None:
            point_entries(model, next(entries))
            model(x)
            synchronise(device)

        times = alternately({"swap_and_pass_ms": swap_and_forward}, rounds=min(rounds, 9))
        times |= alternately({"pass_ms": forward}, rounds=min(rounds, 9))
        results[name] |= {key: asdict(quartiles([1e3 * s for s in values])) for key, values in times.items()}
    return results


def _large_bank() -> dict[str, Any]:
    """Seconds to save, open and read a bank of ten thousand tasks of a small network."""
    model = decompose(ConvNet(3, 2, widths=(8, 8, 8, 8)), num_atoms=12).model
    freeze_coefficients(model)
    bank = AtomBank(model)
    for task in range(TASKS):
        bank.store(model, task)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "bank.safetensors")
        results: dict[str, Any] = {"tasks": TASKS, "save_s": _seconds(lambda: bank.save(path))}
        results["megabytes"] = os.path.getsize(path) / 1e6
        opened = []
        results["open_s"] = statistics.median(_seconds(lambda: opened.append(AtomBank.load(path))) for _ in range(5))
        loaded = opened[0]
        results["first_task_s"] = _seconds(lambda: loaded.entries(TASKS // 2))
        results["stack_of_a_layer_s"] = _seconds(lambda: loaded.stack(loaded.layers[1]))
        results["all_tasks_s"] = _seconds(lambda: [loaded.entries(task) for task in loaded.tasks])
    return results


def _seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def _show(results: dict[str, Any]) -> None:
    for row in results["rows"]:
        r = row["ratio"]
        print(
            f"{row['shape']:38} {row['mode']:17} {r['median']:5.2f} [{r['low']:.2f}, {r['high']:.2f}] "
            f"n={r['n']:<4} fastest {row['of_fastest']:.2f}, nn.Conv2d {row['conv_us']:8.0f} us"
        )
    for mode, both in {**results["by_mode"], "all": results}.items():
        print(f"{mode}: median {both['median']:.3f}, worst {both['worst']:.3f}")
    for name, swap in results["swap"].items():
        print(
            f"swap of {name}, {swap['entries']} entries: {swap['point_us']['median']:.1f} us; "
            f"there and back {swap['swapped_us']['median']:.1f} us"
        )
    print("bank:", ", ".join(f"{key} {value:.4g}" for key, value in results["bank"].items()))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer shapes and rounds")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    _show(measure(options.quick, options.device))
