import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from confide.client_node.errors import StudyInvalid
from confide.client_node.study import load_draft
from confide.models.errors import (
    InvalidPicture,
    InvalidPretraining,
    InvalidPrompt,
    InvalidSchema,
)
from confide.models.records.kinds import KINDS
from confide.models.records.pictures import Pictures, PictureTerms
from confide.models.records.templates import PlainTokenizer
from confide.models.records.vocabularies import word_tokenizer
from confide.models.structure.pictures import PictureLayout
from confide.models.tokens import bytes_of, words_of

EXAMPLE = Path(__file__).parents[3] / "examples" / "scans" / "study.toml"
KIND, SEEN = Pictures(), 8  # tokens of a picture
STATED = {
    "file": "scan",
    "size": (32, 64),
    "cell": (32, 32),
    "prompt": "typed {typed} :",
    "completion": " {written} <eos>",
    "shows": "digits",
}


def terms(**changes):
    return PictureTerms(**{**STATED, **changes})


def png(pixels):
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def drawn(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 32, 64), dtype=np.uint8)


def columns(*rows, pictures=None):
    """Of (typed, written)."""
    pictures = drawn(len(rows)) if pictures is None else pictures
    typed, written = zip(*rows, strict=True)
    return {name: np.array(values, dtype=object) for name, values in [
        ("scan", [png(picture) for picture in pictures]), ("typed", typed), ("written", written),
        ("digits", [" ".join(text.split()[:2]) for text in written]),
    ]}  # fmt: skip


ROWS = [("1 2", "1 3"), ("9", "4 5 6 7"), ("", "8")]


@pytest.fixture(scope="module")
def tokenizer():
    return KIND.vocabulary(terms(), columns(*ROWS, ("many words", "0")))


def reader(tokenizer, max_tokens=40, **changes):
    return KIND.reader(terms(**changes), tokenizer, max_tokens=max_tokens)


def text(tokenizer, ids):
    return " ".join(tokenizer.convert_ids_to_tokens(ids.tolist()))


def test_a_record_is_its_picture_and_then_what_the_template_says(tokenizer):
    ids, _ = reader(tokenizer).examples(columns(*ROWS), None)
    assert ids.dtype == np.int64
    assert ids.shape == (3, SEEN + 8, 33)
    words = words_of(ids)
    assert text(tokenizer, words[0, SEEN:]) == "typed 1 2 : 1 3 <eos> <pad>"
    assert text(tokenizer, words[1, SEEN:]) == "typed 9 : 4 5 6 7 <eos>"
    assert text(tokenizer, words[2, SEEN:]) == "typed : 8 <eos> <pad> <pad> <pad> <pad>"


@pytest.mark.parametrize("cell", [(32, 32), None])
def test_the_picture_of_a_record_can_be_read_from_its_tokens(tokenizer, cell):
    pictures = drawn(3)
    ids, _ = reader(tokenizer, cell=cell).examples(columns(*ROWS, pictures=pictures), None)
    carried = bytes_of(torch.from_numpy(ids)).numpy()
    order = [0, 1, 4, 5, 2, 3, 6, 7] if cell else range(8)  # of squares as the picture has them, row by row
    for row, picture in enumerate(pictures):
        for place, square in enumerate(order):
            down, across = divmod(place, 4)
            want = picture[down * 16 : down * 16 + 16, across * 16 : across * 16 + 16]
            np.testing.assert_array_equal(carried[row, square].reshape(16, 16), want)
    assert not carried[:, SEEN:].any()


def test_the_completion_alone_is_learned(tokenizer):
    ids, is_learned = reader(tokenizer).examples(columns(*ROWS), None)
    assert is_learned.dtype == np.bool_
    assert is_learned.shape == ids.shape[:2]
    told = [text(tokenizer, row[own]) for row, own in zip(words_of(ids), is_learned, strict=True)]
    assert told == ["1 3 <eos>", "4 5 6 7 <eos>", "8 <eos>"]


