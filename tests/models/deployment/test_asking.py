"""Requests from files and command lines, as they are and as they should not be."""

import csv
import io
import json
import sys
from types import SimpleNamespace

import pytest

from confide.models.deployment import asking, triton_server
from confide.models.deployment.asking import _lines, _of_file, _told, parser, requests_of
from confide.models.errors import InvalidPrompt
from confide.models.records.requests import CellShown, FieldsShown, FieldWords, Request, TextShown

HISTORY = Request(FieldsShown((FieldWords("age", "number", (2, 3, 4), cuts=(50.0,)),), 1, visits=3, order="day"))
TEXT = Request(TextShown((CellShown("question"),)))


def told(request, *words):
    return [*requests_of(parser().parse_args([*map(str, words)]), request)]


def table(folder, text, name="rows.csv"):
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_visits_of_a_person_are_one_request(tmp_path):
    path = table(tmp_path, "id, day,age\na,1,40\nb,1,50\n a ,2,60\n")
    found = told(HISTORY, path, "--by", "id")
    assert [[visit["day"] for visit in visits] for visits in found] == [["1", "2"], ["1"]]


@pytest.mark.parametrize(
    ("text", "flags", "message"),
    [
        ("id,day,age\na,1,40\n", (), "say with --by"),
        ("id,day,age\na,1,40\n", ("--by", "person"), "say with --by"),
        ("id,day,age\n,1,40\n", ("--by", "id"), "a row has nothing in id"),
        ("id,day,age\na,1\n", ("--by", "id"), "another number of cells"),
        ("id,day,day\na,1,40\n", ("--by", "id"), "several columns day"),
        ("id,day,age\n" + "x" * 2**21, ("--by", "id"), "the table is no CSV"),
        ("id,day,äge\n".encode("latin-1"), ("--by", "id"), "not UTF-8"),
    ],
)
def test_a_table_that_is_none_is_refused_in_a_sentence(tmp_path, text, flags, message):
    with pytest.raises(InvalidPrompt, match=message):
        told(HISTORY, table(tmp_path, text), *flags)


def test_long_cells_of_a_table_leave_the_limit_of_others_as_it_was(tmp_path):
    before, cell = csv.field_size_limit(), "x" * 2**18
    rows = _of_file(table(tmp_path, f"question\n{cell}\n{cell}\n"), None, TEXT)
    assert next(rows) == {"question": cell}
    assert csv.field_size_limit() == before
    assert list(rows) == [{"question": cell}]
    with pytest.raises(InvalidPrompt, match="the table is no CSV"):
        told(TEXT, table(tmp_path, "question\n" + "x" * 2**21))
    assert csv.field_size_limit() == before


def test_a_row_that_is_torn_is_refused_in_its_place(tmp_path):
    whole, short, long = told(TEXT, table(tmp_path, 'question,note\n"a, b",c\nx\ny,z,u\n'))
    assert whole == {"question": "a, b", "note": "c"}
    assert "another number of cells" in str(short) == str(long)


def test_a_long_line_is_one_request_that_is_refused():
    text = "x" * 2**20 + json.dumps({"question": "behind"}) + "\n" + json.dumps({"question": "next"}) + "\n"
    first, second = _lines(io.StringIO(text))
    assert "longer than 1,048,576 characters" in str(first)
    assert second == {"question": "next"}
    exact = "x" * (2**20 - 1) + "\n"
    assert [str(each) for each in _lines(io.StringIO(exact + "[" * 9999))] == ["a line is no JSON"] * 2


def test_bytes_that_are_no_text_end_a_file_with_a_sentence(tmp_path):
    path = table(tmp_path, b'{"question": 1}\n' + b"\xff" * 2**17, "rows.jsonl")
    with pytest.raises(InvalidPrompt, match="not UTF-8"):
        list(_told(_of_file(path, None, TEXT)))


def test_a_column_of_the_command_line_may_end_like_a_file():
    assert told(TEXT, "question=the table a.csv") == [{"question": "the table a.csv"}]
    with pytest.raises(InvalidPrompt, match="write COLUMN=VALUE for question"):
        told(TEXT, "what")


@pytest.mark.parametrize(
    "flags",
    [("--temperature", "nan"), ("--temperature", "-1"), ("--longest", "0"), ("--seed", "-1"), ("--threads", "0")],
)
def test_numbers_that_mean_nothing_are_refused(flags, capsys):
    with pytest.raises(SystemExit):
        parser().parse_args(["-", *flags])
    assert "must be" in capsys.readouterr().err


def said(monkeypatch, main, given):
    """What a program prints on streams of another encoding, as bytes."""
    told, printed = (io.TextIOWrapper(io.BytesIO(each), encoding="cp1252") for each in (given, b""))
    monkeypatch.setattr(sys, "stdin", told)
    monkeypatch.setattr(sys, "stdout", printed)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    return printed.buffer.getvalue()


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_requests_and_answers_are_utf8_in_any_locale(mark, monkeypatch, tmp_path):
    request, words = '{"question": "\u5b57 \u0142"}\n'.encode(), "\u5b57 \u0142".encode()
    (tmp_path / "models" / "it" / "1").mkdir(parents=True)
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "ask.py"), "-"])

    class Echo:
        deployment = SimpleNamespace(request=TEXT)

        def __init__(self, folder, threads):
            pass

        def answer(self, requests, **_):
            return [{"text": each["question"]} for each in requests]

    monkeypatch.setattr(asking, "Answering", Echo)
    assert said(monkeypatch, asking.main, mark + request) == b'{"text": "' + words + b'"}\n'

    def answered(client, kind, model, cells):
        return (json.dumps(json.loads(cell), ensure_ascii=False).encode() for cell in cells)

    monkeypatch.setattr(triton_server, "load", lambda folder: Echo.deployment)
    monkeypatch.setattr(triton_server, "_client", lambda _: (None, SimpleNamespace(InferenceServerException=OSError)))
    monkeypatch.setattr(triton_server, "_answered", answered)
    assert said(monkeypatch, triton_server.ask, mark + request) == request


def test_a_triton_server_is_sent_few_requests_and_few_bytes_at_a_time(monkeypatch):
    monkeypatch.setattr(triton_server, "_BYTES", 100)
    bad, small, large = InvalidPrompt("form: no such file"), {"note": "x"}, {"note": "x" * 90}
    found = list(triton_server._bundles([small, bad, large, large, small, {"note": "x" * 999}, *[small] * 70]))
    assert [len(each) for each in found[:3]] == [2, 1, 1]
    assert found[0][1] is bad
    assert all(sum(len(cell) for cell in each if isinstance(cell, bytes)) <= 100 for each in found if len(each) > 1)
    assert sum(map(len, found)) == 76
    monkeypatch.setattr(triton_server, "_BYTES", 10**9)
    assert [len(each) for each in triton_server._bundles(iter([small] * 130))] == [64, 64, 2]
    assert list(triton_server._bundles([])) == []
