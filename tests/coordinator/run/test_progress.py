import io
import re
from collections.abc import Callable

import pytest
from rich.console import Console

from confide.coordinator.run.progress import (
    Ended,
    Event,
    follow,
    planned_epsilon,
    sent_text,
    spent_text,
    step_text,
    watch,
)
from confide.coordinator.store.states import RunState
from confide.coordinator.store.tables import Run, StudyRow
from confide.privacy.accounting.composition import Release, epsilon_pld

from ...client_node.conftest import build_study, make_study, write_draft
from ..conftest import committed_round, put_in_state

__all__ = ["make_study", "write_draft"]  # fixtures
UNPROTECTED = (
    ('mode = "distributed"', 'mode = "none"'), ("noise_multiplier = 1.19\n", ""), ("delta = 1e-5\n", ""),
)  # fmt: skip


def test_epsilon_is_that_of_the_accountant_with_nothing_but_this_study(make_study):
    study = make_study()
    release = Release(
        mode="distributed",
        site_noise_int=round(1.19 / 3**0.5 * 2**24),  # three of four sites' noise is sure to be unknown
        scale_bits=24,
        clip_norm=1.0,
        dim=study.dim,
        sample_rate=0.2,
        sites=4,
    )
    exact = epsilon_pld([release] * 7, 1e-5, 1)
    assert planned_epsilon(study, 7, colluding=1) == pytest.approx(exact, rel=1e-3)  # whole units of noise


def test_epsilon_grows_from_nothing_to_the_whole(make_study):
    study = make_study()
    assert planned_epsilon(study, 0, colluding=1) == 0
    assert planned_epsilon(study, 20, colluding=1) < planned_epsilon(study, 40, colluding=1)
    assert planned_epsilon(study, 40, colluding=0) < planned_epsilon(study, 40, colluding=1)


def event(**values) -> Event:
    """A run that is told of, two of its 40 rounds committed."""
    standing = {"state": RunState.RUNNING, "step": "", "rounds": 2, "rounds_planned": 40, "error": None}
    spent = {"epsilon": None, "epsilon_planned": None, "bytes_per_site": 0}
    return Event(run="run-1", **(standing | spent | values))


def test_the_watcher_reads_the_plan_so_far_and_the_whole_plan_rounded_up(make_study):
    study = make_study()
    now, whole = (planned_epsilon(study, rounds, colluding=1) for rounds in (10, 40))
    shown = [float(text) for text in re.findall(r"[\d.]+", spent_text(event(epsilon=now, epsilon_planned=whole)))]
    assert now <= shown[0] < now + 0.01
    assert whole <= shown[1] < whole + 0.01
    assert spent_text(event(epsilon=0.0, epsilon_planned=whole)).startswith("ε 0.00 of ")


def test_a_study_without_privacy_is_named_so():
    assert spent_text(event()) == "[red]no privacy[/]"


@pytest.mark.parametrize(("sent", "text"), [(0, "0.0 MB a site"), (1_250_000, "1.2 MB a site")])
def test_bytes_are_written_as_megabytes(sent, text):
    assert sent_text(event(bytes_per_site=sent)) == text


@pytest.mark.parametrize(
    ("state", "text"), [("running", "round 3: asks 4 sites"), ("pending", "pending"), ("stopping", "stopping")]
)
def test_the_step_is_shown_only_while_somebody_takes_it(state, text):
    assert step_text(Run(id="run-1", state=state, step="round 3: asks 4 sites")) == text


@pytest.fixture
def store(empty_store, write_draft):
    """A run with two committed rounds of a study without privacy, which needs no accountant."""
    study = build_study(write_draft(*UNPROTECTED), {})
    with empty_store.session() as session:
        session.add(
            StudyRow(hash=study.study_hash, name="thyroid", canonical=study.canonical(), signature="", created_at=0.0)
        )
    with empty_store.session() as session:
        session.add(Run(id="run-1", study=study.study_hash, state="running", created_at=0.0))
    lease = empty_store.acquire_lease("run-1")
    for number in (1, 2):
        empty_store.commit_round(committed_round(number, lease=lease, sent=1_250_000))
    return empty_store


