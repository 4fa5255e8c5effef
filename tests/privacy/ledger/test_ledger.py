import math
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import textwrap
import threading
from dataclasses import replace
from pathlib import Path

import dp_accounting as dpa
import pytest

from confide.privacy.accounting import composition, renyi
from confide.privacy.errors import (
    BudgetExceeded,
    BudgetMissing,
    ChargeConflict,
    InvalidPrivacyParameter,
    LedgerBroken,
    LedgerUnavailable,
    UnprotectedRefused,
)
from confide.privacy.ledger import canonical, charges
from confide.privacy.ledger.chain import START, Head, extend
from confide.privacy.ledger.entry_store import EntryStore
from confide.privacy.ledger.ledger import Ledger, verify_chain

from ..ledgers import SITES, STUDY, budget, charge, ledger_with, release, signer


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ledger.db"


@pytest.fixture
def ledger(path):
    with Ledger.open(path, signer(), "east") as ledger:
        ledger.set_budget(budget())
        yield ledger


def guaranteed(releases, cap=8.0, *, delta=1e-5, colluding=1, order=None):
    """The filter's definition: what the releases' divergences at the cap's own order add up to, as an epsilon."""
    order = order or renyi.filter_order(cap, delta)
    divergence = sum(
        count * renyi.curve(*pair)[list(renyi.ORDERS).index(order)]
        for *pair, count in composition.merge(releases, colluding)
    )
    surcharge = math.log1p(-1 / order) - (math.log(delta) + math.log(order)) / (order - 1)
    return pytest.approx(divergence + surcharge, rel=1e-12)


def cap_for(releases, *, colluding=1):
    """The least of many caps under which the filter admits the releases."""
    caps = (step / 100 for step in range(1, 2000))
    return next(cap for cap in caps if cap >= guaranteed(releases, cap, colluding=colluding).expected)


def test_entry_0_binds_site_key_and_format(ledger):
    first = ledger.entries()[0]
    assert first.kind == "open"
    assert first.body == {"format": "confide-ledger-2", "site": "east", "public_key": ledger.public_key}


def test_what_was_charged_is_there_after_reopening(path):
    with ledger_with(path) as ledger:
        head, spent = ledger.head, ledger.spent("thyroid", "patient", 1, 1e-5)
    with Ledger.open(path, signer(), "east") as again:
        assert again.head == head
        assert again.spent("thyroid", "patient", 1, 1e-5) == spent
        assert verify_chain(again.entries(), again.public_key) == head


def test_the_file_is_for_its_owner_only(ledger, path):
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_spent_is_what_the_releases_cost_together(ledger):
    for round in range(5):
        ledger.reserve(charge(round))
    spent = ledger.spent("thyroid", "patient", 1, 1e-5)
    assert spent.releases == 5
    assert spent.pld == composition.epsilon_pld([release()] * 5, 1e-5, 1)
    assert spent.rdp == composition.epsilon_rdp([release()] * 5, 1e-5, 1)
    assert spent.guaranteed == guaranteed({release(): 5})
    assert spent.pld < spent.rdp <= spent.guaranteed


def test_a_charge_over_the_cap_is_refused_with_its_numbers_and_not_written(ledger):
    ledger.set_budget(budget(2.5))
    ledger.reserve(charge(0))
    head = ledger.head
    with pytest.raises(BudgetExceeded, match=r"cap is epsilon 2.5 .*guaranteed so far is .*would be") as caught:
        ledger.reserve(charge(1))
    error = caught.value
    assert error.guaranteed <= error.cap == 2.5 < error.would_be
    assert error.guaranteed == ledger.spent("thyroid", "patient", 1, 1e-5).guaranteed
    assert ledger.head == head


