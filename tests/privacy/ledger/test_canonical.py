from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from confide.privacy.ledger import canonical
from confide.privacy.ledger.charges import Charge

from ..ledgers import charge, signer


@dataclass(frozen=True)
class Reading:
    name: str
    value: float


def test_canonical_json_is_what_it_was():
    assert canonical.encode({"b": [1, True, None], "a": "ä"}) == b'{"a":"\\u00e4","b":[1,true,null]}'


@pytest.mark.parametrize("value", [1.5, {"a": float("nan")}, [b"x"], {1: 2}])
def test_what_has_no_canonical_form_is_refused(value):
    with pytest.raises(ValueError, match=r"canonical form|names must be text"):
        canonical.encode(value)


@pytest.mark.parametrize("text", ['{"a":1,"a":2}', "[NaN]", "[1", b"\xff", "[" * 100_000])
def test_what_is_not_strict_json_is_refused(text):
    with pytest.raises(ValueError, match=r".*"):
        canonical.decode(text)


@given(st.text(min_size=1, max_size=20), st.floats(allow_nan=False, allow_infinity=False))
def test_records_come_back_exactly(name, value):
    written = canonical.encode(canonical.to_record(Reading(name, value)))
    assert canonical.from_record(Reading, canonical.decode(written)) == Reading(name, value)


def test_nested_records_come_back_and_whole_numbers_count_as_reals():
    assert canonical.from_record(Charge, canonical.to_record(charge())) == charge()
    assert canonical.to_record(Reading("x", 1)) == canonical.to_record(Reading("x", 1.0))


@pytest.mark.parametrize(
    "change",
    [
        {"round": 1.0},
        {"round": True},
        {"round": "1"},
        {"round": 2**70},
        {"cohort": "east"},
        {"cohort": [1]},
        {"run": ""},
        {"run": "x" * 300},
        {"release": {}},
        {"relation": "replace_one"},
        {"extra": 1},
    ],
)
def test_a_record_of_other_types_or_fields_is_refused(change):
    with pytest.raises(Exception, match=r"type or size|exactly the fields|relation must be"):
        canonical.from_record(Charge, canonical.to_record(charge()) | change)


@pytest.mark.parametrize("text", ["1.5", "0x1p+0", "0x1.0000000000000p+0 ", "nan", "inf", "0x1.8p+999999"])
def test_a_real_has_one_spelling(text):
    with pytest.raises(ValueError, match="value"):
        canonical.from_record(Reading, {"name": "x", "value": text})


def test_a_signature_holds_for_its_key_domain_and_message_only():
    key = canonical.public_hex(signer(1))
    signature = canonical.sign(signer(1), "one", b"message")
    assert canonical.is_signed(key, "one", b"message", signature)
    assert not canonical.is_signed(key, "two", b"message", signature)
    assert not canonical.is_signed(key, "one", b"massage", signature)
    assert not canonical.is_signed(canonical.public_hex(signer(2)), "one", b"message", signature)
    assert not canonical.is_signed("zz", "one", b"message", signature)
