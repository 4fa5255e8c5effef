"""The end of the daemon's log where that is a file, else the place where it is; and the end of the page's own."""

import os
import stat
from pathlib import Path

from starlette.responses import Response

from .visits import Visit

_BYTES = 32 << 10


def show(visit: Visit) -> Response:
    """Shows the ends of both logs."""
    place, text = _of_daemon(visit.node.daemon_log)
    return visit.render("log.html", place=place, text=text, own=_end(visit.home / "page.log"))


def _of_daemon(stream: Path) -> tuple[str, str | None]:
    """Finds where the daemon logs, in words; and the end of it, None where it is no file."""
    try:
        target = os.readlink(stream)
        if stat.S_ISREG(stream.stat().st_mode):
            return target, _end(stream)
    except OSError as err:
        return f"a place that cannot be found from here ({err.strerror})", None
    if target.startswith("socket:"):
        return "the journal of systemd: journalctl --unit confide-site, or the name of its unit here", None
    if target.startswith("pipe:"):
        return "another program, which the daemon was started by", None
    return target, None


def _end(path: Path) -> str:
    """Reads the last lines of a file; "" if there is none."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(max(0, size - _BYTES))
            text = file.read(_BYTES).decode("utf-8", "replace")
    except FileNotFoundError:
        return ""
    return text.partition("\n")[2] if size > _BYTES else text
