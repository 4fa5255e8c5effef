"""Times rounds of many light sites, and counts what each process spends on a site and round.

    python benchmarks/many_sites.py [--sites 10 30 100] [--rank 2] [--rounds 4] [--skip 2] [--database URL]

Coordinator and aggregators are real. So are the sites but for their model: each has its home, keys, ledger, approvals
and outbox, speaks the real protocol, charges and seals, and takes every server step; in place of a model that trains it
has one that draws noise. Up to 50 of them share a process, each in a thread of its own. These processes give way to
those of coordinator and aggregators, which would have machines of their own.
"""

import argparse
import json
import logging
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import psutil

from confide.client_node.approval import peers
from confide.client_node.approval.charges import open_ledger
from confide.client_node.approval.confirmed_sites import fingerprint
from confide.client_node.approval.study_decisions import approve_study, fetch, propose
from confide.client_node.enrolment import Enrolment, NodeIdentity, enrol
from confide.client_node.enrolment.sessions import only_one
from confide.client_node.node import Node
from confide.client_node.policy import SitePolicy
from confide.client_node.study import PlannedRound, Study
from confide.client_node.training.warm_model import WarmModel
from confide.client_node.warm_node import WarmNode
from confide.coordinator.demo.processes import DemoFederation
from confide.coordinator.federation import Pki, Register, load_settings
from confide.coordinator.store import Store

AGGREGATORS = ("agg-a", "agg-b", "agg-c")
A_PROCESS = 50
START = "start.npy"
KINDS = {  # by what stands in a command line; the first that fits
    "Flower's SuperLink": "confide.coordinator.fleet.superlink_process", "driver": "confide.coordinator.run.worker",
    "party": "confide.mpc.party.process", "its shards": "confide.mpc.party.shard_process",
    "gate": "coordinator serve", "aggregator": "client-node run",
    "sites": "many_sites.py --serve",
}  # fmt: skip
STUDY = """
name = "many"
model = {backbone = "backbone"}
adapter = {rank = RANK, alpha = 2.0, targets = ["q_a_proj", "o_proj", "gate_proj", "experts", "gate"], seed = "public"}
data = {unit = "patient", label = "ill", max_tokens = 8, flags = ["fever"], numeric = {age = [20, 40, 60]}}
privacy = {mode = "distributed", noise_multiplier = 20.0, clip_norm = 0.5, sample_rate = 0.5, delta = 1e-5}
rounds = {rounds = 200, min_sites = COUNT, deadline_s = 1800, batch_units = 4000}
optimizer = {}
aggregation = {norm_check = CHECKED}
participants = {sites = SITES, aggregators = ["agg-a", "agg-b", "agg-c"]}
"""


class LightModel(WarmModel):
    """Draws a round's noise in place of a step; reads no record."""

    is_warm, starts_from = True, "tokens"

    def __init__(self, site: str, home: Path, start: np.ndarray) -> None:
        super().__init__(site, home)
        self._start, self._chance = start, np.random.default_rng()

    def load(self, study: Study, policy: SitePolicy) -> "LightModel":  # type: ignore[override]
        """Returns itself."""
        return self

    def start(self, study: Study, policy: SitePolicy) -> np.ndarray:
        """Returns the state of round 0, which was computed when the federation was founded."""
        return self._start

    def contribution(
        self, study: Study, policy: SitePolicy, planned: PlannedRound
    ) -> Callable[[np.ndarray], np.ndarray]:
        """Returns a function that draws this site's noise, from a float generator: no record is hidden by it."""
        noise = study.site_noise(planned)
        return lambda _: np.rint(self._chance.normal(0, noise, planned.dim)).astype(np.int64)