def test_the_order_of_the_filter_is_fixed_by_the_budget_of_the_first_charge(ledger, path):
    ledger.set_budget(budget(3.0))  # nothing was charged: the order follows
    assert ledger.order(budget(3.0)) == renyi.filter_order(3.0, 1e-5) == 6
    ledger.reserve(charge(0))
    ledger.set_budget(budget(20.0, delta=1e-6))
    for asked in (budget(3.0), budget(20.0, delta=1e-6)):
        assert ledger.order(asked) == 6
    assert renyi.filter_order(20.0, 1e-6) == 3
    assert ledger.affordable([(charge(), 5)]).would_be == guaranteed({release(): 5}, delta=1e-6, order=6)
    with Ledger.open(path, signer(), "east") as again:
        assert again.order(budget(20.0)) == 6
        assert again.order(budget(20.0, dataset="heart")) == renyi.filter_order(20.0, 1e-5) == 2


def test_a_second_study_that_a_cap_by_pld_would_have_admitted_is_refused(ledger):
    """Chosen by the first one's result among two such, it would prove the cap wrong: see accounting/test_filter.py."""
    ledger.set_budget(budget(3.0))
    first = {"mode": "local", "multiplier": 1.8, "sample_rate": 1.0}
    ledger.reserve(charge(0, **first))
    for multiplier, rate in ((2.2, 1.0), (0.26, 1e-4)):
        second = {"mode": "local", "multiplier": multiplier, "sample_rate": rate}
        assert composition.epsilon_pld([release(**first), release(**second)], 1e-5, 1) <= 3.0
        with pytest.raises(BudgetExceeded):
            ledger.reserve(charge(0, run="run-2", **second))


def test_charges_are_counted_run_by_run(ledger):
    ledger.set_budget(budget(20.0))
    for run, rounds in (("run-1", 3), ("run-2", 1)):
        for round in range(rounds):
            ledger.reserve(charge(round, run=run))
    ledger.reserve(replace(charge(9), purpose="evaluation"))
    ledger.settle("run-1", 0, SITES)
    found = [(each.run, each.updates, each.evaluations, each.unsettled) for each in ledger.runs("thyroid", "patient")]
    assert found == [("run-1", 3, 1, 3), ("run-2", 1, 0, 1)]
    assert ledger.runs("heart", "patient") == []


def test_the_cap_holds_across_studies_but_not_across_data_sets(ledger):
    cap = cap_for({release(): 1})
    ledger.set_budget(budget(cap))
    ledger.set_budget(budget(cap, dataset="heart"))
    ledger.reserve(charge(0))
    with pytest.raises(BudgetExceeded):
        ledger.reserve(charge(0, run="run-2", study="cd" * 32))
    ledger.reserve(charge(0, run="run-3", dataset="heart"))


def test_the_cap_is_measured_against_the_colluders_the_budget_names(ledger):
    cap = cap_for({release(): 1}, colluding=0)
    ledger.set_budget(budget(cap, collusion=2))
    with pytest.raises(BudgetExceeded):
        ledger.reserve(charge())
    ledger.set_budget(budget(cap, collusion=0))
    ledger.reserve(charge())


def test_without_a_budget_nothing_may_be_charged(ledger):
    with pytest.raises(BudgetMissing, match="heart"):
        ledger.reserve(charge(dataset="heart"))
    with pytest.raises(BudgetMissing):
        ledger.affordable([(charge(dataset="heart"), 10)])


def test_studies_and_runs_on_one_data_set_compose_jointly(ledger):
    ledger.set_budget(budget(60.0))
    ledger.set_budget(budget(60.0, dataset="heart"))
    runs = [("run-1", STUDY, 1.2, 0.2), ("run-2", STUDY, 1.2, 0.2), ("run-3", "cd" * 32, 3.0, 0.05)]
    for round in range(3):  # taking turns, one aborted round among them
        for run, study, multiplier, rate in runs:
            ledger.reserve(charge(round, run=run, study=study, multiplier=multiplier, sample_rate=rate, sites=3))
            if (run, round) != ("run-2", 1):
                ledger.settle(run, round, SITES)
        ledger.reserve(charge(round, run="run-4", dataset="heart"))
    together = dpa.pld.PLDAccountant(value_discretization_interval=1e-3)
    sensitivity = 1 + 1000**0.5 / 2**24
    for multiplier, rate, sites, count in [(1.2, 0.2, 4, 5), (1.2, 0.2, 3, 1), (3.0, 0.05, 4, 3)]:
        seen = multiplier / 3**0.5 * (sites - 1) ** 0.5 / sensitivity  # noise sized for 3 of 4 sites, one of them known
        together.compose(dpa.PoissonSampledDpEvent(rate, dpa.GaussianDpEvent(seen)), count)
    spent = ledger.spent("thyroid", "patient", 1, 1e-5)
    assert spent.releases == 9
    assert spent.pld == pytest.approx(together.get_epsilon(1e-5), rel=1e-3)
    apart = [composition.epsilon_pld([release(multiplier=m, sample_rate=q)] * 3, 1e-5, 1) for _, _, m, q in runs]
    assert spent.pld < sum(apart)


