import html
import re

import pytest

from confide.privacy.errors import ReportInvalid
from confide.privacy.ledger import canonical
from confide.privacy.report.build import SiteLedger, build_report, render_html
from confide.privacy.report.schema import SIGNATURE_DOMAIN, AuditFinding, dump

from ..ledgers import SITES, STUDY, STUDY_TEXT, audit_facts, budget, charge, eventful_report, ledger_with, signer

ISSUER = signer(99)
STOOD = audit_facts(study=STUDY)
REFUTED = audit_facts(study=STUDY, lower_bound=3.0)
FOUND = audit_facts(study=STUDY, findings=[AuditFinding(check="noise", detail="std is 0.5 of it")])


def four_sites(path, change=lambda ledger: None, *, changed=("east",), rounds=3) -> dict[str, SiteLedger]:
    """Four sites with three charges each, of which some change their ledgers further."""
    sites = {}
    for seed, site in enumerate(SITES, start=1):
        settled = min(rounds, 2)
        with ledger_with(path / f"{site}.db", site=site, seed=seed, rounds=rounds, settled=settled) as ledger:
            if site in changed:
                change(ledger)
            sites[site] = SiteLedger(ledger.public_key, ledger.entries())
    return sites


def reported(sites, *audits) -> dict:
    return build_report("F", sites, [STUDY_TEXT], ISSUER, audits=audits)


def signed(report: dict) -> dict:
    contents = {name: value for name, value in report.items() if name != "signature"}
    return contents | {"signature": canonical.sign(ISSUER, SIGNATURE_DOMAIN, canonical.encode(contents))}


def said(report, language: str = "en") -> tuple[str, str]:
    """The verdict's level and sentence on the page, which stand before its first table."""
    page = render_html(report, language=language)
    level, sentence = re.search(r'<section class="verdict (\w+)".*?<strong>(.*?)</strong>', page, re.DOTALL).groups()
    assert page.index('<section class="verdict') < page.index("<table")
    return level, html.unescape(re.sub("<[^>]+>", "", sentence))


def guaranteed(sites) -> float:
    account = reported(sites)["sites"][0]["accounts"][0]
    return float(next(item["guaranteed"] for item in account["spent"] if item["colluding"] == 1))


def test_sites_under_their_caps_whose_claim_nobody_audited(tmp_path):
    report = reported(four_sites(tmp_path))
    assert said(report) == ("within", "All 4 sites are under their caps; the claim was not audited.")
    assert said(report, "de")[1] == (
        "Alle 4 Beteiligten liegen unter ihren Obergrenzen; die Zusage wurde nicht geprüft."
    )


@pytest.mark.parametrize(
    ("audits", "clause"),
    [((STOOD,), "the claim stood its audit."), ((STOOD, STOOD), "the claim stood all its 2 audits.")],
)
def test_a_claim_that_stood_its_audits(tmp_path, audits, clause):
    assert said(reported(four_sites(tmp_path), *audits)) == ("within", f"All 4 sites are under their caps; {clause}")


def test_a_study_that_was_audited_beside_one_that_was_not():
    level, sentence = said(eventful_report())
    assert level == "within"
    assert sentence.endswith("; 1 of 2 studies was audited, and its claim stood.")


@pytest.mark.parametrize("failed", [REFUTED, FOUND])
def test_an_audit_that_failed_decides_whatever_other_audits_found(tmp_path, failed):
    level, sentence = said(reported(four_sites(tmp_path), STOOD, failed))
    assert (level, sentence) == ("over", "All 4 sites are under their caps; 1 of 2 audits refuted the claim.")


def test_a_site_over_its_cap(tmp_path):
    sites = four_sites(tmp_path, lambda ledger: ledger.set_budget(budget(0.5)))
    assert said(reported(sites, STOOD)) == (
        "over",
        "1 of 4 sites is over its cap (east); 3 others are under their caps; the claim stood its audit.",
    )


def test_sites_over_their_caps_are_all_named(tmp_path):
    sites = four_sites(tmp_path, lambda ledger: ledger.set_budget(budget(0.5)), changed=("east", "west"))
    assert said(reported(sites, STOOD))[1].startswith("2 of 4 sites are over their caps (east, west); 2 others are")


@pytest.mark.parametrize(
    ("room", "clause"), [(1.0, "1 of 4 sites has reached its cap"), (1.01, "1 of 4 sites has nearly spent its cap")]
)
def test_a_site_at_its_cap_or_near_it(tmp_path, room, clause):
    (tmp_path / "before").mkdir()
    cap = guaranteed(four_sites(tmp_path / "before")) * room
    level, sentence = said(reported(four_sites(tmp_path, lambda ledger: ledger.set_budget(budget(cap))), STOOD))
    assert level == "near"
    assert sentence.startswith(f"{clause} (east); 3 others are under their caps")


def test_a_run_without_privacy(tmp_path):
    def charge_openly(ledger):
        ledger.reserve(charge(1, run="open", dataset="public", mode="none"), unprotected_allowed=True)

    level, sentence = said(reported(four_sites(tmp_path, charge_openly), STOOD))
    assert level == "over"
    assert sentence.startswith("1 of 4 sites made releases without noise, for which no epsilon holds (east); 3 others")


