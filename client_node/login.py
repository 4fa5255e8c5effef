"""Names the account of the operating system that decides here."""

import os
import pwd
from pathlib import Path

_AUDITED = Path("/proc/self/loginuid")
_UNSET = 2**32 - 1  # of a process that no login started


def login_name() -> str:
    """Looks up the account that logged in, by the kernel's audit id; without one, that of the process's real user id.

    The audit id stays the same under sudo and su, and only root can change it. An account without a name is its number.
    Environment variables such as LOGNAME and SUDO_USER are not asked: anybody can set them.
    """
    number = _login_id()
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


def _login_id() -> int:
    try:
        audited = int(_AUDITED.read_text(encoding="ascii"))
    except (OSError, ValueError):  # another system than Linux, or a kernel without audit
        audited = _UNSET
    return os.getuid() if audited == _UNSET else audited
