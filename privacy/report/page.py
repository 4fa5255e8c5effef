"""A budget report as one HTML page that needs nothing else, no link, script or font; made to be printed and filed."""

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from jinja2 import Environment
from markupsafe import Markup

from ...models.rounding import power_of_ten, rounded_down, rounded_up
from ..errors import ReportInvalid
from ..ledger import canonical
from ..ledger.charges import Books, RunCharges
from . import figures, meaning, schema, standing, study_terms, templating
from .language import DEFAULT, Language, load
from .schema import Account, AuditFacts, Event, MembershipFacts, Report
from .verdict import verdict


def render_html(report: Mapping[str, Any], *, language: str = DEFAULT) -> str:
    """The page for `report` as `build_report` gave it. It shows what the report says; `verify` tells if it holds.

    Args:
        language: the code of one of the `language.languages`; the report itself is in none.

    Raises:
        LedgerBroken: the entries of a ledger in it have no meaning.
        ReportInvalid: `report` does not follow the schema or has an impossible time, or there is no such language.
    """
    words = load(language)
    parsed = schema.parse(dict(report))
    books = {site.name: Books.replay(site.entries) for site in parsed.sites}
    studies = {study.hash: None for study in parsed.studies} | study_terms.known(parsed.studies)
    template = _environment(words).get_template("report.html")
    return template.render(
        report=parsed,
        verdict=verdict(parsed, report, books, words),
        copies=_copies(parsed, words),
        digest=hashlib.sha256(canonical.encode(dict(report))).hexdigest(),
        books=books,
        studies=studies,
        study_names={key: terms.draft.name for key, terms in studies.items() if terms},
        planned_rounds={key: terms.draft.rounds.rounds for key, terms in studies.items() if terms},
        meanings=_meanings(parsed, books),
    )


def _environment(language: Language) -> Environment:
    digits = language.digits
    environment = templating.templates(__name__)
    environment.filters |= {
        "epsilon": lambda bound: digits(rounded_up(bound)),
        "down": lambda bound: digits(rounded_down(bound)),
        "number": lambda value: digits(_number(value)),
        "delta": lambda value: "–" if value is None else digits(power_of_ten(value)),
        "percent": lambda part: digits(_percent(part)),
        "written": lambda value, shape: digits(shape.format(value)),
        "odds": lambda epsilon: _odds(epsilon, language),
        "short": _short,
    }
    environment.globals |= {
        "t": language.say, "n": language.count, "day": language.day, "lang": language.code,
        "drawn": _drawing(language), "figure": figures, "meaning": meaning,
        "agreed": standing.agreed, "left": standing.left, "share": standing.share, "state": standing.state,
        "lost": standing.lost, "is_topped_up": _is_topped_up, "guarantee": _guarantee, "begun_anew": _begun_anew,
        "age": lambda site, issued: _age(site.entries[-1].time, issued, language),
    }  # fmt: skip
    return environment


def _drawing(language: Language) -> Callable[..., Markup]:
    """Draws a chart twice, for a wide page and for a narrow one; the page's style shows one of them."""
    wide, narrow = figures.Sheet(language), figures.Sheet(language, is_narrow=True)

    def drawn(chart: Callable[..., Markup], *facts: object) -> Markup:
        pair = chart(*facts, wide), chart(*facts, narrow)
        return Markup('<div class="wide">{}</div><div class="narrow">{}</div>').format(*pair) if all(pair) else pair[0]

    return drawn


def _age(newest: str, issued: str, language: Language) -> Markup:
    """Tells how much older a copy is than the report, in whole days, hours or minutes."""
    seconds = (_moment(issued) - _moment(newest)).total_seconds()
    if seconds < -60:
        return language.say("copy.age.newer")
    for unit, size in (("days", 86_400), ("hours", 3600), ("minutes", 60)):
        if seconds >= size:
            return language.count(f"copy.age.{unit}", int(seconds // size))
    return language.say("copy.age.same")


def _moment(time: str) -> datetime:
    try:
        return datetime.fromisoformat(time)
    except ValueError as err:
        raise ReportInvalid(f"{time} is no time; a report and its entries have one each") from err


def _copies(report: Report, language: Language) -> list[Markup]:
    """Tells how old each site's ledger is here, sites whose copies read the same in one line."""
    _moment(report.issued)  # of a report without a site too
    found: dict[tuple[str, Markup], list[str]] = {}
    for site in report.sites:
        newest = site.entries[-1].time if site.entries else ""
        age = _age(newest, report.issued, language) if newest else Markup("")
        found.setdefault((newest[:10], age), []).append(site.name)
    return [
        language.say("copy.line", names=", ".join(names), day=language.day(newest), age=age)
        if newest
        else language.say("copy.none", names=", ".join(names))
        for (newest, age), names in sorted(found.items())
    ]


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.6g}"


def _percent(value: float) -> str:
    """A share in per cent, two significant digits or one decimal, rounded up: limits must not shrink on paper."""
    percent = 100 * value
    if percent <= 0 or percent >= 100:
        return "0 %" if percent <= 0 else "100 %"
    digits = 1 if percent >= 10 else 2 - math.ceil(math.log10(percent))
    rounded = math.ceil(percent * 10**digits - 1e-6) / 10**digits
    return f"{min(rounded, 100):.{digits}f} %".replace(".0 %", " %")


def _odds(epsilon: float, language: Language) -> str:
    factor = meaning.odds_factor(epsilon)
    if factor > 1e6:
        return language.say("words.beyond_a_million")
    return language.digits(f"{math.ceil(factor * 10 - 1e-9) / 10:g}" if factor < 100 else f"{math.ceil(factor):,}")


def _short(hexadecimal: str) -> str:
    """The first 16 digits in groups of four: enough for an eye to tell two keys apart, not for a proof."""
    return " ".join(hexadecimal[start : start + 4] for start in range(0, 16, 4))


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
    most = max(accounts, key=lambda account: standing.agreed(account).guaranteed)
    assert most.budget is not None
    return standing.agreed(most).guaranteed, most.budget.delta


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
            if account.budget is not None and (account.releases or standing.lost(account, books[site.name])):
                epsilon, delta = standing.agreed(account).guaranteed, account.budget.delta
                meant = found.setdefault(
                    (account.dataset, rounded_up(epsilon), delta), Meant(account.dataset, epsilon, delta, [])
                )
                meant.sites.append(site.name)
                meant.epsilon = max(meant.epsilon, epsilon)
    return [found[key] for key in sorted(found)]
