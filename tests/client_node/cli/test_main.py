import json
import re
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from confide.client_node.approval import charges
from confide.client_node.approval.run_reservations import RunReservations
from confide.client_node.cli.main import app
from confide.client_node.enrolment import Enrolment
from confide.client_node.errors import CoordinatorUnreachable
from confide.client_node.policy.site_policy import load_policy

FAILED, USAGE, PROBLEMS = 1, 2, 3


@pytest.fixture
def call(site):
    """Runs one command on the site's home, in wide columns."""

    def run(*words, code=0):
        result = CliRunner().invoke(app, [*words, "--home", str(site.home)], env={"COLUMNS": "400"})
        assert result.exit_code == code, result.output
        return result

    return run


@pytest.mark.process
def test_every_command_explains_itself_without_loading_torch():
    words = (
        "init health doctor enroll proxy run page status traffic decisions witness study+list study+show study+approve "
        "study+revoke "
    )
    words += (
        "data+check budget+show budget+set site+confirm site+remove site+list budget+report budget+verify budget+plan "
    )
    words += "budget+export budget+import budget+recover chart+read chart+build search "
    words += "policy+show policy+explain keys+rotate keys+show keys+seal keys+unseal keys+token "
    words += "ca+show ca+fetch ca+accept backup restore"
    script = (
        "import sys; from typer.testing import CliRunner; from confide.client_node.cli.main import app\n"
        f"for words in {words.split()!r}:\n"
        "    result = CliRunner().invoke(app, [*words.split('+'), '--help'])\n"
        "    assert result.exit_code == 0 and 'Usage' in result.output, words\n"
        "slow = {'torch', 'flwr', 'dp_accounting', 'transformers', 'sklearn', 'scipy', 'pandas'} & set(sys.modules)\n"
        "assert not slow, slow"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=300)


def test_a_study_is_fetched_shown_approved_and_revoked(site, call, monkeypatch):
    study = site.study()
    monkeypatch.setattr("confide.client_node.approval.catalogue.fetch_studies", lambda home: [site.offer(study)])
    listed = json.loads(call("study", "list", "--json").stdout)
    assert [(row["hash"], row["decision"], row["this_node"]) for row in listed] == [
        (study.study_hash, "none", ["train"])
    ]

    shown = call("study", "show", "thyroid").stdout
    assert study.study_hash in shown
    assert site.identity.identity_hex in shown
    assert call("study", "show", "thyroid", "--json").stdout.strip().encode() == study.canonical()

    approved = json.loads(call("study", "approve", study.study_hash, "--yes", "--json").stdout)
    assert approved["hash"] == study.study_hash
    assert approved["units_here"] == 3
    assert 0 == approved["epsilon_spent_before"] < approved["epsilon_planned"]
    assert (
        approved["epsilon_planned"] < approved["epsilon_guaranteed_after_all_rounds"] <= approved["epsilon_cap"] == 10.0
    )
    assert load_policy(site.home).permits(study)
    assert "approved" in call("study", "list").stdout

    call("study", "revoke", study.study_hash[:12])
    assert not load_policy(site.home).permits(study)


def test_a_study_signed_by_somebody_else_is_turned_away(site, call, monkeypatch):
    offered = site.offer(site.study()) | {"signature": "00" * 64}
    monkeypatch.setattr("confide.client_node.approval.catalogue.fetch_studies", lambda home: [offered])
    result = call("study", "list")
    assert "turned away" in result.stderr
    assert "signature does not hold" in result.stderr
    assert "none yet" in result.stdout


def test_a_coordinator_that_is_away_leaves_the_studies_known_before(site, call, monkeypatch):
    site.keep(site.study())

    def away(home):
        raise CoordinatorUnreachable("nobody answers at 127.0.0.1:1")

    monkeypatch.setattr("confide.client_node.approval.catalogue.fetch_studies", away)
    result = call("study", "list")
    assert "nobody answers" in result.stderr
    assert "thyroid" in result.stdout


