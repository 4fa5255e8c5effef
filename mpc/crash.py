"""Tells of errors that nobody expects without the values they met: their message may quote a record, a share or a key.

Commands and child processes use it. Python's own traceback ends with the message, and other libraries' tracebacks print
local variables as well.
"""

import sys
import threading
import traceback
from pathlib import Path
from types import TracebackType

_PACKAGE = __name__.partition(".")[0]


def place(problem: BaseException) -> str:
    """Names the class of an error and where it arose: the last line of ours, and whose code raised it."""
    kind = type(problem).__name__
    frames = [
        (str(frame.f_globals.get("__name__", "?")), frame.f_code.co_name, line)
        for frame, line in traceback.walk_tb(problem.__traceback__)
    ]
    ours = [each for each in frames if each[0].partition(".")[0] == _PACKAGE]
    if not frames:
        return kind
    module, function, line = (ours or frames)[-1]
    last = frames[-1][0]
    return f"{kind} in {module}, line {line} ({function})" + ("" if last == module else f", raised by {last}")


def spot(problem: BaseException) -> str:
    """Names the file and line where an error arose, whosever code that is."""
    frame = traceback.extract_tb(problem.__traceback__)[-1]
    return f"{Path(frame.filename).name}:{frame.lineno}"


class TextLeftOut(Exception):
    """Stands in a log for an error whose text must not be there."""

    @classmethod
    def of(cls, problem: BaseException) -> "TextLeftOut":
        """Makes one with the class, the place and the traceback of an error, for `exc_info` of a logger."""
        return cls(place(problem)).with_traceback(problem.__traceback__)


def hide_values() -> None:
    """Makes this process, a child, tell of an error that ends it or one of its threads by lines of code alone."""
    sys.excepthook = _tell
    threading.excepthook = lambda given: _tell(given.exc_type, given.exc_value, given.exc_traceback)


def _tell(kind: type[BaseException], problem: BaseException | None, trace: TracebackType | None) -> None:
    lines = "".join(traceback.format_tb(trace))
    where = kind.__name__ if problem is None else place(problem.with_traceback(trace))
    sys.stderr.write(f"{lines}{where}. Its message is left out, since it may quote what must stay here.\n")
