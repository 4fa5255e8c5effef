import json
import re

import pytest

from confide.client_node.study.cost import planned_releases
from confide.coordinator.page.comparing import MOST_MEASURED
from confide.coordinator.results.metrics import measurement
from confide.coordinator.store.tables import Evaluation, Round, Run
from confide.models.rounding import rounded_up
from confide.privacy.accounting import epsilon_pld

from ...client_node.conftest import EVALUATION
from ..conftest import SITES, committed_round, put_in_state
from ..results.test_metrics import evaluation


def measured_run(store, study, run: str, rounds: int = 3) -> None:
    """A run that is done after a few rounds, with an evaluation."""
    with store.session() as session:
        session.add(Run(id=run, study=study.study_hash, state="running", created_at=float(len(store.runs()))))
    lease = store.acquire_lease(run)
    for number in range(1, rounds + 1):
        row = committed_round(number, run=run, lease=lease, sent=1000)
        row.sites, row.seconds = json.dumps(SITES), float(number)
        store.commit_round(row)
    if study.draft.evaluation is not None:
        store.commit_round(evaluation(lease, run=run, number=41))
    put_in_state(store, run, "done")


@pytest.fixture
def runs(federation):
    first = federation.create(EVALUATION)
    second = federation.create(EVALUATION, ("noise_multiplier = 1.19", "noise_multiplier = 2.5"))
    bare = federation.create(("rounds = 40", "rounds = 30"))
    for number, study in enumerate((first, first, second, bare)):
        measured_run(federation.store, study, f"run-{number}")
    return federation.store


def text_of(answer) -> str:
    assert answer.status_code == 200, answer.text
    return " ".join(re.sub(r"<[^>]*>", " ", answer.text).split())


def test_runs_of_two_studies_show_the_terms_that_differ_and_no_others(page, runs):
    told = text_of(page.get("/compare?run=run-0&run=run-2"))
    assert "noise multiplier 1.19 2.5" in told
    differs = told.partition("Terms that differ")[2]
    assert "clip norm" not in differs
    assert "rounds" not in differs


def test_runs_of_one_study_differ_in_no_term(page, runs):
    assert "None: all are runs of one study." in text_of(page.get("/compare?run=run-0&run=run-1"))


def test_what_was_measured_stands_beside_each_other_with_its_interval(page, runs):
    found = measurement(runs, "run-0").metrics.auc
    answer = page.get("/compare?run=run-0&run=run-2&run=run-3")
    told = text_of(answer)
    assert f"{found.value:.3f} ({found.low:.3f} to {found.high:.3f})" in told
    assert "its study asks for no evaluation" in told
    assert answer.text.count("<svg") == 2  # for a wide page and a narrow one
    assert f"A, run-0: {found.value:.3f}" in answer.text


def test_seconds_and_bytes_are_those_of_the_rounds(page, runs):
    told = text_of(page.get("/compare?run=run-3&run=run-0"))
    assert "Seconds a round, the middle one 2.0" in told
    assert "Sent by each site 3.0 kB 3.0 kB" in told


@pytest.mark.parametrize(
    "query", ["", "run=run-0", "run=run-0&run=run-0", "run=run-0&run=run-1&run=run-2&run=run-3&run=x"]
)
def test_other_than_two_to_four_runs_are_not_compared(page, runs, query):
    answer = page.get(f"/compare?{query}")
    assert "Two to four" in text_of(answer)
    assert answer.text.count('type="checkbox"') == 4


def test_a_run_that_is_not_there_is_told(page, runs):
    assert page.get("/compare?run=run-0&run=" + "x" * 5000).status_code == 404


def test_without_runs_the_page_says_so(page):
    assert "No run yet" in text_of(page.get("/compare"))


def rows_of(answer, label: str) -> list[list[str]]:
    """The cells of the table in a region, row by row."""
    table = re.search(rf'aria-label="{label}">.*?</table>', answer.text, re.S)[0]
    rows = re.findall(r"<tr>(.*?)</tr>", table, re.S)[1:]
    return [
        [" ".join(re.sub(r"<[^>]*>", " ", cell).split()) for cell in re.split("</t[hd]>", row)[:-1]] for row in rows
    ]


def test_a_study_shows_each_charged_evaluation_over_what_its_runs_had_spent_by_then(page, federation):
    study = federation.create(EVALUATION)
    opened = []
    for number in range(3):
        measured_run(federation.store, study, f"run-{number}", rounds=3 + number)
        with federation.store.session() as session:  # a day after the other
            for table in (Round, Evaluation):
                for row in session.query(table).filter(table.run == f"run-{number}"):
                    row.committed_at = 86_400.0 * (number + 1)
        opened.append([*range(1, 4 + number), 41])
    answer = page.get(f"/studies/{study.study_hash}")
    told = rows_of(answer, "Measured by runs")
    assert [row[0] for row in told] == ["A run-0", "B run-1", "C run-2"]
    assert [row[1] for row in told] == ["1970-01-02 00:00", "1970-01-03 00:00", "1970-01-04 00:00"]
    release, *closing = (kind for kind, _ in planned_releases(study, sites=len(study.sites)))
    for place, row in enumerate(told):
        updates = sum(len(own) - 1 for own in opened[: place + 1])
        spent = [release] * updates + closing * (place + 1)
        assert row[5] == rounded_up(epsilon_pld(spent, 1e-5, study.draft.privacy.collusion))
        auc = measurement(federation.store, f"run-{place}").metrics.auc
        assert row[2:4] == [f"{auc.value:.3f}", f"{auc.low:.3f} to {auc.high:.3f}"]
    assert answer.text.count('<svg class="measured"') == 2
    assert answer.text.count('class="way"') == 2


def test_of_many_measured_runs_a_study_shows_the_newest_and_says_so(page, federation):
    study = federation.create(EVALUATION)
    for number in range(MOST_MEASURED + 1):
        measured_run(federation.store, study, f"run-{number:02}", rounds=1)
        with federation.store.session() as session:
            session.get(Evaluation, f"run-{number:02}").committed_at = 86_400.0 * (number + 1)
    answer = page.get(f"/studies/{study.study_hash}")
    names = [row[0].split()[1] for row in rows_of(answer, "Measured by runs")]
    assert names == [f"run-{number:02}" for number in range(1, MOST_MEASURED + 1)]
    assert f"The newest {MOST_MEASURED} are shown" in answer.text


def test_a_study_shows_nothing_that_was_not_charged(page, runs):
    bare = runs.run("run-3").study
    told = text_of(page.get(f"/studies/{bare}"))
    assert "the study asks for no evaluation" in told
    assert "95 % interval" not in told
    told = text_of(page.get("/runs/run-0"))
    assert "After round 3, from one noised histogram that 4 sites charged" in told
    assert "no curve over rounds" in told


def test_what_was_measured_without_noise_is_not_called_fit_to_be_published(page, federation):
    without = (("noise_multiplier = 1.19\n", ""), ("delta = 1e-5\n", ""), ('"distributed"', '"none"'))
    asks = (EVALUATION[0], EVALUATION[1].replace("noise_multiplier = 4.0\n", ""))
    measured_run(federation.store, federation.create(asks, *without), "run-1")
    told = text_of(page.get("/runs/run-1"))
    assert "from one histogram of 4 sites, without noise" in told
    assert "may be published" not in told


def test_the_list_of_runs_leads_to_the_comparison(page, runs):
    assert 'href="/compare"' in page.get("/runs").text
