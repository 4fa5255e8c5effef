"""Remembers the keys of other sites and aggregators by name, from the first approved study that named them.

Trust on first approval: `study approve` shows the fingerprints of names that were never seen here. A later study that
gives a known name another key is refused, until a person accepts that key by its fingerprint. So an operator cannot
replace a site unseen. Each name keeps all keys that were accepted for it: studies that were approved with an earlier
one go on, while a new approval has to name the newest. A key to which successions lead from the newest known one
(`succession.partners`) needs nobody to accept it: the earlier key vouches for it.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from ...models.strict import NO_ENTRIES, Digest, Frozen, Name, StrictModel
from ...privacy.ledger import chain
from ..enrolment import Enrolment
from ..errors import PartnerRefused
from ..files import locked, parse_json, read_own, write_private
from ..policy import decision_log, load_decisions
from ..study import Study
from ..succession import partners
from .confirmed_sites import fingerprint

FILE = "peers.json"
MOST_NAMES = 10_000
_MOST_BYTES = 2**24
_REMEDY = (
    "It says which keys other sites and aggregators had in earlier studies. Restore it from a backup; deleted, the "
    "keys of the next study are believed, so compare their fingerprints by telephone"
)


class KnownKey(StrictModel):
    """A key of a peer, and the study that named it first."""

    identity: Digest  # Ed25519 public key
    study: Digest
    since: Annotated[str, Field(max_length=40)]  # UTC


_Keys = Annotated[tuple[KnownKey, ...], Field(min_length=1, max_length=100)]  # oldest first


class _File(StrictModel):
    format: Literal[1] = 1
    peers: Annotated[Mapping[Name, _Keys], Field(max_length=MOST_NAMES), *Frozen] = NO_ENTRIES


_FORM = TypeAdapter(_File)


@dataclass(frozen=True, slots=True)
class Peer:
    """A party of a study beside what is known here of its name."""

    name: str
    identity: str
    state: Literal["known", "earlier", "new", "changed", "followed"]  # earlier: accepted, and another one since then
    before: KnownKey | None  # the newest key of that name
    followed_at: str = ""  # when the newest key known here was followed, as its owner says
    newest: str = ""  # of an earlier key: the one that followed it last

    @property
    def spoken(self) -> str:
        """The fingerprint of the key that the study gives it."""
        return fingerprint(self.identity)

    def told(self) -> str:
        """Says in a sentence what is known of it, for people; a changed key with what to do."""
        spoken = self.spoken
        if self.state == "earlier":
            return f"{self.name} has an earlier key, {spoken}; the newest one is {fingerprint(self.newest)}"
        if self.state == "new" or self.before is None:
            return f"{self.name} was never seen here; an approval makes its key known"
        known = f"{fingerprint(self.before.identity)} since {self.before.since[:10]}"
        if self.state == "known":
            return f"{self.name} has the key that is known here, {known}"
        if self.state == "followed":
            return f"{self.name} has a new key, {spoken}, signed on {self.followed_at[:10]} by the known one, {known}"
        return (
            f"{self.name} has another key than in earlier studies, which gave it {known}; ask its own people for the "
            f"fingerprint of their new key, then: client-node study approve HASH --accept-new-key "
            f"{self.name}=FINGERPRINT"
        )


def load(home: Path) -> Mapping[str, tuple[KnownKey, ...]]:
    """Reads the keys that are known here, by name, oldest first; none for a fresh node.

    Raises:
        FileDamaged: the file is damaged. No study runs until a person has looked at it.
    """
    data = read_own(home / FILE, remedy=_REMEDY, max_bytes=_MOST_BYTES)
    return {} if data is None else _read(home / FILE, data)


@lru_cache(maxsize=4)  # each message asks twice, and a thousand keys take 10 ms
def _read(path: Path, data: bytes) -> Mapping[str, tuple[KnownKey, ...]]:
    return parse_json(path, data, _FORM, remedy=_REMEDY).peers


def known_keys(home: Path) -> dict[str, tuple[str, ...]]:
    """Reads the public keys that are known here, in hex, by name, oldest first. Raises as `load`."""
    return {name: tuple(key.identity for key in keys) for name, keys in load(home).items()}


def compare(home: Path, study: Study) -> list[Peer]:
    """Compares the keys of all other parties of a study with those that are known here, in the study's order.

    A key counts as known as well if this node's people have confirmed it, see `confirmed_sites`. One that its owner has
    followed by another is an earlier one, however it is known: whoever stole it opens nothing new with it.
    """
    known, confirmed, stated = load(home), load_decisions(home).sites, partners.load(home)
    found = []
    for name, identity in _parties(home, study).items():
        keys, at, newest = known.get(name, ()), "", ""
        state: Literal["known", "earlier", "new", "changed", "followed"] = "changed" if keys else "new"
        if keys and keys[-1].identity == identity:
            state = "known"
        elif identity in {key.identity for key in keys}:
            state, newest = "earlier", keys[-1].identity
        elif keys and confirmed.get(name) == fingerprint(identity):
            state = "known"
        elif keys and (proof := partners.path(stated, name, keys[-1].identity, identity)):
            state, at = "followed", proof[-1].time
        if state != "changed" and (later := partners.keys_after(stated, name, identity)):
            state, newest = "earlier", later[-1]
        found.append(Peer(name, identity, state, keys[-1] if keys else None, at, newest))
    return found


def objections(home: Path, study: Study, accepted: Mapping[str, str]) -> list[str]:
    """Lists what speaks against approving a study: keys that are not the newest known ones, and were not accepted.

    Args:
        accepted: fingerprints that a person has typed, by name.
    """
    found = []
    peers = {each.name: each for each in compare(home, study)}
    for name, typed in accepted.items():
        if name not in peers:
            found.append(f"--accept-new-key {name}: the study has no other site or aggregator of that name")
        elif typed != fingerprint(peers[name].identity):
            found.append(f"--accept-new-key {name}: the study gives {name} another key than the one that you typed")
    for each in peers.values():
        if each.state in ("earlier", "changed") and each.name not in accepted:
            found.append(each.told())
    return found


def note(home: Path, study: Study, accepted: Iterable[str] = (), *, by: str | None = None) -> tuple[str, ...]:
    """Remembers the study's keys of names that have none here yet, and of the `accepted` ones; returns these names.

    An accepted key becomes the newest of its name, and a line of the decision log; so does one that follows by
    successions. Another key that nobody accepted changes nothing that is known.

    Args:
        by: who decides; None for the account that runs this process.
    """
    wanted = {*accepted}

    def is_taken(peer: Peer) -> bool:
        if peer.name in wanted:
            return peer.state != "known"
        return peer.before is None or peer.state == "followed"

    if not any(is_taken(each) for each in compare(home, study)):
        return ()  # as for nearly every message
    with locked(home / FILE):
        known, changed, study_hash = {**load(home)}, [], study.study_hash  # which costs a millisecond of 1,000 sites
        for each in filter(is_taken, compare(home, study)):
            key = KnownKey(identity=each.identity, study=study_hash, since=chain.now())
            others = tuple(old for old in known.get(each.name, ()) if old.identity != each.identity)
            known[each.name] = (*others, key)[-100:]
            changed.append(each.name)
            if each.state != "new" and (each.before is not None or each.name in wanted):
                decision_log.write(home, "accept", each.name, fingerprint(each.identity), by=by)
        if len(known) > MOST_NAMES:
            raise PartnerRefused(f"more than {MOST_NAMES} names would be known here; move {FILE} away to begin anew")
        if changed:
            write_private(home / FILE, json.dumps(_File(peers=known).model_dump(mode="json"), indent=1).encode())
    return tuple(changed)


def _parties(home: Path, study: Study) -> dict[str, str]:
    """Maps the names of the study's other parties to their keys, one of this node's own among them."""
    own = Enrolment.load(home).name
    return {name: identity for name, identity in study.identities().items() if name != own}
