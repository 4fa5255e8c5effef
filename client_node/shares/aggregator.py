"""The aggregator role of a node: its key for each run, the spool of sealed shares, and the party that adds them."""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Literal

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509 import load_pem_x509_certificate
from pydantic import Field, TypeAdapter

from ...models.strict import StrictModel
from ...mpc.errors import EnvelopeRejected, InvalidField, JournalBroken
from ...mpc.links import mapped
from ...mpc.links.positions import History, Positions
from ...mpc.party import OpenedTotal, Order, PartyConfig, PartyProcess
from ...mpc.sharing.hpke import new_keypair
from ...mpc.sharing.position import Position
from ...mpc.sharing.sealing import max_envelope_bytes, signed_position
from ...mpc.sharing.shares import set_name
from ..errors import LedgerOutdated, MessageInvalid, RunEnded, ShareMissing
from ..files import damaged, read_own
from ..policy.site_policy import load_node_policy
from ..secret_files import read_secret, read_secret_json, write_secret
from ..study import Study
from ..succession import partners
from ..wire.chunks import PART_BYTES
from ..wire.messages import MAX_INLINE, AggregateOrder, Deposit, KeyCertificate
from . import run_keys
from .spool import Place, Spool

logger = logging.getLogger(__name__)

# A party stops waiting for the others well before the coordinator asks again; else the three never meet in one attempt.
_LEAST_PATIENCE_S, _MOST_PATIENCE_S = 2.0, 3600.0
_PATIENCE_S = 60.0  # of a party for an order that states none
_MAX_KEY_FILE = 2**16
_Hex = Annotated[str, Field(pattern=r"^([0-9a-f]{2})+$", min_length=64, max_length=8192)]
_KEY_REMEDY = (
    "It opens the sealed shares of its run. Restore it from a backup; without one, delete it and have the operator "
    "stop and resume the run: another key is made, and rounds in progress are shared out anew"
)
_PARTY_REMEDY = "The other aggregators know this one by it: restore party.pem and party.key from one backup"
_NO_HISTORY = History(0, b"")
_NO_KEYS: Mapping[str, Sequence[str]] = MappingProxyType({})


class _RunKey(StrictModel):
    private: Annotated[_Hex, Field(repr=False)]
    public: _Hex


class _Ended(StrictModel):
    ended: Literal[True]


_KEY_FORM: TypeAdapter[_RunKey | _Ended] = TypeAdapter(_RunKey | _Ended)


