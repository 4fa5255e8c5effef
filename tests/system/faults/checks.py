"""The promises that a fault must not break, looked up in the files of everybody after each fault."""

import json
import time
from collections import Counter

import psutil

from .bench import PARTY_CHILD, TRAINER, UNREADABLE, WORKER, Bench

_ENDED_WITHIN_S = 20.0


def look(bench: Bench, *, is_over: bool = False) -> list[str]:
    """Lists the problems of now in words; `is_over` once the run is, when nothing may be under way any more."""
    try:
        found = [*_states(bench), *_ledgers(bench, is_over)]
    except UNREADABLE as err:
        found = [f"a database cannot be read: {err}"]
    return [*found, *_orphans(bench)]


def _states(bench: Bench) -> list[str]:
    """Each committed round against the same round of the undisturbed run."""
    states = bench.states(bench.run)
    wrong = [number for number, state in states.items() if bench.reference.get(number, state) != state]
    missing = sorted(set(range(1, len(states) + 1)) - states.keys())
    return [
        *(f"round {number} has another state" for number in wrong),
        *(f"round {number} is lost" for number in missing),
    ]


def _ledgers(bench: Bench, is_over: bool) -> list[str]:
    problems = []
    for site in bench.sites:
        committed = set(bench.states(bench.run))  # read first: charges come before commits
        replica = bench.query("select seq, hash from ledger where site = ? order by seq", site)
        own = bench.query(
            "select seq, hash, kind, body from entries order by seq", database=bench.node(site) / "ledger.db"
        )
        if replica != [entry[:2] for entry in own][: len(replica)]:
            problems.append(f"the replica of {site} is not its ledger")
        if is_over and len(replica) != len(own):
            problems.append(f"the replica of {site} has {len(replica)} of {len(own)} entries")
        charged, settled = Counter[int](), Counter[int]()
        for _, _, kind, body in own:
            found = json.loads(body)
            if found.get("run") == bench.run:
                (charged if kind == "reserve" else settled)[found["round"]] += 1
        twice = [number for number, count in (*charged.items(), *settled.items()) if count > 1]
        if twice:
            problems.append(f"{site} charged or settled rounds {twice} twice")
        if lost := sorted(committed - charged.keys()):
            problems.append(f"{site} has no charge for rounds {lost}")
        if is_over and (unsettled := sorted(committed - settled.keys())):
            problems.append(f"{site} has not settled rounds {unsettled}")
    return problems


def _orphans(bench: Bench) -> list[str]:
    """Processes without a living parent of ours, and kinds of which there are too many; they may take time to end."""
    end = time.monotonic() + _ENDED_WITHIN_S
    while True:
        problems = _too_many(bench.processes())
        if not problems or time.monotonic() > end:
            return problems
        time.sleep(0.2)


def _too_many(processes: list[psutil.Process]) -> list[str]:
    problems, kinds = [], Counter[str]()
    pids = {process.pid for process in processes} | {psutil.Process().pid}
    for process in processes:
        try:
            words = " ".join(process.cmdline())
            if process.status() == psutil.STATUS_ZOMBIE:
                continue
            if process.ppid() not in pids:
                problems.append(f"an orphan: {words[:100]}")
            kinds[words] += 1
        except psutil.Error:  # ended meanwhile
            continue
    for words, count in kinds.items():
        allowed = 2 if WORKER in words else 3 if PARTY_CHILD in words else 1  # the worker, and one driver of one run
        if count > allowed and TRAINER not in words:
            problems.append(f"{count} of: {words[:100]}")
    return problems
