"""Base oblivious transfers (OTs) between two parties: 128 keys of one's choice, which an extension stretches.

Masny and Rindal, Endemic Oblivious Transfer (CCS 2019), with ML-KEM-768 (FIPS 203) as key agreement. For each OT the
receiver sends two strings R_0 and R_1, and the sender encapsulates to both keys K_c = R_c + H(c, R_{1-c}). The
receiver draws the one string at random and chooses the other so that the key there is one of its own.

Neither party need be honest. The sender learns nothing of the choice: R_0 and R_1 are uniform whatever it is, given
that a public key looks uniform (module learning with errors, MLWE). The receiver knows at most one key: whichever of
the two hashes it asks for last makes that key a uniform one, whose secret key nobody has (MLWE again, H a random
oracle). A malformed ciphertext gives another column key than the sender thinks, which the check of the extension treats
like a guess of the choice. No quantum computer is known to break this.
"""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256, shake_256

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey

from ..errors import PartyLost
from ..fields import canonical

Coefficients = npt.NDArray[np.uint16]

COLUMNS = 128
Q = 3329
_COEFFICIENTS = 768  # of the vector in a key, three polynomials of 256
_VECTOR_BYTES = _COEFFICIENTS * 12 // 8
_MATRIX_BYTES = 32  # the seed of a key's matrix, which both keys of an OT have in common
_OFFER_BYTES = 2 * _VECTOR_BYTES + _MATRIX_BYTES
_CIPHERTEXT_BYTES = 1088
KEYS_BYTES = COLUMNS * _OFFER_BYTES
CIPHERTEXTS_BYTES = 2 * COLUMNS * _CIPHERTEXT_BYTES
_WORDS = 1024  # of 16 bits, of which 768 are below the largest multiple of Q but for a chance below 2^-500


@dataclass(frozen=True, slots=True)
class ReceiverSecrets:
    """Random secrets of a receiver: its choices, and for each OT the seeds of its own key and of the other string."""

    choices: int  # 128 bits
    own: tuple[bytes, ...]  # 64 bytes each, ML-KEM's d and z
    other: tuple[bytes, ...]  # 32 bytes each

    @classmethod
    def draw(cls) -> "ReceiverSecrets":
        """Fresh ones of the operating system."""
        own, other = (tuple(secrets.token_bytes(size) for _ in range(COLUMNS)) for size in (64, 32))
        return cls(secrets.randbits(COLUMNS), own, other)

    def __repr__(self) -> str:
        return "ReceiverSecrets(...)"


class BaseReceiver:
    """The receiver of 128 base OTs; it becomes the sender of the extension."""

    def __init__(self, sender_id: int, receiver_id: int, drawn: ReceiverSecrets | None = None) -> None:
        """Makes the keys; `sender_id` and `receiver_id` are the aggregators of the base OTs.

        Args:
            drawn: its secrets, each good for one pair of parties and one time; None for fresh ones.
        """
        drawn = drawn or ReceiverSecrets.draw()
        self.choices = drawn.choices
        self._parties = sender_id, receiver_id
        self._keys = [MLKEM768PrivateKey.from_seed_bytes(seed) for seed in drawn.own]
        self._offers = self._make_offers(drawn.other)

    def message(self) -> bytes:
        """The message to the sender: of each OT R_0, R_1 and the seed of the matrix."""
        return b"".join(self._offers)

    def column_keys(self, ciphertexts: bytes) -> list[bytes]:
        """The keys of its choice, from the sender's answer.

        Raises:
            PartyLost: the answer has another length.
        """
        if len(ciphertexts) != CIPHERTEXTS_BYTES:
            raise PartyLost("another party sends no ciphertexts for oblivious transfer")
        keys = []
        for index, (key, offer) in enumerate(zip(self._keys, self._offers, strict=True)):
            choice = self.choices >> index & 1
            ciphertext = _slice(ciphertexts, 2 * index + choice, _CIPHERTEXT_BYTES)
            shared = key.decapsulate(ciphertext)
            keys.append(_column_key(self._parties, index, choice, offer, ciphertext, shared))
        return keys

    def _make_offers(self, seeds: Sequence[bytes]) -> list[bytes]:
        own = [key.public_key().public_bytes_raw() for key in self._keys]
        matrices = [key[_VECTOR_BYTES:] for key in own]
        others = _packed(np.stack([_uniform(canonical("confide/mpc/base-ot-other/1", seed)) for seed in seeds]))
        masks = [
            _mask(self._parties, index, self.choices >> index & 1, matrix, other)
            for index, (matrix, other) in enumerate(zip(matrices, others, strict=True))
        ]
        chosen = _packed(_unpacked([key[:_VECTOR_BYTES] for key in own]) + (Q - np.stack(masks)))
        return [
            b"".join([other, mine] if self.choices >> index & 1 else [mine, other]) + matrix
            for index, (mine, other, matrix) in enumerate(zip(chosen, others, matrices, strict=True))
        ]


