"""The Flower project of ``examples/flower`` learns, takes Flower's mods, and begins from a bank."""

import importlib.util
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("flwr", reason="needs the extra fscl[federated]")
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import LocalDpMod, fixedclipping_mod

from fscl.atoms import AtomBank, freeze_coefficients
from fscl.errors import FsclError
from fscl.federated import AtomStrategy, ClientParts, LocalGrid, introduce

PROJECT = Path(__file__).resolve().parents[3] / "examples" / "flower"
ROUND = re.compile(r"round (\d+): (\d+) bytes, left out: (.*), accuracy by client \[(.*)\]")


@pytest.fixture(scope="module")
def project() -> Iterator[SimpleNamespace]:
    """The modules of the project, which import each other by their short names, as Flower lets them."""
    modules = {}
    for name in ("task", "client_app", "server_app"):
        spec = importlib.util.spec_from_file_location(name, PROJECT / f"{name}.py")
        modules[name] = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(modules[name])
    yield SimpleNamespace(**modules)
    for name in modules:
        del sys.modules[name]


def rounds_in(printed: str) -> list[tuple[str, ...]]:
    return [match.groups() for match in ROUND.finditer(printed)]


def run_here(project: SimpleNamespace, capsys: pytest.CaptureFixture[str], **config: Any) -> str:
    settings = {"clients": 3, "rounds": 5, "out": ""} | config
    grid = LocalGrid(project.client_app.app, 3)
    project.server_app.app(grid, Context(0, 1, {}, RecordDict(), settings))
    return capsys.readouterr().out


