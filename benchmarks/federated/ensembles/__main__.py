"""Does similarity pick better ensemble members than chance, and how much of what all members give?

    python -m benchmarks.federated.ensembles RUNS -o DIR [--members 5] [--probe 1000] [--seed 0] [--data DATA]

RUNS holds finished federated runs of one benchmark. Each client's test images are answered by the client's own network
together with those of other clients, picked in several ways; nothing is trained. It is the table of Chen, Miao, Qiu
(Exploring neural network representational similarity using filter subspaces, 2023) with the controls that the table
lacks: random members, and all clients. What was measured is kept in DIR, and a second call goes on with the rest.
"""

import argparse
import datetime
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.federated.ensembles.cost import measure
from benchmarks.federated.ensembles.networks import Answers, answers_of
from benchmarks.federated.ensembles.page import page
from benchmarks.federated.ensembles.picking import ensemble_accuracies, picked
from benchmarks.federated.ensembles.summary import over_draws
from fscl.errors import FsclError
from fscl.files import write_text_atomically
from fscl.runs.environment import machine, versions
from fscl.runs.federation.building import build_network
from fscl.runs.records.federated import FederatedRecord
from fscl.runs.results import federations_of, read_runs, refuse
from fscl.runs.spec import spec_of_record
from fscl.text import human_seconds

RESULTS = "results.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, metavar="RUNS", help="folder of finished runs of one federation")
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder for README.md and results.json")
    parser.add_argument("--members", type=int, default=5, help="networks of an ensemble, the client's own included")
    parser.add_argument("--probe", type=int, default=1000, help="training images for CKA and CCA")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn")
    parser.add_argument("--data", help="data folder")
    options = parser.parse_args()
    torch.set_num_threads(1)  # as in the runs
    try:
        study(options.runs, options.out, options.members, options.probe, options.seed, options.data)
    except FsclError as error:
        raise SystemExit(f"error: {error}") from error
    print((options.out / "README.md").read_text(encoding="utf-8"))


def study(
    runs: Path, out: Path, members: int = 5, probe: int = 1000, seed: int = 0, data: str | None = None
) -> dict[str, Any]:
    """Measures all runs that are not measured yet, writes the page, and returns the results.

    Raises:
        FsclError: there are no finished federations, or those of several benchmarks or recipes; or as
            :func:`answers_of` and :func:`picked`.
    """
    records = finished(runs)
    file = out / RESULTS
    settings = {
        "benchmark": records[0].stream, "members": members, "probe": probe, "seed": seed, "versions": versions(),
        "machine": machine("cpu", torch.get_num_threads(), "float32"),
    }  # fmt: skip
    earlier = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    kept = earlier.get("runs", []) if all(earlier.get(key) == value for key, value in settings.items()) else []
    rows = []
    for record in records:
        row = next((row for row in kept if all(row[key] == value for key, value in identity(record).items())), None)
        if row is None:
            began = time.perf_counter()
            row = measured_row(answers_of(record, probe, seed, data), members, seed)
            print(f"{record} ({human_seconds(time.perf_counter() - began)})", file=sys.stderr, flush=True)
        rows.append(row)
        results = settings | {"date": datetime.date.today().isoformat(), "runs": rows}
        write_text_atomically(file, json.dumps(results) + "\n")
    network = build_network(spec_of_record(records[0], trust=False, data=data))
    results["cost"] = cost_of(rows, network)
    write_text_atomically(file, json.dumps(results) + "\n")
    write_text_atomically(out / "README.md", page(results))
    return results


def finished(folder: Path) -> list[FederatedRecord]:
    """The finished federations below a folder, of one benchmark; each method with one recipe."""
    every = [record for record in federations_of(read_runs([folder], refuse)) if record.path.name == "run.json"]
    records = [record for record in every if record.finished]
    for record in every:
        if not record.finished:
            print(f"left out: {record}", file=sys.stderr)
    if not records:
        raise FsclError(
            f"{folder}: no finished run of a federation; `fscl run federated_digits -o {folder}` makes some"
        )
    streams = sorted({record.stream for record in records})
    if len(streams) > 1:
        raise FsclError(f"{folder}: runs of {'; '.join(streams)}; a folder with one of them would do")
    recipes = {(record.strategy.name, record.recipe_hash): record for record in records}
    names = [name for name, _ in recipes]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise FsclError(f"{folder}: runs of two recipes for {twice}; a folder with one of them would do")
    return records


def identity(record: FederatedRecord) -> dict[str, Any]:
    return {
        "method": record.strategy.name, "recipe_hash": record.recipe_hash, "run_seed": record.seed,
        "started": record.started,
    }  # fmt: skip


def measured_row(answers: Answers, members: int, seed: int) -> dict[str, Any]:
    """What was measured of one run, as plain data."""
    record, atoms = answers.record, answers.atoms
    accuracies = ensemble_accuracies(answers, picked(answers, members, seed))
    recorded = torch.from_numpy(record.accuracy[-1])
    return identity(record) | {
        "title": record.strategy.title or record.strategy.name,
        "clients": record.clients,
        "images": len(answers.labels),
        "probed": answers.features.shape[1],
        "layer": answers.layer,
        "atoms": atoms.source if atoms else None,
        "explained": atoms.explained if atoms else None,
        "shapes": {name: list(stack.shape[1:]) for name, stack in atoms.stacks.items()} if atoms else {},
        "filters": atoms.rows if atoms else {},
        "image": list(answers.image),
        "channels": answers.features.shape[2],
        "off_record": float((accuracies["base"][0] - recorded).abs().nan_to_num(0).max()),
        "made_with": record.versions,
        "pickings": {name: over_draws(draws.numpy()) for name, draws in accuracies.items()},
    }


def cost_of(rows: list[dict[str, Any]], network: nn.Module) -> dict[str, Any] | None:
    """The cost of picking among the clients at hand; None if no run has atoms that differ."""
    with_atoms = [row for row in rows if row["atoms"]]
    if not with_atoms:
        return None
    # of atom layers, if a method has them: it is their comparison that is cheap
    row = next((row for row in with_atoms if row["atoms"] == "layers"), with_atoms[0])
    sizes = row["image"], row["shapes"], row["filters"], row["channels"], row["clients"], row["probed"]
    return {"method": row["title"]} | measure(network, *sizes)


if __name__ == "__main__":
    main()
