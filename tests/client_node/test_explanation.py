"""An explanation agrees with what is enforced, and names the line or the decision."""

import datetime as dt
import json
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from confide.client_node.approval import charges, peers
from confide.client_node.approval.admission import Admission
from confide.client_node.approval.run_reservations import RunReservations
from confide.client_node.cli.main import app
from confide.client_node.enrolment import Enrolment
from confide.client_node.errors import ChargeRefused, ClientNodeError, SiteAway
from confide.client_node.explanation import effective, explain
from confide.client_node.policy import decisions, load_policy
from confide.client_node.wire.messages import Prepare

from .conftest import Site, identity_of, site_in
from .policy.test_site_policy import NO_PRIVACY
from .test_node import make_desk

OF_SITE = {"hours", "rounds a day", "bytes a day", "start", "backbone", "people", "budget"}
YESTERDAY = decisions.today() - dt.timedelta(days=1)
PARTIES = '["other", "svhc", "rest"]'

CASES = st.fixed_dictionaries(
    {
        "approval": st.sampled_from(["none", "command", "bare", "revoked", "expired", "listed", "listed bare"]),
        "mode": st.sampled_from(["distributed", "none"]),
        "unit": st.sampled_from(["patient", "person"]),
        "used": st.integers(0, 2),
        "runs": st.integers(1, 2),
        "role": st.sampled_from(["train", "aggregate", "neither", "impersonated"]),
        "models": st.sampled_from([None, "[]", f'["{"ab" * 32}"]', f'["{"cd" * 32}"]']),
        "sites": st.sampled_from([None, "[]", PARTIES, '["other", "svhc"]']),
        "aggregators": st.sampled_from([None, '["agg-a", "agg-b", "agg-c"]', '["agg-a"]']),
        "known": st.sampled_from(["nobody", "all", "another key"]),
        "confirmed": st.booleans(),
        "broken": st.booleans(),
    }
)
GOOD = {
    "approval": "command", "mode": "distributed", "unit": "patient", "used": 0, "runs": 1, "role": "train",
    "models": None, "sites": None, "aggregators": None, "known": "nobody", "confirmed": True, "broken": False,
}  # fmt: skip


def in_hours(hours: int) -> str:
    """The clock's time then, in UTC."""
    return (dt.datetime.now(dt.UTC) + dt.timedelta(hours=hours)).strftime("%H:%M")


def arranged(case: dict, folder: Path) -> tuple[Site, str]:
    """A node with the policy and the study of a case; returns it with the study's hash."""
    site = site_in(folder)
    changes = NO_PRIVACY if case["mode"] == "none" else ()
    named = {"train": "svi", "aggregate": "agg-a", "neither": "nobody", "impersonated": "nobody"}[case["role"]]
    if case["role"] == "aggregate":
        site.aggregate()
    unit = ('unit = "patient"', f'unit = "{case["unit"]}"')
    names = (('"svi"', '"third"'),) if case["role"] == "neither" else ()
    study = site.keep(site.study(unit, *changes, *names, named=named))
    if not case["confirmed"] and case["role"] == "aggregate":
        decisions.remove_sites(site.home, ["rest"])
    write_policy(site, study.study_hash, case)
    verdict = case["approval"]
    if verdict in ("command", "bare", "expired"):
        until = YESTERDAY if verdict == "expired" else None
        decisions.approve(site.home, study.study_hash, unprotected=verdict == "bare", runs=case["runs"], until=until)
    if verdict == "revoked":
        decisions.revoke(site.home, study.study_hash)
    for number in range(case["used"]):
        decisions.count_run(site.home, study.study_hash, f"used-{number}", allowed=9)
    if case["known"] != "nobody":
        other = site.study(("rank = 4", "rank = 5"), unit, *changes, *names, named=named)
        if case["known"] == "another key":
            mallory = [
                party.model_copy(update={"identity": identity_of("mallory")}) if party.name == "svhc" else party
                for party in other.sites
            ]
            other = other.model_copy(update={"sites": tuple(mallory)})
        peers.note(site.home, other)
    if case["broken"]:
        (site.home / decisions.FILE).write_text("{")
    return site, study.study_hash


def write_policy(site: Site, study_hash: str, case: dict) -> None:
    listed = {"listed": "approved", "listed bare": "unprotected"}.get(case["approval"])
    lines = [f'[studies]\n{listed} = ["{study_hash}"]\nruns = {{"{study_hash}" = {case["runs"]}}}'] if listed else []
    lists = [f"{key} = {case[key]}" for key in ("models", "sites", "aggregators") if case[key] is not None]
    added = "\n".join([*lines, "[policy]", *lists])
    if case["role"] == "aggregate":
        (site.home / "site.toml").write_text(added)
    else:
        site.write(("[backbone]", f"{added}\n[backbone]"))


