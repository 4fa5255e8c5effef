"""A ledger that names a cohort once says what one that lists it every time says."""

import hashlib
import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from confide.privacy.errors import ChargeConflict, LedgerBroken
from confide.privacy.ledger import backup, canonical
from confide.privacy.ledger.chain import START, Head, extend
from confide.privacy.ledger.charges import FORMAT, Books, Opening
from confide.privacy.ledger.cohorts import MOST_LISTED
from confide.privacy.ledger.ledger import Ledger
from confide.privacy.report.build import SiteLedger, build_report
from confide.privacy.report.schema import SIGNATURE_DOMAIN
from confide.privacy.report.verify import verify

from ..ledgers import budget, charge, signer
from ..report.independent_verifier import Rejected
from ..report.independent_verifier import verify as verify_independently

MANY = tuple(f"site-{number:02}" for number in range(MOST_LISTED + 1))
OTHERS = tuple(f"town-{number:02}" for number in range(MOST_LISTED + 5))
TIME = "2026-03-01T09:00:00Z"


def digest_of(sites) -> str:
    """The digest, by docs/formats-ledger.md."""
    text = json.dumps(sorted(sites), separators=(",", ":"))
    return hashlib.sha256(b"confide cohort 1\n" + text.encode()).hexdigest()


class Written:
    """A ledger of site-00, body by body."""

    def __init__(self) -> None:
        self.entries = []
        opening = Opening(format=FORMAT, site="site-00", public_key=canonical.public_hex(signer()))
        self.add("open", canonical.to_record(opening))
        self.add("budget", canonical.to_record(budget(50.0)))

    def add(self, kind, body) -> "Written":
        head = Head(self.entries[-1].seq, self.entries[-1].hash) if self.entries else START
        self.entries.append(extend(head, signer(), TIME, kind, body))
        return self

    def name(self, cohort) -> "Written":
        return self.add("cohort", {"digest": digest_of(cohort), "sites": sorted(cohort)})

    def reserve(self, item, **changes) -> "Written":
        return self.add("reserve", canonical.to_record(item) | {"cohort": sorted(item.cohort)} | changes)

    @property
    def books(self) -> Books:
        return Books.replay(self.entries)

    def report(self) -> dict:
        ledgers = {"site-00": SiteLedger(canonical.public_hex(signer()), self.entries)}
        return build_report("F", ledgers, [], signer(99))


def planned(number=1, cohort=MANY, **changes):
    item = charge(number, cohort=cohort, sites=3)
    return replace(item, release=replace(item.release, **changes))


def meaning(books: Books) -> list[object]:
    """All that entries add up to, without their numbers."""
    booked = {place: (each.charge, each.summed, each.place) for place, each in books.booked.items()}
    accounts = [(books.releases(*each), books.runs(*each), books.tallies[each].kinds()) for each in books.tallies]
    return [booked, accounts, books.open_rounds(), books.accounts()]


rounds = st.lists(
    st.tuples(
        st.sampled_from([MANY, OTHERS, ("site-00", *OTHERS), MANY[:4]]),
        st.none() | st.sets(st.integers(0, MOST_LISTED + 4)),  # places of missing sites; none while it is not settled
        st.booleans(),  # whether the charge refers to its cohort, and whether its settlement names the missing sites
        st.booleans(),
    ),
    max_size=8,
)


@given(rounds)
def test_names_and_references_mean_the_same_in_any_mixture(drawn):
    listed, mixed, named = Written(), Written(), set()
    for number, (cohort, places, refers, absences) in enumerate(drawn, start=1):
        item = planned(number, cohort)
        listed.reserve(item)
        if refers and digest_of(cohort) not in named:
            mixed.name(cohort)
            named.add(digest_of(cohort))
        mixed.reserve(item, **({"cohort": digest_of(cohort)} if refers else {}))
        missing = None if places is None else [name for place, name in enumerate(sorted(cohort)) if place in places]
        if missing is None or len(cohort) - len(missing) < 3:
            continue
        summed = sorted(set(cohort) - set(missing))
        listed.add("settle", {"run": "run-1", "round": number, "summed": summed})
        told = {"missing": missing} if absences else {"summed": summed}
        mixed.add("settle", {"run": "run-1", "round": number, **told})
    assert meaning(mixed.books) == meaning(listed.books)


