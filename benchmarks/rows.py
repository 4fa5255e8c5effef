"""Keeps the rows of a benchmark in a file as they come, so that an interrupted run goes on."""

import json
import sys
from pathlib import Path


class Rows:
    """Rows of results, those of earlier runs among them."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def of(self, key: dict) -> list[dict]:
        """Returns the rows that have all of a key."""
        return [row for row in self._rows if key.items() <= row.items()]

    def add(self, row: dict, figure: str = "") -> None:
        """Adds a row, and says on stderr whose it is, how long it took, and a figure."""
        self._rows.append(row)
        with self._path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        said = filter(None, (f"{row['arm']}, seed {row['seed']}", figure, f"{row['seconds']} s"))
        print(", ".join(said), file=sys.stderr, flush=True)
