"""Decisions that take two people: what the first one's word is worth, and who counts as a second."""

import json
import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from confide.client_node import login
from confide.client_node.approval import site_budget, study_decisions
from confide.client_node.cli.main import app
from confide.client_node.errors import FileDamaged, SecondPersonMissing
from confide.client_node.explanation import explain
from confide.client_node.policy import decision_log, decisions, load_policy, pending

FOUR_EYES = ("[limits]", "[policy]\nfour_eyes = true\n[limits]")


@pytest.fixture
def as_account(monkeypatch):
    """Has the process run under another account; a real one is in `test_two_accounts_of_the_system...`."""

    def switch(name: str) -> None:
        monkeypatch.setattr(pending, "login_name", lambda: name)
        monkeypatch.setattr(decision_log, "login_name", lambda: name)

    return switch


def approve(site, study, **terms):
    by = terms.pop("by", None)
    study_decisions.approve_study(site.home, study_decisions.propose(site.home, study.study_hash, **terms), by=by)


def test_the_first_person_alone_changes_nothing(site, as_account):
    site.write(FOUR_EYES)
    study = site.keep(site.study())
    as_account("ada")
    for name in ("Dr. Ada", "Dr. Bob"):  # two names of one account
        with pytest.raises(SecondPersonMissing, match="for a second person under another account than ada"):
            approve(site, study, by=name)
    assert not load_policy(site.home).permits(study)
    assert not (site.home / decisions.FILE).exists()
    assert not (site.home / "ledger.db").exists()
    assert not (site.home / "peers.json").exists()


def test_a_second_account_decides_and_the_log_shows_both(site, as_account):
    site.write(FOUR_EYES)
    study = site.keep(site.study())
    as_account("ada")
    with pytest.raises(SecondPersonMissing):
        approve(site, study, by="Dr. Ada")
    rule = explain(site.home, study.study_hash).rules[0]
    assert (rule.rule, rule.verdict, rule.where) == ("approval", "waits", "pending.json")
    assert "waits for a second person; Dr. Ada (login ada) said: runs 1, until revoked" in rule.why
    as_account("bob")
    approve(site, study)
    assert load_policy(site.home).permits(study)
    told = [(each.by, each.login, each.decision, each.detail) for each in decision_log.read(site.home)[0]]
    assert told == [
        ("Dr. Ada", "ada", "propose", "runs 1, until revoked"),
        ("bob", "bob", "approve", "runs 1, until revoked; Dr. Ada (login ada) said: runs 1, until revoked"),
    ]
    assert pending.waiting(site.home, "approve", study.study_hash) is None


def test_a_second_person_says_the_same_or_begins_anew(site, as_account):
    site.write(("epsilon = 10.0", "epsilon = 30.0"), FOUR_EYES)
    study = site.keep(site.study())
    as_account("ada")
    with pytest.raises(SecondPersonMissing):
        approve(site, study)
    as_account("bob")
    with pytest.raises(SecondPersonMissing, match="In place of what waited: ada said: runs 1, until revoked"):
        approve(site, study, runs=2)
    as_account("ada")
    with pytest.raises(SecondPersonMissing):
        approve(site, study)
    as_account("bob")
    approve(site, study)
    assert load_policy(site.home).studies.runs_of(study.study_hash) == 1


def test_a_word_lapses_after_a_day_and_with_a_clock_set_back(site, as_account):
    as_account("ada")
    with pytest.raises(SecondPersonMissing):
        pending.seconded(site.home, "cap", "budget", "epsilon 5", clock=lambda: 1e6)
    for now in (1e6 - 1, 1e6 + pending.LAPSE_S):
        assert pending.waiting(site.home, "cap", "budget", clock=lambda now=now: now) is None
    as_account("bob")
    with pytest.raises(SecondPersonMissing):
        pending.seconded(site.home, "cap", "budget", "epsilon 5", clock=lambda: 1e6 + pending.LAPSE_S)


def test_a_word_about_one_study_seconds_no_other(site, as_account):
    site.write(FOUR_EYES)
    first, other = site.keep(site.study()), site.keep(site.study(("rank = 4", "rank = 5")))
    as_account("ada")
    with pytest.raises(SecondPersonMissing):
        approve(site, first)
    as_account("bob")
    with pytest.raises(SecondPersonMissing):
        approve(site, other)
    assert not load_policy(site.home).permits(first)


