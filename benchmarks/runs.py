"""Disturbs a real federation, and tells whether each run ends as if nobody had: starts, several runs, pauses, kills.

Coordinator, three sites and three aggregators are processes of their own, on made-up public records and a tiny model;
studies have no privacy, so that a disturbed run can be compared bit for bit. What is tried:

- start: seconds from `run start` to the first committed round, beside as many busy processes as `--load` says
- together: two studies at once, over one after the other
- paused: five runs of three studies at once, drivers halted for two seconds at random
- killed: kill -9 at random moments of each kind of process, seconds to the next committed round

    python benchmarks/runs.py [start] [together] [paused] [killed] [--load 0] [--kills 10] [--folder DIR] [--json]
"""

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

from confide.client_node.enrolment import NodeIdentity
from confide.client_node.study.terms import load_draft
from confide.coordinator.demo.processes import DemoFederation
from confide.coordinator.store import LedgerReplica, Store
from confide.models.backbones.family import BackboneConfig
from confide.models.backbones.pretraining import PretrainingConfig, pretrain
from confide.privacy.ledger.ledger import Ledger

SITES, PARTIES = ("north", "south", "west"), ("agg-a", "agg-b", "agg-c")
STUDIES = ("alpha", "beta", "gamma")
ROUNDS = 6
RUNS = 90  # that every node approves of each study
STUDY = """
name = "{name}"
[model]
backbone = "backbone"
[adapter]
rank = 2
alpha = 2.0
targets = ["q_a_proj", "o_proj", "experts"]
seed = "{name}"
[data]
label = "ill"
unit = "patient"
max_tokens = 8
flags = ["fever"]
[data.numeric]
age = [20.0, 40.0, 60.0]
[privacy]
mode = "none"
clip_norm = 0.5
sample_rate = 0.5
collusion = 0
[rounds]
rounds = {rounds}
min_sites = 3
deadline_s = 15
batch_units = 40
[optimizer]
lr = 1.0
head_lr = 5.0
[participants]
sites = {sites}
aggregators = {parties}
"""


