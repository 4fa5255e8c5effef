"""Runs and the overview: the figures of the commands, in any state, with what is hostile as text."""

import itertools
import json
import re
import time
from urllib.parse import quote

import pytest

from confide.coordinator.page.runs import ROUNDS_A_PAGE
from confide.coordinator.run.glance import look
from confide.coordinator.run.overview import opened_rounds, run_standings
from confide.coordinator.store.run_folder import RunFolder
from confide.coordinator.store.states import RunState
from confide.coordinator.store.tables import Round, Run

from ...client_node.conftest import EVALUATION
from ..conftest import SITES, committed_round, put_in_state
from ..results.test_metrics import evaluation
from .conftest import key_of

HOSTILE = "<script>alert(1)</script> \x1b[31mred\x07 \u202etxet \"'&"
ESCAPED = "&lt;script&gt;alert(1)&lt;/script&gt;"
ODD = ["a b", "a.b", "ä-1", 'x"><img src=1>', "a&b=c#d", "a+b", "-"]


@pytest.fixture
def run(federation):
    """A run that goes on, run-1, with a driver that has just shown a sign of life."""
    study = federation.create(("rounds = 40", "rounds = 2000"))
    with federation.store.session() as session:
        session.add(Run(id="run-1", study=study.study_hash, state="running", created_at=7.0, heartbeat=time.time()))
    return "run-1"


def cells(text: str) -> list[list[str]]:
    """The rows of all tables, without markup."""
    rows = re.findall(r"<tr>(.*?)</tr>", text, re.DOTALL)
    return [[re.sub(r"<[^>]+>", "", each).strip() for each in re.findall(r"<t[hd].*?</t[hd]>", row, re.DOTALL)]
            for row in rows]  # fmt: skip


def commit(federation, run, count, *, missing=()):
    with federation.store.session() as session:
        for number in range(1, count + 1):
            row = committed_round(number, run=run, sent=1_000_000)
            row.sites = json.dumps([site for site in SITES if site not in missing])
            row.seconds, row.evidence = number / 10, json.dumps(["e" * 2000] * 3)
            session.add(row)


def test_the_overview_shows_what_the_command_shows(page, federation, run):
    commit(federation, run, 3)
    found, text = look(federation.store, federation.home), page.get("/").text
    assert len(found.worries) > 0
    for worry in found.worries:
        assert worry[1:40] in text
    rows = cells(text)
    for member in found.members:
        assert [row[0] for row in rows].count(member.name) == 1
    assert "3 of 2000" in text
    assert found.keys in text


def test_the_list_shows_every_run_as_the_command_does_the_newest_first(page, federation, run):
    study = federation.store.run(run).study
    with federation.store.session() as session:
        session.add(Run(id="run-2", study=study, state="failed", created_at=9.0, error="sites are missing"))
    commit(federation, run, 2)
    rows = cells(page.get("/runs").text)[1:]
    expected = run_standings(federation.store)[::-1]
    assert [(row[0], row[2], row[3], row[5]) for row in rows] == [
        (each.run, each.state, str(each.rounds), each.step) for each in expected
    ]
    assert rows[0][1] == federation.store.study(study).name


def test_a_run_shows_its_rounds_as_the_command_does(page, federation, run):
    commit(federation, run, 4, missing=SITES[:1])
    rows = [row for row in cells(page.get("/runs/run-1").text) if row[0].isdigit()]
    for row, each in zip(rows, opened_rounds(federation.store, run).rounds[::-1], strict=True):
        assert row[:2] == [str(each.round), each.purpose]
        assert row[2] == f"{len(each.summed)}: {', '.join(each.summed)}"
        assert row[3:6] == [", ".join(each.missing), "–", f"{each.seconds:.1f}"]
        assert row[6] == "1.0 MB"


def test_what_a_round_takes_is_told_of_updates_and_not_of_the_evaluation(page, federation):
    study = federation.create(EVALUATION)
    with federation.store.session() as session:
        session.add(Run(id="run-1", study=study.study_hash, state="running", created_at=7.0))
    commit(federation, "run-1", 3)
    row = evaluation(federation.store.acquire_lease("run-1"), run="run-1", number=41, seconds=9.9, bytes_per_site=9000)
    federation.store.commit_round(row)
    told = "A round takes 0.2 s in the middle, 0.3 s at the most, and 1.0 MB from each site."
    assert told in page.get("/runs/run-1").text


