"""Base oblivious transfer: one key of each pair, whatever the receiver sends."""

import numpy as np
import pytest

from confide.mpc.crypten import base_transfers as base
from confide.mpc.errors import PartyLost

OFFER = 2 * 1152 + 32


@pytest.fixture(scope="module")
def transferred():
    """A receiver, a sender, and the receiver's keys."""
    receiver = base.BaseReceiver(0, 1)
    sender = base.BaseSender(0, 1, receiver.message())
    return receiver, sender, receiver.column_keys(sender.message())


def test_the_receiver_has_the_key_of_its_choice_and_not_the_other(transferred):
    receiver, sender, keys = transferred
    zeros, ones = sender.column_keys()
    choices = [receiver.choices >> index & 1 for index in range(128)]
    assert keys == [(zeros, ones)[choice][index] for index, choice in enumerate(choices)]
    assert len({*zeros, *ones}) == 256
    assert 26 < sum(choices) < 102  # binomial: 1e-11


def test_choices_and_keys_are_fresh(transferred):
    other = base.BaseReceiver(0, 1)
    assert other.choices != transferred[0].choices
    assert other.message()[:OFFER] != transferred[0].message()[:OFFER]


def test_a_receiver_that_sends_two_keys_of_its_own_can_use_neither():
    """What base transfers for honest receivers allow: it would know both streams of every column, so all choices."""
    honest = base.BaseReceiver(0, 1)
    offers = [honest.message()[i * OFFER :][:OFFER] for i in range(128)]
    own = [key.public_key().public_bytes_raw() for key in honest._keys]
    forged = b"".join(key[:1152] * 2 + key[1152:] for key in own)
    sender = base.BaseSender(0, 1, forged)
    ciphertexts = [sender.message()[1088 * i :][:1088] for i in range(256)]
    for index in range(128):
        for choice in (0, 1):
            shared = honest._keys[index].decapsulate(ciphertexts[2 * index + choice])
            offer = forged[index * OFFER :][:OFFER]
            guess = base._column_key((0, 1), index, choice, offer, ciphertexts[2 * index + choice], shared)
            assert guess != sender.column_keys()[choice][index]
    assert offers[0] != forged[:OFFER]


def test_a_receiver_cannot_correct_both_strings_for_their_masks():
    """Each mask is that of the other string: to correct the one moves the mask of the other, to no key of its own."""
    receiver = base.BaseReceiver(0, 1)
    own = receiver._keys[0].public_key().public_bytes_raw()
    vector, matrix = base._unpacked([own[:1152]])[0], own[1152:]
    strings = [own[:1152], own[:1152]]
    for choice in (0, 1, 0, 1):
        mask = base._mask((0, 1), 0, choice, matrix, strings[1 - choice])
        strings[choice] = base._packed((vector + (base.Q - mask))[None])[0]
    (keys,) = base.offered_keys((0, 1), [b"".join(strings) + matrix])
    assert [key == own for key in keys] == [False, True]


def test_what_the_sender_sees_is_uniform_whatever_the_choices():
    """All coefficients of both strings, over 13 bins of equal size: 12 degrees of freedom, 1e-9 at 67."""
    for choices in (0, 2**128 - 1):
        drawn = base.ReceiverSecrets.draw()
        message = base.BaseReceiver(0, 1, base.ReceiverSecrets(choices, drawn.own, drawn.other)).message()
        for which in (0, 1):
            strings = [message[i * OFFER + 1152 * which :][:1152] for i in range(128)]
            values = base._unpacked(strings)
            assert values.max() < base.Q
            counts = np.bincount(values[values < 13 * 256].ravel() // 256, minlength=13)
            expected = counts.sum() / 13
            assert ((counts - expected) ** 2 / expected).sum() < 67


def test_column_keys_differ_between_directions_columns_and_choices():
    keys = {
        base._column_key(parties, index, choice, b"offer", b"ciphertext", bytes(32))
        for parties in ((0, 1), (1, 0), (0, 2))
        for index in (0, 1)
        for choice in (0, 1)
    }
    assert len(keys) == 12


def test_secrets_do_not_show():
    assert repr(base.ReceiverSecrets.draw()) == "ReceiverSecrets(...)"


def test_messages_of_another_length_or_with_a_coefficient_out_of_range_are_refused(transferred):
    receiver, sender, _ = transferred
    good = receiver.message()
    for bad in (good[:-1], b"", good + b"\0", b"\xff" * 3 + good[3:]):
        with pytest.raises(PartyLost):
            base.BaseSender(0, 1, bad)
    with pytest.raises(PartyLost):
        receiver.column_keys(sender.message()[:-1])


def test_a_malformed_ciphertext_gives_another_key_and_no_error(transferred):
    """Whoever spoils a ciphertext makes a guess of the choice, which the check of the extension tells; see there."""
    receiver, sender, keys = transferred
    spoilt = bytearray(sender.message())
    choice = receiver.choices & 1
    spoilt[1088 * choice] ^= 1
    found = receiver.column_keys(bytes(spoilt))
    assert found[0] != keys[0]
    assert found[1:] == keys[1:]
