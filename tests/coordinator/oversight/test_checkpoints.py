import shutil

import pytest
import sqlalchemy as sa

from confide.client_node import witness
from confide.client_node.enrolment import NodeIdentity
from confide.client_node.errors import MessageInvalid
from confide.client_node.wire import checkpoints as wire
from confide.client_node.wire.checkpoints import DIGESTS_A_MESSAGE
from confide.coordinator.errors import StateDamaged
from confide.coordinator.federation import Pki
from confide.coordinator.oversight import checkpoints
from confide.coordinator.store import audit_log
from confide.coordinator.store.tables import CheckpointRow

from ..conftest import logged


@pytest.fixture
def node(tmp_path):
    return NodeIdentity.create(tmp_path / "svi", "svi")


def note(store, count=1):
    with store.session() as session:
        for _ in range(count):
            store.log_action(session, "site.revoke", site="east")


def ask(store, pki, node, known=None):
    """Offers the node a checkpoint and takes its answer; returns where it stands, as `take` says it."""
    offer = checkpoints.offer(store, pki, "svi", known=known)
    answer = witness.answer(node.home, "svi", pki.signing.now.all, node.signer, offer)
    return checkpoints.take(store, pki.signing.now.all, "svi", node.identity_hex, offer.checkpoint, answer)


def countersigned(store):
    with store.session() as session:
        return audit_log.countersigned(session, "svi")


def test_an_empty_log_has_no_checkpoint_and_nothing_to_offer(empty_store, pki):
    assert checkpoints.make(empty_store, pki) is None
    assert checkpoints.offer(empty_store, pki, "svi") is None


def test_a_head_is_signed_once_however_often_it_is_asked_for(empty_store, pki):
    note(empty_store)
    first = checkpoints.make(empty_store, pki)
    assert first is not None
    assert first.is_signed_by(pki.identity_hex)
    assert checkpoints.make(empty_store, pki) == first
    note(empty_store)
    assert checkpoints.make(empty_store, pki).seq == 1
    with empty_store.session() as session:
        assert [row.seq for row in session.scalars(sa.select(CheckpointRow).order_by(CheckpointRow.seq))] == [0, 1]


def test_a_node_countersigns_again_and_again_as_the_log_grows(empty_store, pki, node):
    for length in range(1, 6):
        note(empty_store, length)
        assert ask(empty_store, pki, node) is None
        assert countersigned(empty_store) == sum(range(length + 1)) - 1
        assert ask(empty_store, pki, node) is None  # the same head again
    assert [action for action, _ in logged(empty_store) if action == "log.refused"] == []


def test_a_long_log_is_countersigned_in_steps_of_one_message(empty_store, pki, node):
    note(empty_store, 2 * DIGESTS_A_MESSAGE + 10)
    reached = []
    for _ in range(3):
        ask(empty_store, pki, node)
        reached.append(countersigned(empty_store))
    assert reached == [DIGESTS_A_MESSAGE - 1, 2 * DIGESTS_A_MESSAGE - 1, 2 * DIGESTS_A_MESSAGE + 9]


@pytest.mark.parametrize("has_new_key", [False, True])
def test_a_node_whose_answer_was_lost_or_whose_home_was_put_back_catches_up(
    empty_store, pki, node, has_new_key, tmp_path
):
    if has_new_key:
        shutil.copytree(pki.folder, tmp_path / "pki")
        pki = Pki.load(tmp_path)
    note(empty_store, 3)
    offer = checkpoints.offer(empty_store, pki, "svi")
    witness.answer(node.home, "svi", pki.signing.now.all, node.signer, offer)  # lost on its way
    if has_new_key:
        pki.signing.rotate(lambda old, new: None)
    old = (node.home / witness.FILE).read_bytes()
    note(empty_store, 3)
    assert ask(empty_store, pki, node) is None
    (node.home / witness.FILE).write_bytes(old)  # an older home
    note(empty_store)
    known = ask(empty_store, pki, node)
    assert known == 2
    assert ask(empty_store, pki, node, known) is None
    (node.home / witness.FILE).unlink()
    known = ask(empty_store, pki, node)
    assert (known, ask(empty_store, pki, node, known)) == (-1, None)
    assert countersigned(empty_store) == 6
    assert [action for action, _ in logged(empty_store) if action == "log.refused"] == []


def cut(store, length):
    """Puts the log back to an older state of `length` entries, as a restored backup does."""
    with store.session() as session:
        last = audit_log.hash_at(session, length - 1)
        for table in ("audit_entry", "audit_checkpoint", "audit_countersignature"):
            session.execute(sa.text(f"DELETE FROM {table} WHERE seq >= {length}"))
        session.execute(sa.text("UPDATE audit_head SET seq = :seq, hash = :hash"), {"seq": length - 1, "hash": last})


