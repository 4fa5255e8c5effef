import json
from contextlib import nullcontext

import pytest
from typer.testing import CliRunner

from confide.coordinator.cli.main import app
from confide.coordinator.errors import AuditMissing
from confide.coordinator.results.deployment import deploy_adapter, options_for
from confide.coordinator.results.export import evaluate, score
from confide.coordinator.results.held_out import held_out_policy
from confide.coordinator.results.trained import trained_model
from confide.models.deployment.asking import Answering
from confide.models.deployment.choosing import Use, choose

from .test_export import HELD_OUT, RUN, table, with_run

__all__ = ["table"]


def test_a_deployed_run_answers_held_out_cells_as_the_run_scores_them(federation, table):
    study = with_run(federation)
    folder = federation.home / "deployed"
    found = deploy_adapter(federation.store, federation.home, RUN, folder, "torch", "float32")
    assert (found.target, found.deployment.study) == ("torch", "thyroid")
    assert found.bytes > 10_000
    model = trained_model(federation.store, federation.home, RUN)
    logits, _ = score(model, study, held_out_policy(table, study, "patient_id"))
    names, *lines = (line.split(",") for line in HELD_OUT.splitlines())
    answers = Answering(folder).answer([dict(zip(names, cells, strict=True)) for cells in lines])
    assert [told["answer"]["diagnosis"] for told in answers] == pytest.approx(
        [1 / (1 + 2.718281828**-x) for x in logits]
    )
    assert evaluate(model, study, [held_out_policy(table, study, "patient_id")])["records"] == len(answers)


def test_nothing_is_deployed_without_an_audit_that_passed(federation):
    with_run(federation, audited=False)
    folder = federation.home / "deployed"
    with pytest.raises(AuditMissing):
        deploy_adapter(federation.store, federation.home, RUN, folder, "torch", "float32")
    assert not folder.exists()
    deploy_adapter(federation.store, federation.home, RUN, folder, "torch", "float32", override_audit="for a test")
    assert "for a test" in (folder / "README.md").read_text()


def test_a_run_says_what_it_reads_and_how_large_it_is(federation):
    with_run(federation)
    options = options_for(federation.store, federation.home, RUN, None, milliseconds=None, megabytes=None, clients=1)
    assert (options[0].way, options[0].runtime) == ("onnx", "ONNX Runtime, 8 bits")  # its head has routed experts
    assert {option.way: option.misfits for option in options}["serve"] == ("serves only models that read text",)
    larger = choose(Use("table"))
    assert options[0].megabytes < larger[0].megabytes  # a million parameters, where nobody says how many


def asked(*words, given=None):
    return CliRunner().invoke(app, ["adapter", *map(str, words)], input=given)


def test_the_command_deploys_and_chooses(federation, monkeypatch):
    with_run(federation)
    home, folder = ("--home", federation.home), federation.home / "deployed"
    monkeypatch.setattr("confide.coordinator.federation.opened_store", lambda home: nullcontext(federation.store))
    result = asked("deploy", RUN, folder, "--target", "torch", "--json", *home)
    assert json.loads(result.stdout) | {"bytes": 0} == {
        "directory": str(folder), "target": "torch", "study": "thyroid", "runtime": "torch", "weights": "float32",
        "bytes": 0,
    }  # fmt: skip
    chosen = json.loads(asked("choose", RUN, "--clients", 8, "--json", *home).stdout)
    assert [each["way"] for each in chosen][:2] == ["triton", "onnx"]
    told = asked("choose", given="code\n5\n\n1\n")
    assert told.exit_code == 0
    assert "ONNX Runtime, 8 bits: the quickest answer" in told.stdout
    assert asked("choose", "--modality", "text", "--memory", 10).stdout.startswith("No way suits all")
    assert "adapter deploy thyroid-0001 folder" in asked("choose", RUN, "--clients", 1, *home).stdout
    for flags in (("--latency", "nan"), ("--memory", "inf")):
        assert asked("choose", "--modality", "text", *flags).exit_code == 2
    for wrong in ("code\n5\n\n-3\n", "code\nx\n\n1\n", "code\nnan\n\n1\n", "code\n-5\n\n1\n"):
        assert asked("choose", given=wrong).exit_code != 0


def test_a_limit_goes_with_a_suite(federation):
    flags = ("--data", "x.csv", "--unit-column", "id", "--limit", 3)
    assert asked("evaluate", RUN, *flags, "--home", federation.home).exit_code == 2


@pytest.mark.parametrize("flags", ["", "--data x.csv", "--unit-column id", "--suite x --data x.csv --unit-column id"])
def test_an_evaluation_is_of_tables_or_of_a_suite(federation, flags):
    result = asked("evaluate", RUN, *flags.split(), "--home", federation.home)
    assert result.exit_code == 2
    assert "give --data with --unit-column, or --suite" in " ".join(result.output.replace("│", " ").split())
