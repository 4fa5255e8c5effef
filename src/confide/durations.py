"""Writes spans of time for people: one way for pages, commands and warnings."""

_UNITS = (("d", 86_400), ("h", 3600), ("min", 60))


def duration(seconds: float) -> str:
    """Writes a span of time, in seconds, in the largest unit of which it has two; below two minutes in seconds.

    >>> duration(11_001), duration(401), duration(90.4)
    ('3 h', '7 min', '90 s')
    """
    unit, size = next(((unit, size) for unit, size in _UNITS if seconds >= 2 * size), ("s", 1))
    return f"{seconds / size:.0f} {unit}"
