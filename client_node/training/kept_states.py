"""Computes the states that enter a model's lowest adapted layer, once a record, and gives them to each step.

PRIVATE: they are the records in another form; see `kept_files`.
"""

import json
import time
from collections.abc import Iterator, Mapping
from hashlib import blake2b

import numpy as np
import torch
from torch import Tensor

from ...models.adapters import AdaptedModel
from ...models.records.kind import Examples
from ...privacy.mechanism.batches import BatchShapes, entering_states, used_tokens
from ...privacy.mechanism.sampling import Integers
from ..data.kept_files import FILE_BYTES, MARK_BYTES, StateStore


class RecordStates:
    """The kept states of a table's records, by row: [tokens, D] each."""

    def __init__(
        self,
        adapted: AdaptedModel,
        examples: Examples,
        shapes: BatchShapes,
        store: StateStore,
        *,
        facts: Mapping[str, object],
        threads: int | None,
    ) -> None:
        """Finds out which records have states; drops those of records that are not in the table.

        Args:
            facts: of all but its tokens that a record's states follow from: the backbone and what computes here.
            threads: of the arithmetic in a step; None for those of `shapes`.
        """
        self._adapted, self._ids, self._shapes, self._store = adapted, examples.ids, shapes, store
        self._threads = threads
        self._used = used_tokens(examples.ids, examples.targets)
        blank = adapted.entering(torch.ones(1, 2, dtype=torch.long, device=next(iter(adapted.trained.values())).device))
        self._width, self._dtype = blank.shape[-1], blank.dtype
        of_sense = {} if adapted.frozen_sense is None else {"encoder": adapted.frozen_sense.name}
        said = {**facts, "layer": adapted.frozen_layers, "dtype": str(self._dtype), **of_sense}
        facts_bytes = json.dumps(said, sort_keys=True).encode()
        # An encoder gives nothing for the words behind a picture or a sound.
        self._kept = self._used if adapted.frozen_sense is None else self._used.clip(max=adapted.carrying_tokens)
        rows = zip(self._ids, self._used, strict=True)
        self._marks = [_mark(store.key, facts_bytes, ids[:used].tobytes()) for ids, used in rows]
        self._wanted = frozenset(self._marks)
        store.retain(self._wanted)

    @property
    def num_bytes(self) -> int:
        """Bytes of all states, once they are kept: tokens x width x bytes of a number; of equal records once."""
        kept = dict(zip(self._marks, self._kept.tolist(), strict=True))
        return int(sum(kept.values()) * self._width * self._dtype.itemsize)

    @property
    def is_whole(self) -> bool:
        """True if every record has states."""
        return self._wanted.issubset(self._store.marks())

    def fill(self, *, seconds: float) -> None:
        """Computes states of records that have none, for about so long; what is computed is kept.

        It stops when somebody deletes what is kept meanwhile: an approval that was revoked, or `study forget`.

        Raises:
            OSError: the disk does not take them.
        """
        self._store.begin()
        end, ready, size = time.monotonic() + seconds, dict[bytes, bytes](), 0
        for row, states in self._computed(self._missing()):
            ready[self._marks[row]] = data = states.contiguous().view(torch.uint8).numpy().tobytes()
            size += len(data)
            if size >= FILE_BYTES:
                if not self._store.add(ready):
                    return
                ready, size = {}, 0
            if time.monotonic() > end:
                break
        self._store.add(ready)

    def delete(self) -> None:
        """Deletes all of them."""
        self._store.retain(())

    def of(self, rows: Integers) -> list[Tensor]:
        """Reads the states of some rows, and computes, together, those that are not kept or damaged: the same bits."""
        found = {row: states for row in rows.tolist() if (states := self._read(row)) is not None}
        missing = np.array([row for row in rows.tolist() if row not in found], dtype=np.int64)
        found |= dict(self._computed(missing))
        return [found[row] for row in rows.tolist()]

    def _read(self, row: int) -> Tensor | None:
        data = self._store.read(self._marks[row])
        shape = int(self._kept[row]), self._width
        if data is None or len(data) != shape[0] * shape[1] * self._dtype.itemsize:
            return None
        return torch.frombuffer(bytearray(data), dtype=self._dtype).view(shape)

    def _missing(self) -> Integers:
        """Rows whose states are to be computed, the first of equal ones."""
        first, kept = {mark: row for row, mark in reversed([*enumerate(self._marks)])}, {*self._store.marks()}
        return np.array([row for mark, row in first.items() if mark not in kept], dtype=np.int64)

    def _computed(self, rows: Integers) -> Iterator[tuple[int, Tensor]]:
        found = entering_states(
            self._adapted, self._ids[rows], self._used[rows], self._shapes, threads=self._threads
        )  # fmt: skip
        for place, states in found:
            yield int(rows[place]), states


def _mark(key: bytes, facts: bytes, tokens: bytes) -> bytes:
    return blake2b(facts + b"\0" + tokens, key=key, digest_size=MARK_BYTES, person=b"record").digest()