def console(*, is_terminal: bool = True) -> Console:
    return Console(file=io.StringIO(), width=200, force_terminal=is_terminal)


@pytest.mark.parametrize(
    ("state", "error"), [("done", None), ("stopped", None), ("failed", "SitesMissing: no [/] answer")]
)
def test_watching_ends_with_the_run(store, state, error):
    put_in_state(store, "run-1", state, error=error)
    assert watch(store, "run-1", console()) == Ended(state, 2, error)


def test_watching_goes_on_until_the_run_ends(store):
    looks = []

    def check() -> None:
        looks.append(store.run("run-1").state)
        if len(looks) == 2:
            put_in_state(store, "run-1", "done")

    assert watch(store, "run-1", console(), check=check).state == "done"
    assert looks == ["running", "running"]


def test_what_the_check_raises_ends_the_watching(store):
    class ServerGone(Exception):
        pass

    def check() -> None:
        raise ServerGone

    with pytest.raises(ServerGone):
        watch(store, "run-1", console(), check=check)


def test_the_bar_shows_rounds_bytes_and_step(store):
    store.beat("run-1", 1, "round 3: asks 4 sites")
    screen = console()
    watch(store, "run-1", screen, check=lambda: put_in_state(store, "run-1", "done"))
    shown = screen.file.getvalue()
    assert "2/40" in shown
    assert "2.5 MB a site" in shown
    assert "no privacy" in shown


def commits(store, number: int, then: int) -> Callable[[], None]:
    """A check that commits a round each time it is called, up to `then`, and ends the run after that."""
    numbers = iter(range(number, then + 1))

    def check() -> None:
        if (following := next(numbers, None)) is None:
            put_in_state(store, "run-1", "failed", error="SitesMissing: no [/] answer")
        else:
            store.commit_round(committed_round(following, lease=1, sent=1_250_000))

    return check


def test_where_nobody_looks_at_a_terminal_a_line_is_printed_for_each_round_and_state(store):
    screen = console(is_terminal=False)
    watch(store, "run-1", screen, check=commits(store, 3, 4))
    lines = screen.file.getvalue().splitlines()
    assert [line.partition("run-1: ")[2] for line in lines] == [
        "round 2 of 40, running, no privacy, 2.5 MB a site",
        "round 3 of 40, running, no privacy, 3.8 MB a site",
        "round 4 of 40, running, no privacy, 5.0 MB a site",
        "round 4 of 40, failed, no privacy, 5.0 MB a site",
    ]
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ run-1: ", line) for line in lines)


def test_every_change_is_told_once_with_the_error_at_the_end(store):
    told = []
    ended = follow(store, "run-1", told.append, check=commits(store, 3, 3))
    assert ended == Ended(RunState.FAILED, 3, "SitesMissing: no [/] answer")
    assert [(each.rounds, each.state, each.error) for each in told] == [
        (2, "running", None),
        (3, "running", None),
        (3, "failed", "SitesMissing: no [/] answer"),
    ]


def test_events_of_a_private_run_have_the_epsilon_so_far_and_planned(empty_store, make_study):
    study = make_study()
    with empty_store.session() as session:
        session.add(
            StudyRow(hash=study.study_hash, name="t", canonical=study.canonical(), signature="", created_at=0.0)
        )
    with empty_store.session() as session:
        session.add(Run(id="run-1", study=study.study_hash, state="running", created_at=0.0))
    empty_store.commit_round(committed_round(1, lease=empty_store.acquire_lease("run-1")))
    put_in_state(empty_store, "run-1", "done")
    told = []
    follow(empty_store, "run-1", told.append)
    assert told[0].epsilon == planned_epsilon(study, 1, colluding=1)
    assert told[0].epsilon_planned == planned_epsilon(study, 40, colluding=1)
