"""A site whose whole home was put back from a copy, with a coordinator that was put back from the same night's.

Nobody but the aggregators knows then that the site has answered already.
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa

from confide.client_node.approval.charges import open_ledger
from confide.client_node.approval.site_budget import recover_ledger
from confide.client_node.enrolment.identity import NodeIdentity
from confide.client_node.enrolment.protocol import Enrolment
from confide.client_node.policy.decisions import approve
from confide.client_node.wire.messages import AggregateOrder, Packet, SetIncomplete, sign, verify
from confide.coordinator.errors import AggregationFailed
from confide.coordinator.federation.pki import Pki
from confide.coordinator.run.rounds import drive_run
from confide.coordinator.store.tables import LedgerRow, Run
from confide.privacy.report.build import SiteLedger, build_report
from confide.privacy.report.verify import verify as verify_report

from ...privacy.report.independent_verifier import verify as verify_independently
from .. import quiet_fleet
from ..quiet_fleet import PARTIES, RUN, SITES, Federation, TableParty, found
from .test_dropouts import without

pytestmark = pytest.mark.slow


@pytest.fixture
def make(tmp_path, empty_store, monkeypatch):
    def federation(*, max_dropouts: int = 1, rounds: int = 2) -> Federation:
        made = found(
            tmp_path, empty_store, monkeypatch, dropouts="over-provision", max_dropouts=max_dropouts, rounds=rounds
        )
        for name in (*SITES, *PARTIES):
            approve(tmp_path / name, made.study.study_hash, runs=2)
        return made

    return federation


def copied(federation: Federation, site: str) -> Path:
    copy = federation.home / f"copy-of-{site}"
    federation.ledgers[site].close()
    shutil.copytree(federation.home / site, copy)
    reopen(federation, site)
    return copy


def put_back(federation: Federation, site: str, copy: Path) -> None:
    """The site's home as it was, to the last file, and the coordinator knows no more of its ledger than it says."""
    federation.ledgers[site].close()
    shutil.rmtree(federation.home / site)
    shutil.copytree(copy, federation.home / site)
    reopen(federation, site)
    with federation.store.session() as session:
        session.execute(sa.delete(LedgerRow).where(LedgerRow.site == site))


def reopen(federation: Federation, site: str) -> None:
    home = federation.home / site
    federation.ledgers[site] = open_ledger(home, NodeIdentity.load(home), Enrolment.load(home))
    federation.restart(site)


@contextmanager
def another_run(federation: Federation, name: str) -> Iterator[str]:
    with federation.store.session() as session:
        session.add(Run(id=name, study=federation.study.study_hash, state="pending", created_at=0))
    yield name


def drive(federation: Federation, run: str, monkeypatch) -> None:
    monkeypatch.setattr(quiet_fleet, "RUN", run)
    federation.drive()


def summed(federation: Federation, run: str) -> list[tuple[str, ...]]:
    return [row.summed for row in federation.store.rounds(run)]


def test_a_home_put_back_whole_is_left_out_by_the_aggregators_and_named(make, monkeypatch, caplog):
    federation = make()
    copy = copied(federation, "west")
    federation.drive()
    assert summed(federation, RUN) == [SITES, SITES]
    put_back(federation, "west", copy)
    with another_run(federation, "run-2"):
        drive(federation, "run-2", monkeypatch)
    assert summed(federation, "run-2") == [without("west")] * 2
    assert "newer ledger of west" in caplog.text


def test_a_run_that_cannot_do_without_it_fails_and_says_what_to_do(make, monkeypatch):
    federation = make(max_dropouts=0, rounds=1)
    copy = copied(federation, "west")
    federation.drive()
    put_back(federation, "west", copy)
    with (
        another_run(federation, "run-2"),
        pytest.raises(AggregationFailed, match=r"newer ledger of west.*budget import"),
    ):
        drive(federation, "run-2", monkeypatch)
    assert summed(federation, "run-2") == []


def test_one_honest_aggregator_suffices(make, monkeypatch):
    """Two forget what they have seen: the third's refusal is enough, and no total with the site is ever opened."""
    federation = make()
    copy = copied(federation, "west")
    federation.drive()
    put_back(federation, "west", copy)
    for party in PARTIES[:2]:
        federation.fleet.nodes[party].stop()
        (federation.home / party / "aggregator" / "positions").unlink()
    with another_run(federation, "run-2"):
        drive(federation, "run-2", monkeypatch)
    assert summed(federation, "run-2") == [without("west")] * 2


def test_a_relay_that_tells_a_false_history_changes_nothing(make, monkeypatch):
    federation = make(max_dropouts=0, rounds=1)
    copy = copied(federation, "west")
    federation.drive()
    honest = {site: federation.store.ledger_hashes(site, 0) for site in SITES}
    put_back(federation, "west", copy)
    real = type(federation.store).ledger_hashes

    def false(store, site: str, since: int) -> list[str]:
        return honest[site] if site == "west" else real(store, site, since)

    monkeypatch.setattr(type(federation.store), "ledger_hashes", false)
    with another_run(federation, "run-2"), pytest.raises(AggregationFailed, match="newer ledger of west"):
        drive(federation, "run-2", monkeypatch)


