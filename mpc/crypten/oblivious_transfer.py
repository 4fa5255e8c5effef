"""Random bit oblivious transfers (OTs) between two parties, many at little cost each.

A random OT gives the sender two uniform bits and the receiver, who has a choice bit, the one of its choice. The sender
learns nothing of the choice, the receiver nothing of the other bit. Both parties keep to the protocol (semi-honest).

Base OTs, from public keys that can be drawn without their secret key (Gertner, Kannan, Malkin, Reingold and
Viswanathan, FOCS 2000, section 3), here hashed Diffie-Hellman: the receiver sends two X25519 keys and knows the secret
key of one. The sender, with one ephemeral key for all, derives a key from either; the receiver can derive one. That the
other stays hidden is the computational Diffie-Hellman assumption on Curve25519, with SHA-256 as a random oracle; a
quantum computer would break it.

Extension (Ishai, Kilian, Nissim and Petrank, CRYPTO 2003, section 3): 128 base OTs in the other direction give any
number of OTs. The keys are expanded by AES-128-CTR, and rows are hashed by the tweaked TMMO^pi(x, i) = pi(pi(x) ^ i) ^
pi(x) with pi AES-128 under a fixed public key (Guo, Katz, Wang and Yu, IEEE S&P 2020, section 7.4), no tweak twice.

Bits are packed eight to a byte, the first one lowest.
"""

import secrets
from collections.abc import Sequence
from hashlib import sha256

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes

from ..errors import InvalidField, PartyLost
from ..fields import canonical
from ..sharing.curve25519 import P, on_curve

Bytes = npt.NDArray[np.uint8]
Words = npt.NDArray[np.uint64]

COLUMNS = 128  # base OTs of an extension, and the security parameter
BLOCK_BYTES = COLUMNS // 8  # OTs are extended in blocks of 128: 16 bytes of choices
SENDER_KEY_BYTES = _POINT = 32
KEYS_BYTES = 2 * COLUMNS * _POINT
_CHUNK = 2048  # bytes of a column that are transposed and hashed at a time: 256 KiB, which fits the cache
_FIXED_KEY = sha256(b"confide/mpc/ot-hash/1").digest()[:16]  # public, and nobody chose it


class BaseReceiver:
    """The receiver of 128 base OTs; it becomes the sender of the extension.

    The sender cannot tell which of two keys is the known one: both are u-coordinates of uniform points of the subgroup
    of prime order q = 2^252 + d, d < 2^125. The known one is n G with n = 8 j and j uniform in [2^251, 2^252), as
    X25519 draws it. A u-coordinate stands for n and -n, and each class {j, q - j} has just one member in that range,
    but for about d of the 2^251: a statistical distance below 2^-126. The unknown one is n' Q with Q a uniform point
    of the curve, whose part in the subgroup is uniform: n' is a multiple of the cofactor 8, which removes the other
    part, and none of q, which keeps the first uniform. n' is thrown away, and nobody knows the logarithm of Q.
    """

    def __init__(self, sender_id: int, receiver_id: int) -> None:
        """Draws choices and keys; `sender_id` and `receiver_id` are the aggregators of the base OTs."""
        self._label = (sender_id, receiver_id)
        self._choices = secrets.randbits(COLUMNS)
        self._secrets = [X25519PrivateKey.generate() for _ in range(COLUMNS)]
        self._keys: list[bytes] = []
        for index, secret in enumerate(self._secrets):
            pair = secret.public_key().public_bytes_raw(), _point_of_unknown_logarithm()
            self._keys.extend(pair if not self._choices >> index & 1 else reversed(pair))

    def message(self) -> bytes:
        """The message to the sender: 128 pairs of public keys."""
        return b"".join(self._keys)

    def extension(self, sender_key: bytes) -> "OtSender":
        """The sender of the extension, once the ephemeral key of the base OTs' sender is here.

        Raises:
            PartyLost: the key cannot be used.
        """
        columns = []
        for index, secret in enumerate(self._secrets):
            choice = self._choices >> index & 1
            shared = _agree(secret, sender_key)
            columns.append(_column_key(self._label, index, sender_key, self._keys[2 * index + choice], shared))
        receiver_of_extension, sender_of_extension = self._label
        return OtSender(columns, self._choices, (sender_of_extension, receiver_of_extension))


