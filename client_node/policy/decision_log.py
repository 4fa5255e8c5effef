"""The decision log of a node's people: who decided what and when, a line each in `decisions.jsonl` under the home.

It only grows, and a line is on disk before the decision counts. It is plain: whoever may write in the home also holds
the node's keys, so a signature would say no more. What an observer can verify is the ledger.
"""

import json
import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from ...models.strict import StrictModel
from ...privacy.ledger import chain
from ..errors import PolicyInvalid
from ..login import login_name

FILE = "decisions.jsonl"
MOST_BYTES = 64 * 2**20  # of the whole decision log, when it is read
MOST_LETTERS = 200  # of a person's name

_Short = Annotated[str, Field(max_length=256)]


class Entry(StrictModel):
    """A decision and who made it; `by` is what the person says, `login` what the operating system says."""

    at: _Short  # UTC
    by: _Short
    login: _Short
    decision: Literal["approve", "revoke", "cap", "confirm", "remove", "accept", "propose"]
    about: _Short  # the hash of a study, a data set and its unit, or a site
    detail: Annotated[str, Field(max_length=2000)]


def person(by: str | None) -> str:
    """Returns who decides: the name given, or else the account that runs this process.

    Raises:
        PolicyInvalid: the name is too long, or not printable.
    """
    name = login_name() if by is None else by.strip()
    if not (name.isprintable() and 0 < len(name) <= MOST_LETTERS):
        raise PolicyInvalid("--by", (f"a name has 1 to {MOST_LETTERS} printable letters",))
    return name


def write(home: Path, decision: str, about: str, detail: str, *, by: str | None = None) -> None:
    """Appends a decision of the person `by`, or else of the account that runs this process; durable at return.

    A line that a crash has cut is left as it is, and the next one begins on a line of its own.
    """
    named = {"by": person(by), "login": login_name()}
    entry = Entry.model_validate({"at": chain.now(), "decision": decision, "about": about, "detail": detail} | named)
    descriptor = os.open(home / FILE, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        size = os.fstat(descriptor).st_size
        is_whole = size == 0 or os.pread(descriptor, 1, size - 1) == b"\n"
        line = json.dumps(entry.model_dump(mode="json"), sort_keys=True) + "\n"
        os.write(descriptor, (line if is_whole else "\n" + line).encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read(home: Path) -> tuple[list[Entry], list[int]]:
    """Reads all decisions, oldest first, and the numbers of lines that cannot be read, from 1."""
    try:
        with (home / FILE).open("rb") as source:
            lines = source.read(MOST_BYTES).splitlines()
    except FileNotFoundError:
        return [], []
    entries, unread = [], []
    for number, line in enumerate(lines, 1):
        try:
            entries.append(Entry.model_validate_json(line))
        except ValidationError:
            unread.append(number)
    return entries, unread
