"""Targets of documents that a head reads and behind which a text is written: both in one array.

A row is a document, then what is asked, then the text. The head reads the document alone, whose states cannot see what
stands behind them, and the text's tokens are learned as those of a completion: one pass serves both. A target is a row
as long as that of the tokens. Its first number is what the head learns of the document; each other one says of its
token whether it is `ASKED`, `WRITTEN` or, 0, the document's or padding. The first token is always the document's.

Legend: `R` rows (records), `T` tokens.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Integers = npt.NDArray[np.int64]
ASKED, WRITTEN = 1, 2


class Apart(NamedTuple):
    """The parts of targets [R, T]."""

    targets_R: Tensor  # of the head
    is_document_RT: Tensor  # bool; padding counts as the document's
    is_written_RT: Tensor  # bool


def joined(targets_R: npt.NDArray[np.generic], is_asked_RT: npt.ArrayLike, is_written_RT: npt.ArrayLike) -> Integers:
    """[R, T] int64, the targets of a head with what each token is; the first column of both masks is not read."""
    found = ASKED * np.asarray(is_asked_RT, dtype=np.int64) + WRITTEN * np.asarray(is_written_RT, dtype=np.int64)
    found[:, :1] = targets_R[:, None]
    return found


def apart(targets_RT: Tensor) -> Apart:
    """Returns what `joined` put together."""
    of_token_RT = torch.cat([torch.zeros_like(targets_RT[:, :1]), targets_RT[:, 1:]], dim=1)
    return Apart(targets_RT[:, 0], of_token_RT == 0, of_token_RT == WRITTEN)


def documents(ids: Integers, targets: npt.NDArray[np.generic]) -> Integers:
    """The tokens that a head reads, [R, T] or [T]: zeros, as padding, in the place of what is asked and written.

    Args:
        targets: of a head; where nothing is written, [R] or one number, all tokens are the documents'.
    """
    if targets.ndim < ids.ndim:
        return ids
    read = ids.copy()
    read[..., 1:][targets[..., 1:] != 0] = 0
    return read
