import json

import pytest

from confide.client_node.errors import StudyInvalid
from confide.client_node.study.terms import load_draft
from confide.client_node.study.toml import parse_json
from confide.coordinator.errors import StudyRefused
from confide.coordinator.federation.members import Member
from confide.coordinator.studies.dictionary import Dictionary
from confide.coordinator.studies.first_draft import Wishes, delta_of, first_draft, sample_rate_of
from confide.coordinator.studies.questions import Facts, questions

from .test_dictionary import PLAIN

TEXT = {"columns": [{"name": "note", "kind": "text"}, {"name": "finding", "kind": "label"}]}


def dictionary(plain=PLAIN):
    return Dictionary.model_validate_json(json.dumps(plain))


def members(sites, aggregators=3, *, state="invited"):
    named = [(f"site-{i}", "train") for i in range(sites)] + [(f"agg-{i}", "aggregate") for i in range(aggregators)]
    return [Member(name, roles, state, "") for name, roles in named]


def drafted(tmp_path, text):
    (tmp_path / "study.toml").write_text(text)
    return load_draft(tmp_path / "study.toml")


@pytest.mark.parametrize("sites", [2, 3, 4, 5, 40])
@pytest.mark.parametrize("units", [60, 6870, 3_000_000])
def test_what_is_written_is_a_draft_that_fits_the_federation(tmp_path, sites, units):
    units *= sites
    draft = drafted(tmp_path, first_draft(dictionary(), members(sites), Wishes(name="thyroid", units=units)))
    assert draft.participants.sites == tuple(f"site-{i}" for i in range(sites))
    assert draft.rounds.batch_units == pytest.approx(draft.privacy.sample_rate * units, abs=0.5)
    assert draft.privacy.delta <= 1 / units
    assert draft.rounds.batch_units <= 10_500  # the rate has two digits
    assert draft.quorum == (sites if sites < 4 else sites - 1)
    assert draft.privacy.mode == ("local" if sites == 2 else "distributed")
    assert questions(Facts(draft=draft, units=units, epsilon=3.0)) == ()


def test_columns_and_wishes_are_those_that_were_said(tmp_path):
    wishes = Wishes(name="t", units=999, unit="patient", epsilon=2.5, rounds=7, backbone="b/c")
    draft = drafted(tmp_path, first_draft(dictionary(), members(3), wishes))
    assert draft.data.label == "diagnosis"
    assert dict(draft.data.numeric) == {"age": (9, 18, 27, 36, 45, 54, 63, 72, 81), "TSH": (0.4, 4.0, 10.0)}
    assert (dict(draft.data.categorical), draft.data.flags) == ({"sex": ("F", "M")}, ("sick",))
    assert (draft.data.unit, draft.privacy.target_epsilon, draft.rounds.rounds) == ("patient", 2.5, 7)
    assert draft.model.backbone == "b/c"


def test_free_text_gets_a_template_of_its_columns(tmp_path):
    draft = drafted(tmp_path, first_draft(dictionary(TEXT), members(3), Wishes(name="t", units=999)))
    assert draft.data.text is not None
    assert draft.data.text.template().prompt_columns == ("note",)
    assert draft.data.text.template().completion_columns == ("finding",)


@pytest.mark.parametrize(("columns", "text"), [(("note",), "{note}"), (("a", "b"), "a: {a}\nb: {b}")])
def test_texts_whose_label_has_values_are_documents_that_a_head_reads(tmp_path, columns, text):
    label = {"name": "finding", "kind": "label", "values": ["none", "benign", "malign"]}
    described = dictionary({"columns": [*({"name": name, "kind": "text"} for name in columns), label]})
    draft = drafted(tmp_path, first_draft(described, members(3), Wishes(name="t", units=999)))
    assert draft.data.kind.name == "document"
    assert (draft.data.terms.text, draft.data.terms.label) == (text, "finding")
    assert draft.data.terms.classes == ("none", "benign", "malign")
    assert (draft.adapter.targets, draft.adapter.head) == ((), "pooled")


def test_a_label_with_values_is_one_of_several_classes(tmp_path):
    plain = {"columns": [*PLAIN["columns"][:-1], PLAIN["columns"][-1] | {"values": ["mild", "severe"]}]}
    assert plain["columns"][-1]["kind"] == "label"
    draft = drafted(tmp_path, first_draft(dictionary(plain), members(3), Wishes(name="t", units=999)))
    assert (draft.data.label, draft.data.classes) == ("diagnosis", ("mild", "severe"))


def test_words_with_quotes_and_lines_in_them_cannot_leave_their_place(tmp_path):
    odd = {"columns": [
        {"name": "a.b", "kind": "category", "values": ['say "x"', "a # b", "c\\d"], "description": "two\nlines"},
        {"name": "y", "kind": "label"},
    ]}  # fmt: skip
    draft = drafted(tmp_path, first_draft(dictionary(odd), members(3), Wishes(name="t", units=999)))
    assert dict(draft.data.categorical) == {"a.b": ('say "x"', "a # b", "c\\d")}
    with pytest.raises(StudyInvalid):
        first_draft(dictionary(), members(3), Wishes(name="t", units=999, unit="x\nname"))


