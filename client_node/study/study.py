"""The immutable study that sites approve: the operator's draft, with the keys, hashes and sizes that it needs.

A `Study` has one canonical form; its hash is the SHA-256 of that form. The participants' keys are part of it: who
approves the hash has confirmed the participants, and a coordinator cannot add parties later.
"""

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import pydantic
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.x509 import InvalidVersion, load_pem_x509_certificates
from pydantic import AfterValidator, BaseModel, Field, model_validator

from ...models.records import RecordSchema
from ...models.strict import Digest, Name, StrictModel, contradictions, rule
from ...mpc.sharing import ShareContext
from ...mpc.sharing.sketch import ROWS, largest_bound
from ...privacy.mechanism.projection import norm_bound
from ..errors import MessageInvalid, StudyInvalid, StudyOutdated
from .state_format import StateFormat
from .terms import NUM_AGGREGATORS, StudyDraft, load_draft
from .toml import MAX_BYTES, parse_json, raise_problems

_SIGNATURE_CONTEXT = b"confide study v1\0"
TAG_COUNT = 3  # a changed total of 32 bits passes with probability 2**-96
_LARGEST_COUNT = 2.0**24  # people in a bin, noise included: leaves 19 bits a tag
# Bits, scale: of sums in which every unit counts once; holds 2**43 people, rounding costs 6e-6 of the noise.
_CLOSING_RING: tuple[Literal[64], int] = (64, 20)


def _is_address(value: str) -> str:
    host, _, port = value.rpartition(":")
    is_host = re.fullmatch(r"[A-Za-z0-9._-]{1,253}|\[[0-9a-fA-F:.]{2,45}\]", host)
    if not is_host or not re.fullmatch(r"[1-9][0-9]{0,4}", port) or int(port) > 65535:
        raise rule("HOST:PORT")
    return value


def _is_certificate(value: str) -> str:
    try:
        count = len(load_pem_x509_certificates(value.encode()))
    except (ValueError, InvalidVersion, UnsupportedAlgorithm):
        count = 0
    if count != 1:
        raise rule("one certificate in PEM form")
    return value


class _Marked(BaseModel):
    format: Literal[1, 2, 3]  # earlier versions made studies of these formats


def _is_older(data: bytes) -> bool:
    try:
        _Marked.model_validate_json(data[: MAX_BYTES + 1])
    except pydantic.ValidationError:
        return False
    return True


class Participant(StrictModel):
    """A site that trains."""

    name: Name
    identity: Digest  # Ed25519 public key


class AggregatorParty(StrictModel):
    """One of the three MPC parties; its place in the study's list is its aggregator_id."""

    name: Name
    identity: Digest  # Ed25519 public key
    address: Annotated[str, AfterValidator(_is_address)]  # where the other two parties reach it
    certificate: Annotated[str, Field(max_length=16_384), AfterValidator(_is_certificate)]  # PEM, pinned by the others


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedRound:
    """The plan of one round, which fixes every site's contribution; it follows from the study and the round's number.

    "update": a clipped sum of gradients over a Poisson sample of units, by which the state moves. "prototype": a sum
    of vectors of length 1, one a unit, that say how the backbone reads its records. "evaluation": a histogram of the
    final model's scores on held-out records, in which each unit counts once.
    """

    number: int
    purpose: Literal["update", "prototype", "evaluation"]
    dim: int  # length of the vector that is opened
    ring_bits: Literal[32, 64]
    scale_bits: int  # an entry counts in units of 2**-scale_bits
    clip_norm: float  # most that one unit moves a site's vector, L2
    sample_rate: float  # chance that a unit takes part
    noise_multiplier: float  # noise std / clip_norm, given the noise of `collusion` sites
    largest_total: float  # bound on an entry of the opened sum of honest sites
    steps: int = 1  # noised sums that a site adds up
    norm_bound: float | None = None  # an honest vector exceeds it once in 10**12; None: not checked
    verify_total: bool = False  # the total is checked against tags of the sites

    @property
    def rows(self) -> int:
        """Rows of the sketch for the norm check; 0 if norms are not checked."""
        return 0 if self.norm_bound is None else ROWS

    @property
    def tag_count(self) -> int:
        """Number of tags that come with every vector."""
        return TAG_COUNT if self.verify_total else 0

    @property
    def bound_units(self) -> int | None:
        """`norm_bound` in ring units, rounded up; None if norms are not checked."""
        return None if self.norm_bound is None else math.ceil(math.ldexp(self.norm_bound, self.scale_bits))

    @property
    def title(self) -> str:
        """Title of the round, for people."""
        return f"round {self.number}" if self.purpose == "update" else self.purpose


