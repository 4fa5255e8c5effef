"""Successions of other nodes' keys, as they came with studies, each signed by the key before.

They prove by themselves that a later key is of whoever had the earlier one, so the coordinator that passes them on can
hold them back and no more. Of two successions of one key the first that came here stands: the second is of a thief, or
of nobody to be trusted.
"""

import json
import logging
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter, ValidationError

from ...models.strict import NO_ENTRIES, Frozen, Name, StrictModel
from ...privacy.ledger.succession import MOST, Succession
from ..files import locked, read_json, write_private

logger = logging.getLogger(__name__)

FILE = "successions.json"
MOST_NAMES = 10_000
_MOST_BYTES = 2**24
_REMEDY = (
    "It holds the proofs by which later keys of other sites and aggregators are known as theirs. Restore it from a "
    "backup, or delete it: they come again with the coordinator's studies"
)

_Stated = Annotated[tuple[Succession, ...], Field(min_length=1, max_length=MOST)]  # in the order in which they came


class _File(StrictModel):
    format: Literal[1] = 1
    successions: Annotated[Mapping[Name, _Stated], Field(max_length=MOST_NAMES), *Frozen] = NO_ENTRIES


_FORM = TypeAdapter(_File)
Known = Mapping[str, tuple[Succession, ...]]  # by name; of `load`


def load(home: Path) -> Known:
    """Reads the successions that are known here, by name.

    Raises:
        FileDamaged: the file is damaged.
    """
    found = read_json(home / FILE, _FORM, remedy=_REMEDY, max_bytes=_MOST_BYTES)
    return {} if found is None else found.successions


def take(
    home: Path, coordinators: Collection[str], identities: Mapping[str, str], offered: Iterable[object]
) -> list[str]:
    """Stores those of the `offered` successions that hold and lead to a study's keys; durable at return.

    Args:
        coordinators: keys of this node's coordinator, hex.
        identities: the study's keys by name.
        offered: as the coordinator sent them.

    Returns:
        Why others were not taken, a line each.
    """
    refused: list[str] = []
    sound: dict[str, dict[str, Succession]] = {}  # by name, by the later key
    for each in offered:
        try:
            stated = Succession.model_validate(each)
        except ValidationError:
            refused.append("a succession of a key that cannot be read")
            continue
        if problem := stated.problem():
            refused.append(f"a succession of a key of {stated.site}: {problem}")
        elif stated.coordinator in coordinators and stated.site in identities:
            sound.setdefault(stated.site, {}).setdefault(stated.new, stated)
    leading = {name: _leading_to(identities[name], by_new) for name, by_new in sound.items()}
    if not any(leading.values()):
        return refused
    with locked(home / FILE):
        known = {**load(home)}
        before, room = dict(known), _MOST_BYTES - len(_encoded(known))
        for name, found in leading.items():
            refused += _add(known, name, found)
            if known.get(name) == before.get(name):
                continue
            more = _size(known, name) - _size(before, name)
            if more <= room:
                room -= more
                continue
            refused.append(f"{name}: a succession of its key, since {FILE} has no room for it")
            known.pop(name)
            known.update({name: before[name]} if name in before else {})
        if known != before:
            write_private(home / FILE, _encoded(known))
    return refused


def path(known: Known, name: str, earlier: str, later: str) -> tuple[Succession, ...]:
    """Finds the successions by which the key `earlier` of a name led to `later`; none if it did not."""
    walked = _back_from(later, known, name)
    for count, stated in enumerate(walked, 1):
        if stated.old == earlier:
            return tuple(reversed(walked[:count]))
    return ()


def keys_up_to(known: Known, name: str, key: str) -> tuple[str, ...]:
    """Lists `key` and the keys that led to it, newest first."""
    return (key, *(stated.old for stated in _back_from(key, known, name)))


def keys_after(known: Known, name: str, key: str) -> tuple[str, ...]:
    """Lists the keys to which successions lead from `key`, oldest first, and not `key` itself."""
    if name not in known:  # as of nearly every party
        return ()
    by_old = {stated.old: stated.new for stated in known[name]}
    found: list[str] = []
    seen = {*keys_up_to(known, name, key)}  # of successions in a ring, none follows
    while (later := by_old.get(key)) is not None and later not in seen:
        found.append(later)
        seen.add(later)
        key = later
    return tuple(found)


def family(known: Known, name: str, key: str) -> tuple[str, ...]:
    """Lists all keys that are known to be of the same owner as `key`, with it."""
    return (*keys_up_to(known, name, key), *keys_after(known, name, key))


def _encoded(known: Known) -> bytes:
    return json.dumps(_File(successions=known).model_dump(mode="json"), indent=1).encode()


def _size(known: Known, name: str) -> int:
    """Returns the most bytes that a name takes in the file."""
    return len(_encoded({name: known[name]})) if name in known else 0


def _leading_to(key: str, by_new: Mapping[str, Succession]) -> list[Succession]:
    """Walks back from `key`; newest first."""
    found: list[Succession] = []
    seen = {key}
    while (stated := by_new.get(key)) is not None and stated.old not in seen:
        found.append(stated)
        key = stated.old
        seen.add(key)
    return found


def _back_from(key: str, known: Known, name: str) -> list[Succession]:
    return _leading_to(key, {stated.new: stated for stated in known.get(name, ())})


def _add(known: dict[str, tuple[Succession, ...]], name: str, found: Iterable[Succession]) -> list[str]:
    """Adds to what is known of a name; returns why something was left out."""
    refused = []
    stated = list(known.get(name, ()))
    for each in found:
        others = [other for other in stated if other.old == each.old or other.new == each.new]
        if any((other.old, other.new) != (each.old, each.new) for other in others):
            refused.append(
                f"{name}: a key follows another, or is followed by another, than before; the first one stands"
            )
        elif not others and len(stated) < MOST:
            stated.append(each)
    if stated and (name in known or len(known) < MOST_NAMES):
        known[name] = tuple(stated)
    return refused