def test_nothing_is_drafted_for_a_federation_that_is_too_small():
    with pytest.raises(StudyRefused, match=r"two sites or more.*3 aggregators"):
        first_draft(dictionary(), [], Wishes(name="t", units=999))
    with pytest.raises(StudyRefused, match="two sites or more"):
        first_draft(dictionary(), members(5, 3, state="revoked"), Wishes(name="t", units=999))


def test_rate_and_delta_follow_from_the_units():
    assert [sample_rate_of(n) for n in (1, 50_000, 100_000, 3_000_000)] == [0.2, 0.2, 0.1, 0.0033]
    assert [delta_of(n) for n in (50, 6870, 10_000, 10_001, 3_000_000)] == [1e-5, 1e-5, 1e-5, 1e-6, 1e-8]


LABELS = [
    {"name": "Stay", "kind": "label"},
    {"name": "next.visits", "kind": "label", "values": ["none", "some"]},
    {"name": "cost", "kind": "label", "low": 0.0, "high": 4.0},
    {"name": "COST", "kind": "label"},
]


def test_several_labels_are_tasks_of_one_study(tmp_path):
    plain = {"columns": [*PLAIN["columns"][:-1], *LABELS]}
    draft = drafted(tmp_path, first_draft(dictionary(plain), members(3), Wishes(name="t", units=999)))
    tasks = draft.data.tasks
    assert set(tasks) == {"stay", "next.visits", "cost", "cost-2"}
    assert (tasks["stay"].label, tasks["next.visits"].classes) == ("Stay", ("none", "some"))
    assert tasks["cost"].number.model_dump() == {"column": "cost", "low": 0.0, "high": 4.0, "within": 0.4}


def test_one_number_is_learned_as_a_point_of_its_scale(tmp_path):
    plain = {"columns": [*PLAIN["columns"][:-1], LABELS[2]]}
    draft = drafted(tmp_path, first_draft(dictionary(plain), members(3), Wishes(name="t", units=999)))
    assert (draft.data.label, draft.data.number.column, draft.data.number.within) == (None, "cost", 0.4)


def test_documents_may_tell_several_things(tmp_path):
    plain = {"columns": [{"name": "note", "kind": "text"}, *LABELS[1:3]]}
    draft = drafted(tmp_path, first_draft(dictionary(plain), members(3), Wishes(name="t", units=999)))
    assert (draft.data.kind.name, set(draft.data.terms.tasks)) == ("document", {"next.visits", "cost"})
    with pytest.raises(StudyInvalid, match="Stay would be written"):
        parse_json(
            json.dumps({"columns": [plain["columns"][0], *LABELS[:2]]}), Dictionary, error=StudyInvalid, source="d"
        )


@pytest.mark.parametrize("labels", [LABELS[:1], LABELS[1:3]])
def test_an_order_makes_all_rows_of_a_person_one_record(tmp_path, labels):
    plain = {"columns": [{"name": "day", "kind": "order"}, *PLAIN["columns"][:-1], *labels]}
    draft = drafted(tmp_path, first_draft(dictionary(plain), members(3), Wishes(name="t", units=999)))
    terms = draft.data.terms
    assert (draft.data.kind.name, terms.order, terms.visits) == ("history", "day", 8)
    assert (draft.data.max_tokens, draft.data.max_records_per_unit) == (64, 1)
    assert dict(terms.numeric)["TSH"] == (0.4, 4.0, 10.0)
    assert len(terms.tasks or labels) == len(labels)


def test_names_of_tasks_are_short_and_none_is_taken_twice(tmp_path):
    names = ["A", "a", "a-2", "x" * 64, "X" * 64]
    plain = {"columns": [PLAIN["columns"][0], *({"name": name, "kind": "label"} for name in names)]}
    draft = drafted(tmp_path, first_draft(dictionary(plain), members(3), Wishes(name="t", units=999)))
    assert set(draft.data.tasks) == {"a", "a-2", "a-2-2", "x" * 58, "x" * 58 + "-2"}


def test_a_document_may_tell_a_label_of_0_and_1_beside_others(tmp_path):
    stay = LABELS[0] | {"values": ["0", "1"]}
    plain = {"columns": [{"name": "note", "kind": "text"}, stay, LABELS[2]]}
    draft = drafted(tmp_path, first_draft(dictionary(plain), members(3), Wishes(name="t", units=999)))
    assert (draft.data.terms.tasks["stay"].label, draft.data.terms.tasks["stay"].classes) == ("Stay", None)


@pytest.mark.parametrize(("columns", "visits"), [(300, 8), (600, 6), (1000, 4)])
def test_a_history_of_many_columns_has_fewer_visits(tmp_path, columns, visits):
    numbers = [{"name": f"n{i}", "kind": "number", "low": 0, "high": 9} for i in range(columns)]
    plain = {"columns": [{"name": "day", "kind": "order"}, *numbers, LABELS[0]]}
    draft = drafted(tmp_path, first_draft(dictionary(plain), members(3), Wishes(name="t", units=999)))
    assert draft.data.terms.visits == visits