def write_all(ledger: Ledger, cohort, summed) -> None:
    ledger.set_budget(budget(50.0))
    for number in (1, 2):
        ledger.reserve(planned(number, cohort))
    ledger.settle("run-1", 2, summed)


def test_a_cohort_above_the_limit_is_named_once_and_the_missing_sites_after(tmp_path):
    with Ledger.open(tmp_path / "ledger.db", signer(), "site-00") as ledger:
        write_all(ledger, MANY, MANY[:9])
        entries = ledger.entries()
        assert ledger.settle("run-1", 2, MANY[:9]) == entries[-1]  # again, and nothing changes
        with pytest.raises(ChargeConflict):
            ledger.settle("run-1", 1, [*MANY, "elsewhere"])
        assert ledger.entries() == entries
    assert [entry.kind for entry in entries] == ["open", "budget", "cohort", "reserve", "reserve", "settle"]
    assert entries[2].body == {"digest": digest_of(MANY), "sites": list(MANY)}
    assert [entry.body["cohort"] for entry in entries[3:5]] == [digest_of(MANY)] * 2
    assert entries[5].body == {"run": "run-1", "round": 2, "missing": list(MANY[9:])}
    with Ledger.open(tmp_path / "ledger.db", signer(), "site-00") as again:
        again.reserve(planned(3))
        assert [entry.kind for entry in again.entries()[6:]] == ["reserve"]


def test_a_cohort_up_to_the_limit_is_listed_as_ever(tmp_path):
    few = MANY[:MOST_LISTED]
    with Ledger.open(tmp_path / "ledger.db", signer(), "site-00") as ledger:
        write_all(ledger, few, few[:9])
        kinds, bodies = zip(*((entry.kind, entry.body) for entry in ledger.entries()), strict=True)
    assert kinds == ("open", "budget", "reserve", "reserve", "settle")
    assert bodies[2]["cohort"] == list(few)
    assert bodies[4] == {"run": "run-1", "round": 2, "summed": list(few[:9])}


def test_a_ledger_of_an_earlier_version_goes_on(tmp_path):
    written = Written().reserve(planned(1)).reserve(planned(2))
    written.add("settle", {"run": "run-1", "round": 1, "summed": list(MANY[:5])})
    backup.write(tmp_path / "earlier", written.entries, canonical.public_hex(signer()))
    path = tmp_path / "ledger.db"
    Ledger.restore(path, backup.read(tmp_path / "earlier"), signer(), "site-00")
    with Ledger.open(path, signer(), "site-00") as ledger:
        ledger.reserve(planned(2))  # as it is charged already, nothing is written
        ledger.settle("run-1", 2, MANY[:6])
        ledger.reserve(planned(3))
        ledger.settle("run-1", 3, MANY)
        entries = ledger.entries()
    assert entries[: len(written.entries)] == written.entries
    assert [entry.kind for entry in entries[5:]] == ["settle", "cohort", "reserve", "settle"]
    assert entries[5].body == {"run": "run-1", "round": 2, "missing": list(MANY[6:])}
    summed = {number: each.summed for (_, number), each in Books.replay(entries).booked.items()}
    assert summed == {1: MANY[:5], 2: MANY[:6], 3: MANY}
    backup.write(tmp_path / "later", entries, canonical.public_hex(signer()))
    assert list(backup.read(tmp_path / "later")) == entries


def test_charges_of_a_named_cohort_share_its_names():
    written = Written().name(MANY)
    for number in (1, 2):
        written.reserve(planned(number), cohort=digest_of(MANY))
    written.add("settle", {"run": "run-1", "round": 1, "missing": []})
    one, other = written.books.booked.values()
    assert one.charge.cohort is other.charge.cohort is one.summed