def test_a_settlement_over_a_larger_set_is_counted_once_at_each_data_set(ledger):
    for round in range(6):
        ledger.reserve(charge(round, sites=3))
        ledger.settle("run-1", round, SITES if round % 2 else SITES[:3])
    expected = [release(sites=3), release(sites=4)] * 3
    assert ledger.spent("thyroid", "patient", 1, 1e-5).pld == composition.epsilon_pld(expected, 1e-5, 1)


def test_what_a_second_process_charged_counts_in_the_next_decision(ledger, path):
    cap = cap_for({release(): 3})
    ledger.set_budget(budget(cap))
    with Ledger.open(path, signer(), "east") as other:
        ledger.reserve(charge(0))
        other.reserve(charge(1))
        ledger.reserve(charge(2))
        with pytest.raises(BudgetExceeded):
            other.reserve(charge(3))
        assert other.affordable([(charge(run="more"), 1)]).guaranteed <= cap


def test_what_other_runs_still_plan_counts_in_a_quote(ledger):
    ledger.reserve(charge(0, run="run-1"))
    ledger.reserve(charge(1, run="run-1"))
    held = [(charge(run="run-1"), 10), (charge(run="run-2", sites=3), 5)]
    quote = ledger.affordable([(charge(run="run-9"), 4)], held=held)
    assert quote.would_be == guaranteed({release(): 14, release(sites=3): 5})
    assert quote.guaranteed == guaranteed({release(): 2})


def test_a_long_ledger_is_taken_up_part_by_part(path, monkeypatch):
    with ledger_with(path) as ledger:
        head, spent = ledger.head, ledger.spent("thyroid", "patient", 1, 1e-5)
    monkeypatch.setattr("confide.privacy.ledger.ledger._PART", 2)
    with Ledger.open(path, signer(), "east") as again:
        assert (again.head, again.spent("thyroid", "patient", 1, 1e-5)) == (head, spent)


def test_reserving_a_round_again_changes_nothing(ledger):
    first = ledger.reserve(charge())
    assert ledger.reserve(charge(cohort=tuple(reversed(SITES)))) == first
    assert ledger.head.seq == first.seq


def test_reserving_a_round_with_other_contents_is_a_conflict(ledger):
    ledger.reserve(charge())
    with pytest.raises(ChargeConflict, match="round 0 of run run-1"):
        ledger.reserve(charge(sites=3))


def test_an_exhausted_budget_still_answers_for_a_round_already_charged(ledger):
    first = ledger.reserve(charge())
    ledger.set_budget(budget(0.01))
    assert ledger.reserve(charge()) == first


def test_settling_accounts_for_the_set_really_summed(ledger):
    ledger.reserve(charge(sites=3))
    assert ledger.spent("thyroid", "patient", 0, 1e-5).pld == composition.epsilon_pld([release(sites=3)], 1e-5, 0)
    entry = ledger.settle("run-1", 0, SITES)
    assert ledger.spent("thyroid", "patient", 0, 1e-5).pld == composition.epsilon_pld([release(sites=4)], 1e-5, 0)
    assert ledger.settle("run-1", 0, tuple(reversed(SITES))) == entry


