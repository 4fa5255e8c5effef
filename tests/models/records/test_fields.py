import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from confide.models.errors import BackboneMismatch, InvalidSchema, UnknownValue
from confide.models.records.fields import (
    CategoricalField,
    Fields,
    FieldTerms,
    FlagField,
    NumericField,
    RecordSchema,
    united,
)

SCHEMA = RecordSchema(
    numeric=(NumericField("TSH", (0.4, 4.0)), NumericField("age", (18, 65))),
    flags=(FlagField("sick"), FlagField("goitre")),
    categorical=(CategoricalField("sex", ("F", "M")),),
)
COLUMNS = {
    "age": [17, 18, None],
    "TSH": np.array([0.1, np.nan, 4.0]),
    "sick": [True, 0, np.nan],
    "goitre": [1, False, 0],
    "sex": ["F", "", "M"],
}


def test_a_record_reads_as_one_word_a_field():
    assert SCHEMA.render(COLUMNS) == [
        "TSH=b00 age=b00 sex=F goitre sick",
        "TSH=na age=b01 sex=na",
        "TSH=b02 age=na sex=M",
    ]


def test_ids_are_positions_in_the_vocabulary_padded_with_zero():
    words, lines = SCHEMA.words(), SCHEMA.render(COLUMNS)
    ids = SCHEMA.encode(lines)
    assert ids.dtype == np.int64
    assert ids.shape == (3, 5)
    assert [" ".join(words[i] for i in row if i) for row in ids] == lines
    assert (ids[1, 3:] == 0).all()


def test_a_record_without_a_word_is_its_end():
    schema = RecordSchema(flags=(FlagField("sick"),))
    assert schema.encode(schema.render({"sick": [0]})).tolist() == [[1]]


@given(st.lists(st.floats(allow_nan=False), min_size=1, max_size=20))
def test_every_number_falls_into_the_bin_whose_cuts_enclose_it(values):
    cuts = (-1.5, 0.0, 2.0, 1e6)
    inner = [-np.inf, *cuts, np.inf]
    for value, code in zip(values, NumericField("x", cuts).codes(values), strict=True):
        assert inner[code - 1] <= value <= inner[code]
        assert value < inner[code] or code == len(cuts) + 1


def test_the_order_in_a_file_does_not_change_the_vocabulary():
    other = RecordSchema(SCHEMA.numeric[::-1], SCHEMA.flags[::-1], SCHEMA.categorical)
    assert other == SCHEMA
    assert other.words() == SCHEMA.words()


def test_schema_survives_json():
    text = json.dumps(SCHEMA.to_dict(), sort_keys=True)
    assert RecordSchema.from_dict(json.loads(text)) == SCHEMA
    assert "visits" not in text
    history = replace(SCHEMA, visits=4)
    assert RecordSchema.from_dict(history.to_dict()) == history != SCHEMA


@pytest.mark.parametrize(
    ("column", "entry"),
    [("sex", "SECRET"), ("TSH", "SECRET"), ("sick", "SECRET"), ("sick", 2), ("sex", 3)],
)
def test_an_unknown_entry_is_named_by_field_and_never_shown(column, entry):
    with pytest.raises(UnknownValue) as caught:
        SCHEMA.render({**COLUMNS, column: [entry, entry, entry]})
    assert column in str(caught.value)
    assert str(entry) not in str(caught.value).replace("2 values", "").replace("1/0", "")
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


@pytest.mark.parametrize("line", ["sex=SECRET", "SECRET", "<pad>", "SECRET=1"])
def test_an_unknown_word_is_refused_and_never_shown(line):
    with pytest.raises(UnknownValue) as caught:
        SCHEMA.encode([line])
    assert "SECRET" not in str(caught.value)


def test_a_missing_column_is_named():
    with pytest.raises(UnknownValue, match="no column for TSH"):
        SCHEMA.render({name: column for name, column in COLUMNS.items() if name != "TSH"})


def test_columns_of_different_length_are_refused():
    with pytest.raises(UnknownValue, match="differ in length"):
        SCHEMA.render({**COLUMNS, "age": [1]})


@pytest.mark.parametrize(
    "make",
    [
        lambda: NumericField("x", (1.0, 1.0)),
        lambda: NumericField("x", ()),
        lambda: NumericField("x", (float("nan"),)),
        lambda: NumericField("a b", (1.0,)),
        lambda: CategoricalField("x", ()),
        lambda: CategoricalField("x", ("na", "yes")),
        lambda: CategoricalField("x", ("a b", "a_b")),
        lambda: CategoricalField("x", ("",)),
        lambda: FlagField("a=b"),
        lambda: RecordSchema(),
        lambda: RecordSchema(flags=(FlagField("x"),), numeric=(NumericField("x", (1.0,)),)),
    ],
)
def test_a_contradictory_schema_is_refused(make):
    with pytest.raises(InvalidSchema):
        make()


