"""What the pages say of files, functions, tests and other pages is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("README.md")])
TEST = re.compile(r"`(?:tests/)?((?:\w+/)*test_\w+\.py)::(test_\w+)`")
LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)(?:#[^)]*)?\)")
FILE = re.compile(r"`(?:python )?((?:[\w-]+/)*\w+\.py)(?:(?:::|: )(\w+(?:\.\w+)*))?[^`]*`")
FOLDER = re.compile(
    r"`((?:coordinator|client_node|privacy|mpc|models|kernels|benchmarks|examples|tests)/(?:[\w.-]+/)*)`"
)
FOLDERS = ("coordinator", "client_node", "privacy", "mpc", "models", "kernels", "benchmarks", "examples", "tests")
ROLES = ("README.md", *(f"docs/{role}.md" for role in ("architecture", "operator", "site", "auditor", "ml-engineer")))
SOURCES = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def meant(page: Path, file: str) -> list[Path]:
    """Sources that `file` may be: from the root or the page's own folder if that exists, else wherever it ends so."""
    exact = [path for path in dict.fromkeys((ROOT / file, page.parent / file)) if path.is_file()]
    return exact or [path for path in SOURCES if str(path).endswith(f"/{file}")]


@each_page
def test_every_test_that_a_page_names_exists(page):
    for file, name in TEST.findall(page.read_text()):
        found = [path for path in (ROOT / "tests").rglob(Path(file).name) if str(path).endswith(f"/{file}")]
        assert any(f"def {name}(" in path.read_text() for path in found), (file, name)


@each_page
def test_every_file_that_a_page_names_exists_and_defines_what_is_said_of_it(page):
    for file, name in FILE.findall(page.read_text()):
        found = meant(page, file)
        assert found, file
        if "/" in file:
            assert len(found) == 1, (file, found)
        *_, last = name.split(".")
        defines = re.compile(rf"^\s*(?:def|class) {last}\b|^\s*{last}\b\s*[:=]", re.MULTILINE)
        assert not name or any(defines.search(path.read_text()) for path in found), (file, name)


@each_page
def test_every_folder_that_a_page_names_exists(page):
    assert [folder for folder in FOLDER.findall(page.read_text()) if not (ROOT / folder).is_dir()] == []


@each_page
def test_every_page_that_a_page_links_to_exists(page):
    for target in LINK.findall(page.read_text()):
        assert (page.parent / target).exists(), target


def test_the_glossary_has_every_word_once_in_alphabetical_order():
    rows = (ROOT / "docs" / "glossary.md").read_text().splitlines()[6:]
    words = [row.split("|")[1].strip(" *").casefold() for row in rows]
    assert len(words) > 100
    assert words == sorted(set(words))


@pytest.mark.parametrize("page", ROLES)
def test_who_reads_the_page_of_a_role_finds_the_glossary(page):
    assert "glossary.md)" in (ROOT / page).read_text()


def test_the_threat_model_names_tests():
    assert len(TEST.findall((ROOT / "docs" / "threat-model.md").read_text())) > 60
