import datetime as dt
import json

import pytest
from pydantic import ValidationError

from confide.client_node.wire.decisions import MOST, MOST_BYTES, DecisionsWord, ToldDecision

APPROVED = {"study": "ab" * 32, "verdict": "approved", "runs_left": 2, "until": "2026-12-31"}
REVOKED = {"study": "cd" * 32, "verdict": "revoked"}


def word(*decisions, **changed):
    said = {
        "identity": "12" * 32, "timestamp": 1.5, "nonce": "34" * 16, "coordinator": "56" * 32, "decisions": decisions,
    }  # fmt: skip
    return json.dumps(said | changed)


def test_a_word_says_for_each_study_what_holds_and_nothing_of_who_or_why():
    read = DecisionsWord.model_validate_json(word(APPROVED, REVOKED))
    assert read.decisions[0].until == dt.date(2026, 12, 31)
    assert read.decisions[1] == ToldDecision(study="cd" * 32, verdict="revoked", runs_left=0, until=None)
    assert {*ToldDecision.model_fields} == {"study", "verdict", "runs_left", "until"}
    assert DecisionsWord.model_validate_json(read.model_dump_json()) == read


@pytest.mark.parametrize(
    "text",
    [
        word(APPROVED, APPROVED),
        word(APPROVED | {"reason": "too costly"}),
        word(APPROVED | {"verdict": "proposed"}),
        word(APPROVED | {"runs_left": 1001}),
        word(APPROVED | {"runs_left": -1}),
        word(APPROVED | {"until": "31.12.2026"}),
        word(APPROVED | {"study": "AB" * 32}),
        word(REVOKED | {"runs_left": 1}),
        word(REVOKED | {"until": "2026-12-31"}),
        word(APPROVED, coordinator="no key"),
        word(APPROVED, by="anna"),
        word(*(REVOKED | {"study": f"{number:064x}"} for number in range(MOST + 1))),
    ],
)
def test_a_word_of_another_form_is_refused(text):
    with pytest.raises(ValidationError):
        DecisionsWord.model_validate_json(text)


def test_the_longest_word_fits_in_what_the_gate_reads():
    longest = [APPROVED | {"study": f"{number:064x}", "runs_left": 1000} for number in range(MOST)]
    assert len(DecisionsWord.model_validate_json(word(*longest)).model_dump_json()) < MOST_BYTES
