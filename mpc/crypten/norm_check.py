"""Norm check by the three parties on shares: tells the sites whose vectors are too long, and opens one bit a site.

For each row of a site's sketch z the parties know y = z + m modulo 2^b, with m a mask that the site drew once, uniform
and unknown to any two parties; they hold m's bits as XOR shares. A row exceeds where m is outside a public interval
about y, and a site is rejected where more than tau of its rows do.

The circuit is evaluated as Goldreich, Micali and Wigderson (STOC 1987) do, on CrypTen's XOR shares, for all rows of all
sites (256 at a time) at once. XOR is local, so only AND counts. With L = `limits.bits_used` and R = `limits.rows`:

* A shared word against a public constant, from the top bit down: L - 1 ANDs give the products "all bits so far are
  equal", and what is less is a public combination of them. In about sqrt(L) runs of bits side by side, then joined:
  the same L - 1 ANDs in about 2 sqrt(L) steps. Two constants a row.
* Counting the rows: full adders of one AND each (Boyar, Peralta and Pochuev, Theoretical Computer Science 235, 2000),
  with a public constant among the summands that makes the sum reach 2^w just if the count is above tau.

That is 2 (L - 1) R + about R ANDs a site; 8,448 in 22 steps for L = 17 and R = 256, and one step more to open. Against
two curious parties the ANDs need triples from `triples.Oblivious`. A site whose mask bits are not those of its mask
shifts its own z by a constant that it chose before the sketch was drawn, and nothing else.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch

from ..errors import InvalidField
from ..sharing.ring import RingVector
from ..sharing.sketch import Limits, interval
from . import runtime
from .runtime import BinarySharedTensor
from .triples import Oblivious

Bits = npt.NDArray[np.uint8]  # of 0 and 1: public, or a party's XOR share
And = Callable[[Bits, Bits], Bits]  # shares of x & y, of the same shape, from shares of x and y

_WORD = 64
_AT_ONCE = 256  # sites: 51 MB at 39 bits and 256 rows


def verdicts(
    opened: RingVector, mask_words: npt.NDArray[np.uint64], limits: Limits, triples: Oblivious
) -> npt.NDArray[np.bool_]:
    """[sites], True where a site is rejected; the same at all three parties, which call this with the same sites.

    `runtime` must be started in this thread, on the links of `triples`.

    Args:
        opened: [sites, rows], y, the same at all parties; a mask is good for one sketch only, since two openings
            under it show a difference.
        mask_words: [sites, rows], this party's XOR share of the masks; of each the low `limits.ring_bits` bits count.

    Raises:
        PartyLost: another party is gone, silent or out of step.
        InvalidField: an array has the wrong shape or type.
    """
    sites = len(opened)
    shape = (sites, limits.rows)
    if opened.shape != shape or mask_words.shape != shape or mask_words.dtype != np.uint64:
        raise InvalidField(f"need {limits.rows} opened rows and uint64 mask words of each site")
    if not sites:
        return np.zeros(0, np.bool_)
    triples.prepare(triple_words(limits, sites))
    with runtime.using(triples):
        parts = [
            _opened_verdicts(opened[start : start + _AT_ONCE], mask_words[start : start + _AT_ONCE], limits)
            for start in range(0, sites, _AT_ONCE)
        ]
    return np.concatenate(parts)


def triple_words(limits: Limits, sites: int) -> int:
    """Words of 64 triples that `verdicts` takes; they can be prepared while the parties wait for the sites."""
    parts = [min(_AT_ONCE, sites - start) for start in range(0, sites, _AT_ONCE)]
    return sum(_words(ands * part) for ands in and_counts(limits) for part in parts)


def and_counts(limits: Limits) -> list[int]:
    """Counts the ANDs that a site costs in each of the circuit's steps, one after the other."""
    counts = []

    def count(x: Bits, y: Bits) -> Bits:
        counts.append(x.size)
        return x

    nothing = np.zeros((1, limits.rows), np.uint64)
    verdict_shares(nothing, nothing, limits, 0, count)
    return counts


def verdict_shares(
    opened: RingVector, mask_words: npt.NDArray[np.uint64], limits: Limits, aggregator_id: int, and_: And
) -> Bits:
    """[sites], this party's XOR share of the verdicts; `and_` is called once a step, with all ANDs of it."""

    def public(bits: Bits) -> Bits:
        return bits if aggregator_id == 0 else np.zeros_like(bits)

    low, high = interval(opened, limits)
    largest = np.uint64((1 << limits.bits_used) - 1)
    ends = np.stack([low, (high + np.uint64(1)) & largest])
    places = mask_words >> np.uint64(limits.ring_bits - limits.bits_used)
    below_low, below_end = _less(_planes(places, limits.bits_used), _planes(ends, limits.bits_used), public, and_)
    goes_round = (low <= high) ^ (high == largest)  # for no place is below 2^L = 0, the end after the largest
    return _more_than(limits.tau, below_low ^ below_end ^ public(goes_round.astype(np.uint8)), public, and_)