class Start(StrictModel):
    """The start of every run of a study, which follows from its terms and its backbone; each site makes it itself."""

    state: Digest  # SHA-256 of the trained vector in round 0, float32 little-endian
    head_size: int = Field(ge=0, le=2**31)  # leading entries of that vector that belong to the head


class Study(StrictModel):
    """All terms that a site approves: the draft, its parties' keys, and the hashes and sizes that belong to it."""

    format: Literal[4, 5] = 5  # format 4 states no start: it can be read, and no longer run
    draft: StudyDraft
    backbone_hash: Digest
    sites: Annotated[tuple[Participant, ...], Field(min_length=2, max_length=1000)]
    aggregators: Annotated[tuple[AggregatorParty, ...], Field(min_length=NUM_AGGREGATORS, max_length=NUM_AGGREGATORS)]
    coordinator: Digest  # Ed25519 public key
    created: date  # UTC
    scale_bits: int = Field(ge=1, le=62)  # a release counts in units of 2**-scale_bits
    ring_bits: Literal[32, 64]
    dim: int = Field(ge=1, le=2**31)  # length of the state
    start: Start | None = None

    @classmethod
    def from_draft(
        cls,
        draft: StudyDraft,
        *,
        backbone_hash: str,
        sites: Sequence[Participant],
        aggregators: Sequence[AggregatorParty],
        coordinator: str,
        created: date,
        dim: int,
        start: str,
        head_size: int,
        scale_bits: int = 24,
        ring_bits: Literal[32, 64] = 64,
    ) -> Self:
        """Makes the study of `draft`; the parties with their keys are given in the order of the draft's lists.

        Only the last part of the backbone's path is kept: the operator's folders stay private.

        Args:
            dim: length of the state.
            start: SHA-256 of the state in round 0, float32 little-endian, hexadecimal.
            head_size: leading entries of the state that belong to the head.

        Raises:
            StudyInvalid: the parties are not those that the draft names, or the terms do not fit together.
        """
        folder = draft.model.model_copy(update={"backbone": Path(draft.model.backbone).name or "backbone"})
        try:
            return cls(
                draft=draft.model_copy(update={"model": folder}),
                backbone_hash=backbone_hash,
                sites=tuple(sites),
                aggregators=tuple(aggregators),
                coordinator=coordinator,
                created=created,
                scale_bits=scale_bits,
                ring_bits=ring_bits,
                dim=dim,
                start=Start(state=start, head_size=head_size),
            )
        except pydantic.ValidationError as err:
            raise_problems(err, cls, error=StudyInvalid, source=f"study {draft.name}")

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Parses the canonical form of a study, at most 1 MiB.

        Raises:
            StudyInvalid: `data` is not one, or is another spelling of a valid study.
        """
        try:
            study = parse_json(data, cls, error=StudyInvalid, source="study")
        except StudyInvalid:
            if _is_older(data):
                problem = (
                    'made by an earlier version, which this one cannot run; "Upgrade" in docs/operator.md says how to '
                    "go on"
                )
                raise StudyInvalid("study", (problem,)) from None
            raise
        if study.canonical() != data:
            raise StudyInvalid("study", ("not in canonical form, so its hash would name another text",))
        return study

    def canonical(self) -> bytes:
        """Canonical form: JSON with sorted keys, no blanks, ASCII, shortest round-trip floats."""
        plain = self.model_dump(mode="json", by_alias=True, exclude={"start"} if self.format == 4 else None)
        return json.dumps(plain, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")

    @cached_property
    def study_hash(self) -> str:
        """SHA-256 of the canonical form, hexadecimal."""
        return hashlib.sha256(self.canonical()).hexdigest()  # 3 ms of 1,000 sites, and asked for at every message

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Copies the study; one with other terms has a hash of its own."""
        copied = super().model_copy(update=update, deep=deep)
        copied.__dict__.pop("study_hash", None)
        return copied

    @property
    def name(self) -> str:
        """The study's name; only the hash identifies it."""
        return self.draft.name

    @property
    def quorum(self) -> int:
        """Fewest sites whose sum may be opened: `StudyDraft.quorum`."""
        return self.draft.quorum

    @property
    def last_round(self) -> int:
        """Number of a run's last round: the last update, or what follows it, see `StudyDraft.closing`."""
        return self.draft.rounds.rounds + len(self.draft.closing)

    def require_start(self) -> Start:
        """Returns the stated start of this study's runs.

        Raises:
            StudyOutdated: the study is of format 4, which states none.
        """
        if self.start is None:
            raise StudyOutdated(
                f"study {self.name} was made by an earlier version and does not state its start: create it again from "
                "the same study.toml, have it approved, and start a new run"
            )
        return self.start

    def share_context(self, planned: PlannedRound, *, run: str, site: str, state: str) -> ShareContext:
        """Context that a site's shares are bound to, in a round that starts from a state of this SHA-256."""
        return ShareContext(
            study=self.study_hash,
            run=run,
            round=planned.number,
            state=state,
            site=site,
            dim=planned.dim,
            ring_bits=planned.ring_bits,
            scale_bits=planned.scale_bits,
            rows=planned.rows,
            tag_count=planned.tag_count,
        )

    def planned_round(self, number: int) -> PlannedRound:
        """Plans round `number`: updates first, from 1 on, then prototype and evaluation if the study has them.

        Raises:
            MessageInvalid: the study has no round of that number.
        """
        if not 1 <= number <= self.last_round:
            raise MessageInvalid(f"study {self.name} has rounds 1 to {self.last_round}, none of number {number}")
        privacy, verify_total = self.draft.privacy, self.draft.aggregation.verify_total
        if number <= self.draft.rounds.rounds:
            update = PlannedRound(
                number=number,
                purpose="update",
                dim=self.dim,
                ring_bits=self.ring_bits,
                scale_bits=self.scale_bits,
                clip_norm=privacy.sensitivity,
                sample_rate=privacy.sample_rate,
                noise_multiplier=privacy.noise_multiplier,
                steps=privacy.local_steps,
                verify_total=verify_total,
                largest_total=self.draft.largest_total,
            )
            return replace(update, norm_bound=self._norm_bound(update))
        purpose = self.draft.closing[number - self.draft.rounds.rounds - 1]
        dim, noise_multiplier = self._closing_terms(purpose)
        ring_bits, scale_bits = _CLOSING_RING
        return PlannedRound(
            number=number,
            purpose=purpose,
            dim=dim,
            ring_bits=ring_bits,
            scale_bits=scale_bits,
            clip_norm=1.0,  # a unit is one count in one bin, or one vector of length 1
            sample_rate=1.0,
            noise_multiplier=noise_multiplier,
            verify_total=verify_total,
            largest_total=_LARGEST_COUNT,
        )

    def last_update_before(self, number: int) -> int:
        """Number of the update whose state round `number` starts from; 0 is the start of a run."""
        return min(number - 1, self.draft.rounds.rounds)

    def closing_round(self, purpose: Literal["prototype", "evaluation"]) -> PlannedRound:
        """Plans the round of that purpose, which the study must have."""
        return self.planned_round(self.draft.rounds.rounds + 1 + self.draft.closing.index(purpose))

    def _closing_terms(self, purpose: Literal["prototype", "evaluation"]) -> tuple[int, float]:
        """(length of the vector, noise multiplier)."""
        if purpose == "evaluation":
            assert self.draft.evaluation is not None
            return 2 * self.draft.evaluation.bins, self.draft.evaluation.noise_multiplier
        assert self.draft.prototype is not None
        return self.draft.prototype.length, self.draft.prototype.noise_multiplier

    def state_format(self, planned: PlannedRound) -> StateFormat:
        """Format of the state that sites receive in a round; after the last update the exported one, bit for bit."""
        if planned.purpose != "update":
            return StateFormat(kind="float32", dim=self.dim)
        return self.draft.state_format(self.dim)

    def planned_topup(self, number: int, sites: int) -> PlannedRound:
        """Plans the top-up of round `number` for a sum over `sites` sites: like the update, but noise alone."""
        planned = self.planned_round(number)
        if planned.norm_bound is None:
            return planned
        noise_std = math.ldexp(self.topup_noise(planned, sites), -planned.scale_bits)
        return replace(planned, norm_bound=norm_bound(max_norm=0.0, noise_std=noise_std, dim=planned.dim))

    def topup_bound(self, number: int, sites: int) -> int:
        """Norm bound, in ring units, of the top-ups of a sum over `sites` sites; 0 if none are made or checked."""
        if sites >= self.draft.min_untopped:
            return 0
        return self.planned_topup(number, sites).bound_units or 0

    @property
    def longest_units(self) -> int | None:
        """Largest norm of an honest vector, in ring units, top-ups included; None if norms are not checked."""
        bound = self.planned_round(1).bound_units
        return None if bound is None else max(bound, self.topup_bound(1, self.quorum))  # fewest sites, most noise

    def largest_units(self, planned: PlannedRound) -> int:
        """Bound on every entry of a round's total, in ring units, if all its vectors have passed the norm check.

        A vector of twice its bound may pass the check. Every site may send such a vector, and such a top-up.
        """
        honest = math.ceil(math.ldexp(planned.largest_total, planned.scale_bits))
        most = (1 << (planned.ring_bits - 1)) - 1
        if planned.bound_units is None:
            return min(honest, most)
        passing = 2 * len(self.sites) * (planned.bound_units + self.topup_bound(planned.number, self.quorum))
        return min(max(honest, passing), most)

    def site_noise(self, planned: PlannedRound) -> int:
        """Std of one site's integer noise in a step of a round, in ring units."""
        from ...privacy.accounting import composition  # loads dp_accounting

        privacy = self.draft.privacy
        return composition.site_noise(
            noise_multiplier=planned.noise_multiplier,
            clip_norm=planned.clip_norm,
            cohort=len(self.sites),
            max_dropouts=privacy.spared_sites,
            collusion=privacy.collusion,
            scale_bits=planned.scale_bits,
            mode=privacy.mode,
        )

    def topup_noise(self, planned: PlannedRound, sites: int) -> int:
        """Std of the integer noise that each of `sites` sites adds to make up for the missing ones, in ring units."""
        from ...privacy.accounting import composition  # loads dp_accounting

        return composition.topup_noise(
            self.site_noise(planned),
            planned=len(self.sites),
            sites=sites,
            collusion=self.draft.privacy.collusion,
        )

    def _norm_bound(self, update: PlannedRound) -> float | None:
        if self.draft.max_norm is None:
            return None
        unit = 2.0**-update.scale_bits
        is_noised = update.noise_multiplier > 0  # a draft with a target has no noise before it is solved
        return norm_bound(
            max_norm=self.draft.max_norm + math.sqrt(update.dim) * unit / 2,  # half a unit an entry, by rounding
            noise_std=self.site_noise(update) * unit if is_noised else 0.0,
            dim=update.dim,
            steps=update.steps,
        )

    def site_names(self) -> tuple[str, ...]:
        """The planned cohort."""
        return tuple(site.name for site in self.sites)

    def identities(self) -> dict[str, str]:
        """Maps the name of each site and aggregator to its key; a node that is both has one."""
        return {site.name: site.identity for site in self.sites} | {
            party.name: party.identity for party in self.aggregators
        }

    def has_site(self, name: str, identity: str) -> bool:
        """True if a node of that name and key trains in the study."""
        return any((site.name, site.identity) == (name, identity) for site in self.sites)

    def has_aggregator(self, name: str, identity: str) -> bool:
        """True if a node of that name and key is one of the study's three aggregators."""
        return any((party.name, party.identity) == (name, identity) for party in self.aggregators)

    def record_schema(self) -> RecordSchema:
        """The public description of a record."""
        return self.draft.record_schema()

    def adapter_config(self) -> dict[str, Any]:
        """Arguments for `models.adapters.AdapterConfig`."""
        return self.draft.adapter_config()

    def facts(self) -> dict[str, dict[str, Any]]:
        """Lists everything that a person approves with the study, under headings."""
        draft = self.draft
        facts = draft.data.kind.facts(draft.data.terms)
        columns = facts.pop("columns")
        return {
            "Study": {
                "name": self.name,
                "description": draft.description or None,
                "created": self.created.isoformat(),
                "coordinator": self.coordinator,
                "backbone": self.backbone_hash,
                "linear layers": draft.model.frozen,
                "routed experts": draft.model.experts,
                "attention in segments": draft.model.segments and draft.model.segments.model_dump(),
            },
            "Data": {
                **facts,
                "unit": draft.data.unit,
                "records a unit": draft.data.max_records_per_unit,
                "columns": columns,
            },
            "Privacy": {**draft.privacy.model_dump(), "fewest sites in a sum": draft.fewest_told},
            "Adapter": {**draft.adapter.model_dump(), "trained numbers": self.dim},
            "Rounds": draft.rounds.model_dump(),
            "Optimizer": draft.optimizer.model_dump(),
            "Aggregation": {**draft.aggregation.model_dump(), "max_norm": draft.max_norm},
            **({"Prototype of the records": draft.prototype.model_dump()} if draft.prototype else {}),
            **({"Evaluation on held-out records": draft.evaluation.model_dump()} if draft.evaluation else {}),
            "Sites (name: identity key)": {site.name: site.identity for site in self.sites},
            "Aggregators (name: identity key, address)": {
                party.name: f"{party.identity}, {party.address}" for party in self.aggregators
            },
        }

    def sign(self, key: Ed25519PrivateKey) -> str:
        """The coordinator's signature, hexadecimal; `is_signed` checks it."""
        return key.sign(_SIGNATURE_CONTEXT + self.canonical()).hex()

    def is_signed(self, signature: str) -> bool:
        """True if the coordinator named in the study signed it."""
        try:
            public_key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(self.coordinator))
            public_key.verify(bytes.fromhex(signature), _SIGNATURE_CONTEXT + self.canonical())
        except (InvalidSignature, ValueError):
            return False
        return True

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        problems = [
            *self._start_problems(),
            *self._party_problems(),
            *self._ring_problems(),
            *self._noise_problems(),
            *self._rate_problems(),
        ]
        if problems:
            raise contradictions(problems)
        return self

    def _start_problems(self) -> list[str]:
        if self.start is None:
            return ["start is missing; a study of format 5 states it"] if self.format == 5 else []
        if self.format == 4:
            return ["start is there; a study of format 4 has none"]
        if self.start.head_size > self.dim:
            return [f"start.head_size is {self.start.head_size}; the state has {self.dim} numbers"]
        return []

    def _party_problems(self) -> list[str]:
        problems = []
        for kind, named, given in (
            ("sites", self.draft.participants.sites, self.sites),
            ("aggregators", self.draft.participants.aggregators, self.aggregators),
        ):
            if tuple(party.name for party in given) != named:
                got = [party.name for party in given]
                problems.append(f"draft.participants.{kind} is {list(named)}; got keys for {got}")
        for kind, values in {
            "sites: identity": [site.identity for site in self.sites],
            "aggregators: identity": [party.identity for party in self.aggregators],
            "aggregators: address": [party.address for party in self.aggregators],
            "aggregators: certificate": [party.certificate for party in self.aggregators],
        }.items():
            if len(set(values)) < len(values):
                problems.append(f"{kind} occurs twice; each party needs its own")
        # A site may also aggregate: then name and key must agree, and neither may stand for anybody else.
        pairs = {(site.name, site.identity) for site in self.sites}
        pairs |= {(party.name, party.identity) for party in self.aggregators}
        if len({name for name, _ in pairs}) < len(pairs) or len({identity for _, identity in pairs}) < len(pairs):
            problems.append("sites and aggregators: one name has two identities, or two names share one")
        if self.coordinator in {identity for _, identity in pairs}:
            problems.append("coordinator has the identity of a site or aggregator")
        return problems

    def _noise_problems(self) -> list[str]:
        privacy = self.draft.privacy
        if privacy.target_epsilon is None or privacy.noise_multiplier:
            return []
        return ["draft.privacy.noise_multiplier is missing; a study states the one that was solved for its target"]

    def _ring_problems(self) -> list[str]:
        largest = 2.0**self.scale_bits * self.draft.largest_total + len(self.sites)  # each may round up by a unit
        if largest >= 2.0 ** (self.ring_bits - 1):
            return [
                f"scale_bits is {self.scale_bits} with ring_bits {self.ring_bits}; a sum could reach {largest:.2g} and "
                "wrap: lower scale_bits, privacy.clip_norm or rounds.batch_units"
            ]
        bound = self.longest_units
        if bound is None or bound <= largest_bound(self.ring_bits):
            return []
        return [
            f"scale_bits is {self.scale_bits} with ring_bits {self.ring_bits}; a site's vector may be {bound:.2g} "
            f"units long, and at most {largest_bound(self.ring_bits):.2g} can be checked: take 64 bits, or lower "
            "scale_bits or aggregation.max_norm"
        ]

    def _rate_problems(self) -> list[str]:
        optimizer = self.draft.optimizer
        stated = ("lr", "head_lr") if self.draft.adapter.head == "pooled" else ("lr",)
        missing = [name for name in stated if getattr(optimizer, name) is None]
        return [f"draft.optimizer.{name} is missing; a study states the rate that was chosen" for name in missing]


__all__ = ["AggregatorParty", "Participant", "PlannedRound", "Study", "StudyDraft", "load_draft"]
