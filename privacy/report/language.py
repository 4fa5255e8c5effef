"""The languages of the report's page: one file of texts for each, in the folder `languages` beside this file.

A text is HTML of our own, with {names} for what is filled in, escaped. Which form a text with a number takes is decided
as English and German do it: one form for 1, another for the rest. The report itself, its JSON, is in no language.
"""

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cache
from importlib.resources import files
from typing import Any

from markupsafe import Markup

from ..errors import ReportInvalid

DEFAULT = "en"
_NAMED = 5  # names that a sentence lists before it counts the others


@dataclass(frozen=True, slots=True)
class Language:
    """The texts of one language, by dotted key, and its way to write numbers and dates."""

    code: str  # BCP 47, such as "de"
    texts: Mapping[str, str]

    def say(self, key: str, **values: object) -> Markup:
        """The text of that key, with `values` filled in; whatever is no markup of ours is escaped."""
        return Markup(self.texts[key]).format(**values)  # noqa: S704 (a text of our own files)

    def count(self, key: str, number: int, **values: object) -> Markup:
        """The text of that key for a number of things, which the text may name as {count}."""
        form = "one" if number == 1 else "other"
        return self.say(f"{key}.{form}", count=self.digits(f"{number:,}"), **values)

    def digits(self, number: object) -> str:
        """A number that is written the English way, 1,234.5, with this language's marks."""
        marks = self.texts["numbers.decimal"] + self.texts["numbers.thousands"]
        return str(number).translate(str.maketrans(".,", marks))

    def day(self, time: str) -> str:
        """The day of a time (`chain.Time`), in words."""
        day = date.fromisoformat(time[:10])
        month = self.texts["dates.months"].split()[day.month - 1]
        return str(self.say("dates.day", day=day.day, month=month, year=day.year))

    def names(self, names: Sequence[str]) -> str:
        """A list of names, of which a long one ends in the number of those left out."""
        listed = ", ".join(names[:_NAMED])
        if len(names) <= _NAMED:
            return listed
        return listed + self.texts["words.and_more"].format(count=len(names) - _NAMED)


def languages() -> list[str]:
    """The codes of all languages that there is a file for."""
    folder = files(__package__) / "languages"
    return sorted(file.name.removesuffix(".toml") for file in folder.iterdir() if file.name.endswith(".toml"))


@cache
def load(code: str) -> Language:
    """Reads one language.

    Raises:
        ReportInvalid: there is none of that code; names those that there are.
    """
    known = languages()
    if code not in known:
        raise ReportInvalid(f"there is no page in the language {code!r}; there are {', '.join(known)}")
    text = (files(__package__) / "languages" / f"{code}.toml").read_text(encoding="utf-8")
    return Language(code, dict(_flat(tomllib.loads(text))))


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