def test_a_round_shows_who_is_missing_and_why(page, federation, run):
    first, second, *others = SITES
    row = committed_round(1, run=run, lease=federation.store.acquire_lease(run))
    row.sites = json.dumps(others)
    federation.store.commit_round(row, {first: "away"})
    (cell,) = [row[3] for row in cells(page.get("/runs/run-1").text) if row[0] == "1"]
    assert cell == f"{first} (away by its own hours), {second}"


def test_a_round_shows_its_steps_in_a_picture_and_a_table(page, federation, run):
    commit(federation, run, 3)
    assert "timeline" not in page.get("/runs/run-1").text  # of rounds of earlier versions nothing is known
    with federation.store.session() as session:
        row = session.get(Round, (run, 2))
        row.collect_s, row.topup_s, row.deliver_s, row.wait_s, row.sum_s, row.open_s = 3.0, 0.0, 0.25, 1.0, 2.0, 0.5
    text = page.get("/runs/run-1").text
    (line,) = [row for row in cells(text) if row[0] == "2" and row[1] != "update"]
    assert line[1:] == ["3.00", "0.00", "0.25", "1.00", "2.00", "0.50", "–"]
    wide = re.search(r'<div class="wide"><svg class="timeline".*?</svg>', text, re.DOTALL)[0]
    bars = re.findall(r'<rect class="step-(\w+)" x="([\d.]+)" y="([\d.]+)" width="([\d.]+)"', wide)
    drawn = [(name, float(x), float(width)) for name, x, y, width in bars if width != "10.0" or float(y) > 40]
    widths = {name: width for name, _, width in drawn}
    assert widths["collect"] / widths["sum"] == pytest.approx(1.5, rel=0.01)
    assert widths["sum"] / widths["deliver"] == pytest.approx(8, rel=0.01)
    ends = [(x, x + width) for _, x, width in drawn]
    assert all(start == pytest.approx(end, abs=0.2) for (_, end), (start, _) in itertools.pairwise(ends))


@pytest.mark.slow
def test_of_a_thousand_rounds_each_stands_on_one_page(page, federation, run):
    commit(federation, run, 1000)
    last = 1000 // ROUNDS_A_PAGE
    for number, newest in ((1, 1000), (2, 1000 - ROUNDS_A_PAGE), (last, ROUNDS_A_PAGE)):
        text = page.get("/runs/run-1", params={"page": number}).text
        shown = [int(row[0]) for row in cells(text) if row[0].isdigit()]
        assert shown == list(range(newest, newest - ROUNDS_A_PAGE, -1))
    assert f"Page {last} of {last}" in text
    assert "Older" not in text
    assert "1000 rounds" in text  # of the chart


@pytest.mark.parametrize("odd", ["0", "-1", "41", "9" * 30, "²", "x", ""])
def test_a_page_that_is_not_there_is_the_nearest_one(page, federation, run, odd):
    commit(federation, run, 3)
    rows = cells(page.get("/runs/run-1", params={"page": odd}).text)
    assert [row[0] for row in rows if row[0].isdigit()] == ["3", "2", "1"]


def test_a_driver_that_is_silent_is_told_of(page, federation, run):
    assert "no sign of life" not in page.get("/runs/run-1").text
    with federation.store.session() as session:
        session.get(Run, run).heartbeat = time.time() - 3600
    assert "no sign of life" in page.get("/runs/run-1").text


@pytest.mark.parametrize("state", list(RunState))
def test_a_run_is_shown_in_every_state_with_the_orders_that_it_takes(page, federation, run, state):
    put_in_state(federation.store, run, state, error="why it ended" if state.is_over else None)
    text = page.get("/runs/run-1").text
    offered = set(re.findall(r'href="/runs/run-1/(\w+)"', text))
    for order in ("stop", "resume", "abandon"):
        answer = page.get(f"/runs/run-1/{order}")
        assert answer.status_code in (200, 409)
        assert (order in offered) <= (answer.status_code == 200)
    assert page.get("/").status_code == page.get("/runs").status_code == 200


