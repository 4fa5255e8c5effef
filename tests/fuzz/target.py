"""A decoder of bytes from outside: what it takes, what it may refuse with, and who sends such bytes."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True, kw_only=True)
class Target:
    """A decoder to be fuzzed.

    Whatever bytes `read` is given, it returns or raises one of `refusals`; everything else is a defect.
    """

    name: str
    sender: str  # of the bytes: whom the decoder does not trust
    made: Callable[[], list[bytes]]  # makes inputs that are taken
    read: Callable[[bytes], object]
    refusals: tuple[type[Exception], ...]
    most: int | None = None  # cases in a whole run, if one takes so long that 100,000 would take hours

    @cached_property
    def seeds(self) -> list[bytes]:
        """Inputs that are taken, from which all others are made."""
        return self.made()

    def outcome(self, data: bytes) -> bool:
        """Decodes once; True if the bytes were taken, False if they were refused with words."""
        try:
            self.read(data)
        except self.refusals:
            return False
        return True
