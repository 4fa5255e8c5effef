from pathlib import Path

import numpy as np
import pytest

OWNERS = ("insurer", "hospital")
BOTH = pytest.mark.parametrize("owner", OWNERS)


@pytest.fixture(scope="module")
def paths(fraud, tmp_path_factory):
    report = fraud.prepare.prepare(tmp_path_factory.mktemp("tables"))
    return {owner: Path(report[owner]["path"]) for owner in OWNERS}


@BOTH
def test_no_row_is_longer_than_its_owners_half(fraud, paths, owner):
    squares = [sum(int(unit) ** 2 for unit in row) for row in fraud.columns.read(paths[owner], owner).features]
    assert max(squares) <= fraud.columns.MAX_SQUARE == 2**27
    assert np.median(squares) > 0.8 * 2**27  # the noise is for the whole room, so most of it is used


@BOTH
def test_a_row_follows_from_its_own_fields_alone(fraud, paths, owner, tmp_path):
    """No mean, quantile or range of the table is in a row, so nobody else's record is."""
    head, *lines = paths[owner].read_text().splitlines()
    few = tmp_path / "few.csv"
    few.write_text("\n".join([head, *lines[:5]]))
    every = fraud.columns.read(paths[owner], owner)
    assert (fraud.columns.read(few, owner).features == every.features[:5]).all()


@BOTH
def test_values_outside_every_range_make_no_longer_row(fraud, owner):
    names = fraud.prepare.INSURER if owner == "insurer" else fraud.prepare.HOSPITAL
    flags = {"female", "idp", "hlthf", "hlthp", "physlm"}
    for value in (-1e9, 0.0, 1e9):
        table = {name: np.array([min(max(value, 0.0), 1.0) if name in flags else max(value, 0.0)]) for name in names}
        features = getattr(fraud.columns, owner)(table)
        assert 0 < (features**2).sum() <= fraud.columns.MAX_SQUARE


def test_an_empty_field_is_refused_where_a_number_must_be(fraud, paths, tmp_path):
    head, line, *_ = paths["insurer"].read_text().splitlines()
    fields = line.split(",")
    fields[head.split(",").index("income")] = ""
    broken = tmp_path / "broken.csv"
    broken.write_text("\n".join([head, ",".join(fields)]))
    with pytest.raises(ValueError, match="empty field"):
        fraud.columns.read(broken, "insurer")


def test_owners_hold_out_the_same_people_however_they_write_them(fraud):
    numbers = [f"{number:06}" for number in range(1_000)]
    ours = [fraud.columns.is_held_out(f"P-{one[:3]} {one[3:]}") for one in numbers]
    assert ours == [fraud.columns.is_held_out(f"p{one}") for one in numbers]
    assert 250 < sum(ours) < 350
