"""Hours by the wall clock, judged against a plain look at every minute."""

import datetime as dt
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from confide.client_node.errors import PolicyInvalid
from confide.client_node.policy import load_policy
from confide.client_node.policy.schedule import DAYS, SchedulePolicy

BERLIN = "Europe/Berlin"
TIMES = st.builds("{:02}:{:02}".format, st.integers(0, 23), st.integers(0, 59))
SPANS = st.tuples(TIMES, TIMES | st.just("24:00")).filter(lambda span: span[0] != span[1]).map("-".join)


def at(text: str, zone: str = BERLIN) -> dt.datetime:
    return dt.datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone))


def is_inside(span: str, days: tuple[str, ...], local: dt.datetime) -> bool:
    """An independent look: some day on which the span begins holds this minute of the wall clock."""
    begin, end = (int(part[:2]) * 60 + int(part[3:]) for part in span.split("-"))
    length = (end - begin) % 1440 or 1440
    minute = local.hour * 60 + local.minute
    for back in (0, 1):
        day = DAYS[(local.weekday() - back) % 7]
        if (not days or day in days) and 0 <= minute + 1440 * back - begin < length:
            return True
    return False


@given(
    spans=st.lists(SPANS, max_size=3, unique=True),
    days=st.lists(st.sampled_from(DAYS), max_size=7, unique=True),
    minutes=st.integers(0, 14 * 1440),
)
def test_hours_hold_by_the_wall_clock_over_midnight_and_on_their_days(spans, days, minutes):
    policy = SchedulePolicy(hours=tuple(spans), days=tuple(days))
    now = at("2026-03-20T00:00", "UTC") + dt.timedelta(minutes=minutes)
    expected = any(is_inside(span, tuple(days), now) for span in spans or ["00:00-24:00"])
    assert policy.is_open(now) is expected
    begins = policy.next_opening(now)
    assert policy.is_open(begins)
    assert begins == now if expected else now < begins <= now + dt.timedelta(days=8)
    assert expected or not policy.is_open(begins - dt.timedelta(minutes=1))


@pytest.mark.parametrize(
    ("clock", "is_open"),
    [
        ("2026-12-04T21:59", False),
        ("2026-12-04T22:00", True),
        ("2026-12-05T05:59", True),  # Saturday, of the hours that began on Friday
        ("2026-12-05T06:00", False),
        ("2026-12-05T23:00", False),
        ("2026-12-07T05:00", False),  # Monday, of hours that would have begun on Sunday
    ],
)
def test_a_night_belongs_to_the_day_on_which_it_begins(clock, is_open):
    policy = SchedulePolicy(hours=("22:00-06:00",), days=("mon", "tue", "wed", "thu", "fri"), timezone=BERLIN)
    assert policy.is_open(at(clock)) is is_open


def test_an_hour_that_the_clock_change_skips_begins_right_after_it():
    policy = SchedulePolicy(hours=("02:30-04:00",), timezone=BERLIN)
    begins = policy.next_opening(at("2026-03-29T01:30"))
    assert begins.isoformat() == "2026-03-29T03:00:00+02:00"


def test_a_node_without_a_schedule_is_always_open():
    assert SchedulePolicy().is_open(at("2026-12-04T21:59"))


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ('hours = ["22-6"]', "two different times of day"),
        ('hours = ["06:00-06:00"]', "two different times of day"),
        ('hours = ["22:00-24:30"]', "two different times of day"),
        ('hours = ["22:00-06:00"]\ntimezone = "Europe/Nowhere"', "a time zone that this machine knows"),
        ('hours = ["22:00-06:00"]\ntimezone = "../../etc/passwd"', "a time zone that this machine knows"),
        ('timezone = "Europe/Berlin"', "without hours or days"),
        ('days = ["monday"]', "schedule.days.0"),
        ("rounds_a_day = 0", "at least 1"),
        ("bytes_a_day = 1000", "at least"),
        ('hour = ["22:00-06:00"]', "did you mean hours"),
    ],
)
def test_a_schedule_that_says_nothing_clear_lets_nothing_run(site, lines, told):
    site.write(("[limits]", f"[schedule]\n{lines}\n[limits]"))
    with pytest.raises(PolicyInvalid) as problem:
        load_policy(site.home)
    assert told in str(problem.value)
