"""Cohorts that a ledger names once: from then on a digest stands for the names, and a sum names who is missing.

Without that a round of n sites writes n names into each of n ledgers, twice: what is stored grows with the square of
the sites. The names stay in the ledger, so whoever holds it alone still sees who was in which sum.

A cohort of at most `MOST_LISTED` sites is written in full, which takes no more room over a short run. Whoever reads
takes either form for any cohort: ledgers of earlier versions have all of them in full.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from ..errors import InvalidPrivacyParameter
from . import canonical

KIND = "cohort"  # of the ledger's entries
DOMAIN = "confide cohort 1"
MOST_LISTED = 10  # sites; beyond them a ledger names a cohort once


def digest(sites: Iterable[str]) -> str:
    """Computes the digest that stands for a set of sites: a SHA-256 in hex over their sorted names."""
    return hashlib.sha256(DOMAIN.encode() + b"\n" + canonical.encode(sorted(sites))).hexdigest()


@dataclass(frozen=True, kw_only=True, slots=True)
class Cohort:
    """The body of an entry that names a cohort."""

    digest: str  # of `sites`; written beside them for people who look for it
    sites: tuple[str, ...]  # sorted

    def __post_init__(self) -> None:
        if not self.sites or list(self.sites) != sorted(set(self.sites)):
            raise InvalidPrivacyParameter("the sites of a cohort must be named once each, sorted")
        if self.digest != digest(self.sites):
            raise InvalidPrivacyParameter(f"the digest {self.digest[:16]!r} is not that of the sites")

    @classmethod
    def of(cls, sites: Iterable[str]) -> Self:
        """Makes the body for a set of sites."""
        names = tuple(sorted(sites))
        return cls(digest=digest(names), sites=names)


@dataclass(frozen=True, kw_only=True, slots=True)
class Absence:
    """The body of an entry that settles a round by the sites of its cohort that the opened sum did not hold."""

    run: str
    round: int
    missing: tuple[str, ...]  # sorted; mostly none

    def summed(self, cohort: tuple[str, ...]) -> tuple[str, ...]:
        """Returns the sites of `cohort` that the sum did hold, in its order.

        Raises:
            ValueError: the missing sites are not named once each, sorted, or one is not of the cohort.
        """
        missing = set(self.missing)
        if list(self.missing) != sorted(missing):
            raise ValueError("the missing sites must be named once each, sorted")
        if strangers := missing.difference(cohort):
            raise ValueError(f"{', '.join(sorted(strangers))} missing without being in the cohort")
        return tuple(site for site in cohort if site not in missing) if missing else cohort