@pytest.mark.parametrize("summed", [SITES, SITES[:3]])
def test_settling_accounts_for_the_noise_after_the_top_up(ledger, summed):
    charged = charge(sites=3)
    planned = replace(charged.release, planned_sites=4, noise_collusion=1)
    ledger.reserve(replace(charged, release=planned))
    reserved = ledger.spent("thyroid", "patient", 2, 1e-5).pld
    ledger.settle("run-1", 0, summed)
    noise = charged.release.site_noise_int * math.sqrt(
        3 / (len(summed) - 1)
    )  # variance by (planned - 1) / (summed - 1)
    opened = replace(charged.release, sites=len(summed), site_noise_int=round(noise))
    settled = ledger.spent("thyroid", "patient", 2, 1e-5).pld
    assert settled == pytest.approx(composition.epsilon_pld([opened], 1e-5, 2), rel=1e-4)
    assert settled <= reserved


def test_a_set_without_this_site_leaves_the_reserve_in_place(ledger):
    ledger.reserve(charge(sites=2))
    before = ledger.spent("thyroid", "patient", 0, 1e-5)
    ledger.settle("run-1", 0, ["north", "south", "west"])  # more sites than reserved: it would look cheaper
    assert ledger.spent("thyroid", "patient", 0, 1e-5) == before


@pytest.mark.parametrize(
    ("round", "summed"),
    [(1, SITES), (0, SITES[:3]), (0, [*SITES, "elsewhere"]), (0, []), (0, ["east", "east"])],
    ids=["never reserved", "settled otherwise", "not in the cohort", "empty", "twice"],
)
def test_a_settlement_that_contradicts_is_a_conflict(ledger, round, summed):
    ledger.reserve(charge())
    if summed == SITES[:3]:
        ledger.settle("run-1", 0, SITES)
    head = ledger.head
    with pytest.raises(ChargeConflict):
        ledger.settle("run-1", round, summed)
    assert ledger.head == head


def test_a_quote_is_what_the_whole_run_would_come_to(ledger):
    quote = ledger.affordable([(charge(), 40)])
    assert quote.guaranteed == 0
    assert quote.would_be == guaranteed({release(): 40})
    assert quote.fits == (quote.would_be <= 8.0)
    ledger.reserve(charge(0))
    ledger.reserve(charge(1))
    assert ledger.affordable([(charge(), 40)]).would_be == quote.would_be  # two of the forty are charged already
    assert ledger.affordable([(charge(run="another"), 40)]).would_be > quote.would_be
    assert not ledger.affordable([(charge(), 400)]).fits


def test_a_plan_of_two_purposes_counts_what_is_left_of_each(ledger):
    update, last = charge(), replace(charge(3), purpose="evaluation", release=release(sample_rate=1.0, multiplier=4.0))
    planned = [(update, 3), (last, 1)]
    whole = ledger.affordable(planned).would_be
    assert whole > ledger.affordable(planned[:1]).would_be
    ledger.reserve(last)
    for round in range(2):
        ledger.reserve(charge(round))
    quote = ledger.affordable(planned)
    assert quote.would_be == whole
    assert quote.guaranteed == guaranteed({update.release: 2, last.release: 1})


def test_a_charge_for_an_unknown_purpose_is_none():
    with pytest.raises(InvalidPrivacyParameter, match="purpose must be one of update, prototype, evaluation"):
        replace(charge(), purpose="curiosity")


def test_a_release_without_noise_needs_consent_and_leaves_no_guarantee(ledger):
    with pytest.raises(UnprotectedRefused, match="without noise"):
        ledger.reserve(charge(mode="none"))
    ledger.reserve(charge(mode="none"), unprotected_allowed=True)
    spent = ledger.spent("thyroid", "patient", 0, 1e-5)
    assert (spent.pld, spent.rdp, spent.guaranteed, spent.unprotected) == (math.inf, math.inf, math.inf, 1)
    with pytest.raises(BudgetExceeded, match="guaranteed so far is ∞"):
        ledger.reserve(charge(1))


def test_a_budget_set_twice_is_written_once(ledger):
    head = ledger.head
    ledger.set_budget(budget())
    assert ledger.head == head
    ledger.set_budget(budget(3.0))
    assert ledger.budget("thyroid", "patient") == budget(3.0)
    assert ledger.accounts() == [("thyroid", "patient")]


