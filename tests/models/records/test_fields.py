import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from confide.models.errors import InvalidSchema, UnknownValue
from confide.models.records.fields import CategoricalField, FlagField, NumericField, RecordSchema

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
