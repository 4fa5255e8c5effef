import html
import html.parser
import json
import re

import pytest

from confide.privacy.accounting import composition, renyi
from confide.privacy.errors import LedgerBroken, ReportInvalid
from confide.privacy.ledger import canonical
from confide.privacy.ledger.charges import Books
from confide.privacy.report import statement
from confide.privacy.report.build import SiteLedger, build_report, render_html
from confide.privacy.report.meaning import most_found
from confide.privacy.report.schema import AuditFinding, dump

from ..ledgers import (
    SITES,
    STUDY,
    STUDY_TEXT,
    audit_facts,
    budget,
    charge,
    eventful_report,
    ledger_with,
    membership_facts,
    release,
    signer,
    study_text,
)

TEXT = study_text("thyroid <b>")


@pytest.fixture(scope="module")
def ledgers(tmp_path_factory):
    sites = {}
    for seed, site in enumerate(SITES, start=1):
        with ledger_with(tmp_path_factory.mktemp(site) / "ledger.db", site=site, seed=seed) as ledger:
            sites[site] = SiteLedger(ledger.public_key, ledger.entries())
    return sites


@pytest.fixture(scope="module")
def report(ledgers):
    return build_report("Thyroid & friends", ledgers, [TEXT], signer(99))


def test_a_report_is_json_and_states_what_was_spent_and_is_guaranteed_at_each_level(report):
    again = json.loads(json.dumps(report))
    assert again == report
    account = again["sites"][0]["accounts"][0]
    assert [item["colluding"] for item in account["spent"]] == [0, 1]
    for item in account["spent"]:
        releases = [release()] * 3
        assert float(item["pld"]) == composition.epsilon_pld(releases, 1e-5, item["colluding"])
        assert float(item["rdp"]) == composition.epsilon_rdp(releases, 1e-5, item["colluding"])
        assert float(item["guaranteed"]) == composition.epsilon_guaranteed(releases, 1e-5, item["colluding"], 4)
    assert account["order"] == renyi.filter_order(8.0, 1e-5) == 4


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
        "guaranteed": account["spent"][1]["guaranteed"],
    }


def test_a_broken_ledger_is_not_reported(ledgers):
    broken = SiteLedger(ledgers["east"].public_key, [*ledgers["east"].entries[:2], *ledgers["east"].entries[3:]])
    with pytest.raises(LedgerBroken, match="entry 2"):
        build_report("F", {"east": broken}, [], signer())


@pytest.mark.parametrize("text", ["", "é", "\n", "x" * (1 << 20) + "y"])
def test_a_text_that_is_none_is_refused(ledgers, text):
    with pytest.raises(ReportInvalid, match="a study's text"):
        build_report("F", ledgers, [text], signer())


def test_a_study_that_was_charged_and_has_no_text_here_is_unknown(ledgers):
    report = build_report("F", ledgers, [], signer())
    assert report["studies"] == [{"hash": STUDY, "text": None}]
    text = render_html(report)
    assert f"unknown {STUDY[:8]}…" in "\n".join(rows(text))
    assert "1.2" not in text.split("<h2>Studies</h2>")[1].split("<h2>")[0]


def test_figures_of_a_study_are_those_of_its_text_and_of_no_text_with_another_hash(ledgers):
    report = build_report("F", ledgers, [STUDY_TEXT], signer())
    assert "thyroid east, north, south, west" in "\n".join(rows(render_html(report)))
    assert f"Study thyroid {STUDY}" in rows(render_html(report))  # whole, to be compared on paper
    report["studies"][0]["text"] = STUDY_TEXT.replace('"noise_multiplier":1.2', '"noise_multiplier":99.0')
    assert "99" not in render_html(report).split("<h2>Studies</h2>")[1].split("<h2>")[0]


def test_the_page_marks_what_is_the_issuer_s_word(eventful):
    text = render_html(eventful)
    for heading in (
        "Thyroid network",
        "Audits: the claim put to the test",
        "Attacks: who was in the training records?",
    ):
        assert f'{heading} <span class="word">issuer’s word</span></h' in text


