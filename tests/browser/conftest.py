"""Chromium for the tests of a file, and the pages that it looks at."""

import os
import shutil
import time
from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright

from confide.client_node.study.terms import load_draft
from confide.coordinator import ca_rotation
from confide.coordinator.comparison import page as comparison_page
from confide.coordinator.comparison.figures import Comparison, Point, Row
from confide.coordinator.comparison.ladder import NONE, OWN, RUNGS
from confide.coordinator.comparison.tried import Count
from confide.coordinator.routing import page as router_page
from confide.coordinator.routing.measuring import Routing
from confide.coordinator.simulation import run_page, sweep_page
from confide.coordinator.store.tables import Run
from confide.models.backbones.family import BackboneConfig
from confide.models.backbones.loading import build, save
from confide.models.evaluation.layer_routing import LayerRouting
from confide.privacy.report import page as budget_report
from confide.privacy.report.language import languages

from ..client_node.conftest import STUDY_TOML, site_in
from ..coordinator.conftest import SITES
from ..coordinator.simulation import made_up
from ..privacy.ledgers import eventful_report
from . import federations, sites
from .looking import Pictures, Place

NAME_NOBODY = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"  # so that nothing leaves this machine


@pytest.fixture(scope="module")
def browser():
    """Debian's Chromium, without a window.

    One for each file: while it runs, asyncio.run fails in its thread, so servers of pages have threads of their own.
    """
    found = shutil.which("chromium")
    if found is None:
        pytest.fail("no chromium on the PATH: apt-get install chromium fonts-dejavu-core")
    with sync_playwright() as playwright:
        # No sandbox: Chromium refuses one to root, and many containers allow none. The pages are our own.
        chromium = playwright.chromium.launch(executable_path=found, chromium_sandbox=False, args=[NAME_NOBODY])
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def pictures():
    """Pictures in the folder that CONFIDE_SHOTS names; none where it names none, as a picture takes long."""
    named = os.environ.get("CONFIDE_SHOTS")
    if not named:
        return Pictures(None)
    folder = Path(named)
    folder.mkdir(parents=True, exist_ok=True)
    return Pictures(folder)


def pytest_terminal_summary(terminalreporter):
    """Prints what each page took; figures of this machine at this moment, so nothing is asserted of them."""
    took = [dict(report.user_properties) for report in terminalreporter.getreports("passed")]
    for figures in took:
        if "page" in figures:
            terminalreporter.write_line(
                "{page}: first paint after {first_paint_ms} ms, looked at in {seconds:.1f} s".format(**figures)
            )


@pytest.fixture(scope="session")
def backbone(tmp_path_factory):
    """A backbone for the records of the studies, too small to be good at anything."""
    import torch

    folder = tmp_path_factory.mktemp("backbone")
    (folder / "study.toml").write_text(STUDY_TOML)
    schema = load_draft(folder / "study.toml").record_schema()
    save(build(schema, BackboneConfig(hidden=32, experts=4)), schema, torch.zeros(64), torch.eye(64), folder / "b")
    return folder / "b"


@pytest.fixture(scope="session")
def founded(tmp_path_factory):
    """A home after `coordinator init`."""
    home = tmp_path_factory.mktemp("founded") / "home"
    federations.found(home, "Thyroid network")
    return home


@pytest.fixture(scope="session")
def four(tmp_path_factory, founded, backbone):
    """A home of four sites with a study, some runs and three operators; with it the names of its parts."""
    home = federations.copied(founded, tmp_path_factory.mktemp("four") / "home")
    return home, federations.fill_runs(home, federations.fill_four(home, backbone))


@pytest.fixture
def copy(tmp_path, four):
    """The same in a folder that a test may change."""
    home, names = four
    return federations.copied(home, tmp_path / "home"), names


@pytest.fixture(scope="session")
def empty(tmp_path_factory, founded):
    """The page before anybody is invited."""
    with federations.served(federations.copied(founded, tmp_path_factory.mktemp("empty") / "home"), {}) as here:
        yield here.by("")


@pytest.fixture(scope="session")
def running(tmp_path_factory, four):
    """The page of four sites, with a run that goes on, and three operators."""
    home, names = four
    copy = federations.copied(home, tmp_path_factory.mktemp("running") / "home")
    with federations.served(copy, names) as here, federations.coordinating(here):
        yield here


@pytest.fixture(scope="session")
def stale(tmp_path_factory, four):
    """The same, but sites are away, the run's driver is silent, and the CA is being rotated."""
    home, names = four
    copy = federations.copied(home, tmp_path_factory.mktemp("stale") / "home")
    with federations.served(copy, names) as here:
        ca_rotation.begin(here.store, here.home)
        with here.store.session() as session:
            session.get(Run, names["run"]).heartbeat = time.time() - 400
        with federations.coordinating(here, away=SITES[:2], silent=[names["run"]]):
            yield here


@pytest.fixture(scope="session")
def large(tmp_path_factory, founded, backbone):
    """The page of a hundred sites, a run of a thousand rounds, and forty that ended."""
    home = federations.copied(founded, tmp_path_factory.mktemp("large") / "home")
    names, away = federations.fill_large(home, backbone), federations.LARGE_SITES[5:25:4]
    with federations.served(home, names) as here, federations.coordinating(here, away=away):
        yield here.by("")