def _opened_verdicts(opened: RingVector, mask_words: npt.NDArray[np.uint64], limits: Limits) -> npt.NDArray[np.bool_]:
    share = verdict_shares(opened, mask_words, limits, runtime.aggregator_id(), _and)
    return _unpack(_shared(share).reveal(), share.shape).astype(np.bool_)


def _less(bits: Bits, constants: Bits, public: Callable[[Bits], Bits], and_: And) -> Bits:
    """[k, ...], whether the shared number is less than each of k public ones.

    Where bits first differ the constant has 1: the sum over all i with c_i = 1 of e_{i-1} ^ e_i, with e_i "equal down
    to bit i" and e_{-1} = 1; within a run of bits, and then "less in this run, or equal in it and less further down".

    Args:
        bits: [L, ...], the number's bits, top first.
        constants: [L, k, ...].
    """
    equal = bits[:, None] ^ public(constants ^ np.uint8(1))
    runs = np.array_split(np.arange(len(bits)), round(len(bits) ** 0.5))
    for step in range(1, len(runs[0])):
        at = np.array([run[step] for run in runs if len(run) > step])
        equal[at] = and_(equal[at - 1], equal[at])
    less_in = []
    for run in runs:
        before = np.concatenate([public(np.ones_like(equal[:1])), equal[run[:-1]]])
        less_in.append(_parity((before ^ equal[run]) & constants[run]))
    less = less_in[-1]
    for run, less_here in zip(runs[-2::-1], less_in[-2::-1], strict=True):
        less = less_here ^ and_(equal[run[-1]], less)
    return less


def _more_than(threshold: int, bits: Bits, public: Callable[[Bits], Bits], and_: And) -> Bits:
    """[sites], whether more than `threshold` of [sites, rows] shared bits are 1.

    Count and constant together are less than 2^(width + 1) and reach 2^width just if the count is above the threshold.
    """
    sites, rows = bits.shape
    width = rows.bit_length()
    constant = (1 << width) - 1 - threshold
    columns = [public(np.full((constant >> weight & 1, sites), 1, np.uint8)) for weight in range(width + 1)]
    columns[0] = np.concatenate([columns[0], bits.T])
    while any(len(column) > 1 for column in columns[:width]):
        columns = _carry(columns, and_)
    return _parity(columns[width])


def _carry(columns: list[Bits], and_: And) -> list[Bits]:
    """One layer of full adders on columns of bits of equal weight; of the highest only the parity is kept.

    A column of two bits waits until no carry can come from below, and then takes a 0 for its third.
    """
    summands, rest, settled = [], [], True
    for column in columns[:-1]:
        if settled and len(column) == 2:
            column = np.concatenate([column, np.zeros_like(column[:1])])
        settled = settled and len(column) == 1
        adders = len(column) // 3
        summands.append(column[: 3 * adders].reshape(adders, 3, column.shape[1]))
        rest.append(column[3 * adders :])
    x, y, z = np.concatenate(summands).swapaxes(0, 1)
    carries = np.split(and_(x ^ z, y ^ z) ^ z, np.cumsum([len(three) for three in summands])[:-1])
    below = [np.zeros_like(columns[0][:0]), *carries]
    sums = [_parity(three.swapaxes(0, 1)) for three in summands]
    added = [np.concatenate(parts) for parts in zip(rest, sums, below, strict=False)]
    return [*added, np.concatenate([columns[-1], carries[-1]])]


def _planes(numbers: npt.NDArray[np.uint64], count: int) -> Bits:
    """[count, ...], the low `count` bits of [...], top first."""
    shifts = np.arange(count - 1, -1, -1, dtype=np.uint64).reshape(-1, *[1] * numbers.ndim)
    return ((numbers >> shifts) & np.uint64(1)).astype(np.uint8)


def _parity(bits: Bits) -> Bits:
    """[...], of [k, ...]."""
    parity: Bits = np.bitwise_xor.reduce(bits, axis=0)
    return parity


def _words(bits: int) -> int:
    return -(-bits // _WORD)


def _pack(bits: Bits) -> torch.Tensor:
    """Words of 64 bits, the last one filled up with zeros."""
    packed = np.zeros(8 * _words(bits.size), np.uint8)
    packed[: -(-bits.size // 8)] = np.packbits(bits, bitorder="little")
    return torch.from_numpy(packed.view(np.int64))


def _unpack(words: torch.Tensor, shape: tuple[int, ...]) -> Bits:
    bits = np.unpackbits(words.numpy().view(np.uint8), bitorder="little")
    return bits[: int(np.prod(shape))].reshape(shape)


def _shared(bits: Bits) -> BinarySharedTensor:
    return BinarySharedTensor.from_shares(_pack(bits), precision=0)


def _and(x: Bits, y: Bits) -> Bits:
    return _unpack((_shared(x) & _shared(y)).share, x.shape)
