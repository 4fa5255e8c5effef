"""Reads a site's CSV or Parquet file as batches of text columns, within limits.

Arrow's own messages quote cells, so none of them is passed on. Messages about a file name only lines, columns and
kinds.
"""

import codecs
import csv
import io
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from ..errors import DataInvalid

MAX_ROWS = 50_000_000
MAX_FILE_BYTES = 64 * 2**30
MAX_COLUMNS = 10_000
MAX_SHOWN = 20  # problems kept for a person to read
MAX_SHOWN_PER_COLUMN = 5  # of those, so that one bad column does not hide the others
_BATCH_BYTES = 4 * 2**20
_BATCH_ROWS = 65_536
_HEADER_BYTES = 2**20

Format = Literal["csv", "parquet"]


@dataclass(frozen=True, slots=True)
class Problem:
    """A problem in a file: its place, what was expected, and the kind of thing found; never the thing itself."""

    line: int | None  # of the file, counted from 1; a Parquet file's row; None for the file or a whole column
    column: str  # as the file calls it; "" for the file or a whole line
    expected: str
    found: str

    def __str__(self) -> str:
        where = [f"line {self.line}"] if self.line is not None else []
        where += [f"column {self.column}"] if self.column else []
        return f"{', '.join(where) or 'the file'}: expected {self.expected}, found {self.found}"


@dataclass(slots=True)
class Problems:
    """Collects problems: counts all of them and keeps the first few of each column.

    A problem is added with the number of its row among the rows that were read; `located` turns rows into lines.
    """

    kept: list[Problem] = field(default_factory=list)
    count: int = 0

    def add(self, problem: Problem) -> None:
        """Counts `problem` and keeps it if there is room."""
        self.count += 1
        if sum(each.column == problem.column for each in self.kept) < MAX_SHOWN_PER_COLUMN:
            self.kept.append(problem)

    def add_rows(self, rows: np.ndarray, column: str, expected: str, found: Iterable[str]) -> None:
        """Counts one problem for each of `rows`; `found` is read only as far as problems are kept."""
        for row, kind in zip(rows[:MAX_SHOWN_PER_COLUMN], found, strict=False):
            self.add(Problem(int(row), column, expected, kind))
        self.count += max(len(rows) - MAX_SHOWN_PER_COLUMN, 0)

    def located(self, table: "Table") -> tuple[Problem, ...]:
        """Returns at most 20 problems with their lines, in order of line."""
        lines = table.lines({problem.line for problem in self.kept if problem.line is not None})
        found = [
            Problem(None if p.line is None else lines.get(p.line), p.column, p.expected, p.found) for p in self.kept
        ]
        return tuple(sorted(found, key=lambda problem: problem.line or 0)[:MAX_SHOWN])


@dataclass(frozen=True, slots=True)
class Table:
    """An open table whose header names every column once."""

    path: Path
    format: Format
    names: tuple[str, ...]
    separator: str = ","
    header_lines: int = 0  # lines down to the end of the header, blank ones included

    def batches(self, names: Iterable[str], problems: Problems) -> Iterator[dict[str, pa.Array]]:
        """Yields the columns `names` in batches of trimmed text; a null is "".

        Raises:
            DataInvalid: the file breaks off, or holds more than 50 million rows.
        """
        wanted, rows = list(dict.fromkeys(names)), 0
        read = self._csv_batches if self.format == "csv" else self._parquet_batches
        try:
            for batch in read(wanted, problems):
                rows += len(batch)
                if rows > MAX_ROWS:
                    raise _unreadable(self.path, f"at most {MAX_ROWS} rows", "more")
                yield {name: _as_text(column) for name, column in zip(wanted, batch.columns, strict=True)}
        except (pa.ArrowException, OSError):
            raise _unreadable(self.path, f"a whole {self.format.upper()} file", f"damage after {rows} rows") from None

    def lines(self, rows: set[int]) -> dict[int, int]:
        """Finds the line of the file on which each row begins; rows are numbered as they were read."""
        if not rows:
            return {}
        if self.format == "parquet":
            return {row: row + 1 for row in rows}
        lines, row = {}, -1
        for line, cells in self._records():
            row += len(cells) == len(self.names)
            if row in rows and row not in lines:
                lines[row] = line
            if row >= max(rows):
                break
        return lines

    def _records(self) -> Iterator[tuple[int, list[str]]]:
        """Yields the first line and the cells of every record below the header, blank lines left out."""
        with self.path.open(encoding="utf-8-sig", newline="") as text:
            reader, last = csv.reader(text, delimiter=self.separator), 0
            with suppress(csv.Error):  # a cell longer than 128 KiB: later rows get no line
                for cells in reader:
                    first, last = last + 1, reader.line_num
                    if cells and first > self.header_lines:
                        yield first, cells

    def _csv_batches(self, wanted: list[str], problems: Problems) -> Iterator[pa.RecordBatch]:
        columns = [f"c{i}" for i in range(len(self.names))]
        misshapen: list[int] = []  # cells in each

        def note(row: Any) -> str:
            misshapen.append(row.actual_columns)
            return "skip"

        reader = pyarrow.csv.open_csv(
            self.path,
            read_options=pyarrow.csv.ReadOptions(
                use_threads=False, column_names=columns, skip_rows=self.header_lines, block_size=_BATCH_BYTES
            ),
            parse_options=pyarrow.csv.ParseOptions(
                delimiter=self.separator, newlines_in_values=True, invalid_row_handler=note
            ),
            convert_options=pyarrow.csv.ConvertOptions(
                column_types=dict.fromkeys(columns, pa.string()),
                include_columns=[columns[self.names.index(name)] for name in wanted],
                strings_can_be_null=False,
            ),
        )
        yield from reader
        if misshapen:
            self._report_misshapen(misshapen, problems)

    def _report_misshapen(self, cells_of: list[int], problems: Problems) -> None:
        """Reports lines with a wrong number of cells as problems of the whole file: no row number locates them."""
        problems.count += len(cells_of)
        expected = f"{len(self.names)} cells, as in the header"
        lines = (line for line, cells in self._records() if len(cells) != len(self.names))
        for line, count in zip_longest(islice(lines, MAX_SHOWN_PER_COLUMN), cells_of[:MAX_SHOWN_PER_COLUMN]):
            where = f", on line {line}" if line else ""
            problems.kept.append(Problem(None, "", expected + where, f"{count} cells"))

    def _parquet_batches(self, wanted: list[str], problems: Problems) -> Iterator[pa.RecordBatch]:
        del problems
        with pyarrow.parquet.ParquetFile(self.path) as source:
            raw = {name.strip(): name for name in source.schema_arrow.names}
            columns = [raw[name] for name in wanted]
            for batch in source.iter_batches(batch_size=_BATCH_ROWS, columns=columns, use_threads=False):
                yield batch.select(columns)


