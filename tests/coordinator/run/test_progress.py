import io
import re

import pytest
from rich.console import Console

from confide.coordinator.run.progress import Ended, planned_epsilon, sent_text, spent_text, step_text, watch
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


def test_the_watcher_reads_the_plan_so_far_and_the_whole_plan_rounded_up(make_study):
    study = make_study()
    now, whole = (planned_epsilon(study, rounds, colluding=1) for rounds in (10, 40))
    shown = [float(text) for text in re.findall(r"[\d.]+", spent_text(study, 10))]
    assert now <= shown[0] < now + 0.01
    assert whole <= shown[1] < whole + 0.01
    assert spent_text(study, 0).startswith("ε 0.00 of ")


def test_a_study_without_privacy_is_named_so(make_study):
    assert spent_text(make_study(*UNPROTECTED), 3) == "[red]no privacy[/]"


@pytest.mark.parametrize(("rounds", "text"), [(0, "0.0 MB a site"), (1, "1.2 MB a site"), (4, "5.0 MB a site")])
def test_bytes_are_added_up_over_rounds(rounds, text):
    assert sent_text([committed_round(number, sent=1_250_000) for number in range(rounds)]) == text


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


def console() -> Console:
    return Console(file=io.StringIO(), width=200)


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