def test_a_site_that_lost_entries(tmp_path):
    level, sentence = said(reported(four_sites(tmp_path, lambda ledger: ledger.recover(100))))
    assert level == "over"
    assert sentence.startswith("1 of 4 sites lost entries of its ledger, which counts as spent (east)")


def test_charges_without_a_cap(tmp_path):
    report = reported(four_sites(tmp_path))
    account = report["sites"][0]["accounts"][0]
    unbounded = {"colluding": 0, "pld": "inf", "rdp": "inf", "guaranteed": "inf"}
    account.update(budget=None, order=None, course=[], spent=[unbounded])
    level, sentence = said(signed(report))
    assert level == "over"
    assert sentence.startswith("1 of 4 sites has charges without a cap (east)")


def test_a_chain_that_does_not_verify_makes_every_other_clause_worthless(tmp_path):
    report = reported(four_sites(tmp_path), STOOD)
    report["sites"][1]["entries"][2]["signature"] = "0" * 128
    assert said(signed(report)) == (
        "over",
        "Do not rely on this report: the ledger of 1 of 4 sites does not verify (north).",
    )


def test_a_report_that_was_changed_after_it_was_signed(tmp_path):
    report = reported(four_sites(tmp_path), STOOD) | {"federation": "Another"}
    level, sentence = said(report)
    assert (level, sentence) == (
        "over",
        "Do not rely on this report: it was changed after its issuer signed it.",
    )
    assert said(report, "de")[1].startswith("Auf diesen Bericht ist kein Verlass: Er wurde geändert")


def test_sites_that_charged_nothing_claim_nothing(tmp_path):
    level, sentence = said(reported(four_sites(tmp_path, rounds=0)))
    assert (level, sentence) == ("within", "Nothing has been charged at any of the 4 sites.")


def test_one_site_is_told_of_in_the_singular(tmp_path):
    sites = {"east": four_sites(tmp_path)["east"]}
    assert said(reported(sites))[1] == "The only site here is under its cap; the claim was not audited."


def test_a_report_without_a_site_says_so():
    assert said(build_report("F", {}, [], ISSUER)) == ("near", "This report holds the ledger of no site.")


def test_a_site_s_name_cannot_become_markup(tmp_path):
    with ledger_with(tmp_path / "ledger.db", site="<b>&{names}") as ledger:
        ledger.set_budget(budget(0.5))
        sites = {"<b>&{names}": SiteLedger(ledger.public_key, ledger.entries())}
    report = reported(sites)
    assert "<b>" not in render_html(report)
    assert "(<b>&{names})" in said(report)[1]


@pytest.mark.parametrize(
    ("issued", "words"),
    [
        ("2026-03-02T09:00:30Z", "as old as this report"),
        ("2026-03-02T09:41:00Z", "41 minutes older than this report"),
        ("2026-03-02T10:00:00Z", "1 hour older than this report"),
        ("2026-03-05T10:00:00Z", "3 days older than this report"),
        ("2026-03-02T08:00:00Z", "newer than this report, by the site’s clock"),
    ],
)
def test_the_page_says_how_old_each_copy_is_and_what_is_not_known_since(tmp_path, issued, words):
    report = reported(four_sites(tmp_path))
    for site in report["sites"]:
        site["entries"][-1]["time"] = "2026-03-02T09:00:00Z"
    page = render_html(report | {"issued": issued})
    assert page.count(f"copy up to 2 March 2026, {words}") == 4
    assert f"<strong>east, north, south, west</strong>: copy of the ledger up to 2 March 2026, {words}" in page
    assert "a cap that it has raised or lowered since, is not known here" in page


@pytest.mark.parametrize("place", ["issued", "entry"])
def test_a_time_that_there_is_not_is_refused_in_words(tmp_path, place):
    report = reported(four_sites(tmp_path))
    if place == "issued":
        report["issued"] = "2026-13-01T00:00:00Z"
    else:
        with ledger_with(tmp_path / "fresh.db", rounds=0) as ledger:
            report["sites"][0]["entries"] = [entry.model_dump() for entry in ledger.entries()]
        report["sites"][0]["entries"][-1]["time"] = "2026-13-01T00:00:00Z"
    with pytest.raises(ReportInvalid, match="2026-13-01T00:00:00Z is no time"):
        render_html(report)


def test_copies_of_different_age_are_told_apart(tmp_path):
    report = reported(four_sites(tmp_path)) | {"issued": "2026-11-30T12:00:00Z"}
    for site, day in zip(report["sites"], (27, 29, 27, 27), strict=True):
        site["entries"][-1]["time"] = f"2026-11-{day}T11:00:00Z"
    page = render_html(report, language="de")
    older, newer = re.findall(r"<li>(.*?)</li>", page)[:2]
    assert older == (
        "<strong>east, south, west</strong>: Kopie des Budgetbuchs bis 27. November 2026, "
        "3 Tage älter als dieser Bericht"
    )
    assert newer.endswith("bis 29. November 2026, 1 Tag älter als dieser Bericht")


def test_the_verdict_is_of_the_report_s_figures_and_not_of_a_change_in_its_json(tmp_path):
    report = reported(four_sites(tmp_path), STOOD)
    report["audits"][0] = dump(REFUTED)
    assert said(signed(report))[1].endswith("1 of 1 audits refuted the claim.")
