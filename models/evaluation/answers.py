r"""Mathematical answers that a language model wrote: read within bounds, and compared as functions.

An answer is a text from outside, and parsers of computer algebra trust theirs: SymPy's are documented to use `eval`,
and latex2sympy never comes back from `9^{9^{9^{9}}}`. So no text of an answer reaches another library, nor becomes code
or an attribute's name: the reader below knows numbers, a few operators and functions and the symbols that its caller
names, and refuses all else. With its bounds, the worst answer that was found takes 0.07 s of processor time.

Out of scope: equations, sets, intervals, matrices, units, complex numbers, and constants of integration.
"""

import math
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache, lru_cache
from typing import Any, Literal, TypeAlias

from ..errors import AnswerRefused

MAX_LENGTH = 400  # characters of ASCII: an answer has some dozens; every other cost grows with it
MAX_DEPTH = 40  # brackets, exponents, signs and functions in each other: far from Python's limit of recursion
MAX_DIGITS = 18  # of one number as it is written
MAX_FUNCTIONS = 32  # of one answer, with powers that are not plain whole numbers: each takes about 1 ms to compare
MAX_EXPONENT = 64  # of a rational number, either sign
MAX_BITS = 4096  # of a numerator or denominator: exact steps take microseconds

_LARGEST_POWER = 700  # exp(700) is 1e304, about the largest double
_LARGEST_ANGLE = 10**6  # takes six of the digits below
_DIGITS = 50
_MORE_DIGITS = 400  # see exp(-700) beside 1
_LOST_DIGITS = 20  # to rounding: numbers are equal that agree in the others
_POINTS = 12
_TRIES = 96  # 12 for each of the eight patterns of signs that three symbols have
_DENOMINATOR = 101  # a prime: points are no whole numbers and no short decimals, where special cases lie
_NUMERATORS = tuple(n for n in range(5, 3 * _DENOMINATOR) if n % _DENOMINATOR)

Operator = Literal["+", "-", "*", "/", "^", "exp", "ln", "sqrt", "sin", "cos", "tan"]

_FUNCTIONS: Mapping[str, Operator] = {
    "exp": "exp", "ln": "ln", "log": "ln", "sqrt": "sqrt", "sin": "sin", "cos": "cos", "tan": "tan",
}  # fmt: skip
_CLOSING = {"(": ")", "{": "}"}
_NAMES = (*_FUNCTIONS, "pi")
_SPELLINGS = {
    **{sign: sign for sign in "+-*/^(){}"}, "**": "^", r"\cdot": "*", r"\times": "*",
    r"\frac": "frac", r"\dfrac": "frac", r"\tfrac": "frac",
    "e": "e", **{name: name for name in _NAMES}, **{rf"\{name}": name for name in _NAMES},
}  # fmt: skip
_TOKEN = re.compile(
    r"(?:[ \t\r\n]|\\[,;:! ]|\\left(?= ?\()|\\right(?= ?\)))*"
    rf"(?:([0-9]+(?:\.[0-9]+)?|\.[0-9]+)|(\\[A-Za-z]+|{'|'.join(_NAMES)}|[A-Za-z]|\*\*|[-+*/^(){{}}])|\Z)"
)
_MIXED_NUMBER = re.compile(r"[0-9][\s\\,;:!]*\\[dt]?frac\s*\{\s*[0-9]+\s*\}\s*\{\s*[0-9]+\s*\}")


@dataclass(frozen=True, slots=True)
class Number:
    """A number as it is written, without its sign."""

    value: Fraction


@dataclass(frozen=True, slots=True)
class Name:
    """A symbol of the caller's, or one of the constants e and pi."""

    name: str


@dataclass(frozen=True, slots=True)
class Operation:
    """An operator or function with its operands.

    `+` and `*` have two or more; `-` is the negative and `/` the reciprocal of one; `^` has base and exponent. The
    natural exponential is always `exp`, and the logarithm, which is natural too, always `ln`.
    """

    operator: Operator
    operands: tuple["Expression", ...]


Expression: TypeAlias = Number | Name | Operation


