"""Decisions that wait for a second person, in `pending.json` under the home: `[policy] four_eyes` in site.toml.

The first person's word changes nothing. The second says the same, after another login of the operating system, within
a day. Two names of one login are one person here, and a word counts only where the system vouches for the login
(`client_node.login`). Whoever can write the home's files needs neither: this keeps honest people from deciding alone,
and not an intruder out.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from ...models.strict import StrictModel
from ..errors import SecondPersonMissing
from ..files import locked, read_json, write_private
from ..login import login_name, vouched_login
from . import decision_log

FILE = "pending.json"
LAPSE_S = 86_400.0
MOST_LETTERS = 1000  # of what is decided, in words
_MOST_BYTES = 2**20
_REMEDY = "It holds what waits for a second person. Delete it: the first person then has to decide again"

Kind = Literal["approve", "cap"]
_Short = Annotated[str, Field(max_length=256)]


class _Unvouched(StrictModel):
    """One person's word as earlier versions kept it, under an account that the process may have chosen itself."""

    kind: Kind
    about: _Short  # the hash of a study, or `budget`
    terms: Annotated[str, Field(max_length=MOST_LETTERS)]  # all that was decided, in one fixed spelling
    by: _Short
    login: _Short
    at: float  # Unix time


class Waiting(_Unvouched):
    """One person's word, which holds once a second person has given the same."""

    loginuid: Annotated[int, Field(ge=0, lt=2**32 - 1)]  # for which a session of the system vouches

    def told(self) -> str:
        """Says who decided what."""
        login = "" if self.by == self.login else f" (login {self.login})"
        return f"{self.by}{login} said: {self.terms}"


_FORM = TypeAdapter(tuple[Waiting | _Unvouched, ...])


def waiting(home: Path, kind: Kind, about: str, *, clock: Callable[[], float] = time.time) -> Waiting | None:
    """Finds what waits for a second person; None if nothing does, or its day is over.

    Raises:
        FileDamaged: the file is damaged.
    """
    return next((each for each in _live(home, clock()) if (each.kind, each.about) == (kind, about)), None)


def seconded(
    home: Path, kind: Kind, about: str, terms: str, *, by: str | None = None, clock: Callable[[], float] = time.time
) -> Waiting:
    """Returns the first person's equal word, given after another login, and so lets the decision be made.

    Raises:
        SecondPersonMissing: there is none. This person's word waits now, in place of what waited before. Or the system
            does not vouch for this process's login: then nothing was changed.
    """
    me, login, loginuid = decision_log.person(by), login_name(), vouched_login()
    with locked(home / FILE):
        first = waiting(home, kind, about, clock=clock)
        others = [each for each in _live(home, clock()) if (each.kind, each.about) != (kind, about)]
        if first is not None and first.terms == terms and first.loginuid != loginuid:
            _write(home, others)
            return first
        decision_log.write(home, "propose", about, terms, by=me)
        mine = Waiting(kind=kind, about=about, terms=terms, by=me, login=login, loginuid=loginuid, at=clock())
        _write(home, [*others, mine])
    replaced = "" if first is None or first.terms == terms else f" In place of what waited: {first.told()}."
    raise SecondPersonMissing(
        f"nothing is decided yet: this waits, for a day, for a second person who logs in under another account than "
        f"{login} and says the same ({terms}).{replaced}"
    )


def drop(home: Path, kind: Kind, about: str) -> None:
    """Takes back what waits, if anything does."""
    with locked(home / FILE):
        live = _live(home, time.time())
        kept = [each for each in live if (each.kind, each.about) != (kind, about)]
        if len(kept) < len(live):
            _write(home, kept)


def _live(home: Path, now: float) -> list[Waiting]:
    """Lists what waits. A clock that was set back before a word was given makes it lapse, and never last longer.

    A word of an earlier version, which kept no vouched login, has lapsed: it is given again.
    """
    found = read_json(home / FILE, _FORM, remedy=_REMEDY, max_bytes=_MOST_BYTES) or ()
    return [each for each in found if isinstance(each, Waiting) and 0 <= now - each.at < LAPSE_S]


def _write(home: Path, entries: list[Waiting]) -> None:
    write_private(home / FILE, json.dumps([each.model_dump(mode="json") for each in entries], indent=1).encode())
