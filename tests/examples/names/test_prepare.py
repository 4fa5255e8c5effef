from collections import Counter

import pytest

from ..conftest import are_prepared_alike, are_split_by, rows


def test_every_name_is_in_exactly_one_file(prepared):
    directory, report = prepared
    names = Counter(row["name"] for path in directory.rglob("*.csv") for row in rows(path))
    assert set(names.values()) == {1}
    assert sum(part["units"] + part["heldout_units"] for part in report.values()) == len(names) == 34738


def test_report_counts_what_the_files_hold(prepared):
    for site, part in prepared[1].items():
        assert len(rows(part["train"])) == part["units"], site
        assert len(rows(part["heldout"])) == part["heldout_units"], site
        assert 0.4 < part["female"] < 0.6, site


def test_split_is_a_function_of_the_name_alone(example, prepared):
    # Computed once with `printf 'x%s' NAME | sha256sum`: first byte below 0x40 is held out.
    known = {"aad": False, "maria": False, "john": False, "milica": True, "mehmet": True}
    assert {name: example.is_held_out(name) for name in known} == known
    assert are_split_by(example.is_held_out, prepared[1], "name")


@pytest.mark.parametrize(
    ("written", "read"),
    [("Åse", "ase"), ("Jürgen", "jurgen"), ("Søren", "soren"), ("Jun+Wei", "jun-wei"), ("O'Neil 2", "o'neil ")],
)
def test_names_are_read_without_accents(example, written, read):
    assert example.plain(written) == read


@pytest.mark.slow
def test_a_name_lives_where_it_is_most_common(example):
    home = example.read_table().set_index("name")["site"]
    known = {"giuseppe": "romance", "siobhan": "british", "bjorn": "nordic", "milica": "slavic", "mehmet": "east"}
    assert {name: home[name] for name in known} == known


@pytest.mark.slow
def test_preparing_twice_writes_the_same_bytes(example, prepared, tmp_path):
    assert are_prepared_alike(example, prepared, tmp_path)
