import itertools
import json
import os
import re
import signal
import string
import time
from contextlib import suppress

import jsonschema
import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from confide.models.decoding import forms as forms_module
from confide.models.decoding.forms import KEYWORDS, Forms
from confide.models.decoding.trial import Trial
from confide.models.errors import FormRefused

from ..tiny import byte_tokenizer

pytestmark = pytest.mark.process  # forms are tried in one of their own
SECRET = "MrsMiller"
CLOSED = {"additionalProperties": False}


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer()


@pytest.fixture(scope="module")
def forms(tokenizer):
    found = Forms(tokenizer, len(tokenizer))
    yield found
    found.close()


def walked(form, tokenizer, rng, longest=400, lingers=0.2):
    """A text of words drawn evenly among those that may come; None if it is not at its end by then."""
    following, ids = form.begin(), []
    for _ in range(longest):
        words = np.flatnonzero(following.allowed())
        if following.may_end and (not len(words) or rng.random() > lingers):
            return tokenizer.decode(ids)
        ids.append(int(rng.choice(words)))
        if following.take(ids[-1]):
            return tokenizer.decode(ids)
    return None


SCHEMAS = [
    {"type": "integer", "minimum": -3, "maximum": 120},
    {"type": "number", "minimum": 0.5, "exclusiveMaximum": 2},
    {"type": "integer", "multipleOf": 7, "minimum": 0, "maximum": 1000},
    {"type": "string", "maxLength": 5},
    {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{1,3}$"},
    {"type": "string", "format": "date"},
    {"enum": ["low", "nôrmal", 3, None, {"a": [True]}]},
    {"const": {"sodium": 138.5, "note": 'a "b" \\ é\n'}},
    {"type": ["boolean", "null"]},
    {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 3},
    {"type": "array", "prefixItems": [{"const": 1}, {"type": "boolean"}], "items": False, "minItems": 2},
    {"anyOf": [{"type": "integer", "minimum": 5, "maximum": 9}, {"type": "boolean"}]},
    {"oneOf": [{"type": "boolean"}, {"type": "integer", "maximum": 1, "minimum": 0}]},
    {"allOf": [{"type": "integer", "minimum": 5}, {"maximum": 12}]},
    {
        "type": "object",
        "properties": {
            "sodium": {"type": "number", "minimum": 100, "maximum": 180},
            "risk": {"enum": ["low", "high"]},
            "note": {"type": "string", "maxLength": 4},
        },
        "required": ["sodium", "risk"],
        **CLOSED,
    },
    {
        "$ref": "#/$defs/tree",
        "$defs": {
            "tree": {
                "type": "object",
                "properties": {"of": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/tree"}]}},
                "required": ["of"],
                **CLOSED,
            }
        },
    },
]


@pytest.mark.parametrize("schema", SCHEMAS, ids=str)
def test_every_text_of_a_schema_is_json_that_another_library_finds_to_fit(forms, tokenizer, schema):
    rng, form = np.random.default_rng(0), forms.json(schema)
    texts = [walked(form, tokenizer, rng) for _ in range(60)]
    ended = [text for text in texts if text is not None]
    assert len(ended) > 50
    check = jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker())
    for text in ended:
        check.validate(json.loads(text))
        assert "\n" not in text


@pytest.mark.parametrize("pattern", ["(ab|a)c?", "a{2,3}", "", "[ab]c[ab]?", "a|bc|abc", "(a(b(c)?)?)?"])
def test_the_texts_of_an_expression_are_all_those_that_it_describes(forms, tokenizer, pattern):
    found, todo = set(), [()]
    form = forms.regex(pattern)
    while todo:
        ids = todo.pop()
        following, is_whole = form.begin(), False
        for word in ids:
            is_whole = following.take(word)
        if following.may_end:
            found.add(tokenizer.decode(list(ids)))
        words = [] if is_whole else np.flatnonzero(following.allowed()).tolist()
        assert is_whole == (bool(ids) and following.may_end and not words)
        todo += [(*ids, word) for word in words]
    every = ("".join(letters) for size in range(5) for letters in itertools.product("abc", repeat=size))
    assert found == {text for text in every if re.fullmatch(pattern, text)}


@pytest.mark.parametrize("ask", [lambda forms: forms.regex("a\ud800"), lambda forms: forms.report("a\ud800", {})])
def test_half_a_letter_is_refused(forms, ask):
    with pytest.raises(FormRefused, match="no regular expression that is served"):
        ask(forms)


def test_control_words_and_the_end_of_a_text_are_never_among_the_words(forms, tokenizer):
    following = forms.regex("(?s:.*)").begin()
    allowed = following.allowed()
    assert len(allowed) == len(tokenizer)
    assert not allowed[[tokenizer.convert_tokens_to_ids(word) for word in ("<|pad|>", "<|start|>", "<|end|>")]].any()
    assert following.may_end
    assert allowed.sum() > 170  # bytes that begin a letter


TEMPLATE = (
    "Sodium was {na} mmol/l, TSH {tsh} mU/l. {{Sodium}} is {trend: low|nôrmal|high}. The patient {state: text 30}. "
    "In 24 hours: {plan: text 12}."
)
GIVEN = {"na": "138.50", "tsh": "0.02 (+)"}


def test_a_report_has_every_given_figure_once_and_unchanged_and_no_other(forms, tokenizer):
    rng, form = np.random.default_rng(0), forms.report(TEMPLATE, GIVEN)
    wanted = (
        re.escape("Sodium was 138.50 mmol/l, TSH 0.02 (+) mU/l. {Sodium} is ")
        + "(low|nôrmal|high)"
        + re.escape(". The patient ")
        + "(?P<state>[^.]{1,30})"
        + re.escape(". In 24 hours: ")
        + "(?P<plan>[^.]{1,12})"
        + re.escape(".")
    )
    seen = set()
    for _ in range(200):
        text = walked(form, tokenizer, rng)
        found = re.fullmatch(wanted, text)
        assert found, text
        for own in (found["state"], found["plan"]):
            assert not any(letter.isnumeric() or letter.isdigit() for letter in own), own
            assert not own[0].isspace()
            assert not own[-1].isspace()
        assert re.findall(r"[0-9][0-9.]*", text) == ["138.50", "0.02", "24"]
        seen.add(found[1])
    assert seen == {"low", "nôrmal", "high"}


@pytest.mark.parametrize("sign", ["5", "½", "Ⅳ", "٣", "三", "零", "𝟗", "²", "两", "半", ".", "\n"])
def test_words_of_a_model_s_own_hold_nothing_that_stands_for_a_number_in_any_script(forms, tokenizer, sign):
    following = forms.report("{own: text 9}", {}).begin()
    for letter, is_fine in (("a", True), ("語", True), ("é", True), (sign, False)):
        words = tokenizer(letter, add_special_tokens=False).input_ids
        for place, word in enumerate(words):
            if not following.allowed()[word]:
                assert not is_fine
                return
            assert place < len(words) - 1 or is_fine
            following.take(word)
    raise AssertionError(sign)


def test_a_value_or_a_template_is_text_and_no_expression(forms, tokenizer):
    odd = "".join(sign for sign in string.printable if sign.isprintable()) + "é½ \\d{3} (?i:a) ünder"
    form = forms.report("{value}[a-z]{{2}}|.*\n{other}", {"value": odd, "other": "^$"})
    assert walked(form, tokenizer, np.random.default_rng(0)) == f"{odd}[a-z]{{2}}|.*\n^$"


@pytest.mark.parametrize(
    ("template", "given", "said"),
    [
        ("a {b", {}, "a brace that is no slot"),
        ("a } b", {}, "a brace that is no slot"),
        ("{1}", {}, "a brace that is no slot"),
        (f"{{{SECRET}}}", {}, "a value that is not given"),
        ("{a} and {a}", {"a": "1"}, "the same name twice"),
        ("{a}", {"a": "1", SECRET: "2"}, "has no place in the template"),
        (f"{{a: {SECRET}}}", {}, "a slot is"),
        ("{a: x|x}", {}, "a slot is"),
        ("{a: x| }", {}, "a slot is"),
        ("{a: text 1}", {}, "2 characters or more"),
        ("{a: text 1000} {b: text 1001}", {}, "more than 2,000 characters together"),
        ("{a: low|high}", {"a": SECRET}, "the name of a slot"),
        ("{a}", {"a": " "}, "empty"),
        ("{a}", {"a": f"{SECRET}\n2"}, "cannot be printed"),
        ("a" * 20_000, {}, "more than 16,384 characters"),
    ],
)
def test_what_is_no_template_is_refused_in_a_sentence(forms, template, given, said):
    with pytest.raises(FormRefused, match=re.escape(said)) as found:
        forms.report(template, given)
    assert SECRET not in str(found.value)


def nested(depth):
    return {"type": "array", "items": nested(depth - 1)} if depth else True


HOSTILE = {
    "enum 1e5": ({"enum": [f"{SECRET}{number}" for number in range(100_000)]}, "more than 4,000 parts"),
    "anyOf 1e4": ({"anyOf": [True] * 10_000}, "more than 4,000 parts"),
    "deep": (nested(100), "deeper than 32"),
    "endless": (
        {
            "$ref": "#/$defs/a",
            "$defs": {"a": {"properties": {"x": {"$ref": "#/$defs/a"}}, "required": ["x"], "type": "object"}},
        },
        "no text of up to",
    ),
    "endless by two": (
        {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
        "no text of",
    ),
    "endless items": ({"type": "array", "items": {"$ref": "#"}, "minItems": 1}, "no text of up to"),
    "itself": ({"$ref": "#"}, "no text of up to"),
    "nearly endless": (
        {"type": "array", "items": {"type": "string", "minLength": 1000}, "minItems": 10_000},
        "no text of",
    ),
    "multiples": (
        {"anyOf": [{"type": "integer", "multipleOf": 9000 + n} for n in range(50)]},
        "multipleOf are more than",
    ),
    "none": ({"type": "integer", "minimum": 5, "maximum": 3}, "no text fits"),
    "false": ({"type": "object", "properties": {SECRET: False}, "required": [SECRET]}, "no text"),
    "not": ({"not": {"const": SECRET}}, "keyword not is not served"),
    "uniqueItems": ({"type": "array", "uniqueItems": True}, "keyword uniqueItems is not served"),
    "guidance": ({"x-guidance": {"lenient": True}}, "keyword of another name is not served"),
    "secret": ({SECRET: 1}, "keyword of another name is not served"),
    "file": ({"$ref": "file:///etc/passwd"}, "$ref is not of a kind"),
    "elsewhere": ({"$ref": f"#/$defs/{SECRET}"}, "one to what is no part"),
    "look": ({"type": "string", "pattern": f"(?={SECRET})"}, "none looks around or back"),
    "format": ({"type": "string", "format": SECRET}, "a format of the schema"),
    "type": ({"type": SECRET}, "schema's type is not of a kind"),
    "counts": ({"type": "string", "maxLength": 10**400}, "schema's maxLength is not of a kind"),
    "part": ({"properties": {"a": SECRET}}, "a part of the schema is no object"),
    "tuple": ({"items": [True]}, "a part of the schema is no object"),
    "oneOf": ({"oneOf": [{"properties": {"a": {"const": n}}, "type": "object"} for n in range(3)]}, "may fit twice"),
    "many ways": (
        {"allOf": [{"anyOf": [{"properties": {f"{k}{n}": True}, "type": "object"} for k in "ab"]} for n in range(20)]},
        "leaves too many ways open",
    ),
    "long": ({"const": "é" * 70_000}, "more than 65,536 characters"),
    "dialect": (
        {"$schema": "http://json-schema.org/draft-04/schema#", "const": 1},
        "schema's $schema is not of a kind",
    ),
    "number": ({"enum": [1, [2**53 + 1]]}, "a number beyond 2^53"),
    "digits": ({"const": 10**5000}, "a number beyond 2^53"),
    "bound": ({"type": "integer", "minimum": 2**53 + 1}, "schema's minimum is not of a kind"),
    "infinite": ({"const": float("inf")}, "a number beyond 2^53"),
    "nan": ({"default": {"a": [float("nan")]}}, "a number beyond 2^53"),
    "deep value": ({"const": {"a": nested(40)}}, "a value in the schema is deeper"),
    "slow": (
        {
            "$defs": {f"r{n}": {"enum": [*range(50)]} for n in range(25)},
            "anyOf": [{"$ref": f"#/$defs/r{n}"} for n in range(25)] + [{"allOf": [{"$ref": "#"}]}] * 250,
        },
        "is served",
    ),
    "takes minutes": (
        {"allOf": [{"type": "string", "pattern": f"a.{{{n}}}b"} for n in range(40)]},
        "cannot be prepared in time",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_schema_that_cannot_be_served_is_refused_in_a_sentence(forms, name):
    schema, said = HOSTILE[name]
    if said == "is served":
        forms.json(schema)
        return
    with pytest.raises(FormRefused, match=re.escape(said)) as found:
        forms.json(schema)
    assert SECRET not in str(found.value)
    forms.json({"type": "boolean"})  # and the next is made


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        (f"(?={SECRET})", "looks around or back"),
        (r"(a)\1", "looks around or back"),
        (f"({SECRET}", "looks around or back"),
        ("[a&&b]", "no text fits"),
        ("a" * 5000, "more than 4,096 characters"),
    ],
)
def test_an_expression_that_cannot_be_served_is_refused_in_a_sentence(forms, pattern, said):
    with pytest.raises(FormRefused, match=said) as found:
        forms.regex(pattern)
    assert SECRET not in str(found.value)


def test_a_hostile_expression_ends_its_own_text_at_most(forms, tokenizer):
    rng = np.random.default_rng(0)
    for pattern in ("((a{1,1000}){1,1000}){1,1000}", "(.*a){20}.{1000}", "(.|a|aa|aaa){1000}b", "(x+x+)+y"):
        form = forms.regex(pattern)
        for _ in range(3):
            with suppress(FormRefused):
                walked(form, tokenizer, rng, longest=200, lingers=1)
    assert walked(forms.regex("ab"), tokenizer, rng) == "ab"


def test_a_thousand_schemas_of_random_keywords_are_made_or_refused(forms, tokenizer):
    rng = np.random.default_rng(0)
    leaves = [True, False, 3, -1, 0.5, "a", "#", "#/$defs/a", "string", "object", "array", "^a+$", [], ["a"], {}, None]
    keywords = sorted(KEYWORDS)

    def drawn(depth):
        if depth == 0 or rng.random() < 0.3:
            return leaves[rng.integers(len(leaves))]
        found = {keywords[place]: drawn(depth - 1) for place in rng.integers(len(keywords), size=rng.integers(1, 4))}
        for name in ("properties", "$defs", "definitions"):
            if name in found and rng.random() < 0.8:
                found[name] = {"a": drawn(depth - 1), "b": drawn(depth - 1)}
        for name in ("anyOf", "oneOf", "allOf", "prefixItems"):
            if name in found and rng.random() < 0.8:
                found[name] = [drawn(depth - 1), drawn(depth - 1)]
        if rng.random() < 0.5:
            found["type"] = ["string", "object", "array", "integer"][rng.integers(4)]
        return found

    made = 0
    for _ in range(1000):
        schema = drawn(3)
        if not isinstance(schema, dict):
            continue
        try:
            form = forms.json(schema)
        except FormRefused:
            continue
        made += 1
        text = walked(form, tokenizer, rng, longest=60)
        if text is not None:
            jsonschema.Draft202012Validator(schema).validate(json.loads(text))
    assert made > 30


def test_no_name_passes_in_another_spelling(forms, tokenizer):
    dose = {"type": "object", "properties": {"dose": {"type": "integer", "maximum": 5}}, "required": ["dose"]}

    def fits(form, text):
        following, is_whole = form.begin(), False
        for word in tokenizer(text, add_special_tokens=False).input_ids:
            if is_whole or not following.allowed()[word]:
                return False
            is_whole = following.take(word)
        return following.may_end

    form = forms.json(dose)
    assert fits(form, '{"dose": 5, "other": 500}')
    assert not fits(form, '{"dose": 5, "\\u0064ose": 500}')
    assert not fits(form, '{"dose": 5, "dose": 500}')
    text = forms.json({"type": "string"})
    assert fits(text, '"a \\"b\\" \\\\ \\n é 语"')
    assert not fits(text, '"\\u0041"')
    exact = forms.json({"enum": [2**53, -(2**53)]})
    assert fits(exact, str(2**53))
    assert not fits(exact, str(2**53 - 1))


@pytest.mark.parametrize("schema", [{"$schema": "https://json-schema.org/draft/2020-12/schema", "const": 3}])
def test_a_schema_may_name_the_dialect_that_is_kept(forms, tokenizer, schema):
    assert walked(forms.json(schema), tokenizer, np.random.default_rng(0)) == "3"


def test_long_slots_are_filled_to_their_ends(forms, tokenizer):
    rng, form = np.random.default_rng(0), forms.report("{a: text 1000}. {b: text 1000}.", {})
    words = [word for word in range(len(tokenizer)) if len(tokenizer.decode([word])) == 1]
    following, ids = form.begin(), []
    while True:
        allowed = following.allowed()
        some = [word for word in words if allowed[word] and tokenizer.decode([word]) != "."]
        ids.append(int(rng.choice(some or np.flatnonzero(allowed))))
        if following.take(ids[-1]):
            break
    assert len(tokenizer.decode(ids)) > 1990


def test_a_form_s_time_holds_its_trial_and_its_making(tokenizer, monkeypatch):
    schema = {"type": "object", "properties": {f"k{number}": {"type": "string"} for number in range(2200)}}

    def made_in(seconds):
        monkeypatch.setattr(forms_module, "_SECONDS", seconds)
        found = Forms(tokenizer, len(tokenizer))
        try:
            began = time.process_time()
            found.json(schema)
            return time.process_time() - began  # the trial's time is another process's
        finally:
            found.close()

    once = min(made_in(60) for _ in range(3))
    assert made_in(8 * once) > 0
    with pytest.raises(FormRefused, match="cannot be prepared in time"):
        made_in(1.3 * once)  # enough for one of the two


def test_a_trial_that_somebody_ended_is_started_anew(tokenizer):
    found = Forms(tokenizer, len(tokenizer))
    found.json({"type": "boolean"})
    for _ in range(2):
        os.kill(found._trial._process.pid, signal.SIGKILL)
        found._trial._process.wait()
        found.json({"type": "boolean"})
    child = found._trial._process
    os.kill(child.pid, signal.SIGSTOP)
    with pytest.raises(FormRefused, match="cannot be prepared in time"):
        found.json({"type": "boolean"})
    found.json({"type": "boolean"})
    found.close()
    found.close()
    assert child.poll() is not None


def test_a_grammar_of_which_the_process_dies_is_refused(tokenizer, monkeypatch):
    found = Forms(tokenizer, len(tokenizer))
    answers = Trial._answers

    def dying(self, line, seconds):
        answered = answers(self, line, seconds)
        return answered if seconds > 1 else None  # it starts

    monkeypatch.setattr(Trial, "_answers", dying)
    with pytest.raises(FormRefused, match="cannot be prepared in time"):
        found.regex("a")
    monkeypatch.undo()
    found.regex("a")
    found.close()


def test_a_tokenizer_that_is_not_known_hinders_forms_alone():
    core = Tokenizer(WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    odd = PreTrainedTokenizerFast(tokenizer_object=core)
    found = Forms(odd, 2)
    with pytest.raises(FormRefused, match="tokenizer is of a kind without"):
        found.json({"type": "boolean"})
    found.close()


def test_a_trial_that_cannot_start_is_told(tokenizer):
    trial = Trial(lambda: ("no tokenizer", 10, 9), seconds=1.0)
    with pytest.raises(OSError, match="does not start"):
        trial.passes('start: "a"')
    trial.close()
