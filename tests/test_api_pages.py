"""The pages of docs/api: made anew they are the same, and they lack nothing that a face names."""

import importlib.util
import sys
from pathlib import Path

import pytest

from .architecture import face, rooms

pytestmark = pytest.mark.process

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "docs" / "api"
PACKAGES = ("coordinator", "client_node", "privacy", "mpc", "models")
SHOWN = sorted(room for package in PACKAGES for room in rooms(f"confide.{package}") if not room.endswith(".cli"))


@pytest.fixture(scope="module")
def generator():
    spec = importlib.util.spec_from_file_location("generate_api", ROOT / "docs" / "generate_api.py")
    module = sys.modules["generate_api"] = importlib.util.module_from_spec(spec)  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    yield module
    del sys.modules["generate_api"]


@pytest.fixture(scope="module")
def made(generator, tmp_path_factory):
    folder = tmp_path_factory.mktemp("api")
    generator.write(folder)
    return folder


def test_pages_are_those_that_the_docstrings_make(made):
    committed, current = ({path.name: path.read_text() for path in folder.iterdir()} for folder in (PAGES, made))
    changed = sorted(name for name in {*committed, *current} if committed.get(name) != current.get(name))
    assert changed == [], "run `make docs` and commit what it writes"


@pytest.mark.parametrize("room", SHOWN)
def test_a_page_shows_every_name_of_its_room_s_face(made, room):
    text = (made / f"{room.removeprefix('confide.')}.md").read_text()
    assert [name for name in face(room) if f"\n## `{name}`\n" not in text] == []


def test_a_page_keeps_signatures_comments_and_errors_and_leaves_bodies_out(made):
    text = (made / "kernels.md").read_text()
    assert "def install() -> str:\n```\n\nRegisters the experts implementation" in text
    assert "    slices: tuple[tuple[int, slice], ...]  # (expert, its sorted pairs) for experts that were hit\n" in text
    assert "**Raises**\n\n- `UnsupportedExperts`: there is no bank" in text
    assert "return NAME" not in text


def test_pages_say_nothing_of_the_machine_that_made_them(made):
    assert [path.name for path in made.iterdir() if str(ROOT) in path.read_text()] == []


def test_pages_are_of_this_tree_wherever_they_are_made_and_no_other_stays(generator, made, tmp_path, monkeypatch):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "__init__.py").write_text("__all__ = []")
    (tmp_path / "api").mkdir()
    (tmp_path / "api" / "gone.md").write_text("of a room that was")
    monkeypatch.chdir(tmp_path)
    generator.write(Path("api"))
    again, first = ({path.name: path.read_text() for path in folder.iterdir()} for folder in (tmp_path / "api", made))
    assert again == first


def test_text_is_shown_as_it_is_written(generator):
    assert generator.escaped("2**53 units of `a*b`, at most <n>") == r"2\*\*53 units of `a*b`, at most \<n>"


def test_an_anchor_counts_headings_of_the_same_name(generator):
    assert generator._anchors(["## `Ring`", "### `ring`", "## `ring`"]) == {"Ring": "ring", "ring": "ring-2"}


def test_a_session_and_a_drawing_are_code(generator):
    session, drawing = ">>> 6 * 7\n42", "Base\n└─ Leaf   a * b"
    assert generator._block(session) == f"```pycon\n{session}\n```"
    assert generator._block(drawing) == f"```text\n{drawing}\n```"
