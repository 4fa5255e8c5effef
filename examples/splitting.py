"""Shared steps of the examples' `prepare.py`: splits public rows of an installed package into sites' tables.

Python does not find this file from a script's own folder, so each script first appends this folder to `sys.path`.
"""

import hashlib
import importlib.util
import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pandas as pd


def package_file(package: str, *parts: str, extra: str = "examples") -> Path:
    """Finds a file of data inside an installed package without importing the package.

    Args:
        package: name as it would be imported.
        parts: path of the file below the package.
        extra: of confide, which installs the package.

    Raises:
        FileNotFoundError: the package is not installed.
    """
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise FileNotFoundError(f"package {package} is not installed: pip install 'confide[{extra}]'")
    return Path(next(iter(found.submodule_search_locations))).joinpath(*parts)


def draw(message: bytes) -> float:
    """Draws a number in [0, 1) by the SHA-256 of `message` alone, so the same on every machine."""
    return int.from_bytes(hashlib.sha256(message).digest()[:8], "big") / 2**64


def write_tables(
    directory: Path,
    table: pd.DataFrame,
    sites: Iterable[str],
    columns: tuple[str, ...],
    is_held_out: Callable[[str], bool],
    **shares: str,
) -> dict[str, dict[str, Any]]:
    """Writes DIRECTORY/<site>/train.csv and heldout.csv for each site and returns their sizes.

    Args:
        table: all rows, with `columns` and `site`.
        columns: columns to write; the first has the unit, which is held out with all its rows or with none.
        is_held_out: returns True for a unit that is held out.
        shares: columns of zeros and ones, by the name under which their mean over a site's rows is returned.

    Returns:
        {site: {"train": path, "heldout": path, "units": n, "heldout_units": n, **shares}}.
    """
    report: dict[str, dict[str, Any]] = {}
    for site in sites:
        rows = table[table["site"] == site]
        held_out = rows[columns[0]].map(is_held_out)
        folder = Path(directory) / site
        folder.mkdir(parents=True, exist_ok=True)
        parts = {"train": rows[~held_out], "heldout": rows[held_out]}
        for part, chosen in parts.items():
            chosen.to_csv(folder / f"{part}.csv", columns=list(columns), index=False)
        report[site] = {
            **{part: str(folder / f"{part}.csv") for part in parts},
            "units": parts["train"][columns[0]].nunique(),
            "heldout_units": parts["heldout"][columns[0]].nunique(),
            **{name: round(float(rows[column].mean()), 3) for name, column in shares.items()},
        }
    return report


def main(prepare: Callable[[Path], dict[str, Any]], usage: str | None) -> None:
    """Prepares the folder that the command line names, and prints what is in it."""
    if len(sys.argv) != 2:
        sys.exit(usage)
    print(json.dumps(prepare(Path(sys.argv[1])), indent=2))