class BaseSender:
    """The sender of 128 base OTs; it becomes the receiver of the extension."""

    def __init__(self, sender_id: int, receiver_id: int) -> None:
        """Draws the ephemeral key; `sender_id` and `receiver_id` are the aggregators of the base OTs."""
        self._label = (sender_id, receiver_id)
        self._secret = X25519PrivateKey.generate()

    def message(self) -> bytes:
        """The message to the receiver: the ephemeral public key."""
        return self._secret.public_key().public_bytes_raw()

    def extension(self, keys: bytes) -> "OtReceiver":
        """The receiver of the extension, from the base OTs' receiver's 128 pairs of keys.

        Raises:
            PartyLost: they are not 256 keys.
        """
        if len(keys) != KEYS_BYTES:
            raise PartyLost("another party sends no keys for oblivious transfer")
        points = [keys[start : start + _POINT] for start in range(0, KEYS_BYTES, _POINT)]
        mine = self.message()
        columns = [
            _column_key(self._label, which // 2, mine, point, _agree(self._secret, point))
            for which, point in enumerate(points)
        ]
        receiver_of_extension, sender_of_extension = self._label
        return OtReceiver(columns[::2], columns[1::2], (sender_of_extension, receiver_of_extension))


class OtSender:
    """The sender of extended OTs: it holds a bit s_i and the stream of one of two keys for each of 128 columns."""

    def __init__(self, keys: Sequence[bytes], choices: int, parties: tuple[int, int]) -> None:
        self._streams = [_stream(key) for key in keys]
        self._offset = np.frombuffer(choices.to_bytes(BLOCK_BYTES, "little"), "<u8")
        bits = np.unpackbits(self._offset.view(np.uint8), bitorder="little")
        self._masks = (0 - bits)[:, None]  # 255 where the choice is 1
        self._hash = RowHash(parties)

    def extend(self, message: bytes, size: int) -> tuple[Bytes, Bytes]:
        """The two packed bits of each of 8 `size` OTs, `size` a multiple of 16, for the receiver's `message` on them.

        Raises:
            PartyLost: `message` has another size.
        """
        if len(message) != COLUMNS * size:
            raise PartyLost("another party is out of step in oblivious transfer")
        corrections = np.frombuffer(message, np.uint8).reshape(COLUMNS, size)
        columns = _expand(self._streams, size)
        columns ^= corrections & self._masks
        zeros, ones = self._hash.bits(columns, (np.zeros(2, np.uint64), self._offset))
        return zeros, ones


class OtReceiver:
    """The receiver of extended OTs: it holds the streams of both keys of each of 128 columns."""

    def __init__(self, keys_0: Sequence[bytes], keys_1: Sequence[bytes], parties: tuple[int, int]) -> None:
        self._streams_0 = [_stream(key) for key in keys_0]
        self._streams_1 = [_stream(key) for key in keys_1]
        self._hash = RowHash(parties)

    def extend(self, choices: Bytes) -> tuple[bytes, Bytes]:
        """The message to the sender, 128 bits an OT, and the packed chosen bits, for packed `choices`.

        Raises:
            InvalidField: `choices` are not a multiple of 16 bytes.
        """
        columns = _expand(self._streams_0, len(choices))
        corrections = _expand(self._streams_1, len(choices))
        corrections ^= columns
        corrections ^= choices
        (chosen,) = self._hash.bits(columns, (np.zeros(2, np.uint64),))
        return corrections.tobytes(), chosen


class RowHash:
    """Hashes the rows of 128-column bit matrices to one bit each, under tweaks that never come again."""

    def __init__(self, parties: tuple[int, int]) -> None:
        """`parties` are the sender and the receiver of the OTs: tweaks differ between directions as well."""
        sender_id, receiver_id = parties
        self._direction = np.uint64(1 + 3 * sender_id + receiver_id)
        self._used = 0  # tweaks
        self._permutation = Cipher(algorithms.AES(_FIXED_KEY), modes.ECB()).encryptor()  # noqa: S305  # as pi, not to encrypt

    def bits(self, columns: Bytes, offsets: Sequence[Words]) -> list[Bytes]:
        """Hashes every row XOR each offset to its lowest bit; an array an offset, packed in the rows' order.

        Args:
            columns: 128 packed columns of equal size, a multiple of 16 bytes; they are used up.
            offsets: each two words: the 128 bits of a row, those of the first columns lowest.
        """
        size = columns.shape[1]
        hashed = [np.empty(size, np.uint8) for _ in offsets]
        for start in range(0, size, _CHUNK):
            rows = transpose(columns[:, start : start + _CHUNK])
            tweaks = np.empty(rows.shape, np.uint64)
            tweaks[..., 0] = np.arange(self._used, self._used + tweaks[..., 0].size).reshape(rows.shape[:2])
            tweaks[..., 1] = self._direction
            self._used += tweaks[..., 0].size
            for packed, offset in zip(hashed, offsets, strict=True):
                bits = (self.tmmo(rows ^ offset, tweaks)[..., 0] & np.uint64(1)).astype(np.uint8)
                packed[start : start + _CHUNK] = np.packbits(bits.T, bitorder="little")
        return hashed

    def tmmo(self, rows: Words, tweaks: Words) -> Words:
        """TMMO of each row of two words under its tweak."""
        once = self._permuted(rows)
        return self._permuted(once ^ tweaks) ^ once

    def _permuted(self, rows: Words) -> Words:
        out = np.empty(rows.nbytes + BLOCK_BYTES, np.uint8)  # the cipher wants room for one block more
        self._permutation.update_into(np.ascontiguousarray(rows).data.cast("B"), out.data)
        return out[: rows.nbytes].view("<u8").reshape(rows.shape)


def transpose(columns: Bytes) -> Words:
    """The rows of a matrix of 128 packed columns, as uint64 of shape [128, blocks, 2].

    Row 128 k + j of the matrix is at [j, k]: each block of 128 rows is transposed in place by exchanging quarters of
    squares of side 128, 64, ..., 2 (Eklundh, IEEE Transactions on Computers C-21, 1972), over all blocks at once.
    """
    words = np.ascontiguousarray(columns).view("<u8").reshape(COLUMNS, -1, 2)
    upper = words[:64, :, 1].copy()
    words[:64, :, 1] = words[64:, :, 0]
    words[64:, :, 0] = upper
    half = 32
    mask = 2**32 - 1  # the lower half of each pair of neighbouring runs of `half` bits
    while half:
        squares = words.reshape(COLUMNS // (2 * half), 2, half, -1)
        top, bottom, shift = squares[:, 0], squares[:, 1], np.uint64(half)
        exchanged = top >> shift
        exchanged ^= bottom
        exchanged &= np.uint64(mask)
        bottom ^= exchanged
        exchanged <<= shift
        top ^= exchanged
        half //= 2
        mask ^= mask << half & 2**64 - 1
    return words


def _point_of_unknown_logarithm() -> bytes:
    """The u-coordinate of a uniform point of the subgroup of prime order."""
    while True:
        u = secrets.randbits(255)
        if u >= P or not on_curve(u):
            continue
        try:
            return X25519PrivateKey.generate().exchange(X25519PublicKey.from_public_bytes(u.to_bytes(_POINT, "little")))
        except ValueError:  # one of the few points of small order
            continue


def _agree(secret: X25519PrivateKey, point: bytes) -> bytes:
    try:
        return secret.exchange(X25519PublicKey.from_public_bytes(point))
    except ValueError as err:  # its length, or a small order
        raise PartyLost("another party sends a key that cannot be used") from err


def _column_key(parties: tuple[int, int], index: int, sender_key: bytes, point: bytes, shared: bytes) -> bytes:
    return sha256(canonical("confide/mpc/base-ot/1", *parties, index, sender_key, point, shared)).digest()[:16]


def _stream(key: bytes) -> CipherContext:
    return Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()


def _expand(streams: Sequence[CipherContext], size: int) -> Bytes:
    """The next `size` bytes of each stream, one a row."""
    if size % BLOCK_BYTES:
        raise InvalidField(f"oblivious transfers come in blocks of {COLUMNS}")
    out, zeros = np.empty((len(streams), size), np.uint8), bytes(size)
    for row, stream in zip(out, streams, strict=True):
        stream.update_into(zeros, row.data)
    return out
