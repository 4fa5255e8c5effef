"""Generates problems of mathematics with their derivations, each line worked out, and patients' doses by protocol.

Families that anybody may know: differential equations of first and second order, integrals, derivatives, the half-life
of a drug, compound interest, a debt with payments, and a dose from stated numbers. A derivation writes every operation
with its value, so that an exact engine can compute it; what is left to a model is which operation comes next.

A patient's dose is calculated by a protocol that only the hospitals know: the question names the drug, and the
derivation begins with the numbers that the protocol has for it. All protocols are invented: never dose by them.
"""

import hashlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from math import isqrt

from confide.models.decoding.arithmetic import decimal

HELD_OUT = 0.1  # of all questions, by a hash of the question


@dataclass(frozen=True, slots=True)
class Problem:
    """A question, the lines of its derivation, and the answer."""

    family: str
    question: str
    lines: tuple[str, ...]
    answer: str

    @property
    def derivation(self) -> str:
        """The lines as a cell of a table holds them."""
        return ";".join(self.lines)


@dataclass(frozen=True, slots=True)
class Protocol:
    """The numbers that the hospitals' protocol has for a drug."""

    per_kg: Fraction  # mg for each kg of weight
    concentration: int  # mg in each mL
    factors: tuple[Fraction, ...]  # of the dose, by stage of renal function from 1


_FACTORS = tuple(Fraction(quarters, 4) for quarters in (4, 3, 2, 1))
PROTOCOLS = {
    drug: Protocol(Fraction(per_kg), concentration, _FACTORS)
    for drug, per_kg, concentration in (
        ("A", "5", 40), ("B", "7.5", 50), ("C", "2.5", 10), ("D", "15", 20),
        ("E", "1.5", 4), ("F", "12", 25), ("G", "3", 8), ("H", "10", 5),
    )
}  # fmt: skip


def linear_equation(rng: random.Random) -> Problem:
    """y' + a y = b with y(0) = c."""
    a, level, start = rng.choice([-6, -5, -4, -3, -2, 2, 3, 4, 5, 6]), rng.randint(-9, 9), rng.randint(-9, 9)
    b = a * level
    lines = (f"k={b}/{_bracketed(a)}={level}", f"C={start}-{_bracketed(level)}={start - level}")
    return Problem("ode1", f"y'{a:+}y={b},y(0)={start}", lines, _exponentials([(start - level, -a)], level))


def oscillator(rng: random.Random) -> Problem:
    """y'' + p y' + q y = 0 with y(0) = u and y'(0) = v, by the roots of its characteristic polynomial."""
    r, s = sorted(rng.sample([-5, -4, -3, -2, -1, 1, 2, 3, 4, 5], 2))
    first, second = rng.randint(-6, 6), rng.randint(-6, 6)
    p, q, u, v = -(r + s), r * s, first + second, first * r + second * s
    square = p * p - 4 * q
    root = isqrt(square)
    lines = (
        f"D={_bracketed(p)}^{{2}}-4\\cdot{_bracketed(q)}={square}",
        f"d=\\sqrt{{{square}}}={root}",
        f"r=(-{_bracketed(p)}-{root})/2={r}",
        f"s=(-{_bracketed(p)}+{root})/2={s}",
        f"B=({v}-{_bracketed(r)}\\cdot{_bracketed(u)})/({s}-{_bracketed(r)})={second}",
        f"A={u}-{_bracketed(second)}={first}",
    )
    question = f"y''{p:+}y'{q:+}y=0,y(0)={u},y'(0)={v}"
    return Problem("ode2", question, lines, _exponentials([(first, r), (second, s)]))


def integral(rng: random.Random) -> Problem:
    """The integral of a polynomial from 0 to b, by its antiderivative."""
    degree, b = rng.randint(1, 3), rng.randint(1, 5)
    whole = [0, *(rng.randint(-5, 5) for _ in range(degree))]
    whole[-1] = whole[-1] or rng.choice([1, 2, 3])
    powers = [power for power in range(degree, 0, -1) if whole[power]]
    lines = [f"{power * whole[power]}/{power}={whole[power]}" for power in powers]
    terms = [f"{whole[power]:+}\\cdot{b}" + (f"^{{{power}}}" if power > 1 else "") for power in powers]
    total = sum(whole[power] * b**power for power in powers)
    lines += [f"F={_polynomial(whole)}", f"{''.join(terms).removeprefix('+')}={total}"]
    inside = _polynomial([power * whole[power] for power in range(1, degree + 1)])
    return Problem("integral", f"\\int_{{0}}^{{{b}}}({inside})dx", tuple(lines), str(total))


def derivative(rng: random.Random) -> Problem:
    """The derivative of a polynomial times an exponential, by the product rule."""
    c, k = [rng.randint(-6, 6) for _ in range(3)], rng.choice([-4, -3, -2, 2, 3, 4])
    c[2] = c[2] or rng.choice([1, 2, 3])
    found = [c[1] + k * c[0], 2 * c[2] + k * c[1], k * c[2]]
    lines = (
        f"{k}\\cdot{_bracketed(c[2])}={found[2]}",
        f"{k}\\cdot{_bracketed(c[1])}+2\\cdot{_bracketed(c[2])}={found[1]}",
        f"{k}\\cdot{_bracketed(c[0])}+{_bracketed(c[1])}={found[0]}",
    )
    question = f"\\frac{{d}}{{dx}}(({_polynomial(c)})e^{{{k}x}})"
    return Problem("derivative", question, lines, f"({_polynomial(found)})e^{{{k}x}}")


