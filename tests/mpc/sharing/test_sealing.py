import dataclasses

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from confide.mpc.errors import EnvelopeRejected, InvalidField
from confide.mpc.sharing import hpke, sealing
from confide.mpc.sharing.hpke import KEMS, new_keypair
from confide.mpc.sharing.position import Position
from confide.mpc.sharing.sealing import (
    Envelope,
    check_update,
    max_envelope_bytes,
    open_envelope,
    position_in,
    seal_update,
    signed_position,
)
from confide.mpc.sharing.shares import ShareContext, unpack

CONTEXT = ShareContext(
    study="s", run="r", round=1, state="ab" * 32, site="a", dim=16, ring_bits=64, scale_bits=24, rows=3, tag_count=2
)
CHANGES = [
    {"study": "t"},
    {"run": "q"},
    {"round": 2},
    {"state": "cd" * 32},
    {"site": "b"},
    {"scale_bits": 23},
    {"dim": 18, "rows": 2},  # of the same length
    {"rows": 4, "tag_count": 0},  # too
    {"topup_for": "cd" * 32},
]
SIGNER, OTHER = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
PRIVATE, PUBLIC = zip(*(new_keypair() for _ in range(3)), strict=True)
VECTOR = np.arange(16, dtype="<u8") * 2**59
TAGS = [5, 2**64 - 1]
POSITION = Position(0, 7, bytes(range(32)))
PLACE = POSITION.to_bytes()


def sealed(context=CONTEXT, recipients=PUBLIC, *, full=1, vector=VECTOR, signer=SIGNER):
    return seal_update(vector, context, recipients, signer, full, TAGS, position=POSITION)


ENVELOPES = sealed()
SENT = tuple(e.to_bytes() for e in ENVELOPES)
AGAIN = tuple(e.to_bytes() for e in sealed())  # another draw
BODY = (16 + 3 + 3 + 2) * 8
SMALL, LARGE = 291, 291 + BODY


def identity(signer):
    return signer.public_key().public_bytes_raw()


def opened(envelope, context=CONTEXT, party=1, *, signer=SIGNER, private_key=None):
    key = PRIVATE[party] if private_key is None else private_key
    return open_envelope(envelope, context, party, identity=identity(signer), private_key=key)


def flipped(data, place):
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


@pytest.mark.parametrize("full", [0, 1, 2])
def test_an_envelope_is_framed_where_its_body_lies_or_else_in_a_copy(full):
    envelopes = sealed(full=full)
    for party, envelope in enumerate(envelopes):
        assert envelope.framed() == envelope.to_bytes()
        assert (envelope.framed() is envelope.frame) == (party == full)
        again = Envelope.from_bytes(envelope.framed(), CONTEXT)
        assert (again, again.framed()) == (envelope, envelope.framed())
    unplaced = dataclasses.replace(envelopes[full], position=None)  # whose head is shorter
    assert unplaced.framed() == unplaced.to_bytes()


@pytest.mark.parametrize("kem", KEMS, ids=lambda kem: kem.name)
def test_opened_shares_add_up_to_the_update(kem):
    private, public = zip(*(new_keypair(kem.name) for _ in range(3)), strict=True)
    read = [Envelope.from_bytes(e.to_bytes(), CONTEXT) for e in sealed(recipients=public)]
    parts = [unpack(opened(e, party=i, private_key=private[i]), CONTEXT) for i, e in enumerate(read)]
    assert (sum((part.vector for part in parts), np.zeros(16, "<u8")) == VECTOR).all()
    assert sum((part.tags for part in parts), np.zeros(2, "<u8")).tolist() == TAGS


def test_each_party_may_have_a_key_of_its_own_suite():
    private, public = zip(*(new_keypair(name) for name in ("x25519", "mlkem768-x25519", "x25519")), strict=True)
    read = [Envelope.from_bytes(e.to_bytes(), CONTEXT) for e in sealed(recipients=public)]
    assert [opened(e, party=i, private_key=private[i]).aggregator_id for i, e in enumerate(read)] == [0, 1, 2]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: next(iter(change)))
