"""Makes three hospitals' tables of short diagnosis texts, those of `examples/diagnoses`, for a head that reads them.

    python examples/chapters/prepare.py DIRECTORY

Writes DIRECTORY/<site>/train.csv and heldout.csv, and DIRECTORY/public.txt with texts that no site has, one a line: the
moments of the head's states are taken from these.
"""

import sys
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))
from diagnoses import prepare as diagnoses
from splitting import draw, main

PUBLIC_TEXTS = 2000
LONGEST = 160  # characters of a public text
_SALT = "confide chapters 1 public"


def prepare(directory: Path) -> dict[str, Any]:
    """Writes the tables and the public texts below `directory` and says what is in the tables.

    Returns:
        {site: {"train": path, "heldout": path, "units": n, "heldout_units": n}}.

    Raises:
        FileNotFoundError: the package `simple-icd-10-cm` is not installed.
    """
    report = diagnoses.prepare(directory)
    (directory / "public.txt").write_text("".join(f"{text}\n" for text in public_texts()), encoding="utf-8")
    return report


def public_texts() -> list[str]:
    """Draws notes of the same list: other words for what its codes mean, none of them a text of a site's table."""
    taken = {*diagnoses.read_table()["text"]}
    notes = {text for text in diagnoses.read_notes() if len(text) < LONGEST} - taken
    return sorted(notes, key=lambda text: draw(f"{_SALT} {text}".encode()))[:PUBLIC_TEXTS]


if __name__ == "__main__":
    main(prepare, __doc__)
