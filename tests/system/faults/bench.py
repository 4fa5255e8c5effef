"""A small real federation to break: a coordinator, three sites and three aggregators, each a process of its own.

Records are made up and no noise is added, so a run is a function of its study: after any fault, the state of each
committed round must be, byte for byte, that of an undisturbed run.
"""

import json
import os
import secrets
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import psutil
import psycopg

from confide.client_node.enrolment import Enrolment
from confide.client_node.study.terms import load_draft
from confide.coordinator.demo.processes import DemoFederation
from confide.machine import free_ports
from confide.models.backbones.family import BackboneConfig
from confide.models.backbones.pretraining import PretrainingConfig, pretrain

from ..conftest import MARK, PARTIES, ROUNDS, SITES, STUDY_TOML, private_study, site_toml
from ..postgresql import Cluster
from .proxy import Link

THREE = SITES[:3]
SITE, PARTY = "south", "agg-b"  # those that faults happen to
WORKED_SITE = "east"  # computes in a worker process of its own
STUCK_S = 180.0
APPROVED_RUNS = 99

# Kinds of processes, and what is found in their command lines.
SUPERLINK, WORKER, PARTY_CHILD, TRAINER = (
    "confide.coordinator.fleet.superlink_process", "confide.coordinator.run.worker", "confide.mpc.party.process",
    "confide.client_node.training.worker_process",
)  # fmt: skip


UNREADABLE = (sqlite3.Error, psycopg.Error)  # a database that is away, damaged or being recovered


class Stuck(Exception):
    """Nothing moved for too long."""


class Missed(Exception):
    """A fault could not be made: its moment was not seen, or what it happens to was not there."""


