"""Tiles of the Triton kernels: those measured on a card where there are some, else those that fit by analysis.

`tiles.json` beside this file has what was measured, and `benchmarks/gpu.py` writes it. A tile decides how fast a kernel
is and in which order it adds, nothing else. It is chosen by the card and by shapes, never by values.
"""

import functools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

from .errors import UnfitTiles

TABLE = Path(__file__).with_name("tiles.json")
FORMATS = ("dense", "int8", "nf4", "fp8")  # in the order of their numbers in `triton_kernels`
PAIRS = (16, 32, 64, 128)  # classes of pairs an expert: the most rows that a tile takes
LEAST_RANK = 16  # the narrowest product of tensor cores
_MAX_BYTES = 2**20
_RANKS = tuple(LEAST_RANK << doublings for doublings in range(8))
_CAPABILITIES = range(80, 1000)
_MAX_TEXT, _MAX_CARDS, _MAX_CASES = 200, 64, 256
_CHOICES = {
    "rows": (16, 32, 64, 128),
    "cols": (16, 32, 64, 128, 256),
    "depth": (16, 32, 64),  # a block of codes holds all depths of a tile
    "warps": (1, 2, 4, 8, 16),
    "stages": tuple(range(1, 9)),
}


@dataclass(frozen=True, slots=True)
class Tiling:
    """The block that one program computes, and its warps; `stages` is how far its loads run ahead."""

    rows: int
    cols: int
    depth: int
    warps: int
    stages: int


@dataclass(frozen=True, slots=True)
class Tilings:
    """The tiles of one pass. All but `runs` share their rows, as they share the table of tiles."""

    gate_up: Tiling
    grouped: Tiling
    inner_gradient: Tiling
    runs: Tiling


class Card(NamedTuple):
    """A GPU as its driver names it, and its compute capability, 90 for 9.0; 0 is the interpreter."""

    name: str
    capability: int


@dataclass(frozen=True, slots=True)
class Case:
    """All that chooses tiles on a card."""

    format: str  # of the frozen experts, one of `FORMATS`; "mixed" has no measured tiles
    itemsize: int  # bytes of an element, 2 or 4
    rank: int  # the larger one of the two adapters, as padded: a power of two
    pairs: int  # class of the mean number of pairs an expert has, one of `PAIRS`


@dataclass(frozen=True, slots=True)
class Measured:
    """The tiles measured on one card."""

    card: Card
    versions: str  # of driver and libraries, and the day: for people
    tilings: dict[Case, Tilings]


def chosen(card: Card, case: Case) -> Tilings:
    """The tiles for a case: of this very card, else of one of its compute capability, else by analysis.

    Raises:
        UnfitTiles: `tiles.json` is no table of tiles.
    """
    known = measured()
    alike = [entry for entry in known if entry.card == card]
    alike += [entry for entry in known if entry.card.capability == card.capability and entry.card != card]
    found = (entry.tilings[case] for entry in alike if case in entry.tilings)
    return next(found, None) or by_analysis(card.capability, case.pairs, case.itemsize, case.rank)


def by_analysis(capability: int, pairs_per_expert: int, itemsize: int = 2, rank: int = LEAST_RANK) -> Tilings:
    """Tiles that compile without spilled registers and fit shared memory: no GPU has timed them.

    Args:
        capability: of the GPU, 80 for 8.0; 0 is the interpreter.
        pairs_per_expert: mean; a tile has no more rows than that takes.
        itemsize: bytes of an element, 2 or 4.
        rank: the larger one of the two adapters.
    """
    if capability == 0:
        small = Tiling(16, 32, 32, 1, 1)
        return Tilings(small, small, small, small)
    rows = pairs_class(pairs_per_expert)
    runs = Tiling(32, 64, 32, 4, 3) if rank <= 64 else Tiling(32, 32, 32, 8, 2)
    if rank > 128:
        tiling = Tiling(min(rows, 32), 64, 32, 8, 2)
        return Tilings(tiling, tiling, tiling, runs)
    if rows < 128 or itemsize > 2 or rank > 32:
        warps = 4 if itemsize == 2 and rank <= 64 else 8
        tiling = Tiling(min(rows, 64), 64, 64 if itemsize == 2 else 32, warps, 3)
        return Tilings(tiling, tiling, tiling, runs)
    if capability in (90, 100, 103):  # data centre: 227 KiB of shared memory, which products read directly
        wide = Tiling(rows, 128, 64, 8, 3)
        return Tilings(wide, wide, wide, runs)
    wide = Tiling(rows, 128, 32, 8, 4)
    return Tilings(gate_up=Tiling(rows, 64, 64, 8, 3), grouped=wide, inner_gradient=wide, runs=runs)


