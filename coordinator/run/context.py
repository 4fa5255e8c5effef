"""The context that the steps of a run share, and that of a round: store, fleet, lease, keys and state."""

import hmac
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ...client_node.replay import Checkpoint as StateCheckpoint
from ...client_node.study import PlannedRound, Study
from ...client_node.wire.checkpoints import AuditOffer
from ...client_node.wire.messages import KeyCertificate, Outcome, start_hash
from ...mpc.sharing import ShareContext
from ...privacy.ledger.chain import Entry
from ..errors import MessageRefused, RunStopped
from ..federation import Pki
from ..fleet import Fleet
from ..store import LedgerReplica, Store
from ..store.run_folder import RunFolder
from ..store.states import RunState
from ..store.tables import Absence
from .laps import Laps

OUTCOMES_A_MESSAGE = 64
OUTCOME_BYTES = 2**18  # of their evidence together, but for the last one: it names all sites, thrice

Keys = tuple[KeyCertificate, KeyCertificate, KeyCertificate]  # of a run, by aggregator_id


@dataclass(frozen=True, kw_only=True, slots=True)
class RunContext:
    """All that driving one run needs."""

    id: str
    lease: int
    study: Study
    fleet: Fleet
    store: Store
    folder: RunFolder
    replica: LedgerReplica
    pki: Pki
    start: StateCheckpoint  # round 0, used when nothing is committed yet
    seen: dict[str, int] = field(default_factory=dict)  # by site: ledger entries that all aggregators have seen of it
    standings: dict[str, int] = field(default_factory=dict)  # site -> the last round whose total it has, as it says
    offered: dict[str, AuditOffer] = field(default_factory=dict)  # node -> what it was asked to countersign last
    may_skip_leases: bool = False  # True if a node that knows a newer lease is believed
    witnessed: dict[str, int] = field(default_factory=dict)  # node -> the entry it says it has countersigned, if older

    @property
    def signer(self) -> Ed25519PrivateKey:
        """The coordinator's key at this moment: it may be rotated while a run goes on."""
        return self.pki.signer

    def tag_key(self, round_number: int) -> str | None:
        """Derives the key of a round's tags, in hex, the same at every attempt; None if the study has none."""
        if not self.study.draft.aggregation.verify_total:
            return None
        place = f"confide/tag-key/1|{self.study.study_hash}|{self.id}|{round_number}"
        return hmac.digest(self.folder.secret(), place.encode(), "sha256").hex()

    @property
    def sites(self) -> tuple[str, ...]:
        """Names the study's sites that are not revoked at this moment."""
        revoked = {node.name for node in self.store.nodes() if node.revoked_at is not None}
        return tuple(site.name for site in self.study.sites if site.name not in revoked)

    @property
    def parties(self) -> tuple[str, ...]:
        """Names the aggregators, by aggregator_id."""
        return tuple(party.name for party in self.study.aggregators)

    def identity_of(self, name: str) -> str:
        """Returns the identity that the approved study gives to `name`. Raises `MessageRefused` if it gives none."""
        site = next((site for site in self.study.sites if site.name == name), None)
        party = site or next((party for party in self.study.aggregators if party.name == name), None)  # both: one key
        if party is None:
            raise MessageRefused(f"{name} takes no part in study {self.study.name}")
        return party.identity

    def addressed(self, name: str) -> dict[str, Any]:
        """Returns the fields with which every request to `name` begins."""
        return {"to": name, "study": self.study.study_hash, "run": self.id, "lease": self.lease}

    def beat(self, step: str) -> None:
        """Stores the current step, as a sign of life. Raises `LeaseLost`."""
        self.store.beat(self.id, self.lease, step)

    def stop_if_asked(self) -> None:
        """Stops the run between two questions if an operator asked for it; committed rounds stay."""
        if self.store.run(self.id).state == RunState.STOPPING:
            raise RunStopped(f"run {self.id} was stopped; `coordinator run resume {self.id}` goes on with it")

    def accept_ledger(self, site: str, entries: tuple[Entry, ...]) -> None:
        """Adds a site's new ledger entries to the replica. Raises `ReplicaBroken` if they do not continue it."""
        if entries:
            self.replica.extend(site, self.identity_of(site), entries)

    def untold_outcomes(self, site: str) -> tuple[Outcome, ...]:
        """Lists outcomes of committed rounds that are charged and not settled in the site's replica; some at a time."""
        if not (open_rounds := self.replica.open_rounds(site, self.id)):
            return ()
        untold = self.store.opened(self.id, numbers=open_rounds)[:OUTCOMES_A_MESSAGE]
        sizes = accumulate((len(row.evidence) for row in untold), initial=0)
        told = [row for row, before in zip(untold, sizes, strict=False) if before < OUTCOME_BYTES]
        return tuple(Outcome(round=row.number, sites=row.summed, evidence=row.signed) for row in told)


@dataclass(frozen=True, kw_only=True)
class RoundContext:
    """The context that the steps of one round share: its number, its state and its cohort."""

    run: RunContext
    keys: Keys
    planned: PlannedRound
    state_hash: str  # SHA-256 of the vector that it starts from: only updates made from the same can be added up
    cohort: tuple[str, ...]  # the sites that are asked
    laps: Laps = field(default_factory=Laps)
    absent: dict[str, Absence] = field(default_factory=dict)  # by site: why it is not in the sum, by its last answer

    @property
    def number(self) -> int:
        """Returns the round's number in the run."""
        return self.planned.number

    @property
    def title(self) -> str:
        """Names the round for people."""
        return self.planned.title

    @cached_property
    def tag_key(self) -> str | None:
        """Key of the round's tags, in hex; None if the study has none."""
        return self.run.tag_key(self.number)

    @cached_property
    def start(self) -> str:
        """Hashes everything that is alike for all sites, for contexts and orders."""
        return start_hash(self.state_hash, self.tag_key)

    def share_context(self, site: str) -> ShareContext:
        """Returns the context for which a site's shares of the round must be sealed and signed."""
        return self.run.study.share_context(self.planned, run=self.run.id, site=site, state=self.start)

    def missing(self, summed: Collection[str]) -> dict[str, Absence]:
        """Returns why sites of the study are not in `summed`, as far as this driver knows."""
        away = [site for site in self.run.study.site_names() if site not in summed]
        if any(site not in self.cohort for site in away):
            allowed = self.run.sites
            for site in away:
                if site not in self.cohort:
                    self.absent[site] = "abstains" if site in allowed else "revoked"
        return {site: self.absent[site] for site in away if site in self.absent}

    def has_charge(self, site: str) -> bool:
        """True if the site has signed a charge for the round."""
        return self.run.replica.has_charge(site, self.run.id, self.number)
