"""From a data dictionary to a study, by commands; and what `study create` asks before it makes one."""

import json

import pytest

from confide.client_node.study.terms import load_draft
from confide.models.backbones import pretraining
from confide.models.backbones.pretraining import PretrainingConfig

from ...client_node.conftest import STUDY_TOML, changed
from ...models.tiny import save_text_backbone
from ..studies.test_dictionary import CSV
from .test_main import FAILED, UNVERIFIED, USAGE, _new_home, call, home, invoke, lined, store

__all__ = ["_new_home", "call", "home", "store"]  # fixtures


def write(home, backbone, *changes):
    (home / "study.toml").write_text(changed(STUDY_TOML, (("some/where/backbone", str(backbone)), *changes)))
    return home / "study.toml"


@pytest.mark.usefixtures("store")
def test_a_study_is_made_from_a_dictionary_without_an_editor(call, tmp_path, monkeypatch):
    few = PretrainingConfig(steps=2, batch=8, questions=4, moment_records=32)
    monkeypatch.setattr(pretraining, "PretrainingConfig", lambda: few)
    (tmp_path / "thyroid.csv").write_text(CSV)
    draft = tmp_path / "study.toml"
    call("study", "init", tmp_path / "thyroid.csv", "--units", 6870, "--unit", "patient", "--out", draft)
    assert load_draft(draft).rounds.batch_units == 1374
    refused = call("study", "check", draft, code=UNVERIFIED)  # nothing was built yet
    assert f"coordinator backbone build {draft} {tmp_path / 'backbone'}" in lined(refused.stderr)
    invoke("backbone", "build", draft, tmp_path / "backbone")
    found = json.loads(call("study", "check", draft, "--units", 6870, "--json").stdout)
    assert (found["problems"], found["questions"], found["implied_units"]) == ([], [], 6870)
    assert found["epsilon"] <= 3.0
    bought = found["noise_over_signal_at_epsilon"]
    assert list(bought) == ["1", "2", "3", "8"]
    assert bought["1"] > bought["2"] > bought["3"] > bought["8"]
    said = lined(call("study", "check", draft, "--units", 6870).stdout)
    assert "That ratio if all rounds together were to cost an epsilon of 1: " in said
    assert json.loads(call("study", "list", "--json").stdout) == []
    made = json.loads(call("study", "create", draft, "--units", 6870, "--json").stdout)
    assert made["name"] == "thyroid"
    assert (made["epsilon"], made["dim"]) == (pytest.approx(found["epsilon"]), found["trained_numbers"])


@pytest.mark.usefixtures("store")
def test_a_draft_for_texts_names_layers_that_the_backbone_has(call, tmp_path):
    (tmp_path / "notes.csv").write_text("name,kind\nnote,text\nfinding,label\n")
    save_text_backbone(tmp_path / "backbone")
    draft = tmp_path / "study.toml"
    call("study", "init", tmp_path / "notes.csv", "--units", 900, "--out", draft)
    adapter = load_draft(draft).adapter
    assert (adapter.targets, adapter.layers) == (("o_proj", "down_proj"), (0, 1))
    draft.unlink()
    call("study", "init", tmp_path / "notes.csv", "--units", 900, "--out", draft, "--backbone", "later")
    assert load_draft(draft).adapter.layers == (28, 29)


@pytest.mark.usefixtures("store")
def test_a_file_that_is_there_is_not_overwritten(call, tmp_path):
    (tmp_path / "thyroid.csv").write_text(CSV)
    (tmp_path / "study.toml").write_text("mine")
    call("study", "init", tmp_path / "thyroid.csv", "--units", 9, "--out", tmp_path / "study.toml", code=FAILED)
    assert (tmp_path / "study.toml").read_text() == "mine"


def test_check_tells_problems_and_questions_at_once_and_stores_nothing(call, home, tmp_path):
    draft = write(home, tmp_path / "absent", ("batch_units = 1374", "batch_units = 30"))
    result = call("study", "check", draft, "--units", 15_050, code=UNVERIFIED)
    told = lined(result.stderr)
    for said in (
        "coordinator site invite svi --role train",
        "coordinator site invite agg-a --role aggregate",
        f"{tmp_path / 'absent'} cannot be listed",
        "every step would be 100 times as long as meant",
    ):
        assert said in told
    assert "planned to cost epsilon 6.7" in lined(result.stdout)
    assert "100,000 trained numbers (assumed" in lined(result.stdout)
    assert not (home / "studies").exists()


def test_check_of_a_draft_that_cannot_be_read_lists_its_problems(call, home):
    (home / "study.toml").write_text("name = 1\n")
    assert "privacy" in call("study", "check", home / "study.toml", code=UNVERIFIED).stderr
    assert (
        len(json.loads(call("study", "check", home / "study.toml", "--json", code=UNVERIFIED).stdout)["problems"]) == 1
    )


@pytest.mark.usefixtures("store")
def test_a_questionable_study_is_made_only_if_it_is_meant(call, home, backbone):
    draft = write(home, backbone, ("batch_units = 1374", "batch_units = 30"))
    refused = call("study", "create", draft, "--units", 15_050, code=USAGE)
    assert "100 times as long as meant" in lined(refused.stderr)
    assert "a script says --accept" in lined(refused.stderr)
    assert json.loads(call("study", "list", "--json").stdout) == []
    call("study", "create", draft, "--units", 15_050, "--accept")
    assert len(json.loads(call("study", "list", "--json").stdout)) == 1
