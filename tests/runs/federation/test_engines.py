"""Every engine gives the numbers of the clients that are called one after another, bit for bit."""

import importlib.util
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

pytest.importorskip("flwr", reason="needs the extra fscl[federated]")

from fscl.runs.federation.pool import ClientPool
from fscl.runs.recipe import load_any_benchmark, load_strategy, with_overrides
from fscl.runs.results import load_run
from fscl.runs.run import is_finished, run_one
from fscl.runs.spec import RunSpec

SMALL = [
    *(
        "federation.clients=4",
        "federation.fraction=0.75",
        "federation.most_images=60",
        "federation.most_test_images=30",
    ),
    *("federation.rounds=4", "federation.evaluate_every=1", "training.epochs=1"),
]
MEASURED = ("accuracy", "counts", "tested", "groups", "sizes", "stays", "travels", "similarity")


def spec_of(method: str = "atoms", *settings: str, **options: Any) -> RunSpec:
    recipes = with_overrides(load_any_benchmark("federated_digits"), load_strategy(method), [*SMALL, *settings])
    return RunSpec(*recipes, 0, **options)


def numbers(folder: Path) -> dict[str, Any]:
    """All that a run measured, but for seconds."""
    record = load_run(folder / "run.json").to_json()
    measured = {key: record.get(key) for key in MEASURED}
    steps = {key: [step | {"seconds": 0} for step in record[key]] for key in ("rounds", "evaluated")}
    return measured | steps


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return numbers(run_one(spec_of("atoms", "args.coefficient_rounds=1"), tmp_path_factory.mktemp("one")))


def stop_after_two(rounds: int, *_: int) -> None:
    if rounds == 2:
        raise KeyboardInterrupt


def children() -> list[psutil.Process]:
    """The processes that train clients, which the server of workers forked."""
    return [p for p in psutil.Process().children(recursive=True) if p.parent() and p.parent().pid != os.getpid()]


def test_two_clients_at_a_time_give_the_numbers_of_one_and_resume(expected: dict[str, Any], tmp_path: Path) -> None:
    spec = spec_of("atoms", "args.coefficient_rounds=1", workers=2)
    with pytest.raises(KeyboardInterrupt):
        run_one(spec, tmp_path, progress=stop_after_two)
    assert not is_finished(spec, tmp_path)
    assert children() == []  # no worker outlives its run
    assert numbers(run_one(spec, tmp_path)) == expected
    assert children() == []


def test_a_killed_process_costs_its_client_one_answer_and_the_round_goes_on(tmp_path: Path) -> None:
    killed: list[int] = []

    def kill_one(rounds: int, *_: int) -> None:
        def kill() -> None:
            while not (busy := [p for p in children() if p.cpu_percent(0.05) > 20]):
                time.sleep(0.01)
            os.kill(busy[0].pid, signal.SIGKILL)
            killed.append(busy[0].pid)

        if rounds == 1:
            threading.Thread(target=kill, daemon=True).start()

    # long enough for a process to be hit while it trains
    spec = spec_of("atoms", "federation.rounds=3", "training.epochs=30", workers=2)
    record = load_run(run_one(spec, tmp_path, progress=kill_one) / "run.json")
    assert killed
    reasons = [reason for r in record.rounds for reason in r.left_out.values()]
    assert reasons == ["it failed: 'its process was killed by signal 9'"]
    assert [len(r.answered) for r in record.rounds] in ([3, 2, 3], [3, 3, 2])
    assert record.finished


def test_a_process_that_dies_while_it_waits_costs_nothing(tmp_path: Path) -> None:
    pool = ClientPool(spec_of(workers=2), tmp_path)
    try:
        asked = [query(client) for client in range(4)]
        answers = pool(asked)
        waiting = children()
        for process in waiting:
            process.kill()
        assert psutil.wait_procs(waiting, timeout=20)[1] == []
        assert [answer for answer in pool(asked) if isinstance(answer, str)] == []
        assert [type(answer) for answer in answers] == [bytes] * 4
    finally:
        pool.close()


