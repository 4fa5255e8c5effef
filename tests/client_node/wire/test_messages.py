import hashlib
import json
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from confide.client_node.errors import MessageInvalid
from confide.client_node.wire import messages
from confide.client_node.wire.evidence import _EarlierShare
from confide.client_node.wire.messages import (
    MAX_BLOBS,
    MAX_BODY,
    AggregateOrder,
    Deposit,
    Deposited,
    Fetch,
    Fetched,
    KeyCertificate,
    Message,
    Outcome,
    Packet,
    Prepare,
    Ready,
    Replay,
    Replayed,
    Reply,
    Request,
    RoundPlan,
    Sealed,
    SetIncomplete,
    SetTaken,
    Settle,
    Settled,
    SignedTotal,
    TopUp,
    TopUpPlan,
    Update,
    fitting,
    is_full,
    one_part,
    sign,
    verify,
)
from confide.privacy.ledger.canonical import to_record
from confide.privacy.ledger.chain import START, Entry, Head, extend
from confide.privacy.ledger.cohorts import Cohort

from ..conftest import identity_of, key_of

STUDY, RUN, REQUEST = "ab" * 32, "thyroid-0001", "cd" * 32
ENTRY = extend(
    START, key_of("svi"), "2026-01-31T12:00:00Z", "open", {"site": "svi", "rounds": [1, 2], "epsilon": "0.5"}
)
BLOBS = {"envelope-0": b"first", "envelope-1": b"second", "empty": b""}


def certificate(aggregator_id: int = 0) -> KeyCertificate:
    return KeyCertificate.issue(
        study=STUDY, run=RUN, aggregator_id=aggregator_id, public_key=b"k" * 32, signer=key_of("agg-a")
    )


OUTCOMES = (
    Outcome(round=1, sites=("svhc", "svi"), evidence=("{}", "{}", "{}")),
    Outcome(round=2, sites=(), evidence=()),
)
SEALED = Sealed(size=243, digest="ef" * 32)
HEADER = {"to": "svi", "study": STUDY, "run": RUN, "lease": 2}
EVERY_MESSAGE: tuple[Message, ...] = (
    Prepare(**HEADER, ledger_from=0),
    RoundPlan(
        **HEADER,
        round=3,
        start="12" * 32,
        keys=(certificate(0), certificate(1), certificate(2)),
        outcomes=OUTCOMES,
        ledger_from=7,
    ),
    Replay(**HEADER, outcome=OUTCOMES[0], tag_key="34" * 32, offset=8 << 20),
    Replayed(request=REQUEST, run=RUN, round=0, held=8 << 20),
    TopUpPlan(
        **HEADER,
        round=3,
        state="12" * 32,
        cohort=("svhc", "svi"),
        keys=(certificate(0), certificate(1), certificate(2)),
    ),
    AggregateOrder(
        **HEADER, round=1, state="12" * 32, attempt=0, cohort=("svhc", "svi"), spooled={"update-1": "34" * 32}
    ),
    Settle(**HEADER, outcomes=OUTCOMES, final=True, ledger_from=0),
    Ready(request=REQUEST, key=certificate(), ledger=(ENTRY,)),
    Update(request=REQUEST, run=RUN, round=1, sealed=(SEALED,) * 3, ledger=(ENTRY,)),
    SignedTotal(
        request=REQUEST,
        study=STUDY,
        run=RUN,
        round=1,
        start="ab" * 32,
        kept=("svi",),
        set_digest="ef" * 32,
        total_digest="cd" * 32,
    ),
    SetTaken(request=REQUEST, run=RUN, round=1, bound=("svhc",)),
    TopUp(request=REQUEST, run=RUN, round=1, sealed=(SEALED,) * 3),
    Fetch(**HEADER, round=1, topup_for=None, aggregator_id=2, offset=8),
    Fetched(request=REQUEST, run=RUN, round=1),
    Deposit(**HEADER, round=1, site="svi", topup_for="ef" * 32, sealed=SEALED, offset=8),
    Deposited(request=REQUEST, run=RUN, round=1, held=16),
    SetIncomplete(request=REQUEST, run=RUN, round=1, complete=("svhc", "svi")),
    Settled(request=REQUEST, ledger=()),
)
PACKET = sign(EVERY_MESSAGE[1], key_of("coordinator"), BLOBS)


def with_message(**changes: object) -> Packet:
    """A packet of the coordinator's own hand whose message is `Prepare` with other fields."""
    fields = json.loads(EVERY_MESSAGE[0].model_dump_json()) | changes
    return signed_text("prepare", json.dumps(fields))


