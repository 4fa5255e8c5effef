import logging

import pytest

from confide.client_node import witness
from confide.client_node.errors import FileDamaged, MessageInvalid
from confide.client_node.policy import decision_log, decisions
from confide.client_node.wire.checkpoints import AuditOffer, Checkpoint, DecisionsHead, countersigned_by
from confide.privacy.ledger.chain import START
from confide.privacy.ledger.log_chain import follow

from .conftest import identity_of, key_of
from .wire.test_checkpoints import HONEST, checkpoint


def ask(site, digests, seq, since=-1, key="coordinator"):
    offer = AuditOffer(checkpoint=checkpoint(digests, seq, key), digests=tuple(digests[since + 1 : seq + 1]))
    return witness.answer(site.home, "svi", [identity_of("coordinator")], site.identity.signer, offer)


def test_what_was_countersigned_is_on_disk_before_the_signature_leaves(site, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(witness, "write_private", full)
    with pytest.raises(OSError, match="No space"):
        ask(site, HONEST, 2)
    monkeypatch.undo()
    assert witness.load(site.home).last is None
    answer = ask(site, HONEST, 2)
    made = checkpoint(HONEST, 2)
    assert witness.load(site.home).last == made
    decided, _ = countersigned_by("svi", site.identity.identity_hex, made, answer)
    assert decided.seq == -1


def test_an_answer_that_was_lost_is_given_again(site):
    assert ask(site, HONEST, 4) == ask(site, HONEST, 4)  # Ed25519 draws nothing


def test_a_signature_names_the_newest_decision_of_the_people_here(site):
    decisions.approve(site.home, "ab" * 32)
    head = decision_log.head(site.home)
    assert head.seq == 0
    assert ask(site, HONEST, 1).decisions == DecisionsHead(seq=0, hash=head.hash)


@pytest.mark.parametrize(
    ("rewritten", "seq", "since", "reason"),
    [
        (HONEST, 6, 5, "unproved"),
        ([*HONEST[:2], "ff" * 32, *HONEST[3:]], 6, 3, "forked"),
        ([*HONEST[:3], "ff" * 32], 3, 3, "forked"),
        (["ff" * 32, *HONEST[1:]], 6, -1, "another log"),
    ],
)
def test_a_refusal_keeps_what_was_signed_and_tells_it(site, rewritten, seq, since, reason):
    ask(site, HONEST, 3)
    signed = checkpoint(HONEST, 3)
    answer = ask(site, rewritten, seq, since)
    assert (answer.signature, answer.refusal, answer.last) == (None, reason, signed)
    assert witness.load(site.home).last == signed
    refused = witness.load(site.home).refused
    assert (refused is None) == (reason == "unproved")  # of which the coordinator is told how much to send
    assert ask(site, HONEST, 6).signature is not None
    assert witness.load(site.home).refused is None


def test_an_older_state_is_told_only_if_it_was_signed_after_the_last_one(site, caplog):
    """One that was signed before is an offer of another run, which a newer one has overtaken."""
    caplog.set_level(logging.INFO)
    ask(site, HONEST, 3)
    answer = ask(site, HONEST, 1)
    assert (answer.signature, answer.refusal, answer.last) == (None, "older", checkpoint(HONEST, 3))
    assert witness.load(site.home).refused is None
    assert caplog.text == ""
    head, log = follow(START, HONEST[:2]), follow(START, HONEST[:1]).hash
    later = Checkpoint.issue(log=log, head=head, time="2999-01-01T00:00:00Z", signer=key_of("coordinator"))
    offer = AuditOffer(checkpoint=later, digests=tuple(HONEST[:2]))
    answer = witness.answer(site.home, "svi", [identity_of("coordinator")], site.identity.signer, offer)
    assert answer.refusal == "older"
    assert witness.load(site.home) == witness.Witnessed(
        last=checkpoint(HONEST, 3), refused=witness.Refused(reason="older", checkpoint=later)
    )
    assert "an older state was put back" in caplog.text


def test_a_checkpoint_of_another_key_is_no_message_of_the_coordinator(site):
    with pytest.raises(MessageInvalid, match="not signed by the coordinator"):
        ask(site, HONEST, 2, key="svhc")


def test_a_person_lets_the_node_begin_anew_and_that_is_in_the_decision_log(site):
    ask(site, HONEST, 5)
    other = ["ff" * 32, *HONEST[1:]]
    assert ask(site, other, 3).refusal == "another log"
    witness.forget(site.home, by="Dr Weber")
    assert ask(site, other, 3).signature is not None
    ((entry,), _) = decision_log.read(site.home)
    assert (entry.decision, entry.by, entry.about) == ("forget", "Dr Weber", checkpoint(HONEST, 5).hash)


def test_a_damaged_file_countersigns_nothing(site):
    ask(site, HONEST, 2)
    (site.home / witness.FILE).write_bytes(b"{}1")
    with pytest.raises(FileDamaged, match="restore a backup"):
        ask(site, HONEST, 3)


def test_the_file_is_for_its_owner_alone(site):
    ask(site, HONEST, 2)
    assert (site.home / witness.FILE).stat().st_mode & 0o077 == 0