@given(case=CASES)
@example(case=GOOD)
@example(case=GOOD | {"approval": "none"})
@example(case=GOOD | {"role": "aggregate", "confirmed": False})
@example(case=GOOD | {"known": "another key"})
@example(case=GOOD | {"broken": True})
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_an_explanation_allows_what_admission_admits_and_gives_its_first_reason(case):
    with TemporaryDirectory() as folder:
        site, study_hash = arranged(case, Path(folder))
        rules = [each for each in explain(site.home, study_hash, run="run-1").rules if each.rule not in OF_SITE]
        against = [each for each in rules if each.verdict != "allows"]
        name = Enrolment.load(site.home).name
        message = Prepare(to=name, study=study_hash, run="run-1", lease=1, ledger_from=0)
        if not against:
            Admission(site.home, name).admit(message)
            return
        with pytest.raises(ClientNodeError) as refusal:
            Admission(site.home, name).admit(message)
        assert against[0].why in str(refusal.value) or case["broken"]


def test_everything_that_prepares_a_run_is_explained_and_agrees_with_the_node(site):
    desk = make_desk(site)

    def prepared() -> str:
        message = Prepare(to="svi", study=desk.study.study_hash, run="run-1", lease=1, ledger_from=0)
        try:
            desk.ask("prepare", message)
        except ClientNodeError as err:
            return str(err)
        return ""

    def against() -> list[tuple[str, str]]:
        return [(each.rule, each.where) for each in explain(site.home, desk.study.study_hash, run="run-1").against]

    site.write(("epsilon = 10.0", "epsilon = 0.5"))
    assert against() == [("budget", "site.toml:13 budget.epsilon")]
    assert "over the cap of 0.5" in prepared()
    site.write(("[limits]", f'[schedule]\nhours = ["{in_hours(2)}-{in_hours(3)}"]\n[limits]'))
    assert against() == [("hours", "site.toml:18 schedule.hours")]
    assert "outside the hours" in prepared()
    site.write(("[backbone]", f'[policy]\nmodels = ["{"cd" * 32}"]\n[backbone]'))
    assert against() == [("model", "site.toml:16 policy.models")]
    assert "not listed in policy.models" in prepared()
    site.write(('directory = "backbone"', 'directory = "nothing"'))
    assert against() == [("backbone", "site.toml:16 backbone.directory")]
    assert "do not fit the study" in prepared()
    site.write()
    assert against() == []
    assert prepared() == ""


def test_people_of_another_account_are_explained_as_the_node_refuses_them(site):
    desk = make_desk(site)
    message = Prepare(to="svi", study=desk.study.study_hash, run="run-1", lease=1, ledger_from=0)
    desk.ask("prepare", message)
    rules = {each.rule: each for each in explain(site.home, desk.study.study_hash, run="run-1").rules}
    assert rules["people"].verdict == "allows"
    site.write(('name = "patients"', 'name = "patients-2"'))
    found = explain(site.home, desk.study.study_hash, run="run-1")
    assert [(each.rule, each.where) for each in found.against] == [("people", "site.toml:4 data.name")]
    assert "are known under" in found.against[0].why
    assert "data.continues = 'patients'" in found.sentence
    desk.node.stop()
    again = desk.restarted()
    with pytest.raises(ChargeRefused, match="its log says why"):
        again.ask("prepare", message)
    site.write()
    assert explain(site.home, desk.study.study_hash, run="run-1").may_run
    again.ask("prepare", message)
    again.node.stop()


@pytest.mark.parametrize("epsilon", [0.2, 3.0, 5.0])
def test_the_first_round_over_the_cap_is_the_first_that_the_ledger_refuses(site, epsilon):
    study = site.keep(site.study())
    site.write(("epsilon = 10.0", f"epsilon = {epsilon}"))
    decisions.approve(site.home, study.study_hash)
    why = next(each.why for each in explain(site.home, study.study_hash).rules if each.rule == "budget")
    policy, refused = load_policy(site.home), 0
    with charges.open_ledger(site.home, site.identity, Enrolment.load(site.home)) as ledger:
        for number in range(1, 41):
            try:
                charges.reserve(ledger, study, policy, run="a run", round_number=number)
            except ChargeRefused:
                refused = number
                break
    assert refused
    assert f"round {refused} would be the first over the cap" in why


