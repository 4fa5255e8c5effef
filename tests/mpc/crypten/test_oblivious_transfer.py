"""Oblivious transfer against its definition, in plain integers, and its check against who leaves the protocol."""

import secrets

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from confide.mpc.crypten import oblivious_transfer as ot
from confide.mpc.errors import InvalidField, PartyLost, TransferRejected

BLOCK = ot.BLOCK_BYTES


def extended():
    """Both ends of an extension with random keys, as base transfers give them."""
    keys = [[secrets.token_bytes(16) for _ in range(ot.COLUMNS)] for _ in range(2)]
    s = secrets.randbits(ot.COLUMNS)
    sender = ot.OtSender([keys[s >> i & 1][i] for i in range(ot.COLUMNS)], s, (1, 0))
    return sender, ot.OtReceiver((keys[0], keys[1]), (1, 0))


@pytest.fixture(scope="module")
def ends():
    return extended()


def bits(packed):
    return np.unpackbits(np.frombuffer(packed, np.uint8), bitorder="little")


def choices(size, seed=0):
    return np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)


def transferred(ends, chosen_by, spoil=lambda message, proof, challenge: (message, proof)):
    """(zeros, ones, chosen) of the transfers for `chosen_by`, a last block for the check not counted."""
    sender, receiver = ends
    hiding = np.frombuffer(secrets.token_bytes(BLOCK), np.uint8)
    message, chosen = receiver.extend(np.concatenate([chosen_by, hiding]))
    challenge = secrets.token_bytes(16)
    message, proof = spoil(message, receiver.prove(challenge), challenge)
    sender.receive(message, len(chosen_by) + BLOCK)
    return *sender.transfers(challenge, proof), chosen


def test_receiver_gets_the_bit_of_its_choice(ends):
    chosen_by = choices(4096 + 48)  # more than one chunk, and a last one that is not full
    zeros, ones, chosen = transferred(ends, chosen_by)
    wanted = np.where(bits(chosen_by) == 1, bits(ones), bits(zeros))
    assert (bits(chosen) == wanted).all()
    assert 0.4 < bits(chosen_by).mean() < 0.6  # both choices were made


def test_extension_goes_on_over_many_messages(ends):
    for size in (16, 2048, 32):
        zeros, ones, chosen = transferred(ends, np.zeros(size, np.uint8))
        assert (chosen == zeros).all()
        assert (zeros != ones).any()


def test_bits_are_balanced_and_independent_of_the_choice(ends):
    """All eight combinations of (choice, zero, one) are equally frequent: 7 degrees of freedom, 1e-9 at 57."""
    chosen_by = choices(2**14, seed=1)
    zeros, ones, _ = transferred(ends, chosen_by)
    combination = bits(chosen_by) + 2 * bits(zeros) + 4 * bits(ones)
    counts = np.bincount(combination, minlength=8)
    expected = len(combination) / 8
    assert ((counts - expected) ** 2 / expected).sum() < 57


@pytest.mark.parametrize("constant", [0, 255])
def test_what_the_sender_sees_is_balanced_whatever_the_choices(ends, constant):
    _, receiver = ends
    message, _ = receiver.extend(np.full(2**10, constant, np.uint8))
    columns = np.frombuffer(message, np.uint8).reshape(ot.COLUMNS, -1)
    ones = np.array([int(bits(column).sum()) for column in columns])
    assert (abs(ones - 2**12) < 7 * (2**13 / 4) ** 0.5).all()  # 128 columns, 7 standard deviations
    assert abs(int(bits(message).sum()) - 2**19) < 7 * (2**20 / 4) ** 0.5