def open_table(path: Path, *, format: Format | None = None, separator: str = ",") -> Table:
    """Opens the table at `path`, reads its header and checks its encoding.

    Args:
        format: taken from the suffix (.csv, .parquet) if None.

    Raises:
        DataInvalid: no such file, too large, not UTF-8, not Parquet, no header, or a column name twice.
    """
    try:
        size = path.stat().st_size
    except OSError as err:
        raise _unreadable(path, "a file", f"none that can be read ({err.strerror})") from err
    if not path.is_file():
        raise _unreadable(path, "a file", "a folder or device")
    if size > MAX_FILE_BYTES:
        raise _unreadable(path, f"at most {MAX_FILE_BYTES >> 30} GiB", "a larger file")
    kind = format or {".csv": "csv", ".parquet": "parquet", ".pq": "parquet"}.get(path.suffix.lower())
    if kind not in ("csv", "parquet"):
        raise _unreadable(path, "a name that ends in .csv or .parquet, or data.format in site.toml", "neither")
    try:
        table = _open_csv(path, separator) if kind == "csv" else _open_parquet(path)
    except (pa.ArrowException, OSError):
        raise _unreadable(path, f"a {kind.upper()} file", "something else, or damage") from None
    _check_names(path, table.names)
    return table


def _open_csv(path: Path, separator: str) -> Table:
    _check_text(path)
    with path.open(encoding="utf-8-sig", newline="") as text:
        reader = csv.reader(io.StringIO(text.read(_HEADER_BYTES)), delimiter=separator)
        try:
            names = next((cells for cells in reader if cells), [])
        except csv.Error:
            raise _unreadable(path, "a header with the columns' names", "an endless one") from None
    if len(names) == 1 and (other := next((each for each in ";\t|," if each in names[0]), None)):
        raise _unreadable(path, f"columns parted by {separator!r}", f"{other!r}; set data.separator in site.toml")
    return Table(path, "csv", tuple(name.strip() for name in names), separator, reader.line_num)


def _open_parquet(path: Path) -> Table:
    with pyarrow.parquet.ParquetFile(path) as source:
        if source.metadata.num_rows > MAX_ROWS:
            raise _unreadable(path, f"at most {MAX_ROWS} rows", "more")
        return Table(path, "parquet", tuple(name.strip() for name in source.schema_arrow.names))


def _check_names(path: Path, names: tuple[str, ...]) -> None:
    if not any(names):
        raise _unreadable(path, "a header with the columns' names", "none")
    if len(names) > MAX_COLUMNS:
        raise _unreadable(path, f"at most {MAX_COLUMNS} columns", "more")
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        problems = tuple(Problem(None, name, "one column of this name", f"{names.count(name)}") for name in twice)
        raise DataInvalid(str(path), problems[:MAX_SHOWN], len(problems))


def _check_text(path: Path) -> None:
    """Refuses text that is not UTF-8, and an odd number of quotes: an open quote would swallow the rows after it."""
    decoder, line, quotes = codecs.getincrementaldecoder("utf-8")(), 1, 0
    with path.open("rb") as source:
        while True:
            chunk = source.read(2**20)
            if b"\0" in chunk:
                raise _unreadable(path, "UTF-8 text", "zero bytes; export the table as UTF-8 (not UTF-16)")
            try:
                decoder.decode(chunk, final=not chunk)  # a letter that the end of the file cuts off is no UTF-8 either
            except UnicodeDecodeError as err:
                line += chunk.count(b"\n", 0, err.start)
                raise _unreadable(path, "UTF-8 text", f"other bytes near line {line}; export it as UTF-8") from None
            if not chunk:
                break
            line += chunk.count(b"\n")
            quotes += chunk.count(b'"')
    if quotes % 2:
        raise _unreadable(path, 'every " closed by another', "one left open")


def _as_text(column: pa.Array) -> pa.Array:
    """Converts a column of plain values to trimmed strings; nested or binary ones become text that fits nothing."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_nested(column.type) or pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
        return pa.array(["\0"] * len(column), pa.string())
    text = pc.fill_null(pc.cast(column, pa.string()), "")
    return pc.utf8_trim_whitespace(text)


def _unreadable(path: Path, expected: str, found: str) -> DataInvalid:
    return DataInvalid(str(path), (Problem(None, "", expected, found),))
