"""A link that is cut, held, delayed, slow or broken off in the middle of messages.

A node reaches its coordinator through a proxy of ours, as through a hospital's (`client-node proxy`), and one
aggregator another, as through a router.
"""

import time
from dataclasses import replace

from .attempts import after, attempt
from .bench import PARTY, SITE, Bench
from .outcomes import Outcome, Outcomes
from .points import BY_NAME, reach
from .proxy import Link

TROUBLED_S = 15.0

_POINTS = {SITE: ("sites are asked", "answer stored at the site"), PARTY: ("aggregators are ordered",)}
_BETWEEN, _PARTY_POINTS = "two aggregators", ("round begun at the aggregator", "coins bound at the party")
TROUBLES = ("cut", "held", "broken off", "delayed by 0.5 s", "8 KiB/s")


def trouble_each(bench: Bench, outcomes: Outcomes) -> None:
    """Troubles a link of two aggregators, one of a site and one of an aggregator, in each way at one or two points."""
    _trouble_parties(bench, outcomes)
    for owner, points in _POINTS.items():
        planned = [
            Outcome(group="link", fault=f"{trouble}, {TROUBLED_S:.0f} s", target=owner, point=point)
            for trouble in TROUBLES
            for point in points
        ]
        if all(map(outcomes.has, planned)) or outcomes.is_enough(planned[0].group):
            continue
        link = Link()
        bench.ensure_run(needs=40)
        _go_through(bench, owner, link.url)
        try:
            for each in planned:
                link.begin("")
                attempt(bench, outcomes, each, lambda planned, link=link: _trouble(bench, link, planned), needs=30)
        finally:
            link.begin("")
            _go_through(bench, owner, "none")
            link.end()


def _trouble_parties(bench: Bench, outcomes: Outcomes) -> None:
    link = bench.party_link
    assert link is not None
    for trouble in TROUBLES:
        for point in _PARTY_POINTS:
            planned = Outcome(group="link", fault=f"{trouble}, {TROUBLED_S:.0f} s", target=_BETWEEN, point=point)
            try:
                attempt(bench, outcomes, planned, lambda planned: _trouble(bench, link, planned), needs=30)
            finally:
                link.begin("")


def _go_through(bench: Bench, owner: str, url: str) -> None:
    bench.federation.kill(owner)
    bench.federation.client(owner, "proxy", url)
    bench.restart(owner)
    before = bench.committed()
    bench.wait(lambda: bench.committed() > before, "a round by another way")


def _trouble(bench: Bench, link: Link, planned: Outcome) -> Outcome:
    reach(bench, BY_NAME[planned.point])
    at = bench.committed()
    link.begin(planned.fault.rpartition(",")[0])
    time.sleep(TROUBLED_S)
    before = bench.committed()
    link.begin("")
    return after(bench, replace(planned, figures={"rounds meanwhile": before - at}), time.monotonic(), before)
