"""The API tells what the commands tell with --json on the same home, and does what they do."""

import json
import shutil

import pytest

from confide.client_node.enrolment import InvitationCode
from confide.coordinator.cli.operator import _day
from confide.coordinator.cli.tables import clock
from confide.coordinator.oversight import operators
from confide.coordinator.store.tables import DecisionRow, Evaluation, Run

from ...client_node.conftest import EVALUATION, STUDY_TOML, changed
from ..conftest import committed_round, logged, put_in_state

MANY = 1000


def told(call, *words):
    return json.loads(call(*words, "--json").stdout)


def items(api, path, **asked):
    """All items of a list, page by page."""
    found, cursor = [], None
    while True:
        page = api.get(path, params={**asked, **({} if cursor is None else {"cursor": cursor})}).json()
        found += page["items"]
        if (cursor := page["next"]) is None:
            return found


@pytest.fixture
def rounds(store, run):
    """Three committed rounds of the run."""
    lease = store.acquire_lease(run)
    for number in (1, 2, 3):
        row = committed_round(number, run=run, lease=lease, sent=number)
        row.sites, row.seconds = '["other", "svi", "svhc"]', 1.25
        store.commit_round(row)
    store.leave_out(run, lease, 4, ["svi"])
    return run


def test_status(api, call, rounds):
    ours, theirs = api.get("/status").json(), told(call, "status")
    assert theirs.pop("sites") == ours.pop("members")
    assert [row | {"started": clock(row["started"])} for row in ours.pop("runs")] == theirs.pop("runs")
    assert ours == theirs


def test_runs(api, call, store, study, rounds):
    with store.session() as session:
        session.add(Run(id="run-2", study=study, state="failed", error="why", created_at=5.0))
    ours = [row | {"started": clock(row["started"])} for row in items(api, "/runs", limit=1)]
    assert ours == told(call, "run", "list")[::-1]
    assert [row["run"] for row in items(api, "/runs", state="failed")] == ["run-2"]
    assert [row["run"] for row in items(api, "/runs", study=study)] == ["run-2", rounds]
    assert api.get("/runs", params={"study": "none-such"}).status_code == 404


def test_a_run(api, call, store, rounds):
    put_in_state(store, rounds, "stopped")
    watched = json.loads(call("run", "watch", rounds, "--json", code=1).stdout)
    ours = api.get(f"/runs/{rounds}").json()
    assert {name: ours[name] for name in watched} == watched
    assert (ours["study"], ours["orders"], ours["is_silent"], ours["rounds"]) == (
        "thyroid", ["resume", "abandon"], False, 3
    )  # fmt: skip


def test_rounds(api, call, rounds):
    theirs = told(call, "run", "rounds", rounds)
    ours = [
        row | {"seconds": round(row["seconds"], 1), "committed": clock(row["committed"])}
        for row in items(api, f"/runs/{rounds}/rounds", limit=2)
    ]
    assert ours == theirs["rounds"]
    assert len(ours) == 3
    assert api.get(f"/runs/{rounds}/rounds").json()["too_long"] == theirs["too_long"] == {"4": ["svi"]}


def test_metrics_are_those_of_the_command(api, call, store, home, backbone):
    (home / "study.toml").write_text(changed(STUDY_TOML, (("some/where/backbone", str(backbone)), EVALUATION)))
    found = told(call, "study", "create", home / "study.toml")["hash"]
    with store.session() as session:
        session.add(Run(id="measured", study=found, state="done", created_at=0.0))
    lease = store.acquire_lease("measured")
    assert api.get("/runs/measured/metrics").status_code == 409
    counts = json.dumps([float(3 * each + 50) for each in range(20)])
    sites = '["other", "svi", "svhc", "rest"]'
    store.commit_round(
        Evaluation(
            run="measured", number=41, sites=sites, evidence="[]", counts=counts, problem=None,
            seconds=1.0, bytes_per_site=1, lease=lease, committed_at=0.0,
        )
    )  # fmt: skip
    assert api.get("/runs/measured/metrics").json() == told(call, "run", "metrics", "measured")


