"""Form of the lines that a daemon and its child processes log: text for people, or JSON for programs.

The form goes to child processes in the environment, so that all processes of one daemon write the same. No field is
added that a line's text has not: no duration, no thread, no count. Files of ours are cut off at a stated size.
"""

import json
import logging
import os
import sys
from contextlib import suppress
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path

VARIABLE = "CONFIDE_LOG_FORMAT"
MOST_BYTES = 8 << 20  # of a log file, after which it becomes the older one
OLDER = ".1"  # behind the name of the older one; what it held before is deleted
_TEXT = "%(asctime)s %(levelname)s %(message)s"


class JsonLines(logging.Formatter):
    """Formats a record as one line of JSON: time (UTC), level, logger, event and message, and a traceback if any.

    `event` is the message before its values are filled in, by which a program recognises it.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Formats the record; control characters are escaped, so nobody can forge a line."""
        told = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "event": str(record.msg),
            "message": record.getMessage(),
        }
        if record.exc_info:
            told["traceback"] = self.formatException(record.exc_info)
        return json.dumps(told)


def formatter() -> logging.Formatter:
    """Makes the formatter of this process's form, which the environment names; text without it."""
    return JsonLines() if os.environ.get(VARIABLE) == "json" else logging.Formatter(_TEXT)


def log_to_stderr(level: int = logging.INFO, *, alone: bool = False) -> None:
    """Logs to standard error in this process's form; `alone` removes the handlers that were set up before."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter())
    logging.basicConfig(level=level, handlers=[handler], force=alone)


class _Rotating(RotatingFileHandler):
    """Writes to the file of its name, also after another process has made that the older one."""

    def shouldRollover(self, record: logging.LogRecord) -> bool | int:
        """Opens the file anew if it is another one by now; True if it is full."""
        with suppress(FileNotFoundError):
            if self.stream is not None and os.fstat(self.stream.fileno()).st_ino != os.stat(self.baseFilename).st_ino:
                self.stream.close()
                self.stream = self._open()
        return super().shouldRollover(record)


def log_file(path: Path, most_bytes: int = MOST_BYTES) -> logging.Handler:
    """Opens a log file of one process, and of its successor while it ends; two files of `most_bytes` each at most."""
    handler = _Rotating(path, maxBytes=most_bytes, backupCount=1)
    handler.setFormatter(formatter())
    return handler


def cut_off(path: Path, most_bytes: int = MOST_BYTES) -> bool:
    """Keeps a file small that child processes append to as their output: beyond `most_bytes` it becomes the older one.

    They keep it open, so it is copied and emptied; a line that comes in between is lost. Returns True if it was.

    Raises:
        OSError: the disk is full, say; the file was emptied nevertheless.
    """
    try:
        if path.stat().st_size <= most_bytes:
            return False
    except FileNotFoundError:
        return False
    older = path.with_name(path.name + OLDER)
    try:
        with (
            path.open("rb") as source,
            open(os.open(older, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as kept,
        ):
            source.seek(max(0, path.stat().st_size - most_bytes))  # the newest, if a burst was longer
            kept.write(source.read(most_bytes))  # and no more, though somebody goes on writing
    finally:
        os.truncate(path, 0)
    return True