def test_the_project_learns_and_writes_a_bank(
    project: SimpleNamespace, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    printed = run_here(project, capsys, out=str(tmp_path / "out"))
    rounds = rounds_in(printed)
    assert [int(number) for number, *_ in rounds] == [1, 2, 3, 4, 5]
    assert {left_out for _, _, left_out, _ in rounds} == {"none"}
    assert min(map(float, rounds[-1][3].split(","))) > 0.9
    assert int(rounds[3][1]) < int(rounds[0][1]) / 10  # atoms alone travel
    assert "AtomBank(3 tasks, 2 layers" in printed
    assert AtomBank.load(tmp_path / "out" / "bank.safetensors").tasks == [0, 1, 2]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_flower_runs_the_project_with_the_numbers_of_one_process(
    project: SimpleNamespace, capsys: pytest.CaptureFixture[str], deployment: Any, tmp_path: Path
) -> None:
    for client in range(3):
        deployment.node(client, 3)
    printed = deployment.run(PROJECT, 500, rounds=4, out=str(tmp_path / "deployed"))
    here = run_here(project, capsys, rounds=4, out=str(tmp_path / "here"))
    assert len(rounds_in(printed)) == 4
    assert rounds_in(printed) == rounds_in(here)
    banks = [AtomBank.load(tmp_path / name / "bank.safetensors") for name in ("deployed", "here")]
    assert banks[0].fingerprint == banks[1].fingerprint
    for task in (0, 1, 2):
        for entry, values in banks[0][task].items():
            assert torch.equal(values, banks[1][task][entry]), (task, entry)


def network_with_frozen_coefficients(project: SimpleNamespace) -> torch.nn.Module:
    net = project.task.make_network()
    freeze_coefficients(net, scale=1)
    return net


def noisy_app(project: SimpleNamespace, mod: Any) -> ClientApp:
    """The client of the project, whose coefficients are frozen from the start, with a mod on what it returns."""
    app = ClientApp()

    @app.query()
    def query(message: Message, context: Context) -> Message:
        return introduce(message, context, network_with_frozen_coefficients(project), num_examples=1000)

    @app.train(mods=[mod])
    def fit(message: Message, context: Context) -> Message:
        parts = ClientParts(network_with_frozen_coefficients(project), context)
        parts.receive(message)
        (images, labels), _ = project.task.load_images(context.node_config["partition-id"], 3)
        return parts.answer(message, num_examples=len(images), loss=project.task.train(parts.model, images, labels))

    return app


def run_with(project: SimpleNamespace, mod: Any, **options: Any) -> AtomStrategy:
    strategy = AtomStrategy(project.task.make_network(), clients=3, coefficient_rounds=0, evaluate_every=0, **options)
    strategy.start(LocalGrid(noisy_app(project, mod), 3), num_rounds=1)
    return strategy


def test_local_differential_privacy_clips_and_disturbs_what_a_client_returns(project: SimpleNamespace) -> None:
    def changes(strategy: AtomStrategy) -> list[float]:
        assert strategy.history.rounds[0].left_out == {}
        start = AtomStrategy(project.task.make_network(), clients=3, coefficient_rounds=0).method.mean
        latest = strategy.method.latest.values()
        return [
            float(torch.cat([update.parts[part] - start[part] for part in ("atoms", "other")]).norm())
            for update in latest
        ]

    plain = changes(run_with(project, lambda message, context, call: call(message, context)))
    clipped = changes(run_with(project, LocalDpMod(clipping_norm=0.1, sensitivity=0.0, epsilon=1.0, delta=1e-5)))
    assert min(plain) > 0.2
    assert clipped == pytest.approx([0.1] * 3, rel=1e-3)
    # noise of standard deviation 0.01 for each of 156 values: a length of about sqrt(156) / 100 beside the 0.1
    deviation = (2 * torch.tensor(1.25e5).log()).sqrt().item()
    noisy = changes(run_with(project, LocalDpMod(0.1, sensitivity=0.01 / deviation, epsilon=1.0, delta=1e-5)))
    assert noisy == pytest.approx([(0.1**2 + 156 * 0.01**2) ** 0.5] * 3, rel=0.2)


def test_a_mod_that_needs_flowers_own_wrapper_is_named_and_no_answer_counts(project: SimpleNamespace) -> None:
    strategy = run_with(project, fixedclipping_mod)
    assert strategy.history.rounds[0].answered == []
    reasons = strategy.history.rounds[0].left_out
    assert sorted(reasons) == [0, 1, 2]
    assert all("fixedclipping_mod requires the key" in reason or "it failed" in reason for reason in reasons.values())


def bank_of(project: SimpleNamespace, tasks: int) -> AtomBank:
    net = project.task.make_network()
    bank = AtomBank(net)
    for task in range(tasks):
        with torch.no_grad():
            for name, parameter in net.named_parameters():
                if name.endswith("atoms"):
                    parameter += 0.1 * (task + 1)
        bank.store(net, task)
    return bank


def test_a_bank_gives_coefficients_and_its_tasks_are_clients(project: SimpleNamespace) -> None:
    bank = bank_of(project, 2)
    strategy = AtomStrategy(
        project.task.make_network(), clients=3, bank=bank, images=[100, 300], mix="nearest", nearest=1
    )
    method = strategy.method
    assert strategy.bank.fingerprint == bank.fingerprint
    assert strategy.bank.tasks == [0, 1]
    mine = [torch.cat([bank.atoms(task)[layer].flatten() for layer in bank.layers]) for task in (0, 1)]
    for task in (0, 1):  # each begins from its own atoms, since it mixes with nobody else
        assert torch.equal(method.parts_for(task, 1)["atoms"], mine[task])
    # a client that is new begins from the mean, and is sent the coefficients
    assert torch.allclose(method.parts_for(2, 1)["atoms"], (mine[0] + 3 * mine[1]) / 4)
    assert "shared" in method.parts_for(2, 1)
    strategy.start(LocalGrid(project.client_app.app, 3), num_rounds=2)
    assert strategy.bank.fingerprint == bank.fingerprint
    assert strategy.bank.tasks == [0, 1, 2]
    assert all(r.left_out == {} for r in strategy.history.rounds)


def test_a_bank_that_does_not_fit_is_refused(project: SimpleNamespace) -> None:
    make: Callable[..., AtomStrategy] = AtomStrategy
    with pytest.raises(FsclError, match=r"the bank has the tasks \[0, 1, 2\]; numbers of clients, from 0 to 1, would"):
        make(project.task.make_network(), clients=2, bank=bank_of(project, 3))
    with pytest.raises(FsclError, match="images are given for 1 clients; the bank has 2 tasks"):
        make(project.task.make_network(), clients=2, bank=bank_of(project, 2), images=[1])
    with pytest.raises(FsclError, match="the bank has the tasks \\[\\]"):
        make(project.task.make_network(), clients=2, bank=bank_of(project, 0))
