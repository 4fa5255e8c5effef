"""The rows of a source as a stream of batches of columns, whatever the source is."""

from collections.abc import Iterator, Sequence
from typing import Protocol

import pyarrow as pa

from ..problems import Problems
from .digest import RowsDigest

BATCH_ROWS = 65_536


class Rows(Protocol):
    """Rows of an open source, which can be streamed more than once."""

    @property
    def names(self) -> tuple[str, ...]:
        """The columns' names, trimmed."""

    @property
    def whole(self) -> str:
        """Name of the whole thing that is read, for the message that it breaks off."""

    def batches(self, wanted: Sequence[str], problems: Problems, digest: RowsDigest | None) -> Iterator[list[pa.Array]]:
        """Yields batches of the columns `wanted`, one array each, of any plain type.

        Args:
            digest: takes all cells of every row, if the source has no stamp by which a change would be seen.

        Raises:
            DataInvalid: the source is not what it was when it was opened.
            ArrowException, OSError: it breaks off.
        """

    def lines(self, rows: set[int]) -> dict[int, int]:
        """Finds the line on which each row begins; rows are numbered as they were read. Empty if there are no lines."""
