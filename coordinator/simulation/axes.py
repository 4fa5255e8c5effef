"""Reads which settings of a study a sweep tries, and lists its trials: all of a grid, or some at random.

Random search is enough and is all that is here: where few of several settings matter it finds as good a one as a grid
in far fewer trials (Bergstra & Bengio 2012, JMLR 13). A search that proposes the next trial from what held-out records
said of the last ones would fit itself to those records, and its trials could not be listed beforehand.
"""

import json
import math
import random
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from ...client_node.study import StudyDraft
from ...client_node.study.terms import parse_draft
from ..errors import StudyRefused

MOST_TRIALS = 10_000
_LEFT_ALONE = ("name", "description", "model", "data", "participants")  # another study's, or another simulation's
NONE = "none"  # a noise or target epsilon: no privacy at all
_GUARANTEE = ("privacy.delta", "privacy.collusion")  # which say what an epsilon means
_NOISES = ("privacy.noise_multiplier", "privacy.target_epsilon")

Settings = Mapping[str, Any]  # dotted name of a setting -> its value, as JSON has it


@dataclass(frozen=True, slots=True)
class Axis:
    """One setting of a study, with the values to try."""

    name: str  # dotted, as in study.toml: privacy.clip_norm
    values: tuple[Any, ...]  # listed ones; of a range its two ends
    is_range: bool = False  # drawn between the ends, evenly in the logarithm

    def draw(self, source: random.Random) -> Any:
        """Draws one value."""
        if not self.is_range:
            return source.choice(self.values)
        low, high = self.values
        drawn = math.exp(source.uniform(math.log(low), math.log(high)))
        return round(drawn) if isinstance(low, int) and isinstance(high, int) else float(f"{drawn:.3g}")


def read_axis(text: str) -> Axis:
    """Reads NAME=VALUE,VALUE or NAME=LOW..HIGH; values are written as in study.toml, words also without quotes.

    Raises:
        StudyRefused: it is neither, or a setting that no sweep can change.
    """
    name, _, told = (part.strip() for part in text.partition("="))
    if not name or not told:
        raise StudyRefused(f"--sweep takes NAME=VALUE,VALUE or NAME=LOW..HIGH, got {text!r}")
    if name.partition(".")[0] in _LEFT_ALONE or "." not in name:
        raise StudyRefused(f"--sweep {name}: a sweep changes settings of a study's training alone, by their dotted "
                           f"name as privacy.clip_norm; none of {', '.join(_LEFT_ALONE)}")  # fmt: skip
    if name in _GUARANTEE:
        raise StudyRefused(
            f"--sweep {name}: epsilons at another delta, or against more colluding sites, are no points of one curve; "
            "make a sweep for each"
        )
    low, is_range, high = told.partition("..")
    if not is_range:
        return Axis(name, _values(told))
    ends = (*_values(low), *_values(high))
    is_number = all(isinstance(end, int | float) and not isinstance(end, bool) for end in ends)
    if len(ends) != 2 or not is_number or not 0 < ends[0] < ends[1] < math.inf:
        raise StudyRefused(f"--sweep {text}: a range goes from a number above 0 to a larger one")
    return Axis(name, ends, is_range=True)


def trials(axes: Sequence[Axis], *, at_random: int | None, seed: int) -> list[Settings]:
    """Lists the settings of each trial; of a grid the last axis changes first.

    Args:
        at_random: number of different trials that are drawn, fewer if there are not so many; None: the whole grid.
            The first of a larger number are those of a smaller one.

    Raises:
        StudyRefused: a setting is named twice, a range is in a grid, or there are more than `MOST_TRIALS`.
    """
    names = [axis.name for axis in axes]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise StudyRefused(f"--sweep names {', '.join(twice)} twice; list all values in one")
    ranges = [axis.name for axis in axes if axis.is_range]
    if at_random is None and ranges:
        raise StudyRefused(f"--sweep {ranges[0]} is a range, of which a grid has no values: list some, or say --trials")
    wanted = math.prod(len(axis.values) for axis in axes) if at_random is None else at_random
    if wanted > MOST_TRIALS:
        raise StudyRefused(f"a sweep of {wanted:,} trials; at most {MOST_TRIALS:,}: list fewer values, or say --trials")
    if at_random is not None:
        return _drawn(axes, at_random, seed)
    return [dict(zip(names, values, strict=True)) for values in product(*(axis.values for axis in axes))]


def with_settings(draft: StudyDraft, settings: Settings) -> StudyDraft:
    """Makes the draft of one trial.

    A noise takes the place of the draft's target epsilon, and the other way round; "none" for one of them leaves out
    all that protects.

    Raises:
        StudyInvalid: the settings do not fit together, or one is unknown.
    """
    table = draft.model_dump(mode="json")
    if any(name in settings for name in _NOISES):
        table["privacy"] |= {"noise_multiplier": 0.0, "target_epsilon": None}
    is_open = NONE in [settings.get(name) for name in _NOISES]
    if is_open:
        table["privacy"] |= {"mode": "none", "delta": 0.0, "dropouts": "over-provision"}
        table |= {"evaluation": None, "prototype": None}  # which have noises of their own
    for name, value in settings.items():
        if is_open and name in _NOISES:
            continue
        *parts, last = name.split(".")
        place = table
        for part in parts:
            if not isinstance(place.get(part), dict):
                place[part] = {}
            place = place[part]
        place[last] = value
    return parse_draft(table, f"the trial {said(settings)}")


def said(settings: Settings) -> str:
    """Writes settings for people, as --sweep takes them."""
    return " ".join(f"{name}={shown(value)}" for name, value in settings.items()) or "as in study.toml"


def shown(value: Any) -> str:
    """Writes one value for people."""
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value)


def _values(text: str) -> tuple[Any, ...]:
    """The values between commas, by TOML's rules; words that are no value of TOML stand for themselves."""
    found = _parsed(text)
    if found is None:
        parts = [part.strip() for part in text.split(",")]
        found = [value for part in parts for value in _parsed(part) or [part]]
    spelt = [json.dumps(value, default=str) for value in found]  # a date, which no setting takes, as text
    return tuple(json.loads(each) for each in dict.fromkeys(spelt))


def _parsed(text: str) -> list[Any] | None:
    try:
        found: list[Any] = tomllib.loads(f"found = [{text}]")["found"]
    except tomllib.TOMLDecodeError:
        return None
    return found


def _drawn(axes: Sequence[Axis], wanted: int, seed: int) -> list[Settings]:
    source = random.Random(seed)  # noqa: S311 - which settings are tried is no secret
    found: dict[str, Settings] = {}
    repeats = 0
    while len(found) < wanted and repeats < 100 * (len(found) + 1):  # then there are no others, but for chance e^-100
        drawn = {axis.name: axis.draw(source) for axis in axes}
        repeats = repeats + 1 if json.dumps(drawn) in found else 0
        found.setdefault(json.dumps(drawn), drawn)
    return list(found.values())
