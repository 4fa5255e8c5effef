"""Answers leave at times that do not tell how many units were drawn."""

import json
import math
from collections.abc import Callable

import numpy as np
import pytest

from confide.client_node.errors import FileDamaged, StepFailed
from confide.client_node.policy import SitePolicy, load_policy
from confide.client_node.study import Study
from confide.client_node.training.public_time import LEAST_S, PublicTimes, next_on_grid
from confide.privacy.mechanism.sampling import poisson_sample

from ..conftest import EVALUATION, Site

UNITS, SAMPLE_RATE = 800, 0.2


class Clock:
    """A clock that only `sleep` and `pass_` move."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def pass_(self, seconds: float) -> None:
        self.now += seconds


class Model:
    """Stands for a loaded model: only its identity counts, and what its steps start from."""

    starts_from = "tokens"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def study(site: Site) -> Study:
    return site.study()


@pytest.fixture
def times(site: Site, clock: Clock) -> PublicTimes:
    return PublicTimes(site.home, clock, clock.pass_)


@pytest.fixture
def policy(site: Site) -> SitePolicy:
    return load_policy(site.home)


def took(
    times: PublicTimes,
    clock: Clock,
    study: Study,
    policy: SitePolicy,
    model: Model,
    seconds: float,
    *,
    round_number: int = 1,
    fails: bool = False,
) -> float:
    """Seconds until the answer of a step of `seconds` leaves."""
    before = clock.now
    planned = study.planned_round(round_number)
    try:
        with times.answered(study, planned, policy, model):
            clock.pass_(seconds)
            if fails:
                raise StepFailed("failed")
    except StepFailed:
        assert fails
    return clock.now - before


def test_times_tell_how_many_were_drawn_and_public_times_do_not(times, clock, study, policy):
    """The attack: a line through 200 steps' times and their numbers of units. Each unit takes 4 ms, a step 0.3 s."""
    drawn = [len(poisson_sample(UNITS, SAMPLE_RATE)) for _ in range(200)]
    steps = [0.3 + 0.004 * units for units in drawn]
    assert np.corrcoef(steps, drawn)[0, 1] > 0.999
    policy = policy.model_copy(update={"limits": policy.limits.model_copy(update={"answer_s": 2.0})})
    model = Model()
    seen = [took(times, clock, study, policy, model, seconds) for seconds in steps]
    assert seen == pytest.approx([2.0] * 200)  # the mean is 0.94 s, and 2 s are 23 standard deviations off


def test_without_a_stated_time_only_a_few_steps_tell_that_they_were_longer_than_all_before(times, clock, study, policy):
    model, steps = Model(), [0.3 + 0.004 * len(poisson_sample(UNITS, SAMPLE_RATE)) for _ in range(200)]
    seen = [took(times, clock, study, policy, model, seconds) for seconds in steps]
    assert all(answer >= step - 1e-9 for answer, step in zip(seen, steps, strict=True))
    assert seen[1:] == sorted(seen[1:])  # the first of all is of another kind
    assert len({round(one, 6) for one in seen[1:]}) <= 2  # 1 s, and where one of 200 was longer, 1.41 s


@pytest.mark.parametrize("fails", [False, True])
def test_failures_leave_at_the_same_time(times, clock, study, policy, fails):
    model = Model()
    took(times, clock, study, policy, model, 0.1)
    took(times, clock, study, policy, model, 0.9)
    assert took(times, clock, study, policy, model, 0.2, fails=fails) == pytest.approx(1.0)


def test_a_failure_that_takes_longer_counts_as_well(times, clock, study, policy):
    model = Model()
    took(times, clock, study, policy, model, 0.1)
    took(times, clock, study, policy, model, 0.9, fails=True)
    assert took(times, clock, study, policy, model, 0.1) == pytest.approx(1.0)


def test_kinds_have_times_of_their_own(times, clock, study, policy):
    """The first step of a model reads the table, and shall not slow down all others."""
    model = Model()
    assert took(times, clock, study, policy, model, 7.0) == pytest.approx(8.0)
    assert took(times, clock, study, policy, model, 0.9) == pytest.approx(1.0)
    assert took(times, clock, study, policy, model, 0.2) == pytest.approx(1.0)
    again = Model()
    assert took(times, clock, study, policy, again, 5.0) == pytest.approx(8.0)
    assert took(times, clock, study, policy, again, 0.2) == pytest.approx(1.0)