def signed_text(kind: str, text: str) -> Packet:
    signature = key_of("coordinator").sign(messages._signed_bytes(kind, text, {})).hex()
    return Packet(json.dumps({"kind": kind, "message": text, "blobs": {}, "signature": signature}).encode())


def test_every_kind_of_message_is_tried_here():
    assert {type(message) for message in EVERY_MESSAGE} == {*Request.__subclasses__(), *Reply.__subclasses__()}
    assert set(Message.__subclasses__()) == {Request, Reply, _EarlierShare}  # the last is read only, in evidence


@pytest.mark.parametrize("message", EVERY_MESSAGE, ids=lambda message: message.kind)
def test_a_message_survives_signing_and_verifying(message):
    packet = sign(message, key_of("svi"), BLOBS)
    assert verify(packet, identity_of("svi"), *{type(message), Prepare}) == message
    assert packet.blobs == BLOBS


def test_the_digest_of_a_packet_covers_its_blobs():
    other = sign(EVERY_MESSAGE[1], key_of("coordinator"), BLOBS | {"empty": b"."})
    assert PACKET.digest() == hashlib.sha256(PACKET.body).hexdigest() != other.digest()


@given(st.dictionaries(st.text("abc", min_size=1, max_size=3), st.integers(0, 50)), st.integers(0, 200))
def test_the_blobs_of_a_message_fit_in_it_and_none_that_would_is_left_out(sizes, room):
    chosen = fitting(sizes, room)
    left = room - sum(sizes[name] for name in chosen)
    assert left >= 0
    assert all(size > left for name, size in sizes.items() if name not in chosen)
    assert all(sizes[a] <= sizes[b] for a in chosen for b in sizes.keys() - chosen)


@given(place=st.integers(0, len(PACKET.body) - 1), bit=st.integers(0, 7))
def test_a_packet_with_one_bit_of_its_body_flipped_is_refused(place, bit):
    body = bytearray(PACKET.body)
    body[place] ^= 1 << bit
    with pytest.raises(MessageInvalid):
        verify(replace(PACKET, body=bytes(body)), identity_of("coordinator"), RoundPlan)


@pytest.mark.parametrize(
    "blobs",
    [
        {**BLOBS, "envelope-0": b"firsT"},
        {**BLOBS, "envelope-0": b"second", "envelope-1": b"first"},  # each is signed, under the other's name
        {"envelope-0": b"first", "envelope-1": b"second"},
        {**BLOBS, "more": b""},
        {},
    ],
    ids=["flipped", "swapped", "one missing", "one more", "none"],
)
def test_a_packet_with_other_blobs_is_refused(blobs):
    with pytest.raises(MessageInvalid, match="not those that were signed"):
        verify(replace(PACKET, blobs=blobs), identity_of("coordinator"), RoundPlan)


@pytest.mark.parametrize("identity", [identity_of("svi"), "00" * 32, "ff" * 32, "ab", "", "no hex"])
def test_a_packet_is_refused_under_another_identity(identity):
    with pytest.raises(MessageInvalid, match="not signed by the expected identity"):
        verify(PACKET, identity, RoundPlan)


def test_a_message_of_another_kind_than_expected_is_refused():
    with pytest.raises(MessageInvalid, match=r"unexpected step message, expected \['prepare', 'settle'\]"):
        verify(PACKET, identity_of("coordinator"), Prepare, Settle)


def test_a_signature_for_one_kind_is_none_for_another():
    body = PACKET.body.replace(b'"kind": "step"', b'"kind": "prepare"')
    assert body != PACKET.body
    with pytest.raises(MessageInvalid, match="not signed"):
        verify(replace(PACKET, body=body), identity_of("coordinator"), Prepare)


@pytest.mark.parametrize(
    ("changed", "where"),
    [
        ({"more": 1}, "more"),
        ({"lease": 0}, "lease"),
        ({"lease": "1"}, "lease"),
        ({"lease": True}, "lease"),
        ({"lease": None}, "lease"),
        ({"run": "../secrets"}, "run"),  # a run's name becomes a folder
        ({"run": "thyroid-0001\n"}, "run"),
        ({"study": "AB" * 32}, "study"),
        ({"ledger_from": -1}, "ledger_from"),
    ],
)
def test_a_signed_message_with_one_bad_field_is_refused_by_its_name(changed, where):
    with pytest.raises(MessageInvalid, match=rf"bad fields \['{where}'\]"):
        verify(with_message(**changed), identity_of("coordinator"), Prepare)


def test_a_bad_value_is_not_repeated_in_the_refusal():
    with pytest.raises(MessageInvalid) as caught:
        verify(with_message(run="a value nobody should see"), identity_of("coordinator"), Prepare)
    assert "nobody" not in str(caught.value)


