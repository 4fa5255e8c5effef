"""The order of rows in a source decides nothing: neither who is drawn, nor what is released of them."""

import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from confide.client_node.data import read
from confide.client_node.policy.site_policy import load_policy
from confide.client_node.training.warm_model import WarmModel

from ..test_node import NONE, make_desk

HEADER = "patient_id,age,tsh_miu_l,sex,sick,diagnosis\n"
CELLS = st.tuples(
    st.sampled_from(["p1", "p2", "p10", "é", "P1"]),
    st.sampled_from(["20", "30.5", ""]),
    st.sampled_from(["1e-3", "4", "?"]),
    st.sampled_from(["F", "M", "female", ""]),
    st.sampled_from(["t", "no"]),
    st.sampled_from(["0", "1"]),
)


def written(site, rows):
    (site.home / "patients.csv").write_text(HEADER + "".join(f"{row}\n" for row in rows))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(CELLS.map(",".join), min_size=1), randomness=st.randoms(use_true_random=False))
def test_a_permuted_table_gives_the_same_records(site, rows, randomness):
    found = []
    for _ in range(2):
        written(site, rows)
        found.append(read(load_policy(site.home), site.study(), site=None, in_order=True))
        randomness.shuffle(rows)
    first, second = found
    np.testing.assert_array_equal(first.units, second.units)
    np.testing.assert_array_equal(first.labels, second.labels)
    for name, column in first.columns.items():
        np.testing.assert_array_equal(column, second.columns[name])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(CELLS, min_size=1))
def test_records_are_those_of_the_table_each_with_its_own_unit(site, rows):
    """Against a plain reading of the rows: as many of each, and the same ones together."""
    written(site, map(",".join, rows))
    records = read(load_policy(site.home), site.study(), site=None, in_order=True)
    ids = sorted({row[0].encode() for row in rows})
    told = Counter(
        (
            ids.index(unit.encode()),
            str(float(age or "nan")),
            {"female": "F", "": None}.get(sex, sex),
            sick == "t",
            label,
        )
        for unit, age, _, sex, sick, label in rows
    )
    ages, sexes, sick = (records.columns[name].tolist() for name in ("age", "sex", "sick"))
    labels = map(str, records.labels.tolist())
    found = zip(records.units.tolist(), map(str, ages), sexes, sick, labels, strict=True)
    assert Counter(found) == told
    assert sorted(records.units.tolist()) == records.units.tolist()


@pytest.mark.parametrize("seed", range(3))
def test_a_permuted_table_gives_the_same_draw(site, seed):
    """Bit by bit, where the coins follow from the study: who is drawn, which of a unit's records, what is added."""
    shuffled = random.Random(seed)
    rows = [
        f"p{unit},{shuffled.randrange(90)},{shuffled.random():.3f},{shuffled.choice('FM')},t,{shuffled.randrange(2)}"
        for unit in range(30)
        for _ in range(shuffled.randrange(1, 5))  # a unit takes part with two at most
    ]
    desk = make_desk(
        site, *NONE, ("sample_rate = 0.2", "sample_rate = 0.5"), ("batch_units = 1374", "batch_units = 60")
    )
    policy, planned, found = load_policy(site.home), desk.study.planned_round(1), []
    for _ in range(3):
        written(site, rows)
        compute = WarmModel("svi").contribution(desk.study, policy, planned)
        found.append(compute(np.zeros(desk.study.dim, np.float32)))
        shuffled.shuffle(rows)
    assert np.any(found[0])
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])
