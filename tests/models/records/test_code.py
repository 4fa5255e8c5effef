import ast

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from confide.models.adapters import AdapterConfig, attach
from confide.models.backbones.family import BackboneConfig
from confide.models.backbones.text_pretraining import TextPretrainingConfig, build_text, fit_text
from confide.models.decoding.writing import Written
from confide.models.errors import BackboneMismatch
from confide.models.evaluation.mutants import mutants
from confide.models.records.code import Code, CodeEncoder, CodeTerms
from confide.models.records.kind import Examples
from confide.models.records.vocabularies import character_tokenizer, code_tokenizer
from confide.models.structure.code import SPLIT, parts_of
from confide.privacy.mechanism.workers import made_up

from ..tiny import byte_tokenizer

PYTHON = "def add(left, right):\n    total = left + right\n    if total > 9:\n        return 9\n    return total"
JAVA = "int add(int left, int right) {\n    int total = left + right;\n    return total;\n}"
LINES = PYTHON.split("\n")
TOKENIZER = code_tokenizer([PYTHON])


def terms(**changes):
    return CodeTerms(**{"code": "function", "shown": 6, "max_written": 40, **changes})


@pytest.fixture(scope="module")
def tokenizer():
    return code_tokenizer([PYTHON, JAVA], words=200)


def encoder(tokenizer, max_tokens=128, **changes):
    return CodeEncoder(terms(**changes), tokenizer, max_tokens)


def shown_and_learned(found, ids, mask):
    """Texts of what is shown and of what is learned; the end is the last that is learned."""
    assert mask[: int(mask.argmax())].sum() == 0
    learned = ids[mask].tolist()
    return found.text(ids[: int(mask.argmax())].tolist()), found.text(learned), learned[-1] == found.end


def test_a_program_is_learned_and_its_beginning_is_shown(tokenizer):
    found = encoder(tokenizer)
    ids, mask = found.encode([PYTHON], ["python"])
    heading, learned, has_end = shown_and_learned(found, ids[0], mask[0])
    assert (heading, learned, has_end) == ("python\n", PYTHON, True)
    shown = found.shown(ids[0], mask[0])
    assert len(shown) == int(mask[0].argmax()) + 6
    assert parts_of(found.text(shown)) == ("python", PYTHON[: len(found.text(shown)) - len("python\n")], "")


def test_a_program_shorter_than_what_is_shown_is_shown_without_its_end(tokenizer):
    found = encoder(tokenizer, shown=50)
    ids, mask = found.encode(["x = 1", PYTHON], ["python", "python"])
    assert parts_of(found.text(found.shown(ids[0], mask[0]))) == ("python", "x = 1", "")


def test_a_gap_is_learned_behind_what_stands_around_it(tokenizer):
    found = encoder(tokenizer, fill_in=1.0)
    ids, mask = found.encode([PYTHON], ["python"])
    shown, learned, has_end = shown_and_learned(found, ids[0], mask[0])
    language, before, behind = parts_of(found.text(found.shown(ids[0], mask[0])))
    assert (language, has_end) == ("python", True)
    assert before + learned + behind == PYTHON
    assert shown == f"python\n{behind}{SPLIT}{before}"
    assert before.startswith(LINES[0])
    assert behind.endswith(LINES[-1])
    assert learned.startswith("\n")
    assert learned.count("\n") >= 1


@given(st.lists(st.sampled_from(["a = 1", "b = f(2)", "c = [3]"]), min_size=1, max_size=12), st.integers(0, 10**6))
def test_every_gap_leaves_the_first_line_and_the_last(lines, number):
    program = "\n".join([f"x{number} = 0", *lines])
    gap = CodeEncoder(terms(fill_in=1.0), TOKENIZER, 64)._gap(program)
    if program.count("\n") < 2:
        assert gap is None
    else:
        start, stop = gap
        assert 1 <= start < stop <= program.count("\n")


