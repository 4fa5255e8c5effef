from pathlib import Path

import pytest

from confide.client_node.study.terms import parse_draft
from confide.coordinator.errors import StudyRefused
from confide.coordinator.studies.catalogue import study_start
from confide.coordinator.studies.examine import backbone_folder

from ...client_node.conftest import STUDY_TOML


def draft_of(name: str):
    draft = parse_draft(STUDY_TOML, "study.toml")
    return draft.model_copy(update={"model": draft.model.model_copy(update={"backbone": name})})


def test_a_draft_in_no_file_names_a_folder_in_backbones_of_the_home(tmp_path):
    (tmp_path / "outside").mkdir()
    (home := tmp_path / "home").joinpath("backbones").mkdir(parents=True)
    (home / "backbones" / "link").symlink_to(tmp_path / "outside")
    good = {"tiny": "home/backbones/tiny", "a/b": "home/backbones/a/b", "./a": "home/backbones/a"}
    for name, folder in {**good, "link": "outside", "link/c": "outside/c"}.items():
        assert backbone_folder(home, draft_of(name)) == (tmp_path / folder).resolve(), name


@pytest.mark.parametrize(
    "name",
    [
        "", ".", "/", "..", "../backbones/tiny", "tiny/..", "tiny/../../pki", "link/../../x", "/etc", "//etc", "~",
        "~root", ".hidden", "a\x00b", "a\nb", "a\\b", "tiny\n", "x" * 101, "a/" * 9 + "a", "{home}/backbones/tiny",
    ],
)  # fmt: skip
def test_no_other_path_is_looked_at(tmp_path, name, monkeypatch):
    monkeypatch.setattr(Path, "resolve", lambda path, **_: pytest.fail(f"{path} is looked at"))
    with pytest.raises(StudyRefused, match="must name a folder inside backbones"):
        backbone_folder(tmp_path, draft_of(name.format(home=tmp_path)))


def test_a_draft_that_began_with_a_study_may_keep_its_backbone_and_no_other(federation):
    base = federation.create()
    own = study_start(federation.home, base).backbone
    assert own.is_absolute()
    assert backbone_folder(federation.home, draft_of(str(own)), base) == own
    for name in (str(own.parent), f"{own}/x", f"{own}/../other", "../x"):
        with pytest.raises(StudyRefused, match="or be left as it was"):
            backbone_folder(federation.home, draft_of(name), base)
    with pytest.raises(StudyRefused):
        backbone_folder(federation.home, draft_of(str(own)))  # without that study
