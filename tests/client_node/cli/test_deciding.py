"""Decisions at a terminal and in scripts: what is asked, what is refused, what is written down."""

import json
import os
import pty
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from confide.client_node.approval.charges import open_ledger, reserve
from confide.client_node.approval.confirmed_sites import fingerprint
from confide.client_node.approval.run_reservations import RunReservations
from confide.client_node.cli.main import app
from confide.client_node.enrolment import Enrolment
from confide.client_node.policy import decisions
from confide.client_node.policy.site_policy import load_policy
from confide.client_node.spoken_hash import words

FAILED, USAGE = 1, 2


@pytest.fixture(autouse=True)
def no_coordinator(monkeypatch):
    monkeypatch.setattr("confide.client_node.approval.catalogue.fetch_studies", lambda home: [])


@pytest.fixture
def call(site):
    """Runs one command of a script on the site's home, in columns as narrow as a terminal's."""

    def run(*words, code=0):
        result = CliRunner().invoke(app, [*words, "--home", str(site.home)], env={"COLUMNS": "80"})
        assert result.exit_code == code, result.output
        return result

    return run


@pytest.fixture
def at_terminal(site, monkeypatch, capsys) -> Iterator[Callable[..., tuple[int, str]]]:
    """Runs one command whose input is a terminal at which somebody types; returns its exit code and all it shows."""
    ours, theirs = pty.openpty()

    def run(*words: str, typed: str) -> tuple[int, str]:
        os.write(ours, typed.encode())
        code = app([*words, "--home", str(site.home)], standalone_mode=False) or 0
        shown = capsys.readouterr()
        return code, " ".join((shown.err + shown.out).split())

    with os.fdopen(theirs) as keyboard:
        monkeypatch.setattr("sys.stdin", keyboard)
        yield run
    os.close(ours)


def approved(site, study) -> bool:
    return load_policy(site.home).permits(study)


def begin(site, study, run, rounds):
    """What a daemon does in a run of that many rounds so far."""
    decisions.count_run(site.home, study.study_hash, run, allowed=9)
    RunReservations(site.home).note(run, study.study_hash)
    with open_ledger(site.home, site.identity, Enrolment.load(site.home)) as ledger:
        for number in range(1, rounds + 1):
            reserve(ledger, study, load_policy(site.home), run=run, round_number=number)


def test_a_name_or_a_prefix_approves_nothing_and_shows_the_ritual(site, call):
    study = site.keep(site.study())
    for text in ("thyroid", study.study_hash[:8], study.study_hash[:63]):
        told = " ".join(call("study", "approve", text, "--yes", code=FAILED).stderr.split())
        assert "Ask the operator, by telephone" in told
        assert "client-node study approve HASH" in told
        assert not approved(site, study)


def test_words_approve_in_one_text_or_many(site, call):
    study = site.keep(site.study())
    call("study", "approve", *words(study.study_hash), "--yes")
    assert approved(site, study)
    call("study", "revoke", "thyroid")
    call("study", "approve", " ".join(words(study.study_hash)), "--yes")
    assert approved(site, study)


def test_a_wrong_word_approves_nothing(site, call):
    study = site.keep(site.study())
    spoken = list(words(study.study_hash))
    spoken[3] = "zoo" if spoken[3] != "zoo" else "zone"
    spoken[4] = "aplle"
    assert "word 5, 'aplle'" in call("study", "approve", *spoken, "--yes", code=FAILED).stderr
    assert not approved(site, study)


@pytest.mark.parametrize("command", ["list", "show"])
def test_hash_and_words_can_be_copied_and_read_out_of_what_is_shown(command, site, call):
    """Also in a narrow terminal and in a pipe: no line is broken, no frame is around them."""
    study = site.keep(site.study())
    lines = call("study", command, *(["thyroid"] if command == "show" else [])).stdout.splitlines()
    assert study.study_hash in lines
    spoken = [line for line in lines if re.fullmatch(r"([a-z]{3,8} ){5}[a-z]{3,8}", line)]
    assert " ".join(spoken) == " ".join(words(study.study_hash))
    shown = json.loads(call("study", "list", "--json").stdout)[0]
    assert (shown["hash"], shown["words"]) == (study.study_hash, " ".join(words(study.study_hash)))


def test_keys_are_whole_on_their_lines(site, call):
    study = site.keep(site.study())
    shown = call("study", "show", "thyroid").stdout
    for party in (*study.sites, *study.aggregators):
        assert re.search(rf"^{party.name}: {party.identity}", shown, re.MULTILINE)
    assert f"identity: {site.identity.identity_hex}" in call("status").stdout.splitlines()


