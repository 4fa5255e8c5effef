"""Random bit oblivious transfers (OTs) between two parties, many at little cost each; neither need be honest.

A random OT gives the sender two uniform bits and the receiver, who has a choice bit, the one of its choice. The sender
learns nothing of the choice, the receiver nothing of the other bit.

Extension (Ishai, Kilian, Nissim and Petrank, CRYPTO 2003, section 3): 128 base OTs in the other direction give any
number of OTs. The keys are expanded by AES-128-CTR, and rows are hashed by the tweaked TMMO^pi(x, i) = pi(pi(x) ^ i) ^
pi(x) with pi AES-128 under a fixed public key (Guo, Katz, Wang and Yu, IEEE S&P 2020, section 7.4), no tweak twice.

Check. A receiver must use the same choices u in all 128 columns: with other ones in a column it would learn the
sender's bit of that column from what comes of it. So each column ends in 128 bits more, for random choices, and once
the corrections are there the sender draws the key of a hash h to 128 bits that is linear over GF(2): GHASH, which
AES-GCM has. The receiver answers h(u) and all h(t_i), t_i its first stream of column i. The sender's columns are t_i ^
s_i u, so h of them must be h(t_i) ^ s_i h(u), in each column by itself. This is the check of Roy (SoftSpokenOT, CRYPTO
2022) for the repetition code; that of Keller, Orsini and Scholl (CRYPTO 2015) puts all columns into one equation, and
Roy found a gap in its proof. docs/norm-check.md says what follows, and why.

Bits are packed eight to a byte, the first one lowest.
"""

import hmac
from collections.abc import Sequence
from hashlib import sha256

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes

from ..errors import InvalidField, PartyLost, TransferRejected
from .base_transfers import COLUMNS

Bytes = npt.NDArray[np.uint8]
Words = npt.NDArray[np.uint64]

BLOCK_BYTES = COLUMNS // 8  # OTs are extended in blocks of 128: 16 bytes of choices
CHALLENGE_BYTES = 16
PROOF_BYTES = (1 + COLUMNS) * BLOCK_BYTES
_CHUNK = 2048  # bytes of a column that are transposed and hashed at a time: 256 KiB, which fits the cache
_FIXED_KEY = sha256(b"confide/mpc/ot-hash/1").digest()[:16]  # public, and nobody chose it


class OtSender:
    """The sender of extended OTs: it holds a bit s_i and the stream of one of two keys for each of 128 columns.

    A message of the receiver is received, and then checked before its OTs are given out; see `OtReceiver`.
    """

    def __init__(self, keys: Sequence[bytes], choices: int, parties: tuple[int, int]) -> None:
        """Takes the keys of its choice from base OTs; `parties` are sender and receiver of the extension."""
        self._streams = [_stream(key) for key in keys]
        self._parties = parties
        self._offset = np.frombuffer(choices.to_bytes(BLOCK_BYTES, "little"), "<u8")
        bits = np.unpackbits(self._offset.view(np.uint8), bitorder="little")
        self._masks = (0 - bits)[:, None]  # 255 where the choice is 1
        self._hash = RowHash(parties)
        self._columns: Bytes | None = None  # received, not checked yet

    def receive(self, message: bytes, size: int) -> None:
        """Takes the receiver's message on choices of `size` bytes; only then may the challenge be told.

        Raises:
            PartyLost: `message` has another size.
        """
        if len(message) != COLUMNS * size:
            raise PartyLost("another party is out of step in oblivious transfer")
        self._columns = _expand(self._streams, size)
        self._columns ^= np.frombuffer(message, np.uint8).reshape(COLUMNS, size) & self._masks

    def transfers(self, challenge: bytes, proof: bytes) -> tuple[Bytes, Bytes]:
        """The two packed bits of each OT of the last message; the last block of it went into the check.

        Args:
            challenge: 16 random bytes that the receiver could not know when it sent its message.
            proof: the receiver's answer.

        Raises:
            TransferRejected: the receiver did not use the same choices in every column.
            PartyLost: `proof` has another size.
        """
        if len(proof) != PROOF_BYTES:
            raise PartyLost("another party is out of step in oblivious transfer")
        assert self._columns is not None
        columns, self._columns = self._columns, None
        of_choices, *of_streams = np.frombuffer(proof, np.uint8).reshape(1 + COLUMNS, BLOCK_BYTES)
        expected = np.stack(of_streams) ^ (of_choices & self._masks)
        if not hmac.compare_digest(_hashes(challenge, columns).tobytes(), expected.tobytes()):
            one, other = sorted(self._parties)
            raise TransferRejected(
                f"oblivious transfer between aggregators {one} and {other} failed its check: one of them does not keep "
                "to the protocol, and nothing was released"
            )
        zeros, ones = self._hash.bits(columns[:, :-BLOCK_BYTES], (np.zeros(2, np.uint64), self._offset))
        return zeros, ones


class OtReceiver:
    """The receiver of extended OTs: it holds the streams of both keys of each of 128 columns."""

    def __init__(self, keys: tuple[Sequence[bytes], Sequence[bytes]], parties: tuple[int, int]) -> None:
        """Takes both keys of each base OT; `parties` are sender and receiver of the extension."""
        self._streams = [[_stream(key) for key in each] for each in keys]
        self._hash = RowHash(parties)
        self._unproven: tuple[Bytes, Bytes] | None = None  # choices and columns of the last message

    def extend(self, choices: Bytes) -> tuple[bytes, Bytes]:
        """The message to the sender, 128 bits an OT, and the packed chosen bits, for packed `choices`.

        The last 128 choices must be uniform and used for nothing else: no OTs come of them, they hide the others in
        the check.

        Raises:
            InvalidField: `choices` are not a multiple of 16 bytes, at least 32.
        """
        if len(choices) < 2 * BLOCK_BYTES:
            raise InvalidField("oblivious transfers need a block of choices more, for their check")
        columns, corrections = (_expand(streams, len(choices)) for streams in self._streams)
        corrections ^= columns
        corrections ^= choices
        (chosen,) = self._hash.bits(columns[:, :-BLOCK_BYTES], (np.zeros(2, np.uint64),))
        self._unproven = choices, columns
        return corrections.tobytes(), chosen

    def prove(self, challenge: bytes) -> bytes:
        """The answer to the sender's challenge on the last message: 129 hashes of 16 bytes.

        There is one answer to a message: two would show more of the choices than the last block hides.

        Raises:
            PartyLost: the challenge has another size.
        """
        if len(challenge) != CHALLENGE_BYTES:
            raise PartyLost("another party is out of step in oblivious transfer")
        assert self._unproven is not None
        (choices, columns), self._unproven = self._unproven, None
        return _hashes(challenge, choices[None]).tobytes() + _hashes(challenge, columns).tobytes()


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
            columns: 128 packed columns of equal size, a multiple of 16 bytes.
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


def _hashes(challenge: bytes, columns: Bytes) -> Bytes:
    """[columns, 16], GHASH of each column under AES-GCM's key of `challenge`: linear over GF(2), zeros give zeros."""
    tags = [_tag(challenge, column) for column in (*columns, np.zeros_like(columns[0]))]
    hashed = np.frombuffer(b"".join(tags), np.uint8).reshape(-1, BLOCK_BYTES)
    linear: Bytes = hashed[:-1] ^ hashed[-1]  # without the mask and the length, which all tags have in common
    return linear


def _tag(key: bytes, column: Bytes) -> bytes:
    cipher = Cipher(algorithms.AES(key), modes.GCM(bytes(12))).encryptor()
    cipher.authenticate_additional_data(column.data)
    cipher.finalize()
    return cipher.tag


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
