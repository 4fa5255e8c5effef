"""Keeps the process that serves a page: a page that hangs or fails takes nothing with it."""

import json
import logging
import os
import subprocess
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from ... import log_lines

logger = logging.getLogger(__name__)

PAUSES_S = (1.0, 300.0)  # between two starts, from the first failure on
LASTED_S = 60.0  # a process that lived for so long ends a row of failures
_STOP_S = 5.0
_MOST_LINE = 4096


class WebChild:
    """The process behind a page. It says `{"address": ...}` once it listens, and ends when its input is closed.

    Args:
        command: starts it.
        log_path: takes what it logs.
        asked_for: True if a person asked for the page, who is then told at every try why it is not there.
    """

    def __init__(self, command: Sequence[str], log_path: Path, *, asked_for: bool) -> None:
        self._command, self.log_path, self._asked_for = list(command), log_path, asked_for
        self._child: subprocess.Popen[bytes] | None = None
        self._ear: threading.Thread | None = None
        self._started, self._not_before, self._failures = 0.0, 0.0, 0
        self.address = ""  # where it listens; "" while it does not

    def tick(self) -> None:
        """Starts the process if it does not run, and logs its end."""
        now = time.monotonic()
        if self._child is None:
            if now >= self._not_before:
                self._start()
            return
        if (code := self._child.poll()) is None:
            return
        self._close()
        self._failures = 1 if now - self._started > LASTED_S else self._failures + 1
        pause = min(PAUSES_S[0] * 4.0 ** min(self._failures - 1, 16), PAUSES_S[1])
        self._not_before = now + pause
        level = logging.WARNING if self._asked_for or self._failures == 1 else logging.DEBUG
        logger.log(level, "no page: its process ended (exit code %d; its log: %s); it starts again in %.0f s",
                   code, self.log_path, pause)  # fmt: skip

    def stop(self) -> None:
        """Ends the process."""
        if self._child is None:
            return
        self._child.terminate()
        try:
            self._child.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        self._close()

    def _start(self) -> None:
        self._started = time.monotonic()
        try:
            log_lines.cut_off(self.log_path)
            with self.log_path.open("ab") as log:
                self._child = subprocess.Popen(
                    self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, start_new_session=True,
                    env=os.environ | {"OMP_NUM_THREADS": "1"},
                )  # fmt: skip
        except OSError as err:
            self._not_before = self._started + PAUSES_S[1]
            logger.warning("no page: its process cannot be started (%s)", err.strerror)
            return
        assert self._child.stdout is not None, "it was started with pipes"
        self._ear = threading.Thread(target=self._listen, args=(self._child.stdout,), name="page", daemon=True)
        self._ear.start()

    def _listen(self, lines: IO[bytes]) -> None:
        with suppress(ValueError, OSError, KeyError, TypeError):  # it has ended, or says what is none
            told = json.loads(lines.readline(_MOST_LINE))
            self.address = str(told["address"])
            logger.info("the page is at %s", self.address)

    def _close(self) -> None:
        assert self._child is not None
        if self._ear is not None:  # else it could note the address of a process that has ended
            self._ear.join(_STOP_S)
        for stream in (self._child.stdin, self._child.stdout):
            if stream is not None:
                with suppress(BrokenPipeError):
                    stream.close()
        self._child, self.address = None, ""
