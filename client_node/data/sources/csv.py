"""Reads a CSV file. Arrow's own messages quote cells, so none of them is passed on."""

import codecs
import csv
import io
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv

from ..problems import MAX_SHOWN_PER_COLUMN, Problem, Problems, unreadable
from .digest import RowsDigest

_BATCH_BYTES = 4 * 2**20
_HEADER_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class CsvRows:
    """The rows of a CSV file whose header was read."""

    path: Path
    names: tuple[str, ...]
    separator: str
    header_lines: int  # lines down to the end of the header, blank ones included
    whole: str = "CSV file"

    def batches(self, wanted: Sequence[str], problems: Problems, digest: RowsDigest | None) -> Iterator[list[pa.Array]]:
        """See `Rows`."""
        del digest
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
        for batch in reader:
            yield batch.columns
        if misshapen:
            self._report_misshapen(misshapen, problems)

    def lines(self, rows: set[int]) -> dict[int, int]:
        """See `Rows`."""
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

    def _report_misshapen(self, cells_of: list[int], problems: Problems) -> None:
        """Reports lines with a wrong number of cells as problems of the whole file: no row number locates them."""
        problems.count += len(cells_of)
        expected = f"{len(self.names)} cells, as in the header"
        lines = (line for line, cells in self._records() if len(cells) != len(self.names))
        for line, count in zip_longest(islice(lines, MAX_SHOWN_PER_COLUMN), cells_of[:MAX_SHOWN_PER_COLUMN]):
            where = f", on line {line}" if line else ""
            problems.kept.append(Problem(None, "", expected + where, f"{count} cells"))


def open_csv(path: Path, separator: str) -> CsvRows:
    """Opens a CSV file: reads its header and checks its encoding.

    Raises:
        DataInvalid: not UTF-8, a quote left open, no header, or another separator.
    """
    _check_text(path)
    with path.open(encoding="utf-8-sig", newline="") as text:
        reader = csv.reader(io.StringIO(text.read(_HEADER_BYTES)), delimiter=separator)
        try:
            names = next((cells for cells in reader if cells), [])
        except csv.Error:
            raise unreadable(path, "a header with the columns' names", "an endless one") from None
    if len(names) == 1 and (other := next((each for each in ";\t|," if each in names[0]), None)):
        raise unreadable(path, f"columns parted by {separator!r}", f"{other!r}; set data.separator in site.toml")
    return CsvRows(path, tuple(name.strip() for name in names), separator, reader.line_num)


def _check_text(path: Path) -> None:
    """Refuses text that is not UTF-8, and an odd number of quotes: an open quote would swallow the rows after it."""
    decoder, line, quotes = codecs.getincrementaldecoder("utf-8")(), 1, 0
    with path.open("rb") as source:
        while True:
            chunk = source.read(2**20)
            if b"\0" in chunk:
                raise unreadable(path, "UTF-8 text", "zero bytes; export the table as UTF-8 (not UTF-16)")
            try:
                decoder.decode(chunk, final=not chunk)  # a letter that the end of the file cuts off is no UTF-8 either
            except UnicodeDecodeError as err:
                line += chunk.count(b"\n", 0, err.start)
                raise unreadable(path, "UTF-8 text", f"other bytes near line {line}; export it as UTF-8") from None
            if not chunk:
                break
            line += chunk.count(b"\n")
            quotes += chunk.count(b'"')
    if quotes % 2:
        raise unreadable(path, 'every " closed by another', "one left open")
