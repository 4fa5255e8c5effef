"""Correlated randomness for CrypTen without a dealer: what `runtime.using` takes.

CrypTen multiplies shares with triples that are used once (Beaver, CRYPTO 1991). Its own providers have a dealer, who
reads everything. Here no fourth party exists.

All values are integers: truncation, and so `wrap_rng`, is refused, like all that a provider here does not have.
"""

import math
import secrets
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ..errors import PartyLost, RuntimeUnsound
from ..fields import NUM_AGGREGATORS
from ..links.tls import Links
from . import runtime
from .base_transfers import CIPHERTEXTS_BYTES, COLUMNS, KEYS_BYTES, BaseReceiver, BaseSender
from .oblivious_transfer import BLOCK_BYTES, CHALLENGE_BYTES, PROOF_BYTES, OtReceiver, OtSender
from .runtime import ArithmeticSharedTensor, BinarySharedTensor, NoProvider

_BATCH_BYTES = 2**15  # 2**18 ANDs: messages of 4 MiB, which stay in the cache while they are made


class Replicated(NoProvider):
    """Triples from seeds that the parties share in pairs; no messages. Sound against ONE curious party of three.

    Party i holds a_i, from the seed that it has in common with party i-1, and a_{i+1}, in common with party i+1; and
    a = a_0 + a_1 + a_2. So each of the nine products a_j b_k is known to some party, and
    a_i b_i + a_i b_{i+1} + a_{i+1} b_i, blinded with a fresh sharing of zero, is its share of ab (Araki, Furukawa,
    Lindell, Nof, Ohara, CCS 2016, section 2). The same holds with XOR and AND. One party misses one summand of a and of
    b. Two parties that pool have all three: they read whatever is multiplied.
    """

    def generate_additive_triple(
        self, size0: Sequence[int], size1: Sequence[int], op: str, *args: Any, device: object = None, **kwargs: Any
    ) -> tuple[Any, Any, Any]:
        """Shares of a and b, uniform modulo 2**64, and of op(a, b), for a bilinear `op` of torch such as matmul."""
        multiply = getattr(torch, op)
        (a, a_next), (b, b_next) = runtime.pairwise(size0), runtime.pairwise(size1)
        c = (
            multiply(a, b, *args, **kwargs)
            + multiply(a, b_next, *args, **kwargs)
            + multiply(a_next, b, *args, **kwargs)
        )
        zero, zero_next = runtime.pairwise(c.shape)
        return _additive(a), _additive(b), _additive(c + zero - zero_next)

    def square(self, size: Sequence[int], device: object = None) -> tuple[Any, Any]:
        """Shares of r, uniform modulo 2**64, and of its square."""
        (r, r_next), (zero, zero_next) = runtime.pairwise(size), runtime.pairwise(size)
        return _additive(r), _additive(r * r + 2 * r * r_next + zero - zero_next)

    def generate_binary_triple(
        self, size0: Sequence[int], size1: Sequence[int], device: object = None
    ) -> tuple[Any, Any, Any]:
        """XOR shares of words a and b, uniform, and of a & b."""
        (a, a_next), (b, b_next) = runtime.pairwise(size0), runtime.pairwise(size1)
        c = (a & b) ^ (a & b_next) ^ (a_next & b)
        zero, zero_next = runtime.pairwise(c.shape)
        return _xored(a), _xored(b), _xored(c ^ zero ^ zero_next)

    def B2A_rng(self, size: Sequence[int], device: object = None) -> tuple[Any, Any]:  # CrypTen's name
        """Uniform bits, additively shared and XOR-shared; costs one multiplication.

        The bit is r_0 ^ r_1 ^ r_2. Party 0 knows u = r_0 ^ r_1 and party 2 knows r_2; u ^ r_2 = u + r_2 - 2 u r_2.
        """
        r, r_next = (words & 1 for words in runtime.pairwise(size))
        party, zero = runtime.aggregator_id(), torch.zeros(tuple(size), dtype=torch.long)
        u = _additive(r ^ r_next if party == 0 else zero)
        v = _additive(r if party == 2 else zero)
        return u + v - u * v * 2, _xored(r)


