"""Federations in the states that the operator's page must show, as rows in a store: no node runs, and no driver."""

import hashlib
import json
import shutil
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

from confide import __version__
from confide.client_node.web.entering import make_link
from confide.coordinator.federation.home import Settings, create_home
from confide.coordinator.federation.pki import Pki
from confide.coordinator.federation.serving import SeenNode, Serving, note_serving, only_server
from confide.coordinator.oversight import operators
from confide.coordinator.page.app import PageApp
from confide.coordinator.routing import kept
from confide.coordinator.routing.kept import KeptRouting
from confide.coordinator.store.ledger_replica import LedgerReplica
from confide.coordinator.store.run_folder import RunFolder
from confide.coordinator.store.store import Store
from confide.coordinator.store.tables import Absence, DecisionRow, Evaluation, LeftOut, NodeRow, Round, Run
from confide.coordinator.studies.catalogue import load_study
from confide.coordinator.studies.create import create_study
from confide.models.evaluation.layer_routing import LayerRouting

from ..client_node.conftest import EVALUATION, STUDY_TOML, certificate_of, changed, identity_of
from ..coordinator.conftest import PARTIES, SITES, enrolled_nodes
from ..privacy.ledgers import eventful_ledger
from .serving import Served

PEOPLE = {"admin": "anna", "operator": "oscar", "viewer": "vera"}
HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)> \x1b[31mred\x07 \u202etxet \"'&" + "unbroken-" * 60
LARGE_SITES = tuple(
    f"clinic-{number:03}" + "-department-of-endocrinology-of-the-northern-region-hospital"[: 53 if number % 4 else 0]
    for number in range(100)
)
LARGE_PARTIES = tuple(f"aggregator-{name}-{'of-the-ministry-of-health-of-the-state'}" for name in ("a", "b", "c"))
LARGE_ROUNDS = 1000
WHYS = get_args(Absence)
BEFORE = 2  # rounds of each run that an earlier version has committed
_BEAT_S = 2.0


@dataclass(slots=True, kw_only=True)
class Federation(Served):
    """The operator's page; `names` has under a role's name the token of its operator."""

    home: Path
    store: Store

    def link(self, who: str = "") -> str:
        """The address that lets somebody in once: an operator by the role, "" for the home's account."""
        operator = operators.named(self.store, PEOPLE[who]) if who else None
        secret = make_link(self.home, *(() if operator is None else (operator.name, operator.token_hash)) or (None,))
        return f"{self.address}/enter?link={secret}"

    def commit(self, count: int, *, run: str = "", sites: Sequence[str] = SITES, seconds: float = 3.2) -> None:
        """Commits rounds behind those that are there, as a driver did."""
        run = run or self.names["run"]
        first, now = self.store.last_round(run).number + 1, time.time()
        with self.store.session() as session:
            for number in range(first, first + count):
                at = now - (first + count - 1 - number) * seconds
                session.add(a_round(run, number, sites, seconds, at))


def a_round(run: str, number: int, sites: Sequence[str], seconds: float, at: float) -> Round:
    """A committed round with as much evidence as aggregators sign; with its steps, but of an earlier version."""
    parts = {"collect": 0.68, "topup": 0.02, "deliver": 0.04, "wait": 0.05, "sum": 0.2, "open": 0.01, "apply": 0.03}
    steps = {f"{step}_s": seconds * part for step, part in parts.items() if number > BEFORE}
    evidence = json.dumps([json.dumps({"sites": sites, "signature": "e" * 2000})] * 3)
    return Round(
        run=run, number=number, sites=json.dumps(sites), evidence=evidence, state_hash=f"{number:064x}",
        seconds=seconds, bytes_per_site=1_240_000, lease=1, committed_at=at, **steps,
    )  # fmt: skip


def found(home: Path, name: str) -> None:
    """Makes the home of a federation, as `coordinator init` does."""
    create_home(home, Settings(
        federation=name, address="fed.example:9443", listen="127.0.0.1", port=9443, superlink_port=9444,
    ))  # fmt: skip


def fill_four(home: Path, backbone: Path) -> str:
    """Enrols four sites and three aggregators with a study and ledgers; returns the study's hash."""
    with _open(home) as store:
        with store.session() as session:
            session.add_all(enrolled_nodes())
            session.add(NodeRow(name="south", roles="train", invite_digest="0" * 64, invite_expires=time.time() + 9e5))
        for seed, site in enumerate(SITES[:3], 1):
            ledger = eventful_ledger(site, seed, rounds=12)
            LedgerReplica(store).extend(site, ledger.public_key, ledger.entries)
        return _study(home, store, backbone, EVALUATION)


def fill_large(home: Path, backbone: Path) -> dict[str, str]:
    """Enrols a hundred sites, and commits a thousand rounds, in some of which sites are missing."""
    with _open(home) as store:
        with store.session() as session:
            session.add_all(
                NodeRow(name=name, roles="train", identity=identity_of(_short(name)), enrolled_at=0.5)
                for name in LARGE_SITES
            )
            session.add_all(
                NodeRow(
                    name=name, roles="aggregate", identity=identity_of(_short(name)), enrolled_at=0.5,
                    party_address=f"{name}.example:7000", party_certificate=certificate_of(_short(name)),
                )
                for name in LARGE_PARTIES
            )  # fmt: skip
        for seed, site in enumerate(LARGE_SITES, 1):
            ledger = eventful_ledger(site, seed, rounds=2)
            LedgerReplica(store).extend(site, ledger.public_key, ledger.entries)
        study = _study(
            home, store, backbone,
            ("rounds = 40", f"rounds = {LARGE_ROUNDS + 200}"), ("max_dropouts = 0", "max_dropouts = 9"),
            (json.dumps(SITES), json.dumps(LARGE_SITES)), (json.dumps(PARTIES), json.dumps(LARGE_PARTIES)),
        )  # fmt: skip
        next_study = _study(
            home, store, backbone, ('name = "thyroid"', 'name = "thyroid-next"'),
            (json.dumps(SITES), json.dumps(LARGE_SITES)), (json.dumps(PARTIES), json.dumps(LARGE_PARTIES)),
        )  # fmt: skip
        with store.session() as session:
            session.add(Run(
                id="thyroid-large", study=study, state="running", created_at=time.time() - 7200, lease=1,
                heartbeat=time.time(), step=f"round {LARGE_ROUNDS + 1}: 97 of 100 sites",
            ))  # fmt: skip
            session.flush()
            decided = ("approved", "approved", "approved", "revoked")
            for place, site in enumerate((*LARGE_SITES[:60], *LARGE_PARTIES)):
                session.add_all(
                    DecisionRow(
                        site=site, study=each, verdict=decided[place % 4], runs_left=place % 4 and place % 3,
                        until=("2020-06-30", None, "2099-12-31")[place % 3], since=1.79e9 + 9e3 * place,
                    )
                    for each in (study, next_study)
                )  # fmt: skip
            for number in range(1, LARGE_ROUNDS + 1):
                missing = {number % 100, number % 31, number % 17} if number % 5 == 0 else set()
                sites = [name for place, name in enumerate(LARGE_SITES) if place not in missing]
                session.add_all(
                    LeftOut(run="thyroid-large", round=number, site=LARGE_SITES[place], why=WHYS[place % len(WHYS)])
                    for place in missing
                )
                seconds = 5 + number % 7 / 4 + 9 * (number % 211 == 0)
                session.add(a_round("thyroid-large", number, sites, seconds, time.time() - 7 * (LARGE_ROUNDS - number)))
            for number in range(40):
                session.add(Run(
                    id=f"thyroid-{number:08x}", study=study, state=("abandoned", "failed", "stopped")[number % 3],
                    created_at=1.79e9 + 8e4 * number, ended_at=1.79e9 + 8e4 * number + 3e3,
                    error=f"aggregator {LARGE_PARTIES[0]} does not answer for 120 s",
                ))  # fmt: skip
    return {"run": "thyroid-large", "study": study, "site": LARGE_SITES[1], "other": f"thyroid-{7:08x}"}


def a_map(state_hash: str, backbone: str) -> KeptRouting:
    """A heat map of as many experts as large models have; training leaves some alone that were chosen before."""
    before, after = (
        [
            LayerRouting(layer, sum(row) // 8, tuple(row), tuple(count / sum(row) for count in row), 0.9)
            for layer, row in enumerate(rows, 1)
        ]
        for rows in (
            [[(expert * layer * 37) % 401 * 8 + 8 for expert in range(64)] for layer in range(1, 27)],
            [[((expert * layer * 37) % 401 * 8 + 8) * (expert % 13 != layer % 13) for expert in range(64)]
             for layer in range(1, 27)],
        )
    )  # fmt: skip
    rest = [sum(one.choices) - sum(other.choices) for one, other in zip(before, after, strict=True)]
    after = [
        replace(each, tokens=before[place].tokens, choices=(each.choices[0] + rest[place], *each.choices[1:]))
        for place, each in enumerate(after)
    ]
    read = "LICENSE.md of the backbone"
    return KeptRouting.of(before, after, adapter=state_hash, round=40, backbone=backbone, read=read)


def fill_runs(home: Path, study: str) -> dict[str, str]:
    """Adds three operators, and runs: done, failed with a hostile text, stopped, and one that goes on."""
    now = time.time()
    ids = {
        "run": "thyroid-2f6a9c01",
        "stopped": "thyroid-7d0b3344",
        "failed": "thyroid-9aa1f0e2",
        "done": "thyroid-1c44b7d8",
        "earlier": "thyroid-0b51e7a3",
    }
    rows = (
        Run(id=ids["done"], study=study, state="done", created_at=now - 4e5, ended_at=now - 3.9e5),
        Run(id=ids["failed"], study=study, state="failed", created_at=now - 2e5, ended_at=now - 1.9e5, error=HOSTILE),
        Run(id=ids["stopped"], study=study, state="stopped", created_at=now - 9e4, ended_at=now - 8e4),
        Run(
            id=ids["run"], study=study, state="running", created_at=now - 120, lease=1, heartbeat=now,
            step="round 13: waits for the updates of svhc, rest",
        ),
    )  # fmt: skip
    with _open(home) as store:
        with store.session() as session:
            session.add_all(rows)
            session.flush()
            for run, count in (("done", 40), ("failed", 3), ("stopped", 7), ("run", 12)):
                for number in range(1, count + 1):
                    sites = SITES[1:] if number % 9 == 4 else SITES
                    at = (now - 3.91e5 if run == "done" else now) - 3.5 * (count - number)
                    session.add(a_round(ids[run], number, sites, 3 + number % 4 / 3, at))
            session.add(LeftOut(run=ids["done"], round=4, site=SITES[0], why="long"))
            session.add(LeftOut(run=ids["run"], round=4, site=SITES[0], why="late"))
            for site, left, until in ((SITES[0], 2, "2099-12-31"), (SITES[1], 0, None), (PARTIES[0], 1, None)):
                session.add(
                    DecisionRow(
                        site=site, study=study, verdict="approved", runs_left=left, until=until, since=now - 9e5
                    )
                )
            counts = [float(max(0, 90 - 11 * place)) for place in range(10)] + [8.0 * place for place in range(10)]
            session.add(Evaluation(
                run=ids["done"], number=41, sites=json.dumps(SITES), evidence="[]", seconds=4.0, bytes_per_site=9000,
                lease=1, committed_at=now - 3.9e5, counts=json.dumps(counts),
            ))  # fmt: skip
            # The same study again, some days before: less ε was spent by then, and less was right.
            session.add(Run(id=ids["earlier"], study=study, state="done", created_at=now - 9e5, ended_at=now - 8.9e5))
            session.flush()
            for number in range(1, 41):
                session.add(a_round(ids["earlier"], number, SITES, 3.0, now - 8.9e5))
            counts = [float(max(0, 60 - 5 * place)) for place in range(10)] + [6.0 * place for place in range(10)]
            session.add(Evaluation(
                run=ids["earlier"], number=41, sites=json.dumps(SITES), evidence="[]", seconds=4.0, bytes_per_site=9000,
                lease=1, committed_at=now - 8.9e5, counts=json.dumps(counts),
            ))  # fmt: skip
        found = load_study(store.study(study))
        kept.write(home, ids["done"], a_map(store.last_round(ids["done"]).state_hash, found.backbone_hash))
        log = RunFolder(home, ids["failed"]).path / "driver.log"
        log.write_text("".join(f"2026-03-01T12:00:{n:02}Z INFO round {n}\n" for n in range(40)) + HOSTILE + "\n")
        tokens = {role: operators.add(store, name, role) for role, name in PEOPLE.items()}
    return ids | tokens | {"study": study, "site": SITES[0], "person": PEOPLE["operator"]}


@contextmanager
def served(home: Path, names: Mapping[str, str]) -> Iterator[Federation]:
    """Serves the page of a home on a free port, in a thread of its own; warm as its process is a few seconds on."""
    store = Store.open(home)
    page = PageApp(home, store, is_https=False)
    page.warm_up()
    here = Federation(home=home, store=store, app=page.app, names=dict(names))
    try:
        here.serve()
        known = sum(bool(store.ledger_length(node.name)) for node in store.nodes())
        while len(page._federation.ledgers.readable()) < known:
            time.sleep(0.05)
        yield here
    finally:
        here.stop()
        page.close()
        store.close()


@contextmanager
def coordinating(here: Federation, *, away: Sequence[str] = (), silent: Sequence[str] = ()) -> Iterator[None]:
    """Does to the home what `coordinator serve` and a driver do while they run: notes, and heartbeats.

    Args:
        away: nodes that were seen hours ago; the first of them never.
        silent: runs whose driver beats no more.
    """
    ended, names = threading.Event(), [node.name for node in here.store.nodes() if node.enrolled_at is not None]
    since = time.time() - 3 * 86_400

    def beat() -> None:
        now = time.time()
        nodes = {name: SeenNode(at=now - 2, version=__version__, protocol=3) for name in names if name not in away}
        nodes |= {name: SeenNode(at=now - 11_000, version="0.0.9", protocol=3) for name in away[1:]}
        note_serving(here.home, Serving(
            since=since, noted=now, version=__version__, superlink=True, worker=True, page=here.address, nodes=nodes,
        ))  # fmt: skip
        with here.store.session() as session:
            for run in session.query(Run).filter(Run.state == "running", Run.id.not_in(silent)):
                run.heartbeat = now

    def follow() -> None:
        while not ended.wait(_BEAT_S):
            beat()

    thread = threading.Thread(target=follow)
    with only_server(here.home), ExitStack() as stack:
        beat()
        thread.start()
        stack.callback(thread.join)
        stack.callback(ended.set)
        yield


def copied(home: Path, to: Path) -> Path:
    """A home of its own for who changes it."""
    return Path(shutil.copytree(home, to))


def _short(name: str) -> str:
    """The seed of a key, which has at most 32 bytes."""
    return hashlib.sha256(name.encode()).hexdigest()[:32]


def _study(home: Path, store: Store, backbone: Path, *changes: tuple[str, str]) -> str:
    draft = home / "study.toml"
    draft.write_text(changed(STUDY_TOML, (("some/where/backbone", str(backbone)), *changes)))
    study = create_study(store, Pki.load(home), home, draft)
    draft.unlink()
    return study.study_hash


@contextmanager
def _open(home: Path) -> Iterator[Store]:
    store = Store.open(home)
    try:
        yield store
    finally:
        store.close()
