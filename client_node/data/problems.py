"""Problems of a table: their places, and the kinds of what was found, never a cell."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np

from ..errors import DataInvalid

MAX_ROWS = 50_000_000
MAX_COLUMNS = 10_000
MAX_SHOWN = 20  # problems kept for a person to read
MAX_SHOWN_PER_COLUMN = 5  # of those, so that one bad column does not hide the others


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

    def located(self, lines_of: Callable[[set[int]], dict[int, int]]) -> tuple[Problem, ...]:
        """Returns at most 20 problems with their lines, in order of line; `lines_of` finds the lines of rows."""
        lines = lines_of({problem.line for problem in self.kept if problem.line is not None})
        found = [
            Problem(None if p.line is None else lines.get(p.line), p.column, p.expected, p.found) for p in self.kept
        ]
        return tuple(sorted(found, key=lambda problem: problem.line or 0)[:MAX_SHOWN])


def unreadable(source: object, expected: str, found: str) -> DataInvalid:
    """Makes the error for a source that cannot be read at all."""
    return DataInvalid(str(source), (Problem(None, "", expected, found),))


def require_names(source: object, names: tuple[str, ...]) -> None:
    """Raises DataInvalid if there are no columns, too many, or two of one name."""
    if not any(names):
        raise unreadable(source, "a header with the columns' names", "none")
    if len(names) > MAX_COLUMNS:
        raise unreadable(source, f"at most {MAX_COLUMNS} columns", "more")
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        problems = tuple(Problem(None, name, "one column of this name", f"{names.count(name)}") for name in twice)
        raise DataInvalid(str(source), problems[:MAX_SHOWN], len(problems))