def test_envelope_opens_in_its_own_context_only(change):
    with pytest.raises(EnvelopeRejected, match="signature"):
        opened(ENVELOPES[1], dataclasses.replace(CONTEXT, **change))


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: next(iter(change)))
def test_seal_itself_is_bound_to_the_context(change):
    """A site that signs the ciphertext of one round or state again for another still cannot make it open there."""
    other = dataclasses.replace(CONTEXT, **change)
    signature = SIGNER.sign(sealing._statement(other, ENVELOPES[1].digests, POSITION))
    with pytest.raises(EnvelopeRejected, match="do not open"):
        opened(dataclasses.replace(ENVELOPES[1], signature=signature), other)


def resigned(envelope, party, context=CONTEXT, signer=SIGNER):
    """The envelope with its own digest in the place of `party`, signed again."""
    digests = list(envelope.digests)
    digests[party] = envelope.digest()
    first, second, third = digests
    signature = signer.sign(sealing._statement(context, (first, second, third), envelope.position))
    return dataclasses.replace(envelope, digests=(first, second, third), signature=signature)


def test_replay_in_another_round_is_rejected():
    with pytest.raises(EnvelopeRejected, match="signature"):
        opened(ENVELOPES[1], dataclasses.replace(CONTEXT, round=2))


def test_replay_in_another_run_is_rejected():
    with pytest.raises(EnvelopeRejected, match="signature"):
        opened(ENVELOPES[1], dataclasses.replace(CONTEXT, run="q"))


def test_share_of_another_study_is_rejected():
    with pytest.raises(EnvelopeRejected, match="signature"):
        opened(ENVELOPES[1], dataclasses.replace(CONTEXT, study="t"))


def test_update_of_another_state_is_rejected():
    with pytest.raises(EnvelopeRejected, match="signature"):
        opened(ENVELOPES[1], dataclasses.replace(CONTEXT, state="cd" * 32))


def test_share_of_another_party_is_rejected():
    """Neither as it is, nor signed again for that party, nor sealed for this one: it opens at its own party only."""
    with pytest.raises(EnvelopeRejected, match="not those"):
        opened(ENVELOPES[1], party=2, private_key=PRIVATE[1])
    with pytest.raises(EnvelopeRejected, match="do not open"):
        opened(resigned(ENVELOPES[1], 2), party=2)
    with pytest.raises(EnvelopeRejected, match="do not open"):
        opened(resigned(ENVELOPES[1], 2), party=2, private_key=PRIVATE[1])  # the same key at another place


def test_shares_in_another_order_are_rejected():
    for envelopes in ((SENT[1], SENT[0], SENT[2]), (SENT[0], SENT[2], SENT[1]), (SENT[2], SENT[1], SENT[0])):
        with pytest.raises(EnvelopeRejected, match="sealed bytes are not those"):
            check_update(envelopes, CONTEXT, identity(SIGNER))


def test_share_of_another_site_is_rejected():
    with pytest.raises(EnvelopeRejected, match="signature"):
        opened(ENVELOPES[1], signer=OTHER)


def test_share_taken_over_by_another_site_is_rejected():
    """A site that signs another's sealed bytes as its own has them opened by nobody."""
    taken = resigned(ENVELOPES[1], 1, dataclasses.replace(CONTEXT, site="b"), OTHER)
    with pytest.raises(EnvelopeRejected, match="do not open"):
        opened(taken, dataclasses.replace(CONTEXT, site="b"), signer=OTHER)


def test_body_of_another_draw_is_rejected():
    body = Envelope.from_bytes(AGAIN[1], CONTEXT).body
    with pytest.raises(EnvelopeRejected, match="not those"):
        opened(dataclasses.replace(ENVELOPES[1], body=body))


def test_body_at_another_party_is_rejected():
    with pytest.raises(EnvelopeRejected, match="not those"):
        opened(dataclasses.replace(ENVELOPES[0], body=ENVELOPES[1].body), party=0)
    with pytest.raises(EnvelopeRejected, match="not those"):
        opened(dataclasses.replace(ENVELOPES[1], body=b""))


def test_top_up_stands_for_no_update_and_an_update_for_no_top_up():
    topup = dataclasses.replace(CONTEXT, topup_for="cd" * 32)
    for one, there in ((sealed(topup)[1], CONTEXT), (ENVELOPES[1], topup)):
        with pytest.raises(EnvelopeRejected, match="signature"):
            opened(one, there)


def test_envelope_opens_with_its_own_key_only():
    with pytest.raises(EnvelopeRejected, match="do not open"):
        opened(ENVELOPES[1], private_key=PRIVATE[0])


