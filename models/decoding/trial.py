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
from typing import IO

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

LIMITS = LLParserLimits(
    max_items_in_row=2000, initial_lexer_fuel=1_000_000, step_lexer_fuel=200_000, step_max_items=50_000,
    max_lexer_states=20_000, max_grammar_size=500_000, precompute_large_lexemes=False, verbose_errors=False,
)  # fmt: skip
_START_S = 60.0  # for the process to start and read the vocabulary


def vocabulary_of(definition: str, words: int, end: int) -> LLTokenizer:
    """Reads the definition of a tokenizer in Rust, with a word that ends texts."""
    return LLTokenizer(definition, n_vocab=words, eos_token=end)


class Trial:
    """A process that tries grammars."""

    def __init__(self, definition: str, words: int, end: int, *, seconds: float) -> None:
        """Takes what `vocabulary_of` takes, and the time that a grammar may take."""
        self._first = json.dumps([definition, words, end])
        self._seconds = seconds
        self._process: subprocess.Popen[str] | None = None
        self._one_at_a_time = threading.Lock()

    def passes(self, grammar: str) -> bool:
        """True if the grammar, right or wrong, was made in time."""
        with self._one_at_a_time:
            if self._process is None:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", __name__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
                )
                if not self._answers(self._first, _START_S):
                    self._kill()
                    raise OSError("the process that tries grammars does not start")
            if self._answers(json.dumps(grammar), self._seconds):
                return True
            self._kill()
            return False

    def close(self) -> None:
        """Ends the process."""
        with self._one_at_a_time:
            self._kill()

    def _answers(self, line: str, seconds: float) -> bool:
        process = self._process
        if process is None or process.stdin is None or process.stdout is None:
            return False
        ends = time.monotonic() + seconds
        with contextlib.suppress(BrokenPipeError):
            print(line, file=process.stdin, flush=True)
            ready, _, _ = select.select([process.stdout], [], [], max(0.0, ends - time.monotonic()))
            return bool(ready) and bool(process.stdout.readline())
        return False

    def _kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            with self._process:  # closes its pipes, and waits for it
                pass
            self._process = None


def main(given: IO[str], answers: IO[str]) -> None:
    """Answers a line for the vocabulary, and one for every grammar that was made."""
    vocabulary = vocabulary_of(*json.loads(given.readline()))
    print("ready", file=answers, flush=True)
    for line in given:
        LLMatcher(vocabulary, json.loads(line), log_level=0, limits=LIMITS).compute_bitmask()
        print("made", file=answers, flush=True)


if __name__ == "__main__":
    main(sys.stdin, sys.stdout)
