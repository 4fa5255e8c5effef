"""Nodes in the states that a site's page must show, as files in a home: no daemon runs."""

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from confide import __version__
from confide.client_node import daemon, vitals
from confide.client_node.approval import study_decisions
from confide.client_node.approval.catalogue import cached_study
from confide.client_node.approval.charges import open_ledger, reserve
from confide.client_node.approval.confirmed_sites import fingerprint
from confide.client_node.approval.run_reservations import RunReservations
from confide.client_node.enrolment import Enrolment
from confide.client_node.enrolment.sessions import only_one
from confide.client_node.page.app import PageApp
from confide.client_node.policy import load_policy, pending
from confide.client_node.study import Study
from confide.client_node.traffic import Passed, Traffic
from confide.client_node.vitals import KINDS, Standing
from confide.client_node.web.entering import make_link

from ..client_node.conftest import Site, site_in
from .looking import Place
from .serving import Served

WHO = "ada"
LONG_NAME = "Dr. Ada " + "of-the-department-of-endocrinology-" * 5
HOSTILE = (
    "Any diagnosis from laboratory values",
    "<script>alert(1)</script><img src=x onerror=alert(2)> " + "unbroken-" * 20,
)
ROOM = ("epsilon = 10.0", "epsilon = 12.0")  # for a run and a part of another
FOUR_EYES = ("[limits]", "[policy]\nfour_eyes = true\n[limits]")
_AHEAD_S = 86_400.0  # the daemon's note, so that it grows old while nobody waits


@dataclass(slots=True, kw_only=True)
class SitesPage(Served):
    """A site's page, opened by links of a login."""

    site: Site

    def link(self, who: str = WHO) -> str:
        """The address that lets somebody in once."""
        return f"{self.address}/enter?link={make_link(self.site.home, who)}"

    def at(self, path: str, *, status: int = 200) -> Place:
        """A page as somebody sees it who has a link."""
        return self.by(WHO).at(path, status=status)


@contextmanager
def served(
    site: Site, names: Mapping[str, str] | None = None, *, has_daemon: bool = True, log: Path | None = None
) -> Iterator[SitesPage]:
    """Serves a node's page on a free port, in a thread of its own, warm as its process is a few seconds on.

    It notes what the node's daemon would, if it has one.
    """
    page = PageApp(site.home, daemon_log=log)
    page.warm_up()
    here = SitesPage(site=site, app=page.app, names=dict(names or {}))
    here.serve()
    try:
        if has_daemon:
            with connected(site.home, here.address):
                yield here
        else:
            yield here
    finally:
        here.stop()


@contextmanager
def connected(home: Path, address: str) -> Iterator[None]:
    """Notes that a daemon runs and is connected."""
    now = time.time()
    told = Standing(
        version=__version__, since=now - 3 * 86_400, noted=now + _AHEAD_S, is_connected=True, trouble="",
        last_contact=now - 4,
    )  # fmt: skip
    (home / vitals.FILE).write_text(told.model_dump_json())
    (home / daemon.PAGE_FILE).write_text(json.dumps({"address": address}))
    with only_one(home):
        yield


def waiting(folder: Path) -> tuple[Site, dict[str, str]]:
    """A site with two studies on which nobody has decided, one of them with a hostile text."""
    site = site_in(folder)
    site.write(ROOM)
    first = site.keep(site.study())
    other = site.keep(site.study(HOSTILE, ('name = "thyroid"', 'name = "hostile"')))
    return site, {"study": first.study_hash, "other": other.study_hash}


def under_way(folder: Path) -> tuple[Site, dict[str, str]]:
    """A site that has approved one of two studies, of which a run is under way."""
    site, names = waiting(folder)
    _approve(site, cached_study(site.home, names["study"]), runs=2, by=LONG_NAME)
    RunReservations(site.home).note("thyroid-7d0b3344", names["study"])
    return site, names


def spent(folder: Path) -> tuple[Site, dict[str, str]]:
    """The same, with budget spent, and messages; the other study is refused."""
    site, names = under_way(folder)
    first = cached_study(site.home, names["study"])
    study_decisions.revoke_study(site.home, names["other"], by=WHO)
    _charge(site, first, "thyroid-2f6a9c01", rounds=40)
    _charge(site, first, "thyroid-7d0b3344", rounds=4, settled=3)
    for day in range(40):
        traffic = Traffic(site.home, clock=lambda day=day: 86_400.0 * (20_400 + day))
        for place, kind in enumerate((*KINDS, "other")):
            traffic.note(kind, Passed(
                came=12 + day, came_bytes=1200 * 5**place, answered=11 + day, failed=1,
                left_bytes=(1 + day % 7) * 4**place,
            ))  # fmt: skip
    (site.home / "page.log").write_text("2026-03-01T12:00:00Z WARNING " + HOSTILE[1] + "\n")
    return site, names


def refused(folder: Path) -> tuple[Site, dict[str, str]]:
    """A site that has refused the only study."""
    site = site_in(folder)
    study = site.keep(site.study())
    study_decisions.revoke_study(site.home, study.study_hash, by=WHO)
    return site, {"study": study.study_hash}


def four_eyes(folder: Path) -> tuple[Site, dict[str, str]]:
    """A site where two people decide: the word of the first waits."""
    site = site_in(folder)
    site.write(FOUR_EYES, ROOM)
    study = site.keep(site.study())
    word = pending.Waiting(
        kind="approve", about=study.study_hash, terms=study_decisions.propose(site.home, study.study_hash).terms,
        by="Dr. Bo", login="bo", at=time.time(), loginuid=1001,
    )  # fmt: skip
    (site.home / pending.FILE).write_text(json.dumps([word.model_dump(mode="json")]))
    return site, {"study": study.study_hash}


def aggregator(folder: Path) -> tuple[Site, dict[str, str]]:
    """A node that only adds up, with sites whose keys nobody has confirmed, and their fingerprints."""
    site = site_in(folder)
    study = site.aggregate()
    (site.home / "decisions.json").unlink()
    heard = {each.name: fingerprint(each.identity) for each in study.sites}
    return site, {"study": study.study_hash} | heard


def _approve(site: Site, study: Study, *, runs: int, by: str = WHO) -> None:
    study_decisions.approve_study(site.home, study_decisions.propose(site.home, study.study_hash, runs=runs), by=by)


def _charge(site: Site, study: Study, run: str, *, rounds: int, settled: int | None = None) -> None:
    policy = load_policy(site.home)
    with open_ledger(site.home, site.identity, Enrolment.load(site.home)) as ledger:
        for number in range(1, rounds + 1):
            reserve(ledger, study, policy, run=run, round_number=number)
            if number <= (rounds if settled is None else settled):
                ledger.settle(run, number, study.site_names())
