"""A few of the faults of `make faults`, in the federation that the other tests of this folder share."""

import sqlite3
from pathlib import Path

import pytest

from confide.coordinator.demo.processes import DemoFederation
from confide.coordinator.errors import DemoFailed

from .conftest import finish, start_run
from .faults import checks
from .faults.attempts import attempt
from .faults.bench import Bench, Missed, Stuck
from .faults.damages import damage
from .faults.flatness import slope
from .faults.kills import kill
from .faults.outcomes import Outcome, Outcomes
from .faults.page import BEGIN, END, tables, write_page

process = pytest.mark.process


@pytest.fixture(scope="module")
def reference(federation: DemoFederation) -> str:
    run = start_run(federation)
    finish(federation, run)
    return run


def begin(federation: DemoFederation, reference: str) -> Bench:
    return Bench.of(federation, start_run(federation), reference)


@process
@pytest.mark.parametrize(
    "kills",
    [
        (("SuperLink", "charge in the site's ledger"), ("MPC party", "set bound at the party")),
        (("drivers' worker", "answer stored at the site"), ("driver", "total at the coordinator")),
    ],
    ids=["SuperLink and party", "worker and driver"],
)
def test_what_is_killed_comes_back_and_nothing_is_lost_or_charged_twice(federation, reference, kills):
    bench = begin(federation, reference)
    for number, (kind, point) in zip((2, 4), kills, strict=True):
        outcome = kill(bench, Outcome(group="kill", fault="kill -9", target=kind, point=point), first=number)
        assert outcome.problems == []
        assert outcome.seconds is not None
    finish(federation, bench.run)
    assert checks.look(bench, is_over=True) == []
    assert bench.states(bench.run) == bench.reference


@process
def test_a_torn_journal_goes_on_and_a_cut_mark_stops_with_what_to_do(federation, reference):
    bench = begin(federation, reference)
    torn = damage(bench, Outcome(group="damage", fault="last line torn", target="journal"), first=2)
    assert (torn.problems, torn.told) == ([], "")
    cut = damage(bench, Outcome(group="damage", fault="cut", target="mark of complete shares"), first=4)
    assert cut.problems == []
    assert "south/complete is not JSON: it was cut short or changed" in cut.told
    assert "resume the run" in cut.told
    assert cut.mended == "folder deleted, `run resume`"  # as the sentence says
    finish(federation, bench.run)
    assert checks.look(bench, is_over=True) == []
    assert bench.states(bench.run) == bench.reference


def test_a_slope_is_of_what_comes_after_the_start():
    filled = [(number, float(min(number, 10))) for number in range(30)]
    grown = [(number, 5.0 + 0.25 * number) for number in range(0, 30, 3)]
    assert slope(filled) == pytest.approx(0, abs=1e-9)
    assert slope(grown) == pytest.approx(0.25)


class Idle(Bench):
    """Runs nothing: only what is written of a fault is looked at."""

    def ensure_run(self, *, needs: int = 8) -> None: ...

    def mend(self) -> None: ...


@pytest.mark.parametrize(
    ("error", "is_done"),
    [(Stuck("no commit"), True), (DemoFailed("no start"), True), (sqlite3.DatabaseError("damaged"), True),
     (Missed("no process"), False)],
    ids=lambda each: type(each).__name__,
)  # fmt: skip
def test_a_fault_from_which_nothing_comes_back_is_a_problem_and_a_missed_one_was_not_made(tmp_path, error, is_done):
    def fault(planned: Outcome) -> Outcome:
        raise error

    outcomes = Outcomes(tmp_path / "outcomes.jsonl")
    attempt(Idle(tmp_path, rounds=1), outcomes, Outcome(group="kill", fault="kill -9", target="driver"), fault)
    (found,) = outcomes.read()
    assert (found.is_done, found.problems) == (is_done, [str(error)] if is_done else [])


def test_the_page_keeps_its_words_and_gets_the_newest_of_each_fault(tmp_path: Path):
    page, outcomes = tmp_path / "faults.md", Outcomes(tmp_path / "outcomes.jsonl")
    page.write_text(f"# Before\n{BEGIN}\nold\n{END}\nafter\n")
    for seconds in (3.0, 4.5):
        outcomes.add(Outcome(group="kill", fault="kill -9", target="driver", point="round committed", seconds=seconds))
    outcomes.add(
        Outcome(group="damage", fault="cut", target="journal", told="journal is | cut", mended="file put back")
    )
    outcomes.add(Outcome(group="damage", fault="flipped", target="journal", problems=["round 3 has another state"]))
    write_page(page, outcomes.read())
    text = page.read_text()
    assert text.startswith(f"# Before\n{BEGIN}\n")
    assert text.endswith(f"{END}\nafter\n")
    assert "| kill -9 | driver | 1 | 4.5, 4.5, 4.5 | 1 |" in text
    assert "`journal is / cut`; then file put back" in text
    assert "**round 3 has another state**" in text
    assert "old" not in text


def test_a_flood_that_could_not_be_made_has_a_row_without_figures():
    figures = {"quiet": 1.0, "decoy": 1.5, "attack": 1.8}
    made = Outcome(group="flood", fault="idle", target="the gate", figures=figures)
    missed = Outcome(group="flood", fault="slow", target="the gate", told="not done: the run is failed")
    stuck = Outcome(group="flood", fault="keys", target="the gate", problems=["round 9: not within 420 s"])
    text = tables([made, missed, stuck])
    assert "| idle | 1.00, 1.50, 1.80 | 1.20 | 1.80 | none |" in text
    assert "| slow |  |  |  | not done: the run is failed |" in text
    assert "| keys |  |  |  | round 9: not within 420 s |" in text
