"""Constructs beside two other readers: Python's own tokenizer, and tree-sitter's tree of Java."""

import ast
import io
import random
import sysconfig
import tokenize
from pathlib import Path

import pytest
import tree_sitter
import tree_sitter_java
from hypothesis import given
from hypothesis import strategies as st

from confide.models.structure.constructs import FIRST, KINDS, LANGUAGES, SIZES, Constructs

STDLIB = Path(sysconfig.get_paths()["stdlib"])
JAVA = '''class Account {
    /* a { that opens nothing */
    private final String text = "a } that closes \\" nothing"; // nor this )
    char quote = '\\'', brace = '{';
    String block = """
        "quoted" { (
        """;

    int sum(int[] values) {
        int total = 0;
        for (int i = 0; i < values.length; i++) {
            if (values[i] > 0) { total += values[i]; } else total--;
        }
        return new Object() { int twice() { return 2 * total; } }.twice();
    }

    void later() {
        run(() -> { try { go(); } catch (Exception e) { throw e; } finally { switch (x) { case 1: break; } } });
        String empty = "", other = "";
    }
}
'''
PYTHON = '''
@decorated
class Account(object):
    """Says "quoted" ( things."""

    def add(self, values, sep="#", end=\'\'\'a
\'\'\'):
        total = {"a": [1, 2], 'b': ""}  # (
        for value in values:
            if value > 0 and \\
                    value < 9:
                total += value
            else: total -= 1

        # a comment that is indented as it likes
  # and another
            while True:
                pass
        return f"{total}" + r"\\" + "\\""


def last(): return lambda x: x[1:]
'''


def ids(text, language="python"):
    constructs = Constructs(language)
    constructs.feed(text)
    return dict(zip(SIZES, constructs.ids(), strict=True))


def kinds(text, language="python"):
    found = ids(text, language)
    names = {number: kind for kind, number in KINDS.items()}
    return [names[found[place]] for place in ("innermost", "second", "third")]


def depths(source):
    """Brackets and blocks open behind each token of Python, by its own tokenizer: {offset: (brackets, blocks)}."""
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    found, brackets, blocks = {}, 0, 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        blocks += (token.type == tokenize.INDENT) - (token.type == tokenize.DEDENT)
        if token.type == tokenize.OP:
            brackets += (token.string in "([{") - (token.string in ")]}")
        if token.type in (tokenize.NAME, tokenize.OP, tokenize.NUMBER):
            found[starts[token.end[0] - 1] + token.end[1]] = brackets, blocks
    return found


def python_sources():
    files = [path for name in ("json", "email", "asyncio", "concurrent") for path in (STDLIB / name).rglob("*.py")]
    random.Random(3).shuffle(files)
    return [PYTHON, *(path.read_text(encoding="utf-8") for path in files[:12])]


@pytest.mark.slow
def test_brackets_and_blocks_are_those_of_pythons_tokenizer():
    checked = 0
    for source in python_sources():
        assert "\t" not in source
        want, constructs = depths(source), Constructs("python")
        for place, sign in enumerate(source, start=1):
            assert constructs.feed(sign), source[max(0, place - 60) : place]
            if place in want:
                brackets, blocks = want[place]
                said = dict(zip(SIZES, constructs.ids(), strict=True))
                assert said["brackets"] == min(brackets, 7)
                assert said["depth"] == min(brackets + blocks, 15), source[max(0, place - 60) : place]
                checked += 1
        assert constructs.may_end()
    assert checked > 5000


def test_brackets_of_java_are_those_of_its_tree():
    parser = tree_sitter.Parser(tree_sitter.Language(tree_sitter_java.language()))
    root = parser.parse(JAVA.encode()).root_node
    assert not root.has_error
    change, todo = {}, [root]
    while todo:
        node = todo.pop()
        if node.type in ("(", "[", "{"):
            change[node.start_byte] = 1
        elif node.type in (")", "]", "}"):
            change[node.start_byte] = -1
        todo += node.children
    constructs, depth = Constructs("java"), 0
    for place, sign in enumerate(JAVA):
        depth += change.get(place, 0)
        assert constructs.feed(sign), JAVA[max(0, place - 60) : place]
        assert dict(zip(SIZES, constructs.ids(), strict=True))["brackets"] == depth
    assert depth == 0
    assert constructs.may_end()


