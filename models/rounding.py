"""Rounds bounds for people, to the side on which they still hold: an epsilon up, what is left of a budget down."""

import math
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal


def rounded_up(bound: float, decimals: int = 2) -> str:
    """Writes an upper bound, such as an epsilon, rounded up at its last digit; two significant digits below 0.1."""
    return _rounded(bound, decimals, ROUND_CEILING)


def figures_up(bound: float, figures: int = 3) -> str:
    """Writes a small upper bound, such as a delta, with so many significant digits, rounded up at the last.

    What stands behind the twelfth is the rounding of sums, and no part of it.
    """
    exact = Decimal(f"{bound:.12g}")
    last = Decimal(1).scaleb(exact.adjusted() + 1 - figures)
    return f"{float(exact.quantize(last, rounding=ROUND_CEILING)):.{figures}g}"


def power_of_ten(value: float) -> str:
    """Writes a small number, such as a delta, as a power of ten, to four significant digits.

    >>> power_of_ten(1e-5), power_of_ten(2.5e-6)
    ('10⁻⁵', '2.5 · 10⁻⁶')
    """
    digits, exponent = f"{value:.3e}".split("e")
    power = "10" + str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return power if float(digits) == 1 else f"{float(digits):g} · {power}"


def rounded_down(bound: float, decimals: int = 2) -> str:
    """Writes a lower bound, such as what is left of a budget or what an audit has shown, rounded down."""
    return _rounded(bound, decimals, ROUND_FLOOR)


def _rounded(bound: float, decimals: int, rounding: str) -> str:
    if math.isinf(bound):
        return "∞" if bound > 0 else "-∞"
    exact = Decimal(repr(float(bound)))
    if 0 < abs(exact) < Decimal("0.1"):
        decimals = max(decimals, 1 - exact.adjusted())
    return f"{exact.quantize(Decimal(1).scaleb(-decimals), rounding=rounding):f}"
