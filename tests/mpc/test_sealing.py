import dataclasses

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from confide.mpc import sealing
from confide.mpc.errors import EnvelopeRejected, InvalidField
from confide.mpc.sealing import (
    Envelope,
    check_update,
    max_envelope_bytes,
    new_keypair,
    open_envelope,
    seal_update,
)
from confide.mpc.shares import ShareContext, unpack

CONTEXT = ShareContext(study="s", run="r", round=1, state="ab" * 32, site="a", dim=16, ring_bits=64, scale_bits=24)
CHANGES = [
    {"study": "t"},
    {"run": "q"},
    {"round": 2},
    {"state": "cd" * 32},
    {"site": "b"},
    {"scale_bits": 23},
    {"dim": 17},
    {"topup_for": "cd" * 32},
]
SIGNER, OTHER = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
PRIVATE, PUBLIC = zip(*(new_keypair() for _ in range(3)), strict=True)
VECTOR = np.arange(16, dtype="<u8") * 2**59
ENVELOPES = seal_update(VECTOR, CONTEXT, PUBLIC, SIGNER, full=1)


def identity(signer):
    return signer.public_key().public_bytes_raw()


def opened(envelope, context=CONTEXT, party=1, *, signer=SIGNER, private_key=None):
    key = PRIVATE[party] if private_key is None else private_key
    return open_envelope(envelope, context, party, identity=identity(signer), private_key=key)


def flipped(data, place):
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


def test_opened_shares_add_up_to_the_update():
    parts = [opened(Envelope.from_bytes(e.to_bytes()), party=i) for i, e in enumerate(ENVELOPES)]
    assert (sum((unpack(part, CONTEXT) for part in parts), np.zeros(16, "<u8")) == VECTOR).all()


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: next(iter(change)))
def test_envelope_opens_in_its_own_context_only(change):
    with pytest.raises(EnvelopeRejected):
        opened(ENVELOPES[1], dataclasses.replace(CONTEXT, **change))


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: next(iter(change)))
def test_seal_itself_is_bound_to_the_context(change):
    """A site that signs the ciphertext of one round or state again for another still cannot make it open there."""
    other = dataclasses.replace(CONTEXT, **change)
    signature = SIGNER.sign(sealing._statement(other, ENVELOPES[1].digests))
    with pytest.raises(EnvelopeRejected, match="do not open"):
        opened(dataclasses.replace(ENVELOPES[1], signature=signature), other)


def test_envelope_opens_with_its_own_key_only():
    with pytest.raises(EnvelopeRejected, match="do not open"):
        opened(ENVELOPES[1], private_key=PRIVATE[0])


def test_envelope_opens_at_its_own_party_only():
    with pytest.raises(EnvelopeRejected, match="not those"):
        opened(ENVELOPES[1], party=2, private_key=PRIVATE[1])


def test_envelope_of_another_site_is_refused():
    with pytest.raises(EnvelopeRejected, match="signature"):
        opened(ENVELOPES[1], signer=OTHER)


@given(st.integers(0, len(ENVELOPES[1].to_bytes()) - 1))
def test_any_flipped_bit_is_noticed(place):
    with pytest.raises(EnvelopeRejected):
        opened(Envelope.from_bytes(flipped(ENVELOPES[1].to_bytes(), place)))


def test_signed_payload_of_the_wrong_layout_is_refused():
    short = dataclasses.replace(CONTEXT, dim=15)
    signed = seal_update(VECTOR[:15], short, PUBLIC, SIGNER, full=1)[1]
    info = sealing._info(CONTEXT, 1)
    key = sealing.X25519PublicKey.from_public_bytes(PUBLIC[1])
    sealed = sealing._SUITE.encrypt(opened(signed, short).payload, key, info=info)
    digests = (bytes(32), sealing.sha256(sealed).digest(), bytes(32))
    with pytest.raises(EnvelopeRejected, match="no share"):
        opened(Envelope(sealed, digests, SIGNER.sign(sealing._statement(CONTEXT, digests))))


@given(st.binary(max_size=400))
def test_decoder_takes_one_encoding_or_refuses(data):
    try:
        assert Envelope.from_bytes(data).to_bytes() == data
    except EnvelopeRejected:
        assert len(data) < 209 or data[0] != 1


def test_envelope_over_the_size_cap_is_refused():
    largest = ENVELOPES[1].to_bytes()
    assert len(largest) == max_envelope_bytes(16, 64)
    Envelope.from_bytes(largest, max_bytes=max_envelope_bytes(16, 64))
    with pytest.raises(EnvelopeRejected):
        Envelope.from_bytes(largest + b"\0", max_bytes=max_envelope_bytes(16, 64))


SENT = tuple(e.to_bytes() for e in ENVELOPES)
AGAIN = tuple(e.to_bytes() for e in seal_update(VECTOR, CONTEXT, PUBLIC, SIGNER, full=1))  # another draw


@pytest.mark.parametrize("full", [0, 1, 2])
def test_relay_takes_what_a_site_sealed(full):
    envelopes = seal_update(VECTOR, CONTEXT, PUBLIC, SIGNER, full)
    check_update([e.to_bytes() for e in envelopes], CONTEXT, identity(SIGNER))


@pytest.mark.parametrize(
    ("envelopes", "says"),
    [
        (SENT[:2], "2 envelopes"),
        ((*SENT, SENT[2]), "4 envelopes"),
        ((b"", *SENT[1:]), "aggregator 0: an envelope of 0 bytes"),
        ((SENT[0], SENT[1] + b"\0", SENT[2]), "aggregator 1: an envelope of"),
        ((*SENT[:2], b"\2" + SENT[2][1:]), "aggregator 2: envelope version 2"),
        ((*SENT[:2], AGAIN[2]), "aggregator 2: the digests"),
        ((AGAIN[0], *SENT[1:]), "aggregator 1: the digests"),
        ((SENT[1], SENT[0], SENT[2]), "aggregator 0: the sealed bytes"),
        ((*SENT[:2], SENT[2][:161] + AGAIN[2][161:]), "aggregator 2: the sealed bytes"),
        ((*SENT[:2], flipped(SENT[2], 97)), "aggregator 2: the signature"),
    ],
    ids=["two", "four", "empty", "too_long", "version", "second_draw", "first_of_two_draws", "swapped", "seal", "sign"],
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


def test_two_envelopes_of_three_are_small():
    assert sorted(len(e.to_bytes()) for e in ENVELOPES) == [243, 243, max_envelope_bytes(16, 64)]


def test_what_the_relay_sees_has_the_same_size_for_every_update():
    other = seal_update(np.zeros(16, "<u8"), CONTEXT, PUBLIC, SIGNER, full=1)
    assert [len(e.to_bytes()) for e in other] == [len(e.to_bytes()) for e in ENVELOPES]


def test_unusable_recipient_is_refused():
    with pytest.raises(InvalidField, match="aggregator 2"):
        seal_update(VECTOR, CONTEXT, [*PUBLIC[:2], bytes(32)], SIGNER, full=0)  # a point of small order
    with pytest.raises(InvalidField):
        seal_update(VECTOR, CONTEXT, PUBLIC[:2], SIGNER, full=0)


def test_envelope_does_not_show_the_sealed_bytes():
    assert "sealed" not in repr(ENVELOPES[0])
