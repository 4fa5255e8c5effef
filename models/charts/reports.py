"""Says in words what was read of a chart, with no figure that was not read.

A figure is rounded to the power of ten at or below what a pixel of its chart is worth. `given` is what a report form
needs (`decoding.forms`): a model writes a finding beside the figures and can change none. `sentences` needs no model.
"""

from decimal import ROUND_CEILING, Decimal

from ..errors import InvalidChart
from .reading import Reading

_SAID = (
    "{name}: {count} values. The first is {first}, and the last, {last}, is {trend}. The lowest is {lowest}, the "
    "highest {highest}. "
)
_END = "Read from a chart, in which a pixel is worth up to {pixel}."
TEMPLATE = _SAID + "{finding: text 80}. " + _END
_HARDLY = 2.0  # pixels of change that may be the reading's
_NAMES = frozenset(" -_()")  # what a name may have beside letters


def said(value: float, pixel: float) -> str:
    """Rounds a value to the power of ten at or below what a pixel is worth."""
    rounded = Decimal(value).quantize(_leading(pixel))
    return f"{rounded if rounded else abs(rounded):f}"  # no -0


def named(text: str) -> str:
    """Makes a name for a report of any text: its letters, without figures and signs; "chart" if none are left."""
    kept = "".join(letter if letter.isalpha() or letter in _NAMES else " " for letter in text)
    return " ".join(kept.split()).strip("-_ ") or "chart"


def given(name: str, reading: Reading) -> dict[str, str]:
    """Returns the figures of a report, and the word for the change, by the names of their slots in `TEMPLATE`.

    Raises:
        InvalidChart: the name has something else than letters, blanks and `-_()`.
    """
    if name != named(name):
        raise InvalidChart("the name of a chart in a report has letters, blanks, hyphens and brackets alone")
    values, unit = reading.values, "%" if reading.is_percent else ""

    def figure(value: float) -> str:
        return said(float(value), reading.pixel) + unit

    return {
        "name": name,
        "count": str(len(values)),
        "first": figure(values[0]),
        "last": figure(values[-1]),
        "lowest": figure(values.min()),
        "highest": figure(values.max()),
        "trend": trend(reading),
        "pixel": _one_digit_up(reading.pixel) + unit,
    }


def trend(reading: Reading) -> str:
    """Returns the words for how the last value stands to the first."""
    change = float(reading.values[-1] - reading.values[0])
    if abs(change) <= _HARDLY * reading.pixel:
        return "about the same"
    return "higher" if change > 0 else "lower"


def sentences(name: str, reading: Reading) -> str:
    """Writes a report without a model.

    Raises:
        InvalidChart: see `given`.
    """
    return (_SAID + _END).format(**given(name, reading))


def _one_digit_up(pixel: float) -> str:
    return f"{_exact(pixel).quantize(_leading(pixel), rounding=ROUND_CEILING):f}"


def _leading(pixel: float) -> Decimal:
    return Decimal(1).scaleb(_exact(pixel).adjusted())


def _exact(pixel: float) -> Decimal:
    return Decimal(f"{pixel:.12g}")  # what stands behind is the rounding of sums
