import pytest
import torch
import tree_sitter
import tree_sitter_python
from hypothesis import given, settings
from hypothesis import strategies as st

from confide.models.structure.code import SPLIT, Code, has_error, parts_of
from confide.models.structure.constructs import SIZES, Constructs
from confide.models.structure.inputs import StructureIds
from confide.models.structure.readers import READERS

READER = READERS["code"]
WORDS = ["python", "\n", "def", " f", "(", "x", ",", " y", ")", ":", "\n    ", "return", " [", "x", ",", " {", "1", "}"]


def said(words):
    prefix = READER.begin()
    return [prefix.feed(word) for word in words]


def test_nodes_are_the_last_of_the_tree_so_far():
    parser = tree_sitter.Parser(tree_sitter.Language(tree_sitter_python.language()))
    rows = {}  # the same row for the same name, wherever it stands in the tree
    for end in range(3, len(WORDS) + 1):
        node = parser.parse("".join(WORDS[2:end]).encode()).root_node
        chain = [node, node, node]
        while node.child_count:
            node = node.children[-1]
            chain = [node, *chain]
        for name, row in zip([each.type for each in chain[:3]], said(WORDS[:end])[-1][:3], strict=True):
            assert rows.setdefault(name, row) == row
    assert len(set(rows.values())) == len(rows) > 8


def test_ids_of_every_prefix_are_the_first_ids_of_the_text():
    ids = StructureIds(READER, ("", *WORDS))  # 0 is padding
    text = torch.arange(1, len(WORDS) + 1)[None]
    whole = ids.of(text)
    for end in range(1, len(WORDS) + 1):
        assert torch.equal(ids.of(text[:, :end]), whole[:, :end])
    prefixes = []
    parts = [ids.next(part, prefixes) for part in (text[:, :7], text[:, 7:8], text[:, 8:])]
    assert torch.equal(torch.cat(parts, dim=1), whole)


def test_the_parts_of_a_text_are_language_before_and_behind():
    assert parts_of("python\na = 1\nb") == ("python", "a = 1\nb", "")
    assert parts_of(f"java\n\n}}{SPLIT}int f() {{") == ("java", "int f() {", "\n}")
    assert parts_of("python") == ("", "", "")


def test_the_rest_are_the_open_constructs():
    constructs = Constructs("python")
    for word, ids in list(zip(WORDS, said(WORDS), strict=True))[2:]:
        constructs.feed(word)
        assert ids[3:] == constructs.ids()


def test_a_text_of_no_language_that_is_known_says_nothing():
    for words in (
        ["cobol", "\n", "MOVE"],
        ["x" * 99, "\n", "f"],
        ["\n"],
        ["python"],
        ["def f(x):"],
        ["py\n", "thon\ndef f("],
    ):
        assert set(said(words)) == {(0,) * len(READER.sizes)}


def test_behind_the_split_a_program_begins_anew():
    shown = ["java", "\n", "}", "}", SPLIT]
    program = ["void f()", " {", " return", ";"]
    assert said([*shown, *program])[5:] == said(["java", "\n", *program])[2:]
    assert said([*shown, *program])[4] == said(["java", "\n"])[1]


@settings(max_examples=60)
@given(st.text("()[]{}\"'#:;,ab1 \nif" + SPLIT + "é\x00", max_size=40))
def test_ids_lie_within_their_tables(text):
    for ids in said(["python\n", *text]):
        assert len(ids) == len(READER.sizes)
        assert all(0 <= place < size for place, size in zip(ids, READER.sizes.values(), strict=True))


@pytest.mark.slow
def test_a_long_program_is_read_by_its_last_lines_alone():
    """The same words stand alike behind some thousand lines and behind a few hundred."""
    line = "    total = total + values[1]\n"
    long, short = READER.begin(), READER.begin()
    for prefix, lines in ((long, 900), (short, 300)):
        prefix.feed("python\ndef f(values):\n")
        for _ in range(lines):
            last = prefix.feed(line)
    assert long.feed("    return total") == short.feed("    return total")
    assert len(last) == len(READER.sizes)


def test_the_tables_are_those_of_constructs_and_three_of_nodes():
    assert list(Code.sizes) == ["leaf", "parent", "grandparent", *SIZES]


@pytest.mark.parametrize(
    ("language", "text", "is_wrong"),
    [
        ("java", "int f() { return 1; }", False),
        ("java", "class A { int f() { return 1; } }", False),
        ("java", "int f() { return 1 }", True),
        ("java", "int f() { return 1;", True),
        ("python", "def f(:", True),
        ("python", "def f(): pass", False),
    ],
)
def test_errors_are_those_of_the_grammar(language, text, is_wrong):
    assert has_error(language, text) is is_wrong
