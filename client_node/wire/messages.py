"""Messages between the coordinator and a node: one schema for each, signed, with size limits.

A message travels as a `Packet`: a JSON body and named binary blobs. The body holds the message's own JSON text, the
SHA-256 of every blob and an Ed25519 signature over all of it, so a relay can neither change nor mix parts. A reply
names the digest of the request that it answers, which makes an old reply worthless.

Fields that a node sends are public by construction: names, numbers of the study, digests of sealed bytes and ledger
entries. Nothing here may depend on a record except through sealed shares.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Self, TypeVar

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from pydantic.types import NonNegativeInt, PositiveInt

from ...mpc.fields import canonical
from ...mpc.sharing.hpke import kem_of_public
from ...privacy.ledger.chain import Entry
from ..errors import MessageInvalid
from ..study import Study
from .checkpoints import AuditAnswer, AuditOffer

MAX_BODY = 1 << 20  # bytes
MAX_BLOBS = 4096
MAX_INLINE = 8 << 20  # bytes of sealed shares in one message; larger shares come in parts
ENTRIES_A_MESSAGE = 256  # ledger entries; the coordinator asks again for the rest
LEDGER_BYTES = MAX_BODY // 4  # of these entries together, but for the last one: those of large cohorts may be long

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]
Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
BlobName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]
Signature = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{128}$")]
PublicKey = Annotated[
    str, StringConstraints(pattern=r"^([0-9a-f]{64}|[0-9a-f]{2432})$")
]  # by suite: mpc/sharing/hpke.py
RunId = Annotated[str, StringConstraints(pattern=r"^[a-z0-9-]{4,64}$")]


@dataclass(frozen=True, slots=True)
class Packet:
    """One message as the transport carries it: a small JSON body and named binary blobs."""

    body: bytes  # JSON, at most 1 MiB
    blobs: Mapping[str, bytes] = field(default_factory=dict)  # name -> opaque bytes

    def digest(self) -> str:
        """SHA-256 of the body, which covers the blobs through their digests."""
        return hashlib.sha256(self.body).hexdigest()

    @property
    def size(self) -> int:
        """Bytes of the body and all blobs."""
        return len(self.body) + sum(map(len, self.blobs.values()))


class Message(BaseModel):
    """Base of all signed messages."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    kind: ClassVar[str]


class Request(Message):
    """Base of the coordinator's requests to one node in one run."""

    to: Name
    study: Digest
    run: RunId
    lease: PositiveInt  # the driver's token; a lower one than seen before is refused


class Reply(Message):
    """Base of replies: each names the digest of the request that it answers."""

    request: Digest


class KeyCertificate(BaseModel):
    """An aggregator's HPKE key for one run, signed by the aggregator's identity, which the study names."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    study: Digest
    run: RunId
    aggregator_id: NonNegativeInt
    public_key: PublicKey
    signature: Signature

    @classmethod
    def issue(cls, *, study: str, run: str, aggregator_id: int, public_key: bytes, signer: Ed25519PrivateKey) -> Self:
        """Signs `public_key`, of either HPKE suite, for `run`."""
        signed = cls._signed(study, run, aggregator_id, public_key.hex())
        return cls(
            study=study,
            run=run,
            aggregator_id=aggregator_id,
            public_key=public_key.hex(),
            signature=signer.sign(signed).hex(),
        )

    def verify(self, identity: str) -> None:
        """Raises `MessageInvalid` unless `identity` (hex Ed25519 key) signed this certificate."""
        signed = self._signed(self.study, self.run, self.aggregator_id, self.public_key)
        try:
            Ed25519PublicKey.from_public_bytes(bytes.fromhex(identity)).verify(bytes.fromhex(self.signature), signed)
        except (InvalidSignature, ValueError) as err:
            raise MessageInvalid(
                f"aggregator {self.aggregator_id}: its key for run {self.run} is not signed by it"
            ) from err

    @staticmethod
    def _signed(study: str, run: str, aggregator_id: int, public_key: str) -> bytes:
        return f"confide/run-key/1|{study}|{run}|{aggregator_id}|{public_key}".encode()


class Outcome(BaseModel):
    """The outcome of a round: the sites that were summed, and the three aggregators' signed evidence of it."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    round: PositiveInt
    sites: tuple[Name, ...]
    evidence: Annotated[tuple[Annotated[str, StringConstraints(max_length=1 << 17)], ...], Field(max_length=3)]