def test_texts_of_drivers_nodes_and_logs_are_text(page, federation, run):
    put_in_state(federation.store, run, "failed", error=HOSTILE)
    folder = RunFolder(federation.home, run).path
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "driver.log").write_bytes(b"first\n" + HOSTILE.encode() + b"\xff\xfe\0\n")
    for path in ("/", "/runs", "/runs/run-1"):
        text = page.get(path).text
        assert ESCAPED in text
        assert "<script>alert" not in text


@pytest.mark.parametrize("odd", ODD)
def test_a_run_with_an_odd_name_is_shown_and_takes_orders(page, federation, run, odd):
    study = federation.store.run(run).study
    with federation.store.session() as session:
        session.add(Run(id=odd, study=study, state="running", created_at=9.0, heartbeat=time.time()))
    text = page.get("/runs").text
    assert "<img" not in re.sub(r'<img src="/static[^>]*>', "", text)
    assert f'href="/runs/{quote(odd, safe="/")}"' in text
    path = f"/runs/{quote(odd, safe='')}"
    key = key_of(page.get(path))
    answer = page.post(f"{path}/stop", data={"form_key": key})
    assert (answer.status_code, answer.headers["location"]) == (303, path)
    assert federation.store.run(odd).state == RunState.STOPPING
    assert federation.store.run(run).state == RunState.RUNNING


def test_the_log_is_shown_to_who_may_stop_the_run(as_role, federation, run):
    folder = RunFolder(federation.home, run).path
    folder.mkdir(parents=True, exist_ok=True)
    lines = [f"line {number:06d}" for number in range(10_000)]
    (folder / "driver.log").write_text("\n".join(lines) + "\n")
    for role, is_shown in (("viewer", False), ("operator", True), ("admin", True)):
        text = as_role(role).get("/runs/run-1").text
        assert ("Log of the driver" in text, "line 009999" in text) == (is_shown, is_shown)
        assert len(text) < 100_000
        assert "line 000000" not in text


@pytest.mark.parametrize(("order", "state"), [("stop", "running"), ("resume", "stopped"), ("abandon", "stopped")])
@pytest.mark.parametrize("role", ["viewer", "operator"])
def test_an_order_takes_an_operator_and_its_form(as_role, federation, run, order, state, role):
    put_in_state(federation.store, run, state)
    client = as_role(role)
    asked = client.get(f"/runs/run-1/{order}")
    assert asked.status_code == (403 if role == "viewer" else 200)
    data = {"form_key": key_of(client.get("/")), "typed": run}
    assert client.post(f"/runs/run-1/{order}", data={"typed": run}).status_code == 403
    assert federation.store.run(run).state == state
    answer = client.post(f"/runs/run-1/{order}", data=data)
    assert answer.status_code == (403 if role == "viewer" else 303)
    assert (federation.store.run(run).state == state) == (role == "viewer")
    offered = re.findall(r'href="/runs/run-1/\w+"', client.get("/runs/run-1").text)
    assert bool(offered) <= (role == "operator")


def test_a_run_is_given_up_only_if_its_name_was_typed(page, federation, run):
    put_in_state(federation.store, run, "stopped")
    data = {"form_key": key_of(page.get("/runs/run-1/abandon"))}
    for typed in ({}, {"typed": ""}, {"typed": "RUN-1"}, {"typed": "run-11"}):
        answer = page.post("/runs/run-1/abandon", data=data | typed)
        assert (answer.status_code, "was not typed" in answer.text) == (409, True)
    assert federation.store.run(run).state == RunState.STOPPED
    assert page.post("/runs/run-1/abandon", data=data | {"typed": " run-1 "}).status_code == 303
    assert federation.store.run(run).state != RunState.STOPPED


def test_an_order_that_comes_too_late_is_refused(page, federation, run):
    data = {"form_key": key_of(page.get("/runs/run-1/stop"))}
    put_in_state(federation.store, run, "done")
    assert page.post("/runs/run-1/stop", data=data).status_code == 409
    assert page.get("/runs/run-1/stop").status_code == 409


def test_a_round_that_is_no_round_any_more_is_an_error_with_its_words(page, federation, run):
    commit(federation, run, 1)
    with federation.store.session() as session:
        session.get(Round, (run, 1)).sites = '{"a": 1}'
    answer = page.get("/runs/run-1")
    assert (answer.status_code, "backup" in answer.text) == (400, True)
