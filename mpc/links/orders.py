"""Messages between an aggregator and its party process: a configuration, orders, totals.

The checks run at both ends, in the constructors.
"""

from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path

from ..errors import InvalidField
from ..fields import (
    MAX_COHORT,
    MAX_DIM,
    MAX_ROUND,
    MAX_ROWS,
    MAX_SHARDS,
    MAX_TAGS,
    NUM_AGGREGATORS,
    canonical,
    hex_64,
    text,
    whole,
)
from ..sharing import Ring, ShareContext
from ..sharing.hpke import kem_of_private
from ..sharing.shares import set_name
from ..sharing.sketch import MIN_ROWS, largest_bound
from .journal import RoundId

_MAX_PEM = 16_384


@dataclass(frozen=True, kw_only=True, slots=True)
class PartyConfig:
    """A party's identity, the addresses of the other two, and the certificates by which it knows them."""

    aggregator_id: int  # 0, 1 or 2
    addresses: tuple[str, str, str]  # "host:port" of each party's own link port
    certificate: Path  # PEM, this party's
    key: Path | bytes = field(repr=False)  # PEM, its private key: a file readable by its owner only, or what it holds
    pins: tuple[str, str, str]  # the three certificates as PEM text: nothing else is trusted
    journal: Path
    timeout_s: float  # silence of another party that ends an order, unless the order says another; in (0, 3600]
    listen: str | None = None  # "host:port" to listen on, where it is not the public address
    shards: int | None = None  # processes that open, add and sketch a large round; None: one a core, 8 at most

    def __post_init__(self) -> None:
        whole("aggregator_id", self.aggregator_id, 0, NUM_AGGREGATORS - 1)
        for name in ("addresses", "pins"):
            values = getattr(self, name)
            if not isinstance(values, tuple) or len(values) != NUM_AGGREGATORS:
                raise InvalidField(f"{name} must name {NUM_AGGREGATORS} parties")
        for address in (*self.addresses, *([] if self.listen is None else [self.listen])):
            host_and_port(address)
        for pin in self.pins:
            if not isinstance(pin, str) or len(pin) > _MAX_PEM:
                raise InvalidField(f"a pinned certificate must be PEM text of at most {_MAX_PEM} characters")
        for name in ("certificate", "journal"):
            if not isinstance(getattr(self, name), Path):
                raise InvalidField(f"{name} must be a path")
        if not isinstance(self.key, Path) and not (isinstance(self.key, bytes) and 0 < len(self.key) <= _MAX_PEM):
            raise InvalidField(f"key must be a path, or PEM of at most {_MAX_PEM} bytes")
        if self.shards is not None:
            whole("shards", self.shards, 1, MAX_SHARDS)
        _require_patience(self.timeout_s)


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """One attempt to aggregate one round. The parties' orders must be equal, but for `private_key` and `timeout_s`."""

    study: str
    run: str
    round: int
    state: str  # SHA-256 in hex of the vector that the round starts from: updates of another do not open
    attempt: int
    cohort: tuple[tuple[str, str], ...]  # (site, hex of its Ed25519 public key), from this aggregator's own study
    dim: int
    ring_bits: int
    scale_bits: int
    min_sites: int  # at least 2: the sum over one site is its update
    min_untopped: int  # fewest sites that are summed as they are; of fewer, each must have sent its top-up for that set
    rows: int = 0  # of the norm check's sketch; 0: norms are not checked
    norm_bound: int = 0  # largest L2 norm of an update, ring units; with rows only
    topup_bound: int = 0  # of a top-up; 0 where the cohort needs none
    tag_count: int = 0  # tags that come with every vector, and with the total
    private_key: bytes = field(repr=False)  # raw HPKE key, opens what is sealed to this aggregator
    timeout_s: float | None = None  # silence of another party that ends this order; None: as the party is configured

    def __post_init__(self) -> None:
        text("study", self.study)
        text("run", self.run)
        whole("round", self.round, 0, MAX_ROUND)
        hex_64("state", self.state)
        whole("attempt", self.attempt, 0, 2**31 - 1)
        whole("dim", self.dim, 1, MAX_DIM)
        whole("min_sites", self.min_sites, 2, MAX_COHORT)
        whole("min_untopped", self.min_untopped, self.min_sites, MAX_COHORT)
        whole("rows", self.rows, MIN_ROWS if self.rows else 0, MAX_ROWS)
        whole("tag_count", self.tag_count, 0, MAX_TAGS)
        most = largest_bound(self.ring_bits) if self.rows else 0
        whole("norm_bound", self.norm_bound, int(self.rows > 0), most)
        whole("topup_bound", self.topup_bound, 0, most)
        kem_of_private(self.private_key)
        if self.timeout_s is not None:
            _require_patience(self.timeout_s)
        Ring(self.ring_bits, self.scale_bits)
        if not isinstance(self.cohort, tuple) or len(self.cohort) > MAX_COHORT:
            raise InvalidField(f"cohort must be a tuple of at most {MAX_COHORT} sites")
        for member in self.cohort:
            if not isinstance(member, tuple) or len(member) != 2:
                raise InvalidField("cohort members are pairs of name and identity")
            text("site", member[0])
            hex_64(f"the identity of site {member[0]}", member[1])
        for place, what in enumerate(("site", "identity")):  # one organisation under two names would count twice
            if len({member[place] for member in self.cohort}) != len(self.cohort):
                raise InvalidField(f"a {what} stands twice in the cohort")

    @property
    def ring(self) -> Ring:
        """The ring of the total."""
        return Ring(self.ring_bits, self.scale_bits)

    @property
    def round_id(self) -> RoundId:
        """The round that a set of sites is bound to."""
        return RoundId(self.study, self.run, self.round)

    def context(self, site: str) -> ShareContext:
        """The context that the shares of one site are bound to."""
        return ShareContext(
            study=self.study,
            run=self.run,
            round=self.round,
            state=self.state,
            site=site,
            dim=self.dim,
            ring_bits=self.ring_bits,
            scale_bits=self.scale_bits,
            rows=self.rows,
            tag_count=self.tag_count,
        )

    def topup_context(self, site: str) -> ShareContext:
        """The context that the shares of one site's top-up are bound to: that of its update, and this very cohort."""
        return replace(self.context(site), topup_for=set_name(name for name, _ in self.cohort))

    def digest(self) -> bytes:
        """SHA-256 over all that the three parties' orders must have in common."""
        place = (self.study, self.run, self.round, self.state, self.attempt)
        shape = (self.dim, self.ring_bits, self.scale_bits, self.rows, self.tag_count)
        common = (self.norm_bound, self.topup_bound, self.min_sites, self.min_untopped, len(self.cohort))
        members = (word for member in self.cohort for word in member)
        return sha256(canonical("confide/mpc/order/4", *place, *shape, *common, *members)).digest()


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenedTotal:
    """The total over `kept` as one party has it, with the party's share of the tags, which no party may know.

    Whoever knows total and tags can put another pair in their place that fits as well: twice the total with twice the
    tags, say. So tags are opened by the coordinator alone.
    """

    kept: tuple[str, ...]  # sites in the sum, in cohort order
    rejected: tuple[str, ...] = ()  # sites that are not in it because their vectors were too long
    set_digest: bytes  # equal at all three parties, as is `total`; else one of them has lied
    total: bytes = field(repr=False)  # dim little-endian ring elements
    tag_share: bytes = field(default=b"", repr=False)  # tag_count little-endian words

    @property
    def total_digest(self) -> bytes:
        """SHA-256 of the total's bytes, which the aggregator signs."""
        return sha256(self.total).digest()


def _require_patience(timeout_s: object) -> None:
    if not isinstance(timeout_s, (int, float)) or not 0 < timeout_s <= 3600:
        raise InvalidField(f"timeout_s must be in (0, 3600], got {timeout_s!r}")


def host_and_port(address: object) -> tuple[str, int]:
    """Splits "host:port"; an IPv6 host stands in brackets.

    Raises:
        InvalidField: it is no such text.
    """
    host, _, port = text("address", address).rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise InvalidField(f"an address is host:port, got {address!r}")
    return host, int(port)
