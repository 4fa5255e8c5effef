"""Opens the one source of a site's records, and streams it as batches of text columns, within limits.

Each kind of source is a file in `sources`. Messages name places, columns and kinds, and never a cell.
"""

from collections.abc import Generator, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

from ..errors import DataInvalid
from ..policy.sources import FhirExport, Source, SqlQuery
from .problems import MAX_ROWS, Problem, Problems, require_names, unreadable
from .sources import plain
from .sources.csv import CsvRows, open_csv
from .sources.digest import RowsDigest
from .sources.fhir import files_of as files_of_export
from .sources.fhir import open_export, stamps_of_export
from .sources.parquet import SUFFIXES, open_parquet, open_parts, parts_of
from .sources.rows import Rows
from .sources.sql import open_query

__all__ = [
    "MAX_FILE_BYTES", "NO_STAMP", "Format", "Problem", "Problems", "RowsDigest", "Table", "files_of", "open_table",
    "stamp",
]  # fmt: skip

MAX_FILE_BYTES = 64 * 2**30  # of a file, or of all parts together

NO_STAMP: list[object] = [0]  # of what cannot be looked at

Format = Literal["csv", "parquet"]


@dataclass(frozen=True, slots=True)
class Table:
    """An open table whose columns have a name each."""

    source: Source
    rows: Rows
    ids: str = ""  # the column of units' ids

    @property
    def names(self) -> tuple[str, ...]:
        """The columns' names; "" for one without."""
        return self.rows.names

    @property
    def separator(self) -> str:
        """Separator of a CSV file; a comma for everything else."""
        return self.rows.separator if isinstance(self.rows, CsvRows) else ","

    def batches(
        self, names: Iterable[str], problems: Problems, digest: RowsDigest | None = None
    ) -> Generator[dict[str, pa.Array], None, None]:
        """Yields the columns `names` in batches of trimmed text; a null is "".

        Args:
            digest: takes every row of a source without a stamp, see `stamp`.

        Raises:
            DataInvalid: the source breaks off, or holds more than 50 million rows.
        """
        wanted, rows = list(dict.fromkeys(names)), 0
        try:
            for columns in self.rows.batches(wanted, problems, digest):
                rows += len(columns[0]) if columns else 0
                if rows > MAX_ROWS:
                    raise unreadable(self.source, f"at most {MAX_ROWS} rows", "more")
                yield {
                    name: _as_text(column, are_ids=name == self.ids)
                    for name, column in zip(wanted, columns, strict=True)
                }
        except (pa.ArrowException, OSError, UnicodeDecodeError):  # the last of a damaged column name
            raise unreadable(self.source, f"a whole {self.rows.whole}", f"damage after {rows} rows") from None

    def lines(self, rows: set[int]) -> dict[int, int]:
        """Finds the line on which each row begins; rows are numbered as they were read. Empty where lines are none."""
        return self.rows.lines(rows) if rows else {}


def open_table(source: Source, *, format: Format | None = None, separator: str = ",", ids: str = "") -> Table:
    """Opens a source, finds its columns and checks what can be checked before it is read.

    Args:
        format: of a file; taken from the suffix (.csv, .parquet) if None.
        ids: the column of units' ids, in which a number that is not whole or not exact fits nothing.

    Raises:
        DataInvalid: nothing there, too large, not what it should be, no columns, or two of one name.
    """
    rows = _opened(source, format, separator, ids)
    require_names(source, rows.names)
    return Table(source, rows, ids)


def stamp(source: Source) -> list[object] | None:
    """Returns what differs if a source has changed: times, sizes and numbers of its files.

    None for a query: a database says nothing of that, and only the rows themselves can tell. A file that cannot be
    looked at has the stamp `NO_STAMP`.
    """
    if isinstance(source, SqlQuery):
        return None
    try:
        if isinstance(source, FhirExport):
            return stamps_of_export(source)
        if source.is_dir():
            return [(part.name, *_stamp_of(part)) for part in parts_of(source)]
        return [*_stamp_of(source)]
    except (OSError, DataInvalid):
        return [*NO_STAMP]


def files_of(source: Source) -> list[Path]:
    """Lists the files that a source is read from; none for a query.

    Raises:
        DataInvalid: a folder cannot be read, or holds what is no part.
    """
    if isinstance(source, SqlQuery):
        return []
    if isinstance(source, FhirExport):
        return [path for paths in files_of_export(source.folder).values() for path in paths]
    return [*parts_of(source)] if source.is_dir() else [source]


def _stamp_of(path: Path) -> tuple[int, int, int]:
    found = path.stat()
    return found.st_mtime_ns, found.st_size, found.st_ino


def _opened(source: Source, format: Format | None, separator: str, ids: str) -> Rows:
    if isinstance(source, SqlQuery):
        return open_query(source, ids)
    if isinstance(source, FhirExport):
        return open_export(source)
    try:
        size = source.stat().st_size
    except OSError as err:
        raise unreadable(source, "a file", f"none that can be read ({err.strerror})") from err
    is_folder = source.is_dir()
    if not source.is_file() and not is_folder:
        raise unreadable(source, "a file, or a folder of Parquet parts", "a device")
    if is_folder and format == "csv":
        raise unreadable(source, "a CSV file", "a folder")
    if size > MAX_FILE_BYTES:
        raise unreadable(source, f"at most {MAX_FILE_BYTES >> 30} GiB", "a larger file")
    suffix = source.suffix.lower()
    kind = format or ("parquet" if is_folder or suffix in SUFFIXES else "csv" if suffix == ".csv" else None)
    if kind is None:
        raise unreadable(source, "a name that ends in .csv or .parquet, or data.format in site.toml", "neither")
    try:
        if is_folder:
            return open_parts(source, max_bytes=MAX_FILE_BYTES)
        return open_csv(source, separator) if kind == "csv" else open_parquet(source)
    except (pa.ArrowException, OSError, UnicodeDecodeError):  # the last of a damaged column name
        raise unreadable(source, f"a {kind.upper()} file", "something else, or damage") from None


def _as_text(column: pa.Array, *, are_ids: bool) -> pa.Array:
    """Converts a column of plain values to trimmed strings; nested or binary ones become text that fits nothing."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_nested(column.type) or pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
        return pa.array([plain.NO_CELL] * len(column), pa.string())
    if pa.types.is_floating(column.type):
        column = plain.floats(column, are_ids=are_ids)
    elif pa.types.is_decimal(column.type):
        cells = (cell.as_py() for cell in column)
        texts = [None if cell is None else plain.decimal(cell, is_id=are_ids) for cell in cells]
        column = pa.array(texts, pa.string())
    text = pc.fill_null(pc.cast(column, pa.string()), "")
    return pc.utf8_trim_whitespace(text)