def test_the_share_of_gaps_is_that_of_the_terms_and_each_is_the_records_own():
    found = CodeEncoder(terms(fill_in=0.3), TOKENIZER, 64)
    programs = [f"x = {number}\ny = 1\nz = 2\nw = 3" for number in range(2000)]
    gaps = [found._gap(program) for program in programs]
    assert sum(gap is not None for gap in gaps) / 2000 == pytest.approx(0.3, abs=0.04)
    assert {gap for gap in gaps if gap} == {(1, 2), (1, 3), (2, 3)}
    assert [found._gap(program) for program in programs[::-1]] == gaps[::-1]
    assert [CodeEncoder(terms(), TOKENIZER, 64)._gap(program) for program in programs[:50]] == [None] * 50


def test_a_program_that_is_cut_has_no_end(tokenizer):
    found = encoder(tokenizer, max_tokens=20)
    ids, mask = found.encode([PYTHON, "x = 1"], ["python", "python"])
    assert ids.shape == (2, 20)
    assert found.end not in ids[0]
    assert found.end in ids[1]
    assert mask.any(1).all()


def test_a_gap_that_leaves_nothing_to_learn_is_none(tokenizer):
    """What is shown of a long program would fill the row."""
    long = "\n".join([PYTHON, *(f"    value_{number} = total" for number in range(40))])
    found = encoder(tokenizer, max_tokens=64, fill_in=1.0)
    ids, mask = found.encode([long], ["python"])
    assert mask.any()
    assert found.text(ids[0].tolist()).startswith(f"python\n{LINES[0]}")
    assert not found.parses(Written("", True), ids[0], np.zeros_like(mask[0]))  # and no language is no program


def test_examples_read_the_language_column(tokenizer):
    columns = {"function": np.array([PYTHON, JAVA], dtype=object), "lang": np.array(["python", "java"], dtype=object)}
    found = encoder(tokenizer, languages=("python", "java"), language="lang")
    ids, mask = found.examples(columns, None)
    assert found.text(ids[1].tolist()).startswith(f"java\n{JAVA}")
    alone, _ = encoder(tokenizer, languages=("java",)).examples({"function": columns["function"][1:]}, None)
    assert np.array_equal(alone[0], ids[1][: alone.shape[1]])
    assert mask.dtype == np.bool_


def test_a_published_tokenizer_reads_code_too():
    found = encoder(byte_tokenizer())
    ids, mask = found.encode([PYTHON], ["python"])
    assert "".join(shown_and_learned(found, ids[0], mask[0])[:2]) == f"python\n{PYTHON}"


def test_a_tokenizer_that_no_program_can_be_read_by_is_refused():
    other = character_tokenizer()
    other.eos_token = None
    with pytest.raises(BackboneMismatch, match="ends a text"):
        encoder(other)
    without_lines = character_tokenizer()
    core = without_lines.backend_tokenizer
    from tokenizers.normalizers import Replace

    core.normalizer = Replace("\n", " ")
    with pytest.raises(BackboneMismatch, match="add up"):
        encoder(without_lines)
    encoder(character_tokenizer())
    with pytest.raises(BackboneMismatch, match="add up"):
        encoder(character_tokenizer(), fill_in=0.5)  # which has no sign for a gap


@pytest.mark.parametrize(
    ("written", "is_fit"),
    [
        (Written("\n    return left", True), True),
        (Written("\n    return left", False), False),
        (Written("\nreturn left", True), False),
        (Written(" return left", True), True),
        (Written("", True), False),
    ],
)
def test_a_program_parses_with_what_is_shown_of_it(tokenizer, written, is_fit):
    program = "def add(left):\n    return left"
    found = encoder(tokenizer, shown=len(tokenizer("def add(left):", add_special_tokens=False)["input_ids"]))
    ids, mask = found.encode([program], ["python"])
    assert found.parses(written, ids[0], mask[0]) is is_fit


def test_a_gap_parses_only_between_what_stands_around_it(tokenizer):
    found = encoder(tokenizer, fill_in=1.0)
    program = "def f(x):\n    if x:\n        return 1"
    ids, mask = found.encode([program], ["python"])
    assert found.parses(Written("\n    while x:", True), ids[0], mask[0])
    assert not found.parses(Written("\n    x = 1", True), ids[0], mask[0])  # and then an indented line


