"""Measures the speed of fscl: training, atom layers, similarity, startup and whole runs, each against a baseline.

    uv run python -m benchmarks.speed            # under three minutes on two cores
    uv run python -m benchmarks.speed --full --data DIR --before REVISION --write reports/speed

Contenders take turns (``timing.py``), so if the machine slows down, it slows all of them. Ratios are taken in each
round and reported as median and quartiles.
"""

import argparse
import datetime
import json
import platform
import sys
import time
import warnings
from pathlib import Path
from typing import Any

warnings.filterwarnings("ignore")

import torch  # noqa: E402 - after the filter

from benchmarks.speed import layers, runs, similarity, startup, training  # noqa: E402
from benchmarks.speed.report import write_report  # noqa: E402

SECTIONS = ("training", "layers", "similarity", "startup", "runs")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="more rounds and larger grids: about twenty minutes")
    parser.add_argument("--data", help="data folder, for CIFAR-100")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--before", help="git revision to compare whole runs with; without it they are not timed")
    parser.add_argument("--only", choices=SECTIONS, action="append", help="a section; may be repeated")
    parser.add_argument("--write", type=Path, default=Path("speed"), help="folder of the report")
    options = parser.parse_args()
    measured = options.only or SECTIONS
    quick, file = not options.full, options.write / "results.json"
    # with --only, the other sections keep their earlier results
    results: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if options.only and file.exists() else {}
    calls = {
        "training": lambda: _on_one_thread(lambda: training.measure(quick, options.data, options.device)),
        "layers": lambda: layers.measure(quick, options.device),
        "similarity": lambda: _on_one_thread(lambda: similarity.measure(quick)),
        "startup": lambda: startup.measure(quick),
        "runs": lambda: runs.measure(options.before, options.data),
    }
    for section in SECTIONS:
        if section not in measured or (section == "runs" and not options.before):
            continue
        print(f"{section} ...", file=sys.stderr, flush=True)
        began = time.perf_counter()
        results[section] = calls[section]() | {
            "mode": "quick" if quick else "full",
            "seconds": time.perf_counter() - began,
            "date": datetime.date.today().isoformat(),
            "machine": _machine(options.device),
        }
        options.write.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(write_report(results, options.write))


def _on_one_thread(call: Any) -> dict[str, Any]:
    """Calls on one thread, as ``fscl run`` does: it starts one run per core."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return call()
    finally:
        torch.set_num_threads(threads)


def _machine(device: str) -> dict[str, Any]:
    from fscl.runs.environment import processor

    return {
        "processor": processor(),
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else "cpu",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


if __name__ == "__main__":
    main()
