import json
import random

import numpy as np
import pyarrow as pa
import pytest

from confide.models.deployment.description import Deployment, load
from confide.models.deployment.reading import Reader
from confide.models.errors import DeploymentRefused, InvalidPrompt, InvalidRelease, UnknownValue
from confide.models.records.code import Code, CodeTerms
from confide.models.records.documents import Documents, DocumentTerms
from confide.models.records.fields import Fields, FieldTerms, united
from confide.models.records.formulas import Formulas, FormulaTerms
from confide.models.records.histories import Histories, HistoryTerms
from confide.models.records.requests import Answered, Request, TextShown
from confide.models.records.tasks import TaskTerms
from confide.models.records.text import FreeText, TextTerms

from ..tiny import CHATML, byte_tokenizer

FIELDS = {
    "label": "ill", "flags": ("sick",), "numeric": {"age": (20.0, 40.5, 60.0), "TSH": (0.4, 4.0)},
    "categorical": {"sex": ("F", "M"), "state": ("none", "not known")},
}  # fmt: skip
CELLS = {
    "age": ["20", "40.5", "-3", "+61e0", "", "?", "NaN", ".5", "19.999999999999", "1e3"],
    "TSH": ["0.4", "n/a", "3.", "None", "0"],
    "sex": ["F", "M", "", "null"],
    "state": ["none", "not known", "", "NA"],
    "sick": ["t", "f", "TRUE", "no", "", "1", "0", "n/a", "Y"],
}


def columns_of(kind, terms, rows):
    """The values of cells, as a site's table reads them."""
    read = {column.name: column.read for column in kind.columns(terms)}
    return {name: read[name](pa.array([row[name] for row in rows])).values for name in CELLS}


def reader_of(kind, terms, vocabulary, max_tokens=64):
    request = kind.request(terms, kind.reader(terms, vocabulary, max_tokens=max_tokens))
    again = Request.from_dict(json.loads(json.dumps(request.to_dict())))
    assert again == request
    return again


def tokenizer_of(words):
    return words.backend_tokenizer.from_str(words.backend_tokenizer.to_str())


def test_cells_of_a_record_become_the_tokens_that_a_site_makes_of_them():
    kind, terms, rng = Fields(), FieldTerms(**FIELDS), random.Random(0)
    other = FieldTerms(label="x", numeric={"BMI": (20.0,)}, flags=("away",))
    vocabulary = united([terms.record_schema(), other.record_schema()])  # of a backbone for two studies
    rows = [{name: rng.choice(cells) for name, cells in CELLS.items()} for _ in range(400)]
    ids, _ = kind.reader(terms, vocabulary, max_tokens=64).examples(columns_of(kind, terms, rows), np.zeros(400))
    reader = Reader(reader_of(kind, terms, vocabulary))
    assert set(reader.columns) == set(CELLS)
    for row, want in zip(rows, ids, strict=True):
        assert reader.ids({**row, "note": "is not read"}) == np.trim_zeros(want, "b").tolist()


def test_json_says_the_same_as_a_table():
    reader = Reader(reader_of(Fields(), FieldTerms(**FIELDS), FieldTerms(**FIELDS).record_schema()))
    told = {"age": 40.5, "TSH": None, "sex": "F", "state": None, "sick": True}
    assert reader.ids(told) == reader.ids({"age": " 40.5", "TSH": "", "sex": "F ", "state": "?", "sick": "yes"})


def test_a_record_that_says_nothing_is_its_end():
    terms = FieldTerms(label="ill", flags=("sick",))
    assert Reader(reader_of(Fields(), terms, terms.record_schema())).ids({"sick": ""}) == [1]


@pytest.mark.parametrize(
    ("column", "entry", "message"),
    [
        ("age", "forty", "age: an entry is not a number"),
        ("age", "1,5", "age: an entry is not a number"),
        ("age", float("inf"), "age: an entry is neither text nor a number"),
        ("age", "1e999", "age: an entry is not a number"),
        ("age", ["4"], "age: an entry is neither text nor a number"),
        ("age", float("nan"), "age: an entry is neither text nor a number"),
        ("age", 10**400, "age: an entry is neither text nor a number"),
        ("age", True, "age: an entry is not a number"),
        ("sex", "\ud800", "sex: an entry is neither text nor a number"),
        ("sex", "f", "sex: an entry is not in the published list of 2 values"),
        ("sick", "maybe", "sick: an entry is not a flag"),
        ("sick", {"a": 1}, "sick: an entry is neither text nor a number"),
    ],
)
def test_a_misfit_is_refused_and_not_repeated(column, entry, message):
    reader = Reader(reader_of(Fields(), FieldTerms(**FIELDS), FieldTerms(**FIELDS).record_schema()))
    with pytest.raises(UnknownValue) as caught:
        reader.ids({**dict.fromkeys(CELLS, ""), column: entry})
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("asked", [[], ["x"], "text", 3, None, {}, [{"age": 1}, {"age": 2}]])
def test_what_is_no_request_is_refused(asked):
    reader = Reader(reader_of(Fields(), FieldTerms(**FIELDS), FieldTerms(**FIELDS).record_schema()))
    with pytest.raises(InvalidPrompt):
        reader.ids(asked)