def pairs_class(pairs_per_expert: int) -> int:
    """The class, one of `PAIRS`, of a mean number of pairs."""
    return min(PAIRS[-1], max(PAIRS[0], 1 << max(pairs_per_expert - 1, 0).bit_length()))


@functools.cache
def measured(path: Path = TABLE) -> tuple[Measured, ...]:
    """Reads a table of measured tiles; at most one entry a card.

    Raises:
        UnfitTiles: naming the place of what is not right.
    """
    try:
        text = path.read_bytes()
        if len(text) > _MAX_BYTES:
            raise UnfitTiles(f"{len(text)} bytes are too many")
        stated = json.loads(text)
        _require_names(stated, ("cards",))
        cards = _listed(stated["cards"], _MAX_CARDS)
        entries = tuple(_entry(card) for card in cards)
        if len({entry.card.name for entry in entries}) < len(entries):
            raise UnfitTiles("a card is there twice")
    except (OSError, ValueError, RecursionError, UnfitTiles) as err:
        raise UnfitTiles(f"{path}: {err}; take the file of the release, or measure anew (benchmarks/gpu.py)") from err
    return entries


def as_json(entries: Sequence[Measured]) -> str:
    """The text of a table, as `measured` reads it: a line for each case."""
    return '{"cards": [' + ",".join(map(_card_text, entries)) + "]}\n"


def _card_text(entry: Measured) -> str:
    lines = [
        json.dumps(asdict(case) | {each.name: [*_numbers(getattr(tilings, each.name))] for each in fields(tilings)})
        for case, tilings in entry.tilings.items()
    ]
    head = {"name": entry.card.name, "capability": entry.card.capability, "versions": entry.versions}
    return "\n " + json.dumps(head)[:-1] + ', "tiles": [\n  ' + ",\n  ".join(lines) + "\n ]}\n"


def _entry(stated: Any) -> Measured:
    _require_names(stated, ("name", "capability", "versions", "tiles"))
    for text in (stated["name"], stated["versions"]):
        if not isinstance(text, str) or not 0 < len(text) <= _MAX_TEXT:
            raise UnfitTiles(f"need a text of 1 to {_MAX_TEXT} characters, got {text!r:.50}")
    _require_choice("capability", stated["capability"], _CAPABILITIES)
    tilings = dict(_case(case) for case in _listed(stated["tiles"], _MAX_CASES))
    if len(tilings) < len(stated["tiles"]):
        raise UnfitTiles(f"{stated['name']} has a case twice")
    return Measured(Card(stated["name"], stated["capability"]), stated["versions"], tilings)


def _case(stated: Any) -> tuple[Case, Tilings]:
    of_case, of_tilings = [each.name for each in fields(Case)], [each.name for each in fields(Tilings)]
    _require_names(stated, (*of_case, *of_tilings))
    allowed: tuple[Sequence[object], ...] = FORMATS, (2, 4), _RANKS, PAIRS
    for name, choices in zip(of_case, allowed, strict=True):
        _require_choice(name, stated[name], choices)
    case, tilings = Case(*(stated[name] for name in of_case)), Tilings(*(_tiling(stated[name]) for name in of_tilings))
    if len({tilings.gate_up.rows, tilings.grouped.rows, tilings.inner_gradient.rows}) > 1:
        raise UnfitTiles("gate_up, grouped and inner_gradient must have equal rows")
    return case, tilings


def _tiling(stated: Any) -> Tiling:
    sizes = _listed(stated, len(_CHOICES))
    if len(sizes) != len(_CHOICES):
        raise UnfitTiles(f"a tile has {', '.join(_CHOICES)}, got {len(sizes)} numbers")
    for (name, choices), size in zip(_CHOICES.items(), sizes, strict=True):
        _require_choice(name, size, choices)
    return Tiling(*sizes)


def _numbers(tiling: Tiling) -> tuple[int, ...]:
    return tiling.rows, tiling.cols, tiling.depth, tiling.warps, tiling.stages


def _listed(stated: Any, most: int) -> list[Any]:
    if not isinstance(stated, list) or len(stated) > most:
        raise UnfitTiles(f"need a list of at most {most}, got {stated!r:.50}")
    return stated


def _require_names(stated: Any, names: Sequence[str]) -> None:
    if not isinstance(stated, dict) or stated.keys() != set(names):
        raise UnfitTiles(f"need an object of {', '.join(names)}, got {stated!r:.50}")


def _require_choice(name: str, value: Any, choices: Sequence[object]) -> None:
    if type(value) not in (int, str) or value not in choices:
        raise UnfitTiles(f"{name} must be one of {', '.join(map(str, choices[:8]))}, got {value!r:.50}")
