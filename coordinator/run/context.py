"""What the steps of one run share: who drives it with which lease, and whose answers count."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ...client_node.errors import MessageInvalid
from ...client_node.study import Study
from ...client_node.wire.messages import Packet, Reply, verify
from ..errors import MessageRefused, RunStopped
from ..fleet import Fleet, NodeFailure
from ..store import Checkpoint, LedgerReplica, RunFolder, Store
from ..store.states import RunState

R = TypeVar("R", bound=Reply)


@dataclass(kw_only=True, slots=True)
class Drive:
    """All that driving one run needs."""

    fleet: Fleet
    store: Store
    folder: RunFolder
    replica: LedgerReplica
    study: Study
    run: str
    lease: int
    signer: Ed25519PrivateKey
    start: Checkpoint  # round 0, used when nothing is committed yet
    head_size: int  # leading entries of the trained vector that belong to the head
    open: dict[str, set[int]] = field(default_factory=dict)  # site -> charged rounds whose outcome it has not signed
    abstaining: set[str] = field(default_factory=set)  # sites that say they hold no records out

    @property
    def sites(self) -> tuple[str, ...]:
        """The study's sites that are not revoked at this moment."""
        revoked = {node.name for node in self.store.nodes() if node.revoked_at is not None}
        return tuple(site.name for site in self.study.sites if site.name not in revoked)

    @property
    def parties(self) -> tuple[str, ...]:
        """The aggregators, by aggregator_id."""
        return tuple(party.name for party in self.study.aggregators)

    def addressed(self, name: str) -> dict[str, Any]:
        """What every request to `name` begins with."""
        return {"to": name, "study": self.study.study_hash, "run": self.run, "lease": self.lease}


def stop_if_asked(drive: Drive) -> None:
    """Ends the drive between two questions if an operator asked for it; what is committed stays."""
    if drive.store.run(drive.run).state == RunState.STOPPING:
        raise RunStopped(f"run {drive.run} was stopped; `coordinator run resume {drive.run}` goes on with it")


def identity_of(study: Study, name: str) -> str:
    """The identity that the approved study gives to `name`."""
    identities = {site.name: site.identity for site in study.sites}
    identities |= {party.name: party.identity for party in study.aggregators}
    if name not in identities:
        raise MessageRefused(f"{name} takes no part in study {study.name}")
    return identities[name]


def verified_answers(
    drive: Drive, kind: str, requests: Mapping[str, Packet], *models: type[R]
) -> Iterator[tuple[str, tuple[R, Packet] | NodeFailure | MessageInvalid | MessageRefused]]:
    """By node, as they come: the answer, once it is the node's own to this very request, or why there is none."""
    for name, packet in drive.fleet.ask(kind, requests, drive.study.draft.rounds.deadline_s) if requests else ():
        if isinstance(packet, NodeFailure):
            yield name, packet
            continue
        try:
            message = verify(packet, identity_of(drive.study, name), *models)
            if message.request != requests[name].digest():
                raise MessageRefused(f"{name} answered another request than the one it was sent")
        except (MessageInvalid, MessageRefused) as err:
            yield name, err
        else:
            yield name, (message, packet)
