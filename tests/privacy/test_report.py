import html.parser
import json
import re

import pytest

from confide.privacy import accounting, canonical, statement
from confide.privacy.charges import Books
from confide.privacy.errors import LedgerBroken, ReportInvalid
from confide.privacy.report import SiteLedger, build_report, render_html

from .ledgers import SITES, STUDY, charge, ledger_with, release, signer

FACTS = {
    "name": "thyroid <b>",
    "hash": STUDY,
    "mode": "distributed",
    "delta": 1e-5,
    "collusion": 1,
    "sites": list(SITES),
    "rounds": 3,
    "noise_multiplier": 1.2,
}


@pytest.fixture(scope="module")
def ledgers(tmp_path_factory):
    sites = {}
    for seed, site in enumerate(SITES, start=1):
        with ledger_with(tmp_path_factory.mktemp(site) / "ledger.db", site=site, seed=seed) as ledger:
            sites[site] = SiteLedger(ledger.public_key, ledger.entries())
    return sites


@pytest.fixture(scope="module")
def report(ledgers):
    return build_report("Thyroid & friends", ledgers, [FACTS], signer(99))


def test_a_report_is_json_and_states_both_accountants_at_each_level(report):
    again = json.loads(json.dumps(report))
    assert again == report
    account = again["sites"][0]["accounts"][0]
    assert [item["colluding"] for item in account["spent"]] == [0, 1]
    for item in account["spent"]:
        releases = [release()] * 3
        assert float(item["pld"]) == accounting.epsilon_pld(releases, 1e-5, item["colluding"])
        assert float(item["rdp"]) == accounting.epsilon_rdp(releases, 1e-5, item["colluding"])


def test_events_are_merged_with_the_open_ones_apart(report):
    events = report["sites"][0]["accounts"][0]["events"]
    assert [(event["is_settled"], event["count"], event["sites"]) for event in events] == [(True, 2, 4), (False, 1, 4)]


def test_the_course_ends_at_what_was_spent(report):
    account = report["sites"][0]["accounts"][0]
    assert account["course"][0]["releases"] == 1
    reserves = [entry for entry in report["sites"][0]["entries"] if entry["kind"] == "reserve"]
    assert account["course"][-1] == {
        "releases": 3,
        "time": reserves[-1]["time"],
        "pld": account["spent"][1]["pld"],
        "rdp": account["spent"][1]["rdp"],
    }


def test_a_broken_ledger_is_not_reported(ledgers):
    broken = SiteLedger(ledgers["east"].public_key, [*ledgers["east"].entries[:2], *ledgers["east"].entries[3:]])
    with pytest.raises(LedgerBroken, match="entry 2"):
        build_report("F", {"east": broken}, [], signer())


@pytest.mark.parametrize("change", [{"mode": "off"}, {"hash": "12"}, {"delta": float("nan")}, {"colour": "red"}])
def test_facts_outside_the_schema_are_refused_by_name(ledgers, change):
    with pytest.raises(ReportInvalid, match=next(iter(change))):
        build_report("F", ledgers, [FACTS | change], signer())


class Page(html.parser.HTMLParser):
    """Collects tags and attributes, and insists that every tag is closed."""

    VOID = frozenset({"meta", "br", "line", "path", "circle"})

    def __init__(self):
        super().__init__()
        self.tags, self.attributes, self.open = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_course_counts_a_prefix_of_the_charges_with_the_time_of_its_last(tmp_path):
    with ledger_with(tmp_path / "ledger.db", rounds=30, settled=29) as ledger:
        entries = [  # an hour between any two of them
            entry.model_copy(update={"time": f"2026-03-{1 + entry.seq // 24:02}T{entry.seq % 24:02}:00:00Z"})
            for entry in ledger.entries()
        ]
    (account,) = statement.accounts(Books.replay(entries))
    reserves = [entry.time for entry in entries if entry.kind == "reserve"]
    assert [point.releases for point in account.course] == sorted({point.releases for point in account.course})
    for point in account.course:
        assert point.time == reserves[point.releases - 1]
        assert point.pld == accounting.epsilon_pld([release()] * point.releases, 1e-5, 1)
        assert point.rdp == accounting.epsilon_rdp([release()] * point.releases, 1e-5, 1)
    assert account.course[-1].releases == 30


@pytest.mark.parametrize(
    ("limit", "value", "why"),
    [("MAX_ENTRIES", 6, r"east: its ledger has 7 entries.* at most 6.*budget export"), ("MAX_BYTES", 5000, "MiB long")],
)
def test_a_ledger_too_long_for_a_report_is_refused_with_what_to_do(ledgers, monkeypatch, limit, value, why):
    monkeypatch.setattr(f"confide.privacy.report.{limit}", value)
    with pytest.raises(ReportInvalid, match=why):
        build_report("F", ledgers, [FACTS], signer(99))


def test_the_page_is_whole_and_asks_nothing_of_the_network(report):
    text = render_html(report)
    page = Page()
    page.feed(text)
    assert page.open == []
    assert page.tags.count("svg") == 4
    assert not {"script", "link", "img", "iframe", "object"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name in ("src", "href", "srcset") or name.startswith("on")]
    assert not re.search(r"url\(|@import|https?://(?!www\.w3\.org/2000/svg)", text)


def test_the_page_says_what_a_reader_must_know(report):
    text = render_html(report)
    for words in ("Thyroid &amp; friends", "thyroid &lt;b&gt;", "Not covered", "Whom one has to trust", "Poisson"):
        assert words in text
    assert "add" in text
    assert report["signature"] in text
    assert "UNPROTECTED" not in text


def test_the_page_never_shows_less_than_was_spent(report):
    spent = float(report["sites"][0]["accounts"][0]["spent"][1]["pld"])
    shown = float(re.search(r'class="big">([\d.]+)', render_html(report)).group(1))
    assert spent <= shown < spent + 0.011


def test_a_release_without_noise_is_stamped(tmp_path):
    with ledger_with(tmp_path / "ledger.db") as ledger:
        ledger.reserve(charge(0, run="measure", dataset="public", mode="none"), unprotected_allowed=True)
        sites = {"east": SiteLedger(ledger.public_key, ledger.entries())}
    report = build_report("F", sites, [], signer())
    public = report["sites"][0]["accounts"][0]
    assert (public["dataset"], public["unprotected"], public["spent"][0]["pld"]) == ("public", 1, "inf")
    assert public["course"] == []
    text = render_html(report)
    assert "UNPROTECTED" in text
    assert "∞" in text


def test_a_site_without_charges_has_a_page_too(tmp_path):
    with ledger_with(tmp_path / "ledger.db", rounds=0) as ledger:
        sites = {"east": SiteLedger(ledger.public_key, ledger.entries())}
    assert "Nothing has been charged" in render_html(build_report("F", sites, [], signer()))


def test_the_signature_is_the_issuers_over_all_the_rest(report):
    contents = {name: value for name, value in report.items() if name != "signature"}
    message = canonical.encode(contents)
    assert canonical.is_signed(
        canonical.public_hex(signer(99)), "confide budget report 1", message, report["signature"]
    )