def read(text: str, symbols: Sequence[str] = ("x",)) -> Expression:
    r"""Reads an expression written in LaTeX or in a line, as `\frac{x}{2}e^{-x}` or `x/2*exp(-x)`.

    It may hold whole numbers and decimals; `+ - * / ^ **`, `\cdot`, `\times` and products without a sign; `( )`,
    `{ }`, `\left(` and `\right)`; `\frac`; sin, cos, tan, exp, ln, log and sqrt, with or without a backslash; e, pi
    and the symbols. Which reading holds where texts are unclear:

    | text | is read as |
    |---|---|
    | `-x^2`, `2^-1`, `a^b^c` | `-(x^2)`, `2^(-1)`, `a^(b^c)` |
    | `2/3x`, `1/2/x` | `(2/3)*x`, `(1/2)/x`: products and quotients from left to right |
    | `x^23`, `e^2x` | `x^(23)`, `(e^2)*x` |
    | `xsin(x)`, `xe^x`, `x(x+1)` | products: names of functions are found first, then letters |
    | `log(x)` | the natural logarithm |
    | `\sin 2x\cos x`, `\ln x^2`, `\ln\sqrt{x}` | `sin(2x)*cos(x)`, `ln(x^2)`, `ln(sqrt(x))` |
    | `\sin(x)^2`, `\sin^2 x` | `(sin(x))^2`; the power of a function is a positive whole number |

    Texts with two readings are refused: a number after a factor (`2 3`, `1e5`, `x2`), a mixed number (`2\frac{1}{2}`),
    braces around more than a factor where no command or exponent needs them, as nobody sees these (`1/{2x}`), and
    `\sin x(x+1)`, `\sin{x}^2`, `\sqrt2`, `\sin^{-1}(x)`.

    Args:
        symbols: single letters of ASCII, without e.

    Raises:
        AnswerRefused: the text is outside of this grammar or of the bounds above, or a symbol is no such letter.
    """
    return _Reader(_tokens(text, symbols)).whole()


def value(expression: Expression, at: Mapping[str, Fraction] | None = None) -> Fraction | None:
    """Computes the exact value, with symbols as `at` gives them; 0^0 is 1.

    Returns:
        None for what exact rules do not show to be rational: functions and constants, powers with exponents that are
        not whole, symbols that `at` lacks. The square root of a rational square is rational.

    Raises:
        AnswerRefused: a number is outside of the bounds, or there is none: a division by zero, the root of a negative.
    """
    if isinstance(expression, Number):
        return expression.value
    if isinstance(expression, Name):
        return at.get(expression.name) if at else None
    operands = []
    for operand in expression.operands:
        exact = value(operand, at)
        if exact is None:
            return None
        operands.append(exact)
    return _exact(expression.operator, operands)


def is_equivalent(answer: str, truth: str, symbols: Sequence[str] = ("x",)) -> bool:
    """Compares two texts as functions of the symbols, at twelve random points where the truth is a real number.

    Rational numbers are compared exactly. Others are computed as intervals of 50 digits and must agree in 30, and once
    more at the first point, where they must agree in 380 of 400: a difference below 1e-380 of the value, or of 1, is
    not seen. Intervals show what rounding has cost, so texts whose terms cancel to more than 20 digits are different.

    An answer must be a real number wherever the truth is one, and may be one elsewhere too: `x` equals a truth
    `sqrt(x)*sqrt(x)`, but not the other way round. Points lie within 3 of zero, on both sides. They follow from the
    truth's text, so that a pair is judged the same in every run, and nobody writes an answer around them who does not
    know the truth.

    Returns:
        False as well for an answer that is refused, and where the truth is no real number at twelve of 96 points
        (`1/0`, `ln(x-5)`, `e^{1000}`). A truth that is equal to itself can be judged.

    Raises:
        AnswerRefused: the truth is refused, or a symbol. Never because of the answer.
    """
    right = read(truth, symbols)
    points = _points(right, truth, symbols)
    if len(points) < _POINTS:
        return False
    try:
        given = read(answer, symbols)
        if not all(_agree(_real(given, at, _DIGITS), due, _DIGITS) for at, due in points):
            return False
        first, _ = points[0]
        return _agree(_real(given, first, _MORE_DIGITS), _real(right, first, _MORE_DIGITS), _MORE_DIGITS)
    except AnswerRefused:
        return False


def is_comparable(truth: str, symbols: Sequence[str] = ("x",)) -> bool:
    """True if answers can be compared with a truth: it is a real number at twelve of 96 points, see `is_equivalent`.

    Raises:
        AnswerRefused: the truth is refused, or a symbol.
    """
    return len(_points(read(truth, symbols), truth, symbols)) == _POINTS