@pytest.mark.parametrize(
    ("language", "text", "want"),
    [
        ("python", "def f(a", ["(", "<none>", "<none>"]),
        ("python", "def f(a):\n    ", ["def", "<none>", "<none>"]),
        ("python", "def f(a):\n    if a:\n        x = [", ["[", "if", "def"]),
        ("python", "def f(a):\n    if a:\n        pass\n    ", ["def", "<none>", "<none>"]),
        ("python", "async def f():\n  ", ["def", "<none>", "<none>"]),
        ("python", "x = '(", ["string", "<none>", "<none>"]),
        ("python", "x = '''it's ''", ["string", "<none>", "<none>"]),
        ("python", "x = ''", ["<none>"] * 3),
        ("python", "x = '' '", ["string", "<none>", "<none>"]),
        ("python", "x = 1 # (", ["comment", "<none>", "<none>"]),
        ("python", "x = {1: 2", ["{", "<none>", "<none>"]),
        ("java", "class A { int f() {", ["{", "class", "<none>"]),
        ("java", "void f() { for (int i = 0; i < 1; i++) {", ["for", "{", "<none>"]),
        ("java", "void f() { if (a) { b(); } else {", ["else", "{", "<none>"]),
        ("java", "int a = b / c; // {", ["comment", "<none>", "<none>"]),
        ("java", "int a; /* { */ {", ["{", "<none>", "<none>"]),
        ("java", "/*/ {", ["comment", "<none>", "<none>"]),
        ("java", 'String a = """\n"" {', ["string", "<none>", "<none>"]),
    ],
)
def test_the_innermost_constructs_are_named(language, text, want):
    assert kinds(text, language) == want


def test_statements_words_and_lines_are_counted():
    found = ids("def f(a, b):\n    x = 1\n    return x.y")
    assert found["first"] == FIRST["return"]
    assert found["last_first"] == FIRST["other"]
    assert found["sibling"] == 1  # before this one
    assert found["indentation"] == 2
    assert ids("return a + ")["words"] == 2
    assert ids("f(a, b")["sibling"] == 1
    assert ids("int a; int b; for (i = 0; ", "java")["sibling"] == 0
    assert ids("int a; int b;", "java")["sibling"] == 2


def test_blanks_of_a_line_say_block_by_block_what_they_close():
    text = "if a:\n    for b in c:\n        x\n"
    depth = [ids(text + " " * blanks)["depth"] for blanks in range(9)]
    assert depth == [0, 0, 0, 0, 1, 1, 1, 1, 2]


@given(st.sampled_from(LANGUAGES), st.text("()[]{}\"'#\\/*:;,ab1 \nif", max_size=60), st.data())
def test_words_of_any_length_end_where_their_signs_do(language, text, data):
    """And no text, however broken, raises or leaves a table."""
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    whole, parts = Constructs(language), Constructs(language)
    fits = [whole.feed(sign) for sign in text]
    pieces = [text[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    fit_parts = [parts.feed(piece) for piece in pieces]
    assert all(fit_parts) is all(fits)
    assert parts.ids() == whole.ids()
    assert all(0 <= value < size for value, size in zip(whole.ids(), SIZES.values(), strict=True))
    assert parts.may_end() is whole.may_end()


def test_a_copy_shares_no_line_with_what_it_is_a_copy_of():
    one = Constructs("python")
    other = one.copy()
    one.feed("f([")
    other.feed(" ")
    assert dict(zip(SIZES, other.ids(), strict=True))["brackets"] == 0


def test_a_copy_grows_by_itself():
    one = Constructs("python")
    one.feed("f(")
    other = one.copy()
    other.feed("[")
    assert one.ids() != other.ids()
    one.feed("[")
    assert one.ids() == other.ids()


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("python", "f(]"),
        ("python", "x)"),
        ("python", "if a:\nb"),
        ("python", "if a:\n    b\n  c"),
        ("python", "a\n  b"),
        ("python", "x = 'a\n"),
        ("python", "x = $a"),
        ("python", "if a:\n    b\n\tc"),
        ("java", "f() }"),
        ("java", "{ ( }"),
        ("java", 'String a = "b\n'),
    ],
)
def test_what_breaks_a_program_is_said_and_is_an_error(language, text):
    assert not Constructs(language).feed(text)
    if language == "python":
        with pytest.raises(SyntaxError):
            ast.parse(text)


@pytest.mark.parametrize(
    ("language", "text", "may_end"),
    [
        ("python", "def f():\n    return 1", True),
        ("python", "def f():\n    return 1  # so", True),
        ("python", "def f():", False),
        ("python", "def f():\n    ", False),
        ("python", "x = [1", False),
        ("python", "x = '''a'", False),
        ("python", "x = 1 + \\", False),
        ("python", "", False),
        ("java", "int f() { return 1; }", True),
        ("java", "int f() { return 1; } // so", True),
        ("java", "int f() { return 1;", False),
        ("java", "int f()", False),
        ("java", "int f() { } /* so", False),
    ],
)
def test_a_program_ends_where_nothing_is_open(language, text, may_end):
    constructs = Constructs(language)
    constructs.feed(text)
    assert constructs.may_end() is may_end