class Oblivious(NoProvider):
    """AND triples from oblivious transfer between each two parties. Any two of three learn nothing of the third's.

    c = (a_0 ^ a_1 ^ a_2) & (b_0 ^ b_1 ^ b_2): each party computes a_i & b_i, and for each ordered pair an OT with
    choice a_i and correlation b_j leaves v with party j and v ^ (a_i & b_j) with party i (Goldreich, Micali and
    Wigderson, STOC 1987; Gilboa, CRYPTO 1999). A random OT (x_0, x_1) becomes that one when j sends x_0 ^ x_1 ^ b_j
    (Beaver, CRYPTO 1995), which x_{1 - a_i} blinds. What an honest party holds is uniform whatever the others pool.

    A party that leaves the protocol can make triples wrong, each by a bit of one honest party's a or b in that triple;
    it does not learn them. docs/norm-check.md says what that is worth.

    Costs per AND and party: four OTs and 32.25 bytes sent. Make a new object, with base OTs of its own, for each order:
    what somebody learned of one by failing a check is then worth nothing.
    """

    def __init__(self, links: Links) -> None:
        """Makes base OTs with both other parties, in two exchanges.

        Raises:
            PartyLost: another party is gone, silent or sends no keys.
        """
        self._links = links
        me = links.aggregator_id
        others = [party for party in range(NUM_AGGREGATORS) if party != me]
        receivers = {party: BaseReceiver(sender_id=party, receiver_id=me) for party in others}
        offers = links.exchange("OTBA", {party: receivers[party].message() for party in others}, KEYS_BYTES)
        senders = {party: BaseSender(me, party, offers[party]) for party in others}
        answers = links.exchange("OTBC", {party: senders[party].message() for party in others}, CIPHERTEXTS_BYTES)
        self._senders = {
            party: OtSender(one.column_keys(answers[party]), one.choices, (me, party))
            for party, one in receivers.items()
        }
        self._receivers = {party: OtReceiver(one.column_keys(), (party, me)) for party, one in senders.items()}
        self._ready = np.empty((3, 0), np.uint8)  # packed bits of a, b, c, not used yet

    def prepare(self, words: int) -> None:
        """Makes triples for `words` words of 64 ANDs, beyond what is ready; all parties must ask for the same.

        Raises:
            PartyLost: another party is gone, silent or out of step.
            TransferRejected: a party failed the check of its OTs; the object is then of no use any more.
        """
        missing = 8 * words - self._ready.shape[1]
        sizes = [_BATCH_BYTES] * (missing // _BATCH_BYTES)
        if (rest := missing % _BATCH_BYTES) and missing > 0:
            sizes.append(-(-rest // BLOCK_BYTES) * BLOCK_BYTES)
        self._ready = np.concatenate([self._ready, *(self._batch(size) for size in sizes)], axis=1)

    def generate_binary_triple(
        self, size0: Sequence[int], size1: Sequence[int], device: object = None
    ) -> tuple[Any, Any, Any]:
        """XOR shares of words a and b, uniform, and of a & b; makes triples where none are ready."""
        if tuple(size0) != tuple(size1):
            raise RuntimeUnsound("CrypTen asks for AND triples of two sizes")
        words = math.prod(size0)
        self.prepare(words)
        taken, self._ready = np.split(self._ready, [8 * words], axis=1)
        a, b, c = np.ascontiguousarray(taken).view("<i8").astype(np.int64, copy=False)
        return tuple(_xored(torch.from_numpy(one.copy()).reshape(tuple(size0))) for one in (a, b, c))

    def _batch(self, size: int) -> npt.NDArray[np.uint8]:
        """Packed bits of a, b and c = a & b: this party's shares of 8 `size` triples."""
        a, b = np.frombuffer(secrets.token_bytes(2 * size), np.uint8).reshape(2, size)
        c = a & b
        messages = {}
        for party, receiver in self._receivers.items():
            hiding = np.frombuffer(secrets.token_bytes(BLOCK_BYTES), np.uint8)  # twice the same would hide nothing
            messages[party], chosen = receiver.extend(np.concatenate([a, hiding]))
            c ^= chosen
        spent = size + BLOCK_BYTES
        for party, message in self._links.exchange("OTEX", messages, COLUMNS * spent).items():
            self._senders[party].receive(message, spent)
        challenges = {party: secrets.token_bytes(CHALLENGE_BYTES) for party in self._senders}
        asked = self._links.exchange("OTCH", challenges, CHALLENGE_BYTES)
        proofs = {party: receiver.prove(asked[party]) for party, receiver in self._receivers.items()}
        answered = self._links.exchange("OTCK", proofs, PROOF_BYTES)
        for party, sender in self._senders.items():
            zeros, ones = sender.transfers(challenges[party], answered[party])
            c ^= zeros
            messages[party] = (zeros ^ ones ^ b).tobytes()
        for correction in self._links.exchange("OTCO", messages, size).values():
            if len(correction) != size:
                raise PartyLost("another party is out of step in oblivious transfer")
            c ^= a & np.frombuffer(correction, np.uint8)
        return np.stack([a, b, c])


def _additive(share: torch.Tensor) -> Any:
    return ArithmeticSharedTensor.from_shares(share, precision=0)


def _xored(share: torch.Tensor) -> Any:
    return BinarySharedTensor.from_shares(share, precision=0)