def test_an_older_state_is_refused_once_in_the_log_and_people_can_begin_anew(empty_store, pki, node):
    note(empty_store, 6)
    ask(empty_store, pki, node)
    cut(empty_store, 3)
    ask(empty_store, pki, node)
    assert logged(empty_store)[-1] == ("log.refused", {"site": "svi", "reason": "older", "held": 5})
    before = len(logged(empty_store))
    ask(empty_store, pki, node)
    ask(empty_store, pki, node)
    assert len(logged(empty_store)) == before  # said once, not at every question
    note(empty_store, 5)  # grown past what the node had signed: still another history
    known = ask(empty_store, pki, node)
    assert known is None
    assert logged(empty_store)[-1] == ("log.refused", {"site": "svi", "reason": "forked", "held": 5})
    assert countersigned(empty_store) == -1
    witness.forget(node.home)
    known = ask(empty_store, pki, node)
    assert known is None
    assert countersigned(empty_store) == len(logged(empty_store)) - 1


def test_an_entry_rewritten_with_all_its_links_gets_no_countersignature(empty_store, pki, node):
    """The coordinator's own key signs whatever it likes; the node's does not."""
    note(empty_store, 6)
    ask(empty_store, pki, node)
    cut(empty_store, 2)
    with empty_store.session() as session:  # the same length, and more, with other contents
        for _ in range(9):
            empty_store.log_action(session, "site.revoke", site="west")
    for known in (None, -1, 1, 5, 10):
        ask(empty_store, pki, node, known)
    assert countersigned(empty_store) == -1
    assert witness.load(node.home).refused is not None
    assert witness.load(node.home).refused.reason == "forked"


def test_a_signed_head_that_was_changed_afterwards_is_never_signed_anew(empty_store, pki):
    note(empty_store, 3)
    checkpoints.make(empty_store, pki)
    cut_hash = "ab" * 32
    with empty_store.session() as session:
        session.execute(sa.text("UPDATE audit_entry SET hash = :hash WHERE seq = 2"), {"hash": cut_hash})
        session.execute(sa.text("UPDATE audit_head SET hash = :hash"), {"hash": cut_hash})
    with pytest.raises(StateDamaged, match="another than the one that was signed"):
        checkpoints.make(empty_store, pki)


def test_a_countersignature_of_another_key_is_not_stored(empty_store, pki, node, tmp_path):
    note(empty_store)
    other = NodeIdentity.create(tmp_path / "other", "other")
    offer = checkpoints.offer(empty_store, pki, "svi")
    answer = witness.answer(other.home, "svi", pki.signing.now.all, other.signer, offer)
    with pytest.raises(MessageInvalid, match="did not countersign"):
        checkpoints.take(empty_store, pki.signing.now.all, "svi", node.identity_hex, offer.checkpoint, answer)
    assert countersigned(empty_store) == -1


def test_a_node_that_claims_to_hold_what_the_coordinator_never_signed_is_not_believed(empty_store, pki, node):
    note(empty_store, 4)
    offer = checkpoints.offer(empty_store, pki, "svi")
    forged = offer.checkpoint.model_copy(update={"seq": 1})
    answer = wire.AuditAnswer(refusal="unproved", last=forged)
    assert (
        checkpoints.take(empty_store, pki.signing.now.all, "svi", node.identity_hex, offer.checkpoint, answer) is None
    )
    assert logged(empty_store)[-1] == ("log.refused", {"site": "svi", "reason": "forked", "held": -1})
    older = wire.AuditAnswer(refusal="older", last=offer.checkpoint.model_copy(update={"signature": "ab" * 64}))
    assert checkpoints.take(empty_store, pki.signing.now.all, "svi", node.identity_hex, offer.checkpoint, older) is None
    assert logged(empty_store)[-1] == ("log.refused", {"site": "svi", "reason": "older", "held": -1})


def test_an_offer_that_a_newer_one_of_another_driver_overtakes_is_no_refusal(empty_store, pki, node, caplog):
    note(empty_store, 3)
    first = checkpoints.offer(empty_store, pki, "svi")  # of one run's driver
    note(empty_store, 2)
    assert ask(empty_store, pki, node) is None  # of another's, which is quicker
    before = logged(empty_store)
    late = witness.answer(node.home, "svi", pki.signing.now.all, node.signer, first)
    assert late.refusal == "older"
    assert checkpoints.take(empty_store, pki.signing.now.all, "svi", node.identity_hex, first.checkpoint, late) == 4
    assert logged(empty_store) == before
    assert witness.load(node.home).refused is None
    assert caplog.text == ""