class BaseSender:
    """The sender of 128 base OTs; it becomes the receiver of the extension."""

    def __init__(self, sender_id: int, receiver_id: int, offers: bytes) -> None:
        """Encapsulates to all 256 keys; `sender_id` and `receiver_id` are the aggregators of the base OTs.

        Args:
            offers: the receiver's message.

        Raises:
            PartyLost: it is none.
        """
        if len(offers) != KEYS_BYTES:
            raise PartyLost("another party sends no keys for oblivious transfer")
        parties, split = (sender_id, receiver_id), [_slice(offers, index, _OFFER_BYTES) for index in range(COLUMNS)]
        self._ciphertexts: list[bytes] = []
        self._keys: tuple[list[bytes], list[bytes]] = [], []
        for index, (offer, pair) in enumerate(zip(split, offered_keys(parties, split), strict=True)):
            for choice, key in enumerate(pair):
                shared, ciphertext = MLKEM768PublicKey.from_public_bytes(key).encapsulate()
                self._ciphertexts.append(ciphertext)
                self._keys[choice].append(_column_key(parties, index, choice, offer, ciphertext, shared))

    def message(self) -> bytes:
        """The answer to the receiver: of each OT the ciphertexts for K_0 and K_1."""
        return b"".join(self._ciphertexts)

    def column_keys(self) -> tuple[list[bytes], list[bytes]]:
        """Both keys of each OT."""
        return self._keys


def offered_keys(parties: tuple[int, int], offers: Sequence[bytes]) -> list[tuple[bytes, bytes]]:
    """The public keys K_0 and K_1 of each OT, from what the receiver sent for it.

    Raises:
        PartyLost: a coefficient is out of range.
    """
    strings = [[_slice(offer, which, _VECTOR_BYTES) for offer in offers] for which in (0, 1)]
    matrices = [offer[2 * _VECTOR_BYTES :] for offer in offers]
    keys = []
    for choice, (mine, others) in enumerate([strings, strings[::-1]]):
        vectors = _unpacked(mine)
        if (vectors >= Q).any():
            raise PartyLost("another party sends a key that cannot be used")
        named = enumerate(zip(matrices, others, strict=True))
        masks = [_mask(parties, index, choice, matrix, other) for index, (matrix, other) in named]
        packed = _packed(vectors + np.stack(masks))
        keys.append([vector + matrix for vector, matrix in zip(packed, matrices, strict=True)])
    return list(zip(*keys, strict=True))


def _mask(parties: tuple[int, int], index: int, choice: int, matrix: bytes, other: bytes) -> Coefficients:
    return _uniform(canonical("confide/mpc/base-ot-mask/1", *parties, index, choice, matrix, other))


def _uniform(name: bytes) -> Coefficients:
    """[768], uniform modulo Q, from SHAKE-256 as a random oracle."""
    words = np.frombuffer(shake_256(name).digest(2 * _WORDS), "<u2")
    return words[words < 2**16 // Q * Q][:_COEFFICIENTS] % Q


def _packed(vectors: Coefficients) -> list[bytes]:
    """Of each row modulo Q 12 bits a coefficient, the lowest first (FIPS 203, ByteEncode_12)."""
    low, high = (vectors % Q)[:, 0::2], (vectors % Q)[:, 1::2]
    data = np.stack([low & 255, low >> 8 | (high & 15) << 4, high >> 4], axis=2).astype(np.uint8)
    return [row.tobytes() for row in data]


def _unpacked(strings: Sequence[bytes]) -> Coefficients:
    """[strings, 768], not reduced modulo Q."""
    data = np.frombuffer(b"".join(strings), np.uint8).reshape(len(strings), -1, 3).astype(np.uint16)
    first, middle, last = data[..., 0], data[..., 1], data[..., 2]
    return np.stack([first | (middle & 15) << 8, middle >> 4 | last << 4], axis=2).reshape(len(strings), -1)


def _column_key(
    parties: Sequence[int], index: int, choice: int, offer: bytes, ciphertext: bytes, shared: bytes
) -> bytes:
    named = canonical("confide/mpc/base-ot/2", *parties, index, choice, offer, ciphertext, shared)
    return sha256(named).digest()[:16]


def _slice(data: bytes, place: int, size: int) -> bytes:
    return data[place * size : (place + 1) * size]
