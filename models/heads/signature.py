"""The signature of a record: how the frozen backbone reads it, as one vector of length 1.

It finds, for a request, the adapters of studies whose records looked like it. Each study releases the noised sum of its
records' signatures, its prototype (after LoraRetriever, Zhao et al. 2024, arXiv:2402.09997). Signatures of one backbone
and one length can be compared, whichever study or request they are of: nothing in them was learned from records.

Legend: `R` rows (records), `T` tokens, `N` numbers that a head reads of a record, `S` length of a signature.
"""

from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ..errors import BackboneMismatch
from ..public_numbers import public_uniform
from .pooling import PooledHead, pooled

SCHEME: Literal[1] = 1  # of signatures; prototypes of another cannot be compared


def signatures(model: Any, head: PooledHead, ids_RT: Tensor, length: int) -> Tensor:
    """[R, S] float32, each of length 1: whitened pooled states, turned by public random directions if S is less than N.

    Args:
        model: the backbone; if it has adapters, their state must be the one that they started from.
        head: any head on the states to read, for its public moments.
        ids_RT: tokens, padded on the right with 0; of completions the shown part alone.

    Raises:
        BackboneMismatch: a head reads fewer numbers of a record than `length`.
    """
    require_length(head, length)
    white = head.inputs(pooled(model, ids_RT, head.reads))[:, :-1]  # its last number is a constant
    directions = torch.from_numpy(_directions(white.shape[1], length)).to(white)
    return torch.nn.functional.normalize(white @ directions, dim=1)


def require_length(head: PooledHead, length: int) -> None:
    """Raises `BackboneMismatch` if a head reads fewer numbers of a record than `length`."""
    if (numbers := head.center.numel()) < length:
        raise BackboneMismatch(
            f"gives {numbers} numbers of a record to a head, so a prototype has at most as many, not {length}"
        )


def shown(ids: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """The tokens of one record that a request would have: without padding and, of completions, what is learned.

    Args:
        ids: [T], padded on the right with 0.
        targets: of the record: its outcome, or bool [T], which tokens are learned; or both, see `written`.
    """
    end = int(np.flatnonzero(ids).max(initial=-1)) + 1
    if targets.ndim:  # of both, the first number is the outcome
        behind = 1 + np.flatnonzero(targets[1:])
        end = min(end, int(behind[0]) if len(behind) else end)
    return ids[: max(1, end)]


@lru_cache(maxsize=4)
def _directions(numbers: int, length: int) -> np.ndarray:
    """[N, S] float32, orthonormal columns, equal on every machine up to rounding: whoever compares has the same."""
    if numbers == length:
        return np.eye(numbers, dtype=np.float32)
    label = f"confide signature {SCHEME} {numbers} {length}".encode()
    found, upper = np.linalg.qr(public_uniform(label, (numbers, length), 1.0).astype(np.float64))
    return (found * np.sign(np.diag(upper))).astype(np.float32)  # the one with positive diagonal is unique