@pytest.mark.parametrize("of", KEMS, ids=lambda kem: kem.name)
def test_key_of_the_other_suite_opens_nothing(of):
    _, public = new_keypair(of.name)
    private = next(new_keypair(kem.name)[0] for kem in KEMS if kem is not of)
    with pytest.raises(EnvelopeRejected, match="another suite"):
        opened(sealed(recipients=[public] * 3)[1], private_key=private)


@given(st.integers(0, 2), st.data())
def test_any_flipped_bit_is_noticed(party, data):
    place = data.draw(st.integers(0, len(SENT[party]) - 1))
    with pytest.raises(EnvelopeRejected):
        opened(Envelope.from_bytes(flipped(SENT[party], place), CONTEXT), party=party)


@pytest.mark.parametrize("payload", [b"", b"\2" + bytes(31), b"\2" + bytes(33), b"\1" + bytes(32)])
def test_signed_seed_of_the_wrong_layout_is_rejected(payload):
    seal = hpke.seal(payload, PUBLIC[1], sealing._info(CONTEXT, 1))
    with pytest.raises(EnvelopeRejected, match="no seed"):
        opened(resigned(dataclasses.replace(ENVELOPES[1], seal=seal), 1))


@pytest.mark.parametrize("size", [1, (16 + 3 + 3 + 2) * 8 - 1, (16 + 3 + 3 + 2) * 8 + 1])
def test_signed_body_of_the_wrong_length_is_rejected(size):
    with pytest.raises(EnvelopeRejected, match="a body of"):
        opened(resigned(dataclasses.replace(ENVELOPES[1], body=bytes(size)), 1))


SIZES = {b"\2\1": 243, b"\2\2": 1331, b"\3\1": SMALL, b"\3\2": 1379}  # without a body, by version and suite
RIGHT = {(head, size + more) for head, size in SIZES.items() for more in (0, BODY)}


@given(
    st.sampled_from([*SIZES, b"\3\3", b"\1\1"]),
    st.sampled_from([2, 50, 300, *SIZES.values(), *(size + BODY for size in SIZES.values())]),
    st.binary(min_size=8, max_size=8),
)
def test_decoder_takes_one_encoding_or_refuses(head, size, filling):
    place = PLACE if head[:1] == b"\3" else b""
    raw = (head + place + filling * 200)[:size]
    try:
        assert Envelope.from_bytes(raw, CONTEXT).to_bytes() == raw
    except EnvelopeRejected:
        assert (head, size) not in RIGHT
    else:
        assert (head, size) in RIGHT


@given(st.binary(max_size=600))
def test_any_bytes_are_an_envelope_or_refused(raw):
    try:
        assert Envelope.from_bytes(raw, CONTEXT).to_bytes() == raw
    except EnvelopeRejected:
        return


def test_envelope_of_another_length_is_refused():
    assert [len(one) for one in SENT] == [SMALL, LARGE, SMALL]
    for data in (SENT[1] + b"\0", SENT[1][:-1], SENT[0] + b"\0", SENT[0][:-1], b"", b"\2", b"\3"):
        with pytest.raises(EnvelopeRejected):
            Envelope.from_bytes(data, CONTEXT)


@pytest.mark.parametrize("kem", KEMS, ids=lambda kem: kem.name)
def test_no_envelope_is_longer_than_the_longest(kem):
    longest = max(len(e.to_bytes()) for e in sealed(recipients=[new_keypair(kem.name)[1]] * 3))
    assert longest == max_envelope_bytes(CONTEXT) - (KEMS[1].encapsulated_bytes - kem.encapsulated_bytes)


def test_a_body_that_was_read_is_not_copied():
    data = bytearray(SENT[1])
    read = Envelope.from_bytes(memoryview(data), CONTEXT)
    data[-1] ^= 1
    assert read.to_bytes() == bytes(data)


@pytest.mark.parametrize("full", [0, 1, 2])
def test_relay_takes_what_a_site_sealed(full):
    check_update([e.to_bytes() for e in sealed(full=full)], CONTEXT, identity(SIGNER))