class _Undefined(AnswerRefused):
    """An expression that is no real number at a point, or one too large to compute with."""


def _tokens(text: str, symbols: Sequence[str]) -> list[str]:
    """Splits a text into numbers, signs and names, in the spelling of a line; the last token is empty."""
    if not all(len(symbol) == 1 and symbol.isascii() and symbol.isalpha() and symbol != "e" for symbol in symbols):
        raise AnswerRefused(f"symbols must be single letters of ASCII without e, got {symbols}")
    if len(text) > MAX_LENGTH or not text.isascii():
        raise AnswerRefused(f"an answer must have at most {MAX_LENGTH} characters, all of them ASCII")
    if _MIXED_NUMBER.search(text):
        raise AnswerRefused("a fraction that follows a number has two readings: a product and a mixed number")
    spellings = {**_SPELLINGS, **{symbol: symbol for symbol in symbols}}
    tokens: list[str] = []
    end = 0
    while found := _TOKEN.match(text, end):
        (number, name), end = found.groups(), found.end()
        if number:
            if sum(map(str.isdigit, number)) > MAX_DIGITS:
                raise AnswerRefused(f"a number must have at most {MAX_DIGITS} digits")
            tokens.append(number)
        elif not name:
            return [*tokens, ""]
        elif name in spellings:
            tokens.append(spellings[name])
        else:
            raise AnswerRefused(f"the name that ends at character {end} is unknown")
    raise AnswerRefused(f"there is no number, name or sign after character {end}")


class _Reader:
    """A recursive descent over tokens, one method a rule of the grammar; every recursion passes `_factor`."""

    def __init__(self, tokens: Sequence[str]) -> None:
        self._tokens, self._at, self._depth, self._functions = tokens, 0, 0, 0

    def whole(self) -> Expression:
        found = self._sum()
        if self._next:
            raise self._refusal("an expression ends")
        return found

    @property
    def _next(self) -> str:
        return self._tokens[self._at]

    def _refusal(self, problem: str) -> AnswerRefused:
        return AnswerRefused(f"{problem} after token {self._at} of {len(self._tokens) - 1}")

    def _take(self, wanted: str = "") -> str:
        token = self._next
        if not token or (wanted and token != wanted):
            raise self._refusal(f"{wanted or 'a value'} is missing")
        self._at += 1
        return token

    def _sum(self) -> Expression:
        terms = [self._product()]
        while self._next in ("+", "-"):
            is_negative = self._take() == "-"
            term = self._product()
            terms.append(Operation("-", (term,)) if is_negative else term)
        return _joined("+", terms)

    def _product(self) -> Expression:
        factors = [self._factor()]
        while True:
            if self._next in ("*", "/"):
                is_divisor = self._take() == "/"
                factor = self._factor()
                factors.append(Operation("/", (factor,)) if is_divisor else factor)
            elif _is_number(next(each for each in self._tokens[self._at :] if each != "{")):  # braces are not seen
                raise self._refusal("a number follows a factor")
            elif self._next in _CLOSING or _is_name(self._next):
                factors.append(self._factor())
            else:
                return _joined("*", factors)

    def _factor(self) -> Expression:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise AnswerRefused(f"an answer must be at most {MAX_DEPTH} deep")
        if self._next in ("+", "-"):
            is_negative = self._take() == "-"
            found = self._factor()
            found = Operation("-", (found,)) if is_negative else found
        else:
            found = self._power()
        self._depth -= 1
        return found

    def _power(self) -> Expression:
        base = self._primary()
        if self._next != "^":
            return base
        self._take()
        exponent = self._group() if self._next == "{" else self._factor()
        if _is_whole(exponent) and base != Name("e"):
            return Operation("^", (base, exponent))
        return self._applied("exp", exponent) if base == Name("e") else self._applied("^", base, exponent)

    def _primary(self) -> Expression:
        if self._next == "(":
            return self._group()
        head = self._take()
        if _is_number(head):
            return Number(Fraction(head))
        if head == "{" and self._next not in ("+", "-"):  # a sum in such braces would be seen as one without them
            found = self._factor()
            self._take("}")
            return found
        if head == "frac":
            over, under = self._group("{"), self._group("{")
            return Operation("*", (over, Operation("/", (under,))))
        if head in _FUNCTIONS:
            return self._application(_FUNCTIONS[head])
        if _is_name(head):
            return Name(head)
        raise self._refusal("a value is missing")

    def _group(self, opening: str = "") -> Expression:
        closing = _CLOSING[self._take(opening)]
        found = self._sum()
        self._take(closing)
        return found

    def _application(self, function: Operator) -> Expression:
        power = None
        if function != "sqrt" and self._next == "^":
            self._take()
            power = self._factor()
            if not _is_whole(power) or power == Number(Fraction(0)):
                raise self._refusal("a function's power is no positive whole number")
        if self._next in _CLOSING:
            is_seen = function == "sqrt" or "(" in self._tokens[self._at : self._at + 2]  # `{(`, as SymPy writes it
            argument = self._group()
            is_unclear = not is_seen and self._next == "^"
        elif function == "sqrt":
            raise self._refusal("a root has no bracket")
        else:
            argument = self._bare_argument()
            is_unclear = self._next in _CLOSING
        if is_unclear:
            raise self._refusal("a function's argument has two readings")
        found = self._applied(function, argument)
        return Operation("^", (found, power)) if power else found

    def _applied(self, operator: Operator, *operands: Expression) -> Expression:
        self._functions += 1
        if self._functions > MAX_FUNCTIONS:
            raise AnswerRefused(f"an answer must have at most {MAX_FUNCTIONS} functions")
        return Operation(operator, operands)

    def _bare_argument(self) -> Expression:
        """Reads an argument without brackets: one function, or a product without signs or brackets."""
        if self._next in _FUNCTIONS:
            return self._factor()
        if not (_is_number(self._next) or _is_name(self._next)):
            raise self._refusal("a function has no argument")
        factors = [self._factor()]
        while _is_name(self._next) and self._next not in _FUNCTIONS:
            factors.append(self._factor())
        return _joined("*", factors)