def half_life(rng: random.Random) -> Problem:
    """The concentration of a drug after some half-lives."""
    hours, times, left = rng.randint(2, 12), rng.randint(1, 5), rng.randint(2, 60)
    start = left * 2**times
    lines = (f"n={hours * times}/{hours}={times}", f"c={start}/2^{{{times}}}={left}")
    return Problem("half-life", f"c(0)={start},h={hours},c({hours * times})", lines, str(left))


def interest(rng: random.Random) -> Problem:
    """A sum with compound interest, year by year."""
    rate, years, sum_ = rng.choice([5, 10, 20, 25]), rng.randint(2, 3), Fraction(rng.randint(1, 90) * 10)
    question, lines = f"P={sum_},r={rate},n={years}", []
    for year in range(1, years + 1):
        gain = sum_ * rate / 100
        lines += [
            f"i_{year}={_said(sum_)}\\cdot{rate}/100={_said(gain)}",
            f"P_{year}={_said(sum_)}+{_said(gain)}={_said(sum_ + gain)}",
        ]
        sum_ += gain
    return Problem("interest", question, tuple(lines), _said(sum_))


def annuity(rng: random.Random) -> Problem:
    """A debt with interest and equal payments, year by year; it is never paid back whole."""
    while True:
        rate, years = rng.choice([5, 10, 20]), rng.randint(2, 3)
        debt, paid = Fraction(rng.randint(5, 90) * 10), rng.randint(1, 19) * 10
        question, lines = f"D={debt},r={rate},R={paid},n={years}", []
        for year in range(1, years + 1):
            gain, before = debt * rate / 100, debt
            debt = before + gain - paid
            lines += [
                f"i_{year}={_said(before)}\\cdot{rate}/100={_said(gain)}",
                f"D_{year}={_said(before)}+{_said(gain)}-{paid}={_said(debt)}",
            ]
        if debt > 0:
            return Problem("annuity", question, tuple(lines), _said(debt))


def dose(rng: random.Random) -> Problem:
    """A patient's dose where the question states the numbers of the protocol, too."""
    factors = tuple(Fraction(rng.randint(1, 4), 4) for _ in range(4))
    protocol = Protocol(Fraction(rng.randint(2, 30), 2), rng.choice([2, 4, 5, 8, 10, 20, 25, 40, 50]), factors)
    return _dosed("dose", rng.choice("ABCDEFGH"), protocol, rng.randint(3, 120), rng.randint(1, 4), is_stated=True)


FAMILIES: dict[str, Callable[[random.Random], Problem]] = {
    "ode1": linear_equation, "ode2": oscillator, "integral": integral, "derivative": derivative,
    "half-life": half_life, "interest": interest, "annuity": annuity, "dose": dose,
}  # fmt: skip


def by_protocol(drug: str, weight: int, stage: int) -> Problem:
    """A patient's dose: the question names drug, weight in kg and stage of renal function, from 1 to 4."""
    return _dosed("protocol", drug, PROTOCOLS[drug], weight, stage, is_stated=False)


def problems(seed: int, *, held_out: bool, family: str | None = None) -> Iterator[Problem]:
    """Draws problems without end, of one family or of all in turn at random; equal for equal arguments."""
    rng = random.Random(seed)
    while True:
        problem = FAMILIES[family or rng.choice(tuple(FAMILIES))](rng)
        if is_held_out(problem.question) == held_out:
            yield problem


def is_held_out(question: str) -> bool:
    """True for a tenth of all questions."""
    return int.from_bytes(hashlib.sha256(question.encode()).digest()[:8], "big") / 2**64 < HELD_OUT


def _dosed(family: str, drug: str, protocol: Protocol, weight: int, stage: int, *, is_stated: bool) -> Problem:
    factor = protocol.factors[stage - 1]
    mass = protocol.per_kg * weight * factor
    volume = _said(mass / protocol.concentration)
    numbers = f"k={_said(protocol.per_kg)},c={protocol.concentration},f={_said(factor)}"
    lines = (
        numbers,
        f"m={_said(protocol.per_kg)}\\cdot{weight}\\cdot{_said(factor)}={_said(mass)}",
        f"v={_said(mass)}/{protocol.concentration}={volume}",
    )
    return Problem(family, f"{drug},w={weight},g={stage}" + (f",{numbers}" if is_stated else ""), lines, volume)


def _said(value: Fraction) -> str:
    said = decimal(value)
    assert said is not None, f"{value} has no short decimal"
    return said


def _bracketed(number: int) -> str:
    return f"({number})" if number < 0 else str(number)


def _polynomial(coefficients: list[int]) -> str:
    """LaTeX of c[0] + c[1] x + ..., highest power first."""
    terms = ""
    for power in range(len(coefficients) - 1, -1, -1):
        number = coefficients[power]
        if number:
            size = "" if abs(number) == 1 and power else str(abs(number))
            variable = ("", "x")[power] if power < 2 else f"x^{{{power}}}"
            terms += ("-" if number < 0 else "+" if terms else "") + size + variable
    return terms or "0"


def _exponentials(pairs: list[tuple[int, int]], constant: int = 0) -> str:
    """LaTeX of a e^{rx} + ... + constant."""
    terms = ""
    for factor, rate in pairs:
        if factor:
            exponent = {1: "x", -1: "-x"}.get(rate, f"{rate}x")
            size = "" if abs(factor) == 1 else str(abs(factor))
            terms += ("-" if factor < 0 else "+" if terms else "") + f"{size}e^{{{exponent}}}"
    if constant or not terms:
        terms += f"{constant:+}" if terms else str(constant)
    return terms
