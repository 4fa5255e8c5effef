import ast
import json
import logging
from pathlib import Path

import pytest

from confide.models.evaluation.mutants import PATTERNS, mutants, some_mutant
from confide.models.evaluation.programs import parses

PYTHON = """\
def total(rows, limit=3):
    count = 0
    for row in rows:
        if row and count < limit:
            count += size(row, limit)
            log.append(row)
        else:
            count = count - 1
    if not count:
        return limit
    return count"""
JAVA = """\
int find(String text, int from) {
    for (int i = from; i < text.length(); i++) {
        if (!seen(i)) {
            list.add(i, text);
        }
    }
    if (from > 7) {
        return -1;
    }
    return next(from);
}"""


def of(pattern, language, program):
    """The lines that mutants of one pattern change, as (program's, mutant's)."""
    found = []
    for mutant in mutants(language, program):
        if mutant.pattern == pattern:
            pairs = zip(program.split("\n"), mutant.text.split("\n"), strict=True)
            (changed,) = [(old, new) for old, new in pairs if old != new]
            found.append(changed if pattern == "indentation" else tuple(line.strip() for line in changed))
    return found


@pytest.mark.parametrize(
    ("pattern", "language", "changes"),
    [
        (
            "operator", "python",
            [
                ("if row and count < limit:", "if row or count < limit:"),
                ("if row and count < limit:", "if row and count <= limit:"),
                ("count += size(row, limit)", "count -= size(row, limit)"),
                ("count = count - 1", "count = count + 1"),
            ],
        ),
        (
            "operator", "java",
            [
                ("for (int i = from; i < text.length(); i++) {", "for (int i = from; i <= text.length(); i++) {"),
                ("if (from > 7) {", "if (from >= 7) {"),
            ],
        ),
        (
            "off by one", "python",
            [
                ("def total(rows, limit=3):", "def total(rows, limit=2):"),
                ("def total(rows, limit=3):", "def total(rows, limit=4):"),
                ("count = 0", "count = 1"),
                ("count = count - 1", "count = count - 0"),
                ("count = count - 1", "count = count - 2"),
            ],
        ),
        (
            "off by one", "java",
            [
                ("if (from > 7) {", "if (from > 6) {"),
                ("if (from > 7) {", "if (from > 8) {"),
                ("return -1;", "return -0;"),
                ("return -1;", "return -2;"),
            ],
        ),
        (
            "return", "python",
            [("log.append(row)", "return log.append(row)"), ("return limit", "limit"), ("return count", "count")],
        ),
        (  # `-1;` is no statement of Java
            "return", "java",
            [("list.add(i, text);", "return list.add(i, text);"), ("return next(from);", "next(from);")],
        ),
        ("negation", "python", [("if not count:", "if count:")]),
        ("negation", "java", [("if (!seen(i)) {", "if (seen(i)) {")]),
        ("swapped arguments", "python", [("count += size(row, limit)", "count += size(limit, row)")]),
        ("swapped arguments", "java", [("list.add(i, text);", "list.add(text, i);")]),
        (
            "indentation", "python",
            [
                ("        else:", "    else:"),
                ("    return count", "        return count"),
            ],
        ),
        ("indentation", "java", []),
    ],
)  # fmt: skip
def test_errors_are_made_where_the_syntax_tree_has_a_place_for_them(pattern, language, changes):
    assert of(pattern, language, PYTHON if language == "python" else JAVA) == changes


def test_a_negation_is_added_too():
    assert of("negation", "python", "if ready():\n    go()") == [("if ready():", "if not ready():")]
    assert of("negation", "java", "while (it.hasNext()) {\n    go();\n}") == [
        ("while (it.hasNext()) {", "while (!it.hasNext()) {")
    ]


def test_a_wrong_name_is_another_variable_that_is_bound_by_then():
    known = {"rows", "limit", "count", "row"}
    wrong = [mutant.text for mutant in mutants("python", PYTHON) if mutant.pattern == "wrong name"]
    assert len(wrong) == 12
    for text in wrong:
        pairs = [
            (old, new)
            for old, new in zip(ast.walk(ast.parse(PYTHON)), ast.walk(ast.parse(text)), strict=True)
            if isinstance(old, ast.Name) and isinstance(new, ast.Name) and old.id != new.id
        ]
        ((old, new),) = pairs
        assert {old.id, new.id} <= known
        assert new.id in "\n".join(PYTHON.split("\n")[: old.lineno])
    java = [new for _, new in of("wrong name", "java", JAVA)]
    assert "for (int i = text; i < text.length(); i++) {" in java  # not `i`, which is not bound yet
    assert all(".length()" in line for line in java if line.startswith("for"))