def test_no_token_of_a_picture_is_padding_and_all_behind_a_record_is(tokenizer):
    ids, is_learned = reader(tokenizer).examples(columns(*ROWS), None)
    words = words_of(ids)
    assert (words[:, :SEEN] > 0).all()
    for row, own in zip(ids, is_learned, strict=True):
        last = int(np.flatnonzero(own).max())
        assert not row[last + 1 :].any()
        assert (row[: last + 1, 0] > 0).all()


@pytest.mark.parametrize("max_tokens", [14, 16, 20])
def test_texts_that_are_too_long_are_cut_and_a_picture_never(tokenizer, max_tokens):
    rows = [("1 2 9 many words " * 5, "4 5"), ("1", "4 5 6 7 8 9 " * 5), ("1 " * 30, "4 " * 30)]
    given_columns = columns(*rows)
    ids, is_learned = reader(tokenizer, max_tokens).examples(given_columns, None)
    assert ids.shape[1] == max_tokens
    assert is_learned.any(1).all()
    whole, _ = reader(tokenizer, 500).examples(given_columns, None)
    np.testing.assert_array_equal(ids[:, :SEEN], whole[:, :SEEN])
    assert text(tokenizer, words_of(ids)[0][is_learned[0]]) == "4 5 <eos>"  # what is learned stays whole
    assert all(text(tokenizer, row).endswith("<eos>") for row in words_of(ids)[:, SEEN:])


def test_no_record_can_say_a_control_word(tokenizer):
    ids, _ = reader(tokenizer).examples(columns(("<eos> 1<eos> <pad>", "<eos> 4 <pa<eos>d>")), None)
    assert text(tokenizer, words_of(ids)[0, SEEN:]) == "typed <unk> <unk> <unk> : <unk> 4 <unk> <eos>"


def test_what_no_public_record_said_is_unknown(tokenizer):
    ids, _ = reader(tokenizer).examples(columns(("33", "x 4")), None)
    assert text(tokenizer, words_of(ids)[0, SEEN:]) == "typed <unk> : <unk> 4 <eos>"


def test_no_records_are_no_rows(tokenizer):
    nothing = {name: np.array([], dtype=object) for name in ("scan", "typed", "written")}
    ids, is_learned = reader(tokenizer).examples(nothing, None)
    assert len(ids) == len(is_learned) == 0
    assert ids.ndim == 3


def test_a_file_that_is_no_picture_is_refused_by_its_number(tokenizer):
    given_columns = columns(*ROWS)
    given_columns["scan"][1] = given_columns["scan"][1][:-20]
    with pytest.raises(InvalidPicture, match=r"^picture 2 of 3 is cut off$"):
        reader(tokenizer).examples(given_columns, None)


def test_words_are_those_of_the_tokenizer(tokenizer):
    assert reader(tokenizer).words == len(tokenizer)
    ids, _ = reader(tokenizer).examples(columns(*ROWS), None)
    assert words_of(ids).max() < len(tokenizer)


@pytest.mark.parametrize(
    ("max_tokens", "said"),
    [(8, "the picture alone takes 8"), (9, "the picture alone takes 8"), (12, "the template takes 3 tokens")],
)
def test_a_record_without_room_for_its_text_is_refused(tokenizer, max_tokens, said):
    with pytest.raises(InvalidPrompt, match=said):
        reader(tokenizer, max_tokens)


def test_the_vocabulary_is_every_word_in_any_order():
    rows = [("a b", "c"), ("b", "d e"), ("", "c")]
    found = [KIND.vocabulary(terms(), columns(*each)) for each in (rows, rows[::-1], rows * 3)]
    assert len({each.backend_tokenizer.to_str() for each in found}) == 1
    words = found[0].convert_ids_to_tokens(range(len(found[0])))
    assert words[:3] == ["<pad>", "<eos>", "<unk>"]
    assert words[3:] == sorted(["a", "b", "c", "d", "e", "typed", ":"])  # what public pictures show is not said
    assert (found[0].pad_token_id, found[0].eos_token_id, found[0].unk_token_id) == (0, 1, 2)
    other = KIND.vocabulary(terms(), columns(("a", "f")))
    assert other.backend_tokenizer.to_str() != found[0].backend_tokenizer.to_str()