class Sealed(BaseModel):
    """A sealed share, given by its length and SHA-256; its parts must match both, inline or fetched."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    size: PositiveInt
    digest: Digest


Three = tuple[Sealed, Sealed, Sealed]  # a site's, by aggregator
Inline = Annotated[NonNegativeInt, Field(le=MAX_INLINE)]


class Prepare(Request):
    """Request to every node of a study: load what the run needs; aggregators also make the run's key."""

    kind: ClassVar[str] = "prepare"
    ledger_from: NonNegativeInt
    audit: AuditOffer | None = None  # a checkpoint of the coordinator's audit log, to be countersigned


class Ready(Reply):
    """Answer to `Prepare`."""

    kind: ClassVar[str] = "ready"
    key: KeyCertificate | None = None  # from aggregators
    evaluates: bool = False  # from sites: true if their policy names held-out records
    ledger: tuple[Entry, ...] = ()  # from sites
    audit: AuditAnswer | None = None  # to an offer


class Replay(Request):
    """Request to a site: take a part of a round's opened total, and once it is whole, the study's server step.

    Blob `part`: the total's ring elements from `offset` on, at most 8 MiB of them.
    """

    kind: ClassVar[str] = "replay"
    outcome: Outcome  # which round, which sites, and what the aggregators signed of the total
    tag_key: Digest | None = None  # of that round; the aggregators signed a start that covers it
    offset: NonNegativeInt


class Replayed(Reply):
    """A site's answer to `Replay`: where it stands now."""

    kind: ClassVar[str] = "replayed"
    run: RunId
    round: NonNegativeInt  # the last one whose total it has taken, 0 before the first
    held: NonNegativeInt  # bytes of the next round's total that it has


class RoundPlan(Request):
    """Request to a site: compute one round; the study gives each round number its purpose.

    What it starts from does not travel: a site has computed it (`Replay`).
    """

    kind: ClassVar[str] = "step"
    round: PositiveInt
    start: Digest  # SHA-256 of the vector that the coordinator computed, in `Study.state_format`; a site compares
    keys: tuple[KeyCertificate, KeyCertificate, KeyCertificate]
    tag_key: Digest | None = None  # for the tags of this round; kept from the aggregators
    outcomes: tuple[Outcome, ...]
    ledger_from: NonNegativeInt
    inline: Inline = MAX_INLINE  # bytes of sealed shares that the answer may carry


class Update(Reply):
    """A site's answer to `RoundPlan`: one sealed share for each aggregator.

    Blobs `envelope-0..2`: the smallest of them, as many as the plan's `inline` allows. `Fetch` gets the others.
    """

    kind: ClassVar[str] = "update"
    run: RunId
    round: PositiveInt
    sealed: Three
    ledger: tuple[Entry, ...]


class TopUpPlan(Request):
    """Request to a site of a sum that lacks other sites: the set to be summed is fixed; add noise for it."""

    kind: ClassVar[str] = "topup"
    round: PositiveInt
    state: Digest  # SHA-256 of the vector that every site started from
    cohort: tuple[Name, ...]  # sorted
    keys: tuple[KeyCertificate, KeyCertificate, KeyCertificate]
    tag_key: Digest | None = None
    inline: Inline = MAX_INLINE


class TopUp(Reply):
    """A site's answer to `TopUpPlan`: one sealed share of noise for each aggregator, as in `Update`."""

    kind: ClassVar[str] = "topped"
    run: RunId
    round: PositiveInt
    sealed: Three


class Fetch(Request):
    """Request to a site: send a part of a sealed share of its update, or of its top-up for the set `topup_for`."""

    kind: ClassVar[str] = "fetch"
    round: PositiveInt
    topup_for: Digest | None
    aggregator_id: Annotated[NonNegativeInt, Field(le=2)]
    offset: NonNegativeInt


class Fetched(Reply):
    """A site's answer to `Fetch`. Blob `part`: the bytes from `offset` on, 8 MiB or up to the end."""

    kind: ClassVar[str] = "fetched"
    run: RunId
    round: PositiveInt


class Deposit(Request):
    """Request to an aggregator: keep a part of a sealed share until an order names it.

    Blob `part`: the bytes from `offset` on, at most 8 MiB."""

    kind: ClassVar[str] = "deposit"
    round: PositiveInt
    site: Name
    topup_for: Digest | None
    sealed: Sealed
    offset: NonNegativeInt


