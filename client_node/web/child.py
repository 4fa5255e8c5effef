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
from typing import IO, Annotated

from pydantic import ConfigDict, Field, TypeAdapter
from pydantic.dataclasses import dataclass as checked

from ... import log_lines
from ..files import read_json, write_private

logger = logging.getLogger(__name__)

PAUSES_S = (1.0, 300.0)  # between two starts, from the first failure on
LASTED_S = 60.0  # a process that lived for so long ends a row of failures
SILENT_S, FIRST_SIGN_S = 120.0, 300.0  # without a sign of life: of a process that listens, of one that begins
_AWAY_S = 10.0  # between two looks of ours: whoever slept for longer has missed no sign yet
_STOP_S = 5.0
_LOG_S = 5.0  # between two looks at the size of its log
_MOST_LINE = 4096
_REMEDY = "It says where the page is: restart the daemon, which writes it anew"


@checked(frozen=True, config=ConfigDict(extra="forbid", strict=True))
class _Noted:
    address: Annotated[str, Field(max_length=512)]


_NOTED_FORM = TypeAdapter(_Noted)


class WebChild:
    """The process behind a page. It says `{"address": ...}` once it listens, and ends when its input is closed.

    From then on it says an empty line every few seconds, as long as it could answer a request. One that is silent for
    `SILENT_S` hangs, and is ended and started anew.

    Args:
        command: starts it.
        log_path: takes what it logs.
        asked_for: True if a person asked for the page, who is then told at every try why it is not there.
        tries: a page that fails so often in a row is given up; None for never.
        noted_in: the file that holds its address while it listens, for other processes; None for none.
    """

    def __init__(
        self,
        command: Sequence[str],
        log_path: Path,
        *,
        asked_for: bool,
        tries: int | None = None,
        noted_in: Path | None = None,
    ) -> None:
        self._command, self.log_path, self._asked_for = list(command), log_path, asked_for
        self._tries, self._noted_in = tries, noted_in
        self._child: subprocess.Popen[bytes] | None = None
        self._ear: threading.Thread | None = None
        self._started, self._not_before, self._failures = 0.0, 0.0, 0
        self._log_cut = 0.0
        self._sign, self._looked = 0.0, 0.0  # the last sign of life, and our last look for one
        self._hangs = False  # and was told to end
        self.address = ""  # where it listens; "" while it does not

    def tick(self) -> None:
        """Starts the process if it does not run, ends it if it hangs, and logs its end."""
        now = time.monotonic()
        if now - self._looked > _AWAY_S:  # this process stood still itself, and so did nobody take signs of life
            self._sign = now
        self._looked = now
        if self._child is None:
            if now >= self._not_before and not self._is_given_up:
                self._start()
            return
        if (code := self._child.poll()) is None:
            self._cut_log(now)
            if not self._hangs and now - self._sign > (SILENT_S if self.address else FIRST_SIGN_S):
                logger.warning("the page gave no sign of life for %.0f s, and is ended", now - self._sign)
                self._hangs = True
                self._child.kill()  # one that was stopped takes no other signal; the next tick finds its end
            return
        lived_until = self._sign if self._hangs else now
        self._close()
        self._failures = 1 if lived_until - self._started > LASTED_S else self._failures + 1
        pause = min(PAUSES_S[0] * 4.0 ** min(self._failures - 1, 16), PAUSES_S[1])
        self._not_before = now + pause
        if self._is_given_up:
            logger.warning("no page from here on: its process ended %d times in a row (its log: %s)",
                           self._failures, self.log_path)  # fmt: skip
            return
        is_told = self._asked_for or (self._failures == 1 and self._tries is None)
        level = logging.WARNING if is_told else logging.DEBUG
        logger.log(level, "no page: its process ended (exit code %d; its log: %s); it starts again in %.0f s",
                   code, self.log_path, pause)  # fmt: skip

    def _cut_log(self, now: float) -> None:
        """Keeps the log small while the process writes it."""
        if now - self._log_cut < _LOG_S:
            return
        self._log_cut = now
        try:
            log_lines.cut_off(self.log_path)
        except OSError as err:
            logger.warning("%s was emptied, and its older lines not kept (%s)", self.log_path, err.strerror)

    @property
    def _is_given_up(self) -> bool:
        return self._tries is not None and self._failures >= self._tries

    def stop(self, *, within_s: float = _STOP_S) -> None:
        """Ends the process, by force after so many seconds."""
        if self._child is None:
            return
        self._child.terminate()
        try:
            self._child.wait(within_s)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        self._close()

    def _start(self) -> None:
        self._started = self._sign = time.monotonic()
        self._hangs = False
        self._forget()
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
            address = str(told["address"])
            self._sign = time.monotonic()  # first: it counts from the address on, and the beginning may have taken long
            self.address = address
            logger.info("the page is at %s", self.address)
        if self.address and self._noted_in is not None:
            try:
                write_private(self._noted_in, json.dumps({"address": self.address}).encode())
            except OSError as err:
                logger.warning("no command finds the page: %s cannot be written (%s)", self._noted_in, err.strerror)
        with suppress(ValueError, OSError):
            while self.address and lines.readline(_MOST_LINE):
                self._sign = time.monotonic()

    def _close(self) -> None:
        assert self._child is not None
        if self._ear is not None:  # else it could note the address of a process that has ended
            self._ear.join(_STOP_S)
        for stream in (self._child.stdin, self._child.stdout):
            if stream is not None:
                with suppress(BrokenPipeError):
                    stream.close()
        if self._ear is not None:
            self._ear.join(1.0)
        self._child, self.address = None, ""
        self._forget()

    def _forget(self) -> None:
        if self._noted_in is None:
            return
        try:
            self._noted_in.unlink(missing_ok=True)  # also that of a process which ended by a power cut
        except OSError as err:
            logger.warning("%s says where a page was, and cannot be deleted (%s)", self._noted_in, err.strerror)


def noted_address(path: Path) -> str:
    """Reads where a page listens, as `WebChild` noted it; "" for nowhere.

    Raises:
        FileDamaged: the file is damaged.
    """
    found = read_json(path, _NOTED_FORM, remedy=_REMEDY, max_bytes=_MOST_LINE)
    return "" if found is None else found.address