class Bench:
    """The federation, its reference run and the run that is disturbed; `found` makes it, `close` ends it."""

    def __init__(
        self,
        folder: Path,
        *,
        rounds: int,
        is_private: bool = False,
        has_trainer: bool = False,
        server: Cluster | None = None,
    ) -> None:
        """Starts nothing yet; with a `server` the coordinator keeps its records in a database there."""
        self.folder, self.rounds, self.server = folder, rounds, server
        self.is_private, self._has_trainer = is_private, has_trainer
        self.federation = DemoFederation(folder / "run", THREE, PARTIES)
        self.home = self.federation.home
        self.party_link: Link | None = None  # by which the other aggregators reach the one that faults happen to
        self.mark = secrets.token_hex(8)
        self._url = ""
        self.reference: dict[int, str] = {}  # round -> hash of the state, of the undisturbed run
        self.run = ""

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the sites."""
        return self.federation.sites

    @classmethod
    def of(cls, federation: DemoFederation, run: str, reference: str) -> "Bench":
        """A federation that stands already; `reference` is a run in it that nobody disturbed."""
        bench = cls(federation.folder, rounds=0)
        bench.mark = os.environ[MARK]
        bench.federation, bench.home, bench.run = federation, federation.home, run
        bench.reference = bench.states(reference)
        bench.rounds = len(bench.reference)
        return bench

    def found(self) -> None:
        """Makes the federation and starts its processes."""
        os.environ[MARK] = self.mark
        self.folder.mkdir(parents=True, exist_ok=True)
        study_toml = self.folder / "study.toml"
        study_toml.write_text(self._study())
        schema = load_draft(study_toml).record_schema()
        config = PretrainingConfig(steps=3, batch=16, questions=4, moment_records=64)
        pretrain(schema, self.folder / "backbone", backbone=BackboneConfig(hidden=32, experts=4), config=config)
        policies = {site: site_toml(self.folder, site) for site in THREE}
        if self._has_trainer:
            policies[WORKED_SITE] += "workers = 1\n"
        (port,) = free_ports(1)
        policies[PARTY] = f'[party]\nlisten = "127.0.0.1:{port}"\n'
        runs, database = 1 if self.is_private else APPROVED_RUNS, list[str]()
        if self.server is not None:
            self._url = self.server.url(is_empty=True).set(drivername="postgresql").render_as_string()
            database = ["--database", self._url]
        self.federation.found("tiny", policies, study_toml, unprotected=not self.is_private, runs=runs, init=database)
        address = str(Enrolment.load(self.node(PARTY)).party_address)
        self.party_link = Link(port=int(address.rpartition(":")[2]), target=port)
        self.federation.bring_up()

    def _study(self) -> str:
        if self.is_private:
            noise = {"noise_multiplier = 20.0": "noise_multiplier = 400.0", "rounds = 2\n": f"rounds = {self.rounds}\n"}
            return _changed(private_study(THREE, {}), noise)
        changes = {"min_sites = 4": "min_sites = 3", f"rounds = {ROUNDS}\n": f"rounds = {self.rounds}\n"}
        return _changed(STUDY_TOML, {json.dumps(SITES): json.dumps(THREE), **changes})

    def close(self) -> None:
        """Ends every process."""
        self.federation.shut_down()
        if self.party_link is not None:
            self.party_link.end()
        os.environ.pop(MARK, None)

    def start_run(self) -> str:
        """Starts the run that is disturbed from now on."""
        self.run = self.federation.operator("run", "start", "tiny", "--again").strip()
        return self.run

    def run_undisturbed(self, seconds: float, while_waiting: Callable[[int], object] = lambda _: None) -> str:
        """Runs the study once, and keeps its states as the reference."""
        run = self.start_run()
        end = time.monotonic() + seconds
        while self.row()[0] != "done":
            while_waiting(self.committed())
            if time.monotonic() > end or self.row()[0] in ("failed", "stopped"):
                raise Stuck(f"the undisturbed run: {self.row()}")
            time.sleep(0.1)
        self.reference = self.states(run)
        return run

    def ensure_run(self, *, needs: int = 8) -> None:
        """Goes on with the run of now if it has that many rounds left, else abandons it and starts another."""
        if self.run and self.row()[0] == "running" and self.committed() + needs <= self.rounds:
            return
        if self.run and self.row()[0] in ("running", "pending", "failed", "stopped", "stopping"):
            self.federation.operator("run", "abandon", self.run, "--yes")
        self.start_run()
        self.wait(lambda: self.committed() >= 1, "the first round of a new run")

    def row(self) -> tuple[str, str, str]:
        """State, step and error of the run."""
        found = self.query("select state, step, coalesce(error, '') from run where id = ?", self.run)
        return found[0] if found else ("unknown", "", "")

    def committed(self) -> int:
        """Number of the last committed round."""
        return int(self.query("select coalesce(max(number), 0) from round where run = ?", self.run)[0][0])

    def wait_rounds(self, count: int) -> None:
        """Waits for so many more commits. Raises `Stuck`."""
        last = self.committed() + count
        self.wait(lambda: self.committed() >= last, f"round {last}", 20.0 * count + STUCK_S)

    def states(self, run: str) -> dict[int, str]:
        """Hash of the state after each committed round."""
        return dict(self.query("select number, state_hash from round where run = ?", run))

    def query(self, words: str, *values: object, database: Path | None = None) -> list[tuple]:
        """Reads the coordinator's database, or a file, as it is at this moment; nothing is held afterwards."""
        if self._url and database is None:
            with psycopg.connect(self._url, connect_timeout=20) as server:
                return server.execute(words.replace("?", "%s"), values).fetchall()
        path = database or self.home / "coordinator.db"
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=20)) as connection:
            return connection.execute(words, values).fetchall()

    def wait(self, claim: Callable[[], bool], what: str, seconds: float = STUCK_S) -> float:
        """Waits until a claim is true; returns the seconds that it took. Raises `Stuck`."""
        start = time.monotonic()
        while True:
            with_trouble = None
            try:
                if claim():
                    return time.monotonic() - start
            except UNREADABLE as err:
                with_trouble = err
            if time.monotonic() - start > seconds:
                raise Stuck(f"{what}: not within {seconds:.0f} s; the run is {self._told()}") from with_trouble
            time.sleep(0.02)

    def _told(self) -> str:
        try:
            return " | ".join(self.row())
        except UNREADABLE as err:
            return f"unknown ({err})"

    def pid(self, kind: str) -> int | None:
        """Process id of the one process of a kind that faults happen to; None if there is none now."""
        if kind in ("coordinator", SITE, PARTY):
            return self.federation.pid(kind)
        if kind == "driver":
            return self._below(self._below(self.federation.pid("coordinator"), WORKER), WORKER)
        owner = {SUPERLINK: "coordinator", WORKER: "coordinator", PARTY_CHILD: PARTY, TRAINER: WORKED_SITE}[kind]
        return self._below(self.federation.pid(owner), kind)

    def _below(self, parent: int | None, kind: str) -> int | None:
        try:
            children = [] if parent is None else psutil.Process(parent).children()
            return next((child.pid for child in children if kind in " ".join(child.cmdline())), None)
        except psutil.Error:  # ended meanwhile
            return None

    def restart(self, name: str) -> None:
        """Starts a process that was killed; `coordinator` is one of the names."""
        if name == "coordinator":
            self.federation.start_coordinator()
        else:
            self.federation.start_node(name)

    def processes(self) -> list[psutil.Process]:
        """All processes of this federation, by the mark in their environment, this one not."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.pid != os.getpid() and process.environ().get(MARK) == self.mark:
                    found.append(process)
            except psutil.Error:  # ended meanwhile, or another user's
                continue
        return found

    def node(self, name: str) -> Path:
        """Home of a node."""
        return self.federation.node_home(name)

    @property
    def run_folder(self) -> Path:
        """The coordinator's folder of the run."""
        return self.home / "runs" / self.run

    def mend(self) -> None:
        """Brings up whatever is not running, and resumes the run if it failed; for the next fault."""
        for name in ("coordinator", *self.federation.nodes):
            if not self.federation.is_alive(name):
                self.federation.kill(name)
                self.restart(name)
        if self.row()[0] in ("failed", "stopped"):
            self.federation.operator("run", "resume", self.run)


def _changed(text: str, changes: dict[str, str]) -> str:
    for old, new in changes.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text