class Page(html.parser.HTMLParser):
    """Collects tags and attributes, and insists that every tag is closed."""

    VOID = frozenset({"meta", "br", "line", "path", "circle", "rect"})

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
        assert point.pld == composition.epsilon_pld([release()] * point.releases, 1e-5, 1)
        assert point.rdp == composition.epsilon_rdp([release()] * point.releases, 1e-5, 1)
    assert account.course[-1].releases == 30


@pytest.mark.parametrize(
    ("limit", "value", "why"),
    [("MAX_ENTRIES", 6, r"east: its ledger has 7 entries.* at most 6.*budget export"), ("MAX_BYTES", 5000, "MiB long")],
)
def test_a_ledger_too_long_for_a_report_is_refused_with_what_to_do(ledgers, monkeypatch, limit, value, why):
    monkeypatch.setattr(f"confide.privacy.report.build.{limit}", value)
    with pytest.raises(ReportInvalid, match=why):
        build_report("F", ledgers, [TEXT], signer(99))


@pytest.fixture(scope="module")
def eventful():
    return eventful_report()


def test_the_page_is_whole_and_asks_nothing_of_the_network(eventful):
    text = render_html(eventful)
    page = Page()
    page.feed(text)
    assert page.open == []
    assert page.tags.count("svg") == 2 * (
        4 * 2 * 2 + 2
    )  # of each site's two data sets over releases and time; tests; wide and narrow
    assert page.tags.count("desc") == page.tags.count("svg")
    assert not {"script", "link", "img", "iframe", "object"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name in ("src", "href", "srcset") or name.startswith("on")]
    assert not re.search(r"url\(|@import|https?://(?!www\.w3\.org/2000/svg)", text)


@pytest.mark.parametrize(
    "words",
    [
        "Thyroid &amp; friends", "thyroid &lt;b&gt;", "Not covered", "Whom one has to trust",
        # SP 800-226
        "Unit of privacy", "Neighbouring data sets", "added or removed", "Poisson", "Trust model",
        "Exposure in collection",
        "Floating-point noise", "Side channels", "Contribution bounds", "Budget across studies", "Post-processing",
        # what is done, and what remains
        "no other record moves a bit of it", "answers to rounds leave at a public time", "up to 8 bits about a vector",
        "a vector longer than honest ones is left out", "all three together do",
    ],
)  # fmt: skip
def test_the_page_says_what_a_reader_must_know(report, words):
    text = render_html(report)
    assert words in text
    assert report["signature"] in text
    assert "UNPROTECTED" not in text


def test_the_page_never_shows_less_than_is_guaranteed(report):
    spent = float(report["sites"][0]["accounts"][0]["spent"][1]["guaranteed"])
    shown = float(re.search(r'class="big">([\d.]+)', render_html(report)).group(1))
    assert spent <= shown < spent + 0.011


def rows(text: str) -> list[str]:
    """The table rows of a page as plain text."""
    found = re.findall(r"<tr.*?</tr>", text, re.DOTALL)
    return [" ".join(html.unescape(re.sub(r"<[^>]+>", " ", row)).split()) for row in found]


def test_evaluation_local_steps_and_top_up_show_as_such(eventful):
    found = rows(render_html(eventful))
    assert "thyroid training distributed 37 4 0.2 1 1.357 20,000 yes" in found
    assert "thyroid training distributed, topped up 3 3 0.2 1 1.662 20,000 yes" in found
    assert "thyroid evaluation distributed 1 4 1 1 4.619 128 yes" in found
    assert "thyroid-local training, 4 local steps local 7 4 0.02 1 2.5 20,000 yes" in found
    # west was left out of three sums, and what it had sent stays charged
    assert (
        "thyroid training distributed, top-up allowed 3 3 to 4 0.2 1 1.357 20,000 without this site, at its worst"
        in found
    )


