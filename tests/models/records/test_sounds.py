import numpy as np
import pyarrow as pa
import pytest
import torch
from pydantic import ValidationError

from confide.client_node.errors import StudyInvalid
from confide.client_node.study import load_draft
from confide.models.errors import DeploymentRefused, InvalidPretraining, InvalidPrompt, InvalidSchema, InvalidSound
from confide.models.records.kinds import KINDS
from confide.models.records.sounds import Sounds, SoundTerms
from confide.models.structure.sounds import SoundLayout, written
from confide.models.tokens import bytes_of, words_of

from .test_pictures import EXAMPLE as SCANS

KIND, SEEN = Sounds(), 16  # tokens of a sound
STATED = {
    "file": "call",
    "rate": 8000,
    "seconds": 1,
    "prompt": "desk {desk} :",
    "completion": " {language} <eos>",
    "shows": "spoken",
}


def terms(**changes):
    return SoundTerms(**{**STATED, **changes})


def drawn(count, samples=5000, seed=0):
    return np.random.default_rng(seed).integers(-(2**15), 2**15, (count, samples)).astype("<i2")


def columns(*rows, sounds=None):
    """Of (desk, language)."""
    sounds = drawn(len(rows)) if sounds is None else sounds
    desk, language = zip(*rows, strict=True)
    return {name: np.array(values, dtype=object) for name, values in [
        ("call", [written(sound.tobytes(), 8000) for sound in sounds]), ("desk", desk), ("language", language),
        ("spoken", language),
    ]}  # fmt: skip


ROWS = [("1 2", "french"), ("9", "low german"), ("", "catalan")]


@pytest.fixture(scope="module")
def tokenizer():
    return KIND.vocabulary(terms(), columns(*ROWS))


def reader(tokenizer, max_tokens=40, **changes):
    return KIND.reader(terms(**changes), tokenizer, max_tokens=max_tokens)


def text(tokenizer, ids):
    return " ".join(tokenizer.convert_ids_to_tokens(ids.tolist()))


def test_a_record_is_its_sound_and_then_what_the_template_says(tokenizer):
    ids, is_learned = reader(tokenizer).examples(columns(*ROWS), None)
    assert (ids.dtype, ids.shape) == (np.int64, (3, SEEN + 6, 129))
    words = words_of(ids)
    assert text(tokenizer, words[0, SEEN:]) == "desk 1 2 : french <eos>"
    assert text(tokenizer, words[1, SEEN:]) == "desk 9 : low german <eos>"
    assert text(tokenizer, words[2, SEEN:]) == "desk : catalan <eos> <pad> <pad>"
    assert (words[:, :SEEN] > 0).all()
    told = [text(tokenizer, row[own]) for row, own in zip(words, is_learned, strict=True)]
    assert told == ["french <eos>", "low german <eos>", "catalan <eos>"]


def test_the_sound_of_a_record_can_be_read_from_its_tokens(tokenizer):
    sounds = drawn(3)
    ids, _ = reader(tokenizer).examples(columns(*ROWS, sounds=sounds), None)
    carried = bytes_of(torch.from_numpy(ids)).numpy()
    heard = np.ascontiguousarray(carried[:, :SEEN]).reshape(3, -1).view(np.int16)
    np.testing.assert_array_equal(heard[:, :5000], sounds)
    assert not heard[:, 5000:].any()
    assert not carried[:, SEEN:].any()


@pytest.mark.parametrize("max_tokens", [22, 24])
def test_texts_that_are_too_long_are_cut_and_a_sound_never(tokenizer, max_tokens):
    given_columns = columns(("1 2 9 " * 9, "low german"), ("1 " * 30, "french " * 30))
    ids, is_learned = reader(tokenizer, max_tokens).examples(given_columns, None)
    assert ids.shape[1] == max_tokens
    assert is_learned.any(1).all()
    whole, _ = reader(tokenizer, 500).examples(given_columns, None)
    np.testing.assert_array_equal(ids[:, :SEEN], whole[:, :SEEN])


def test_a_file_that_is_no_sound_is_refused_by_its_number(tokenizer):
    given_columns = columns(*ROWS)
    given_columns["call"][1] = given_columns["call"][1][:-20]
    with pytest.raises(InvalidSound, match=r"^sound 2 of 3 is cut off$"):
        reader(tokenizer).examples(given_columns, None)


@pytest.mark.parametrize(
    ("max_tokens", "said"),
    [(17, "the sound alone takes 16 tokens, one for each 64 ms"), (20, "the template takes 3 tokens")],
)
def test_a_record_without_room_for_its_text_is_refused(tokenizer, max_tokens, said):
    with pytest.raises(InvalidPrompt, match=said):
        reader(tokenizer, max_tokens)