LIES = {
    "digest of other sites": lambda w: w.add("cohort", {"digest": digest_of(MANY), "sites": list(MANY[1:])}),
    "a name changed": lambda w: w.add("cohort", {"digest": digest_of(MANY), "sites": ["aside", *MANY[1:]]}),
    "unsorted": lambda w: w.add("cohort", {"digest": digest_of(MANY), "sites": [*MANY[1:], MANY[0]]}),
    "a site twice": lambda w: w.add("cohort", {"digest": digest_of([*MANY, MANY[-1]]), "sites": [*MANY, MANY[-1]]}),
    "of nobody": lambda w: w.add("cohort", {"digest": digest_of([]), "sites": []}),
    "named twice": lambda w: w.name(MANY).name(MANY),
    "more than names": lambda w: w.add("cohort", {"digest": digest_of(MANY), "sites": list(MANY), "more": 1}),
    "digest alone": lambda w: w.add("cohort", {"digest": digest_of(MANY)}),
    "unknown digest": lambda w: w.name(MANY).reserve(planned(), cohort=digest_of(OTHERS)),
    "named too late": lambda w: w.reserve(planned(), cohort=digest_of(MANY)).name(MANY),
    "no digest": lambda w: w.name(MANY).reserve(planned(), cohort=""),
    "fewer than are charged for": lambda w: w.name(MANY[:2]).reserve(planned(), cohort=digest_of(MANY[:2])),
}  # fmt: skip
ABSENCES = {
    "not of the cohort": {"missing": ["elsewhere"]},
    "unsorted": {"missing": [MANY[1], MANY[0]]},
    "twice": {"missing": [MANY[0], MANY[0]]},
    "too many": {"missing": list(MANY[2:])},
    "everybody": {"missing": list(MANY)},
    "of another round": {"missing": [], "round": 2},
    "both forms": {"missing": [], "summed": list(MANY)},
    "neither form": {},
    "no list": {"missing": MANY[0]},
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
def test_a_cohort_that_does_not_hold_is_refused(lie):
    written = Written()
    lie(written)
    with pytest.raises(LedgerBroken, match=r"entry \d \((cohort|reserve)\)"):
        Books.replay(written.entries)


@pytest.mark.parametrize("told", ABSENCES.values(), ids=ABSENCES)
def test_missing_sites_that_do_not_fit_are_refused(told):
    written = Written().name(MANY).reserve(planned(), cohort=digest_of(MANY))
    books = written.books
    before = meaning(books)
    written.add("settle", {"run": "run-1", "round": 1} | told)
    with pytest.raises(LedgerBroken, match=r"entry 4 \(settle\)"):
        books.apply(written.entries[-1])
    assert meaning(books) == before


def test_both_verifiers_come_to_the_same_report_from_either_form():
    listed, short = Written(), Written().name(MANY)
    for number in (1, 2, 3):
        listed.reserve(planned(number))
        short.reserve(planned(number), cohort=digest_of(MANY))
    listed.add("settle", {"run": "run-1", "round": 1, "summed": list(MANY[:4])})
    short.add("settle", {"run": "run-1", "round": 1, "missing": list(MANY[4:])})
    listed.add("settle", {"run": "run-1", "round": 2, "summed": list(MANY[1:])})  # without this site
    short.add("settle", {"run": "run-1", "round": 2, "missing": [MANY[0]]})
    reports = [each.report() for each in (listed, short)]
    assert reports[0]["sites"][0]["accounts"] == reports[1]["sites"][0]["accounts"]
    found = [verify(each) for each in reports]
    assert [each.failures for each in found] == [[], []]
    assert found[0].notes == found[1].notes  # the sites whose ledgers are not there, by name
    for each in reports:
        verify_independently(each)


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
def test_both_verifiers_refuse_a_report_with_a_cohort_that_does_not_hold(lie):
    honest = Written()
    report = honest.report()
    lie(honest)
    report["sites"][0]["entries"] = [entry.model_dump() for entry in honest.entries]
    contents = {name: value for name, value in report.items() if name != "signature"}
    report = contents | {"signature": canonical.sign(signer(99), SIGNATURE_DOMAIN, canonical.encode(contents))}
    assert any("(cohort)" in each or "(reserve)" in each for each in verify(report).failures)
    with pytest.raises(Rejected):
        verify_independently(report)
