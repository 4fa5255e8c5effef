"""A flood of strangers at the gate during a run: the seconds that a round takes, with it and without it.

The attackers are those of `benchmarks/gate.py`, each in a process of its own on this machine, from sixteen other
addresses. What they take is also what they compute; so each attack is made on a second gate as well (a *decoy*), of a
federation without a run, which costs the machine the same and the run's gate nothing.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from . import checks
from .attempts import attempt
from .bench import Bench
from .outcomes import Outcome, Outcomes

KINDS = ("idle", "slow", "heads", "keys", "requests")
ROUNDS = 12  # of a turn
TURNS = ("quiet", "attack", "decoy", "quiet", "decoy", "attack")
_ATTACKS = Path(__file__).parents[3] / "benchmarks" / "gate.py"
_ADDRESSES = ",".join(f"127.0.1.{number}" for number in range(1, 17))


def flood_each(bench: Bench, outcomes: Outcomes) -> None:
    """Floods the gate in each way, in turns with the decoy and with nobody."""
    with _decoy(bench) as decoy:
        for kind in KINDS:
            planned = Outcome(group="flood", fault=kind, target="the gate")
            attempt(bench, outcomes, planned, lambda planned: _flood(bench, planned, decoy), needs=ROUNDS + 3)


def _flood(bench: Bench, planned: Outcome, decoy: int) -> Outcome:
    ports = {"attack": _port(bench.home), "decoy": decoy}
    seconds: dict[str, list[float]] = {turn: [] for turn in TURNS}
    with _attacker(planned.fault) as attacker:
        for turn in TURNS:
            bench.ensure_run(needs=ROUNDS + 3)
            if turn in ports:
                _say(attacker, str(ports[turn]))
            try:
                bench.wait_rounds(2)  # from here on the flood is at its height
                start = time.monotonic()
                bench.wait_rounds(ROUNDS)
                seconds[turn].append((time.monotonic() - start) / ROUNDS)
            finally:
                if turn in ports:
                    _say(attacker, "")
                    attacker.stdout.readline()  # type: ignore[union-attr]
    figures = {turn: statistics.mean(found) for turn, found in seconds.items()}
    return replace(planned, problems=checks.look(bench), figures=figures)


@contextmanager
def _attacker(kind: str) -> Iterator[subprocess.Popen[str]]:
    words = [sys.executable, str(_ATTACKS), "--attack", kind, _ADDRESSES]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            yield process
        finally:
            process.kill()


def _say(attacker: subprocess.Popen[str], line: str) -> None:
    assert attacker.stdin is not None
    attacker.stdin.write(f"{line}\n")
    attacker.stdin.flush()


@contextmanager
def _decoy(bench: Bench) -> Iterator[int]:
    """The port of another gate, with the same certificates and nobody enrolled."""
    home = bench.folder / "decoy"
    words = [sys.executable, str(_ATTACKS), "--decoy", str(home), str(home / "gate.log")]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield int(process.stdout.readline())
        finally:
            process.kill()


def _port(home: Path) -> int:
    return int(json.loads((home / "settings.json").read_text())["port"])
