"""Confirms the sites of an aggregator's studies, by fingerprints of their keys that people tell each other.

The coordinator collects all public keys and writes them into the study. A coordinator that invents sites could put one
real site among them, and would learn its update from the total. It cannot as long as one aggregator knows the sites by
fingerprints that came from the sites' people and not through the coordinator. A later key counts as confirmed if
successions lead to it from the confirmed one.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ..enrolment import Enrolment
from ..spoken_hash import fingerprint
from ..succession import own_keys, partners

if TYPE_CHECKING:
    from ..study import Study

__all__ = ["doubts", "fingerprint"]


def doubts(home: Path, study: "Study") -> list[str]:
    """Lists the sites of `study` that the node at `home` has not confirmed, with what to do, one line each.

    A node need not confirm the key under its own name; under another one it has to be confirmed like anybody's, since
    whoever has stolen an earlier key of this node can pose as a site with it. The list is empty for a node that does
    not aggregate in the study.
    """
    from ..policy import load_decisions

    own, own_name = own_keys.of_home(home).all(), Enrolment.load(home).name
    if not any(party.name == own_name or party.identity in own for party in study.aggregators):
        return []
    confirmed, followed = load_decisions(home).sites, partners.load(home)
    found = (
        _doubt(site.name, partners.keys_up_to(followed, site.name, site.identity), confirmed)
        for site in study.sites
        if site.name != own_name
    )
    return [doubt for doubt in found if doubt]


def _doubt(name: str, keys: tuple[str, ...], confirmed: Mapping[str, str]) -> str:
    """Says what to do if none of a site's `keys` was confirmed, "" if one was: the study's, or one that led to it."""
    if name not in confirmed:
        return (
            f"{name} is not confirmed; ask its people for the fingerprint that `client-node status` shows them, then: "
            f"client-node site confirm {name}=FINGERPRINT"
        )
    if confirmed[name] not in map(fingerprint, keys):
        return (
            f"the study gives {name} another key than the confirmed one: somebody else would take part under its name"
        )
    return ""