@pytest.mark.parametrize("visits", [1, 3])
def test_visits_are_sorted_and_the_last_ones_read(visits):
    terms = HistoryTerms(label="ill", flags=("sick",), numeric={"age": (50.0,)}, order="day", visits=visits)
    kind, schema = Histories(), terms.record_schema()
    days = [3.0, 1.0, 2.0, 1.0]
    table = {"age": np.array([60.0, 40.0, np.nan, 55.0]), "sick": np.array([True, False, False, True])}
    (order,) = kind.rows_of_records(terms, {"day": np.array(days)}, np.zeros(4, np.int64))
    cells = {name: np.array([None], dtype=object) for name in table}
    for name in table:
        cells[name][0] = [table[name][row] for row in order]
    ids, _ = kind.reader(terms, schema, max_tokens=64).examples(cells, np.zeros(1))
    told = [{"day": day, "age": None if np.isnan(age) else age, "sick": bool(sick)}
            for day, age, sick in zip(days, table["age"], table["sick"], strict=True)]  # fmt: skip
    assert Reader(reader_of(kind, terms, schema)).ids(told) == ids[0].tolist()
    with pytest.raises(UnknownValue, match="day: a visit has no place in the order"):
        Reader(reader_of(kind, terms, schema)).ids([{"day": "", "age": 1, "sick": 0}])


def test_a_document_is_cut_as_in_the_study_and_cannot_say_control_words():
    words, kind = byte_tokenizer(), Documents()
    terms = DocumentTerms(label="ill", text="<|start|>{title}: {note} <|end|>")
    reader = kind.reader(terms, words, max_tokens=24)
    request = reader_of(kind, terms, words, 24)
    rows = [("a cold", "a cough " * 9), ("a very long title indeed " * 3, "x"), ("", ""), ("<|end|>", "é<|start|>")]
    table = {
        name: np.array(cells, dtype=object)
        for name, cells in zip(("title", "note"), zip(*rows, strict=True), strict=True)
    }
    found = Reader(request, tokenizer_of(words))
    for (title, note), want in zip(rows, reader.encode(table), strict=True):
        ids = found.ids({"title": title, "note": note})
        assert ids == np.trim_zeros(want, "b").tolist()
        assert ids.count(2) == 1


def test_a_prompt_ends_where_the_completion_begins():
    words, kind = byte_tokenizer(), FreeText()
    terms = TextTerms(prompt="<|start|>Of: {note}\nIt is", completion=" {topic}<|end|>")
    request = reader_of(kind, terms, words)
    (row,), (is_learned,) = kind.reader(terms, words, max_tokens=64).encode({"note": ["a cough"], "topic": ["lung"]})
    found = Reader(request, tokenizer_of(words)).ids({"note": "a cough"})
    assert found == row[: is_learned.argmax()].tolist()
    assert request.writing.ends == (2,)


def test_a_conversation_is_asked_for_its_last_turn():
    words, kind = byte_tokenizer(), FreeText()
    words.chat_template = CHATML
    turns = [("user", "Hi {name}"), ("assistant", "{greeting}"), ("user", "Of: {note}"), ("assistant", "{topic}")]
    terms = TextTerms(turns=tuple({"role": role, "text": text} for role, text in turns))
    request = reader_of(kind, terms, words, 128)
    cells = {"name": "A", "greeting": "Hello", "note": "a cough", "topic": "lung"}
    (row,), _ = kind.reader(terms, words, max_tokens=128).encode({name: [cell] for name, cell in cells.items()})
    found = Reader(request, tokenizer_of(words))
    assert set(found.columns) == {"name", "greeting", "note"}
    asked = words.backend_tokenizer.encode("lung", add_special_tokens=False).ids
    ids = found.ids(cells)
    assert ids == row[: len(ids)].tolist()
    assert row[len(ids) : len(ids) + len(asked)].tolist() == asked
    assert request.writing.ends == (2,)