def test_an_unknown_field_around_the_message_is_refused():
    outer = json.loads(PACKET.body) | {"more": 1}
    with pytest.raises(MessageInvalid, match="malformed"):
        verify(replace(PACKET, body=json.dumps(outer).encode()), identity_of("coordinator"), RoundPlan)


def test_a_body_over_the_limit_is_refused_unread():
    with pytest.raises(MessageInvalid, match="over the limit"):
        verify(Packet(b" " * (MAX_BODY + 1)), identity_of("coordinator"), Prepare)


def test_more_blobs_than_allowed_are_refused_unread():
    blobs = {f"blob-{i}": b"" for i in range(MAX_BLOBS + 1)}
    packet = sign(EVERY_MESSAGE[0], key_of("coordinator"), blobs)
    with pytest.raises(MessageInvalid, match="over the limit"):
        verify(packet, identity_of("coordinator"), Prepare)


@pytest.mark.parametrize("name", ["", "Upper", "../up", "a/b", ".hidden", "a=b;", "a" * 64])
def test_a_blob_name_that_is_no_plain_file_name_is_refused(name):
    with pytest.raises(MessageInvalid):
        verify(sign(EVERY_MESSAGE[0], key_of("coordinator"), {name: b""}), identity_of("coordinator"), Prepare)


@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_never_a_message(body):
    with pytest.raises(MessageInvalid):
        verify(Packet(body), identity_of("coordinator"), *map(type, EVERY_MESSAGE))


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(st.fixed_dictionaries({}, optional=dict.fromkeys(("kind", "message", "blobs", "signature"), _JSON)))
def test_arbitrary_json_of_the_right_names_is_never_a_message(outer):
    with pytest.raises(MessageInvalid):
        verify(Packet(json.dumps(outer).encode()), identity_of("coordinator"), *map(type, EVERY_MESSAGE))


@given(kind=st.sampled_from([message.kind for message in EVERY_MESSAGE]), value=_JSON)
def test_arbitrary_json_under_a_good_signature_is_refused_and_nothing_else(kind, value):
    with pytest.raises(MessageInvalid):
        verify(signed_text(kind, json.dumps(value)), identity_of("coordinator"), *map(type, EVERY_MESSAGE))


def test_a_message_nested_too_deeply_is_refused():
    with pytest.raises(MessageInvalid):
        verify(Packet(b"[" * 100_000), identity_of("coordinator"), Prepare)


def test_a_key_certificate_holds_under_the_identity_that_issued_it():
    certificate().verify(identity_of("agg-a"))


@pytest.mark.parametrize(
    "changed",
    [
        {"study": "ac" * 32},
        {"run": "thyroid-0002"},
        {"aggregator_id": 1},
        {"public_key": "00" * 32},
        {"signature": "00" * 64},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_a_key_certificate_with_one_thing_changed_is_refused(changed):
    with pytest.raises(MessageInvalid, match="is not signed by it"):
        certificate().model_copy(update=changed).verify(identity_of("agg-a"))


@pytest.mark.parametrize("identity", [identity_of("agg-b"), "", "no hex"])
def test_a_key_certificate_is_refused_under_another_identity(identity):
    with pytest.raises(MessageInvalid):
        certificate().verify(identity)


def test_a_signature_over_a_message_is_no_key_certificate():
    signer = Ed25519PrivateKey.generate()
    packet = sign(EVERY_MESSAGE[0], signer)
    forged = certificate().model_copy(update={"signature": json.loads(packet.body)["signature"]})
    with pytest.raises(MessageInvalid):
        forged.verify(signer.public_key().public_bytes_raw().hex())


def long_entries(count: int, names: int) -> list[Entry]:
    """Entries of a site that names so many cohorts of so many sites."""
    entries, head = [], START
    for number in range(count):
        cohort = Cohort.of(f"site-{number:04}-{site:058}" for site in range(names))
        entries.append(extend(head, key_of("svi"), "2026-01-31T00:00:00Z", "cohort", to_record(cohort)))
        head = Head(entries[-1].seq, entries[-1].hash)
    return entries


@pytest.mark.parametrize(("count", "names"), [(600, 1), (40, 1000), (0, 1)])
def test_a_ledger_comes_in_parts_that_each_fit_in_a_message(count, names):
    entries, parts = long_entries(count, names), []
    while not parts or is_full(parts[-1]):
        parts.append(one_part(entries[sum(map(len, parts)) :]))
        answer = Ready(request="12" * 32, ledger=parts[-1])
        assert verify(sign(answer, key_of("svi")), identity_of("svi"), Ready) == answer
    assert [entry for part in parts for entry in part] == entries
    assert all(part for part in parts[:-1])
