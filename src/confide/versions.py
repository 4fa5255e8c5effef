"""The protocol numbers that this version speaks, and the one that programs of two versions have in common.

The number grows when a message between programs changes so that a program that does not know the change cannot go on:
a field that must be there, a field that an older schema refuses, another meaning. It is apart from the package's
version: most releases leave it as it is. docs/versions.md says which version speaks which.
"""

import json
import re
from dataclasses import asdict, dataclass
from typing import Any, Self

from . import __version__

PROTOCOL = 2
OLDEST = 2  # the smallest number that this version can speak as well: from protocol 3 on, the one before at least
HEADER = "confide-speaks"  # in the gate's answers, as `Speaks.text` writes it
MOST_BYTES = 256  # of `Speaks.text`
_LARGEST = 2**16
_VERSION = re.compile(r"[0-9A-Za-z.+!-]{1,32}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Speaks:
    """A version of confide with the range of protocol numbers that it speaks.

    Raises:
        ValueError: at its construction, for a text that is no version, or a range that is none.
    """

    version: str  # empty: it does not tell
    oldest: int
    newest: int

    def __post_init__(self) -> None:
        numbers = self.oldest, self.newest
        if any(type(number) is not int for number in numbers) or not 1 <= self.oldest <= self.newest <= _LARGEST:
            raise ValueError("not a range of protocol numbers")
        if not isinstance(self.version, str) or (self.version and not _VERSION.fullmatch(self.version)):
            raise ValueError("not a version")

    def common(self, *others: Self) -> int | None:
        """Finds the largest protocol number that all of them speak; None if there is none."""
        every = (self, *others)
        number = min(each.newest for each in every)
        return number if all(each.oldest <= number for each in every) else None

    def text(self) -> str:
        """Writes it as it travels: JSON, of at most `MOST_BYTES`."""
        return json.dumps(asdict(self))

    @classmethod
    def read(cls, data: bytes | str) -> Self:
        """Reads what travelled; fields that a later version may add are passed over.

        Raises:
            ValueError: it is of another form, or longer than `MOST_BYTES`. The message never repeats it.
        """
        if len(data) > MOST_BYTES:
            raise ValueError("too long to be a version")
        try:
            told: Any = json.loads(data)
            return cls(version=told["version"], oldest=told["oldest"], newest=told["newest"])
        except (ValueError, KeyError, TypeError, RecursionError):
            raise ValueError("not a version with its protocol numbers") from None

    def __str__(self) -> str:
        is_one = self.oldest == self.newest
        spoken = f"protocol {self.newest}" if is_one else f"protocols {self.oldest} to {self.newest}"
        return f"confide {self.version or '0.2.0 or before'} ({spoken})"


OWN = Speaks(version=__version__, oldest=OLDEST, newest=PROTOCOL)
EARLIER = Speaks(version="", oldest=1, newest=1)  # 0.2 and 0.1 tell nothing


def apart(node: str, spoken: Speaks, coordinator: Speaks) -> str:
    """Says in one sentence why a node and its coordinator cannot work together, and which of them is upgraded first.

    Args:
        node: its name.
        spoken: what it speaks.
    """
    first = f"upgrade {node}" if spoken.newest < coordinator.oldest else "upgrade the coordinator"
    return f"{node} runs {spoken}, the coordinator runs {coordinator}, and no protocol is common to both: {first} first"
