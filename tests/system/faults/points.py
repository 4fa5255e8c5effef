"""Named points of a round: moments that show in files and databases, watched from outside; nothing stops for them."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from .bench import PARTY, SITE, Bench, Missed

_LOOK_EVERY_S = 0.0005
_TRIES = 4  # rounds in which a point may be missed


@dataclass(frozen=True)
class Point:
    """A moment of a round: true from then on, for as long as what shows it is there."""

    name: str
    is_reached: Callable[[Bench, int], bool]


def reach(bench: Bench, point: Point, *, first: int = 0) -> int:
    """Waits for the point in a coming round, and returns at once; the round's number. Raises `Missed`.

    Args:
        first: the first round that counts; a few later ones do if the moment is missed there.
    """
    for _ in range(_TRIES):
        number = max(bench.committed() + 2, first)
        bench.wait(lambda number=number: bench.committed() >= number - 1, f"round {number - 1}")
        end = time.monotonic() + 30
        while time.monotonic() < end:
            if point.is_reached(bench, number):
                return number
            if bench.committed() > number:
                break
            time.sleep(_LOOK_EVERY_S)
    raise Missed(f"the point {point.name!r} was not seen in {_TRIES} rounds")


def _step(words: str) -> Callable[[Bench, int], bool]:
    return lambda bench, number: bench.row()[1].startswith(f"round {number}: {words}")


def _any(bench: Bench, owner: str, pattern: str) -> bool:
    home = bench.home if owner == "coordinator" else bench.node(owner)
    return next(home.glob(pattern.replace("RUN", bench.run)), None) is not None


def _file(owner: str, pattern: str) -> Callable[[Bench, int], bool]:
    """A file of the coordinator or of a node; N in its name stands for the round."""
    return lambda bench, number: _any(bench, owner, pattern.replace("{N}", str(number)))


def _before(owner: str, pattern: str) -> Callable[[Bench, int], bool]:
    """A file that is named for the round before."""
    return lambda bench, number: _any(bench, owner, pattern.replace("{N}", str(number - 1)))


def _answers(missing: int) -> Callable[[Bench, int], bool]:
    """Answers of all sites but so many."""
    return lambda bench, number: (
        len(list(bench.run_folder.glob(f"envelopes-{number}/*/complete"))) >= len(bench.sites) - missing
    )


def _own_ledger(kind: str) -> Callable[[Bench, int], bool]:
    words = "select 1 from entries where kind = ? and body like ? and body like ?"
    return lambda bench, number: bool(
        bench.query(words, kind, f'%"round":{number},%', f"%{bench.run}%", database=bench.node(SITE) / "ledger.db")
    )


def _replica(kind: str) -> Callable[[Bench, int], bool]:
    words = "select 1 from ledger where site = ? and kind = ? and entry like ? and entry like ?"
    return lambda bench, number: bool(bench.query(words, SITE, kind, f'%"round":{number},%', f"%{bench.run}%"))


def _bound(what: str) -> Callable[[Bench, int], bool]:
    """A line of the party's journal about the round."""

    def is_bound(bench: Bench, number: int) -> bool:
        lines = (bench.node(PARTY) / "aggregator" / "journal").read_bytes()[-4096:].split(b"\n")
        round_, run = f'"round":{number},'.encode(), bench.run.encode()
        return any(round_ in line and run in line and what.encode() in line for line in lines)

    return is_bound


def _journal_line(what: str) -> Callable[[Bench, int], bool]:
    """A line of the party's journal that names vectors and no round: the newest, after the round's order came."""

    def is_written(bench: Bench, number: int) -> bool:
        if not _any(bench, PARTY, f"spool/RUN/{number}/update/*/*.inline"):
            return False
        lines = (bench.node(PARTY) / "aggregator" / "journal").read_bytes()[-4096:].split(b"\n")
        return len(lines) > 1 and lines[-2].startswith(what.encode())

    return is_written


def _gone(seen: Callable[[Bench, int], bool]) -> Callable[[Bench, int], bool]:
    """What was there in this round is there no more."""
    rounds: dict[tuple[str, int], bool] = {}

    def is_gone(bench: Bench, number: int) -> bool:
        here = seen(bench, number)
        rounds[bench.run, number] = rounds.get((bench.run, number), False) or here
        return rounds[bench.run, number] and not here

    return is_gone


_OUTBOX = "outbox/RUN/{N}"

POINTS = (
    Point("sites are asked", lambda bench, number: _step(f"{len(bench.sites)} sites compute")(bench, number)),
    Point("site has the total of the round before", _before(SITE, "replay/RUN/total-{N}-*")),
    Point("site has the state of the round before", _before(SITE, "replay/RUN/state-{N}-*")),
    Point("charge in the site's ledger", _own_ledger("reserve")),
    Point("first share in the outbox", _file(SITE, f"{_OUTBOX}/envelope-0")),
    Point("last share in the outbox", _file(SITE, f"{_OUTBOX}/envelope-2")),
    Point("answer stored at the site", _file(SITE, f"{_OUTBOX}/complete")),
    Point("charge in the replica", _replica("reserve")),
    Point("site's answer at the coordinator", _file("coordinator", f"runs/RUN/envelopes-{{N}}/{SITE}/complete")),
    Point(
        "first answer at the coordinator",
        lambda bench, number: bool(list(bench.run_folder.glob(f"envelopes-{number}/*/complete"))),
    ),
    Point("all answers but one at the coordinator", _answers(missing=1)),
    Point("all answers at the coordinator", _answers(missing=0)),
    Point("aggregators are ordered", _step("aggregators add")),
    Point("round begun at the aggregator", _file(PARTY, "spool/RUN/{N}")),
    Point("shares at the aggregator", _file(PARTY, "spool/RUN/{N}/update/*/*.inline")),
    Point("coins bound at the party", _journal_line('{"seeds"')),
    Point("sketches bound at the party", _journal_line('{"sketches"')),
    Point("set bound at the party", _bound('"set"')),
    Point("total bound at the party", _bound('"total"')),
    Point("total at the coordinator", _file("coordinator", "runs/RUN/total-{N}")),
    Point("state at the coordinator", _file("coordinator", "runs/RUN/state-{N}-*")),
    Point("round committed", lambda bench, number: bench.committed() >= number),
    Point("shares deleted at the coordinator", _gone(_file("coordinator", "runs/RUN/envelopes-{N}"))),
    Point("outcome in the site's ledger", _own_ledger("settle")),
    Point("round deleted at the site", _gone(_file(SITE, _OUTBOX))),
    Point("outcome in the replica", _replica("settle")),
)

BY_NAME = {point.name: point for point in POINTS}