def test_boundaries_are_line_breaks_closing_signs_and_the_end(tokenizer):
    found = encoder(tokenizer)
    ids, _ = found.encode([PYTHON], ["python"])
    words = [found.texts[token] for token in ids[0].tolist() if found.is_boundary(token)]
    assert words == ["\n", ")", ":", "\n    ", "\n    ", ":", "\n        ", "\n    ", ""]


@pytest.mark.parametrize(
    ("cell", "languages", "is_fit"),
    [
        (PYTHON, ("python",), True),
        (JAVA, ("python",), False),
        (JAVA, ("python", "java"), True),
        ("def f(:\n    pass", ("python", "java"), False),
        ("def f():\n\tif x:\n        pass", ("python",), False),
        ("if x:\n\ty = 1", ("python",), False),
        ("x = 1\x00", ("python",), False),
        (f"x = 1{SPLIT}", ("python",), False),
        ("x = '" + "a" * 300 + "'", ("python",), False),
        ("x=1;" * 60, ("python",), False),
        ("x = 1\n" * 4000, ("python",), False),
        ("x = 1\n" * 2_000_000, ("python",), False),
        ("x = 1\r\ny = 2", ("python",), False),
        ("größe = 1  # Größe in cm", ("python",), False),
        ("", ("python",), False),
        ("MOVE A TO B.", ("python", "java"), False),
    ],
    ids=lambda value: str(value)[:20],
)
def test_cells_that_do_not_fit_are_counted(cell, languages, is_fit):
    column = {"language": None if len(languages) == 1 else "lang"}
    (column, *_) = Code().columns(terms(languages=languages, **column))
    found = column.read(pa.array(["x = 1", cell]))
    assert found.misfit.tolist() == [False, not is_fit] if "python" in languages else [True, not is_fit]
    assert is_fit or cell not in found.values.tolist()


def test_a_language_must_be_one_of_the_studys():
    _, column = Code().columns(terms(languages=("python", "java"), language="lang"))
    found = column.read(pa.array(["java", "python", "cobol", ""]))
    assert found.misfit.tolist() == [False, False, True, True]
    assert found.values.tolist()[:2] == ["java", "python"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, []),
        ({"languages": ("python", "java"), "language": "lang"}, []),
        ({"languages": ("python", "java")}, ["data.code.language"]),
        ({"language": "lang"}, ["data.code.language"]),
        ({"languages": ("python", "java"), "language": "function"}, ["columns of their own"]),
        ({"shown": 100}, ["nothing to write"]),
    ],
)
def test_contradictions_are_said(changes, said):
    found = Code().problems(terms(**changes), max_tokens=64)
    assert len(found) == len(said)
    assert all(part in problem for part, problem in zip(said, found, strict=True))


def test_a_language_is_named_once():
    with pytest.raises(ValidationError, match="more than once: java"):
        terms(languages=("java", "java"))


def test_a_study_says_what_is_shown_and_learned():
    assert Code().facts(terms()) == {
        "languages": ["python"], "columns": ["function (program, learned)"],
    }  # fmt: skip
    assert Code().facts(terms(fill_in=0.5))["programs with a gap to fill in"] == "50%"
    assert Code().judged(terms()) == "programs"