@pytest.mark.parametrize(
    "change",
    [
        {"numeric": [{"name": "x", "cuts": ["1"]}]},
        {"numeric": [{"name": "x", "cuts": [True]}]},
        {"numeric": [{"name": "x", "cuts": [1], "more": 1}]},
        {"numeric": [{"name": "x", "cuts": [10**309]}]},  # no float is as large
        {"numeric": [{"name": "x", "cuts": [-(10**400), 1]}]},
        {"flags": [1]},
        {"flags": "sick"},
        {"categorical": {"sex": ["F"]}},
        {"more": []},
        *({"visits": visits} for visits in (1, 0, True, "2", 2.0)),
    ],
)
def test_a_malformed_description_is_refused(change):
    with pytest.raises(InvalidSchema):
        RecordSchema.from_dict({**SCHEMA.to_dict(), **change})


TERMS = FieldTerms(
    label="ill",
    numeric={"TSH": (0.4, 4.0), "age": (18, 65)},
    flags=("sick", "goitre"),
    categorical={"sex": ("F", "M")},
)
# Words and tokens: BMI 2 to 4, TSH 5 to 8, age 9 to 12, region 13 and 14, sex 15 to 17, asthma, goitre, sick.
WHOLE = RecordSchema(
    numeric=(*SCHEMA.numeric, NumericField("BMI", (25.0,))),
    flags=(FlagField("asthma"), *SCHEMA.flags),
    categorical=(*SCHEMA.categorical, CategoricalField("region", ("north",))),
)


def test_a_study_of_a_part_is_read_in_the_words_of_the_whole():
    reader = Fields().reader(TERMS, WHOLE, max_tokens=8)
    ids, targets = reader.examples(COLUMNS, np.array([0, 1, 1]))
    assert ids.tolist() == [[6, 10, 16, 19, 20], [5, 11, 15, 0, 0], [8, 9, 17, 0, 0]]
    assert targets.tolist() == [0, 1, 1]
    assert reader.words == 21
    without = FieldTerms(label="ill", flags=("sick",))
    assert Fields().reader(without, WHOLE, max_tokens=8).examples(COLUMNS, np.zeros(3))[0].tolist() == [[20], [1], [1]]


def test_a_study_of_the_whole_is_read_as_its_schema_encodes_it():
    reader = Fields().reader(TERMS, SCHEMA, max_tokens=8)
    ids, _ = reader.examples(COLUMNS, np.zeros(3))
    np.testing.assert_array_equal(ids, SCHEMA.encode(SCHEMA.render(COLUMNS)))
    assert reader.words == len(SCHEMA.words())


@pytest.mark.parametrize(
    ("backbone", "told"),
    [
        (RecordSchema(SCHEMA.numeric, SCHEMA.flags), "it has no sex"),
        (RecordSchema(flags=(FlagField("x"),)), "it has no TSH, age, sex and 2 more"),
        (replace(WHOLE, numeric=(NumericField("TSH", (0.4, 4.1)), SCHEMA.numeric[1])), "another description of TSH"),
        (replace(WHOLE, categorical=(CategoricalField("sex", ("M", "F")),)), "another description of sex"),
        (RecordSchema(SCHEMA.numeric, (*SCHEMA.flags, FlagField("sex"))), "another description of sex"),
        (RecordSchema((NumericField("TSH", (1,)),), SCHEMA.flags, SCHEMA.categorical), "no age; it has another .* TSH"),
        (replace(WHOLE, visits=3), "its records have 3 visits at most, not 1"),
    ],
)
def test_a_backbone_that_lacks_a_field_or_describes_it_otherwise_is_refused_by_name(backbone, told):
    with pytest.raises(BackboneMismatch, match=rf"another schema than \[data\] describes: .*{told}$"):
        Fields().reader(TERMS, backbone, max_tokens=8)


def test_united_schemas_have_the_fields_of_all_and_each_is_a_part():
    heart = RecordSchema((NumericField("BMI", (25,)), NumericField("age", (18, 65))), (FlagField("asthma"),))
    region = RecordSchema(categorical=(CategoricalField("region", ("north",)),))
    assert united([SCHEMA, heart, region]) == united([region, heart, SCHEMA]) == WHOLE
    assert united([SCHEMA]) == united([SCHEMA, SCHEMA]) == SCHEMA
    assert [part.misfits(WHOLE) for part in (SCHEMA, heart, region)] == [[], [], []]
    longest = united([replace(heart, visits=2), replace(SCHEMA, visits=9)])
    assert longest.visits == 9
    assert replace(heart, visits=2).misfits(longest) == []


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (RecordSchema((NumericField("age", (18, 66)),)), "^age: two studies describe it differently"),
        (RecordSchema(categorical=(CategoricalField("sex", ("F", "M", "X")),)), "^sex: two studies"),
        (RecordSchema(categorical=(CategoricalField("sex", ("M", "F")),)), "^sex: two studies"),
        (RecordSchema(flags=(FlagField("age"),)), "^age: one study reads a flag there, another a number"),
        (RecordSchema(flags=(FlagField("x"),), visits=2), "one visit a record, others several"),
    ],
)
def test_schemas_that_contradict_each_other_are_not_united(other, told):
    for schemas in ([SCHEMA, other], [other, SCHEMA]):
        with pytest.raises(InvalidSchema, match=told):
            united(schemas)


def test_nothing_is_no_schema():
    with pytest.raises(InvalidSchema, match="at least one field"):
        united([])