class Deposited(Reply):
    """An aggregator's answer to `Deposit`: the number of leading bytes of that share that it now holds."""

    kind: ClassVar[str] = "deposited"
    run: RunId
    round: PositiveInt
    held: NonNegativeInt


class AggregateOrder(Request):
    """Request to an aggregator: sum the shares of the sites in `cohort`.

    Blobs `update-I`: sealed share of site number I of `cohort`, and `topup-I` for a set that needs top-ups. Shares that
    were deposited before are named in `spooled` instead. Blobs `history-I`: the hashes of a site's ledger entries from
    the number in `histories` on."""

    kind: ClassVar[str] = "aggregate"
    round: PositiveInt
    state: Digest  # SHA-256 of the vector that every site was sent
    attempt: NonNegativeInt
    cohort: tuple[Name, ...]
    spooled: dict[BlobName, Digest] = {}
    histories: dict[Name, Annotated[NonNegativeInt, Field(lt=2**48)]] = {}
    with_total: bool = False  # one of the three sends the total's bytes


class SignedTotal(Reply):
    """An aggregator's answer to an order: what it signs of the total over `kept`, which the three have opened.

    Blob `tags`: its share of the tags of the total, if there are tags. Blob `total`: ring elements, if the order asks
    for them.
    """

    kind: ClassVar[str] = "total"
    study: Digest
    run: RunId
    round: PositiveInt
    start: Digest  # the order's `state`
    kept: tuple[Name, ...]
    rejected: tuple[Name, ...] = ()  # sites of the cohort whose vectors were longer than the study allows
    set_digest: Digest
    total_digest: Digest  # SHA-256 of the total's ring elements, little-endian


class SetTaken(Reply):
    """An aggregator's refusal: the round is bound to another set of sites, permanently."""

    kind: ClassVar[str] = "bound"
    run: RunId
    round: PositiveInt
    bound: tuple[Name, ...]


class SetIncomplete(Reply):
    """An aggregator's refusal: the cohort may not be summed as it is. `complete`: its sites that lack no share."""

    kind: ClassVar[str] = "incomplete"
    run: RunId
    round: PositiveInt
    complete: tuple[Name, ...]
    rejected: tuple[Name, ...] = ()  # sites that are not among them because their vectors are too long
    outdated: dict[Name, Annotated[NonNegativeInt, Field(lt=2**48)]] = {}  # ... with the entries seen of their ledgers


class Settle(Request):
    """Request to every node: record outcomes not sent before; `final` ends the run and deletes its keys."""

    kind: ClassVar[str] = "settle"
    outcomes: tuple[Outcome, ...]
    final: bool
    ledger_from: NonNegativeInt
    audit: AuditOffer | None = None


class Settled(Reply):
    """Answer to `Settle`."""

    kind: ClassVar[str] = "settled"
    ledger: tuple[Entry, ...] = ()
    audit: AuditAnswer | None = None


M = TypeVar("M", bound=Message)


