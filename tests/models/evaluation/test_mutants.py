import ast
import json
from pathlib import Path

import pytest

from confide.models.evaluation.mutants import PATTERNS, mutants
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
    return -1;
}"""


def of(pattern, language, program):
    """The lines that mutants of one pattern change, as (program's, mutant's)."""
    found = []
    for mutant in mutants(language, program):
        if mutant.pattern == pattern:
            (changed,) = [
                (old, new) for old, new in zip(program.split("\n"), mutant.text.split("\n"), strict=True) if old != new
            ]
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
        ("operator", "java", [("for (int i = from; i < text.length(); i++) {",
                               "for (int i = from; i <= text.length(); i++) {")]),
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
        ("off by one", "java", [("return -1;", "return -0;"), ("return -1;", "return -2;")]),
        (
            "return", "python",
            [("log.append(row)", "return log.append(row)"), ("return limit", "limit"), ("return count", "count")],
        ),
        ("return", "java", [("list.add(i, text);", "return list.add(i, text);"), ("return -1;", "-1;")]),
        ("negation", "python", [("if not count:", "if count:")]),
        ("negation", "java", [("if (!seen(i)) {", "if (seen(i)) {")]),
        ("swapped arguments", "python", [("count += size(row, limit)", "count += size(limit, row)")]),
        ("swapped arguments", "java", [("list.add(i, text);", "list.add(text, i);")]),
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


def test_a_program_that_binds_one_name_has_no_wrong_one():
    assert "wrong name" not in {each.pattern for each in mutants("python", "def f(self, x):\n    return self.y(x)")}


def test_lines_move_a_step_in_or_out_where_that_still_parses():
    program = "def f():\n    if a:\n        b()\n        c()\n    d()"
    assert of("indentation", "python", program) == [("        c()", "    c()"), ("    d()", "        d()")]
    moved = of("indentation", "java", "if (a) {\n    b();\n}")
    assert moved == [("    b();", "        b();"), ("}", "    }")]


@pytest.mark.parametrize(("language", "program"), [("python", PYTHON), ("java", JAVA)])
def test_mutants_parse_differ_and_are_the_same_again(language, program):
    found = mutants(language, program)
    texts = [mutant.text for mutant in found]
    assert len({program, *texts}) == len(texts) + 1
    assert all(parses(language, text) for text in texts)
    assert [PATTERNS.index(mutant.pattern) for mutant in found] == sorted(PATTERNS.index(m.pattern) for m in found)
    assert mutants(language, program) == found


def test_what_a_mutant_computes_is_something_else():
    """Runs this file's own program: all mutants but two answer otherwise, or raise."""

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
    alike = [mutant for mutant in mutants("python", PYTHON) if answers(mutant.text) == right]
    assert [mutant.pattern for mutant in alike] == ["indentation"] * 2  # a lone line, deeper: an error of style


def test_functions_of_the_standard_library_have_mutants_that_parse():
    (functions,) = [
        [
            ast.get_source_segment(source, node)
            for node in ast.parse(source).body
            if isinstance(node, ast.FunctionDef) and (source.isascii())
        ]
        for source in [Path(json.__file__).with_name("decoder.py").read_text()]
    ]
    for function in functions:
        found = mutants("python", function)
        assert found
        assert all(parses("python", mutant.text) for mutant in found)
        for mutant in found:
            begin = next(at for at, pair in enumerate(zip(function, mutant.text, strict=False)) if len({*pair}) > 1)
            end = next(
                (
                    at
                    for at, pair in enumerate(zip(function[::-1], mutant.text[::-1], strict=False))
                    if len({*pair}) > 1
                ),
                0,
            )
            assert len(function) - end - begin < 200


def test_a_program_without_a_place_for_an_error_has_no_mutant():
    assert mutants("python", "x") == []
    assert mutants("java", "") == []
