import math

import pytest

from confide.privacy.errors import VerificationTooLong
from confide.privacy.ledger.ledger import Ledger
from confide.privacy.report import verify as verification
from confide.privacy.report.build import SiteLedger, build_report
from confide.privacy.report.schema import dump
from confide.privacy.report.verify import verify
from confide.privacy.report.workload import Workload, in_words

from ..ledgers import SITES, STUDY_TEXT, audit_facts, budget, charge, ledger_with, signer


def ledger_of_distinct_releases(path, count: int) -> SiteLedger:
    with Ledger.open(path, signer(), "east") as ledger:
        ledger.set_budget(budget(60.0))
        for round in range(1, count + 1):
            ledger.reserve(charge(round, multiplier=4.0, sample_rate=0.001 + round * 1e-5))
        return SiteLedger(ledger.public_key, ledger.entries())


@pytest.fixture(scope="module")
def varied(tmp_path_factory):
    ledger = ledger_of_distinct_releases(tmp_path_factory.mktemp("site") / "ledger.db", 12)
    return build_report("F", {"east": ledger}, [], signer(99))


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    with ledger_with(tmp_path_factory.mktemp("site") / "ledger.db") as ledger:
        return build_report("F", {"east": SiteLedger(ledger.public_key, ledger.entries())}, [STUDY_TEXT], signer(99))


def watched(report, **limits) -> list[tuple[Workload, float]]:
    told = []
    verify(report, watch=lambda work, done: told.append((work, done)), **limits)
    return told


def test_the_work_is_told_before_it_begins_and_all_of_it_is_done_at_the_end(varied):
    told = watched(varied)
    work = told[0][0]
    assert work.releases == 12
    assert {each for each, _ in told} == {work}
    done = [seconds for _, seconds in told]
    assert done[0] == 0
    assert done == sorted(done)
    assert done[-1] == pytest.approx(work.seconds)


def test_the_estimate_grows_with_distinct_releases_and_not_with_equal_ones(tmp_path, varied):
    def seconds(ledger: SiteLedger) -> float:
        return watched(build_report("F", {"east": ledger}, [], signer(99)))[0][0].seconds

    with ledger_with(tmp_path / "few.db", rounds=9) as few, ledger_with(tmp_path / "many.db", rounds=40) as many:
        equal = [seconds(SiteLedger(each.public_key, each.entries())) for each in (few, many)]
    assert equal[0] == pytest.approx(equal[1], rel=0.05)
    distinct = [ledger_of_distinct_releases(tmp_path / f"{count}.db", count) for count in (20, 40)]
    twenty, forty = map(seconds, distinct)
    assert 1.8 < forty / twenty < 2.2


def test_a_report_that_would_take_too_long_is_refused_before_any_figure_unless_told(varied, monkeypatch):
    def never(*_):
        raise AssertionError("a figure was recomputed")

    with monkeypatch.context() as patched:
        patched.setattr(verification.statement, "account", never)
        with pytest.raises(
            VerificationTooLong, match=r"12 releases, about 1 second, .* limit is 1 second;.*--no-limit"
        ):
            verify(varied, max_seconds=0.5)
    assert verify(varied, max_seconds=math.inf).checked
    assert verify(varied).checked  # and by the limit that stands without a word


def test_accounts_that_are_stated_many_times_count_as_often_as_a_third_accountant_is_asked(plain):
    honest = watched(plain)[0][0].seconds
    site = plain["sites"][0]
    padded = plain | {"sites": [site | {"accounts": site["accounts"] * 50}]}
    with pytest.raises(VerificationTooLong):
        verify(padded, max_seconds=10 * honest)


def test_a_site_that_is_named_many_times_counts_as_often_as_it_is_recomputed(plain):
    honest = watched(plain)[0][0].seconds
    with pytest.raises(VerificationTooLong):
        verify(plain | {"sites": plain["sites"] * 50}, max_seconds=10 * honest)


def test_audits_count_by_their_guesses(plain):
    few, many = (dump(audit_facts(guesses=guesses, canaries=100_000, right=0)) for guesses in (1_000, 100_000))
    seconds = [watched(plain | {"audits": [facts] * 50})[0][0].seconds for facts in (few, many)]
    assert seconds[1] - seconds[0] > 5


def test_a_ledger_of_ordinary_studies_is_verified_without_a_word_about_its_length(tmp_path):
    sites = {}
    for seed, site in enumerate(SITES, start=1):
        with ledger_with(tmp_path / f"{site}.db", site=site, seed=seed, rounds=40, settled=39) as ledger:
            sites[site] = SiteLedger(ledger.public_key, ledger.entries())
    work = watched(build_report("F", sites, [STUDY_TEXT], signer(99)))[0][0]
    assert not work.is_long


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "1 second"), (119, "119 seconds"), (121, "3 minutes"), (7200, "120 minutes"), (7201, "3 hours")],
)
def test_a_length_of_time_is_never_told_as_shorter_than_it_is(seconds, text):
    assert in_words(seconds) == text


def test_one_release_is_told_in_the_singular():
    assert str(Workload(1, 30.0)) == "1 release, about 30 seconds"