class _Signed(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    kind: Annotated[str, StringConstraints(pattern=r"^[a-z]{1,16}$")]
    message: Annotated[str, StringConstraints(max_length=MAX_BODY)]
    blobs: dict[BlobName, Digest]
    signature: Signature


def sign(message: Message, signer: Ed25519PrivateKey, blobs: Mapping[str, bytes] | None = None) -> Packet:
    """Signs a message with its blobs and returns the packet."""
    blobs = blobs or {}
    digests = {name: hashlib.sha256(blob).hexdigest() for name, blob in blobs.items()}
    text = message.model_dump_json()
    signature = signer.sign(_signed_bytes(message.kind, text, digests)).hex()
    body = json.dumps({"kind": message.kind, "message": text, "blobs": digests, "signature": signature})
    return Packet(body.encode(), blobs)


def verify(packet: Packet, identity: str, *models: type[M]) -> M:
    """Returns the message in `packet` after checking its signature by `identity` (hex Ed25519 key) and its schema.

    Raises:
        MessageInvalid: too large, not signed by `identity`, none of `models`, or not of that model's schema.
    """
    outer = _open(packet.body, identity)
    if len(packet.blobs) > MAX_BLOBS:
        raise MessageInvalid(f"message with {len(packet.blobs)} blobs is over the limit")
    if outer.blobs != {name: hashlib.sha256(blob).hexdigest() for name, blob in packet.blobs.items()}:
        raise MessageInvalid(f"blobs of the {outer.kind} message are not those that were signed")
    return _read(outer, models)


def verify_body(body: bytes, identity: str, *models: type[M]) -> M:
    """Returns the message in the body of a packet whose blobs are elsewhere; else as `verify`."""
    return _read(_open(body, identity), models)


def one_part(entries: Iterable[Entry]) -> tuple[Entry, ...]:
    """Takes as many of a ledger's next entries as one message carries."""
    part: list[Entry] = []
    size = 0
    for entry in entries:
        part.append(entry)
        size += _entry_size(entry)
        if _is_full(len(part), size):
            break
    return tuple(part)


def is_full(entries: Sequence[Entry]) -> bool:
    """True if `one_part` may have left some out: the sender is asked for the rest."""
    return _is_full(len(entries), sum(map(_entry_size, entries)))


def _is_full(count: int, size: int) -> bool:
    return count >= ENTRIES_A_MESSAGE or size >= LEDGER_BYTES


def _entry_size(entry: Entry) -> int:
    return len(entry.model_dump_json())


def fitting(sizes: Mapping[str, int], room: int) -> set[str]:
    """Chooses the names of the blobs that fit into one message: the smallest ones, at most `room` bytes together."""
    chosen: set[str] = set()
    for size, name in sorted((size, name) for name, size in sizes.items()):
        if size <= room and len(chosen) < MAX_BLOBS:
            chosen.add(name)
            room -= size
    return chosen


def require_run_keys(study: Study, run: str, keys: Sequence[KeyCertificate]) -> None:
    """Raises `MessageInvalid` unless each key is for this run and suite and signed by its aggregator."""
    wanted = study.draft.aggregation.kem
    for aggregator, key in zip(study.aggregators, keys, strict=True):
        if (key.study, key.run) != (study.study_hash, run):
            raise MessageInvalid(f"the key of aggregator {aggregator.name} is for another run")
        if kem_of_public(bytes.fromhex(key.public_key)).name != wanted:
            raise MessageInvalid(f"the key of aggregator {aggregator.name} is not of the study's kem, {wanted}")
        key.verify(aggregator.identity)


def start_hash(state_hash: str, tag_key: str | None) -> str:
    """Digest of a round's start for the context of shares: it covers all that must be equal for every site.

    That is the vector, and the tag key if there are tags. A coordinator that gave one site another tag key could read
    values of this site's vector from the sum of tags.

    Args:
        state_hash: SHA-256 of the vector, in hex.
        tag_key: 32 bytes in hex.
    """
    if tag_key is None:
        return state_hash
    return hashlib.sha256(canonical("confide/start/1", state_hash, bytes.fromhex(tag_key))).hexdigest()


def require_tag_key(study: Study, tag_key: str | None) -> bytes | None:
    """Returns a round's tag key, None without tags. Raises `MessageInvalid` if it is missing or unexpected."""
    if (tag_key is None) is study.draft.aggregation.verify_total:
        raise MessageInvalid(f"study {study.name} has {'' if tag_key is None else 'no '}tags; the plan says otherwise")
    return None if tag_key is None else bytes.fromhex(tag_key)


def _open(body: bytes, identity: str) -> "_Signed":
    """Returns the signed envelope in a body after checking its size and signature."""
    if len(body) > MAX_BODY:
        raise MessageInvalid(f"message of {len(body)} bytes is over the limit")
    try:
        outer = _Signed.model_validate_json(body)
        public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(identity))
        public.verify(bytes.fromhex(outer.signature), _signed_bytes(outer.kind, outer.message, outer.blobs))
    except (ValidationError, InvalidSignature, ValueError) as err:
        raise MessageInvalid("message is malformed or not signed by the expected identity") from err
    return outer


def _read(outer: "_Signed", models: Sequence[type[M]]) -> M:
    """Parses the message in an envelope with the model of its kind."""
    for model in models:
        if model.kind == outer.kind:
            try:
                return model.model_validate_json(outer.message)
            except ValidationError as err:
                places = [".".join(map(str, problem["loc"])) for problem in err.errors()]
                raise MessageInvalid(f"{outer.kind} message: bad fields {places}") from err
    raise MessageInvalid(f"unexpected {outer.kind} message, expected {[model.kind for model in models]}")


def _signed_bytes(kind: str, text: str, digests: Mapping[str, str]) -> bytes:
    listed = "".join(f"{name}={digest};" for name, digest in sorted(digests.items()))
    return f"confide/message/1|{kind}|{len(text)}|{text}|{listed}".encode()