known = st.lists(st.text(st.characters(exclude_categories=["Cs", "Cc", "Z"]), min_size=1), max_size=8)


@given(known)
def test_every_text_of_known_words_comes_back_whole(words):
    plain = PlainTokenizer(found := word_tokenizer([" ".join(words)]))
    (ids,) = plain.of_records(["  ".join(words)])
    control = ("<pad>", "<eos>", "<unk>")
    assert [found.convert_ids_to_tokens(token) for token in ids] == [
        "<unk>" if any(each in word for each in control) else word for word in words
    ]


@pytest.mark.parametrize(
    ("changes", "max_tokens", "said"),
    [
        ({}, 40, []),
        ({"shows": None}, 40, []),
        ({"cell": None}, 40, []),
        ({"prompt": "read it :"}, 40, []),
        ({"size": (32, 80), "cell": None}, 40, [
            "data.picture.size is [32, 80]; both must be multiples of 32 pixels",
            "data.picture.cell is [32, 80]; both must be multiples of 32 pixels",
        ]),
        ({"cell": (32, 48)}, 40, ["data.picture.cell is [32, 48]; both must be multiples of 32 pixels"]),
        ({"size": (32, 96), "cell": (32, 64)}, 40, [
            "data.picture.cell does not divide size: a picture is made of whole cells"]),
        ({"size": (32, 2**16)}, 9000, []),
        ({"size": (96, 2**16)}, 90000, [
            "data.picture.size is [96, 65536]; a picture has at most 4,194,304 pixels"]),
        ({"prompt": "typed {typed"}, 40, ["data.picture: prompt: expected '}' before end of string; a brace that is "
            "meant as one is written twice"]),
        ({"completion": "{written!r}"}, 40, ["data.picture: completion: braces hold a column's name and nothing else, "
            "such as {review}"]),
        ({"prompt": "{Typed by:}"}, 40, None),
        ({"completion": " yes"}, 40, ["data.picture.completion names no column in braces, so that nothing would be "
            "learned"]),
        ({"prompt": "{written} {typed}"}, 40, ["data.picture shows written and learns it; a model would just copy it"]),
        ({"prompt": "{scan}"}, 40, ["data.picture.file stands in the template; it names files, which are no text"]),
        ({"completion": "{scan}"}, 40, ["data.picture.file stands in the template; it names files, which are no text"]),
        *(({"shows": name}, 40, ["data.picture.shows is a column that sites have too; name one of the public table "
            "alone"]) for name in ("scan", "typed", "written")),
        ({}, 9, ["data.max_tokens is 9; a picture alone takes 8, and the text comes behind it"]),
        ({}, 10, []),
    ],
)  # fmt: skip
def test_terms_that_contradict_themselves_are_said_once(changes, max_tokens, said):
    found = KIND.problems(terms(**changes), max_tokens=max_tokens)
    assert len(found) == len(set(found))
    if said is None:
        assert len(found) == 1
    else:
        assert found == said


def test_a_column_of_a_name_that_no_column_has_is_said():
    (said,) = KIND.problems(terms(prompt="{typed by}"), max_tokens=40)
    assert "names a column 'typed by'" in said


@pytest.mark.parametrize(
    "wrong", [{"size": (32,)}, {"size": (0, 32)}, {"size": (32, 2**17)}, {"file": "a b"}, {"prompt": 3}, {"more": 1}]
)
def test_terms_of_another_shape_are_refused(wrong):
    with pytest.raises(ValidationError):
        terms(**wrong)


def test_left_out_keys_are_left_out_of_what_a_study_hashes():
    stated = {name: value for name, value in STATED.items() if name not in ("cell", "shows")}
    assert PictureTerms(**stated).model_dump().keys() == stated.keys()
    assert PictureTerms(**stated).layout == PictureLayout((32, 64), (32, 64))