@pytest.mark.parametrize(
    "change",
    [
        {"study": "xyz"},
        {"round": -1},
        {"run": ""},
        {"cohort": ()},
        {"cohort": ("east", "east")},
        {"cohort": ("east",)},
        {"release": replace(charge().release, planned_sites=5)},
        {"relation": "replace_one"},
        {"sampler": "shuffle"},
    ],
)
def test_a_charge_that_says_something_impossible_is_refused(change):
    with pytest.raises(InvalidPrivacyParameter, match=next(iter(change))):
        replace(charge(), **change)


def flip(path, seq, column):
    with sqlite3.connect(path) as connection:
        connection.execute("DROP TRIGGER no_update")
        (text,) = connection.execute(f"SELECT {column} FROM entries WHERE seq = ?", (seq,)).fetchone()
        at = text.index("0") if "0" in text else 2
        changed = text[:at] + ("1" if text[at] != "1" else "2") + text[at + 1 :]
        connection.execute(f"UPDATE entries SET {column} = ? WHERE seq = ?", (changed, seq))
    connection.close()


@pytest.mark.parametrize("column", ["time", "kind", "body", "previous", "hash"])
@pytest.mark.parametrize("seq", [0, 1, 4])
def test_a_flipped_byte_in_the_file_names_the_entry(path, seq, column):
    ledger_with(path).close()
    flip(path, seq, column)
    with pytest.raises(LedgerBroken, match=f"entry {seq}"):
        Ledger.open(path, signer(), "east")


def test_the_last_signature_vouches_for_the_contents_of_all(path):
    last = ledger_with(path).head.seq
    flip(path, last, "signature")
    with pytest.raises(LedgerBroken, match=f"entry {last} is not signed"):
        Ledger.open(path, signer(), "east")


def test_an_older_signature_is_checked_by_whoever_gets_the_entries(path):
    ledger_with(path).close()
    flip(path, 1, "signature")
    with Ledger.open(path, signer(), "east") as ledger, pytest.raises(LedgerBroken, match="entry 1 is not signed"):
        verify_chain(ledger.entries(), ledger.public_key)


def test_a_ledger_whose_entries_were_all_rewritten_by_another_key_is_refused(path, tmp_path):
    ledger_with(path).close()
    with ledger_with(tmp_path / "forged.db", seed=2) as forged:
        body = forged.entries()[0].body | {"public_key": canonical.public_hex(signer())}
        head, entries = START, []
        for entry in forged.entries():
            entries.append(extend(head, signer(2), entry.time, entry.kind, body if entry.seq == 0 else entry.body))
            head = Head(entries[-1].seq, entries[-1].hash)
    with sqlite3.connect(path) as connection:
        connection.execute("DROP TRIGGER no_update")
        for entry in entries:
            body, chained = canonical.encode(entry.body).decode(), (entry.previous, entry.hash, entry.signature)
            connection.execute(
                "UPDATE entries SET time = ?, body = ?, previous = ?, hash = ?, signature = ? WHERE seq = ?",
                (entry.time, body, *chained, entry.seq),
            )
    connection.close()
    with pytest.raises(LedgerBroken, match="entry 6 is not signed"):
        Ledger.open(path, signer(), "east")


