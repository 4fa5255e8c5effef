import pytest

from confide.coordinator.comparison.tried import Cell, Tried
from confide.coordinator.errors import StateDamaged

CELL = Cell(
    format=1, held_out="a" * 64, inputs="b" * 64, rung="words", site=None, asked="3", epsilon=3.0, noise_multiplier=2.0,
    seed=1, metric="AUC", value=0.9, low=0.8, high=0.95, records=100, seconds=0.1,
)  # fmt: skip


def changed(**values):
    return CELL.model_copy(update=values)


def test_what_was_added_is_read_back(tmp_path):
    cells = [CELL, changed(seed=2), changed(site="north", epsilon=None, asked="none")]
    tried = Tried(tmp_path / "new")
    for cell in cells:
        tried.add(cell)
    again = Tried(tmp_path / "new")
    assert again.cells == cells
    assert again.find("b" * 64, "words", None, 2) == cells[1]
    assert again.find("b" * 64, "words", None, 3) is None
    assert again.find("c" * 64, "words", None, 1) is None


def test_a_line_that_a_crash_cut_short_is_dropped_and_overwritten(tmp_path):
    tried = Tried(tmp_path)
    tried.add(CELL)
    whole = (tmp_path / "tried.jsonl").read_bytes()
    (tmp_path / "tried.jsonl").write_bytes(whole + whole[:40])
    again = Tried(tmp_path)
    assert again.cells == [CELL]
    again.add(changed(seed=2))
    assert Tried(tmp_path).cells == [CELL, changed(seed=2)]


@pytest.mark.parametrize("line", ["", "{}", "[1]", CELL.model_dump_json().replace('"format":1', '"format":2')])
def test_a_line_that_is_no_cell_is_refused_by_its_number(tmp_path, line):
    Tried(tmp_path).add(CELL)
    with (tmp_path / "tried.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(StateDamaged, match="line 2, is no cell"):
        Tried(tmp_path)


def test_looks_at_some_held_out_records_are_counted_over_all_invocations(tmp_path):
    for cell in (CELL, changed(seed=2), changed(inputs="c" * 64), changed(rung="head"), changed(held_out="d" * 64)):
        Tried(tmp_path).add(cell)
    count = Tried(tmp_path).count("a" * 64)
    assert (count.runs, count.rungs, count.settings, count.seeds) == (4, 2, 2, 2)
    assert str(count) == "4 runs: 2 rungs under 2 settings in all, 2 seeds"
