"""The norm check in plain numbers: the definition of what the parties compute on shares, bit by bit."""

import numpy as np
import numpy.typing as npt

from confide.mpc.links.tls import Links
from confide.mpc.party.aggregation import Judge
from confide.mpc.sharing.ring import RingVector
from confide.mpc.sharing.shares import Words
from confide.mpc.sharing.sketch import Limits, interval


def is_outside(opened: RingVector, masks: RingVector, limits: Limits) -> npt.NDArray[np.bool_]:
    """Tells of each row if it exceeds.

    With z = opened - masks, read as signed: never if |z| <= window, always if |z| >= window + step. In between a
    uniform mask decides, the likelier the larger |z| is.
    """
    low, high = interval(opened, limits)
    place = masks.astype(np.uint64) >> np.uint64(limits.ring_bits - limits.bits_used)
    outside: npt.NDArray[np.bool_] = (place < low) ^ (place <= high) ^ (low <= high)
    return outside


def is_too_long(opened: RingVector, masks: RingVector, limits: Limits) -> npt.NDArray[np.bool_]:
    """[...], the verdict for each of [..., rows]: more than `tau` rows exceed."""
    too_long: npt.NDArray[np.bool_] = np.count_nonzero(is_outside(opened, masks, limits), axis=-1) > limits.tau
    return too_long


def exceedances(rows: RingVector, limits: Limits) -> int:
    """Counts the rows of a sketch that exceed, compared without a mask."""
    return int(np.count_nonzero(is_outside(rows, np.zeros_like(rows), limits)))


def judging(links: Links) -> Judge:
    """Compares as the definition does, with the masks put together in the open, where parties use a circuit."""

    def judge(opened: RingVector, mask_words: Words, limits: Limits) -> npt.NDArray[np.bool_]:
        masks = np.zeros(mask_words.shape, np.uint64)
        for words in links.all_gather("OPEN", mask_words.tobytes(), mask_words.nbytes):
            masks ^= np.frombuffer(words, np.uint64).reshape(masks.shape)
        return is_too_long(opened, masks, limits)

    return judge
