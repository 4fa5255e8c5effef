"""The ServerApp of a run: the coordinator's driver on Flower's Grid."""

from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Drives the run named in the run config until it ends or this process is stopped."""
    from confide.coordinator.fleet.flower import Fleet
    from confide.coordinator.run.driver import drive

    config = context.run_config
    drive(Fleet(grid), Path(str(config["home"])), str(config["run_id"]))
