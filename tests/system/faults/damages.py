"""The newest files, cut or flipped while their process is down: it goes on with the same bytes, or says what to do."""

import re
import shutil
import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from confide.coordinator.errors import DemoFailed

from . import checks
from .attempts import attempt, words_of
from .bench import PARTY, SITE, Bench, Missed, Stuck
from .outcomes import Outcome, Outcomes
from .points import BY_NAME, reach

_GOES_ON_S = 75.0
_ROUNDS = 2  # committed after a damage, before it counts as survived: a file may be read in the second only


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _flip(path: Path) -> None:
    """Flips the highest bit of the byte in the middle."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x80
    path.write_bytes(bytes(data))


def _tear(path: Path) -> None:
    """Leaves half of the last line, as a power cut does."""
    data = path.read_bytes()
    path.write_bytes(data[: len(data) - max(8, (len(data) - data.rfind(b"\n", 0, -1)) // 2)])


HOW: dict[str, Callable[[Path], None]] = {"cut": _cut, "flipped": _flip, "last line torn": _tear}


_BOTH = ("cut", "flipped")
_PUT_BACK, _DELETE = "file put back", "folder deleted"
_COMMITTED, _ANSWERED, _STORED, _ORDERED = (
    "round committed", "all answers at the coordinator", "answer stored at the site", "shares at the aggregator",
)  # fmt: skip


@dataclass(frozen=True)
class Damage:
    """A file that is damaged, and the moment at which its process is killed for it."""

    what: str
    owner: str
    pattern: str  # the newest of several is taken; RUN and {N} as in points
    point: str
    how: tuple[str, ...] = _BOTH
    remedy: str = _PUT_BACK  # what the sentence says, besides `run resume`


_SHARES = f"runs/RUN/envelopes-{{N}}/{SITE}"

DAMAGES = (
    Damage("newest state", "coordinator", "runs/RUN/state-{N}-*", _COMMITTED),
    Damage("newest total", "coordinator", "runs/RUN/total-{N}", _COMMITTED),
    Damage("a site's sealed share", "coordinator", f"{_SHARES}/[0-9a-f][0-9a-f]*", _ANSWERED, remedy=_DELETE),
    Damage("mark of complete shares", "coordinator", f"{_SHARES}/complete", _ANSWERED, remedy=_DELETE),
    Damage("coordinator.db", "coordinator", "coordinator.db", _ANSWERED),
    Damage("coordinator.db-wal", "coordinator", "coordinator.db-wal", _ANSWERED),
    Damage("envelope in the outbox", SITE, "outbox/RUN/{N}/envelope-0", _STORED),
    Damage("mark in the outbox", SITE, "outbox/RUN/{N}/complete", _STORED),
    Damage("ledger.db", SITE, "ledger.db", _STORED),
    Damage("ledger.db-wal", SITE, "ledger.db-wal", _STORED),
    Damage("head of the ledger", SITE, "keys/ledger.head", _STORED),
    Damage("state computed by the site", SITE, "replay/RUN/state-*", _STORED),
    Damage("leases.json", SITE, "leases.json", _STORED),
    Damage("units.db", SITE, "units.db", _STORED),
    Damage("journal", PARTY, "aggregator/journal", "set bound at the party", (*_BOTH, "last line torn")),
    Damage("positions", PARTY, "aggregator/positions", _ORDERED, (*_BOTH, "last line torn")),
    Damage("share in the spool", PARTY, f"spool/RUN/{{N}}/update/{SITE}/*.inline", _ORDERED),
    Damage("key of the run", PARTY, "aggregator/run-keys/RUN.json", _ORDERED),
)  # fmt: skip


def damage_each(bench: Bench, outcomes: Outcomes) -> None:
    """Makes each damage, one after the other; what was damaged is put back before the next one."""
    for each in DAMAGES:
        for how in each.how:
            planned = Outcome(group="damage", fault=how, target=each.what, point=each.point)
            attempt(bench, outcomes, planned, lambda planned: damage(bench, planned))


def damage(bench: Bench, planned: Outcome, *, first: int = 0) -> Outcome:
    """Kills the owner of a file at the damage's point of the run, damages the file, and starts the owner again."""
    asked = next(each for each in DAMAGES if each.what == planned.target)
    number = reach(bench, BY_NAME[asked.point], first=first)
    bench.federation.kill(asked.owner)
    home = bench.home if asked.owner == "coordinator" else bench.node(asked.owner)
    pattern = asked.pattern.replace("RUN", bench.run).replace("{N}", str(number))
    paths = sorted(home.glob(pattern), key=lambda path: path.stat().st_mtime)
    before = bench.committed()
    if not paths:
        bench.restart(asked.owner)
        raise Missed(f"{pattern} was gone already")
    path = paths[-1]
    kept = bench.folder / "kept"
    _copy(home, kept)  # as a backup of this moment
    HOW[planned.fault](path)
    logs = _log_sizes(bench, asked.owner)
    start = time.monotonic()
    seconds, told, mended, problems = None, "", "", []
    try:
        _restart(bench, asked.owner)
        bench.wait(lambda: bench.committed() > before or _has_failed(bench), "a commit", _GOES_ON_S)
        if not _has_failed(bench):
            seconds = time.monotonic() - start
            enough = min(before + _ROUNDS, bench.rounds)
            bench.wait(lambda: bench.committed() >= enough or _has_failed(bench), "two commits", _GOES_ON_S)
    except Stuck:
        seconds = None
    if seconds is None or _has_failed(bench):
        seconds, told = None, _told(bench, asked.owner, logs, path)
        if path.name.split("-")[0] not in told and path.name not in told:
            problems.append(f"{path.name} is not named: {told[:300]}")
        mended = _mend(bench, asked, home, kept, path)
        bench.wait(lambda: bench.committed() > before, "a commit after the file was put back", 90)
    if any("Traceback" in text for text in _new_text(logs)):
        problems.append("a traceback is in a log")
    problems += checks.look(bench)
    return replace(planned, seconds=seconds, told=told, mended=mended, problems=problems)


