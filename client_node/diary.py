"""A log of changes: what is repeated is written once, so that a year of rounds fills no disk."""

import logging
import time

_MOST = 256  # lines remembered


class Diary:
    """Writes a line unless the same line was written within the last `again_s` seconds."""

    def __init__(self, logger: logging.Logger, *, again_s: float = 600.0) -> None:
        self._logger, self._again_s = logger, again_s
        self._written: dict[str, float] = {}

    def note(self, text: str, *args: object, level: int = logging.INFO) -> None:
        """Writes a line of `text`, formatted as `logging` does."""
        line, now = text % args, time.monotonic()
        if now - self._written.get(line, -self._again_s) < self._again_s:
            return
        self._written.pop(line, None)
        while len(self._written) >= _MOST:
            del self._written[next(iter(self._written))]
        self._written[line] = now
        self._logger.log(level, text, *args)
