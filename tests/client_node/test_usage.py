"""Rounds and bytes of a day: counted before they happen, over restarts and whatever the clock does."""

import json
import logging

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from confide.client_node import usage
from confide.client_node.errors import FINAL_REFUSALS, FileDamaged, SiteAway, SiteNotReady
from confide.client_node.usage import FOR_REFUSALS, Usage
from confide.client_node.wire.messages import Prepare, Settle

from .conftest import site_in
from .test_node import RUN, make_desk

DAY = 86_400
MOST = 2**20


class Clock:
    """A clock that a person sets."""

    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def limited(site, *lines: str) -> None:
    site.write(("[limits]", "\n".join(["[schedule]", *lines, "[limits]"])))


@pytest.fixture
def clock():
    return Clock(20_000 * DAY + 3600.0)


def test_bytes_of_a_day_are_counted_before_they_leave_and_over_restarts(site, clock):
    limited(site, f"bytes_a_day = {MOST}")
    Usage(site.home, clock).send(600_000)
    assert json.loads((site.home / usage.FILE).read_text())["bytes"] == 600_000
    with pytest.raises(SiteAway, match=r"600000 of 983040 bytes for answers .* goes on at 2024-10-05T00:00\+00:00"):
        Usage(site.home, clock).send(500_000)  # a new daemon
    Usage(site.home, clock).send(MOST - FOR_REFUSALS - 600_000)
    with pytest.raises(SiteAway):
        Usage(site.home, clock).send(1)
    clock.now += DAY
    Usage(site.home, clock).send(600_000)


