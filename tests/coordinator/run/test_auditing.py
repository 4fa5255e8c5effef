import sqlalchemy as sa

from confide.client_node import witness
from confide.client_node.wire.checkpoints import DIGESTS_A_MESSAGE, AuditAnswer
from confide.coordinator.federation.pki import Pki
from confide.coordinator.oversight import trail
from confide.coordinator.run import rounds
from confide.coordinator.store import audit_log
from confide.coordinator.store.tables import NodeRow

from ..conftest import logged
from ..fake_fleet import PARTIES, SITES, FakeFleet, identity_of
from .test_rounds import Desk, desk, new_desk

__all__ = ["desk"]  # a fixture

NODES = (*SITES, *PARTIES)


def reached(desk: Desk) -> dict[str, int]:
    with desk.store.session() as session:
        return {name: audit_log.countersigned(session, name) for name in NODES}


def invite(desk: Desk, count: int = 1) -> None:
    with desk.store.session() as session:
        for _ in range(count):
            desk.store.log_action(session, "site.invite", site="new", roles="train")


def test_every_node_of_a_run_countersigns_at_its_beginning_and_at_its_end(desk, tmp_path):
    invite(desk, 3)
    seen: list[dict[str, int]] = []

    def after(kind: str, name: str) -> None:
        if kind == "step" and not seen:
            seen.append(reached(desk))
            invite(desk)  # an action in the middle of the run

    fleet = FakeFleet(desk.study, homes=tmp_path / "nodes", after=after)
    desk.drive(fleet)
    assert seen == [dict.fromkeys(NODES, 2)]
    assert reached(desk) == dict.fromkeys(NODES, 3)  # the run's own end comes after its last message
    held = {name: witness.load(tmp_path / "nodes" / name).last for name in NODES}
    assert len({each.hash for each in held.values()}) == 1
    assert all(each.is_signed_by(Pki.load(desk.home).identity_hex) for each in held.values())


def test_a_log_longer_than_a_message_is_countersigned_whole_at_a_run_s_beginning(desk, tmp_path):
    invite(desk, 2 * DIGESTS_A_MESSAGE + 500)
    seen: list[dict[str, int]] = []

    def after(kind: str, name: str) -> None:
        if kind == "step" and not seen:
            seen.append(reached(desk))

    fleet = FakeFleet(desk.study, homes=tmp_path / "nodes", after=after)
    desk.drive(fleet)
    assert seen == [dict.fromkeys(NODES, 2 * DIGESTS_A_MESSAGE + 499)]
    assert fleet.asked.count(("prepare", "north")) == 3


def test_a_node_whose_home_was_lost_catches_up_within_a_run_by_few_messages(desk, tmp_path):
    invite(desk, 2 * DIGESTS_A_MESSAGE + 500)
    desk.drive(FakeFleet(desk.study, homes=tmp_path / "nodes"))
    (tmp_path / "nodes" / "north" / witness.FILE).unlink()
    with desk.store.session() as session:
        session.execute(sa.text("DELETE FROM round"))
        session.execute(sa.text("UPDATE run SET state = 'pending'"))
    again = FakeFleet(desk.study, homes=tmp_path / "nodes")
    desk.drive(again)
    assert witness.load(tmp_path / "nodes" / "north").last == witness.load(tmp_path / "nodes" / "west").last
    assert again.asked.count(("prepare", "north")) < 10
    assert [action for action, _ in logged(desk.store) if action == "log.refused"] == []


def test_a_node_that_never_is_shown_enough_keeps_no_run_waiting(desk, tmp_path):
    invite(desk, 3)

    class Stubborn(FakeFleet):
        def witness(self, name, message):
            found = super().witness(name, message)
            return AuditAnswer(refusal="unproved") if name == "north" else found

    fleet = Stubborn(desk.study, homes=tmp_path / "nodes")
    desk.drive(fleet)
    assert desk.store.run("run-1").state == "done"
    assert fleet.asked.count(("prepare", "north")) == 2


def test_nodes_that_refuse_the_log_stop_no_run_and_are_named_in_it(desk, tmp_path):
    invite(desk, 4)
    fleet = FakeFleet(desk.study, homes=tmp_path / "nodes")
    desk.drive(fleet)
    with desk.store.session() as session:  # the state before the run is put back, its runs and rounds aside
        last = audit_log.hash_at(session, 1)
        for table in ("audit_entry", "audit_checkpoint", "audit_countersignature"):
            session.execute(sa.text(f"DELETE FROM {table} WHERE seq >= 2"))
        session.execute(sa.text("UPDATE audit_head SET seq = 1, hash = :hash"), {"hash": last})
        session.execute(sa.text("DELETE FROM round"))
        session.execute(sa.text("UPDATE run SET state = 'pending'"))
    again = FakeFleet(desk.study, homes=tmp_path / "nodes")
    desk.drive(again)
    assert desk.store.run("run-1").state == "done"
    refused = {fields["site"]: fields["reason"] for action, fields in logged(desk.store) if action == "log.refused"}
    assert {*refused} == {*NODES}
    assert {*refused.values()} <= {"older", "forked"}  # by whether the log has grown past what they signed
    assert reached(desk) == dict.fromkeys(NODES, -1)


def test_a_node_that_answers_nothing_about_the_log_takes_part_all_the_same(desk):
    invite(desk)
    desk.drive(FakeFleet(desk.study))
    assert desk.store.run("run-1").state == "done"
    assert reached(desk) == dict.fromkeys(NODES, -1)


def test_a_forged_countersignature_makes_the_answer_none(tmp_path, monkeypatch):
    monkeypatch.setattr(rounds, "FAREWELL_S", 0.0)  # all are asked once, and west's farewell never counts
    desk = new_desk(tmp_path, max_dropouts=1)
    invite(desk)

    class Forging(FakeFleet):
        def witness(self, name, message):
            found = super().witness(name, message)
            if name != "west" or found is None:
                return found
            return found.model_copy(update={"signature": "ab" * 64})

    fleet = Forging(desk.study, homes=tmp_path / "nodes")
    desk.drive(fleet)
    assert reached(desk)["west"] == -1
    assert reached(desk)["north"] >= 0


def test_the_log_of_a_run_verifies_with_what_nodes_signed(desk, tmp_path):
    invite(desk)
    desk.drive(FakeFleet(desk.study, homes=tmp_path / "nodes"))
    with desk.store.session() as session:
        session.add_all(
            NodeRow(name=name, roles="train", identity=identity_of(name), enrolled_at=1.0) for name in NODES
        )
    (desk.home / "settings.json").write_text(
        '{"federation": "f", "address": "h:1", "listen": "h", "port": 1, "superlink_port": 2}'
    )
    found = trail.verify(desk.store, desk.home)
    assert found.problems == ()
    assert {each.site for each in found.witnesses} == {*NODES}
