"""Measured tiles are taken for the card and case that they were measured for, and no broken table is used."""

import json
from dataclasses import replace

import pytest

from confide.kernels import tiles
from confide.kernels.errors import UnfitTiles
from confide.kernels.tiles import TABLE, Card, Case, Measured, Tiling, as_json, by_analysis, chosen, measured

CASE = Case("nf4", 2, 16, 128)
OURS = replace(by_analysis(90, 128), runs=Tiling(16, 128, 32, 8, 2))
CARD, SIBLING = Card("One", 90), Card("Two", 90)


def table(*entries):
    return as_json([Measured(card, "versions and a day", {CASE: tilings}) for card, tilings in entries])


@pytest.fixture
def shipped(monkeypatch):
    """Has `chosen` know these entries."""

    def use(*entries):
        known = tuple(Measured(card, "v", {CASE: tilings}) for card, tilings in entries)
        monkeypatch.setattr(tiles, "measured", lambda: known)

    return use


def test_the_shipped_table_is_read():
    assert isinstance(measured(TABLE), tuple)


def test_a_table_reads_as_it_was_written(tmp_path):
    path = tmp_path / "tiles.json"
    path.write_text(table((CARD, OURS), (SIBLING, by_analysis(90, 128))))
    first, second = measured(path)
    assert (first.card, first.tilings, second.card) == (CARD, {CASE: OURS}, SIBLING)
    assert as_json([first, second]) == path.read_text()


def test_a_card_takes_its_own_tiles_before_those_of_its_kind(shipped):
    shipped((SIBLING, by_analysis(80, 128)), (CARD, OURS))
    assert chosen(CARD, CASE) == OURS


def test_a_card_that_was_not_measured_takes_tiles_of_its_capability_alone(shipped):
    shipped((SIBLING, OURS))
    assert chosen(CARD, CASE) == OURS
    assert chosen(Card("Three", 80), CASE) == by_analysis(80, 128)


@pytest.mark.parametrize("other", [{"format": "mixed"}, {"itemsize": 4}, {"rank": 64}, {"pairs": 16}])
def test_a_case_that_was_not_measured_takes_tiles_by_analysis(shipped, other):
    shipped((CARD, OURS))
    case = replace(CASE, **other)
    assert chosen(CARD, case) == by_analysis(90, case.pairs, case.itemsize, case.rank)


def changed(where, value):
    stated = json.loads(table((CARD, OURS)))
    *path, last = where
    place = stated
    for step in path:
        place = place[step]
    place[last] = value
    return json.dumps(stated)


FIRST = ("cards", 0, "tiles", 0)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"cards": {}}',
        "[" * 100_000,
        " " * 2**21,
        changed(("more",), 1),
        changed(("cards", 0, "name"), ""),
        changed(("cards", 0, "name"), "x" * 1000),
        changed(("cards", 0, "capability"), 0),  # the interpreter is no card
        changed(("cards", 0, "capability"), 90.0),
        changed(("cards", 0, "capability"), True),
        changed((*FIRST, "format"), "int4"),
        changed((*FIRST, "rank"), 20),
        changed((*FIRST, "gate_up"), [128, 128, 64, 8]),
        changed((*FIRST, "gate_up", 0), 64),  # other rows than the kernels that it shares a table of tiles with
        changed((*FIRST, "gate_up", 1), 100),
        changed((*FIRST, "gate_up", 2), 128),  # deeper than a block of codes
        changed((*FIRST, "gate_up", 3), 3),
        changed((*FIRST, "gate_up", 4), 0),
        changed((*FIRST, "gate_up", 4), "3"),
        table((CARD, OURS), (CARD, OURS)),
    ],
    ids=lambda text: text[:40],
)
def test_a_broken_table_is_refused_with_its_path(tmp_path, text):
    path = tmp_path / "tiles.json"
    path.write_text(text)
    with pytest.raises(UnfitTiles, match=r"tiles\.json"):
        measured(path)


def test_a_case_that_is_there_twice_is_refused(tmp_path):
    path = tmp_path / "tiles.json"
    stated = json.loads(table((CARD, OURS)))
    stated["cards"][0]["tiles"] *= 2
    path.write_text(json.dumps(stated))
    with pytest.raises(UnfitTiles, match="twice"):
        measured(path)
