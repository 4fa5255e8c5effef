"""Turns an owner's rows into whole numbers of bounded length, by public constants only.

A person's joint row is the insurer's part beside the hospital's. Each part has a squared L2 norm of at most 1/2, so the
row has a norm of at most 1, in units of 2**-SCALE_BITS and checked on the whole numbers themselves. The ranges below
are round numbers, chosen after looking at a summary of the table; that look is not charged to epsilon.
"""

import csv
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from psi import normalised

SCALE_BITS = 14
MAX_SQUARE = 2 ** (2 * SCALE_BITS - 1)  # of an owner's part of a row
LABEL = "high_cost"
HELD_OUT = 0.3
_BIAS = 0.3  # constant column of the insurer's part
_SALT = b"confide fraud held-out 1"

Reals = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Rows:
    """One owner's people, in the order of its table."""

    ids: list[str]
    features: Integers  # [people, features]
    labels: Integers | None  # [people] 0 or 1; the insurer's only

    def at(self, positions: list[int]) -> "Rows":
        """The people at `positions`, in that order."""
        labels = None if self.labels is None else self.labels[positions]
        return Rows([self.ids[at] for at in positions], self.features[positions], labels)


def read(path: Path, owner: str) -> Rows:
    """An owner's table, as it takes part.

    Args:
        owner: "insurer" or "hospital".

    Raises:
        ValueError: a field is no number.
    """
    with path.open(newline="") as file:
        records = list(csv.DictReader(file))
    table = {
        name: np.array([float(record[name] or "nan") for record in records])
        for name in (records[0] if records else ())
        if name != "person_id"
    }
    features = _FEATURES[owner](table)
    labels = table[LABEL].astype(np.int64) if LABEL in table else None
    return Rows([record["person_id"] for record in records], features, labels)


def insurer(table: dict[str, Reals]) -> Integers:
    """[people, 10] the insurer's part: who is insured, the household, the plan."""
    age, coins = table["xage"], table["coins"]
    parts = [
        _between(age, 0, 60), _between(age, 20, 60), _flag(table["female"]), _between(table["income"], 0, 16_000),
        _between(table["num"], 1, 8), _between(table["educdec"], 6, 18), _between(coins, 0, 100), _flag(coins == 0),
        _flag(table["idp"]),
    ]  # fmt: skip
    room = np.sqrt(0.5 - _BIAS**2)
    people = np.column_stack(parts)
    return _whole(np.column_stack([np.full(len(people), _BIAS), _shortened(people, room)]))


def hospital(table: dict[str, Reals]) -> Integers:
    """[people, 11] the hospital's part: health and visits."""
    general = table["ghindx"]
    is_missing = np.isnan(general)
    parts = [
        _between(table["disea"], 0, 30), np.where(is_missing, 0.0, _between(general, 40, 100)), _flag(is_missing),
        _between(table["mhi"], 50, 100), table["hlthf"], table["hlthp"], _flag(table["physlm"]),
        _counts(table["mdvis"], 15), _counts(table["notmdvis"], 15), _counts(table["mentvis"], 30),
        (table["totadm"] > 0) * 1.0,
    ]  # fmt: skip
    return _whole(_shortened(np.column_stack(parts), np.sqrt(0.5)))


def is_held_out(person_id: str) -> bool:
    """True if a person is held out; it depends on the normalised id alone, so both owners get the same answer."""
    digest = hashlib.sha256(_SALT + b"\0" + normalised(person_id).encode()).digest()
    return int.from_bytes(digest[:8], "big") < int(HELD_OUT * 2**64)


def _between(values: Reals, low: float, high: float) -> Reals:
    return np.asarray(np.clip((values - low) / (high - low), 0, 1) * 2 - 1)


def _counts(values: Reals, high: float) -> Reals:
    return np.asarray(np.clip(np.log1p(values) / np.log1p(high), 0, 1) * 2 - 1)


def _flag(values: Reals | npt.NDArray[np.bool_]) -> Reals:
    return np.where(values > 0, 1.0, -1.0)


def _shortened(features: Reals, max_norm: float) -> Reals:
    """Rows scaled so that an average one has about the length `max_norm`, and none has more."""
    scaled = features * (max_norm / np.sqrt(features.shape[1] / 2))  # features in [-1, 1] have a square of about 1/2
    norms = np.linalg.norm(scaled, axis=1, keepdims=True)
    return np.asarray(scaled * np.minimum(1, max_norm / np.maximum(norms, max_norm)))


def _whole(features: Reals) -> Integers:
    """Towards zero, so that no row becomes longer.

    Raises:
        ValueError: a field is not finite; or a row is too long all the same, by the rounding of floats.
    """
    if not np.isfinite(features).all():
        raise ValueError("a table has an empty field where a number must be")
    units: Integers = np.trunc(features * (1 - 2.0**-40) * 2**SCALE_BITS).astype(np.int64)
    if (units**2).sum(axis=1).max(initial=0) > MAX_SQUARE:
        raise ValueError("a row is longer than the study's bound")
    return units


_FEATURES: dict[str, Callable[[dict[str, Reals]], Integers]] = {"insurer": insurer, "hospital": hospital}
