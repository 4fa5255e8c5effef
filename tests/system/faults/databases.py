"""A PostgreSQL server that ends, stays away or drops its connections, under a coordinator with its records there."""

import time
from collections.abc import Callable
from dataclasses import replace

from .attempts import after, attempt
from .bench import Bench
from .outcomes import Outcome, Outcomes
from .points import BY_NAME, reach

AWAY_S = 15.0
_POINTS = (
    "sites are asked", "charge in the replica", "all answers at the coordinator", "total at the coordinator",
    "state at the coordinator", "round committed",
)  # fmt: skip
_END_CONNECTIONS = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"


def trouble_server(bench: Bench, outcomes: Outcomes) -> None:
    """Troubles the server in each way at points of a round where the coordinator writes."""
    server = bench.server
    assert server is not None

    def stay_away() -> None:
        server.stop()
        time.sleep(AWAY_S)
        server.start()

    troubles: dict[str, Callable[[], None]] = {
        "ended at once, started again": server.restart,
        f"away for {AWAY_S:.0f} s": stay_away,
        "connections ended": lambda: server.do(_END_CONNECTIONS),
    }
    for name, make in troubles.items():
        for point in _POINTS:
            planned = Outcome(group="database", fault=name, target="PostgreSQL", point=point)
            attempt(bench, outcomes, planned, lambda planned, make=make: _trouble(bench, planned, make))


def _trouble(bench: Bench, planned: Outcome, make: Callable[[], None]) -> Outcome:
    reach(bench, BY_NAME[planned.point])
    at = bench.committed()
    make()
    start, before = time.monotonic(), bench.committed()
    return after(bench, replace(planned, figures={"rounds meanwhile": before - at}), start, before)