class Trial:
    """A federation with three approved studies, and what is asked of it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.federation = folder, DemoFederation(folder / "run", SITES, PARTIES)
        self.hashes: dict[str, str] = {}
        self.undisturbed: dict[str, str] = {}  # study -> hash of the state after its last round

    def found(self) -> None:
        drafts = {name: self._draft(name) for name in STUDIES}
        config = PretrainingConfig(steps=3, batch=16, questions=4, moment_records=64)
        schema = load_draft(drafts["alpha"]).record_schema()
        pretrain(schema, self.folder / "backbone", backbone=BackboneConfig(hidden=32, experts=4), config=config)
        policies = {site: self._policy(site) for site in SITES}
        made = self.federation
        self.hashes["alpha"] = made.found("trial", policies, drafts["alpha"], unprotected=True, runs=RUNS)
        for name in STUDIES[1:]:
            self.hashes[name] = json.loads(made.operator("study", "create", str(drafts[name]), "--accept", "--json"))[
                "hash"
            ]
            for node in made.nodes:
                consent = ("--yes", "--runs", str(RUNS), "--unprotected")
                made.client(node, "study", "approve", self.hashes[name], *consent)
        made.bring_up()

    def _draft(self, name: str) -> Path:
        path = self.folder / f"{name}.toml"
        lists = {"sites": json.dumps(SITES), "parties": json.dumps(PARTIES)}
        path.write_text(STUDY.format(name=name, rounds=ROUNDS, **lists))
        return path

    def _policy(self, site: str) -> str:
        rng, table = random.Random(site), self.folder / f"{site}.csv"
        rows = [f"p{row},{rng.randrange(90)},{'tf'[rng.random() < 0.6]},{int(rng.random() < 0.3)}" for row in range(40)]
        table.write_text("\n".join(["patient_id,age,fever,ill", *rows]) + "\n")
        return (
            f'[data]\npath = "{table}"\nname = "{site}"\nunit = "patient"\nunit_column = "patient_id"\n'
            "[budget]\nepsilon = 1.0\ndelta = 1e-5\n"
            f'[backbone]\ndirectory = "{self.folder / "backbone"}"\n[limits]\nthreads = 1\nwarm_studies = 3\n'
        )

    def start(self, study: str) -> str:
        return self.federation.operator("run", "start", self.hashes[study], "--again").strip()

    def rounds(self, run: str) -> int:
        with opened(self.federation) as store:
            return store.last_round(run).number

    def state(self, run: str) -> str:
        with opened(self.federation) as store:
            row = store.run(run)
            if row.state in ("failed", "stopped"):
                raise SystemExit(f"{run} is {row.state}: {row.error}")
            return row.state

    def finish(self, runs: Sequence[str], *, between: Callable[[], None] = lambda: None) -> float:
        """Waits until all runs are done; returns the seconds."""
        began = time.monotonic()
        while any(self.state(run) != "done" for run in runs):
            between()
            time.sleep(0.1)
            if time.monotonic() - began > 1800:
                raise SystemExit(f"not done in half an hour: {[run for run in runs if self.state(run) != 'done']}")
        return time.monotonic() - began

    def learn(self) -> None:
        """Runs each study once, undisturbed."""
        for study in STUDIES:
            run = self.start(study)
            self.finish([run])
            self.undisturbed[study] = self.final(run)

    def final(self, run: str) -> str:
        with opened(self.federation) as store:
            last = store.last_round(run)
            assert last.number == ROUNDS, last
            return last.state_hash or ""

    def check(self, runs: Sequence[str]) -> None:
        """Fails unless adapters are those of undisturbed runs, and each site charged and settled each round once."""
        for run in runs:
            assert self.final(run) == self.undisturbed[run.rpartition("-")[0]], f"{run} came to another adapter"
        with opened(self.federation) as store:
            replica = LedgerReplica(store)
            for site in SITES:
                home = self.federation.node_home(site)
                with Ledger.open(home / "ledger.db", NodeIdentity.load(home).signer, site) as ledger:
                    own = ledger.entries()
                copy = replica.entries(site)
                assert own[: len(copy)] == copy, f"the replica of {site} is not its ledger"
                for run in runs:
                    for kind in ("reserve", "settle"):
                        numbers = [
                            entry.body["round"] for entry in own if entry.kind == kind and entry.body["run"] == run
                        ]
                        assert sorted(numbers) == list(range(1, ROUNDS + 1)), (site, run, kind, numbers)

    def process(self, kind: str) -> psutil.Process | None:
        """One process of a kind; None if there is none at this moment."""
        if kind in ("serve", "site", "aggregator"):
            return psutil.Process(
                self.federation.pid({"serve": "coordinator", "site": "south", "aggregator": "agg-b"}[kind])
            )
        children = psutil.Process(self.federation.pid("coordinator")).children()
        worker = next((each for each in children if "run.worker" in " ".join(each.cmdline())), None)
        if kind == "worker":
            return worker
        if kind == "superlink":
            return next((each for each in children if "flower-superlink" in " ".join(each.cmdline())), None)
        if kind == "party":
            return next(iter(psutil.Process(self.federation.pid("agg-b")).children()), None)
        drivers = [] if worker is None else worker.children()
        return random.choice(drivers) if drivers else None

    def kill(self, kind: str) -> bool:
        with_process = self.process(kind)
        if with_process is None:
            return False
        names = {"serve": "coordinator", "site": "south", "aggregator": "agg-b"}
        if kind in names:
            self.federation.kill(names[kind])
            time.sleep(0.3)
            if kind == "serve":
                self.federation.start_coordinator()
            else:
                self.federation.start_node(names[kind])
        else:
            with_process.kill()
        return True


@contextmanager
def opened(federation: DemoFederation) -> Iterator[Store]:
    store = Store.open(federation.home)
    try:
        yield store
    finally:
        store.close()


@contextmanager
def load(count: int) -> Iterator[None]:
    """Keeps as many processes busy as `count` says."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        if busy:
            time.sleep(10)
        yield
    finally:
        for each in busy:
            each.kill()
            each.wait()