def _copy(home: Path, kept: Path) -> None:
    for _ in range(20):
        shutil.rmtree(kept, ignore_errors=True)
        try:
            shutil.copytree(home, kept, symlinks=True)
        except shutil.Error:  # children of what was killed end a moment later, and still write
            time.sleep(0.3)
        else:
            return
    raise Missed(f"{home} is still written")


def _restart(bench: Bench, owner: str) -> None:
    try:
        bench.restart(owner)
    except DemoFailed as err:  # serve refuses to start; its log says why
        raise Stuck(str(err)) from err


def _has_failed(bench: Bench) -> bool:
    try:
        return bench.row()[0] == "failed"
    except sqlite3.Error:  # the database is what was damaged
        return False


def _mend(bench: Bench, asked: Damage, home: Path, kept: Path, path: Path) -> str:
    """Does what the sentence says; where it names a backup, a copy of the moment before is put back."""
    if asked.remedy == _DELETE:
        shutil.rmtree(path.parent)
    else:
        bench.federation.kill(asked.owner)
        names = f"{path.name.partition('.')[0]}.db*" if ".db" in path.name else path.name  # a database with its log
        for part in path.parent.glob(names):
            part.unlink()
        for part in (kept / path.relative_to(home)).parent.glob(names):
            shutil.copy2(part, path.parent / part.name)
        bench.restart(asked.owner)
    if _has_failed(bench):
        bench.federation.operator("run", "resume", bench.run)
        return f"{asked.remedy}, `run resume`"
    return asked.remedy


def _log_sizes(bench: Bench, owner: str) -> dict[Path, int]:
    paths = [bench.federation.log(owner), bench.federation.log("coordinator"), bench.run_folder / "driver.log"]
    return {path: path.stat().st_size if path.exists() else 0 for path in paths}


def _new_text(logs: dict[Path, int]) -> list[str]:
    return [path.read_bytes()[size:].decode(errors="replace") for path, size in logs.items() if path.exists()]


def _told(bench: Bench, owner: str, logs: dict[Path, int], path: Path) -> str:
    """The sentence with which it stopped: of the run, or of the owner's log, the one that names the file first."""
    try:
        _, step, error = bench.row()
    except sqlite3.Error as err:  # the database is what was damaged
        step, error = "", f"({type(err).__name__})"
    written = [line for text in _new_text(logs) for line in text.splitlines()]
    lines = [line for line in written if re.search(r"ERROR|WARNING|rror:", line)]
    naming = [line for line in written if path.name in line]  # a program that does not start says why without a level
    words = naming[0] if naming else error or (lines[-1] if lines else step)
    return words_of(words).replace(str(bench.folder), "").strip()