@pytest.fixture(scope="session")
def logged(tmp_path_factory):
    """The standard error of a daemon that logs to a file."""
    file, link = tmp_path_factory.mktemp("logged") / "daemon.log", tmp_path_factory.mktemp("logged") / "stderr"
    file.write_text("".join(f"2026-03-01T12:00:{n:02}Z INFO svi is connected {n}\n" for n in range(40)))
    link.symlink_to(file)
    return link


@pytest.fixture(scope="session")
def site_empty(tmp_path_factory, logged):
    """The page of a site that no study has reached, and where nothing waits."""
    with sites.served(site_in(tmp_path_factory.mktemp("site")), log=logged) as here:
        yield here


@pytest.fixture(scope="session")
def site_waits(tmp_path_factory):
    """The page of a site where two studies wait and no daemon runs."""
    with sites.served(*sites.waiting(tmp_path_factory.mktemp("site")), has_daemon=False) as here:
        yield here


@pytest.fixture(scope="session")
def site_spent(tmp_path_factory, logged):
    """The page of a site with an approved study, a run under way, and budget spent."""
    with sites.served(*sites.spent(tmp_path_factory.mktemp("site")), log=logged) as here:
        yield here


@pytest.fixture(scope="session")
def site_refused(tmp_path_factory):
    """The page of a site that has refused its only study."""
    with sites.served(*sites.refused(tmp_path_factory.mktemp("site"))) as here:
        yield here


@pytest.fixture(scope="session")
def site_of_two(tmp_path_factory):
    """The page of a site where two people decide, and one of them has."""
    with sites.served(*sites.four_eyes(tmp_path_factory.mktemp("site"))) as here:
        yield here


@pytest.fixture(scope="session")
def aggregator(tmp_path_factory):
    """The page of an aggregator that has confirmed no site's key."""
    with sites.served(*sites.aggregator(tmp_path_factory.mktemp("site"))) as here:
        yield here


@pytest.fixture(scope="session")
def reports(tmp_path_factory):
    """A folder with an eventful budget report in every language, as a file that somebody was sent."""
    folder, report = tmp_path_factory.mktemp("reports"), eventful_report()
    for code in languages():
        (folder / f"{code}.html").write_text(budget_report.render_html(report, language=code))
    return Place(folder.as_uri() + "/")


@pytest.fixture(scope="session")
def routing(tmp_path_factory):
    """The page of a backbone with many experts, some of them never chosen."""
    layers = tuple(
        LayerRouting(
            layer, sum(choices) // 8, choices, tuple(count / sum(choices) for count in choices), 0.93 - layer / 100
        )
        for layer in range(1, 27)
        for choices in [tuple((expert * layer * 37) % 401 * 8 * (expert % 13 != layer % 13) for expert in range(64))]
    )
    page = router_page.render_html("qwen3-moe-tiny", Routing("qwen3-moe-tiny", "ab" * 32, "LICENSE.md", layers))
    return _file(tmp_path_factory, page)


@pytest.fixture(scope="session")
def ladder(tmp_path_factory):
    """The page of a comparison with every rung at four epsilons; a rung is left out, and another has one seed."""
    rows = tuple(
        Row(rung, name, "records of fields have no words" if rung == "ngrams" else None, _points(rung, height))
        for height, (rung, name) in enumerate(RUNGS.items())
    )
    found = Comparison(
        study="readmission-within-30-days", unit="person", metric="area under the ROC curve", delta=1e-5, collusion=1,
        rounds=40, held_out=4812, asked=(OWN, "1", "2", "8", NONE), rows=rows, tried=Count(88, len(RUNGS), 5, 5),
    )  # fmt: skip
    return _file(tmp_path_factory, comparison_page.render_html(found))


@pytest.fixture(scope="session")
def simulated(tmp_path_factory):
    """The page of a simulated run of 240 sites, some of them away, late, refused or malicious."""
    return _file(tmp_path_factory, run_page.render_html(made_up.simulation()))


@pytest.fixture(scope="session")
def simulating(tmp_path_factory):
    """The same of a run of four sites without privacy, of which two rounds are done and nothing was looked at."""
    return _file(tmp_path_factory, run_page.render_html(made_up.simulation(4, done=2, epsilon=0.0)))


@pytest.fixture(scope="session")
def swept(tmp_path_factory):
    """The page of a sweep of three settings in a grid."""
    return _file(tmp_path_factory, sweep_page.render_html(made_up.sweep()))


def _points(rung: str, height: int) -> tuple[Point, ...]:
    if rung == "ngrams":
        return ()
    seeds = 1 if rung == "site" else 5
    points = []
    for asked, epsilon in {OWN: 3.2, "1": 1.0, "2": 2.0, "8": 8.0, NONE: None}.items():
        value = 0.5 if rung == "constant" else 0.6 + 0.05 * height + 0.02 * min(epsilon or 16.0, 16.0) ** 0.5
        spread = None if seeds == 1 else (value - 0.012, value + 0.012)
        site = "north-hospital" if rung == "site" else None
        points.append(Point(asked, epsilon, 1.1, site, value, seeds, spread, (value - 0.03, value + 0.03), 2.0))
    return tuple(points[-1:] if rung == "constant" else points)


def _file(tmp_path_factory: pytest.TempPathFactory, page: str) -> Place:
    path = tmp_path_factory.mktemp("page") / "page.html"
    path.write_text(page)
    return Place(path.as_uri())
