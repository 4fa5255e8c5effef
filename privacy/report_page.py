"""A budget report as one HTML page that needs nothing else, no link, script or font; made to be printed and filed."""

import hashlib
import math
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined

from . import canonical, figure, report_format
from .report_format import Account, Spending


def render_html(report: Mapping[str, Any]) -> str:
    """The page for `report` as `build_report` gave it. It shows what the report says; `verify` tells if it holds.

    Raises:
        ReportInvalid: `report` does not follow the schema.
    """
    parsed = report_format.parse(dict(report))
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"epsilon": _epsilon, "number": _number, "delta": _delta, "short": _short}
    environment.globals |= {"course": figure.course, "agreed": _agreed, "share": _share, "state": _state}
    template = environment.from_string((files(__package__) / "templates" / "report.html").read_text("utf-8"))
    digest = hashlib.sha256(canonical.encode(dict(report))).hexdigest()
    names = {study.hash: study.name for study in parsed.studies}
    return template.render(report=parsed, digest=digest, study_names=names)


def _epsilon(value: float) -> str:
    """Two decimals, rounded up: a bound must not shrink on paper."""
    if math.isinf(value):
        return "∞"
    return f"{math.ceil(value * 100 - 1e-9) / 100:.2f}" if value >= 0.1 or value == 0 else f"{value * 1.005:.2g}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.6g}"


def _delta(value: float | None) -> str:
    """In powers of ten: 10⁻⁵, 2.5 · 10⁻⁶."""
    if value is None:
        return "–"
    digits, exponent = f"{value:.3e}".split("e")
    power = "10" + str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return power if float(digits) == 1 else f"{float(digits):g} · {power}"


def _short(hexadecimal: str) -> str:
    """The first 16 digits in groups of four: enough for an eye to tell two keys apart, not for a proof."""
    return " ".join(hexadecimal[start : start + 4] for start in range(0, 16, 4))


def _agreed(account: Account) -> Spending:
    """What is measured against the budget: the level of collusion that the budget demands."""
    level = account.budget.collusion if account.budget else 0
    return next(item for item in account.spent if item.colluding == level)


def _share(account: Account) -> float:
    """Spent part of the budget, PLD, in per cent; at most 100 for the width of a bar."""
    if account.budget is None or account.unprotected:
        return 100.0
    return min(100.0, 100 * _agreed(account).pld / account.budget.epsilon)


def _state(account: Account) -> str:
    if account.unprotected:
        return "unprotected"
    if account.budget is None or _agreed(account).pld > account.budget.epsilon:
        return "over"
    return "near" if _share(account) >= 90 else "within"