@settings(deadline=None, max_examples=30)
@given(steps=st.lists(st.tuples(st.integers(-3 * DAY, 3 * DAY), st.integers(0, MOST)), min_size=5, max_size=25))
def test_whatever_the_clock_does_no_day_sends_more_than_its_limit_and_no_day_comes_twice(steps, tmp_path_factory):
    site, clock = site_in(tmp_path_factory.mktemp("usage")), Clock(20_000.5 * DAY)
    limited(site, f"bytes_a_day = {MOST}")
    sent, refused, reached = 0, 0, clock.now
    for by, size in steps:
        clock.now += by
        reached = max(reached, clock.now)
        try:
            Usage(site.home, clock).send(size)
        except (SiteAway, SiteNotReady):
            refused += size // 32 if Usage(site.home, clock).may_refuse(size // 32) else 0
            continue
        sent += size
    days = int(reached // DAY) - 20_000 + 1  # that the clock has ever shown
    assert sent <= days * (MOST - FOR_REFUSALS)
    assert refused <= days * FOR_REFUSALS


def test_a_clock_set_back_gives_nothing_back(site, clock):
    limited(site, f"bytes_a_day = {MOST}", "rounds_a_day = 1")
    today = Usage(site.home, clock)
    today.send(MOST - FOR_REFUSALS)
    today.begin_round("a", 1)
    for back in (3600, DAY, 400 * DAY):
        clock.now -= back
        with pytest.raises(SiteAway):
            today.send(1)
        with pytest.raises(SiteAway):
            today.begin_round("a", 2)


def test_refusals_take_the_last_bytes_and_then_nothing_leaves(site, clock):
    limited(site, f"bytes_a_day = {MOST}")
    today = Usage(site.home, clock)
    today.send(MOST - FOR_REFUSALS)
    assert today.may_refuse(FOR_REFUSALS - 1)
    assert not Usage(site.home, clock).may_refuse(2)
    assert today.may_refuse(1)
    assert not today.may_refuse(1)
    assert json.loads((site.home / usage.FILE).read_text())["refusals"] == FOR_REFUSALS


def test_a_day_of_refusals_outside_the_hours_takes_nothing_from_the_answers(site, clock):
    limited(site, f"bytes_a_day = {MOST}", 'hours = ["20:00-23:00"]')
    today, refused = Usage(site.home, clock), 0
    clock.now = 20_000 * DAY
    while clock.now < 20_000 * DAY + 20 * 3600:
        with pytest.raises(SiteAway) as away:
            today.require_open()
        refused += today.may_refuse(len(str(away.value).encode()))
        clock.now += 60
    assert 0 < refused < 20 * 60  # the last ones were kept back
    today.require_open()
    today.send(MOST - FOR_REFUSALS)


def test_answers_take_nothing_from_the_refusals_and_a_smaller_limit_holds_at_once(site, clock):
    limited(site, f"bytes_a_day = {2 * MOST}")
    Usage(site.home, clock).send(2 * MOST - FOR_REFUSALS)
    assert Usage(site.home, clock).may_refuse(1)
    limited(site, f"bytes_a_day = {MOST}")
    assert not Usage(site.home, clock).may_refuse(1)


def test_a_count_of_an_earlier_version_is_read_and_no_day_exceeds_its_limit(site, clock):
    """Its bytes were those of answers and refusals together."""
    limited(site, f"bytes_a_day = {MOST}")
    (site.home / usage.FILE).write_text(json.dumps({"format": 1, "day": 20_000, "bytes": MOST - 10, "rounds": []}))
    today = Usage(site.home, clock)
    with pytest.raises(SiteAway):
        today.send(1)
    assert today.may_refuse(10)
    assert not today.may_refuse(1)


def test_an_answer_that_fits_in_no_day_is_a_matter_for_people(site, clock):
    limited(site, f"bytes_a_day = {MOST}")
    with pytest.raises(SiteNotReady, match="leaves on no day"):
        Usage(site.home, clock).send(MOST)


def test_rounds_of_a_day_are_those_that_begin_and_one_asked_for_again_is_none(site, clock):
    limited(site, "rounds_a_day = 2")
    for number in (1, 2, 1, 2):
        Usage(site.home, clock).begin_round("a", number)
    with pytest.raises(SiteAway, match="2 of 2 rounds of today"):
        Usage(site.home, clock).begin_round("b", 1)
    clock.now += DAY
    Usage(site.home, clock).begin_round("b", 1)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format":2,"day":1}', '{"day":-1}', '{"day":1,"bytes":-5}'])
def test_a_damaged_count_lets_nothing_leave(site, clock, text, caplog):
    limited(site, f"bytes_a_day = {MOST}", "rounds_a_day = 2")
    (site.home / usage.FILE).write_text(text)
    today = Usage(site.home, clock)
    with pytest.raises(FileDamaged, match=r"usage\.json"):
        today.send(1)
    with pytest.raises(FileDamaged, match=r"usage\.json"):
        today.begin_round("a", 1)
    assert not today.may_refuse(1)
    assert "nothing leaves this node" in caplog.text


def test_a_node_without_limits_counts_nothing(site, clock):
    Usage(site.home, clock).send(2**40)
    Usage(site.home, clock).begin_round("a", 1)
    assert not (site.home / usage.FILE).exists()


def prepare(desk):
    return desk.ask("prepare", Prepare(to="svi", study=desk.study.study_hash, run=RUN, lease=1, ledger_from=0))


def test_outside_its_hours_a_node_charges_nothing_and_goes_on_inside(site, caplog):
    caplog.set_level(logging.INFO)
    desk = make_desk(site)
    clock = Clock(20_000 * DAY + 3 * 3600.0)  # 03:00 UTC
    desk.node._usage = Usage(site.home, clock)
    limited(site, 'hours = ["22:00-06:00"]')
    prepare(desk)
    desk.step(1)
    assert desk.charges() == ["reserve"]
    clock.now += 4 * 3600  # 07:00
    with pytest.raises(SiteAway, match=r"it goes on at 2024-10-04T22:00\+00:00"):
        desk.step(2)
    with pytest.raises(SiteAway):
        prepare(desk)
    assert desk.charges() == ["reserve"]
    desk.step(1)  # what is sealed is sent again: nothing is computed for it
    message = Settle(to="svi", study=desk.study.study_hash, run=RUN, lease=1, outcomes=(), final=False, ledger_from=0)
    desk.ask("settle", message)
    clock.now += 16 * 3600  # 23:00
    desk.step(2)
    assert desk.charges() == ["reserve", "reserve"]
    desk.node.stop()


def test_after_the_rounds_of_a_day_a_restarted_node_charges_nothing_more(site):
    desk = make_desk(site)
    limited(site, "rounds_a_day = 1")
    desk.step(1)
    desk.node.stop()
    again = desk.restarted()
    with pytest.raises(SiteAway, match="1 of 1 rounds"):
        again.step(2)
    assert again.charges() == ["reserve"]
    again.step(1)
    again.node.stop()


def test_every_answer_counts_with_all_its_bytes(site):
    desk = make_desk(site)
    limited(site, f"bytes_a_day = {2**30}")
    sent = prepare(desk).size + desk.step(1).size + desk.step(1).size
    assert json.loads((site.home / usage.FILE).read_text())["bytes"] == sent
    desk.node.stop()


def test_a_coordinator_does_not_take_an_absence_for_a_final_refusal():
    assert SiteAway.public
    assert SiteAway.__name__ not in FINAL_REFUSALS
