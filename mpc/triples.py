"""Correlated randomness for CrypTen without a dealer: what `crypten_runtime.using` takes.

CrypTen multiplies shares with triples that are used once (Beaver, CRYPTO 1991). Its own providers have a dealer, who
reads everything. Here no fourth party exists.

All values are integers: truncation, and so `wrap_rng`, is refused.
"""

from collections.abc import Sequence
from typing import Any, Never

import torch

from . import crypten_runtime
from .crypten_runtime import ArithmeticSharedTensor, BinarySharedTensor
from .errors import RuntimeUnsound


class Replicated:
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
        (a, a_next), (b, b_next) = crypten_runtime.pairwise(size0), crypten_runtime.pairwise(size1)
        c = (
            multiply(a, b, *args, **kwargs)
            + multiply(a, b_next, *args, **kwargs)
            + multiply(a_next, b, *args, **kwargs)
        )
        zero, zero_next = crypten_runtime.pairwise(c.shape)
        return _additive(a), _additive(b), _additive(c + zero - zero_next)

    def square(self, size: Sequence[int], device: object = None) -> tuple[Any, Any]:
        """Shares of r, uniform modulo 2**64, and of its square."""
        (r, r_next), (zero, zero_next) = crypten_runtime.pairwise(size), crypten_runtime.pairwise(size)
        return _additive(r), _additive(r * r + 2 * r * r_next + zero - zero_next)

    def generate_binary_triple(
        self, size0: Sequence[int], size1: Sequence[int], device: object = None
    ) -> tuple[Any, Any, Any]:
        """XOR shares of words a and b, uniform, and of a & b."""
        (a, a_next), (b, b_next) = crypten_runtime.pairwise(size0), crypten_runtime.pairwise(size1)
        c = (a & b) ^ (a & b_next) ^ (a_next & b)
        zero, zero_next = crypten_runtime.pairwise(c.shape)
        return _xored(a), _xored(b), _xored(c ^ zero ^ zero_next)

    def B2A_rng(self, size: Sequence[int], device: object = None) -> tuple[Any, Any]:  # CrypTen's name
        """Uniform bits, additively shared and XOR-shared; costs one multiplication.

        The bit is r_0 ^ r_1 ^ r_2. Party 0 knows u = r_0 ^ r_1 and party 2 knows r_2; u ^ r_2 = u + r_2 - 2 u r_2.
        """
        r, r_next = (words & 1 for words in crypten_runtime.pairwise(size))
        party, zero = crypten_runtime.aggregator_id(), torch.zeros(tuple(size), dtype=torch.long)
        u = _additive(r ^ r_next if party == 0 else zero)
        v = _additive(r if party == 2 else zero)
        return u + v - u * v * 2, _xored(r)

    def wrap_rng(self, size: Sequence[int], device: object = None) -> Never:
        """Refused.

        Raises:
            RuntimeUnsound: always.
        """
        raise RuntimeUnsound("CrypTen asks to truncate: compute on integers, with precision 0")


def _additive(share: torch.Tensor) -> Any:
    return ArithmeticSharedTensor.from_shares(share, precision=0)


def _xored(share: torch.Tensor) -> Any:
    return BinarySharedTensor.from_shares(share)