def query(client: int) -> bytes:
    from flwr.app import Message, RecordDict

    from fscl.federated.flower_private import to_bytes, use_identity

    use_identity(1)
    return to_bytes(Message(RecordDict(), 2 + client, "query"))


@pytest.mark.slow
def test_flowers_simulation_gives_the_numbers_of_one_process_and_resumes(
    expected: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("ray", reason="Ray is not installed: it comes with fscl[ray]")
    spec = spec_of("atoms", "args.coefficient_rounds=1", workers=2, simulated=True)
    path = os.environ.get("PYTHONPATH")
    with pytest.raises(KeyboardInterrupt):
        run_one(spec, tmp_path, progress=stop_after_two)
    folder = run_one(spec, tmp_path)
    assert numbers(folder) == expected
    assert [again.after for again in load_run(folder / "run.json").resumed] == [2]
    assert capfd.readouterr() == ("", "")
    assert os.environ.get("PYTHONPATH") == path


@pytest.mark.slow
def test_a_client_that_raises_in_a_simulation_is_named(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed: it comes with fscl[ray]")
    from flwr.app import Message, RecordDict
    from flwr.clientapp import ClientApp

    from fscl.federated import simulate

    app = ClientApp()

    @app.query()
    def fail(message: Message, context: Any) -> Message:
        raise ValueError(f"client {context.node_config['partition-id']} fails")

    errors: list[str] = []

    def serve(grid: Any) -> None:
        while len(nodes := list(grid.get_node_ids())) < 2:
            time.sleep(0.05)
        asked = [Message(RecordDict(), node, "query") for node in nodes]
        errors.extend(reply.error.reason for reply in grid.send_and_receive(asked, timeout=60))
        raise LookupError("the server fails")

    with pytest.raises(LookupError, match="the server fails"):
        simulate(serve, app, 2)
    assert sorted(error.strip().splitlines()[-1].partition("client ")[2][:7] for error in errors) == [
        "0 fails",
        "1 fails",
    ]


@pytest.mark.slow
def test_a_process_of_a_simulation_that_is_killed_comes_back(tmp_path: Path) -> None:
    """Flower itself would give it messages for ever, each of which fails."""
    pytest.importorskip("ray", reason="Ray is not installed: it comes with fscl[ray]")
    from flwr.app import Message, RecordDict
    from flwr.clientapp import ClientApp

    from fscl.federated import simulate

    app, killed = ClientApp(), tmp_path / "killed"

    @app.query()
    def die_once(message: Message, context: Any) -> Message:
        if not killed.exists():
            killed.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return Message(RecordDict(), reply_to=message)

    rounds: list[list[str]] = []

    def serve(grid: Any) -> None:
        while len(nodes := list(grid.get_node_ids())) < 2:
            time.sleep(0.05)
        while len(rounds) < 30 and (not rounds or rounds[-1]):
            asked = [Message(RecordDict(), node, "query") for node in nodes]
            replies = grid.send_and_receive(asked, timeout=60)
            rounds.append([reply.error.reason for reply in replies if reply.has_error()])
            time.sleep(0.5)

    simulate(serve, app, 2)
    assert rounds[0]
    assert {reason for reasons in rounds for reason in reasons} == {"its process died, or was not back yet"}
    assert rounds[-1] == []


def test_what_a_simulation_does_not_take_is_refused_at_once(fscl: Any) -> None:
    for option, value in (("--address", "host:6379"), ("--gpus-per-run", "0.5"), ("--jobs", "2")):
        ended = fscl("run", "federated_digits", "--engine", "ray", option, value)
        assert ended.code == 2
        assert f"{option} is {value}; " in ended.err


def test_a_simulation_without_ray_says_what_to_install(fscl: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "ray" else find(name, *a))
    ended = fscl("run", "federated_digits", "--engine", "ray")
    assert (ended.code, ended.err.strip()) == (2, "error: --engine ray needs Ray; install fscl[ray]")
