"""A step's gradients computed by several processes of one site.

Only the clipped sum over units is divided: whole units to each, since a unit's norm must be complete where it is
clipped. Who takes part, projection, rounding and noise stay with the process that leads, so they happen once.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from ...models.adapters import AdaptedModel
from .sampling import Integers

Vector = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class SumPart:
    """Units whose clipped gradients one process sums. PRIVATE: it holds records."""

    state: npt.NDArray[np.float32] = field(repr=False)  # [dim], the trained parameters to compute at
    ids: Integers = field(repr=False)  # [rows, length] tokens, rows of one unit behind each other
    targets: npt.NDArray[np.generic] = field(
        repr=False
    )  # [rows] or [rows, length], as `AdaptedModel.losses` takes them
    sizes: Integers = field(repr=False)  # [units], rows of each
    passes: int = field(repr=False)  # that every process runs, at least the microbatches of its own units
    shapes: str = "one unit at a time"  # of the leading process's batches, in words
    log_clip: float = 0.0  # as in `site_round.private_release`


@dataclass(frozen=True, kw_only=True, slots=True)
class ScorePart:
    """Records that one process scores one by one. PRIVATE."""

    state: npt.NDArray[np.float32] = field(repr=False)  # [dim]
    ids: Integers = field(repr=False)  # [rows, length]
    targets: npt.NDArray[np.generic] = field(repr=False)
    passes: int = field(repr=False)  # that every process runs, at least its rows


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadPart:
    """Records whose signatures one process computes one by one. PRIVATE."""

    ids: Integers = field(repr=False)  # [rows, length]
    targets: npt.NDArray[np.generic] = field(repr=False)
    passes: int = field(repr=False)  # that every process runs, at least its rows


Part = SumPart | ScorePart | ReadPart


class WorkerGroup(Protocol):
    """The processes that compute together, seen from the one that leads."""

    @property
    def size(self) -> int:
        """The number of workers, the leading one included."""
        ...

    def begin(self, parts: Sequence[Part]) -> None:
        """Gives each of the others its part, size - 1 of them; the leading one then computes its own."""
        ...

    def finish(self) -> list[Vector]:
        """Collects the others' results, in order: `site_round.partial_sum` of each part, or figures of each record."""
        ...


class Alone:
    """A group of one."""

    size = 1

    def begin(self, parts: Sequence[Part]) -> None:
        """Nobody else is there."""

    def finish(self) -> list[Vector]:
        """Nothing."""
        return []


def made_up(adapted: AdaptedModel) -> tuple[Integers, npt.NDArray[np.generic]]:
    """Ids and target of a record that is nobody's, for a process that has to pass and has nothing left to compute."""
    targets = adapted.made_up_targets(torch.tensor([[False, True]]), are_alike=True)
    ids = np.ones((2, *((1 + adapted.carried,) if adapted.carried else ())), dtype=np.int64)
    return ids, targets[0].cpu().numpy()


def shared_out(rows_of_unit: list[Integers], size: int) -> list[list[Integers]]:
    """Whole units for each of `size` processes, in order, so that rows come out as even as they can one by one."""
    shares: list[list[Integers]] = [[] for _ in range(size)]
    load = [0] * size
    for rows in rows_of_unit:
        least = load.index(min(load))
        shares[least].append(rows)
        load[least] += len(rows)
    return shares