class AggregatorRole:
    """One of the three parties of each of its studies.

    At most one party process runs at a time, because it listens at this node's one address. It stays warm between
    rounds, and serves all studies that have the same three aggregators.
    """

    def __init__(
        self,
        home: Path,
        name: str,
        signer_in: Callable[[Study], Ed25519PrivateKey],
        known_keys: Callable[[], Mapping[str, Sequence[str]]] = lambda: _NO_KEYS,
    ) -> None:
        """Takes up the role.

        Args:
            signer_in: finds the key by which this node takes part in a study.
            known_keys: finds the keys that this node's people have approved, by the names of sites.
        """
        self._node_home, self._home, self._keys = home, home / "aggregator", home / "party"
        self._name, self._signer_in, self._known_keys = name, signer_in, known_keys
        self._spool = Spool(home)
        self._party: PartyProcess | None = None
        self._positions: Positions | None = None  # of the sites' ledgers, once an order asks for them
        self._config: PartyConfig | None = None  # of the party process

    def run_key(self, study: Study, run: str) -> KeyCertificate:
        """Returns this party's certified HPKE key for `run`, made at the first call and kept until `end`.

        Also starts the party process, so that it is warm when the first round needs it.
        """
        self._party_for(study).start()
        return KeyCertificate.issue(
            study=study.study_hash,
            run=run,
            aggregator_id=self._aggregator_id(study),
            public_key=self._keypair(study, run)[1],
            signer=self._signer_in(study),
        )

    def deposit(self, study: Study, message: Deposit, part: bytes) -> int:
        """Stores a part of a site's sealed share for a later order; returns the number of leading bytes stored so far.

        Raises:
            MessageInvalid: the study has no such site, round or share, the share is longer than it can be, the run was
                never prepared here, or the bytes are not the announced ones.
            RoundOver: a later round of the run has begun here.
            RunEnded: the run has ended here.
            DiskFull: there is no room for the share.
        """
        self._aggregator_id(study)  # raises unless this node aggregates in the study
        if not self._key_path(message.run).exists():
            raise MessageInvalid(f"run {message.run} was not prepared here")
        self._keypair(study, message.run)  # raises if the run has ended here
        planned, terms = study.planned_round(message.round), study.draft
        limit = max_envelope_bytes(study.share_context(planned, run=message.run, site=message.site, state="0" * 64))
        if message.site not in study.site_names() or not 0 < len(part) <= PART_BYTES or message.sealed.size > limit:
            raise MessageInvalid(f"round {message.round}: study {terms.name} has no such share of {message.site}")
        if message.topup_for is not None and terms.min_untopped <= study.quorum:
            raise MessageInvalid(f"study {terms.name} has no top-ups")
        place = Place(message.run, message.round, message.site, message.topup_for)
        sealed = message.sealed
        return self._spool.add(place, size=sealed.size, digest=sealed.digest, offset=message.offset, data=part)

    def aggregate(self, study: Study, asked: AggregateOrder, blobs: Mapping[str, bytes]) -> OpenedTotal:
        """Adds the sites' shares with the other two parties, and returns the total that they opened together.

        The study, never the order, decides which sums need top-ups.

        Args:
            asked: the order; it names the SHA-256 of shares that came by `deposit` (`spooled`).
            blobs: the other shares: `update-I` for each site by its index in `cohort`, and `topup-I` for each or none;
                `history-I` for sites of `histories`.

        Raises:
            MessageInvalid: a site of `cohort`, or the round, is not in the study, or the shares are not the cohort's.
            ShareMissing: a deposited share is not here.
            RoundOver: a later round of the run has begun here.
            LedgerOutdated: this node has seen newer ledgers of sites than those they sealed by; nothing was ordered.
            SetConflict: the round is bound to another set.
            TopUpMissing: the cohort is not the whole study, and a site of it has no top-up for exactly this set.
            MpcError: the aggregation failed for another reason; nothing was released.
        """
        cohort, round_number = asked.cohort, asked.round
        identities = {site.name: site.identity for site in study.sites}
        if not set(cohort) <= identities.keys():
            raise MessageInvalid(f"round {round_number}: the cohort is not made of sites of study {study.draft.name}")
        updates, topups = ([f"{kind}-{i}" for i in range(len(cohort))] for kind in ("update", "topup"))
        named = sorted((*(name for name in blobs if not name.startswith("history-")), *asked.spooled))
        if len(set(cohort)) != len(cohort) or named not in (sorted(updates), sorted(updates + topups)):
            raise MessageInvalid(f"round {round_number}: the sealed shares are not those of the cohort")
        if sum(len(blobs[name]) for name in named if name in blobs) > MAX_INLINE:  # `Spool` makes room for no such ones
            raise MessageInvalid(
                f"round {round_number}: the order carries more than {MAX_INLINE} bytes of sealed shares"
            )
        planned, private_key = study.planned_round(round_number), self._keypair(study, asked.run)[0]
        self._spool.begin(asked.run, round_number)
        topup_for = set_name(cohort)
        files = {
            kind: {
                site: self._file(
                    Place(asked.run, round_number, site, purpose), blobs.get(name), asked.spooled.get(name)
                )
                for site, name in zip(cohort, names, strict=True)
                if name in named
            }
            for kind, names, purpose in (("update", updates, None), ("topup", topups, topup_for))
        }
        order = Order(
            study=study.study_hash,
            run=asked.run,
            round=round_number,
            state=asked.state,
            attempt=asked.attempt,
            cohort=tuple((site, identities[site]) for site in sorted(cohort)),
            dim=planned.dim,
            ring_bits=planned.ring_bits,
            scale_bits=planned.scale_bits,
            rows=planned.rows,
            norm_bound=planned.bound_units or 0,
            topup_bound=study.topup_bound(round_number, len(cohort)),
            tag_count=planned.tag_count,
            min_sites=study.quorum,
            min_untopped=study.draft.min_untopped,
            private_key=private_key,
            timeout_s=min(max(_LEAST_PATIENCE_S, study.draft.rounds.deadline_s / 3), _MOST_PATIENCE_S),
        )
        self._require_newest_ledgers(order, files["update"], _histories(asked, blobs))
        return self._party_for(study).aggregate(order, files["update"], files["topup"])

    def rest(self, run: str) -> None:
        """Deletes the shares of a run that pauses; its key stays."""
        self._spool.clear(run)

    def end(self, run: str) -> None:
        """Deletes the run's key: its sealed shares can never be opened again, and no new key is ever made for it."""
        run_keys.end(self._node_home, run)
        self._spool.drop(run)

    def stop(self) -> None:
        """Stops the party process."""
        if self._positions is not None:
            self._positions.close()
            self._positions = None
        if self._party is not None:
            self._party.stop()
            self._party = None

    def _require_newest_ledgers(
        self, order: Order, updates: Mapping[str, Path], histories: Mapping[str, History]
    ) -> None:
        """Accepts the ledger positions of all updates, durably, or refuses the order for those that are superseded.

        An update that the site did not sign is left to the party, which leaves its site out. A site whose key was
        followed by another has one ledger all the same, and one list of positions; also if the coordinator holds the
        succession back, and a person has accepted the later key for its name.
        """
        if self._positions is None:
            self._home.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._positions = Positions(self._home / "positions")
        approved, followed = self._known_keys(), partners.load(self._node_home)
        identities, found, outdated = dict(order.cohort), dict[str, Position](), dict[str, int]()
        for site, path in updates.items():
            identity = identities[site]
            family = partners.family(followed, site, identity)
            known_as = self._positions.newest((*family, *approved.get(site, ())))
            try:
                position = signed_position(mapped(path), order.context(site), bytes.fromhex(identity))
            except EnvelopeRejected:
                continue
            if not self._positions.allow(known_as, position, histories.get(site, _NO_HISTORY)):
                outdated[site] = self._positions.seen(known_as)
            elif position is not None:
                found[known_as] = position
        if outdated:
            names = ", ".join(outdated)
            logger.error("round %d of run %s: an older ledger than was seen here: %s", order.round, order.run, names)
            raise LedgerOutdated(f"round {order.round}: an older ledger than was seen here: {names}", outdated)
        try:
            self._positions.accept(found)
        except JournalBroken:  # a full disk, say: opened anew at the next order, it may take them
            self._positions.close()
            self._positions = None
            raise

    def _file(self, place: Place, data: bytes | None, digest: str | None) -> Path:
        if data is not None:
            return self._spool.put(place, data)
        path = None if digest is None else self._spool.find(place, digest)
        if path is None:
            raise ShareMissing(f"round {place.round}: the sealed share of {place.site} is not here")
        return path

    def _keypair(self, study: Study, run: str) -> tuple[bytes, bytes]:
        path = self._key_path(run)
        stored = read_secret_json(path, _KEY_FORM, remedy=_KEY_REMEDY, max_bytes=_MAX_KEY_FILE)
        if stored is None:
            private, public = new_keypair(study.draft.aggregation.kem)
            write_secret(path, json.dumps({"private": private.hex(), "public": public.hex()}).encode())
            return private, public
        if isinstance(stored, _Ended):
            raise RunEnded(f"run {run} has ended here and its key is gone; start a new run")
        return bytes.fromhex(stored.private), bytes.fromhex(stored.public)

    def _key_path(self, run: str) -> Path:
        return run_keys.key_file(self._node_home, run)

    def _party_for(self, study: Study) -> PartyProcess:
        parties, policy = study.aggregators, load_node_policy(self._node_home).party
        wanted = PartyConfig(
            aggregator_id=self._aggregator_id(study),
            addresses=(parties[0].address, parties[1].address, parties[2].address),
            certificate=self._keys / "party.pem",
            key=self._keys / "party.key",
            pins=(parties[0].certificate, parties[1].certificate, parties[2].certificate),
            journal=self._home / "journal",
            timeout_s=_PATIENCE_S,
            listen=policy.listen,
            shards=policy.shards,
        )
        if self._party is None or self._config != wanted:
            self.stop()
            secret = self._require_party_files()
            given = wanted if secret is None else replace(wanted, key=secret)
            self._party, self._config = PartyProcess(given), wanted
        return self._party

    def _require_party_files(self) -> bytes | None:
        """Reads the party's key, None if it is missing; the party process is given it, since its file may be sealed.

        Damaged files are refused here, by name: the party process cannot say where they lie.
        """
        pem, key = self._keys / "party.pem", self._keys / "party.key"
        found = read_own(pem, remedy=_PARTY_REMEDY, max_bytes=_MAX_KEY_FILE)
        secret = read_secret(key, remedy=_PARTY_REMEDY, max_bytes=_MAX_KEY_FILE)
        try:
            if found is not None:
                load_pem_x509_certificate(found)
        except ValueError as err:
            raise damaged(pem, "is no certificate: it was cut short or changed", remedy=_PARTY_REMEDY) from err
        try:
            if secret is not None:
                load_pem_private_key(secret, None)
        except (ValueError, TypeError) as err:
            raise damaged(key, "is no key: it was cut short or changed", remedy=_PARTY_REMEDY) from err
        return secret

    def _aggregator_id(self, study: Study) -> int:
        for index, party in enumerate(study.aggregators):
            if party.name == self._name:
                return index
        raise MessageInvalid(f"{self._name} is no aggregator of study {study.draft.name}")


def _histories(asked: AggregateOrder, blobs: Mapping[str, bytes]) -> dict[str, History]:
    """Reads the sites' histories that came with an order, by site."""
    named = {site: f"history-{place}" for place, site in enumerate(asked.cohort) if site in asked.histories}
    if {name for name in blobs if name.startswith("history-")} != set(named.values()):
        raise MessageInvalid(f"round {asked.round}: the histories are not those of the cohort")
    try:
        return {site: History(asked.histories[site], blobs[name]) for site, name in named.items()}
    except InvalidField as err:
        raise MessageInvalid(f"round {asked.round}: {err}") from err
