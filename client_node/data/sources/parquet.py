"""Reads a Parquet file, or a folder of Parquet parts that are one table."""

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet

from ..problems import MAX_ROWS, Problems, unreadable
from .digest import RowsDigest
from .rows import BATCH_ROWS

SUFFIXES = (".parquet", ".pq")
MOST_PARTS = 100_000
_BUFFER_BYTES = 2**20  # of a column; without it a whole row group is read at once


@dataclass(frozen=True, slots=True)
class ParquetRows:
    """The rows of a Parquet file, or of parts in the order of their names."""

    path: Path  # the file, or the folder
    parts: tuple[Path, ...]
    names: tuple[str, ...]
    schema: pa.Schema  # of every part, without what else its writer said
    whole: str = "PARQUET file"

    def batches(self, wanted: Sequence[str], problems: Problems, digest: RowsDigest | None) -> Iterator[list[pa.Array]]:
        """See `Rows`."""
        del problems, digest
        raw = {name.strip(): name for name in self.schema.names}
        columns = [raw[name] for name in wanted]
        for part in self.parts:
            with pyarrow.parquet.ParquetFile(part, buffer_size=_BUFFER_BYTES) as source:
                if _plain(source.schema_arrow) != self.schema:
                    raise unreadable(part, "the columns that it had when it was opened", "others")
                for batch in source.iter_batches(batch_size=BATCH_ROWS, columns=columns, use_threads=False):
                    yield batch.select(columns).columns

    def lines(self, rows: set[int]) -> dict[int, int]:
        """See `Rows`: the number of the row, counted through all parts."""
        return {row: row + 1 for row in rows}


def open_parquet(path: Path) -> ParquetRows:
    """Opens a Parquet file.

    Raises:
        DataInvalid: it holds more than 50 million rows.
        ArrowException, OSError: it is no Parquet file.
    """
    with pyarrow.parquet.ParquetFile(path) as source:
        if source.metadata.num_rows > MAX_ROWS:
            raise unreadable(path, f"at most {MAX_ROWS} rows", "more")
        schema = _plain(source.schema_arrow)
        return ParquetRows(path, (path,), tuple(name.strip() for name in schema.names), schema)


def open_parts(folder: Path, *, max_bytes: int) -> ParquetRows:
    """Opens a folder of Parquet parts, all of which have the same columns of the same types in the same order.

    Raises:
        DataInvalid: there is no part, or something else than a part; the parts differ; together they hold more than 50
            million rows or `max_bytes`.
        ArrowException, OSError: a part is no Parquet file.
    """
    parts = parts_of(folder)
    rows = size = 0
    schema: pa.Schema | None = None
    for part in parts:
        size += part.stat().st_size
        if size > max_bytes:
            raise unreadable(folder, f"at most {max_bytes >> 30} GiB", "more")
        try:
            with pyarrow.parquet.ParquetFile(part) as source:
                rows += source.metadata.num_rows
                own = _plain(source.schema_arrow)
        except (pa.ArrowException, OSError, UnicodeDecodeError):
            raise unreadable(part, "a PARQUET file", "something else, or damage") from None
        schema = own if schema is None else schema
        if own != schema:
            raise unreadable(part, f"the columns of {parts[0].name}, of the same types and in the same order", "others")
        if rows > MAX_ROWS:
            raise unreadable(folder, f"at most {MAX_ROWS} rows", "more")
    if schema is None:
        raise unreadable(folder, "parts whose names end in .parquet", "none")
    return ParquetRows(folder, parts, tuple(name.strip() for name in schema.names), schema, "folder of PARQUET files")


def parts_of(folder: Path) -> tuple[Path, ...]:
    """Lists the parts in a folder by name. A name that begins with a point or _ is no part: marks of what writes them.

    Raises:
        DataInvalid: something else is there: a link, a folder, or a file of another kind.
        OSError: it cannot be read.
    """
    parts = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith((".", "_")):
                continue
            if not stat.S_ISREG(entry.stat(follow_symlinks=False).st_mode):
                raise unreadable(folder, "Parquet parts alone", "a link, a folder or a device among them")
            if not entry.name.lower().endswith(SUFFIXES):
                raise unreadable(folder, "Parquet parts alone", "a file of another kind among them")
            parts.append(entry.name)
            if len(parts) > MOST_PARTS:
                raise unreadable(folder, f"at most {MOST_PARTS} parts", "more")
    return tuple(folder / name for name in sorted(parts))


def _plain(schema: pa.Schema) -> pa.Schema:
    """The columns and types alone: pandas, Spark and others each add what they know."""
    return pa.schema([pa.field(field.name, field.type) for field in schema])
