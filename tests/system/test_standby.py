"""Two `coordinator serve` of one federation over PostgreSQL: one drives, and one takes over when it is killed."""

import json
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from confide.coordinator.demo.processes import environment

from .conftest import wait_for
from .faults import checks
from .faults.bench import Bench
from .postgresql import server

pytestmark = [pytest.mark.process, pytest.mark.slow]
ROUNDS = 6


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with server() as database:
        made = Bench(tmp_path_factory.mktemp("standby"), rounds=ROUNDS, server=database)
        try:
            made.found()
            yield made
        finally:
            made.close()


class Standby:
    """A server that stands by, with the options of the leader."""

    def __init__(self, bench: Bench, name: str) -> None:
        self._bench, self.log = bench, Path(bench.folder / f"{name}.log")
        words = bench.federation.words(
            "coordinator", ["serve", "--home", str(bench.home), "--page", "none", "--standby", "--monitor", "0"]
        )
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stderr=log, env=environment())
        wait_for(lambda: "stands by" in self.log.read_text(), "the standby's first word")

    def leads(self) -> bool:
        """True if it serves by now."""
        assert self.process.poll() is None, self.log.read_text()[-3000:]
        return "this server does" in self.log.read_text()

    def end(self, number: signal.Signals) -> None:
        """Ends it, with all that it started."""
        self.process.send_signal(number)
        self.process.wait(60)


def standing_by(bench: Bench) -> list[str]:
    found: list[str] = json.loads(bench.federation.operator("status", "--json"))["standbys"]
    return found


def problems(bench: Bench) -> list[str]:
    """What `checks` finds, but for this: that two processes serve, one of which only waits."""
    return [each for each in checks.look(bench, is_over=True) if "coordinator serve" not in each]


def test_a_run_goes_on_under_the_server_that_stood_by_when_the_leader_is_killed(bench):
    bench.run_undisturbed(300)
    first = Standby(bench, "first")
    try:
        wait_for(lambda: standing_by(bench) == [socket.gethostname()], "a server that stands by")
        bench.start_run()
        bench.wait(lambda: bench.committed() >= 2, "the second round")
        before = bench.committed()
        bench.federation.kill("coordinator")
        taken = bench.wait(first.leads, "another leader")
        seconds = taken + bench.wait(lambda: bench.committed() > before, "a round under the new leader")
        print(f"took over after {taken:.1f} s; the next round was committed {seconds:.1f} s after the kill")
        second = Standby(bench, "second")
        bench.wait(lambda: bench.row()[0] == "done", "the end of the run", seconds=300)
        assert problems(bench) == []
        assert bench.states(bench.run) == bench.reference

        bench.start_run()
        bench.wait(lambda: bench.committed() >= 1, "a first round")
        first.end(signal.SIGTERM)
        bench.wait(second.leads, "a third leader")
        assert standing_by(bench) == []
        bench.wait(lambda: bench.row()[0] == "done", "the end of the run", seconds=300)
        assert problems(bench) == []
        assert bench.states(bench.run) == bench.reference
        second.end(signal.SIGTERM)
        assert second.process.returncode == 0
    finally:
        for each in (first.process, *([second.process] if "second" in locals() else [])):
            each.kill()
            each.wait()