REFUSED = {
    "budget too small": ([], [("epsilon = 10.0", "epsilon = 0.5")], "the cap is 0.5"),
    "delta above one in the units": (
        [("delta = 1e-5", "delta = 1e-3")],
        [],
        "the study's delta is 0.001; with 2000 units here it must be at most 0.0005",
    ),
    "budget's delta above one in the units": (
        [],
        [("delta = 1e-5", "delta = 1e-3")],
        "the budget's delta is 0.001; with 2000 units",
    ),
    "table that does not fit": ([], [('male = "M"', 'mann = "M"')], "patients.csv has 1000 problems"),
    "no privacy": (
        [('mode = "distributed"\nnoise_multiplier = 1.19', 'mode = "none"'), ("delta = 1e-5\n", "")],
        [],
        "add --unprotected",
    ),
    "another unit": ([('unit = "patient"', 'unit = "person"')], [], "this site's budget is per 'patient'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_approval_is_refused_with_its_reason(case, site, call):
    study_changes, policy_changes, expected = REFUSED[case]
    rows = "".join(f"p{i},{i % 90},1.5,{('F', 'male')[i % 2]},t,{i % 2}\n" for i in range(2000))
    (site.home / "patients.csv").write_text("patient_id,age,tsh_miu_l,sex,sick,diagnosis\n" + rows)
    site.write(*policy_changes)
    study = site.keep(site.study(*study_changes))
    result = call("study", "approve", study.study_hash, code=FAILED)
    assert expected in result.stderr
    assert "not approved; nothing left this site" in result.stderr
    assert not load_policy(site.home).permits(study)


def test_a_study_that_promises_less_than_it_costs_is_refused(site, call):
    draft = site.study().draft
    promised = draft.privacy.model_copy(update={"target_epsilon": 1.0})
    study = site.keep(site.study().model_copy(update={"draft": draft.model_copy(update={"privacy": promised})}))
    refused = call("study", "approve", study.study_hash, code=FAILED).stderr
    assert "promises epsilon 1 (privacy.target_epsilon), but its rounds cost 6.7" in refused


def test_a_study_that_gives_this_sites_name_to_another_key_is_refused(site, call):
    study = site.keep(site.study(named="nobody"))
    assert "another key" in call("study", "approve", study.study_hash, code=FAILED).stderr


def test_a_study_without_this_node_is_refused(site, call):
    study = site.keep(site.study(('"svi"', '"third"'), named="nobody"))
    assert "no part for this node" in call("study", "approve", study.study_hash, code=FAILED).stderr


def test_a_study_without_privacy_can_be_approved_knowingly(site, call):
    study = site.keep(
        site.study(('mode = "distributed"\nnoise_multiplier = 1.19', 'mode = "none"'), ("delta = 1e-5\n", ""))
    )
    call("study", "approve", study.study_hash, "--unprotected", "--yes")
    assert load_policy(site.home).permits(study)


def test_a_table_is_checked(site, call):
    study = site.keep(site.study())
    table = str(site.home / "patients.csv")
    report = json.loads(call("data", "check", table, "--study", "thyroid", "--json").stdout)
    assert (report["rows"], report["units"], report["problem_count"]) == (4, 3, 0)
    assert "tsh_miu_l" in call("data", "check", table, "--study", str(site.home.parent / "study.toml")).stdout
    with (site.home / "patients.csv").open("a") as out:
        out.write("p9,secret,1,F,f,0\n")
    result = call("data", "check", table, "--study", study.study_hash[:10], code=PROBLEMS)
    assert "line 6, column age: expected a number, found text" in result.stderr
    assert "1 problem; a study cannot use this table until it is mended" in result.stderr
    assert "secret" not in result.output


def test_the_budget_is_set_shown_reported_and_verified(site, call, tmp_path):
    assert "none yet" in call("budget", "show").stdout
    call("budget", "set", "--epsilon", "2.5", "--delta", "1e-6", "--collusion", "2")
    row = json.loads(call("budget", "show", "--json").stdout)[0]
    assert (row["data_set"], row["unit"], row["cap"], row["left"]) == ("patients", "patient", 2.5, 2.5)
    assert row["guaranteed"] == row["spent_by_PLD"] == row["spent_by_RDP"] == 0
    assert row["runs"] == []
    assert load_policy(site.home).budget.epsilon == 2.5

    page, report = tmp_path / "report.html", tmp_path / "report.json"
    report.write_text(call("budget", "report", "--html", str(page), "--json").stdout)
    assert "<html" in page.read_text()
    call("budget", "report", "--html", str(page), "--lang", "de")
    assert "Beim einzigen Beteiligten hier wurde nichts verbucht." in page.read_text()
    assert verify(report, 0)["verified"]
    report.write_text(report.read_text().replace('"2.5"', '"25.0"').replace('"epsilon": 2.5', '"epsilon": 25.0'))
    assert verify(report, PROBLEMS)["failures"]


def test_a_stopped_run_and_one_begun_anew_show_with_every_figure_rounded_up(site, call):
    study = site.keep(site.study())
    call("study", "approve", study.study_hash, "--yes")
    policy = load_policy(site.home)
    with charges.open_ledger(site.home, site.identity, Enrolment.load(site.home)) as ledger:
        for run, rounds in (("run-1", 3), ("run-2", 1)):
            for number in range(1, rounds + 1):
                charges.reserve(ledger, study, policy, run=run, round_number=number)
    RunReservations(site.home).note("run-2", study.study_hash)
    (row,) = json.loads(call("budget", "show", "--json").stdout)
    first, second = row["runs"]
    assert (first["charged"], first["planned"], first["unsettled"], first["holds"]) == (3, 40, 3, False)
    assert (second["run"], second["charged"], second["holds"]) == ("run-2", 1, True)
    told = " ".join(call("budget", "show").stdout.split())
    assert "2 runs, 1 of them of a study that had been begun before." in told
    assert "3 of 40" in told
    shown = [float(text) for text in re.findall(r"\d+\.\d\d(?!\d)", told)]
    for name in ("guaranteed", "spent_by_PLD", "spent_by_RDP"):
        assert any(row[name] <= figure < row[name] + 0.01 for figure in shown)
    assert any(row["left"] - 0.01 < figure <= row["left"] for figure in shown)


def verify(report, code):
    result = CliRunner().invoke(app, ["budget", "verify", str(report), "--json"])
    assert result.exit_code == code, result.output
    return json.loads(result.stdout)


def test_a_ledger_is_exported_and_imported_into_an_empty_home(site, call, tmp_path):
    call("budget", "set", "--epsilon", "2.5", "--delta", "1e-6")
    file = tmp_path / "ledger.jsonl"
    written = json.loads(call("budget", "export", str(file), "--json").stdout)
    assert written["entries"] == 2
    assert "exists already" in call("budget", "export", str(file), code=FAILED).stderr
    for name in ("ledger.db", "ledger.db-wal", "ledger.db-shm"):
        (site.home / name).unlink(missing_ok=True)
    restored = json.loads(call("budget", "import", str(file), "--json").stdout)
    assert restored == {"entries_added": 2, "entries_now": 2}
    assert json.loads(call("budget", "show", "--json").stdout)[0]["cap"] == 2.5
    file.write_text(file.read_text()[:-10])
    assert "cut short" in call("budget", "import", str(file), code=FAILED).stderr


def test_a_loss_is_owned_up_to_only_by_who_confirms_it(site, call):
    call("budget", "set", "--epsilon", "2.5", "--delta", "1e-6")
    asked = call("budget", "recover", code=USAGE)
    assert "counts as spent up to the highest cap" in " ".join(asked.stderr.split())
    assert json.loads(call("budget", "show", "--json").stdout)[0]["spent_by_PLD"] == 0
    (row,) = json.loads(call("budget", "recover", "--yes", "--json").stdout)
    assert (row["spent_by_PLD"], row["spent_by_RDP"]) == (2.5, 2.5)
    site.study()
    assert "lost for good" in call("budget", "plan", str(site.home.parent / "study.toml"), code=FAILED).stderr


@pytest.mark.parametrize(
    ("epsilon", "delta"), [("-1", "1e-5"), ("nan", "1e-5"), ("inf", "1e-5"), ("1", "0.5"), ("1", "0")]
)
def test_a_budget_out_of_range_is_refused(call, epsilon, delta, site):
    result = call("budget", "set", f"--epsilon={epsilon}", f"--delta={delta}", code=FAILED)
    assert "budget: 1 problem" in result.stderr
    assert load_policy(site.home).budget.epsilon == 10.0


def test_without_a_home_every_command_says_what_to_do(tmp_path):
    for words in (["study", "list"], ["study", "approve", "ab" * 32], ["budget", "show"], ["data", "check", "x.csv"]):
        result = CliRunner().invoke(app, [*words, "--home", str(tmp_path / "none")])
        assert result.exit_code == FAILED
        assert "Traceback" not in result.output
        assert any(
            remedy in result.stderr.replace("\n", " ") for remedy in ("enrol", "docs/site-toml.md", "study list")
        )


def test_wrong_usage_is_told_apart(call):
    call("study", "aprove", code=USAGE)
    call("budget", "set", "--epsilon", "much", "--delta", "1e-5", code=USAGE)


def test_debug_shows_the_traceback(tmp_path):
    result = CliRunner().invoke(app, ["--debug", "study", "list", "--home", str(tmp_path)])
    assert result.exception is not None
    assert not isinstance(result.exception, SystemExit)


def test_a_proxy_is_kept_shown_without_its_password_and_taken_away(site, call):
    assert json.loads(call("proxy", "--json").stdout)["proxy"] == "none"
    shown = call("proxy", "http://nurse:s3cret@proxy.example.org:3128").output
    assert "proxy.example.org:3128" in shown
    assert "s3cret" not in shown
    assert json.loads(call("proxy", "--json").stdout)["proxy"] == "proxy.example.org:3128"
    refused = call("proxy", "nurse:s3cret@proxy", code=FAILED).output
    assert "s3cret" not in refused
    assert json.loads(call("proxy", "none", "--json").stdout)["proxy"] == "none"