def test_runs_are_started_stopped_resumed_and_abandoned(ask, api, store, study):
    operator = ask("operator")
    made = operator.post("/runs", json={"study": "thyroid"})
    run = made.json()["run"]
    assert (made.status_code, made.headers["location"]) == (201, f"/api/v1/runs/{run}")
    assert operator.get(f"http://localhost{made.headers['location']}").json()["run"] == run
    assert operator.post("/runs", json={"study": study}).status_code == 409
    assert operator.post("/runs", json={"study": study, "again": True}).status_code == 201
    assert operator.post(f"/runs/{run}/resume").status_code == 409
    assert operator.post(f"/runs/{run}/stop").json() == {"run": run, "state": "stopped"}
    assert operator.post(f"/runs/{run}/resume").json() == {"run": run, "state": "pending", "round": 1}
    assert operator.post(f"/runs/{run}/abandon").json() == {"run": run, "state": "abandoning"}
    names = ["run.start", "run.start", "run.stop", "run.resume", "run.abandon"]
    assert [each["action"] for each in items(api, "/log", action="run")] == names
    assert {each["actor"] for each in items(api, "/log", action="run")} == {"operator:operator"}


def test_studies(api, call, study):
    (ours,), (theirs,) = items(api, "/studies"), told(call, "study", "list")
    assert ours | {"created": clock(ours["created"])} == theirs
    shown = api.get(f"/studies/{study}").json()
    assert json.loads(shown["canonical"]) == told(call, "study", "show", study)
    assert shown["summary"]["hash"] == study
    assert shown["words"] == ours["words"]
    assert api.get("/studies/thyroid").json() == shown


def test_who_has_approved_a_study_is_as_the_command_tells(ask, api, call, store, study):
    assert {each["says"] for each in api.get(f"/studies/{study}").json()["approvals"]} == {"has not said"}
    assert ask("operator").post("/runs", json={"study": study}).json()["warning"] == ""
    with store.session() as session:
        session.add(
            DecisionRow(site="svi", study=study, verdict="approved", runs_left=2, until="2099-12-31", since=1.75e9)
        )
    shown = api.get(f"/studies/{study}").json()["approvals"]
    at_command = told(call, "study", "show", study, "--approvals")
    assert [each | {"since": each["since"] and clock(each["since"])} for each in shown] == at_command
    (svi,) = (each for each in shown if each["says"] == "approved")
    assert svi == {
        "name": "svi", "part": "site", "says": "approved", "runs_left": 2, "until": "2099-12-31", "since": 1.75e9,
    }  # fmt: skip
    (listed,) = items(api, "/studies")
    assert (listed["approved"], listed["parties"]) == (1, 7)
    started = ask("operator").post("/runs", json={"study": study, "again": True})
    assert started.status_code == 201
    assert started.json()["warning"].startswith("approved by 1 of 7: other, svhc, rest")


def test_a_study_is_created_as_the_command_does(api, call, store, home, backbone):
    (home / "backbones").mkdir()
    shutil.copytree(backbone, home / "backbones" / "tiny")
    text = changed(STUDY_TOML, (("some/where/backbone", "tiny"),))
    (home / "backbones" / "study.toml").write_text(text)
    made = api.post("/studies", json={"toml": text})
    theirs = told(call, "study", "create", home / "backbones" / "study.toml")
    assert made.status_code == 201, made.text
    assert made.json() == {name: value for name, value in theirs.items() if name != "words"}
    assert made.headers["location"] == f"/api/v1/studies/{theirs['hash']}"
    assert [each for each, _ in logged(store)].count("study.create") == 1  # the command found it there


@pytest.mark.parametrize("elsewhere", ["/etc", "../pki", "tiny/../../pki", "..", "a\\u0000b", "x" * 190, "a/" * 9])
def test_a_draft_that_comes_as_text_reads_no_folder_elsewhere(api, store, elsewhere):
    made = api.post("/studies", json={"toml": changed(STUDY_TOML, (("some/where/backbone", elsewhere),))})
    assert made.status_code == 422
    assert "model.backbone" in made.json()["detail"]
    assert store.studies() == []


def test_problems_and_questions_of_a_draft_are_told_and_nothing_is_stored(api, store, home, backbone):
    (home / "backbones").symlink_to(backbone.parent)
    missing = api.post("/studies", json={"toml": changed(STUDY_TOML, (("some/where/backbone", "none"),))})
    assert missing.status_code == 422
    wrong = api.post("/studies", json={"toml": "[model]\nbackbone = 3"})
    assert wrong.status_code == 422
    assert "confide-draft" not in wrong.text + missing.text
    text = changed(STUDY_TOML, (("some/where/backbone", backbone.name),))
    asked = api.post("/studies", json={"toml": text, "units": 10})
    assert asked.status_code == 409
    assert "answer by `accept`" in asked.json()["detail"]
    assert store.studies() == []
    assert api.post("/studies", json={"toml": text, "units": 10, "accept": True}).status_code == 201


def test_sites(api, call):
    ours, theirs = items(api, "/sites", limit=3), told(call, "site", "list")
    assert [{name: row[name] for name in theirs[0]} for row in ours] == theirs
    assert len(ours) == 7
    assert ours == told(call, "status")["sites"]
    assert api.get("/sites/svi").json() == {"member": ours[-1], "accounts": []}
    assert api.get("/sites/none-such").status_code == 404


