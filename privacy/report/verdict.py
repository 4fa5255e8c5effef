"""The verdict on a report in one sentence, from its data: the caps, the audits, and whether its signatures hold.

It takes the figures as the report states them; that they follow from the ledgers is for `verify` to say.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from markupsafe import Markup

from ..errors import LedgerBroken
from ..ledger import canonical
from ..ledger.chain import verify_chain
from ..ledger.charges import Books
from . import standing
from .language import Language
from .schema import SIGNATURE_DOMAIN, Account, Report

Level = Literal["within", "near", "over"]
Problem = Literal["unprotected", "over", "uncapped", "closed", "spent", "near"]
GRAVEST: tuple[Problem, ...] = ("unprotected", "over", "uncapped", "closed", "spent", "near")  # first


@dataclass(frozen=True, slots=True)
class Verdict:
    """One sentence, and how grave it is: `within` all bounds, `near` one, or `over` one or not to be relied on."""

    level: Level
    sentence: Markup


def verdict(report: Report, contents: Mapping[str, Any], books: Mapping[str, Books], language: Language) -> Verdict:
    """Says in one sentence where all sites stand.

    Args:
        report: what `contents`, its JSON, was parsed to.
        books: of the sites, by name.
    """
    if broken := list(_broken(report, contents, language)):
        return Verdict("over", _sentence(broken))
    if not report.sites:
        return Verdict("near", _sentence([language.say("verdict.empty")]))
    problems = {site.name: _problem(site.accounts, books[site.name]) for site in report.sites}
    found = [problem for problem in GRAVEST if problem in problems.values()]
    clauses = [*_caps(report, problems, language), *_audits(report, language)]
    is_refuted = any(not facts.passed for facts in report.audits)
    is_near = set(found) <= {"spent", "near"} and not is_refuted
    return Verdict("within" if is_near and not found else "near" if is_near else "over", _sentence(clauses))


def _broken(report: Report, contents: Mapping[str, Any], language: Language) -> Iterable[Markup]:
    """Why nothing here can be relied on."""
    signed = canonical.encode({name: value for name, value in contents.items() if name != "signature"})
    if not canonical.is_signed(report.issuer, SIGNATURE_DOMAIN, signed, report.signature):
        yield language.say("verdict.broken_signature")
    broken = []
    for site in report.sites:
        try:
            verify_chain(site.entries, site.public_key)
        except LedgerBroken:
            broken.append(site.name)
    if broken:
        yield _counted("verdict.broken_ledger", broken, report, language)


def _problem(accounts: Sequence[Account], books: Books) -> Problem | None:
    """The gravest problem of a site's accounts."""
    found = {_problem_of(account, books) for account in accounts}
    return next((problem for problem in GRAVEST if problem in found), None)


def _problem_of(account: Account, books: Books) -> Problem | None:
    state = standing.state(account, books)
    if account.budget is None and state == "over":
        return "uncapped"
    if state == "within":
        return None
    return "spent" if state == "near" and standing.left(account, books) == 0 else state


def _caps(report: Report, problems: Mapping[str, Problem | None], language: Language) -> Iterable[Markup]:
    if not any(account.releases for site in report.sites for account in site.accounts) and not any(problems.values()):
        yield language.count("verdict.idle", len(report.sites))
        return
    for problem in GRAVEST:
        if names := [name for name, found in problems.items() if found == problem]:
            yield _counted(f"verdict.is.{problem}", names, report, language)
    sound = sum(problem is None for problem in problems.values())
    if sound:
        yield language.count("verdict.all_within" if sound == len(report.sites) else "verdict.rest", sound)


def _audits(report: Report, language: Language) -> Iterable[Markup]:
    """What became of the claim in audits; nothing where there is no claim."""
    refuted = sum(not facts.passed for facts in report.audits)
    if refuted:
        yield language.count("verdict.audits_refuted", refuted, all=len(report.audits))
        return
    events = (event for site in report.sites for account in site.accounts for event in account.events)
    claimed = {event.study for event in events if event.mode != "none"}
    audited = claimed & {facts.study for facts in report.audits}
    if not claimed:
        return
    if not audited:
        yield language.say("verdict.audits_none")
    elif audited < claimed:
        yield language.count("verdict.audits_partial", len(audited), all=len(claimed))
    else:
        yield language.count("verdict.audits_stood", len(report.audits))


def _counted(key: str, names: Sequence[str], report: Report, language: Language) -> Markup:
    return language.count(key, len(names), all=len(report.sites), names=language.names(names))


def _sentence(clauses: Iterable[Markup]) -> Markup:
    """Joins clauses, of which the first begins with a word of ours, never with a name."""
    text = Markup("; ").join(clauses)
    return text[:1].upper() + text[1:] + Markup(".")
