"""Rows of tokens: words alone, or words with bytes that they carry, such as a square of a picture.

Rows of words are int64 [R, T], padded on the right with 0. Where tokens carry bytes, rows are int64 [R, T, 1 + C]: a
word, then 8 C bytes as they lie in memory. So whatever takes rows apart, pads them, or gives a batch of them to another
process does the same with both.

Legend: `R` rows (records), `T` tokens, `N` of them that carry bytes, `B` bytes and `C` numbers of 64 bits of each.
"""

from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

WIDTH = 8  # bytes of a number
_Ids = TypeVar("_Ids", Tensor, npt.NDArray[np.int64])


def words_of(ids: _Ids) -> _Ids:
    """[R, T], or [T] of one row: the words of rows, whether they carry bytes or not."""
    return ids[..., 0] if ids.ndim == 3 else ids


def bytes_of(ids_RTC: Tensor) -> Tensor:
    """uint8 [R, T, 8 C], what the tokens of rows carry."""
    return ids_RTC[..., 1:].contiguous().view(torch.uint8)


def carrying(words_RT: npt.NDArray[np.int64], carried_RNB: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """[R, T, 1 + C], rows of words, the first N of which carry these bytes, a multiple of 8 each, and the others 0."""
    numbers_RNC = np.ascontiguousarray(carried_RNB).view(np.int64)
    # Filled in place: rows are the largest arrays of a site.
    found = np.zeros((*words_RT.shape, 1 + numbers_RNC.shape[2]), dtype=np.int64)
    found[..., 0] = words_RT
    found[:, : numbers_RNC.shape[1], 1:] = numbers_RNC
    return found


def made_up(generator: torch.Generator, rows: int, length: int, *, words: int, carried: int, least: int = 1) -> Tensor:
    """Draws rows of nobody, for probes: words from `least` to `words` - 1, and any bytes; [R, T] if none are carried.

    The bytes of each row keep within bounds of their own, as pictures are bright or dark: what stretches all pictures
    of a batch to one contrast would not show in noise, which has the same bounds in every row.

    Args:
        carried: C.
    """
    drawn_RT = torch.randint(least, words, (rows, length), generator=generator)
    if not carried:
        return drawn_RT
    low_R11, high_R11 = (256 * torch.rand(rows, 1, 2, generator=generator)).sort(dim=2).values.chunk(2, dim=2)
    noise_RTB = torch.rand(rows, length, WIDTH * carried, generator=generator)
    carried_RTC = (low_R11 + (high_R11 - low_R11) * noise_RTB).to(torch.uint8).view(torch.int64)
    return torch.cat([drawn_RT[..., None], carried_RTC], dim=2)