def test_an_update_that_comes_late_is_summed_though_another_run_is_ahead(make, monkeypatch):
    """All have sealed round 1 of a run, and its order is under way; before it comes, another run goes to its end."""
    federation = make(max_dropouts=0, rounds=2)
    first = federation.context()
    asked: list[str] = []

    def before(kind: str, name: str):
        if kind == "aggregate" and not asked:
            asked.append(name)
            with another_run(federation, "run-2"):
                drive(federation, "run-2", monkeypatch)
            monkeypatch.setattr(quiet_fleet, "RUN", RUN)

    federation.fleet.before = before
    drive_run(first)
    assert summed(federation, "run-2") == summed(federation, RUN) == [SITES, SITES]


def test_after_owning_up_the_report_counts_the_whole_budget_and_both_verifiers_accept_it(make, monkeypatch):
    federation = make()
    copy = copied(federation, "west")
    federation.drive()
    put_back(federation, "west", copy)
    (account,) = recover_ledger(federation.home / "west")
    assert account.spent.pld == account.budget.epsilon == 100.0
    ledger = federation.ledgers["west"]
    report = build_report(
        "f",
        {"west": SiteLedger(ledger.public_key, ledger.entries())},
        [federation.study.canonical().decode()],
        Pki.load(federation.home).signer,
    )
    verified = verify_report(report)
    assert verified.failures == []
    assert any("entries were lost; counted as spent up to its cap, 100" in note for note in verified.notes)
    verify_independently(report)
    stated = report["sites"][0]["accounts"][0]["spent"]
    assert [(one["pld"], one["rdp"]) for one in stated] == [("100.0", "100.0")] * 2
    with another_run(federation, "run-2"):
        drive(federation, "run-2", monkeypatch)  # west refuses for itself
    assert summed(federation, "run-2") == [without("west")] * 2


def test_an_aggregator_that_lies_about_a_ledger_leaves_a_site_out_and_no_more(make, monkeypatch):
    federation = make(rounds=1)
    real = federation.fleet._answer
    liar = PARTIES[0]

    def answer(kind: str, name: str, packet: Packet):
        if kind == "aggregate" and name == liar:
            order = verify(packet, federation.study.coordinator, AggregateOrder)
            if "west" in order.cohort:
                TableParty.table.barrier.abort()
                reply = SetIncomplete(
                    request=packet.digest(),
                    run=order.run,
                    round=order.round,
                    complete=without("west"),
                    outdated={"west": 99},
                )
                return sign(reply, NodeIdentity.load(federation.home / liar).signer)
        return real(kind, name, packet)

    monkeypatch.setattr(federation.fleet, "_answer", answer)
    federation.drive()
    assert summed(federation, RUN) == [without("west")]


def test_an_aggregator_whose_disk_was_full_goes_on_once_there_is_room(make, monkeypatch, caplog):
    federation, real, torn = make(max_dropouts=0), os.write, []
    path = federation.home / "agg-b" / "aggregator" / "positions"

    def write(descriptor: int, data: bytes) -> int:
        """Takes half of the second line, as a disk does that is full."""
        is_second = os.path.realpath(f"/proc/self/fd/{descriptor}") == str(path) and path.stat().st_size > 0
        if is_second and not torn:
            torn.append(path.stat().st_size)
            return real(descriptor, data[: len(data) // 2])
        return real(descriptor, data)

    monkeypatch.setattr(os, "write", write)
    federation.drive()
    assert torn
    assert "cannot write the journal" in caplog.text
    assert [row.summed for row in federation.store.rounds(RUN)] == [SITES] * 2
    lines = path.read_bytes().splitlines()
    assert len([json.loads(line) for line in lines]) == len(lines) == 2  # the torn one is gone, and was written anew


def test_an_aggregator_whose_positions_were_cut_is_told_them_anew_and_accuses_nobody(make, monkeypatch, caplog):
    federation = make(max_dropouts=0, rounds=4)
    path, real, orders = federation.home / "agg-b" / "aggregator" / "positions", federation.fleet._answer, []

    def answer(kind: str, name: str, packet: Packet):
        if (kind, name) == ("aggregate", "agg-b"):
            orders.append(name)
            if len(orders) == 4:
                federation.fleet.nodes["agg-b"]._aggregator.stop()  # as when its process ends
                path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:1]))
        return real(kind, name, packet)

    monkeypatch.setattr(federation.fleet, "_answer", answer)
    federation.drive()
    assert len(orders) > 4
    assert summed(federation, RUN) == [SITES] * 4
    assert "has forgotten how far it saw the ledger of west" in caplog.text
