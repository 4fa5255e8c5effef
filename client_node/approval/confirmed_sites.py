"""Confirms the sites of an aggregator's sums: by keys that its own people have heard, by word of mouth.

The coordinator collects all public keys and writes them into the study. One that invents sites could put a real site
among its own, and would know the real one's update from the total. It cannot while one aggregator knows the sites by
fingerprints that came from their people and not through the coordinator.
"""

import base64
import hashlib
from collections.abc import Mapping
from pathlib import Path

from ..enrolment import NodeIdentity
from ..errors import SiteNotConfirmed
from ..policy import load_decisions
from ..study import Study

_BYTES = 20  # 160 bits: nobody finds a second key for a given fingerprint
_GROUP = 4


def fingerprint(identity: str) -> str:
    """Writes an identity (hex Ed25519 key) as people read it to each other: 160 bits of its SHA-256 in base32."""
    digest = hashlib.sha256(b"confide/identity/1" + bytes.fromhex(identity)).digest()
    letters = base64.b32encode(digest[:_BYTES]).decode()
    return "-".join(letters[i : i + _GROUP] for i in range(0, len(letters), _GROUP))


def doubts(home: Path, study: Study) -> list[str]:
    """Lists why the node at `home` would not add up `study`: a line for each of its sites that was not confirmed.

    A node knows its own key. Of one that does not aggregate in the study nothing is asked.
    """
    own = NodeIdentity.load(home).identity_hex
    if own not in {party.identity for party in study.aggregators}:
        return []
    confirmed = load_decisions(home).sites
    found = (_doubt(site.name, site.identity, confirmed) for site in study.sites if site.identity != own)
    return [doubt for doubt in found if doubt]


def require_confirmed(home: Path, study: Study) -> None:
    """Raises `SiteNotConfirmed` if there are `doubts`."""
    if found := doubts(home, study):
        raise SiteNotConfirmed(f"study {study.name} is not added up here: {'; '.join(found)}")


def _doubt(name: str, identity: str, confirmed: Mapping[str, str]) -> str:
    if name not in confirmed:
        return (
            f"{name} is not confirmed; ask its people for the fingerprint that `client-node status` shows them, then: "
            f"client-node site confirm {name}=FINGERPRINT"
        )
    if confirmed[name] != fingerprint(identity):
        return (
            f"the study gives {name} another key than the confirmed one: somebody else would take part under its name"
        )
    return ""
