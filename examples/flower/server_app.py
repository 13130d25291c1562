"""The server: ``AtomStrategy`` in the place of ``FedAvg``."""

from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from task import make_network

from fscl.federated import AtomStrategy

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    config = context.run_config
    strategy = AtomStrategy(make_network(), clients=config["clients"], coefficient_rounds=2, mix="nearest", nearest=2)

    def show() -> None:
        done, accuracy = strategy.history.rounds[-1], strategy.history.evaluations[-1].accuracy
        print(
            f"round {done.number}: {done.sent + done.received} bytes, left out: {done.left_out or 'none'}, "
            f"accuracy by client {[round(accuracy[client], 3) for client in sorted(accuracy)]}",
            flush=True,
        )

    strategy.start(grid, num_rounds=config["rounds"], after_round=show)
    print(strategy.bank)  # a task for each client
    print(strategy.method.similarity())  # of the clients, from the atoms alone
    if config["out"]:
        Path(config["out"]).mkdir(parents=True, exist_ok=True)
        strategy.bank.save(Path(config["out"]) / "bank.safetensors")
