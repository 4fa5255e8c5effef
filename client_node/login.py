"""Names the account of the operating system under which this process runs."""

import os
import pwd


def login_name() -> str:
    """Looks up the account's name by the process's real user id; its number if it has no name.

    Environment variables such as LOGNAME are not asked: anybody can set them.
    """
    number = os.getuid()
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)