def test_a_stopped_run_and_one_begun_anew_are_told_with_their_rounds(tmp_path):
    with ledger_with(tmp_path / "ledger.db", epsilon=20.0) as ledger:
        ledger.reserve(charge(1, run="run-2"))
        sites = {"east": SiteLedger(ledger.public_key, ledger.entries())}
    text = render_html(build_report("F", sites, [STUDY_TEXT], signer()))
    found = rows(text)
    assert "run-1 thyroid 3 40 none 1" in found
    assert "run-2 thyroid 1 40 none 1" in found
    assert "2 runs, 1 of them of a study that had been begun before." in text


def test_the_page_puts_what_was_measured_beside_what_the_guarantee_allows(eventful):
    found = "\n".join(rows(render_html(eventful)))
    epsilon = max(
        float(item["guaranteed"])
        for site in eventful["sites"]
        for item in site["accounts"][1]["spent"]
        if item["colluding"] == 1
    )
    allowed = 100 * most_found(epsilon, 1e-5, 0.01)
    (shown,) = re.findall(r"the run's adapter run-1 .* at most (\d+(?:\.\d)?) %", found)
    assert allowed <= float(shown) < allowed + 1
    assert re.search("the same study trained without noise run-1 .* anything", found)
    assert "run-1, round 39 2026-03-04 1.67 ≥ 0.49 at 95 % 136 of 200 on 800 canaries 3 of 3 209 of 212 stands" in found


def test_the_page_says_what_an_attack_is_worth_by_what_it_finds_without_protection(eventful):
    undefended = membership_facts(power=0.02, attacked="the same study trained without noise", is_private=False)
    text = render_html(eventful | {"membership": [dump(membership_facts()), dump(undefended)]})
    assert f"On the same study trained without noise it reaches an area of {undefended.auc:.3f}: the nearer" in text
    assert "it reaches an area of" not in render_html(eventful | {"membership": [dump(membership_facts())]})


def test_the_page_says_which_attack_it_was(eventful):
    by_loss = membership_facts(shadows=0, shadow_model="none; a record counts as used by its loss")
    for facts, said, other in (
        (membership_facts(), "Method: LiRA", "difficulty calibration"),
        (
            by_loss,
            "difficulty calibration, Watson et al. 2022, arXiv:2111.08440. Shadow models: none; a record",
            "LiRA",
        ),
    ):
        text = render_html(eventful | {"membership": [dump(facts)]})
        assert said in text
        assert other not in text


def test_a_refuted_claim_is_shown_as_refuted(eventful):
    facts = dump(audit_facts(lower_bound=3.0, findings=[AuditFinding(check="noise", detail="std is 0.5 of it")]))
    found = "\n".join(rows(render_html(eventful | {"audits": [facts]})))
    assert "is refuted" in found
    assert "noise : std is 0.5 of it" in found


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


def test_nothing_is_left_of_a_closed_account_whatever_its_cap_is_now(tmp_path):
    with ledger_with(tmp_path / "ledger.db", rounds=1) as ledger:
        ledger.recover(100)
        ledger.set_budget(budget(800.0))
        sites = {"east": SiteLedger(ledger.public_key, ledger.entries())}
    page = render_html(build_report("F", sites, [TEXT], signer(99)))
    cells = re.search(r'scope="row" class="c-site">east</th>.*?</tr>', page, re.DOTALL).group()
    assert re.findall(r'class="c-(?:cap|left) n"[^>]*>([^<]+)</td>', cells) == ["800", "0.00"]
    assert '<span class="tag">closed</span>' in cells
    assert "Entries of this ledger were lost for good" in page
    assert "Nothing has been charged" not in page


def test_a_site_without_charges_has_a_page_too(tmp_path):
    with ledger_with(tmp_path / "ledger.db", rounds=0) as ledger:
        sites = {"east": SiteLedger(ledger.public_key, ledger.entries())}
    assert "Nothing has been charged" in render_html(build_report("F", sites, [], signer()))


def test_the_signature_is_the_issuers_over_all_the_rest(report):
    contents = {name: value for name, value in report.items() if name != "signature"}
    message = canonical.encode(contents)
    assert canonical.is_signed(
        canonical.public_hex(signer(99)), "confide budget report 3", message, report["signature"]
    )
