"""A budget report as one HTML page that needs nothing else, no link, script or font; made to be printed and filed."""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...models.rounding import rounded_down, rounded_up
from ..accounting import renyi
from ..ledger import canonical
from ..ledger.charges import Books, Recovery, RunCharges
from . import figures, meaning, schema, study_terms, templating
from .schema import Account, AuditFacts, Event, MembershipFacts, Report, Spending


def render_html(report: Mapping[str, Any]) -> str:
    """The page for `report` as `build_report` gave it. It shows what the report says; `verify` tells if it holds.

    Raises:
        LedgerBroken: the entries of a ledger in it have no meaning.
        ReportInvalid: `report` does not follow the schema.
    """
    parsed = schema.parse(dict(report))
    books = {site.name: Books.replay(site.entries) for site in parsed.sites}
    environment = templating.templates(__name__)
    environment.filters |= {
        "epsilon": rounded_up, "down": rounded_down, "number": _number, "delta": _delta,
        "short": _short, "percent": _percent, "odds": _odds
    }  # fmt: skip
    environment.globals |= {
        "figure": figures, "meaning": meaning, "agreed": _agreed, "left": _left, "share": _share, "state": _state,
        "lost": _lost,
        "is_topped_up": _is_topped_up, "guarantee": _guarantee,
        "books": books, "begun_anew": _begun_anew,
    }  # fmt: skip
    digest = hashlib.sha256(canonical.encode(dict(report))).hexdigest()
    studies = {study.hash: None for study in parsed.studies} | study_terms.known(parsed.studies)
    names = {key: terms.draft.name for key, terms in studies.items() if terms}
    rounds = {key: terms.draft.rounds.rounds for key, terms in studies.items() if terms}
    template = environment.get_template("report.html")
    return template.render(
        report=parsed,
        digest=digest,
        studies=studies,
        study_names=names,
        planned_rounds=rounds,
        meanings=_meanings(parsed, books),
    )


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.6g}"


def _delta(value: float | None) -> str:
    """In powers of ten: 10⁻⁵, 2.5 · 10⁻⁶."""
    if value is None:
        return "–"
    digits, exponent = f"{value:.3e}".split("e")
    power = "10" + str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return power if float(digits) == 1 else f"{float(digits):g} · {power}"


def _percent(value: float) -> str:
    """A share in per cent, two significant digits or one decimal, rounded up: limits must not shrink on paper."""
    percent = 100 * value
    if percent <= 0 or percent >= 100:
        return "0 %" if percent <= 0 else "100 %"
    digits = 1 if percent >= 10 else 2 - math.ceil(math.log10(percent))
    rounded = math.ceil(percent * 10**digits - 1e-6) / 10**digits
    return f"{min(rounded, 100):.{digits}f} %".replace(".0 %", " %")


def _odds(epsilon: float) -> str:
    factor = meaning.odds_factor(epsilon)
    if factor > 1e6:
        return "beyond a million"
    return f"{math.ceil(factor * 10 - 1e-9) / 10:g}" if factor < 100 else f"{math.ceil(factor):,}"


def _short(hexadecimal: str) -> str:
    """The first 16 digits in groups of four: enough for an eye to tell two keys apart, not for a proof."""
    return " ".join(hexadecimal[start : start + 4] for start in range(0, 16, 4))


def _agreed(account: Account) -> Spending:
    """The spending that is measured against the budget: that at the budget's own collusion."""
    level = account.budget.collusion if account.budget else 0
    return next(item for item in account.spent if item.colluding == level)


def _lost(account: Account, books: Books) -> Recovery | None:
    """What counts as spent because entries on the account were lost for good, which closes it; None if none were."""
    return books.recoveries.get((account.dataset, account.unit))


def _left(account: Account, books: Books) -> float | None:
    """The rest of the budget in epsilon, by the filter that keeps it; None without a budget."""
    if account.budget is None:
        return None
    if account.unprotected or _lost(account, books):
        return 0.0
    return max(0.0, account.budget.epsilon - _agreed(account).guaranteed)


def _share(account: Account, books: Books) -> float:
    """How far the filter is filled, in per cent; at most 100 for the width of a bar."""
    cap, order = account.budget, account.order
    if cap is None or order is None or account.unprotected or _lost(account, books):
        return 100.0
    return min(100.0, 100 * renyi.filled(_agreed(account).guaranteed, cap.epsilon, cap.delta, order))


def _state(account: Account, books: Books) -> str:
    if account.unprotected:
        return "unprotected"
    if _lost(account, books):
        return "closed"
    if account.budget is None or _agreed(account).guaranteed > account.budget.epsilon:
        return "over"
    return "near" if _share(account, books) >= 90 else "within"


def _is_topped_up(event: Event, account: Account) -> bool:
    """True if sites added noise for missing ones: the same kind of release is there with more sites and less noise."""
    if event.planned_sites:
        return False
    return any(
        (other.study, other.purpose, other.mode) == (event.study, event.purpose, event.mode)
        and other.site_noise_int < event.site_noise_int
        and max(other.sites, other.planned_sites) > event.sites
        for other in account.events
    )


def _guarantee(report: Report, facts: AuditFacts | MembershipFacts) -> tuple[float, float] | None:
    """The largest guaranteed (epsilon, delta) of the sites that charged the study; None if one has no guarantee."""
    accounts = [
        account
        for site in report.sites
        for account in site.accounts
        if any(event.study == facts.study for event in account.events)
    ]
    if not accounts or any(account.budget is None or account.unprotected for account in accounts):
        return None
    most = max(accounts, key=lambda account: _agreed(account).guaranteed)
    assert most.budget is not None
    return _agreed(most).guaranteed, most.budget.delta


def _begun_anew(runs: list[RunCharges]) -> int:
    """The number of runs whose study had been begun here before."""
    return len(runs) - len({run.study for run in runs})


@dataclass(slots=True)
class Meant:
    """Sites whose accounts promise the same."""

    dataset: str
    epsilon: float
    delta: float
    sites: list[str]


def _meanings(report: Report, books: Mapping[str, Books]) -> list[Meant]:
    """Lists what is guaranteed, each figure as shown once, in the order of data sets."""
    found: dict[tuple[str, str, float], Meant] = {}
    for site in report.sites:
        for account in site.accounts:
            if account.budget is not None and (account.releases or _lost(account, books[site.name])):
                epsilon, delta = _agreed(account).guaranteed, account.budget.delta
                meant = found.setdefault(
                    (account.dataset, rounded_up(epsilon), delta), Meant(account.dataset, epsilon, delta, [])
                )
                meant.sites.append(site.name)
                meant.epsilon = max(meant.epsilon, epsilon)
    return [found[key] for key in sorted(found)]
