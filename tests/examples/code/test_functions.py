import ast
import sys

import pytest

from confide.models.evaluation.programs import parses

from ..conftest import EXAMPLES

sys.path.insert(0, str(EXAMPLES / "code"))
import functions

SOURCE = '''
"""A module."""
import os  # a comment


class Account:
    """Says things."""

    limit = 1

    @property
    def total(self) -> int:
        """Documents itself
        in two lines."""
        # a comment of its own line
        if self.limit > 1:  # a comment behind
            return "#not" + '# one'

        return (
            self.limit
        )

    async def later(self):
        def inner():
            return 1
        return inner()


def only_documented():
    """Says so."""


def tiny(): return 1


def strange():
    x = """kept
out"""
    return x
'''
JAVA = """
/** A class. */
class Account {
    // a comment {
    int limit = 1;

    /** Documents. */
    int add(int x) { // here
        if (x > limit) {
            return add(x - 1);
        }
        return x; /* and here */
    }

    interface Inner {
        int noBody(
            int x,
            int y);
        default int body() {
            String text = "// kept";
            return 1;
        }
    }
}
"""


def test_functions_of_python_stand_by_themselves():
    found = sorted(functions.of_python(SOURCE))
    assert found == [
        "async def later(self):\n    def inner():\n        return 1\n    return inner()",
        "def total(self) -> int:\n    if self.limit > 1:\n        return \"#not\" + '# one'\n"
        "    return (\n        self.limit\n    )",
    ]
    assert all(ast.parse(each) for each in found)


def test_methods_of_java_stand_by_themselves():
    found = sorted(functions.of_java(JAVA))
    assert found == [
        'default int body() {\n    String text = "// kept";\n    return 1;\n}',
        "int add(int x) {\n    if (x > limit) {\n        return add(x - 1);\n    }\n    return x;\n}",
    ]
    assert all(parses("java", each) for each in found)


@pytest.mark.parametrize("source", ["def f(:", "x = (", "\x00", "", "class A {", "def f():\n\tx\n        y"])
def test_what_does_not_parse_has_no_functions(source):
    assert list(functions.of_python(source)) == []


@pytest.mark.parametrize(
    ("language", "function", "is_so"),
    [
        ("python", "def f(x):\n    return f(x - 1)", True),
        ("python", "def f(self):\n    return self.f()", True),
        ("python", "def f(x):\n    return g(x) + self.ff(x)", False),
        ("python", "def __init__(self):\n    super().__init__()", False),
        ("python", "def run(self, other):\n    other.run()", False),
        ("java", "int add(int x) {\n    return add(x - 1);\n}", True),
        ("java", "int add(int x) {\n    return this.add(x - 1);\n}", True),
        ("java", '@SuppressWarnings("x") int f(int a) { return f(a); }', True),
        ("java", "void run() { other.run(); }", False),
        ("java", "void run() { super.run(); }", False),
    ],
)
def test_a_function_that_calls_itself_is_recursive(language, function, is_so):
    assert functions.is_recursive(function, language) is is_so


def test_documentation_that_shares_a_line_and_comments_at_the_margin_change_no_function():
    shared = 'class A:\n    def f(self):\n        "doc"; a = 1\n        b = 2\n        return a + b\n'
    assert list(functions.of_python(shared)) == []
    margin = "class A:\n    def f(self):\n        a = 1\n# at the margin\n        b = 2\n        return a + b\n"
    assert list(functions.of_python(margin)) == []