def test_a_stated_time_survives_a_restart_and_never_shrinks(site, times, clock, study, policy):
    took(times, clock, study, policy, Model(), 3.0)
    assert (site.home / "answer-times.json").stat().st_mode & 0o777 == 0o600
    later = PublicTimes(site.home, clock, clock.pass_)
    assert took(later, clock, study, policy, Model(), 0.1) == pytest.approx(4.0)


def test_a_disk_that_takes_no_note_lets_no_answer_go_early(times, clock, study, policy, monkeypatch):
    """A full disk also fails the step itself, which is then drawn anew: each try would tell how long it took."""

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("confide.client_node.training.public_time.write_private", full)
    model = Model()
    took(times, clock, study, policy, model, 0.1)
    assert took(times, clock, study, policy, model, 0.9, fails=True) == pytest.approx(1.0)
    assert took(times, clock, study, policy, model, 0.3, fails=True) == pytest.approx(1.0)


def test_what_was_noted_longest_ago_is_forgotten_first(site, times, clock, policy, monkeypatch):
    monkeypatch.setattr("confide.client_node.training.public_time.MAX_KINDS", 2)
    study, model = site.study(EVALUATION), Model()
    for seconds in (3.0, 0.9):  # the first one, then another
        took(times, clock, study, policy, model, seconds)
    took(times, clock, study, policy, Model(), 5.0)  # a first one again, longer
    took(times, clock, study, policy, model, 0.1, round_number=study.last_round)
    later = PublicTimes(site.home, clock, clock.pass_)
    assert took(later, clock, study, policy, Model(), 0.1) == pytest.approx(4 * 2**0.5)


def test_without_privacy_nothing_waits(site, times, clock, policy):
    bare = site.study(
        ('mode = "distributed"', 'mode = "none"'), ("noise_multiplier = 1.19\n", ""), ("delta = 1e-5\nmax", "max")
    )
    assert bare.draft.privacy.mode == "none"
    assert took(times, clock, bare, policy, Model(), 0.01) == pytest.approx(0.01)
    assert not (site.home / "answer-times.json").exists()


def test_a_damaged_file_stops_the_step_before_it_begins(site, times, clock, study, policy):
    (site.home / "answer-times.json").write_text(json.dumps({"seconds": {"x": -1.0}}))
    with pytest.raises(FileDamaged, match=r"answer-times.json does not hold what belongs there \(seconds.x\)"):
        took(times, clock, study, policy, Model(), 0.1)


def test_the_grid_grows_by_the_square_root_of_two_and_32_steps_reach_an_hour():
    rng = np.random.default_rng(7)
    for seconds in 10 ** rng.uniform(-3, 3.5, 2000):
        found = next_on_grid(seconds, LEAST_S)
        assert found >= seconds
        assert found == LEAST_S or found < seconds * 2**0.5 * (1 + 1e-12)
        assert abs(2 * math.log2(found / LEAST_S) % 1 - 0.5) > 0.499
    assert next_on_grid(1.0, 1.0) == 1.0
    assert 2 * math.log2(3600 / LEAST_S) < 32


def test_it_sleeps_on_when_it_wakes_too_early(site, clock, study, policy):
    naps: list[float] = []

    def light(seconds: float) -> None:
        naps.append(seconds)
        clock.pass_(min(seconds, 0.5))

    sleepy: Callable[[float], None] = light
    times = PublicTimes(site.home, clock, sleepy)
    assert took(times, clock, study, policy, Model(), 1.0 + 1e-6) == pytest.approx(2**0.5)
    long = policy.model_copy(update={"limits": policy.limits.model_copy(update={"answer_s": 4.0})})
    assert took(times, clock, study, long, Model(), 1.0) == pytest.approx(4.0)
    assert len(naps) > 2


def test_steps_from_kept_states_have_a_time_of_their_own(times, clock, study, policy):
    model = Model()
    for seconds in (9.0, 9.0):
        took(times, clock, study, policy, model, seconds)
    model.starts_from = "kept states"
    assert took(times, clock, study, policy, model, 0.5) < 0.8
    assert took(times, clock, study, policy, model, 0.2) == took(times, clock, study, policy, model, 0.4) < 0.8
    model.starts_from = "tokens"
    assert took(times, clock, study, policy, model, 0.2) > 9.0


def test_looking_for_kept_states_and_computing_them_last_until_public_times(times, clock, study, policy):
    def took_kept(part: str, seconds: float) -> float:
        before = clock.now
        with times.kept(study, policy, part):
            clock.pass_(seconds)
        return clock.now - before

    first = took_kept("computed", 5.0)
    assert first >= 5.0
    assert took_kept("computed", 1.0) == pytest.approx(first)
    assert took_kept("looked for", 0.5) < 0.8
