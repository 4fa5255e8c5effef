import math
import re
from itertools import pairwise

import pytest

from confide.privacy.report import figures, schema
from confide.privacy.report.figures import Sheet
from confide.privacy.report.language import load
from confide.privacy.report.schema import RocPoint

from ..ledgers import audit_facts, eventful_report, membership_facts

WIDE = Sheet(load("en"))


@pytest.fixture(scope="module")
def account():
    return schema.parse(eventful_report()).sites[0].accounts[1]


def places(svg: str, kind: str) -> list[tuple[float, float]]:
    path = re.search(rf'<path class="{kind}" d="M([^"Z]+)', svg).group(1)
    return [tuple(map(float, pair.split())) for pair in path.split(" L")]


def test_spending_over_time_climbs_in_steps_that_end_where_the_course_does(account):
    along, over = str(figures.course(account, WIDE)), str(figures.over_time(account, "2026-11-25T12:00:00Z", WIDE))
    steps = places(over, "guaranteed")
    assert all(later[0] >= earlier[0] and later[1] <= earlier[1] for earlier, later in pairwise(steps))
    assert all(later[0] == earlier[0] or later[1] == earlier[1] for earlier, later in pairwise(steps))
    assert steps[-1][1] == places(along, "guaranteed")[-1][1]


def test_charges_within_one_second_can_be_drawn(account):
    course = [point.model_copy(update={"time": "2026-03-01T09:00:00Z"}) for point in account.course]
    svg = figures.over_time(account.model_copy(update={"course": course}), "2026-03-01T09:00:00Z", WIDE)
    assert "nan" not in svg


def test_the_bar_of_an_audit_ends_before_the_mark_of_its_claim_exactly_if_the_claim_stands():
    for facts in (audit_facts(), audit_facts(lower_bound=3.0)):
        svg = str(figures.audits([facts], WIDE))
        x, width = map(
            float, re.search(r'<rect class="refuted[^"]*" x="([\d.]+)" y="[\d.]+" width="([\d.]+)"', svg).groups()
        )
        claim = float(re.search(r'<line class="claim" x1="([\d.]+)"', svg).group(1))
        assert (x + width < claim) == facts.passed
        assert ("failed" in svg) != facts.passed


def test_guessing_lies_on_the_diagonal_and_a_perfect_attack_in_what_is_ruled_out():
    rates = [10 ** (-3 + step / 10) for step in range(31)]
    guessing = membership_facts(roc=[RocPoint(false_positive_rate=rate, true_positive_rate=rate) for rate in rates])
    svg = str(figures.roc([guessing], (1.0, 1e-5), WIDE))
    x1, x2, y1, y2 = map(
        float, re.search(r'<line class="diagonal" x1="(\S+)" x2="(\S+)" y1="(\S+)" y2="(\S+)"', svg).groups()
    )
    for x, y in places(svg, "private"):
        assert y == pytest.approx(y1 + (y2 - y1) * (x - x1) / (x2 - x1), abs=0.2)
    limit = places(svg, "limit")
    assert all(y < y1 + (y2 - y1) * (x - x1) / (x2 - x1) + 0.2 for x, y in limit)


def test_without_a_guarantee_nothing_is_ruled_out():
    assert "ruled out" not in str(figures.roc([membership_facts(is_private=False)], None, WIDE))


def test_an_infinite_epsilon_is_said_to_be_unbounded(account):
    course = [
        *account.course[:-1],
        account.course[-1].model_copy(update={"pld": math.inf, "rdp": math.inf, "guaranteed": math.inf}),
    ]
    endless = account.model_copy(update={"course": course})
    for svg in (figures.course(endless, WIDE), figures.over_time(endless, "2026-11-25T12:00:00Z", WIDE)):
        assert "unbounded" in svg
        assert not re.search(r"\b(inf|nan)\b", svg)