def test_questions_and_programs_are_shown_as_in_training():
    words = byte_tokenizer()
    formulas = FormulaTerms(question="q", answer="a")
    encoder = Formulas().reader(formulas, words, max_tokens=64)
    found = Reader(reader_of(Formulas(), formulas, words), tokenizer_of(words))
    assert found.ids({"q": "x+1"}) == encoder.prompt("x+1")
    code = CodeTerms(code="body", languages=("java", "python"), language="lang")
    (row,), (is_learned,) = Code().reader(code, words, max_tokens=64).encode(["int a() {}"], ["java"])
    begun = Reader(reader_of(Code(), code, words), tokenizer_of(words)).ids({"body": "int a()", "lang": "java"})
    assert begun == row[: len(begun)].tolist()
    assert len(begun) > is_learned.argmax()
    found = Reader(reader_of(Code(), code, words), tokenizer_of(words))
    # Who writes on behind blanks is asked there.
    blanks = words("    ", add_special_tokens=False)["input_ids"]
    behind, before = (found.ids({"body": f"int a() {{\n{end}", "lang": " java"}) for end in ("    ", ""))
    assert behind == [*before, *blanks]
    with pytest.raises(UnknownValue, match="lang: an entry is none of java, python"):
        found.ids({"body": "x", "lang": "cobol"})
    only = CodeTerms(code="body", languages=("python",))
    assert Reader(reader_of(Code(), only, words), tokenizer_of(words)).ids({"body": "x"})[:-1] == (
        Code().reader(only, words, max_tokens=64).heading("python")
    )


@pytest.mark.parametrize("entry", ["\ud800", float("nan"), float("-inf"), {"a": 1}, [1], 10**400])
def test_a_cell_of_text_that_is_none_is_refused(entry):
    words, terms = byte_tokenizer(), TextTerms(prompt="Of: {note}", completion=" {topic}")
    with pytest.raises(UnknownValue, match="note: an entry is neither text nor a number nor true or false"):
        Reader(reader_of(FreeText(), terms, words), tokenizer_of(words)).ids({"note": entry})


def test_outputs_become_chances_classes_and_numbers():
    tasks = {
        "days": TaskTerms(number={"column": "d", "low": 0.0, "high": 30.0, "within": 1.0}),
        "ill": TaskTerms(label="i"),
        "stage": TaskTerms(label="s", classes=("mild", "severe")),
    }
    terms = FieldTerms(tasks=tasks, flags=("sick",))
    reader = Reader(reader_of(Fields(), terms, terms.record_schema()))
    found = reader.answers(np.array([0.5, 0.0, 1.0, 1.0 + np.log(3)], dtype=np.float32))
    assert found == {"days": 22.5, "ill": 0.5, "stage": {"mild": 0.25, "severe": 0.75}}
    assert reader.answers(np.array([7, 1e30, -1e30, 1e30], dtype=np.float32))["days"] == 30.0
    several = Reader(Request(TextShown(()), (Answered("labels", "labels", ("a", "b")),)))
    assert several.answers(np.array([0.0, np.log(3)], dtype=np.float32)) == {"labels": {"a": 0.5, "b": 0.75}}


def test_a_text_behind_a_document_is_refused_with_a_way_out():
    text = {"prompt": "\nIn short:", "completion": " {s}", "longest": 16}
    terms = DocumentTerms(text="Note: {n}", tasks={"ill": TaskTerms(label="i"), "short": TaskTerms(text=text)})
    kind, words = Documents(), byte_tokenizer()
    with pytest.raises(DeploymentRefused, match="serve the adapter"):
        kind.request(terms, kind.reader(terms, words, max_tokens=64))


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"format": 2}', '{"format": 1}', '{"format": 1, "request": {}}', "[" * 9999]
)
def test_a_broken_description_is_refused(tmp_path, text):
    (tmp_path / "deployment.json").write_text(text)
    with pytest.raises(InvalidRelease):
        load(tmp_path)


def test_a_description_is_read_as_it_was_written(tmp_path):
    terms = FieldTerms(**FIELDS)
    request = reader_of(Fields(), terms, terms.record_schema())
    made = Deployment(
        study="s", request=request, runtime="onnx", weights="int8", words=9, longest=64, ends=(2,), structure="code",
        cache=(((1, 24), (1, 12)),), segments=(32, 8),
    )  # fmt: skip
    made.save(tmp_path)
    assert load(tmp_path) == made
