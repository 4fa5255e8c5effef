"""Three parties tell each other their versions; each hears the other two."""

from collections.abc import Mapping
from dataclasses import dataclass

import pytest

from confide.mpc.errors import PartyLost, VersionsApart
from confide.mpc.party.greeting import greet
from confide.versions import OWN, Speaks

NEXT = Speaks(version="9.1", oldest=OWN.newest, newest=OWN.newest + 1)
AFTER = Speaks(version="9.2", oldest=OWN.newest + 1, newest=OWN.newest + 2)


@dataclass
class Heard:
    """Links on which the others have said this already."""

    others: list[bytes]
    aggregator_id: int = 0

    def exchange(self, step: str, outgoing: Mapping[int, bytes], limit: int) -> Mapping[int, bytes]:
        raise NotImplementedError

    def all_gather(self, step: str, data: bytes, limit: int) -> list[bytes]:
        assert (step, len(data) <= limit) == ("HELO", True)
        return [data, *self.others]


def told(*spoken: Speaks) -> Heard:
    return Heard([each.text().encode() for each in spoken])


def test_parties_of_neighbouring_versions_find_the_largest_number_that_all_speak() -> None:
    assert greet(told(OWN, NEXT)) == OWN.newest
    assert greet(told(NEXT, NEXT), NEXT) == NEXT.newest
    assert greet(told(NEXT, AFTER), NEXT) == AFTER.oldest


@pytest.mark.parametrize("others", [(OWN, AFTER), (NEXT, AFTER)], ids=["two apart", "a chain of neighbours"])
def test_parties_without_a_common_number_are_told_who_upgrades_first(others: tuple[Speaks, Speaks]) -> None:
    behind = {OWN: "aggregator 0, aggregator 1", NEXT: "aggregator 0"}[others[0]]
    with pytest.raises(VersionsApart, match=rf"aggregator 2 confide 9\.2 .*; upgrade {behind} first"):
        greet(told(*others))


@pytest.mark.parametrize("other", [b"", b"{}", b'{"version": "1", "oldest": 2, "newest": 1}'])
def test_a_party_that_tells_no_version_is_lost(other: bytes) -> None:
    with pytest.raises(PartyLost, match="does not tell its version"):
        greet(Heard([OWN.text().encode(), other]))
