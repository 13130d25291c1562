"""Memory and seconds a round of federations of up to a thousand clients, of which twenty train in a round.

As a program it prints a table, and with ``-o`` writes the numbers as JSON. Each federation has a process of its own.
"""

import argparse
import itertools
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from fscl.text import human_bytes

CLIENTS = (50, 200, 1000)
EACH_ROUND = 20
ROUNDS = 8
METHODS = ("atoms", "fedavg", "fedrep")


def measure(clients: int, method: str, data: str | None, folder: Path) -> dict[str, Any]:
    """Seconds of each round, and the memory of the process after it, in bytes."""
    from fscl.federated import LocalGrid, client_app
    from fscl.runs.federation.building import build_clients, build_server
    from fscl.runs.recipe import load_any_benchmark, load_strategy, with_overrides
    from fscl.runs.spec import RunSpec

    settings = [
        f"federation.clients={clients}",
        "federation.most_images=50",
        f"federation.fraction={EACH_ROUND / clients}",
        "training.epochs=1",
    ]
    spec = RunSpec(
        *with_overrides(load_any_benchmark("federated_fmnist"), load_strategy(method), settings), 0, data=data
    )
    server, federation = build_server(spec), build_clients(spec, folder)
    server.evaluate_every = 0
    grid = LocalGrid(client_app(lambda context: federation), clients)
    resident: list[int] = []
    began: list[float] = [time.perf_counter()]

    def after_round() -> None:
        began.append(time.perf_counter())
        resident.append(_resident())

    server.start(grid, num_rounds=ROUNDS, after_round=after_round)
    return {
        "clients": clients,
        "method": method,
        "each_round": EACH_ROUND,
        "seconds": [b - a for a, b in itertools.pairwise(began)],
        "resident_bytes": resident,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def _resident() -> int:
    import psutil

    return int(psutil.Process().memory_info().rss)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", help="data folder")
    parser.add_argument("-o", "--out", type=Path, help="JSON file for the numbers")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        clients, method = arguments.one.split(",")
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(measure(int(clients), method, arguments.data, Path(folder))))
        return
    rows = []
    print(f"{'method':10} {'clients':>8} {'seconds a round':>16} {'memory':>10} {'peak':>10}")
    for method in METHODS:
        for clients in CLIENTS:
            command = [sys.executable, "-m", "benchmarks.federated.many_clients", "--one", f"{clients},{method}"]
            command += ["--data", arguments.data] if arguments.data else []
            printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            row = json.loads(printed.splitlines()[-1])
            rows.append(row)
            # the first round starts libraries
            seconds, memory = median(row["seconds"][1:]), human_bytes(median(row["resident_bytes"][1:]))
            peak = human_bytes(row["peak_bytes"])
            print(f"{method:10} {clients:8} {seconds:16.2f} {memory:>10} {peak:>10}", flush=True)
    if arguments.out:
        arguments.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