def test_a_space_in_a_body_is_found_too(path):
    ledger_with(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute("DROP TRIGGER no_update")
        connection.execute("UPDATE entries SET body = body || ' ' WHERE seq = 2")
    connection.close()
    with pytest.raises(LedgerBroken, match="entry 2"):
        Ledger.open(path, signer(), "east")


def test_a_missing_entry_is_named(path):
    ledger_with(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute("DROP TRIGGER no_delete")
        connection.execute("DELETE FROM entries WHERE seq = 3")
    connection.close()
    with pytest.raises(LedgerBroken, match="entry 3 is missing"):
        Ledger.open(path, signer(), "east")


def test_rows_cannot_be_changed_or_removed_by_accident(ledger, path):
    connection = sqlite3.connect(path)
    for statement in ("DELETE FROM entries", "UPDATE entries SET time = ''"):
        with pytest.raises(sqlite3.IntegrityError, match="append only"):
            connection.execute(statement)
    connection.close()


def test_a_ledger_rolled_back_while_open_is_noticed(ledger, path):
    ledger.reserve(charge())
    connection = sqlite3.connect(path)
    connection.execute("DROP TRIGGER no_delete")
    connection.execute("DELETE FROM entries WHERE seq = 2")
    connection.commit()
    connection.close()
    with pytest.raises(LedgerBroken, match="entry 2 vanished"):
        ledger.reserve(charge(1))


@pytest.mark.parametrize(("seed", "site"), [(2, "east"), (1, "west")])
def test_another_sites_ledger_is_refused(path, seed, site):
    ledger_with(path).close()
    with pytest.raises(LedgerBroken, match="entry 0"):
        Ledger.open(path, signer(seed), site)


def test_a_file_that_is_no_database_or_cannot_be_opened_is_refused(tmp_path):
    (tmp_path / "noise").write_bytes(os.urandom(8192))
    with pytest.raises(LedgerBroken, match="damaged"):
        Ledger.open(tmp_path / "noise", signer(), "east")
    with pytest.raises(LedgerUnavailable, match="cannot open"):
        Ledger.open(tmp_path, signer(), "east")


@pytest.mark.slow
def test_two_writers_take_turns_and_see_each_other(path):
    with ledger_with(path, rounds=0) as one, Ledger.open(path, signer(), "east") as two:
        threads = [
            threading.Thread(target=lambda ledger=ledger, at=at: [ledger.reserve(charge(at + i)) for i in range(5)])
            for at, ledger in enumerate([one, two, one, two])
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert one.head == two.head
        assert one.spent("thyroid", "patient", 1, 1e-5).releases == 8  # rounds 0 to 7, most reserved by both
        verify_chain(one.entries(), one.public_key)


def test_a_reader_does_not_wait_for_a_writer(ledger, path):
    writer = sqlite3.connect(path, isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    assert ledger.spent("thyroid", "patient", 0, 1e-5).releases == 0  # waiting for it would end in LedgerUnavailable
    writer.close()


@pytest.mark.process
def test_a_charge_survives_kill_9_the_moment_it_returns(path):
    script = textwrap.dedent(f"""
        import os, signal, sys
        sys.path.insert(0, {str(Path(__file__).parents[1])!r})
        from pathlib import Path
        from ledgers import charge, ledger_with
        ledger = ledger_with(Path({str(path)!r}), rounds=0)
        ledger.reserve(charge(7))
        os.kill(os.getpid(), signal.SIGKILL)
    """)
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -signal.SIGKILL
    with Ledger.open(path, signer(), "east") as ledger:
        assert ledger.entries()[-1].body["round"] == 7


def test_a_ledger_of_an_earlier_format_is_refused_with_where_to_read_on(path):
    opening = charges.Opening(format="confide-ledger-1", site="east", public_key=canonical.public_hex(signer()))
    entry = extend(START, signer(), "2026-03-01T00:00:00Z", "open", canonical.to_record(opening))
    store = EntryStore(path)
    with store.write() as connection:
        store.add(connection, entry)
    store.close()
    with pytest.raises(LedgerBroken, match=r'confide-ledger-1.*"Upgrade" in docs/site.md'):
        Ledger.open(path, signer(), "east")


def test_a_charge_at_an_impossible_time_leaves_the_books_as_they_were():
    opening = charges.Opening(format=charges.FORMAT, site="east", public_key=canonical.public_hex(signer()))
    first = extend(START, signer(), "2026-03-01T00:00:00Z", "open", canonical.to_record(opening))
    books = charges.Books.replay([first])
    head = Head(first.seq, first.hash)
    entry = extend(head, signer(), "2026-13-01T00:00:00Z", "reserve", canonical.to_record(charge(0)))
    with pytest.raises(LedgerBroken, match="entry 1"):
        books.apply(entry)
    assert books == charges.Books.replay([first])
