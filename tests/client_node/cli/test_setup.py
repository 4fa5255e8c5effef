import json

import pytest
from typer.testing import CliRunner

from confide.client_node.cli.main import app
from confide.client_node.policy.site_policy import load_policy

from ..conftest import PATIENTS_CSV
from .test_deciding import at_terminal

__all__ = ["at_terminal"]  # a fixture

FAILED, USAGE = 1, 2


@pytest.fixture
def call(site):
    (site.home / "site.toml").unlink()
    (site.home / "patients.csv").write_text(PATIENTS_CSV.replace("female", "F"))

    def run(*words, code=0):
        result = CliRunner().invoke(app, [*map(str, words), "--home", str(site.home)], env={"COLUMNS": "200"})
        assert result.exit_code == code, result.output
        return result

    return run


def test_a_policy_is_written_from_a_table_and_the_table_then_fits(site, call):
    study = site.keep(site.study())
    table = site.home / "patients.csv"
    result = call("init", table, "--study", "thyroid", "--yes")
    assert "The study's TSH: taken to be tsh_miu_l; look at it" in result.stderr
    assert (site.home / "site.toml").stat().st_mode & 0o777 == 0o600
    policy = load_policy(site.home)
    assert (policy.data.name, policy.data.unit, policy.data.unit_column) == ("patients", "patient", "patient_id")
    call("data", "check", table, "--study", study.study_hash)


def test_a_policy_that_is_there_is_not_overwritten(site, call):
    (site.home / "site.toml").write_text("mine")
    assert "nothing was changed" in call("init", site.home / "patients.csv", "--yes", code=FAILED).stderr
    assert (site.home / "site.toml").read_text() == "mine"


def test_a_script_says_which_column_is_meant(site, call):
    refused = call("init", site.home / "patients.csv", code=USAGE)
    assert "Say --unit-column; --yes takes patient_id. No site.toml was written" in refused.stderr
    assert not (site.home / "site.toml").exists()
    facts = json.loads(call("init", site.home / "patients.csv", "--unit-column", "age", "--json").stdout)
    assert (facts["unit_column"], facts["unit"]) == ("age", "person")


@pytest.mark.usefixtures("call")
def test_a_person_is_asked_which_column_is_meant(site, at_terminal):
    code, shown = at_terminal("init", str(site.home / "patients.csv"), typed="\n")
    assert (code, "Which column says whose record a row is? [patient_id]" in shown) == (0, True), shown
    assert load_policy(site.home).data.unit_column == "patient_id"


def test_no_cell_is_shown(site, call):
    (site.home / "patients.csv").write_text("patient_id,note\nzq7,zq8\nzq9,0.123\n")
    result = call("init", site.home / "patients.csv", "--yes")
    assert "patient_id" in result.stdout
    assert not [cell for cell in ("zq7", "zq8", "zq9", "0.123") if cell in result.output]


def test_a_backbone_is_found_from_where_the_command_is_typed(site, call, tmp_path, monkeypatch):
    (tmp_path / "sent").mkdir()
    monkeypatch.chdir(tmp_path)
    call("init", site.home / "patients.csv", "--yes", "--backbone", "sent")
    assert load_policy(site.home).backbone.directory == tmp_path / "sent"
    (site.home / "site.toml").unlink()
    call("init", site.home / "patients.csv", "--yes", "--backbone", "later")
    assert load_policy(site.home).backbone.directory == site.home / "later"