@pytest.mark.parametrize(
    ("language", "program", "names"),
    [
        ("python", "def f(self, x):\n    return self.y(x)", set()),
        ("python", "def f(a, b):\n    c = [each for each in a]\n    return b", {"a", "b", "c"}),
        ("python", "def f(a, b):\n    c = sorted(a, key=lambda row: row.x)\n    return b", {"a", "b", "c"}),
        (
            "java",
            "int f(int a, int b) {\n    for (int i : a) {\n        int j = i;\n    }\n    return b;\n}",
            {"a", "b"},
        ),
    ],
)
def test_a_name_is_not_read_outside_of_its_scope(language, program, names):
    last = program.rindex("return")
    found = {
        m.text[last:]
        for m in mutants(language, program)
        if m.pattern == "wrong name" and m.text[:last] == program[:last]
    }
    assert len(found) <= 1
    assert all(any(f"return {name}" in text for name in names) for text in found)
    assert bool(found) == bool(names)


@pytest.mark.parametrize(
    ("language", "program", "swapped"),
    [
        ("python", "g(\n    a,  # first\n    b,\n)", ["g(\n    b,  # first\n    a,\n)"]),
        ("java", "g(a, /* b */ b);", ["g(b, /* b */ a);"]),
        ("python", "g(a, *b, c=d)", []),
        ("python", "g(a, a)", []),
    ],
)
def test_comments_are_no_arguments_and_names_and_stars_stay(language, program, swapped):
    assert [m.text for m in mutants(language, program) if m.pattern == "swapped arguments"] == swapped


@pytest.mark.parametrize(
    "program",
    [
        "def f():\n    a()\n\n    b()",
        "def f():\n    # note\n    a()",
        "def f():\n    g(\n        x,\n    )\n    return x",
        "def f():\n    if a:\n        b()",
    ],
)
def test_a_line_that_moves_and_means_the_same_is_no_error(program):
    for mutant in mutants("python", program):
        assert ast.dump(ast.parse(mutant.text)) != ast.dump(ast.parse(program))


def test_lines_move_a_step_in_or_out_where_that_is_another_program():
    program = "def f():\n    if a:\n        b()\n        c()\n    d()"
    assert of("indentation", "python", program) == [("        c()", "    c()"), ("    d()", "        d()")]


@pytest.mark.parametrize(("language", "program"), [("python", PYTHON), ("java", JAVA), ("python", "s = 'éé'; f(s, 1)")])
def test_mutants_parse_differ_and_are_the_same_again(language, program):
    found = mutants(language, program)
    texts = [mutant.text for mutant in found]
    assert len({program, *texts}) == len(texts) + 1
    assert all(parses(language, text) for text in texts)
    assert [PATTERNS.index(mutant.pattern) for mutant in found] == sorted(PATTERNS.index(m.pattern) for m in found)
    assert mutants(language, program) == found
    assert some_mutant(language, program) in found


def test_what_a_mutant_computes_is_something_else():
    """Runs this file's own program: every mutant answers otherwise, or raises."""

    def answers(text):
        said = []
        scope = {"size": lambda row, limit: 3 * row - 2 * limit, "log": said}
        exec(text, scope)
        results = []
        for rows in ([], [1], [2], [3, 1], [1, 1], [2, 5], [0], [0, 1], [1, 0, 0, 0], [0, 0, 0, 1, 1]):
            try:
                results.append(scope["total"](rows))
            except (TypeError, NameError, UnboundLocalError) as err:
                results.append(type(err))
        return results, said

    right = answers(PYTHON)
    assert [mutant for mutant in mutants("python", PYTHON) if answers(mutant.text) == right] == []


@pytest.mark.parametrize("module", [json.decoder, logging])
def test_functions_of_the_standard_library_have_mutants_of_one_edit_that_mean_something_else(module):
    source = Path(module.__file__).read_text()
    tree = ast.parse(source)
    functions = [ast.get_source_segment(source, node) for node in tree.body if isinstance(node, ast.FunctionDef)][:12]
    assert len(functions) > 3
    for function in functions:
        own = ast.dump(ast.parse(function))
        found = mutants("python", function)
        if found:
            assert some_mutant("python", function) in found
        for mutant in found:
            assert ast.dump(ast.parse(mutant.text)) != own


def test_every_pattern_is_as_likely():
    """By SHA-256 of the program alone: a comment is another program."""
    drawn = [some_mutant("python", f"{PYTHON}  # {number}").pattern for number in range(140)]
    counts = [drawn.count(pattern) for pattern in PATTERNS]
    assert sum(counts) == 140
    assert all(5 < count < 40 for count in counts)  # 20 each, with a standard deviation of 4


def test_a_program_without_a_place_for_an_error_has_no_mutant():
    for language, program in (("python", "x"), ("java", ""), ("java", "int a;")):
        assert mutants(language, program) == []
        assert some_mutant(language, program) is None