def test_a_terminal_shows_what_an_approval_means_and_asks(site, at_terminal):
    study = site.keep(site.study())
    code, shown = at_terminal("study", "approve", study.study_hash, "--runs", "1", "--by", "Dr. Ada", typed="n\n")
    assert code == FAILED
    assert not approved(site, study)
    for said in (
        "Coordinator, aggregators and other sites read sums over 4 sites or more, with noise",
        "only agg-a, agg-b, agg-c together could open what this site sends",
        "epsilon 0.00 is guaranteed so far; with this and all runs under way 7.73",
        "the cap is 10. Planned alone: 6.78.",
        "It covers 1 run, without an end",
        "Approved by Dr. Ada",
        "Approve it? [y/N]",
    ):
        assert said in shown, shown
    code, shown = at_terminal("study", "approve", study.study_hash, "--until", "2999-12-31", typed="y\n")
    assert (code, approved(site, study)) == (0, True)
    assert "until 2999-12-31 (UTC)" in shown
    assert "the login name; --by says another" in shown


def test_a_script_that_says_no_yes_approves_nothing(site, call):
    study = site.keep(site.study())
    told = " ".join(call("study", "approve", study.study_hash, code=USAGE).stderr.split())
    assert "There is no terminal to ask at, so nothing was changed; a script says --yes" in told
    assert not approved(site, study)


@pytest.mark.parametrize("until", ["tomorrow", "2026-13-01", "31.12.2026"])
def test_an_end_that_is_no_date_is_wrong_usage(until, site, call):
    study = site.keep(site.study())
    call("study", "approve", study.study_hash, "--yes", "--until", until, code=USAGE)
    assert not approved(site, study)


def test_approving_twice_says_approved_already_and_what_is_left(site, call):
    study = site.keep(site.study())
    call("study", "approve", study.study_hash, "--yes", "--until", "2999-12-31")
    begin(site, study, "thyroid-1", rounds=3)
    shown = call("study", "approve", study.study_hash).stdout  # nothing is decided, so nothing is asked
    assert "Study thyroid is approved already: thyroid-1 used it; 0 of 1 run may still begin, until 2999-12-31" in shown
    facts = json.loads(call("study", "approve", study.study_hash, "--json").stdout)
    assert (facts["approved_already"], facts["runs_left"], facts["used_by"]) == (True, 0, ["thyroid-1"])


@pytest.mark.parametrize(("typed", "is_revoked"), [("n\n", False), ("y\n", True)])
def test_to_revoke_asks_while_a_run_is_under_way(site, call, at_terminal, typed, is_revoked):
    study = site.keep(site.study())
    call("study", "approve", study.study_hash, "--yes")
    begin(site, study, "thyroid-1", rounds=3)
    code, shown = at_terminal("study", "revoke", "thyroid", typed=typed)
    assert "thyroid-1 is under way and fails without this node. Revoke the study?" in shown
    assert (code, approved(site, study)) == ((0, False) if is_revoked else (FAILED, True))


def test_a_script_ends_no_run_unless_it_says_yes(site, call):
    study = site.keep(site.study())
    call("study", "approve", study.study_hash, "--yes")
    begin(site, study, "thyroid-1", rounds=3)
    told = call("study", "revoke", study.study_hash, code=USAGE).stderr
    assert "thyroid-1 is under way and fails without this node" in told
    assert "There is no terminal to ask at, so nothing was changed; a script says --yes" in told
    assert approved(site, study)
    facts = json.loads(call("study", "revoke", study.study_hash, "--yes", "--json").stdout)
    assert facts == {"hash": study.study_hash, "decision": "revoked", "runs_under_way": ["thyroid-1"]}
    assert not approved(site, study)


def test_a_script_revokes_at_once_what_does_not_run(site, call):
    study = site.keep(site.study())
    call("study", "approve", study.study_hash, "--yes")
    assert f"Study {study.study_hash} may not run here" in call("study", "revoke", study.study_hash).stdout
    assert not approved(site, study)


def test_a_revoked_run_is_approved_again_at_the_price_of_what_is_left(site, call):
    study = site.keep(site.study())  # a run takes 7.73 of 10
    call("study", "approve", study.study_hash, "--yes")
    begin(site, study, "thyroid-1", rounds=36)
    call("study", "revoke", "thyroid", "--yes")
    facts = json.loads(call("study", "approve", study.study_hash, "--yes", "--json").stdout)
    whole = facts["epsilon_guaranteed_after_all_rounds"]
    assert facts["epsilon_spent_before"] < whole == pytest.approx(7.73, abs=0.02)
    assert approved(site, study)


