import json

import pytest
from typer.testing import CliRunner

from confide.client_node.cli.main import app
from confide.coordinator.cli.main import app as coordinator
from confide.models.space.space import load_space

from ...models.space.conftest import COLOURS, TONES, backbone, built, png, wav, write_public

__all__ = ["backbone", "built"]  # fixtures

FAILED, USAGE = 1, 2


@pytest.fixture
def folder(tmp_path):
    own = tmp_path / "archive"
    own.mkdir()
    for name, colour in COLOURS.items():
        (own / f"{name}.png").write_bytes(png(colour))
        (own / f"{name}.wav").write_bytes(wav(TONES[name]))
        (own / f"{name}.txt").write_text(f"a {name} thing")
    return own


@pytest.fixture
def search(folder, built, backbone):
    """Searches the archive with the space of four colours."""

    def run(question, *words, code=0, with_backbone=True):
        told = ["--backbone", backbone] if with_backbone else []
        call = ["search", folder, question, "--space", built[0], *told, *words]
        result = CliRunner().invoke(app, [str(word) for word in call], env={"COLUMNS": "400"})
        assert result.exit_code == code, result.output
        return result

    return run


def test_a_text_a_picture_and_a_sound_are_answered(search, folder):
    for question, kind in (("a red thing", "picture"), (folder / "red.png", "text"), (folder / "red.wav", "sound")):
        found = json.loads(search(question, "--json", "--count", "1").stdout)
        assert (found["files"], found["embedded"], found["left_out"]) == (12, 12, {})
        assert [each["kind"] for each in found["found"]] == ["picture", "sound", "text"]
        assert next(each["name"] for each in found["found"] if each["kind"] == kind).startswith("red.")


def test_people_see_a_table_and_how_many_files_were_left_out(search, folder):
    (folder / "a.pdf").write_text("none")
    result = search("a red thing", "--count", "2")
    assert "Most like it" in result.stdout
    assert result.stdout.count(".png") == 2
    assert "1 files were left out" in result.stderr


def test_an_index_is_made_used_and_kept_up_to_date(search, folder, tmp_path):
    index = tmp_path / "archive.index"
    assert json.loads(search("red", "--index", index, "--json").stdout)["embedded"] == 12
    before = index.stat().st_mtime_ns
    assert index.stat().st_mode & 0o077 == 0
    without = search(folder / "red.png", "--index", index, "--json", with_backbone=False)
    assert json.loads(without.stdout)["embedded"] == 0
    assert index.stat().st_mtime_ns == before
    (folder / "blue.png").unlink()
    assert json.loads(search("red", "--index", index, "--json").stdout)["files"] == 11
    assert index.stat().st_mtime_ns > before


def test_what_cannot_be_searched_is_told_in_one_line(search, folder, tmp_path):
    (tmp_path / "none.index").write_bytes(b"none")
    for question, words, told in (
        ("gone.png", [], "ArchiveRefused: gone.png is no file that may be read"),
        ("red", ["--index", tmp_path / "none.index"], "remove it, and it is made anew"),
        ("red", ["--space", folder], "InvalidSpace"),
        ("red", ["--backbone", folder], "InvalidBackbone"),
    ):
        result = search(question, *words, code=FAILED)
        assert told in result.stderr
        assert "Traceback" not in result.output
    assert "no backbone is told" in search("red", code=FAILED, with_backbone=False).stderr
    for path in folder.iterdir():
        path.unlink()
    assert "holds no file that can be searched" in search("red", code=FAILED).stderr
    folder.rmdir()
    assert "is no folder" in search("red", code=USAGE).output


def test_the_coordinator_builds_a_space(tmp_path, backbone):
    table = write_public(tmp_path)

    def build(*words, code=0):
        call = ["space", "build", table, tmp_path / "space", "--backbone", backbone, "--steps", "1", *words]
        result = CliRunner().invoke(coordinator, [str(word) for word in call], env={"COLUMNS": "400"})
        assert result.exit_code == code, result.output
        return result

    found = json.loads(build("--json", "--seed", "3").stdout)
    assert found == {
        "directory": str(tmp_path / "space"), "hash": load_space(tmp_path / "space")[1],
        "names": 8, "pictures": 4, "sounds": 4,
    }  # fmt: skip
    assert "exists already" in build(code=FAILED).stderr
    table.write_text("thing,name,file\n")
    (tmp_path / "space").rename(tmp_path / "first")
    assert "two public names or more" in build(code=FAILED).stderr