class Many(DemoFederation):
    """A federation whose sites share processes."""

    def start_node(self, node: str, *, page: str = "none") -> None:
        """Starts an aggregator, or the process of the sites among which this one is the first."""
        if node in self.aggregators:
            super().start_node(node, page=page)
        elif (place := self.sites.index(node)) % A_PROCESS == 0:
            names = self.sites[place : place + A_PROCESS]
            self._spawn(node, "python", __file__, "--serve", str(self.folder), *names)

    def client(self, node: str, *arguments: str) -> str:
        """Runs a command; a site's decision in this process, as a new one would take longer than all that it does."""
        if node not in self.sites:
            return super().client(node, *arguments)
        assert arguments[:2] == ("study", "approve")
        fetch(self.node_home(node))
        approve_study(self.node_home(node), propose(self.node_home(node), arguments[2], runs=1))
        return ""

    def _enrol(self, node: str, party_address: str | None) -> str:
        if node in self.aggregators:
            return super()._enrol(node, party_address)
        with closing(Store.open(self.home)) as store:
            code = Register(store, Pki.load(self.home)).invite(node, ("train",), load_settings(self.home).address)
        enrol(code, self.node_home(node))
        return fingerprint(NodeIdentity.load(self.node_home(node)).identity_hex)


@dataclass(frozen=True, slots=True)
class Spent:
    """Processor seconds and memory of all processes of a kind."""

    cpu_s: float
    memory: int


def found(folder: Path, count: int, asked: argparse.Namespace) -> Many:
    """Founds a federation of so many sites, and starts it."""
    from confide.client_node.replay.following import start_state
    from confide.client_node.study.terms import load_draft
    from confide.client_node.training.study_model import load_study_model
    from confide.models.backbones.family import BackboneConfig
    from confide.models.backbones.pretraining import PretrainingConfig, pretrain

    sites = tuple(f"site-{number:04}" for number in range(1, count + 1))
    text = STUDY.replace("COUNT", str(count)).replace("SITES", json.dumps(sites)).replace("RANK", str(asked.rank))
    (folder / "study.toml").write_text(text.replace("CHECKED", str(not asked.unchecked).lower()))
    draft = load_draft(folder / "study.toml")
    config = PretrainingConfig(steps=3, batch=16, questions=4, moment_records=64)
    pretrain(draft.record_schema(), folder / "backbone", backbone=BackboneConfig(hidden=32, experts=4), config=config)
    here = Many(folder / "run", sites, AGGREGATORS)
    here.folder.mkdir()
    np.save(here.folder / START, start_state(draft, load_study_model(draft, folder / "backbone").adapted.state()))
    try:
        init = ["--database", asked.database] if asked.database else []
        here.found("many", {site: policy(folder, site) for site in sites}, folder / "study.toml", init=init)
        here.bring_up()
    except BaseException:
        here.shut_down()
        raise
    return here


def policy(folder: Path, site: str) -> str:
    """Writes two records; returns the site.toml."""
    (folder / f"{site}.csv").write_text("patient_id,age,fever,ill\np1,30,t,1\np2,50,f,0\n")
    return f"""
data = {{path = "{folder / f"{site}.csv"}", name = "{site}", unit = "patient", unit_column = "patient_id"}}
budget = {{epsilon = 1000.0, delta = 1e-4}}
backbone = {{directory = "{folder / "backbone"}"}}
"""


