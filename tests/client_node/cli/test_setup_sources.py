"""A first site.toml for a query, on SQLite and on a real server, and for an export of a made-up hospital."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from confide.client_node.cli.main import app
from confide.client_node.policy.site_policy import load_policy

from ..data.test_sql import PASSWORD, database, server
from .test_deciding import at_terminal

__all__ = ["at_terminal", "database", "server"]  # fixtures
pytestmark = pytest.mark.process
FAILED, USAGE = 1, 2
EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "fhir"


@pytest.fixture
def call(site):
    (site.home / "site.toml").unlink()

    def run(*words, code=0):
        result = CliRunner().invoke(app, [*map(str, words), "--home", str(site.home)], env={"COLUMNS": "200"})
        assert result.exit_code == code, result.output
        assert PASSWORD not in result.output
        return result

    return run


@pytest.fixture
def query(site):
    path = site.home / "visits.sql"
    path.write_text(
        "SELECT patient_id, age, tsh_miu_l, CASE sex WHEN 'female' THEN 'F' ELSE sex END AS sex, sick, diagnosis\n"
        "FROM visits"
    )
    return path


def options(database):
    secret = () if database.password_file is None else ("--password-file", database.password_file)
    return ("--url", database.url, *secret)


def test_a_policy_is_written_from_a_query_and_its_answer_then_fits(site, call, query, database):
    study = site.keep(site.study())
    result = call("init", query, *options(database), "--study", "thyroid", "--yes")
    assert "The study's TSH: taken to be tsh_miu_l; look at it" in result.stderr
    assert "client-node data check --study STUDY" in result.stdout
    assert "p2" not in result.output  # a cell
    text = (site.home / "site.toml").read_text()
    assert PASSWORD not in text
    assert 'query_file = "' in text
    policy = load_policy(site.home)
    assert (policy.data.name, policy.data.unit_column, dict(policy.data.columns)) == (
        "visits", "patient_id", {"TSH": "tsh_miu_l"},
    )  # fmt: skip
    call("data", "check", "--study", study.study_hash)


def test_kinds_of_an_answer_are_told(call, query, database, monkeypatch):
    monkeypatch.setenv("RECORDS_PASSWORD", PASSWORD)
    asked = ("--url", database.url, "--password-env", "RECORDS_PASSWORD", "--unit-column", "patient_id", "--json")
    facts = json.loads(call("init", query, *asked).stdout)
    kinds = {row["column"]: row["seems to be"] for row in facts["columns"]}
    assert (kinds["age"], kinds["tsh_miu_l"], kinds["sick"]) == ("number", "number", "flag")


@pytest.mark.usefixtures("call")
def test_a_person_is_asked_which_column_of_an_answer_is_meant(site, at_terminal, query, database):
    code, shown = at_terminal("init", str(query), *map(str, options(database)), typed="age\n")
    assert (code, "Which column says whose record a row is? [patient_id]" in shown) == (0, True), shown
    assert load_policy(site.home).data.unit_column == "age"


def test_a_statement_that_writes_is_refused_and_nothing_is_written(site, call, query, database):
    query.write_text("DELETE FROM visits")
    call("init", query, *options(database), "--yes", code=FAILED)
    assert database.count() == 4
    assert not (site.home / "site.toml").exists()


@pytest.mark.parametrize(
    ("words", "told", "code"),
    [
        (("visits.sql",), "a query needs its database: say --url", FAILED),
        (("visits.sql", "--password-env", "RECORDS_PASSWORD"), "say --url. No site.toml was written", USAGE),
        (("visits.sql", "--url", f"postgresql://node:{PASSWORD}@localhost/records"), "holds a password", FAILED),
        (("visits.sql", "--url", "postgresql://node@db.hospital/records"), "sslmode=verify-full", FAILED),
        (("visits.sql", "--url", "sqlite:///hospital.db"), "must name a file of SQLite", FAILED),
        (("missing.sql", "--url", "sqlite:////nowhere.db"), "cannot be read", FAILED),
        (("visits.sql", "--url", "sqlite:////nowhere.db"), "no file of a database that can be opened", FAILED),
        (("patients.csv", "--url", "sqlite:////nowhere.db"), "--url is for a query", FAILED),
        ((".", "--url", "sqlite:////nowhere.db"), "--url is for a query", FAILED),
    ],
)
def test_what_does_not_fit_together_is_told_and_nothing_is_written(site, call, query, monkeypatch, words, told, code):
    monkeypatch.chdir(site.home)
    assert told in call("init", *words, "--yes", code=code).stderr
    assert not (site.home / "site.toml").exists()


def test_an_existing_policy_is_left_before_the_database_is_asked(site, query):
    before = (site.home / "site.toml").read_text()
    words = ["init", str(query), "--url", "sqlite:////nowhere.db", "--home", str(site.home)]
    result = CliRunner().invoke(app, words, env={"COLUMNS": "200"})
    assert "it is there already, and nothing was changed" in result.stderr
    assert (site.home / "site.toml").read_text() == before


@pytest.fixture(scope="module")
def hospital(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hospital") / "export"
    subprocess.run([sys.executable, EXAMPLE / "hospital.py", folder, "240", "3"], check=True, capture_output=True)
    return folder


@pytest.mark.slow
def test_the_columns_of_the_example_are_proposed_of_its_hospital_and_then_fit(site, call, hospital):
    study = EXAMPLE / "study.toml"
    result = call("init", hospital, "--study", study)
    assert "hypertension: taken to be http://hl7.org/fhir/sid/icd-10-cm|I10; look at it" in result.stderr
    call("data", "check", "--study", study)
    stated = load_policy(site.home).data.fhir.columns
    patients = (hospital / "Patient.ndjson").read_text().splitlines()
    shown = result.output + (site.home / "site.toml").read_text()
    assert not [own for own in (json.loads(line)["id"] for line in patients) if own in shown]
    (site.home / "site.toml").write_text(
        (EXAMPLE / "records.toml").read_text().replace('"train"', json.dumps(str(hospital)))
        + '[budget]\nepsilon = 4\ndelta = 1e-5\n[backbone]\ndirectory = "backbone"\n'
    )
    own = load_policy(site.home).data.fhir.columns
    at = {"at": None}
    assert {name: each.model_copy(update=at) for name, each in stated.items()} == {
        name: each.model_copy(update=at) for name, each in own.items()
    }
