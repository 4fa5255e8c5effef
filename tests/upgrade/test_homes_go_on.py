"""Homes that earlier versions made go on: their commands, their run, their ledgers, under this version.

`make_home.py` writes one archive for each version; all are tried but that of 0.1.0, whose studies state no start
(`test_home_0_1_0.py`). `home-unreleased.tar.xz` was made between 0.2.0 and the next release, whose own takes its place.
"""

import json
import sqlite3
import tarfile
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from confide.client_node.approval.charges import LEDGER_FILE
from confide.client_node.enrolment.identity import NodeIdentity
from confide.client_node.enrolment.protocol import enrol
from confide.coordinator.federation import members, opened_store
from confide.coordinator.run.driver import drive
from confide.coordinator.store import Store, migrate
from confide.privacy.report.verify import verify

from ..coordinator.open_gate import open_gate
from ..damage.homes import COORDINATOR, SITES, Homes, Noting, call, done, nodes_at, quicken

HERE = Path(__file__).parent
ARCHIVES = sorted(HERE.glob("home-*.tar.xz"))
pytestmark = pytest.mark.slow


@pytest.fixture(
    params=[archive for archive in ARCHIVES if archive.name != "home-0.1.0.tar.xz"], ids=lambda archive: archive.name
)
def made(request: pytest.FixtureRequest, tmp_path: Path) -> Homes:
    """The federation of an archive, unpacked at another place than where it was made, and its database upgraded."""
    with tarfile.open(request.param) as archive:
        archive.extractall(tmp_path, filter="data")
    facts = json.loads((tmp_path / "facts.json").read_text())
    for site in SITES:  # their people name the folder of the backbone
        policy = tmp_path / site / "site.toml"
        policy.write_text(policy.read_text().replace(facts["folder"], str(tmp_path)))
    store = Store.open(tmp_path / COORDINATOR)
    migrate(store.url)  # as `coordinator serve` does when it starts
    store.close()
    return Homes(tmp_path, facts["study"], facts["run"])


def entries(home: Path) -> list[tuple[Any, ...]]:
    """The rows of a site's ledger, in order: number, time, kind, contents, and what chains them."""
    with closing(sqlite3.connect(home / LEDGER_FILE)) as ledger:
        return ledger.execute("SELECT * FROM entries ORDER BY 1").fetchall()


def test_a_run_that_an_earlier_version_left_goes_on_to_its_end(made: Homes) -> None:
    home = made.home(COORDINATOR)
    before = {site: entries(made.home(site)) for site in SITES}
    done(home, "run", "resume", made.run)
    with pytest.MonkeyPatch.context() as patch, nodes_at(made.folder) as nodes:
        quicken(patch)
        drive(Noting(nodes, made.asked), home, made.run)
    (run,) = json.loads(done(home, "run", "list", "--json").stdout)
    assert (run["state"], run["rounds"]) == ("done", 2)
    report = json.loads(done(home, "budget", "report", "--json").stdout)
    assert verify(report).failures == []
    for site, was in before.items():
        now = entries(made.home(site))
        assert now[: len(was)] == was
        charged = [json.loads(contents)["round"] for _, _, kind, contents, *_ in now if kind == "reserve"]
        assert len(charged) == len({*charged})  # what was sealed before is sent: nothing is charged twice
    assert call(home, "audit", "verify").exit_code == 0


def test_a_site_of_an_earlier_version_leaves_and_comes_back(made: Homes) -> None:
    home, site = made.home(COORDINATOR), made.home("east")
    before = NodeIdentity.load(site)
    ledger = done(site, "budget", "show", "--json").stdout
    with open_gate(home):
        done(home, "site", "leave", "east", "--yes")
        with opened_store(home) as store:
            assert {each.name: each.state for each in members.members(store)}["east"] == "left"
        code = json.loads(done(home, "site", "invite", "east", "--json").stdout)["code"]
        enrol(code, site, again=True)
    after = NodeIdentity.load(site)
    assert after.identity_hex == before.identity_hex
    assert after.transport_fingerprint != before.transport_fingerprint
    assert done(site, "budget", "show", "--json").stdout == ledger
    assert call(home, "audit", "verify").exit_code == 0


def test_nodes_of_an_earlier_version_have_said_nothing_of_the_signing_key(made: Homes) -> None:
    home = made.home(COORDINATOR)
    before = json.loads(done(home, "keys", "status", "--json").stdout)
    assert {each["knows"] for each in before["nodes"].values()} == {"unknown"}
    assert before["lacking"] == []
    done(home, "keys", "rotate", "--yes")
    after = json.loads(done(home, "keys", "status", "--json").stdout)
    assert after["lacking"] == list(before["nodes"])
    assert [each["key"] for each in after["earlier"]] == [before["key"]]