def test_transpose_is_the_transpose():
    matrix = np.random.default_rng(2).integers(0, 2, (128, 384), dtype=np.uint8)
    words = ot.transpose(np.packbits(matrix, axis=1, bitorder="little"))
    assert words.shape == (128, 3, 2)
    for row in range(384):
        found = words[row % 128, row // 128]
        assert (bits(found.tobytes()) == matrix[:, row]).all()


def test_hash_is_tmmo_of_a_fixed_aes_key():
    """Block by block with bytes XORed in Python integers, and one value that shall never change."""
    pi = Cipher(algorithms.AES(ot._FIXED_KEY), modes.ECB())
    rows, tweaks = np.random.default_rng(3).integers(0, 2**64, (2, 5, 2), dtype=np.uint64)

    def permuted(block):
        return int.from_bytes(pi.encryptor().update(block.to_bytes(16, "little")), "little")

    hashed = ot.RowHash((0, 1)).tmmo(rows, tweaks)
    for row, tweak, value in zip(rows, tweaks, hashed, strict=True):
        x, i = (int.from_bytes(words.tobytes(), "little") for words in (row, tweak))
        assert int.from_bytes(value.tobytes(), "little") == permuted(permuted(x) ^ i) ^ permuted(x)
    known = ot.RowHash((0, 1)).tmmo(np.array([[1, 2]], np.uint64), np.array([[3, 4]], np.uint64))
    assert known.tobytes().hex() == "b466116092dccad6b864b5a039a205f8"


def test_no_tweak_comes_twice():
    """Equal rows under equal tweaks would have equal hashes."""
    seen = []
    for parties in ((0, 1), (1, 0)):
        row_hash = ot.RowHash(parties)
        for _ in range(2):
            seen += [row_hash.bits(np.zeros((128, 256), np.uint8), [np.zeros(2, np.uint64)])[0].tobytes()]
    assert len(set(seen)) == 4


def gf_multiply(a, b):
    """The product in GCM's field (SP 800-38D, algorithm 1): the first bit of a block is its highest here."""
    z = 0
    for shift in range(127, -1, -1):
        if a >> shift & 1:
            z ^= b
        b = b >> 1 ^ (0xE1 << 120 if b & 1 else 0)
    return z


def test_the_hash_of_a_column_is_a_polynomial_in_a_key_that_is_no_constant():
    """The sum of w_k H^(n + 1 - k), k = 0 to n - 1, with H = AES of zeros: a field of 2^128 elements, degree n + 1."""
    challenge, columns = secrets.token_bytes(16), choices(3 * 64, seed=4).reshape(3, 64)
    key = int.from_bytes(Cipher(algorithms.AES(challenge), modes.ECB()).encryptor().update(bytes(16)), "big")
    for column, found in zip(columns, ot._hashes(challenge, columns), strict=True):
        expected = 0
        for start in range(0, 64, 16):
            expected = gf_multiply(expected ^ int.from_bytes(column[start : start + 16].tobytes(), "big"), key)
        assert int.from_bytes(found.tobytes(), "big") == gf_multiply(expected, key)


def test_the_hash_is_linear():
    challenge, (a, b) = secrets.token_bytes(16), choices(2 * 96, seed=5).reshape(2, 96)
    of_a, of_b, of_both = ot._hashes(challenge, np.stack([a, b, a ^ b]))
    assert (of_a ^ of_b == of_both).all()


def test_the_answer_shows_nothing_of_the_choices(ends):
    """Its first hash, of the choices, is hidden by the last block; the other ones follow from it and the sender's
    columns. Over 4,000 messages with the same choices each of its bits is balanced: 7 standard deviations."""
    counts = np.zeros(128, int)
    for _ in range(4000):
        hiding = np.frombuffer(secrets.token_bytes(BLOCK), np.uint8)
        proven = ot._hashes(bytes(range(16)), np.concatenate([np.full(16, 255, np.uint8), hiding])[None])
        counts += bits(proven.tobytes())
    assert (abs(counts - 2000) < 7 * 1000**0.5).all()


def flipped(column, size):
    """A message or column set with the first 128 transfers of one column the other way round."""
    out = np.zeros((ot.COLUMNS, size), np.uint8)
    out[column, :BLOCK] = 255
    return out


class Probe:
    """A receiver with other choices in some columns, which answers the check for its guesses of the sender's bits."""

    def __init__(self, guesses):
        self._guesses = guesses  # of the sender's bits, by column

    def __call__(self, message, proof, challenge):
        size = len(message) // ot.COLUMNS
        answers = np.frombuffer(proof, np.uint8).reshape(-1, BLOCK).copy()
        corrections = np.frombuffer(message, np.uint8).reshape(ot.COLUMNS, size)
        for column, guess in self._guesses.items():
            error = flipped(column, size)
            corrections = corrections ^ error
            if guess:
                answers[1 + column] ^= ot._hashes(challenge, error)[column]
        return corrections.tobytes(), answers.tobytes()


def test_without_its_check_the_extension_gives_all_128_bits_away():
    """The attack that the check is there for: the flipped column breaks the transfers where the sender's bit is 1."""
    found = 0
    sender, receiver = extended()
    for column in range(ot.COLUMNS):
        chosen_by = choices(32, seed=column)
        message, chosen = receiver.extend(np.concatenate([chosen_by, np.zeros(BLOCK, np.uint8)]))
        error = flipped(column, len(chosen_by) + BLOCK)
        sender.receive((np.frombuffer(message, np.uint8) ^ error.ravel()).tobytes(), len(chosen_by) + BLOCK)
        zeros, ones = sender._hash.bits(sender._columns[:, :-BLOCK], (np.zeros(2, np.uint64), sender._offset))
        wanted = np.where(bits(chosen_by) == 1, bits(ones), bits(zeros))
        found |= int((bits(chosen) != wanted).any()) << column
    assert found == int.from_bytes(sender._offset.tobytes(), "little")


@pytest.mark.parametrize("guess", [0, 1])
def test_a_probe_passes_the_check_just_if_its_guess_is_right(guess):
    """So that each bit that is learned was a coin: 128 columns, each against a sender of its own."""
    for column in range(ot.COLUMNS):
        ends = extended()
        bit = int.from_bytes(ends[0]._offset.tobytes(), "little") >> column & 1
        if bit == guess:
            transferred(ends, choices(32), Probe({column: guess}))
        else:
            with pytest.raises(TransferRejected, match="aggregators 0 and 1 failed its check: one of them"):
                transferred(ends, choices(32), Probe({column: guess}))


def test_who_probes_is_caught_after_one_bit_on_average():
    """Of 400 attackers that probe one column after the other: k bits with chance 2^-(k+1), so 1 on average."""

    def passed():
        ends = extended()
        for column in range(ot.COLUMNS):
            try:
                transferred(ends, choices(16), Probe({column: secrets.randbits(1)}))
            except TransferRejected:
                return column
        return ot.COLUMNS

    learned = [passed() for _ in range(400)]
    assert abs(np.mean(learned) - 1) < 7 * (2 / 400) ** 0.5  # a geometric number has variance 2
    assert max(learned) < 48  # 400 * 2^-48


def test_who_probes_all_columns_at_once_is_caught():
    with pytest.raises(TransferRejected):
        transferred(extended(), choices(32), Probe({column: secrets.randbits(1) for column in range(ot.COLUMNS)}))


@pytest.mark.parametrize("place", [0, 16, 16 * 64, -1])
def test_any_spoilt_byte_of_an_answer_is_noticed(place):
    def spoil(message, proof, challenge):
        changed = bytearray(proof)
        changed[place] ^= 1
        return message, bytes(changed)

    with pytest.raises(TransferRejected):  # the first hash, of the choices, where any of the sender's bits is 1
        transferred(extended(), choices(32), spoil)


def test_a_message_is_answered_once(ends):
    ends[1].extend(choices(32))
    ends[1].prove(bytes(16))
    with pytest.raises(AssertionError):
        ends[1].prove(bytes(16))


@pytest.mark.parametrize("size", [16, 31, 33])
def test_transfers_come_in_blocks_of_128_and_one_more(size):
    with pytest.raises(InvalidField):
        extended()[1].extend(np.zeros(size, np.uint8))


@pytest.mark.parametrize("size", [0, 128 * 32 - 1, 128 * 48])
def test_a_message_of_another_size_is_refused(ends, size):
    with pytest.raises(PartyLost):
        ends[0].receive(bytes(size), 32)


def test_a_challenge_or_an_answer_of_another_size_is_refused():
    sender, receiver = extended()
    message, _ = receiver.extend(choices(32))
    with pytest.raises(PartyLost):
        receiver.prove(bytes(15))
    sender.receive(message, 32)
    with pytest.raises(PartyLost):
        sender.transfers(bytes(16), bytes(ot.PROOF_BYTES - 1))