def first_round(trial: Trial) -> dict[str, float]:
    """Seconds from `run start` to the first beat of a driver, and to the first committed round."""
    asked = time.monotonic()
    run = trial.start("alpha")
    row = time.monotonic()
    while True:
        with opened(trial.federation) as store:
            if store.run(run).state == "running":
                break
        time.sleep(0.05)
    driven = time.monotonic()
    while trial.rounds(run) < 1:
        time.sleep(0.05)
    found = {"command": row - asked, "driver": driven - row, "first round": time.monotonic() - row}
    trial.finish([run])
    trial.check([run])
    return found


def together(trial: Trial) -> dict[str, float]:
    """Seconds of two studies at once, and one after the other."""
    apart = sum(trial.finish([trial.start(study)]) for study in ("alpha", "beta"))
    runs = [trial.start(study) for study in ("alpha", "beta")]
    at_once = trial.finish(runs)
    trial.check(runs)
    return {"one after the other": apart, "at once": at_once, "ratio": at_once / apart}


def paused(trial: Trial) -> dict[str, float]:
    """Five runs of three studies at once, while drivers are halted for two seconds, one after the other."""
    runs = [trial.start(study) for study in (*STUDIES, "alpha", "beta")]
    pauses = 0

    def pause() -> None:
        nonlocal pauses
        driver = trial.process("driver")
        if driver is not None:
            try:
                driver.send_signal(signal.SIGSTOP)
                time.sleep(2)
                driver.send_signal(signal.SIGCONT)
                pauses += 1
            except psutil.NoSuchProcess:
                return
        time.sleep(random.uniform(0.2, 1.0))

    seconds = trial.finish(runs, between=pause)
    trial.check(runs)
    return {"runs": len(runs), "pauses": pauses, "seconds": seconds}


def killed(trial: Trial, kills: int) -> dict[str, dict[str, float]]:
    """Kills each kind of process at random moments of runs of three studies; seconds to the next commit of any."""
    found = {}
    for kind in ("driver", "worker", "superlink", "serve", "site", "aggregator", "party"):
        seconds: list[float] = []
        while len(seconds) < kills:
            runs = [trial.start(study) for study in STUDIES]
            while len(seconds) < kills and any(trial.state(run) != "done" for run in runs):
                time.sleep(random.uniform(0.5, 4.0))
                before = sum(map(trial.rounds, runs))
                if before >= ROUNDS * len(runs) - 1 or not trial.kill(kind):
                    break
                began = time.monotonic()
                while sum(map(trial.rounds, runs)) == before and time.monotonic() - began < 300:
                    time.sleep(0.05)
                seconds.append(time.monotonic() - began)
            trial.finish(runs)
            trial.check(runs)
        found[kind] = {"median": statistics.median(seconds), "most": max(seconds), "points": len(seconds)}
        print(kind, found[kind], file=sys.stderr, flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", help="start, together, paused, killed; all if nothing is named")
    parser.add_argument("--load", type=int, default=0, help="busy processes beside the federation")
    parser.add_argument("--kills", type=int, default=10, help="kills of each kind of process")
    parser.add_argument("--folder", type=Path, help="keep the federation and its logs there")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    asked = parser.parse_args()
    trials = {"start": first_round, "together": together, "paused": paused, "killed": lambda t: killed(t, asked.kills)}
    with tempfile.TemporaryDirectory(prefix="confide-runs-") as scratch:
        trial = Trial(asked.folder or Path(scratch))
        trial.folder.mkdir(parents=True, exist_ok=True)
        try:
            trial.found()
            trial.learn()
            found: dict[str, object] = {}
            with load(asked.load):
                for what in asked.what or trials:
                    found[what] = trials[what](trial)
                    print(
                        f"{what}: {found[what]}  (load average {os.getloadavg()[0]:.0f})", file=sys.stderr, flush=True
                    )
        finally:
            trial.federation.shut_down()
    if asked.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
