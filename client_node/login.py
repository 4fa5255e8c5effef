"""Names the account of the operating system that decides here.

The kernel keeps an audit id of each process, `/proc/self/loginuid`, which a login sets and which stays the same under
sudo and su. Once it is set, no process changes it without CAP_AUDIT_CONTROL. But a process that no login began (of a
service, in a container, of a login without pam_loginuid) has none, and may write any number there itself. The session
number of the kernel does not tell the two apart: it is given for both. So an audit id is good enough for a name in a
log, and alone it does not tell one person from another.

`vouched_login` asks a second witness: the control group of the process. systemd puts each login of a user below
`/user.slice/user-N.slice/`, and no process moves itself into the slice of another user.

The page of a site decides in the name of whoever made the link that opened it (`in_name_of`). That is a name for the
log, and no login vouches for it: a decision that takes two people is made by commands alone.
"""

import os
import pwd
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from .errors import SecondPersonMissing

_AUDITED, _GROUPS = Path("/proc/self/loginuid"), Path("/proc/self/cgroup")
_UNSET = 2**32 - 1  # of a process that no login started
_SLICE = re.compile(r"/user\.slice/user-(\d{1,10})\.slice/.+")  # from the root: below it users make groups themselves
_REFUSED = (
    "nothing is decided, and nothing waits: two people are told apart by their logins, and {}; log in to this machine "
    "under your own account, where PAM has pam_loginuid and pam_systemd, and say it again"
)
_BY_PAGE = (
    "nothing is decided, and nothing waits: two people are told apart by their logins, and no login of {} vouches for "
    "what is said on a page; say it by the command, after logging in to this machine under your own account"
)
MOST_LETTERS = 200  # of a name that a link lends
_NAMED: ContextVar[str | None] = ContextVar("named", default=None)


@contextmanager
def in_name_of(login: str) -> Iterator[None]:
    """Lets this thread decide in the name of an account that has not begun its process: of whoever opened a page."""
    before = _NAMED.set(login[:MOST_LETTERS])
    try:
        yield
    finally:
        _NAMED.reset(before)


def way() -> str:
    """Says, behind the login's name in a log, by which way it decides; "" for a process of its own."""
    return "" if _NAMED.get() is None else ", by the page"


def login_name() -> str:
    """Looks up the account that logged in, by the kernel's audit id; without one, that of the process's real user id.

    It is a name for the log: a process that no login began may have chosen it. An account without a name is its number.
    Environment variables such as LOGNAME and SUDO_USER are not asked: anybody can set them. Within `in_name_of` it is
    the name given there.
    """
    if (named := _NAMED.get()) is not None:
        return named
    audited = _audit_id()
    number = os.getuid() if audited is None else audited
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


def vouched_login() -> int:
    """Looks up the user id that logged in, where both the kernel's audit id and the session's control group say so.

    Raises:
        SecondPersonMissing: the process has no audit id, or is not in a session of that user, so it may have written
            the id itself. Or it decides for somebody else: then nothing vouches for that person.
    """
    if (named := _NAMED.get()) is not None:
        raise SecondPersonMissing(_BY_PAGE.format(named))
    audited = _audit_id()
    if audited is None:
        raise SecondPersonMissing(_REFUSED.format("no login began this process (its audit id is not set)"))
    if _session_owners() != {audited}:
        why = f"no session of the system vouches for the audit id {audited} of this process, which it may have written"
        raise SecondPersonMissing(_REFUSED.format(why))
    return audited


def _audit_id() -> int | None:
    try:
        audited = int(_AUDITED.read_text(encoding="ascii"))
    except (OSError, ValueError):  # another system than Linux, or a kernel without audit
        return None
    return None if audited == _UNSET else audited


def _session_owners() -> set[int]:
    """Finds the users in whose slices of systemd this process runs: one, or none outside a login."""
    try:
        lines = _GROUPS.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):  # as above, or a group with an odd name
        return set()
    kept = [line.split(":", 2) for line in lines if line.count(":") >= 2]
    found = [_SLICE.fullmatch(path) for _, kind, path in kept if kind in ("", "name=systemd")]
    return {int(each[1]) for each in found if each}
