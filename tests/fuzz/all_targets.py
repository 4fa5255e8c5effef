"""The table of all decoders that are fuzzed, by the area that describes them."""

import importlib

from .target import Target

AREAS = ("wire", "parties", "ledgers", "settings", "records", "released")


def of_area(area: str) -> tuple[Target, ...]:
    """Lists the decoders of one area, and loads no other's code."""
    found: tuple[Target, ...] = importlib.import_module(f".{area}", __package__).TARGETS
    return found


def every() -> list[Target]:
    """Lists all decoders."""
    return [target for area in AREAS for target in of_area(area)]