@pytest.mark.parametrize(
    ("changes", "max_tokens", "said"),
    [
        ({}, 40, []),
        ({"shows": None}, 40, []),
        ({"rate": 16_000, "seconds": 60}, 1000, []),
        ({"prompt": "hear :"}, 40, []),
        ({"rate": 44_100}, 40, ["data.sound.rate is 44100; it must be 8000 or 16000 samples a second"]),
        ({"rate": -8000}, 40, ["data.sound.rate is -8000; it must be 8000 or 16000 samples a second"]),
        ({"prompt": "desk {desk"}, 40, ["data.sound: prompt: expected '}' before end of string; a brace that is meant "
            "as one is written twice"]),
        ({"completion": " yes"}, 40, ["data.sound.completion names no column in braces, so that nothing would be "
            "learned"]),
        ({"prompt": "{language}"}, 40, ["data.sound shows language and learns it; a model would just copy it"]),
        ({"prompt": "{call}"}, 40, ["data.sound.file stands in the template; it names files, which are no text"]),
        *(({"shows": name}, 40, ["data.sound.shows is a column that sites have too; name one of the public table "
            "alone"]) for name in ("call", "desk", "language")),
        ({}, 17, ["data.max_tokens is 17; a sound alone takes 16, and the text comes behind it"]),
        ({}, 18, []),
    ],
)  # fmt: skip
def test_terms_that_contradict_themselves_are_said_once(changes, max_tokens, said):
    assert KIND.problems(terms(**changes), max_tokens=max_tokens) == said


@pytest.mark.parametrize(
    "wrong",
    [
        {"seconds": 0},
        {"seconds": 61},
        {"seconds": 1.5},
        {"rate": 8000.0},
        {"rate": "8000"},
        {"file": "a b"},
        {"more": 1},
    ],
)
def test_terms_of_another_shape_are_refused(wrong):
    with pytest.raises(ValidationError):
        terms(**wrong)


def test_columns_are_the_file_then_what_is_shown_then_what_is_learned():
    file, *rest = KIND.columns(terms())
    assert (file.name, file.kind) == ("call", "sound")
    assert [(column.name, column.kind, column.sites) for column in rest] == [
        ("desk", "text", None), ("language", "text to learn", None), ("spoken", "text", ()),
    ]  # fmt: skip
    assert file.expected == "the name of a WAV file below data.files, PCM of 16 bits, one channel, 8000 Hz, at most 1 s"
    assert file.read(pa.array(["a/b.wav", "", "../b.wav"])).misfit.tolist() == [False, True, True]
    sound = written(drawn(1)[0].tobytes(), 8000)
    assert file.opens(sound) == sound
    for other in (written(drawn(1)[0].tobytes(), 16_000), written(drawn(1, 8001)[0].tobytes(), 8000)):
        with pytest.raises(InvalidSound):
            file.opens(other)


def test_a_study_says_what_is_heard_and_learned():
    assert KIND.facts(terms()) == {
        "sound": "WAV of at most 1 s at 8000 Hz, 16 tokens",
        "prompt": "desk {desk} :",
        "completion": " {language} <eos>",
        "columns": ["call (sound, shown)", "desk (free text, shown)", "language (free text, learned)"],
    }


def test_the_kind_is_completed_by_the_models_own_words():
    assert isinstance(KINDS["sound"], Sounds)
    assert (KIND.head, KIND.reads, KIND.makes_vocabulary) == ("lm", "text", True)
    assert KIND.judged(terms()) == "completions"
    assert KIND.layout(terms()) == SoundLayout(8000, 1)
    with pytest.raises(InvalidSchema):
        KIND.schema(terms())
    with pytest.raises(DeploymentRefused, match="sounds are read within confide alone"):
        KIND.request(terms(), None)


def test_public_sounds_say_what_they_say():
    given_columns = columns(*ROWS)
    found = KIND.lessons(terms(), given_columns)
    assert found.layout == SoundLayout(8000, 1)
    assert list(found.files) == given_columns["call"].tolist()
    assert list(found.shown) == ["french", "low german", "catalan"]
    with pytest.raises(InvalidPretraining, match=r"data\.sound\.shows is missing: an ear learns by a column"):
        KIND.lessons(terms(shows=None), given_columns)


def test_a_study_of_sounds_has_no_prototype(tmp_path):
    before, _, after = SCANS.read_text().partition("[data.picture]")
    sound = '[data.sound]\nfile = "call"\nrate = 8000\nseconds = 1\nprompt = "desk {desk} :"\ncompletion = " {told}"\n'
    more = "\n[prototype]\nlength = 64\nnoise_multiplier = 40.0\n"
    (tmp_path / "study.toml").write_text(before + sound + after[after.index("\n[") :] + more, encoding="utf-8")
    with pytest.raises(StudyInvalid, match=r"\[data\.sound\]; remove it: sounds have no signatures yet"):
        load_draft(tmp_path / "study.toml")