@pytest.fixture(scope="module")
def trained(tokenizer):
    """A model that has learned a few functions by heart, and its encoder."""
    names = ["left", "right", "total"]
    programs = [f"def add({a}, {b}):\n    return {a} + {c}" for a in names for b in names for c in names]
    found = encoder(tokenizer, grammar=False, temperature=0.0)
    ids, mask = found.encode(programs, ["python"] * len(programs))
    rows = [(row[row > 0].tolist(), own[row > 0].tolist()) for row, own in zip(ids, mask, strict=True)]
    model = build_text(tokenizer, "code", BackboneConfig(hidden=32, experts=4, max_tokens=64))
    fit_text(model, rows, TextPretrainingConfig(tokens=40_000, batch_tokens=400), lambda done, total: None)
    adapted = attach(model, AdapterConfig(rank=1, alpha=1.0, targets=("o_proj",), seed="s"))
    return adapted, found, Examples(ids, mask, np.arange(len(ids)) // 3)


@pytest.mark.slow
def test_programs_that_parse_are_counted_one_by_one_and_together(trained):
    adapted, found, examples = trained
    own = terms(grammar=False, temperature=0.0)
    table = Code().evaluate(own, found, adapted, [examples])
    with torch.no_grad():
        judged = [Code().judge(own, found, adapted, examples.ids[i], examples.targets[i]) for i in range(0, 27, 5)]
    written = found.written(adapted.model, examples.ids, examples.targets)
    shown = [parts_of(found.text(found.shown(*row))) for row in zip(examples.ids, examples.targets, strict=True)]
    fits = []
    for text, (_, before, behind) in zip(written, shown, strict=True):
        try:
            ast.parse(before + text.text + behind)
            fits.append(text.is_ended)
        except SyntaxError:
            fits.append(False)
    assert table["parses"]["value"] == np.mean(fits) > 0.9
    assert [label for label, _ in judged] == [float(fits[i]) for i in range(0, 27, 5)]
    assert all(np.isfinite(score) for _, score in judged)
    assert table["boundaries"]["value"] > 0.9
    assert table["preferred"]["value"] > 0.8
    assert table["records"] == 27
    assert 1 < table["perplexity"]["value"] < 3


@pytest.mark.slow
def test_a_program_is_preferred_if_it_is_likelier_than_its_mutant(trained):
    adapted, found, examples = trained
    likelier = []
    for ids, mask in zip(examples.ids, examples.targets, strict=True):
        other, learned = found.mutant(ids, mask)
        program = parts_of(found.text(ids[: mask.nonzero()[0][-1]].tolist())).before
        mutant = parts_of(found.text(other[0, :-1].tolist())).before
        assert mutant in {each.text for each in mutants("python", program)}
        pair = []
        for row, own in ((ids[None], mask[None]), (other, learned)):
            with torch.no_grad():
                logits = adapted.model(input_ids=torch.from_numpy(row)).logits.log_softmax(-1)
            places = np.flatnonzero(own[0])
            pair.append(sum(float(logits[0, place - 1, row[0, place]]) for place in places))
        likelier.append(pair[0] > pair[1])
    table = Code().evaluate(terms(grammar=False, temperature=0.0), found, adapted, [examples])
    assert table["preferred"]["value"] == np.mean(likelier)


def test_programs_without_a_place_for_an_error_fill_ins_and_cut_ones_have_no_mutant(tokenizer):
    plain = "def f(x):\n    return x + 1"
    assert encoder(tokenizer).mutant(*(each[0] for each in encoder(tokenizer).encode([plain], ["python"]))) is not None
    for own, program in ((encoder(tokenizer), "x"), (encoder(tokenizer, fill_in=1.0), PYTHON)):
        assert own.mutant(*(each[0] for each in own.encode([program], ["python"]))) is None
    short = CodeEncoder(terms(), tokenizer, 8)
    assert short.mutant(*(each[0] for each in short.encode([plain], ["python"]))) is None


@pytest.mark.slow
def test_what_is_learned_is_never_an_input(trained):
    adapted, found, examples = trained
    other = examples.ids.copy()
    for row, own in zip(other, examples.targets, strict=True):
        row[len(found.shown(row, own)) :] = 40
    written = found.written(adapted.model, examples.ids[:5], examples.targets[:5])
    assert found.written(adapted.model, other[:5], examples.targets[:5]) == written


def test_rows_that_only_fill_up_a_group_of_processes_are_judged(trained):
    """A row without a line of language; whatever the model writes behind it is no program."""
    adapted, found, _ = trained
    ids, target = made_up(adapted)
    with torch.no_grad():
        for number in range(12):
            label, _ = Code().judge(terms(), found, adapted, np.array([number, *ids[1:]]), target)
            assert label == 0.0


def test_a_vocabulary_is_made_of_public_programs():
    columns = {"function": np.array([PYTHON, JAVA], dtype=object)}
    tokenizer = Code().vocabulary(terms(), columns)
    ids = tokenizer(PYTHON, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == PYTHON
    assert ids == Code().vocabulary(terms(), columns)(PYTHON, add_special_tokens=False)["input_ids"]