def _is_number(token: str) -> bool:
    return token[:1].isdigit() or token[:1] == "."


def _is_whole(expression: Expression) -> bool:
    return isinstance(expression, Number) and expression.value.denominator == 1


def _is_name(token: str) -> bool:
    return token[:1].isalpha()


def _joined(operator: Literal["+", "*"], operands: Sequence[Expression]) -> Expression:
    return operands[0] if len(operands) == 1 else Operation(operator, tuple(operands))


def _exact(operator: Operator, operands: Sequence[Fraction]) -> Fraction | None:
    """Applies an operator to rational numbers; None if the result is not rational by exact rules."""
    found = operands[0]
    if operator in ("+", "*"):
        for operand in operands[1:]:
            found = found + operand if operator == "+" else found * operand
            if _bits(found) > MAX_BITS:
                raise AnswerRefused(f"a number must have at most {MAX_BITS} bits")
        return found
    if operator == "-":
        return -found
    if operator == "/":
        return _exact_power(found, -1)
    if operator == "^" and operands[1].denominator == 1:
        return _exact_power(found, operands[1].numerator)
    return _exact_root(found) if operator == "sqrt" else None


def _exact_power(base: Fraction, exponent: int) -> Fraction:
    if abs(exponent) > MAX_EXPONENT or abs(exponent) * _bits(base) > MAX_BITS:
        raise AnswerRefused(f"an exponent must be at most {MAX_EXPONENT}, and a power have at most {MAX_BITS} bits")
    if not base and exponent < 0:
        raise _Undefined("a division by zero")
    return base**exponent


def _exact_root(number: Fraction) -> Fraction | None:
    if number < 0:
        raise _Undefined("a root of a negative number")
    root = Fraction(math.isqrt(number.numerator), math.isqrt(number.denominator))
    return root if root * root == number else None


def _bits(number: Fraction) -> int:
    return max(number.numerator.bit_length(), number.denominator.bit_length())


