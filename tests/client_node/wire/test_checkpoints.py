import pytest
from pydantic import ValidationError

from confide.client_node.errors import MessageInvalid
from confide.client_node.wire.checkpoints import (
    DIGESTS_A_MESSAGE,
    AuditAnswer,
    AuditOffer,
    Checkpoint,
    DecisionsHead,
    countersign,
    countersigned_by,
)
from confide.client_node.wire.messages import Prepare, sign, verify
from confide.privacy.ledger.chain import START
from confide.privacy.ledger.log_chain import contents_digest, follow

from ..conftest import identity_of, key_of

TIME = "2026-03-01T00:00:00Z"
LENGTH = 7
HONEST = [contents_digest({"n": n}) for n in range(LENGTH)]
NONE = DecisionsHead(seq=-1, hash="0" * 64)


def checkpoint(digests, seq, key="coordinator"):
    """The checkpoint of entry `seq` of a log with these contents."""
    head = follow(START, digests[: seq + 1])
    return Checkpoint.issue(log=follow(START, digests[:1]).hash, head=head, time=TIME, signer=key_of(key))


@pytest.mark.parametrize("last", [None, *range(LENGTH)])
@pytest.mark.parametrize("offered", range(LENGTH))
def test_an_honest_log_is_taken_from_wherever_the_node_stands_and_never_backwards(last, offered):
    known = None if last is None else checkpoint(HONEST, last)
    for since in range(-1, offered + 1):  # where the coordinator thinks that the node stands
        proof = HONEST[since + 1 : offered + 1]
        at = -1 if last is None else last
        expected = "older" if offered < at else "unproved" if since > at and offered > at else None
        assert checkpoint(HONEST, offered).why_not_after(known, proof) == expected


@pytest.mark.parametrize("last", range(LENGTH))
@pytest.mark.parametrize("changed", range(LENGTH))
def test_a_rewritten_entry_that_was_signed_gets_no_further_signature(last, changed):
    rewritten = [*HONEST[:changed], contents_digest({"n": "other"}), *HONEST[changed + 1 :]]
    known = checkpoint(HONEST, last)
    for offered in range(last, LENGTH):
        for since in range(-1, offered + 1):
            found = checkpoint(rewritten, offered).why_not_after(known, rewritten[since + 1 : offered + 1])
            if changed > last:  # nothing that it had signed was touched
                assert found in ((None,) if since <= last or offered == last else ("unproved",))
            else:
                assert found in ("another log", "forked", "unproved")
                assert found is not None


def test_digests_that_lead_elsewhere_prove_nothing():
    known, later = checkpoint(HONEST, 2), checkpoint(HONEST, 6)
    assert later.why_not_after(known, HONEST[3:7]) is None
    assert later.why_not_after(known, [*HONEST[3:6], "ff" * 32]) == "forked"
    assert later.why_not_after(known, HONEST[4:7]) == "unproved"
    assert later.why_not_after(None, HONEST[1:7]) == "unproved"


def test_the_first_checkpoint_names_the_log_that_its_proof_begins():
    head = follow(START, HONEST)
    other = Checkpoint.issue(log="ab" * 32, head=head, time=TIME, signer=key_of("coordinator"))
    assert other.why_not_after(None, HONEST) == "another log"


def test_only_the_coordinator_s_key_makes_a_checkpoint_and_every_field_is_signed():
    made = checkpoint(HONEST, 3)
    assert made.is_signed_by(identity_of("coordinator"))
    assert not made.is_signed_by(identity_of("svi"))
    for change in ({"seq": 4}, {"hash": "ab" * 32}, {"log": "ab" * 32}, {"time": "2026-03-02T00:00:00Z"}):
        assert not made.model_copy(update=change).is_signed_by(identity_of("coordinator"))


def test_a_countersignature_is_of_one_node_one_checkpoint_and_one_state_of_its_decisions():
    made = checkpoint(HONEST, 3)
    answer = countersign(made, site="svi", decisions=NONE, signer=key_of("svi"))
    assert countersigned_by("svi", identity_of("svi"), made, answer) == (NONE, answer.signature)
    other = answer.model_copy(update={"decisions": DecisionsHead(seq=0, hash="0" * 64)})
    for site, key, where, said in (
        ("svhc", "svi", made, answer),
        ("svi", "svhc", made, answer),
        ("svi", "svi", checkpoint(HONEST, 4), answer),
        ("svi", "svi", made, other),
        ("svi", "svi", made, AuditAnswer()),
    ):
        with pytest.raises(MessageInvalid, match="did not countersign"):
            countersigned_by(site, identity_of(key), where, said)


@pytest.mark.parametrize(
    "bad", [{"seq": -1}, {"seq": True}, {"hash": "AB" * 32}, {"time": "now"}, {"log": "ab"}, {"more": 1}]
)
def test_a_checkpoint_of_another_form_is_none(bad):
    with pytest.raises(ValidationError):
        Checkpoint.model_validate(checkpoint(HONEST, 3).model_dump() | bad)


def test_an_offer_is_bounded():
    made = checkpoint(HONEST, 3)
    longest = AuditOffer(checkpoint=made, digests=("ab" * 32,) * DIGESTS_A_MESSAGE)
    asked = Prepare(to="svi", study="0" * 64, run="run-1", lease=1, ledger_from=0, audit=longest)
    assert verify(sign(asked, key_of("coordinator")), identity_of("coordinator"), Prepare) == asked
    with pytest.raises(ValidationError):
        AuditOffer(checkpoint=made, digests=("ab" * 32,) * (DIGESTS_A_MESSAGE + 1))
