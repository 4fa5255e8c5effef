"""Federations that version 0.1.0 founded can be read, here with a run that it left in the middle of a round.

Its studies state no start (format 4), so their runs do not go on: that is said in one sentence, and nothing is spent.

`home-0.1.0.tar.xz` holds the homes of a coordinator, four sites and three aggregators, as that version wrote them: its
own tests' `QuietFleet` drove a run of three rounds over 24 numbers, with top-ups and tags. West was away in round 1; in
round 2, when all four had sealed, the coordinator lost power before it heard the aggregators. The file is never made
anew by a later version: whoever cannot read it cannot read what people have.
"""

import tarfile
from pathlib import Path

import pytest
import sqlalchemy as sa

from confide.client_node.approval.charges import LEDGER_FILE, open_ledger
from confide.client_node.approval.run_reservations import RunReservations
from confide.client_node.enrolment.identity import NodeIdentity
from confide.client_node.enrolment.protocol import Enrolment
from confide.client_node.errors import StudyOutdated
from confide.client_node.policy.decisions import load_decisions
from confide.client_node.wire.messages import Prepare, sign
from confide.coordinator.federation.home import opened_store
from confide.coordinator.federation.pki import Pki
from confide.coordinator.results.reports import budget_report
from confide.coordinator.run.control import start_run
from confide.coordinator.run.driver import drive
from confide.coordinator.store.run_folder import RunFolder
from confide.coordinator.store.states import RunState
from confide.coordinator.store.store import Store, migrate
from confide.coordinator.studies.catalogue import load_study
from confide.privacy.ledger import backup
from confide.privacy.ledger.ledger import Ledger
from confide.privacy.report.verify import verify

from ..client_node.quiet_node import QuietNode
from ..coordinator.quiet_fleet import PARTIES, RUN, SITES, QuietFleet

ARCHIVE = Path(__file__).parent / "home-0.1.0.tar.xz"
STUDY = "3fbcfa644bd119756c3d6113723b6ba0d68657a8e93f3eed2f31ab62edf950a1"
LAST_HEARD = 1795766736.0  # seconds since 1970; a day later the run reserves nothing
CHANGING = ("run", "alembic_version", "audit_head")  # tables whose rows may change; of all others rows are only added


@pytest.fixture
def home(tmp_path):
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    store = Store.open(tmp_path)
    migrate(store.url)  # as `coordinator serve` does when it starts
    store.close()
    return tmp_path


def node_at(home: Path, name: str) -> QuietNode:
    enrolment, identity = Enrolment.load(home / name), NodeIdentity.load(home / name)
    ledger = open_ledger(home / name, identity, enrolment) if name in SITES else None
    return QuietNode(home / name, identity, enrolment, ledger=ledger)


def rows(database: Path) -> dict[str, list[tuple[object, ...]]]:
    """Everything in a database, by table."""
    engine = sa.create_engine(f"sqlite:///{database}")
    with engine.connect() as connection:
        names = sa.inspect(connection).get_table_names()
        found = {name: [tuple(row) for row in connection.execute(sa.text(f"SELECT * FROM {name}"))] for name in names}
    engine.dispose()
    return found


def test_what_0_1_0_wrote_is_read(home):
    with opened_store(home) as store:
        assert load_study(store.study("s")).study_hash == STUDY
        assert store.run(RUN).state is RunState.RUNNING
        assert [(row.number, row.summed) for row in store.rounds(RUN)] == [(1, ("east", "north", "south"))]
        last = store.last_round(RUN)
        assert RunFolder(home, RUN).load(last.number, last.state_hash).state.shape == (24,)
    for name in (*SITES, *PARTIES):
        decisions = load_decisions(home / name)
        assert decisions.studies[STUDY].verdict == "approved"
        assert decisions.sites.keys() == set(SITES)
        assert decisions.studies[STUDY].runs == 1
        assert decisions.runs_used(STUDY) == (RUN,)  # so this run goes on, and another needs a new approval
    for site in SITES:
        assert RunReservations(home / site, clock=lambda: LAST_HEARD).runs() == {RUN: STUDY}


@pytest.mark.slow
def test_a_run_that_0_1_0_began_is_refused_with_what_to_do_and_nothing_is_spent(home):
    databases = [home / "coordinator.db", *(home / site / LEDGER_FILE for site in SITES)]
    before = {database: rows(database) for database in databases}
    fleet = QuietFleet({name: node_at(home, name) for name in (*SITES, *PARTIES)})
    drive(fleet, home, RUN)
    with opened_store(home) as store:
        assert store.run(RUN).state is RunState.FAILED
        assert (store.run(RUN).error or "").endswith(
            "study s was made by an earlier version and does not state its start: create it again from the same "
            "study.toml, have it approved, and start a new run"
        )
        with pytest.raises(StudyOutdated):
            start_run(store, "s")
        report = budget_report(store, home)
    assert verify(report).failures == []
    assert fleet.asked == []
    for database, tables in before.items():
        after = rows(database)
        for table, found in tables.items():
            assert table in CHANGING or after[table][: len(found)] == found
            assert table in (*CHANGING, "audit_entry") or after[table] == found


def test_a_site_of_0_1_0_prepares_no_run_of_a_study_without_a_start(home):
    node = node_at(home, "east")
    message = Prepare(to="east", study=STUDY, run=RUN, lease=9, ledger_from=0)
    with pytest.raises(StudyOutdated, match="does not state its start"):
        node.handle("prepare", sign(message, Pki.load(home).signer))


def test_a_ledger_of_0_1_0_is_backed_up_and_restored(home, tmp_path):
    identity = NodeIdentity.load(home / "east")
    with Ledger.open(home / "east" / LEDGER_FILE, identity.signer, "east") as ledger:
        head = backup.write(tmp_path / "east.jsonl", ledger.walk(), identity.identity_hex)
    (home / "east" / LEDGER_FILE).unlink()
    Ledger.restore(home / "east" / LEDGER_FILE, backup.read(tmp_path / "east.jsonl"), identity.signer, "east")
    with Ledger.open(home / "east" / LEDGER_FILE, identity.signer, "east") as ledger:
        assert ledger.head == head