def test_sites_are_invited_leave_and_are_revoked(api, call, home):
    made = api.post("/sites", json={"name": "north", "roles": ["aggregate", "train"]})
    assert (made.status_code, made.headers["location"]) == (201, "/api/v1/sites/north")
    assert (made.json()["name"], made.json()["roles"]) == ("north", ["train", "aggregate"])
    assert InvitationCode.parse(made.json()["code"]).address == "fed.example:9999"
    assert made.json()["code"] not in api.get("/sites/north").text
    assert api.post("/sites/svi/leave").json() == {"name": "svi", "state": "left"}
    assert api.post("/sites/rest/revoke").json() == {"name": "rest", "state": "revoked"}
    states = {row["name"]: row["state"] for row in told(call, "site", "list")}
    assert (states["north"], states["svi"], states["rest"]) == ("invited", "left", "revoked")


def test_the_log(api, call):
    for word in ("one", "two", "three"):
        api.post("/sites", json={"name": word})
    assert items(api, "/log", limit=2) == told(call, "audit", "log")
    asked = ("--actor", "admin", "--action", "site", "--since", "2026-01-01")
    found = items(api, "/log", limit=1, actor="admin", action="site", since="2026-01-01")
    assert found == told(call, "audit", "log", *asked)
    assert [each["fields"]["site"] for each in found] == ["one", "two", "three"]


def test_operators(api, call, store):
    made = api.post("/operators", json={"name": "vera", "role": "viewer", "days": 3.0})
    assert made.status_code == 201
    assert api.get("/status", headers={"Authorization": f"Bearer {made.json()['token']}"}).status_code == 200
    theirs = told(call, "operator", "list")
    assert [row | {"expires": _day(row["expires"])} for row in items(api, "/operators", limit=2)] == theirs
    text = api.get("/operators").text
    assert not any(each.token_hash in text for each in operators.operators(store))
    renewed = api.post("/operators/vera/renew", json={}).json()
    assert (renewed["name"], renewed["role"]) == ("vera", "viewer")
    assert renewed["token"] != made.json()["token"]
    assert api.get("/status", headers={"Authorization": f"Bearer {made.json()['token']}"}).status_code == 401
    assert api.post("/operators/vera/revoke").json() == {"name": "vera", "state": "revoked"}
    assert api.get("/status", headers={"Authorization": f"Bearer {renewed['token']}"}).status_code == 401


def test_a_thousand_runs_come_in_pages_each_once_and_new_ones_do_not_move_them(api, store, study):
    with store.session() as session:
        session.add_all(Run(id=f"run-{n:04}", study=study, state="done", created_at=float(n // 7)) for n in range(MANY))
    first = api.get("/runs", params={"limit": 200}).json()
    with store.session() as session:
        session.add(Run(id="newest", study=study, state="pending", created_at=1e6))
    found, pages = first["items"], 1
    page = first
    while page["next"]:
        page = api.get("/runs", params={"limit": 200, "cursor": page["next"]}).json()
        found, pages = found + page["items"], pages + 1
    assert pages == 5
    assert {row["run"] for row in found} == {f"run-{n:04}" for n in range(MANY)}
    assert len(found) == MANY
    assert [row["started"] for row in found] == sorted((row["started"] for row in found), reverse=True)


def test_reports_and_studies_are_made_one_at_a_time(api, page, monkeypatch):
    monkeypatch.setattr("confide.coordinator.api.routes.WAIT_S", 0.0)
    (mounted,) = [route.app for route in page.app.routes if route.path == "/api/v1"]
    with mounted.state.federation.busy:
        refused = [api.get("/budgets/report"), api.post("/studies", json={"toml": "name = 1"})]
    assert [each.status_code for each in refused] == [503, 503]
    assert api.get("/budgets/report").status_code == 404  # no ledger yet


def test_a_backbone_whose_links_lead_in_a_circle_is_told(api, home):
    (home / "backbones").mkdir(exist_ok=True)
    (home / "backbones" / "circle").symlink_to("circle")
    answer = api.post("/studies", json={"toml": changed(STUDY_TOML, (("some/where/backbone", "circle"),))})
    assert answer.status_code == 422
    assert "leads to no folder" in answer.json()["detail"]


def test_a_text_that_is_made_to_take_long_is_refused_at_once(api):
    answer = api.post("/studies", json={"toml": ".".join(["a"] * 49_000) + "=1"})
    assert answer.status_code == 422
    assert "more than 32 parts" in answer.json()["detail"]