def test_a_run_under_way_is_explained_by_what_it_has_left(site):
    study = site.keep(site.study())
    decisions.approve(site.home, study.study_hash)
    decisions.count_run(site.home, study.study_hash, "begun", allowed=1)
    rule = {each.rule: each for each in explain(site.home, study.study_hash).rules}["runs"]
    assert (rule.verdict, "one more would be another" in rule.why) == ("forbids", True)
    RunReservations(site.home).note("begun", study.study_hash)
    found = explain(site.home, study.study_hash)
    assert found.run == "begun"
    assert {each.rule: each.verdict for each in found.rules}["runs"] == "allows"


def call(site, *words, code=0):
    result = CliRunner().invoke(app, [*words, "--home", str(site.home)], env={"COLUMNS": "400"})
    assert result.exit_code == code, result.output
    return result.stdout


def test_the_command_shows_the_default_deny_and_ends_with_3(site):
    site.keep(site.study())
    told = call(site, "policy", "explain", "thyroid", code=3)
    assert "may not run here, because of approval (default: nothing is approved)" in told
    assert "allows   unit (site.toml:5 data.unit)" in told


def test_the_command_names_who_decided_and_when(site):
    study = site.keep(site.study())
    decisions.approve(site.home, study.study_hash, by="Dr. Ada")
    decided = decisions.load_decisions(site.home).studies[study.study_hash].decided
    shown = json.loads(call(site, "policy", "explain", "thyroid", "--json", code=3))  # its backbone is not installed
    assert shown["may_run"] is False
    rules = {each["rule"]: each for each in shown["rules"]}
    assert rules["approval"]["where"] == f"decisions.json: approved by Dr. Ada on {decided}"
    assert [each["rule"] for each in shown["rules"] if each["verdict"] != "allows"] == ["backbone"]


def test_a_draft_is_explained_as_far_as_it_goes(site):
    site.study(('unit = "patient"', 'unit = "person"'))
    shown = json.loads(call(site, "policy", "explain", str(site.home.parent / "study.toml"), "--json", code=3))
    assert shown["hash"] is None
    assert {each["rule"] for each in shown["rules"] if each["verdict"] != "allows"} == {"approval", "unit"}


def test_a_policy_that_cannot_be_read_forbids_everything(site):
    site.keep(site.study())
    site.write(("threads = 1", "threads = 0"))
    assert "because of policy (site.toml)" in call(site, "policy", "explain", "thyroid", code=3)


def test_a_policy_that_is_not_text_forbids_everything(site):
    site.keep(site.study())
    (site.home / "site.toml").write_bytes(b"\xff")
    assert "because of policy (site.toml)" in call(site, "policy", "explain", "thyroid", code=3)


def test_the_policy_in_force_names_the_place_of_each_setting(site):
    study = site.keep(site.study())
    decisions.approve(site.home, study.study_hash, by="Dr. Ada")
    decisions.set_budget(site.home, decisions.BudgetPolicy(epsilon=2.0, delta=1e-6), by="Dr. Bob")
    rows = {row["setting"]: row for row in effective(site.home)}
    assert rows["data.unit"]["from"] == "site.toml:5 data.unit"
    assert rows["data.values.sex.male"]["from"] == "site.toml:11 data.values.sex.male"
    assert rows["limits.workers"] == {"setting": "limits.workers", "value": 0, "from": "default of limits.workers"}
    assert rows["budget.epsilon"]["value"] == 2.0
    assert "by Dr. Bob on 20" in rows["budget.epsilon"]["from"]
    assert "approved by Dr. Ada" in rows[f"study {study.study_hash}"]["from"]
    assert json.loads(call(site, "policy", "show", "--json"))
    assert "default of limits.workers" in call(site, "policy", "show")


def test_hours_wait_and_do_not_forbid(site):
    study = site.keep(site.study())
    later = in_hours(2)
    site.write(("[limits]", f'[schedule]\nhours = ["{later}-{in_hours(3)}"]\n[limits]'))
    rule = {each.rule: each for each in explain(site.home, study.study_hash).rules}["hours"]
    assert rule.verdict == "waits"
    assert f"T{later}" in rule.why
    assert SiteAway.public


@pytest.mark.parametrize("text", ["", "{", "[]"])
def test_a_damaged_enrolment_is_named(site, text):
    """It says whether site.toml must be that of a site."""
    (site.home / "enrolment.json").write_text(text)
    result = CliRunner().invoke(app, ["policy", "show", "--home", str(site.home)])
    assert result.exit_code == 1
    assert "enrolment.json" in result.output


def test_before_its_enrolment_a_node_s_policy_can_be_shown(site):
    (site.home / "enrolment.json").unlink()
    assert "default of limits.workers" in call(site, "policy", "show")
