"""Lets people in: sessions of browsers, links that work once, and a bound on wrong tokens.

A session is 32 random bytes in a cookie that no script can read and that no other site's page can send. A browser shows
it to every port of the host, so also to programs of other accounts of this machine: a session goes on only under the
account that began it (`accounts`). The server keeps its digest, in memory alone: a restart ends all sessions. A link's
secret is 32 random bytes; its digest names a file in the home, which only the home's account can write.
"""

import hashlib
import hmac
import os
import secrets
import threading
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import ConfigDict, Field, TypeAdapter
from pydantic.dataclasses import dataclass as checked

from ..errors import FileDamaged
from ..files import read_json, stamp, write_private

if TYPE_CHECKING:
    from starlette.requests import Request  # commands make links, and do without it

IDLE_S, LONGEST_S = 3600.0, 12 * 3600.0  # without a request, and from the entrance on
LINK_S = 300.0
_FOLDER = "page-links"
_MOST_SESSIONS, _MOST_LINKS = 500, 50
_REMEDY = "It is a link to the page: make another one"
_Hash = Annotated[str, Field(max_length=256)]


@dataclass(slots=True)
class Session:
    """A browser that was let in."""

    who: str | None  # an operator's name; None for the account of the home
    proof: str = field(repr=False)  # by which the name was shown: the token's hash at that time
    form_key: str = field(repr=False)  # stands in every form, so that only pages of ours can send one
    began: float  # monotonic
    seen: float
    account: int | None = None  # user id of the browser's program, where it runs on this machine
    notice: str = ""  # shown once, on the next page

    def has_sent(self, form: Mapping[str, str]) -> bool:
        """True if the form was filled in on a page of this session."""
        return hmac.compare_digest(form.get("form_key", "").encode(), self.form_key.encode())


class Sessions:
    """The sessions of one server. Methods may be called from any thread."""

    def __init__(self) -> None:
        self._by_digest: dict[str, Session] = {}
        self._mutex = threading.Lock()

    def open(self, who: str | None, proof: str = "", account: int | None = None) -> str:
        """Begins a session, and returns what the cookie holds. The oldest ones end where there are too many.

        Args:
            account: of the browser's program (`accounts.of_browser`): no other may go on with the session.
        """
        secret, now = secrets.token_urlsafe(32), time.monotonic()
        with self._mutex:
            self._drop_ended(now)
            while len(self._by_digest) >= _MOST_SESSIONS:
                del self._by_digest[next(iter(self._by_digest))]
            self._by_digest[_digest(secret)] = Session(who, proof, secrets.token_urlsafe(32), now, now, account)
        return secret

    def find(self, secret: str | None, *, account: int | None = None, by_itself: bool = False) -> Session | None:
        """Finds the session of a cookie; None if there is none, it has ended, or another account shows the cookie.

        Args:
            account: of the browser's program.
            by_itself: True for a page that looks again by itself: nobody may sit before it, so the session idles on.
        """
        if not secret:
            return None
        now = time.monotonic()
        with self._mutex:
            self._drop_ended(now)
            session = self._by_digest.get(_digest(secret))
            if session is not None and session.account != account:
                return None
            if session is not None and not by_itself:
                session.seen = now
            return session

    def close(self, secret: str | None) -> None:
        """Ends a session."""
        with self._mutex:
            self._by_digest.pop(_digest(secret or ""), None)

    def _drop_ended(self, now: float) -> None:
        ended = [
            digest
            for digest, each in self._by_digest.items()
            if now - each.seen > IDLE_S or now - each.began > LONGEST_S
        ]
        for digest in ended:
            del self._by_digest[digest]


def cookie_name(request: "Request", *, is_https: bool) -> str:
    """Names the cookie of a session after the port, since browsers send cookies of a host to all its ports.

    So pages of several homes on one machine leave each other's sessions alone. By TLS the name has a prefix that
    browsers let only us set.
    """
    port = (request.scope.get("server") or ("", None))[1] or 0
    return f"{'__Host-' if is_https else ''}confide-{port}"


def is_led_here(request: "Request") -> bool:
    """True if a page elsewhere has led a browser here: nobody is let in by a link that another person has placed."""
    return request.headers.get("sec-fetch-site", "none") not in ("same-origin", "none")


class Attempts:
    """Bounds wrong tokens: so many in so many seconds, and then nobody's token is looked at for a while.

    A link still lets people in, so that a stranger who fails on purpose shuts nobody out.
    """

    def __init__(self, *, most: int = 10, seconds: float = 60.0) -> None:
        self._most, self._seconds = most, seconds
        self._failures: deque[float] = deque(maxlen=most)
        self._mutex = threading.Lock()

    def note_failure(self) -> None:
        """Counts a wrong token."""
        with self._mutex:
            self._failures.append(time.monotonic())

    def wait_s(self) -> float:
        """Returns after how many seconds a token is looked at again; 0 for now."""
        with self._mutex:
            if len(self._failures) < self._most:
                return 0.0
            return max(0.0, self._seconds - (time.monotonic() - self._failures[0]))


@checked(frozen=True, config=ConfigDict(extra="forbid", strict=True))
class _Link:
    until: float  # seconds since 1970
    who: Annotated[str, Field(max_length=256)] | None
    proof: _Hash


_LINK_FORM = TypeAdapter(_Link)


def make_link(home: Path, who: str | None, proof: str = "") -> str:
    """Writes a link into `home` that works once within five minutes, and returns its secret."""
    folder = home / _FOLDER
    folder.mkdir(mode=0o700, exist_ok=True)
    old = sorted((found[1], path) for path in folder.iterdir() if (found := stamp(path)) is not None)
    for _, path in old[: max(0, len(old) - _MOST_LINKS + 1)]:
        path.unlink(missing_ok=True)
    secret = secrets.token_urlsafe(32)
    link = _LINK_FORM.dump_json(_Link(time.time() + LINK_S, who, proof))
    write_private(folder / f"{_digest(secret)}.json", link)
    return secret


def open_link(home: Path, secret: str) -> tuple[str | None, str] | None:
    """Uses a link up, and returns whose it is, with the proof; None if there is no such link any more."""
    path = home / _FOLDER / f"{_digest(secret)}.json"
    taken = path.with_suffix(f".{secrets.token_hex(8)}")
    try:
        os.rename(path, taken)  # of two requests at once one has it
    except FileNotFoundError:
        return None
    try:
        link = read_json(taken, _LINK_FORM, remedy=_REMEDY, max_bytes=4096, is_secret=True)
    except FileDamaged:
        return None
    finally:
        with suppress(FileNotFoundError):
            taken.unlink()
    now = time.time()
    if link is None or not now <= link.until <= now + LINK_S:  # nor one of a clock that was ahead
        return None
    return link.who, link.proof


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "replace")).hexdigest()
