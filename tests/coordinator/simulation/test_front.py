"""The Pareto front and the fairness of sites, each against its definition."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from confide.coordinator.simulation.fairness import fairness
from confide.coordinator.simulation.front import pareto_front
from confide.coordinator.simulation.outcome import SiteOutcome

POINT = st.tuples(st.sampled_from([0.5, 1.0, 2.0, 8.0, None]), st.sampled_from([0.5, 0.6, 0.7, 0.8]))


def beats(one, other):
    """By definition: nowhere worse, and somewhere better."""
    (a, u), (b, v) = ((float("inf") if epsilon is None else epsilon, value) for epsilon, value in (one, other))
    return a <= b and u >= v and (a < b or u > v)


@given(st.lists(POINT, max_size=12))
def test_the_front_is_what_nothing_beats(points):
    front = pareto_front([epsilon for epsilon, _ in points], [value for _, value in points])
    want = {at for at, point in enumerate(points) if not any(beats(other, point) for other in points)}
    assert set(front) == want
    assert len(front) == len(want)
    costs = [float("inf") if points[at][0] is None else points[at][0] for at in front]
    assert costs == sorted(costs)


def site(metric, number=0, **facts):
    return SiteOutcome(name=f"s{number}", units=5, records=9, held_out=number, rounds=2, metric=metric, **facts)


@pytest.mark.parametrize("count", [1, 9, 10, 11, 100])
def test_the_worst_tenth_are_the_lowest_sites_and_one_at_least(count):
    values = np.random.default_rng(count).random(count)
    found = fairness([site(float(value), number) for number, value in enumerate(values)])
    worst = -(-count // 10)
    assert found.worst_tenth == pytest.approx(np.sort(values)[:worst].mean())
    assert (found.sites, found.lowest, found.highest) == (count, values.min(), values.max())
    assert found.median == pytest.approx(np.median(values))
    assert found.held_out == np.median(range(count))


def test_sites_that_cannot_be_judged_or_are_malicious_do_not_count():
    assert fairness([]) is None
    assert fairness([site(None), site(0.1, is_malicious=True)]) is None
    assert fairness([site(None), site(0.1, is_malicious=True), site(0.9)]).worst_tenth == 0.9
