"""Tags of vectors: a linear checksum under a key that the three parties do not have, to notice one that lies.

The coordinator draws a key for a round and tells it to the sites alone. A site shares the tags of its vector beside it,
the parties add up tags like vectors, and the opened total must have the opened sum of tags. The parties see only shares
of tags, which say nothing of the key.

What it proves. Let T be the honest total and T + D what is opened, D != 0 in the integers, and let the sums of tags be
off by any e that the liars chose as well. Neither depends on the key, not even where the liar has seen T: the last
party to give its share has. It must not see the sum of tags of T, or D = T and e = that sum, twice the total, would
pass; therefore the parties open totals to each other, and tags to the coordinator alone. With r uniform in
[0, 2**32)**n, a tag passes iff <r, D> = e modulo 2**64. Let D_j = 2**v * odd be the last entry of D that is not 0. For
fixed other r, the equation says what r_j is modulo 2**(64 - v), so at most max(1, 2**(v - 32)) of the 2**32 values of
r_j fit: a lie passes with probability at most 2**-min(32, 64 - v). Entries of T and T + D lie in [-B, B], so
2**v <= 2 B: a total of 32 bits has v <= 31 and the bound is 2**-32 a tag. This is the argument of SPDZ2k (Cramer et al.
2018, ePrint 2018/482, section 3): bits of the modulus above those of the data.

Several tags share one sequence, tag k starting at its place k (a Toeplitz matrix; Krawczyk 1994). They are as good as
independent ones: the equation of tag k holds r_(j + k), which is in no equation of a tag before it.

What it does not. A site that shares wrong tags fails the round, and looks like a party that lied; a site, or a party
that is told the key by one, can pass any total. Totals must not have wrapped: see `ring.plan_ring`.
"""

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from ..errors import InvalidField, TotalForged
from ..fields import MAX_TAGS, canonical, octets, whole
from .shares import Words

KEY_BYTES = 32
_BLOCK = 2**16  # entries at a time, which stay in the cache


def tags(units: npt.NDArray[np.int64], key: bytes, tag_count: int) -> Words:
    """The tags of a vector of integers modulo 2**64: linear in `units`.

    Tag k is the sum over j of r[j + k] * units[j]. r are the little-endian 32-bit words of the AES-256-CTR keystream,
    counter from 0, under HKDF-SHA256(key, no salt, "confide/mpc/tags/1").

    Args:
        key: 32 bytes, drawn for one round.

    Raises:
        InvalidField: `units` is no int64 vector, or the key or count is out of range.
    """
    if units.dtype != np.int64 or units.ndim != 1:
        raise InvalidField(f"need one int64 vector, got {units.dtype} of {units.ndim} dimensions")
    whole("tag_count", tag_count, 0, MAX_TAGS)
    derived = HKDF(SHA256(), 32, salt=None, info=canonical("confide/mpc/tags/1")).derive(octets("key", key, KEY_BYTES))
    stream = Cipher(algorithms.AES(derived), modes.CTR(bytes(16))).encryptor()
    words = np.ascontiguousarray(units).view(np.uint64)
    sums = [0] * tag_count
    ahead = max(tag_count - 1, 0)  # coefficients that the next block needs again
    coefficients = np.empty(0, np.uint32)
    for start in range(0, len(words), _BLOCK):
        block = words[start : start + _BLOCK]
        more = stream.update(bytes(4 * (len(block) + ahead - len(coefficients))))
        coefficients = np.concatenate((coefficients, np.frombuffer(more, "<u4")))
        wide = coefficients.astype(np.uint64)
        for k in range(tag_count):
            sums[k] += int(np.einsum("i,i->", block, wide[k : k + len(block)]))
        coefficients = coefficients[len(block) :]
    return np.array([value % 2**64 for value in sums], np.uint64)


def verify_total(units: npt.NDArray[np.int64], tag_sums: Words, key: bytes, bound: int) -> None:
    """Checks an opened total against the opened sum of the sites' tags.

    Args:
        units: the total in ring units.
        tag_sums: the sums of tags; their number is how many there are.
        key: what the sites were told.
        bound: most that an entry of an honest total reaches, in units.

    Raises:
        TotalForged: an entry is beyond `bound`, or the tags are not those of the total.
        InvalidField: the key or vector is malformed, or there are no tags.
    """
    whole("bound", bound, 1, 2**63 - 1)
    whole("the number of tags", len(tag_sums), 1, MAX_TAGS)
    if len(units) and (units.max() > bound or units.min() < -bound):
        raise TotalForged("the opened total is larger than any sum of honest sites")
    if (tags(units, key, len(tag_sums)) != tag_sums).any():
        raise TotalForged("the opened total does not have the tags that its sites made")