def test_a_revocation_takes_one_person_and_takes_the_first_word_back(site, as_account):
    site.write(FOUR_EYES)
    study = site.keep(site.study())
    as_account("ada")
    with pytest.raises(SecondPersonMissing):
        approve(site, study)
    study_decisions.revoke_study(site.home, study.study_hash)
    as_account("bob")
    with pytest.raises(SecondPersonMissing):
        approve(site, study)


def test_a_cap_that_allows_more_takes_two_people_and_a_lower_one_takes_one(site, as_account):
    site.write(FOUR_EYES)
    as_account("ada")
    lower = site_budget.cap_change(site.home, epsilon=5.0, delta=1e-5, collusion=1)
    site_budget.set_budget(site.home, lower)
    assert load_policy(site.home).budget.epsilon == 5.0
    for weaker in ({"epsilon": 6.0}, {"delta": 2e-5}, {"collusion": 0}):
        terms = {"epsilon": 5.0, "delta": 1e-5, "collusion": 1} | weaker
        with pytest.raises(SecondPersonMissing):
            site_budget.set_budget(site.home, site_budget.cap_change(site.home, **terms))
        assert load_policy(site.home).budget.epsilon == 5.0
    as_account("bob")
    raised = site_budget.cap_change(site.home, epsilon=6.0, delta=1e-5, collusion=1)
    with pytest.raises(SecondPersonMissing):  # the newest word was about another cap
        site_budget.set_budget(site.home, raised)
    as_account("ada")
    site_budget.set_budget(site.home, raised)
    assert load_policy(site.home).budget.epsilon == 6.0
    assert "bob said: epsilon 6.0" in decision_log.read(site.home)[0][-1].detail


@pytest.mark.parametrize("text", ["", "{}", '[{"kind":"approve"}]', '[{"kind":"other"}]'])
def test_a_damaged_file_seconds_nothing(site, text):
    (site.home / pending.FILE).write_text(text)
    with pytest.raises(FileDamaged, match=r"pending\.json"):
        pending.seconded(site.home, "cap", "budget", "epsilon 5")


def test_the_command_ends_with_1_until_a_second_person_agrees(site, monkeypatch, as_account):
    monkeypatch.setattr("confide.client_node.approval.catalogue.fetch_studies", lambda home: [])
    site.write(FOUR_EYES)
    study = site.keep(site.study())
    words = ["study", "approve", study.study_hash, "--yes", "--home", str(site.home)]
    as_account("ada")
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 1
    assert "nothing is decided yet" in " ".join(result.stderr.split())
    as_account("bob")
    assert CliRunner().invoke(app, words).exit_code == 0


@pytest.mark.process
@pytest.mark.skipif(os.getuid() != 0, reason="only root can begin a process under another account")
def test_two_accounts_of_the_system_are_two_people_and_two_names_are_not(site):
    """Processes whose real user ids differ, as the kernel says; what they may write is root's in both."""
    site.write(FOUR_EYES)
    script = (
        "import os, sys; os.setresuid(int(sys.argv[1]), 0, 0)\n"
        "from pathlib import Path; from confide.client_node.policy import pending\n"
        "from confide.client_node.errors import SecondPersonMissing\n"
        "try:\n    print(pending.seconded(Path(sys.argv[2]), 'cap', 'budget', 'epsilon 5', by=sys.argv[3]).login)\n"
        "except SecondPersonMissing:\n    print('waits')\n"
    )

    def decide(number: int, name: str) -> str:
        words = [sys.executable, "-c", script, str(number), str(site.home), name]
        return subprocess.run(words, capture_output=True, text=True, check=True, timeout=120).stdout.strip()

    assert decide(54321, "Ada") == "waits"
    assert decide(54321, "Bob") == "waits"
    assert decide(54322, "Bob") == "54321"


def test_the_login_is_the_kernel_s_audit_id_whatever_sudo_made_of_the_user(tmp_path, monkeypatch):
    monkeypatch.setattr(login, "_AUDITED", tmp_path / "loginuid")
    mine = login.login_name()  # none: the real user id
    (tmp_path / "loginuid").write_text("54321")
    monkeypatch.setenv("SUDO_USER", "mallory")
    assert login.login_name() == "54321"
    for unset in ("4294967295", "", "nobody"):
        (tmp_path / "loginuid").write_text(unset)
        assert login.login_name() == mine


def test_what_waits_is_for_its_owner_alone(site, as_account):
    as_account("ada")
    with pytest.raises(SecondPersonMissing):
        pending.seconded(site.home, "cap", "budget", "epsilon 5")
    assert (site.home / pending.FILE).stat().st_mode & 0o077 == 0
    assert json.loads((site.home / pending.FILE).read_text())[0]["login"] == "ada"
