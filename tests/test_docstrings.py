"""A docstring's first sentence says what is there in a verb or a noun, not in a clause that must be read twice."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("benchmarks", "client_node", "coordinator", "examples", "kernels", "models", "mpc", "privacy")
SOURCES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
CLAUSES = frozenset(["What", "How", "Whether", "Where", "Why", "Who", "When", "Which"])

Named = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def public(node: ast.Module | Named, name: str) -> Iterator[tuple[str, str]]:
    """Names and docstrings of a module or class and of all that is public in it; not of functions in functions."""
    if text := ast.get_docstring(node):
        yield name, text
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        for inner in node.body:
            if isinstance(inner, Named) and not inner.name.startswith("_"):
                yield from public(inner, f"{name}.{inner.name}")


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_docstring_begins_with_a_clause(path):
    found = [
        (name, text) for name, text in public(ast.parse(path.read_text()), path.stem) if text.split()[0] in CLAUSES
    ]
    assert found == []


@pytest.mark.parametrize("word", sorted(CLAUSES))
def test_a_clause_is_found_wherever_it_is_public(word):
    methods = f"    def b(self):\n        '{word} b.'\n    def _c(self):\n        '{word} c.'\n"
    source = f"'{word} a.'\nclass A:\n    'An A.'\n{methods}"
    found = [name for name, text in public(ast.parse(source), "module") if text.split()[0] in CLAUSES]
    assert found == ["module", "module.A.b"]