@pytest.mark.parametrize(("typed", "cap"), [("n\n", 10.0), ("y\n", 20.0)])
def test_a_higher_cap_is_shown_beside_the_old_one_and_asked_for(site, at_terminal, typed, cap):
    _, shown = at_terminal("budget", "set", "--epsilon", "20", "--delta", "1e-5", typed=typed)
    assert "Cap: epsilon 10 -> 20, delta 1e-05 -> 1e-05, colluding 1 -> 1; guaranteed so far 0.00" in shown
    assert "Raised from 10 to 20. What is spent under the new cap cannot be taken back. Set it?" in shown
    assert load_policy(site.home).budget.epsilon == cap


def test_a_script_raises_no_cap_unless_it_says_yes(site, call):
    raised = ("budget", "set", "--epsilon", "20", "--delta", "1e-5")
    assert "a script says --yes" in call(*raised, code=USAGE).stderr
    assert load_policy(site.home).budget.epsilon == 10.0
    call(*raised, "--yes")
    assert load_policy(site.home).budget.epsilon == 20.0


def test_a_lower_cap_is_not_asked_for_but_one_below_what_is_spent_is(site, call):
    study = site.keep(site.study())
    call("study", "approve", study.study_hash, "--yes")
    begin(site, study, "thyroid-1", rounds=3)
    assert "over the new cap already" not in call("budget", "set", "--epsilon", "7", "--delta", "1e-5").stderr
    refused = call("budget", "set", "--epsilon", "0.1", "--delta", "1e-5", code=USAGE).stderr
    assert "Runs under way here would fail. Set it? There is no terminal to ask at" in " ".join(refused.split())
    assert load_policy(site.home).budget.epsilon == 7
    told = call("budget", "set", "--epsilon", "0.1", "--delta", "1e-5", "--yes").stderr
    assert re.search(r"Below what is spent, 5\.\d\d\. What is charged is over the new cap already", told)
    assert load_policy(site.home).budget.epsilon == 0.1


def test_the_decision_log_names_who_decided_what_and_when(site, call):
    study = site.keep(site.study())
    assert call("decisions").stdout == ""
    assert call("decisions").stderr == "Decisions: none yet\n"
    call("study", "approve", study.study_hash, "--yes", "--by", "Dr. Ada", "--until", "2999-12-31")
    call("budget", "set", "--epsilon", "20", "--delta", "1e-5", "--yes", "--by", "Dr. Bo")
    call("site", "confirm", f"east={fingerprint('00' * 32)}", "--by", "Cy")
    call("site", "remove", "east")
    call("study", "revoke", "thyroid")
    rows = json.loads(call("decisions", "--json").stdout)
    assert [(row["by"], row["decision"]) for row in rows[:3]] == [
        ("Dr. Ada", "approve"),
        ("Dr. Bo", "cap"),
        ("Cy", "confirm"),
    ]
    assert [(row["by"] == row["login"], row["decision"]) for row in rows[3:]] == [(True, "remove"), (True, "revoke")]
    assert rows[0]["detail"] == "runs 1, until 2999-12-31"
    line = call("decisions").stdout.splitlines()[0]
    assert f"Dr. Ada (login {rows[0]['login']})  approve {study.study_hash} runs 1, until 2999-12-31" in line


def test_a_name_that_would_forge_a_line_is_refused(site, call):
    study = site.keep(site.study())
    for name in ("Ada\nBo", "", "x" * 201):
        assert "--by" in call("study", "approve", study.study_hash, "--yes", "--by", name, code=FAILED).stderr
    assert not approved(site, study)
    assert not Path(site.home / "decisions.jsonl").exists()


def test_a_study_is_shown_with_what_matters_here_first(site, call):
    study = site.keep(site.study())
    first, second = call("study", "show", "thyroid").stdout.splitlines()[:2]
    assert first == (
        "Coordinator, aggregators and other sites read sums over 4 sites or more, with noise, and only agg-a, agg-b, "
        "agg-c together could open what this site sends; a run costs each patient here epsilon 6.78 by itself, and "
        "brings what is guaranteed from 0.00 to 7.73 under a cap of 10; it takes 40 rounds, each as long as its "
        "slowest site and at most 60 s."
    )
    assert second == (
        "The study assumes 6,870 patient units at all 4 sites, 1,718 at an average one; this table has 3, far fewer: "
        "ask the operator whether batch_units is right."
    )
    assert call("study", "show", "thyroid", "--json").stdout.strip().encode() == study.canonical()


def test_a_study_is_shown_also_where_its_cost_cannot_be_known(site, call):
    site.keep(site.study())
    (site.home / "site.toml").unlink()
    shown = " ".join(call("study", "show", "thyroid").stdout.split())
    assert "what it costs here is not known (" in shown
    assert "site.toml" in shown
    assert "the file is missing" in shown


def test_a_study_for_fewer_units_than_are_here_is_surely_wrong(site, call):
    site.keep(site.study(("batch_units = 1374", "batch_units = 0.4")))
    assert "batch_units is surely wrong, ask the operator" in call("study", "show", "thyroid").stdout
