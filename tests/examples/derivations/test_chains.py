"""The generator of derivations, checked by SymPy: it solves nothing itself, but confirms lines, conditions, answers."""

import itertools
import random
import re
import sys
from fractions import Fraction

import pytest
import sympy

from confide.models.evaluation.answers import is_equivalent
from confide.models.evaluation.derivations import wrong_equalities

from ..conftest import EXAMPLES

sys.path.insert(0, str(EXAMPLES / "derivations"))
import chains

X = sympy.Symbol("x")
SAMPLE = 25  # of a family


def expression(text):
    """SymPy's reading of the generator's own LaTeX."""
    text = text.replace("\\cdot", "*").replace("\\sqrt", "sqrt").replace("{", "(").replace("}", ")").replace("^", "**")
    text = re.sub(r"(?<=[0-9x)])(?=[xe(])", "*", text).replace("sqrt*(", "sqrt(")
    text = re.sub(r"e\*\*\(([^()]*)\)", lambda found: f"exp({re.sub(r'(?<=[0-9])x', '*x', found[1])})", text)
    return sympy.sympify(text, locals={"x": X, "exp": sympy.exp, "sqrt": sympy.sqrt}, rational=True)


def is_numeric(side):
    return re.fullmatch(r"(?:[-+0-9./(){}^]|\\cdot|\\sqrt)+", side) is not None


def wrong_lines(problem):
    """Lines of which SymPy finds numeric sides that differ."""
    found = []
    for line in problem.derivation.replace(",", ";").split(";"):
        sides = [expression(side) for side in line.split("=") if is_numeric(side)]
        if any(sympy.simplify(side - sides[0]) != 0 for side in sides[1:]):
            found.append(line)
    return found


def numbers(text):
    return [sympy.Rational(found) for found in re.findall(r"-?\d+(?:\.\d+)?", text)]


def solves(problem):
    """Whether the answer is one, by another way than the generator's."""
    question, answer = problem.question, expression(problem.answer)
    if problem.family == "ode1":
        a, b, _, start = numbers(question.replace("y'", ""))
        return sympy.simplify(answer.diff(X) + a * answer - b) == 0 and answer.subs(X, 0) == start
    if problem.family == "ode2":
        p, q, _, _, start, _, slope = numbers(question.replace("y''", "").replace("y'", ""))
        equation = answer.diff(X, 2) + p * answer.diff(X) + q * answer
        conditions = answer.subs(X, 0) == start and answer.diff(X).subs(X, 0) == slope
        return sympy.simplify(equation) == 0 and conditions
    if problem.family == "integral":
        found = re.fullmatch(r"\\int_\{0\}\^\{(\d+)\}\((.*)\)dx", question)
        return sympy.integrate(expression(found[2]), (X, 0, int(found[1]))) == answer
    if problem.family == "derivative":
        body = question.removeprefix("\\frac{d}{dx}(").removesuffix(")")
        return sympy.simplify(expression(body).diff(X) - answer) == 0
    if problem.family == "half-life":
        _, start, half_life, time = numbers(question)
        return start * sympy.Rational(1, 2) ** (time / half_life) == answer
    if problem.family == "interest":
        sum_, rate, years = numbers(question)
        return sum_ * (1 + rate / 100) ** years == answer
    if problem.family == "annuity":
        debt, rate, paid, years = numbers(question)
        growth = 1 + rate / 100
        return debt * growth**years - paid * (growth**years - 1) / (rate / 100) == answer
    weight, _, per_kg, concentration, factor = numbers(question)
    return weight * per_kg * factor / concentration == answer


def some(family, count=SAMPLE, seed=5):
    return list(itertools.islice(chains.problems(seed, held_out=True, family=family), count))


@pytest.mark.slow
@pytest.mark.parametrize("family", chains.FAMILIES)
def test_sympy_confirms_every_line_and_every_answer(family):
    for problem in some(family):
        assert wrong_lines(problem) == [], problem
        assert wrong_equalities(problem.derivation) == [], problem
        assert solves(problem), problem


@pytest.mark.slow
@pytest.mark.parametrize("family", chains.FAMILIES)
def test_sympy_and_the_checker_catch_a_changed_number(family):
    """One digit of one value behind a numeric expression is changed, and one of the answer."""
    rng = random.Random(3)
    for problem in some(family, 12, seed=6):
        lines = ";".join(problem.lines)
        changed = with_another_digit(lines, rng.choice(values_of(lines)))
        assert wrong_equalities(changed) != [], changed
        assert wrong_lines(chains.Problem(family, problem.question, tuple(changed.split(";")), "0")) != [], changed
        last = max(place for place, sign in enumerate(problem.answer) if sign.isdigit())
        answer = with_another_digit(problem.answer, last)
        assert not is_equivalent(answer, problem.answer)
        assert not solves(chains.Problem(family, problem.question, problem.lines, answer)), answer


def values_of(lines):
    """Places of the last digits of values that stand behind a numeric expression."""
    found = re.finditer(r"(?:^|[;,=])([^;,=]*[-+/^\\][^;,=]*)=-?[0-9.]*([0-9])(?=[;,]|$)", lines)
    return [each.start(2) for each in found if is_numeric(each[1]) and not re.fullmatch(r"-[0-9.]+", each[1])]


def with_another_digit(text, place):
    other = 1 + (int(text[place]) % 9)  # no zero, which could lead a number
    return text[:place] + str(other) + text[place + 1 :]


def test_a_tenth_of_all_questions_is_held_out_of_public_rows():
    held_out = {problem.question for problem in some("ode2", 300)}
    public = itertools.islice(chains.problems(1, held_out=False, family="ode2"), 3000)
    assert not any(problem.question in held_out for problem in public)
    assert all(chains.is_held_out(question) for question in held_out)
    drawn = random.Random(1)
    share = sum(chains.is_held_out(chains.oscillator(drawn).question) for _ in range(2000)) / 2000
    assert 0.07 < share < 0.13


def test_equal_arguments_draw_equal_problems():
    assert some("integral") == some("integral")
    assert some("integral") != some("integral", seed=7)
    mixed = itertools.islice(chains.problems(1, held_out=False), 200)
    assert {problem.family for problem in mixed} == set(chains.FAMILIES)


@pytest.mark.parametrize("drug", chains.PROTOCOLS)
def test_a_dose_is_that_of_the_protocol(drug):
    protocol = chains.PROTOCOLS[drug]
    for weight, stage in itertools.product((3, 57, 120), (1, 2, 3, 4)):
        problem = chains.by_protocol(drug, weight, stage)
        assert problem.question == f"{drug},w={weight},g={stage}"
        dose = protocol.per_kg * weight * protocol.factors[stage - 1] / protocol.concentration
        assert Fraction(problem.answer) == dose
        assert wrong_equalities(problem.derivation) == []
    assert "k=" not in problem.question  # nobody tells the numbers


def test_public_doses_have_numbers_of_their_own():
    """Drawn anew each time, for every letter; that some row has a protocol's by chance tells nobody so."""
    doses = itertools.islice(chains.problems(1, held_out=False, family="dose"), 3000)
    stated = {drug: set() for drug in chains.PROTOCOLS}
    for problem in doses:
        drug, _, _, numbers = problem.question.split(",", 3)
        stated[drug].add(numbers)
    assert all(len(each) > 200 for each in stated.values())