def test_columns_are_the_file_then_what_is_shown_then_what_is_learned():
    found = KIND.columns(terms())
    assert [(column.name, column.kind) for column in found] == [
        ("scan", "picture"), ("typed", "text"), ("written", "text to learn"), ("digits", "text"),
    ]  # fmt: skip
    assert [column.sites for column in found] == [None, None, None, ()]  # no site has what public pictures show
    assert [column.opens is not None for column in found] == [True, False, False, False]
    assert not any(column.is_label or column.is_task for column in found)
    assert [column.name for column in KIND.columns(terms(shows=None))] == ["scan", "typed", "written"]
    (file, *_) = found
    assert file.expected == ("the name of a PNG file below data.files, 32 pixels high and 64 wide, 8 bits grey or RGB")
    assert file.opens(png(drawn(1)[0]))
    with pytest.raises(InvalidPicture, match="not 32 pixels high"):
        file.opens(png(drawn(1)[0].T))


def test_cells_that_do_not_fit_are_counted():
    file, typed, written, shows = KIND.columns(terms())
    assert file.read(pa.array(["a/b.png", "", "../b.png"])).misfit.tolist() == [False, True, True]
    assert typed.read(pa.array(["1", "", "x" * 70_000])).misfit.tolist() == [False, False, True]
    assert written.read(pa.array(["1", "", "x" * 70_000])).misfit.tolist() == [False, True, True]
    assert shows.read(pa.array(["1", ""])).misfit.tolist() == [False, False]


def test_a_study_says_what_is_read_and_learned():
    assert KIND.facts(terms()) == {
        "picture": "PNG of 32 x 64 pixels in 2 cells, 8 tokens",
        "prompt": "typed {typed} :",
        "completion": " {written} <eos>",
        "columns": ["scan (picture, shown)", "typed (free text, shown)", "written (free text, learned)"],
    }
    assert KIND.facts(terms(cell=None))["picture"] == "PNG of 32 x 64 pixels, 8 tokens"


def test_the_kind_is_completed_by_the_models_own_words():
    assert KINDS["picture"] is not None
    assert (KIND.head, KIND.reads, KIND.makes_vocabulary) == ("lm", "text", True)
    assert KIND.objective(terms()) is None
    assert KIND.judged(terms()) == "completions"
    with pytest.raises(InvalidSchema):
        KIND.schema(terms())


def test_public_pictures_say_what_their_cells_show():
    given_columns = columns(*ROWS)
    found = KIND.lessons(terms(), given_columns)
    assert found.layout == PictureLayout((32, 64), (32, 32))
    assert list(found.files) == given_columns["scan"].tolist()
    assert list(found.shown) == ["1 3", "4 5", "8"]


def test_pictures_that_nobody_says_anything_of_teach_no_eye():
    with pytest.raises(InvalidPretraining, match=r"data\.picture\.shows is missing"):
        KIND.lessons(terms(shows=None), columns(*ROWS))


def test_other_kinds_of_record_have_no_files():
    others = [kind for name, kind in KINDS.items() if name not in ("picture", "sound")]
    assert all(kind.lessons(None, {}) is None and kind.layout(None) is None and not kind.files for kind in others)
    assert (KIND.files, KINDS["sound"].files) == ("pictures", "sounds")


def test_the_study_of_the_example_is_read():
    draft = load_draft(EXAMPLE)
    assert isinstance(draft.data.kind, Pictures)
    assert draft.data.terms.layout == PictureLayout((32, 128), (32, 32))
    assert draft.data.terms.shows == "digits"
    assert draft.data.kind.columns(draft.data.terms)[0].name == "form"


def test_a_study_of_pictures_has_no_prototype(tmp_path):
    (tmp_path / "study.toml").write_text(
        EXAMPLE.read_text() + "\n[prototype]\nlength = 64\nnoise_multiplier = 40.0\n", encoding="utf-8"
    )
    with pytest.raises(StudyInvalid, match=r"\[data\.picture\]; remove it: pictures have no signatures yet"):
        load_draft(tmp_path / "study.toml")
