"""Oblivious transfer against its definition, in plain integers."""

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from confide.mpc.crypten import oblivious_transfer as ot
from confide.mpc.errors import InvalidField, PartyLost
from confide.mpc.sharing.curve25519 import P, on_curve

ORDER = 2**252 + 27742317777372353535851937790883648493  # RFC 7748, section 4.1


def extended():
    """Both ends of an extension, after real base OTs."""
    base_receiver, base_sender = ot.BaseReceiver(0, 1), ot.BaseSender(0, 1)
    return base_receiver.extension(base_sender.message()), base_sender.extension(base_receiver.message())


@pytest.fixture(scope="module")
def ends():
    return extended()


def bits(packed):
    return np.unpackbits(np.frombuffer(packed, np.uint8), bitorder="little")


def choices(size, seed=0):
    return np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)


def has_order_dividing(scalar, u):
    """Whether scalar times the point with coordinate u is the identity: the ladder of RFC 7748, section 5."""
    x2, z2, x3, z3 = 1, 0, u, 1
    for shift in reversed(range(scalar.bit_length())):
        bit = scalar >> shift & 1
        if bit:
            x2, z2, x3, z3 = x3, z3, x2, z2
        a, b, c, d = x2 + z2, x2 - z2, x3 + z3, x3 - z3
        aa, bb = a * a % P, b * b % P
        e = aa - bb
        x3, z3 = (d * a + c * b) ** 2 % P, u * (d * a - c * b) ** 2 % P
        x2, z2 = aa * bb % P, e * (aa + 121665 * e) % P
        if bit:
            x2, z2, x3, z3 = x3, z3, x2, z2
    return z2 == 0


def test_receiver_gets_the_bit_of_its_choice(ends):
    sender, receiver = ends
    chosen_by = choices(4096 + 48)  # more than one chunk, and a last one that is not full
    message, chosen = receiver.extend(chosen_by)
    zeros, ones = sender.extend(message, len(chosen_by))
    wanted = np.where(bits(chosen_by) == 1, bits(ones), bits(zeros))
    assert (bits(chosen) == wanted).all()
    assert 0.4 < bits(chosen_by).mean() < 0.6  # both choices were made


def test_extension_goes_on_over_many_messages(ends):
    sender, receiver = ends
    seen = []
    for size in (16, 2048, 32):
        message, chosen = receiver.extend(np.zeros(size, np.uint8))
        zeros, _ = sender.extend(message, size)
        assert (chosen == zeros).all()
        seen.append(message[:16])
    assert len(set(seen)) == 3


def test_bits_are_balanced_and_independent_of_the_choice(ends):
    """All eight combinations of (choice, zero, one) are equally frequent: 7 degrees of freedom, 1e-9 at 57."""
    sender, receiver = ends
    chosen_by = choices(2**14, seed=1)
    message, _ = receiver.extend(chosen_by)
    zeros, ones = sender.extend(message, len(chosen_by))
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


def test_the_128_choices_that_hide_the_other_bit_are_fresh_and_balanced():
    first, second = extended(), extended()
    assert (first[0]._offset != second[0]._offset).any()
    assert 26 < int(np.bitwise_count(first[0]._offset).sum()) < 102  # binomial: 1e-11


def test_both_keys_of_a_base_transfer_are_points_of_the_prime_order_subgroup():
    keys = ot.BaseReceiver(0, 1).message()
    points = [int.from_bytes(keys[start : start + 32], "little") for start in range(0, len(keys), 32)]
    assert len(set(points)) == 2 * ot.COLUMNS
    for u in points:
        assert u < P
        assert on_curve(u)
        assert has_order_dividing(ORDER, u)


def test_the_ladder_knows_a_point_outside_the_subgroup():
    torsion = 325606250916557431795983626356110631294008115727848805560023387167927233504  # order 8, cr.yp.to/ecdh.html
    assert has_order_dividing(8, torsion)
    assert not has_order_dividing(ORDER, torsion)
    assert has_order_dividing(ORDER, 9)


def test_which_key_is_known_is_random():
    """The known key comes first where the choice bit is 0; 64 +- 37 of 128 hold but for 1e-11."""
    receiver = ot.BaseReceiver(0, 1)
    keys = receiver.message()
    known = [secret.public_key().public_bytes_raw() for secret in receiver._secrets]
    first = sum(keys[64 * i : 64 * i + 32] == known[i] for i in range(ot.COLUMNS))
    second = sum(keys[64 * i + 32 : 64 * i + 64] == known[i] for i in range(ot.COLUMNS))
    assert first + second == ot.COLUMNS
    assert 26 < first < 102


def test_column_keys_differ_between_directions_columns_and_choices():
    shared = bytes(32)
    keys = {
        ot._column_key(parties, index, bytes(32), point, shared)
        for parties in ((0, 1), (1, 0), (0, 2))
        for index in (0, 1)
        for point in (bytes(32), b"\1" * 32)
    }
    assert len(keys) == 12


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


def test_transfers_come_in_blocks_of_128(ends):
    with pytest.raises(InvalidField):
        ends[1].extend(np.zeros(15, np.uint8))


@pytest.mark.parametrize("size", [0, 128 * 16 - 1, 128 * 32])
def test_a_message_of_another_size_is_refused(ends, size):
    with pytest.raises(PartyLost):
        ends[0].extend(bytes(size), 16)


@pytest.mark.parametrize(
    "key", [bytes(32), (1).to_bytes(32, "little"), bytes(31), b""], ids=["0", "1", "short", "none"]
)
def test_a_key_of_small_order_or_another_size_is_refused(key):
    with pytest.raises(PartyLost):
        ot.BaseReceiver(0, 1).extension(key)
    good = X25519PrivateKey.generate().public_key().public_bytes_raw()
    with pytest.raises(PartyLost):
        ot.BaseSender(0, 1).extension(good * 255 + key)
