import runpy
from pathlib import Path

import pytest

from confide.client_node.study import reference
from confide.client_node.study.study import load_draft
from confide.client_node.study.terms import StudyDraft
from confide.models.records.kinds import INLINE, KINDS
from confide.models.records.tasks import TaskTerms
from confide.models.strict import StrictModel

DOCS = Path(__file__).parents[3] / "docs"


def models(model: type[StrictModel]) -> list[type[StrictModel]]:
    """A model and those of all tables in it."""
    tables = [reference._table(field) for field in model.model_fields.values()]
    return [model, *(each for table in tables if table is not None for each in models(table))]


def test_every_setting_stands_in_the_reference_with_what_it_means():
    said = reference.study_toml() + "".join(reference.kind_toml(name) for name in KINDS if name != INLINE)
    said += reference.task_toml("sepsis")
    for model in {*models(StudyDraft), *(kind.terms for kind in KINDS.values()), TaskTerms}:
        for name, field in model.model_fields.items():
            if reference._table(field) is None:
                assert field.description, (model.__name__, name)
                assert f"{name} = " in said, name


def test_the_reference_is_a_study_and_what_it_calls_a_default_is_one(tmp_path):
    (tmp_path / "study.toml").write_text(reference.study_toml())
    draft = load_draft(tmp_path / "study.toml")
    lean = "\n".join(line for line in reference.study_toml().splitlines() if "  # default" not in line)
    (tmp_path / "study.toml").write_text(lean)
    assert load_draft(tmp_path / "study.toml") == draft


def test_a_setting_that_is_a_comment_may_be_said():
    said = [line for line in reference.study_toml().splitlines() if line.startswith("# ")]
    assert [line.split(" ")[1] for line in said] == [
        "layers", "ranks", "reads", "classes", "labels", "number", "tasks", "target_epsilon", "lr", "head_lr",
        "local_lr", "max_norm", "weights",
    ]  # fmt: skip


def test_the_page_shows_the_reference():
    page = (DOCS / "study-toml.md").read_text()
    written = runpy.run_path(str(DOCS / "generate_settings.py"))["written"]
    assert written(page) == page, "run `make docs`"


@pytest.mark.parametrize("name", ["eps", "epsilon"])
def test_a_study_may_call_what_adam_adds_by_its_name_or_its_older_one(tmp_path, name):
    text = reference.study_toml().replace("eps = 0.001 ", f"{name} = 0.25 ")
    (tmp_path / "study.toml").write_text(text)
    assert load_draft(tmp_path / "study.toml").optimizer.eps == 0.25
