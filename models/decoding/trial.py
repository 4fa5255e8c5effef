"""Tries in a process of its own whether a grammar can be made in time: some take minutes, and no call can be ended.

The process knows the vocabulary and nothing else, and ends when its standard input does. It is started for the first
grammar, and anew after one that took too long.
"""

import contextlib
import json
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import IO

import psutil
from llguidance import LLMatcher, LLParserLimits, LLTokenizer

LIMITS = LLParserLimits(
    max_items_in_row=2000, initial_lexer_fuel=1_000_000, step_lexer_fuel=200_000, step_max_items=50_000,
    max_lexer_states=100_000, max_grammar_size=500_000, precompute_large_lexemes=False, verbose_errors=False,
)  # fmt: skip
_START_S = 30.0  # for the process to start and read the vocabulary
_LOOK_S = 0.02  # between two looks at what it has spent
_PATIENCE = 8  # times as long may pass as it may spend: other work shares the machine


def vocabulary_of(definition: str, words: int, end: int) -> LLTokenizer:
    """Reads the definition of a tokenizer in Rust, with a word that ends texts."""
    return LLTokenizer(definition, n_vocab=words, eos_token=end)


class Trial:
    """A process that tries grammars."""

    def __init__(self, vocabulary: Callable[[], tuple[str, int, int]], *, seconds: float) -> None:
        """Takes a way to what `vocabulary_of` takes, and the processor time that a grammar may take."""
        self._vocabulary, self._seconds = vocabulary, seconds
        self._process: subprocess.Popen[str] | None = None
        self._one_at_a_time = threading.Lock()

    def passes(self, grammar: str) -> bool:
        """True if the grammar, right or wrong, was made in time; False if the process died of it, too.

        Raises:
            OSError: the process does not start.
        """
        with self._one_at_a_time:
            for _ in range(2):  # a process that somebody has ended since is started anew
                if self._process is None:
                    self._start()
                answered = self._answers(json.dumps(grammar), self._seconds)
                if answered is not None:
                    if not answered:
                        self._end()
                    return answered
                self._end()
        return False

    def close(self) -> None:
        """Ends the process."""
        with self._one_at_a_time:
            self._end()

    def _start(self) -> None:
        # A session of its own: Ctrl-C in a terminal is the service's business alone.
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # what breaks it may say what was asked
            text=True,
            start_new_session=True,
        )
        if not self._answers(json.dumps(self._vocabulary()), _START_S):
            self._end()
            raise OSError("the process that tries grammars does not start")

    def _answers(self, line: str, seconds: float) -> bool | None:
        """True if the process answers in time, False if not, and None if it is dead."""
        process = self._process
        if process is None or process.stdin is None or process.stdout is None:
            return None
        with contextlib.suppress(OSError, ValueError, psutil.Error):
            work = psutil.Process(process.pid)
            before, ends = sum(work.cpu_times()[:2]), time.monotonic() + _PATIENCE * seconds
            print(line, file=process.stdin, flush=True)
            while not select.select([process.stdout], [], [], _LOOK_S)[0]:
                if sum(work.cpu_times()[:2]) - before > seconds or time.monotonic() > ends:
                    return False
            return True if process.stdout.readline() else None
        return None

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):
                if pipe is not None:
                    pipe.close()
        process.wait()


def main(given: IO[str], answers: IO[str]) -> None:
    """Answers a line for the vocabulary, and one for every grammar that was made."""
    vocabulary = vocabulary_of(*json.loads(given.readline()))
    print("ready", file=answers, flush=True)
    for line in given:
        LLMatcher(vocabulary, json.loads(line), log_level=0, limits=LIMITS).compute_bitmask()
        print("made", file=answers, flush=True)


if __name__ == "__main__":
    main(sys.stdin, sys.stdout)
