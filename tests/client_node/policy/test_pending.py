"""Decisions that take two people: what the first one's word is worth, and who counts as a second."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

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
    """Has the process run after another login; real ones are in `test_two_logins_of_the_system...`."""

    def switch(name: str) -> None:
        monkeypatch.setattr(pending, "login_name", lambda: name)
        monkeypatch.setattr(pending, "vouched_login", lambda: 1000 + ["ada", "bob"].index(name))
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
        with pytest.raises(SecondPersonMissing, match="for a second person who logs in under another account than ada"):
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
def test_a_damaged_file_seconds_nothing(site, text, as_account):
    as_account("ada")
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


DECIDE = """
import ctypes, os, sys
from pathlib import Path
from confide.client_node.enrolment import NodeIdentity
from confide.client_node.login import login_name
from confide.client_node.policy import pending
from confide.client_node.errors import SecondPersonMissing
home, audited, groups, by = Path(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4]
login_name()  # what is imported late, while this process may still read it
for folder in filter(None, groups.split(",")):  # as a login does, which is root's
    Path(folder, "cgroup.procs").write_text(str(os.getpid()))
os.setgroups([])
os.setresgid(54320, 54320, 54320)
os.setresuid(54320, 54320, 54320)
ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # dumpable, as is each process that this account begins
if audited:
    Path("/proc/self/loginuid").write_text(audited)  # without any capability
try:
    print(pending.seconded(home, "cap", "budget", "epsilon 5", by=by).loginuid)
except SecondPersonMissing as err:
    print(err)
"""


@pytest.fixture
def shared_home():
    """A home that the account 54320 may write, as one of `sudo -u`."""
    with TemporaryDirectory(dir="/tmp") as folder:
        os.chown(folder, 54320, 54320)
        yield Path(folder)


def decide(home: Path, audited: str, name: str, groups: Sequence[Path] = ()) -> str:
    """Gives a word in a process that writes its own audit id, in control groups; returns what it is told."""
    words = [sys.executable, "-c", DECIDE, str(home), audited, ",".join(map(str, groups)), name]
    return subprocess.run(words, capture_output=True, text=True, check=True, timeout=120).stdout.strip()


def is_audited() -> bool:
    """True if the processes of this test begin with an audit id, so that they cannot write another one."""
    audited = Path("/proc/self/loginuid")
    return audited.exists() and audited.read_text() != "4294967295"


AS_ROOT = pytest.mark.skipif(
    os.getuid() != 0 or not Path("/proc/self/loginuid").exists() or is_audited(),
    reason="only root, without a login, can begin processes as other logins",
)


@pytest.mark.process
@AS_ROOT
def test_an_audit_id_that_a_process_wrote_itself_is_no_person(shared_home):
    assert "its audit id is not set" in decide(shared_home, "", "Ada")
    for number in ("54321", "54322"):
        assert f"no session of the system vouches for the audit id {number}" in decide(shared_home, number, "Ada")
    assert not list(shared_home.iterdir())  # no word waits, and no line was written


@contextmanager
def session_of(number: int, *, below: str = "") -> Iterator[list[Path]]:
    """Real control groups of a login of the user `number`, as systemd makes them; skips where there are none."""
    roots = [Path("/sys/fs/cgroup/systemd"), Path("/sys/fs/cgroup/unified"), Path("/sys/fs/cgroup")]
    roots = [each for each in roots if (each / "cgroup.procs").exists()]
    wanted = [root / below.strip("/") / f"user.slice/user-{number}.slice/session-9.scope" for root in roots]
    made: list[Path] = []
    try:
        try:
            for path in wanted:
                for folder in [*reversed(path.parents), path]:
                    if not folder.exists():
                        folder.mkdir()
                        made.append(folder)
        except OSError as err:
            pytest.skip(f"no control group can be made here: {err}")
        if not wanted:
            pytest.skip("no control groups are mounted here")
        yield wanted
    finally:
        for folder in reversed(made):
            folder.rmdir()


@pytest.mark.process
@AS_ROOT
def test_two_logins_of_the_system_are_two_people_and_two_names_are_not(shared_home):
    """Processes of one real user id, as under `sudo -u`, with the kernel's own audit ids and control groups."""
    with session_of(54321) as ada, session_of(54322) as bob:
        assert "another account than 54321" in decide(shared_home, "54321", "Ada", ada)
        assert "another account than 54321" in decide(shared_home, "54321", "Bob", ada)
        assert "no session of the system vouches" in decide(shared_home, "54322", "Bob", ada)  # Ada's, under his number
        assert decide(shared_home, "54322", "Bob", bob) == "54321"


@pytest.mark.process
@AS_ROOT
def test_a_slice_inside_one_s_own_vouches_for_nobody(shared_home):
    """A user may make control groups below the own session, with any name."""
    with session_of(54322, below="/user.slice/user-54321.slice/user@54321.service") as made:
        assert "no session of the system vouches" in decide(shared_home, "54322", "Bob", made)


@pytest.mark.parametrize(
    ("groups", "is_vouched"),
    [
        ("0::/user.slice/user-1000.slice/session-3.scope\n", True),
        ("0::/user.slice/user-1000.slice/user@1000.service/app.slice/x\n", True),
        ("9:name=systemd:/user.slice/user-1000.slice/session-3.scope\n0::/\n", True),
        ("0::/user.slice/user-1001.slice/session-3.scope\n", False),
        ("9:name=systemd:/user.slice/user-1000.slice/a\n0::/user.slice/user-1001.slice/a\n", False),
        ("4:memory:/user.slice/user-1000.slice/session-3.scope\n0::/\n", False),
        ("0::/system.slice/a.service/user.slice/user-1000.slice/session-3.scope\n", False),
        ("0::/../user.slice/user-1000.slice/session-3.scope\n", False),
        ("0::/system.slice/ssh.service\n", False),
        ("0::/user.slice/user-1000.slice\n", False),
        ("0::/\n", False),
        ("", False),
        ("odd", False),
    ],
)
def test_only_a_session_of_the_same_user_vouches_for_an_audit_id(tmp_path, monkeypatch, groups, is_vouched):
    monkeypatch.setattr(login, "_AUDITED", tmp_path / "loginuid")
    monkeypatch.setattr(login, "_GROUPS", tmp_path / "cgroup")
    (tmp_path / "cgroup").write_text(groups)
    (tmp_path / "loginuid").write_text("1000")
    if is_vouched:
        assert login.vouched_login() == 1000
    else:
        with pytest.raises(SecondPersonMissing, match="no session of the system vouches for the audit id 1000"):
            login.vouched_login()
    for unset in ("4294967295", "", "nobody"):
        (tmp_path / "loginuid").write_text(unset)
        with pytest.raises(SecondPersonMissing, match="no login began this process"):
            login.vouched_login()


def test_a_word_of_an_earlier_version_is_dropped(site, as_account):
    entry = {"kind": "cap", "about": "budget", "terms": "epsilon 5", "by": "ada", "login": "ada", "at": time.time()}
    (site.home / pending.FILE).write_text(json.dumps([entry]))
    assert pending.waiting(site.home, "cap", "budget") is None
    as_account("bob")
    with pytest.raises(SecondPersonMissing, match="another account than bob"):
        pending.seconded(site.home, "cap", "budget", "epsilon 5")
    assert [each["login"] for each in json.loads((site.home / pending.FILE).read_text())] == ["bob"]


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
    kept = json.loads((site.home / pending.FILE).read_text())[0]
    assert (kept["login"], kept["loginuid"]) == ("ada", 1000)