def _points(truth: Expression, text: str, symbols: Sequence[str]) -> list[tuple[Mapping[str, Fraction], Any]]:
    """Draws points at which the truth is a real number, each with that number; signs of symbols vary in turn."""
    chance = random.Random(text)  # noqa: S311 (guards nothing: who can make its points knows the truth)
    found: list[tuple[Mapping[str, Fraction], Any]] = []
    for pattern in range(_TRIES):
        at = {
            symbol: Fraction((-1) ** (pattern >> place % 3) * chance.choice(_NUMERATORS), _DENOMINATOR)
            for place, symbol in enumerate(symbols)
        }
        try:
            found.append((at, _real(truth, at, _DIGITS)))
        except _Undefined:
            continue
        if len(found) == _POINTS:
            break
    return found


def _agree(given: Any, due: Any, digits: int) -> bool:
    """Compares two numbers of `_real`; intervals must lie within each other's rounding."""
    if isinstance(given, Fraction) and isinstance(due, Fraction):
        return given == due
    intervals = _intervals(digits)
    given, due = _interval(given, intervals), _interval(due, intervals)
    return bool(abs(given - due) < (1 + abs(due)) * intervals.mpf(10) ** (_LOST_DIGITS - digits))


def _real(expression: Expression, at: Mapping[str, Fraction], digits: int) -> Any:
    """Computes a Fraction as long as exact rules give one, from there on an interval of mpmath that holds the number.

    Raises:
        AnswerRefused: a rational part is out of bounds.
        _Undefined: there is no real number, none that these digits tell from one, or one too large.
    """
    if isinstance(expression, Number):
        return expression.value
    if isinstance(expression, Name):
        if expression.name in at:
            return at[expression.name]
        return _constant(expression.name, _intervals(digits))
    operands = [_real(operand, at, digits) for operand in expression.operands]
    if all(isinstance(operand, Fraction) for operand in operands):
        exact = _exact(expression.operator, operands)
        if exact is not None:
            return exact
    return _enclosure(expression.operator, operands, _intervals(digits))


def _enclosure(operator: Operator, operands: Sequence[Any], intervals: Any) -> Any:
    """Applies an operator to intervals. A comparison of these is None, and so refused, where they overlap."""
    first, *others = (_interval(operand, intervals) for operand in operands)
    if operator == "+":
        return sum(others, first)
    if operator == "*":
        return math.prod(others, start=first)
    if operator == "-":
        return -first
    if operator == "/":
        return _whole_power(first, -1)
    if operator == "^":
        exponent = operands[1]
        if isinstance(exponent, Fraction) and exponent.denominator == 1 and abs(exponent) <= MAX_EXPONENT:
            return _whole_power(first, exponent.numerator)
        return _function("exp", others[0] * _function("ln", first, intervals), intervals)
    return _function(operator, first, intervals)


def _whole_power(base: Any, exponent: int) -> Any:
    if exponent < 0 and 0 in base:
        raise _Undefined("a division by zero")
    return base**exponent


def _function(name: Operator, argument: Any, intervals: Any) -> Any:
    """Applies a function to an interval that lies in its domain, and in bounds that keep the cost and the error low."""
    if name == "sqrt":
        is_defined = argument >= 0
    elif name == "ln":
        is_defined = argument > 0
    else:
        is_defined = abs(argument) <= (_LARGEST_POWER if name == "exp" else _LARGEST_ANGLE)
    if not is_defined:
        raise _Undefined("a function outside of its domain, or of the bounds of its argument")
    functions = {
        "exp": intervals.exp, "ln": intervals.log, "sqrt": intervals.sqrt,
        "sin": intervals.sin, "cos": intervals.cos, "tan": intervals.tan,
    }  # fmt: skip
    found = functions[name](argument)
    if name == "tan" and not abs(found) < intervals.inf:
        raise _Undefined("a tangent at its pole")
    return found


def _interval(number: Any, intervals: Any) -> Any:
    return _converted(number, intervals) if isinstance(number, Fraction) else number


@lru_cache(maxsize=256)  # numbers of an answer recur, and a division takes as long as an exponential
def _converted(number: Fraction, intervals: Any) -> Any:
    return intervals.mpf(number.numerator) / number.denominator


@cache
def _constant(name: str, intervals: Any) -> Any:
    return +(intervals.e if name == "e" else intervals.pi)


@cache
def _intervals(digits: int) -> Any:
    """Makes mpmath's interval arithmetic with a precision of its own; that of `mpmath.iv` is one for all threads."""
    from mpmath import MPIntervalContext  # takes longer to import than all that an answer takes

    intervals = MPIntervalContext()
    intervals.dps = digits
    return intervals