def serve(folder: Path, names: Sequence[str]) -> None:
    """Serves some sites, each in a thread, until this process is told to end."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s %(message)s")
    os.nice(19)
    stop, start = threading.Event(), np.load(folder / START)
    # As many as all of them keep, each in a process of its own.
    peers._read = lru_cache(maxsize=4 * A_PROCESS)(peers._read.__wrapped__)  # type: ignore[attr-defined]
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    threads = [
        threading.Thread(target=be_site, args=(folder / "nodes" / name, start, stop), name=name) for name in names
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def be_site(home: Path, start: np.ndarray, stop: threading.Event) -> None:
    """Does what `client-node run` does, with a light model."""
    identity, enrolment = NodeIdentity.load(home), Enrolment.load(home)
    with only_one(home), closing(open_ledger(home, identity, enrolment)) as ledger:
        node = Node(home, identity, enrolment, ledger=ledger, model=LightModel(enrolment.name, home, start))
        WarmNode(identity, enrolment, node.handle).run(stop)


def spent(here: Many) -> Mapping[str, Spent]:
    """Adds up what all processes of the federation have spent so far, and hold now."""
    found = dict.fromkeys(KINDS, Spent(0.0, 0))
    for process in psutil.Process().children(recursive=True):
        words = " ".join(process.cmdline())
        kind = next((kind for kind, word in KINDS.items() if word in words), None)
        if kind is not None:
            times = process.cpu_times()
            before = found[kind]
            memory = before.memory + process.memory_info().rss
            found[kind] = Spent(before.cpu_s + times.user + times.system, memory)
    return found


def measure(count: int, asked: argparse.Namespace) -> dict[str, object]:
    """Runs some rounds of so many sites; returns figures a round, and processor time a site and round."""
    rounds, skip = asked.rounds, asked.skip
    with tempfile.TemporaryDirectory() as place:
        began = time.monotonic()
        here = found(Path(place), count, asked)
        try:
            founded = time.monotonic() - began
            run = here.operator("run", "start", "many").strip()
            with closing(Store.open(here.home)) as store:
                wait_for(here, store, run, skip)
                before, size, began = spent(here), store.size_bytes(), time.monotonic()
                wait_for(here, store, run, skip + rounds)
                took, after = time.monotonic() - began, spent(here)
                grown, rows = store.size_bytes() - size, store.rounds(run)[-rounds:]
                numbers = len(np.load(here.folder / START))
        finally:
            here.shut_down()
    each = {kind: (after[kind].cpu_s - before[kind].cpu_s) / rounds for kind in KINDS}
    return {
        "sites": count, "numbers": numbers, "skipped": skip, "checked": not asked.unchecked,
        "founded_s": founded, "round_s": took / rounds,
        "cpu_ms_a_site": {kind: 1000 * seconds / count for kind, seconds in each.items()},
        "memory_mib": {kind: after[kind].memory / 2**20 for kind in KINDS},
        "database_kib": grown / rounds / 1024, "kib_a_site": max(row.bytes_per_site for row in rows) / 1024,
    }  # fmt: skip


def wait_for(here: Many, store: Store, run: str, number: int) -> None:
    """Waits for a round's commit."""
    while store.last_round(run).number < number:
        here.check()
        row = store.run(run)
        if row.state in ("failed", "stopped"):
            raise RuntimeError(f"run {run}: {row.error}")
        time.sleep(0.05)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--serve", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--sites", type=int, nargs="+", default=[10, 30, 100])
    parser.add_argument("--rank", type=int, default=2, help="of the adapters, from which the update's length follows")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--skip", type=int, default=2, help="rounds before the measured ones")
    parser.add_argument("--database", default="", help="URL of an empty PostgreSQL database; SQLite without it")
    parser.add_argument("--unchecked", action="store_true", help="norms are not checked")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    if asked.serve:
        serve(Path(asked.serve[0]), asked.serve[1:])
        return
    rows = []
    for count in asked.sites:
        rows.append(measure(count, asked))
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    if asked.json:
        print(json.dumps(rows))
        return
    print(
        "| sites | numbers | s a round | " + " | ".join(f"{kind}, CPU ms a site" for kind in KINDS) + " | KiB a site |"
    )
    print("|---" * (len(KINDS) + 4) + "|")
    for row in rows:
        costs = " | ".join(f"{ms:.1f}" for ms in row["cpu_ms_a_site"].values())
        print(f"| {row['sites']} | {row['numbers']} | {row['round_s']:.2f} | {costs} | {row['kib_a_site']:.1f} |")


if __name__ == "__main__":
    main()