@pytest.mark.parametrize(
    ("envelopes", "says"),
    [
        (SENT[:2], "2 envelopes"),
        ((*SENT, SENT[2]), "4 envelopes"),
        ((b"", *SENT[1:]), "aggregator 0: 0 bytes"),
        ((SENT[0], SENT[1] + b"\0", SENT[2]), "aggregator 1: an envelope of"),
        ((*SENT[:2], b"\4" + SENT[2][1:]), "aggregator 2: 291 bytes that are no envelope of version 3"),
        ((*SENT[:2], b"\3\3" + SENT[2][2:]), "aggregator 2: an envelope of an unknown suite"),
        ((*SENT[:2], AGAIN[2]), "aggregator 2: the digests"),
        ((AGAIN[0], *SENT[1:]), "aggregator 1: the digests"),
        ((SENT[1], SENT[0], SENT[2]), "aggregator 0: the sealed bytes"),
        ((*SENT[:2], SENT[2][:210] + AGAIN[2][210:]), "aggregator 2: the sealed bytes"),
        ((*SENT[:2], flipped(SENT[2], 146)), "aggregator 2: the signature"),
        ((*SENT[:2], flipped(SENT[2], 17)), "aggregator 2: the signature"),
    ],
    ids=[
        "two",
        "four",
        "empty",
        "too_long",
        "version",
        "suite",
        "second_draw",
        "first_of_two_draws",
        "swapped",
        "seal",
        "sign",
        "position",
    ],
)
def test_relay_refuses_what_the_parties_would_not_all_see_alike(envelopes, says):
    with pytest.raises(EnvelopeRejected, match=says):
        check_update(envelopes, CONTEXT, identity(SIGNER))


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: next(iter(change)))
def test_relay_refuses_an_update_for_another_context(change):
    with pytest.raises(EnvelopeRejected, match="signature"):
        check_update(SENT, dataclasses.replace(CONTEXT, **change), identity(SIGNER))


def test_relay_refuses_an_update_of_another_site():
    with pytest.raises(EnvelopeRejected, match="signature"):
        check_update(SENT, CONTEXT, identity(OTHER))


@given(st.integers(0, 2), st.data())
def test_relay_notices_any_flipped_bit(party, data):
    place = data.draw(st.integers(0, len(SENT[party]) - 1))
    envelopes = [flipped(one, place) if i == party else one for i, one in enumerate(SENT)]
    with pytest.raises(EnvelopeRejected):
        check_update(envelopes, CONTEXT, identity(SIGNER))


def test_what_the_relay_sees_has_the_same_size_for_every_update():
    other = sealed(vector=np.zeros(16, "<u8"))
    assert [len(e.to_bytes()) for e in other] == [len(one) for one in SENT]


@pytest.mark.parametrize("size", [31, 32, 1216])
def test_unusable_recipient_is_refused(size):
    with pytest.raises(InvalidField, match="public key"):
        sealed(recipients=[*PUBLIC[:2], bytes(size)])  # no suite's length, a point of small order twice


def test_two_recipients_are_too_few():
    with pytest.raises(InvalidField):
        sealed(recipients=PUBLIC[:2])


def test_envelope_does_not_show_the_sealed_bytes():
    assert "seal=" not in repr(ENVELOPES[0])
    assert "body" not in repr(ENVELOPES[1])


def unplaced(party):
    """An envelope as the version before sealed it: signed, and without a position."""
    signature = SIGNER.sign(sealing._statement(CONTEXT, ENVELOPES[party].digests, None))
    return dataclasses.replace(ENVELOPES[party], signature=signature, position=None)


def test_a_position_is_read_under_the_signature_of_the_site_alone():
    assert [signed_position(one, CONTEXT, identity(SIGNER)) for one in SENT] == [POSITION] * 3
    later = dataclasses.replace(ENVELOPES[0], position=Position(0, 8, POSITION.digest)).to_bytes()
    assert position_in(later).count == 8
    with pytest.raises(EnvelopeRejected, match="signature"):
        signed_position(later, CONTEXT, identity(SIGNER))


def test_an_envelope_of_the_version_before_opens_and_states_no_position():
    old = [unplaced(party).to_bytes() for party in range(3)]
    check_update(old, CONTEXT, identity(SIGNER))
    assert [len(one) for one in old] == [243, 243 + BODY, 243]
    assert signed_position(old[1], CONTEXT, identity(SIGNER)) is None
    assert opened(Envelope.from_bytes(old[1], CONTEXT)).seed == opened(ENVELOPES[1]).seed


def test_no_relay_takes_the_position_out_of_an_envelope():
    with pytest.raises(EnvelopeRejected, match="signature"):
        signed_position(dataclasses.replace(ENVELOPES[0], position=None).to_bytes(), CONTEXT, identity(SIGNER))
