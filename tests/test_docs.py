"""What the pages say of files, functions, tests and other pages is there."""

import ast
import itertools
import re
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("README.md")])
TEST = re.compile(r"`(?:tests/)?((?:\w+/)*test_\w+\.py)::(test_\w+)`")
LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)(?:#[^)]*)?\)")
ANCHOR = re.compile(r"\]\((?!https?:)([^)#]*)#([^)]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
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


@cache
def defined(source: Path) -> frozenset[str]:
    """Names that a source defines, those of a class behind its own: `Study.study_hash`."""
    return frozenset(_defined(ast.parse(source.read_text()).body, ""))


def _defined(body: Iterable[ast.stmt], prefix: str) -> Iterator[str]:
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield prefix + node.name
        if isinstance(node, ast.ClassDef):
            yield from _defined(node.body, f"{prefix}{node.name}.")
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (prefix + part.id for each in targets for part in ast.walk(each) if isinstance(part, ast.Name))
        elif isinstance(node, ast.If | ast.Try):
            yield from _defined(node.body, prefix)


def is_defined(name: str, sources: Iterable[Path]) -> bool:
    """Whether a source defines that name, or a class of it does."""
    return any(each == name or each.endswith(f".{name}") for source in sources for each in defined(source))


def anchors(text: str) -> set[str]:
    """What links to headings of a page end in; the second of two equal headings has `-1` behind it."""
    found: set[str] = set()
    for heading in HEADING.findall(text):
        name = re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")
        repeats = (f"{name}-{number}" for number in itertools.count(1))
        found.add(next(repeat for repeat in itertools.chain([name], repeats) if repeat not in found))
    return found


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
        assert not name or is_defined(name, found), (file, name)


def test_a_method_is_defined_by_its_own_class_alone():
    charges = [ROOT / "privacy" / "ledger" / "charges.py"]
    assert is_defined("Charge.is_unprotected", charges)
    assert is_defined("is_unprotected", charges)
    assert not is_defined("Budget.is_unprotected", charges)
    assert not is_defined("colluding", charges)  # an argument


@each_page
def test_every_folder_that_a_page_names_exists(page):
    assert [folder for folder in FOLDER.findall(page.read_text()) if not (ROOT / folder).is_dir()] == []


@each_page
def test_every_page_that_a_page_links_to_exists(page):
    for target in LINK.findall(page.read_text()):
        assert (page.parent / target).exists(), target


@each_page
def test_every_heading_that_a_page_links_to_exists(page):
    for target, anchor in ANCHOR.findall(page.read_text()):
        assert anchor in anchors((page.parent / target if target else page).read_text()), (target, anchor)


def test_anchors_are_those_that_readers_of_markdown_see():
    assert anchors("# A round, and `a` start\n## Ring\n### Ring\n") == {"a-round-and-a-start", "ring", "ring-1"}


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
