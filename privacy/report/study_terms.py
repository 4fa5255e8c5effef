"""The terms of a study that a report's figures rest on, read from the study's own text.

A report carries each study as the text whose SHA-256 is its hash, the hash that sites charge under. So nobody states a
study's noise, rounds or sites beside it: whoever reads a report takes them from the text. This module reads the fields
that accounting needs and ignores all others; `docs/formats-report.md` lists them, with what follows from each.
"""

import hashlib
from collections.abc import Collection, Iterator
from dataclasses import asdict
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..accounting import Mode, Release, site_noise
from ..errors import InvalidPrivacyParameter, ReportInvalid
from ..ledger import canonical
from ..ledger.chain import Hex64
from ..ledger.charges import Charge
from ..ledger.tally import Purpose
from ..mechanism import adaptive_clipping
from .schema import MAX_SITES, AuditFacts, Name, StudyText

FORMATS = (4, 5)  # of studies' texts that are read
CLOSING_SCALE = 20  # scale_bits of what follows the last update
AUDIT_TOLERANCE = 1e-3  # relative: an audit's length of a release may lack an adaptive clip's entry

_Real = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]
_Rounds = Annotated[int, Field(ge=1, le=10**6)]
_Few = Annotated[int, Field(ge=0, le=MAX_SITES)]


class _Terms(BaseModel):
    """Unknown keys are left alone: a study has many that no figure of a report depends on."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")


class _Party(_Terms):
    name: Name
    identity: Hex64


class _Data(_Terms):
    unit: Name


class _Privacy(_Terms):
    mode: Mode
    noise_multiplier: _Real
    clip_norm: _Real
    clipping: Literal["fixed", "adaptive"]
    sample_rate: _Real
    delta: _Real
    collusion: _Few
    max_dropouts: _Few
    dropouts: Literal["over-provision", "top-up"]
    local_steps: _Rounds


class _Schedule(_Terms):
    rounds: _Rounds
    min_sites: _Few


class _Evaluation(_Terms):
    bins: Annotated[int, Field(ge=1, le=10**6)]
    noise_multiplier: _Real


class _Prototype(_Terms):
    length: Annotated[int, Field(ge=1, le=10**6)]
    noise_multiplier: _Real


class _Draft(_Terms):
    name: Name
    data: _Data
    privacy: _Privacy
    rounds: _Schedule
    prototype: _Prototype | None = None
    evaluation: _Evaluation | None

    @property
    def purposes(self) -> tuple[Purpose, ...]:
        """Purposes of the rounds after the last update, in their order."""
        asked: dict[Purpose, object] = {"prototype": self.prototype, "evaluation": self.evaluation}
        return tuple(purpose for purpose, terms in asked.items() if terms is not None)


class StudyTerms(_Terms):
    """The terms of one study that accounting needs, and what sites are charged under them."""

    format: Literal[4, 5]
    draft: _Draft
    sites: Annotated[tuple[_Party, ...], Field(min_length=1, max_length=MAX_SITES, strict=False)]
    scale_bits: Annotated[int, Field(ge=0, le=62)]
    dim: Annotated[int, Field(ge=1, le=2**48)]

    @property
    def quorum(self) -> int:
        """Fewest sites whose sum may be opened."""
        privacy, planned = self.draft.privacy, len(self.sites)
        if privacy.mode == "none":
            return planned
        if privacy.mode == "local":
            return self.draft.rounds.min_sites
        return max(self.draft.rounds.min_sites, planned - privacy.max_dropouts)

    @cached_property
    def cohort(self) -> tuple[str, ...]:
        """The planned sites, sorted."""
        return tuple(sorted(party.name for party in self.sites))

    @cached_property
    def keys(self) -> dict[str, str]:
        """The key of each site's ledger, by the site's name."""
        return {party.name: party.identity for party in self.sites}

    def release(self, purpose: Purpose) -> Release:
        """The release that a site reserves for a round of that purpose.

        Raises:
            InvalidPrivacyParameter: no site can have charged one: the study has no such round, or impossible terms.
        """
        privacy = self.draft.privacy
        if purpose == "update":
            clip = privacy.clip_norm if privacy.clipping == "fixed" else adaptive_clipping.SENSITIVITY
            return self._release(
                privacy.noise_multiplier, clip, self.scale_bits, self.dim, privacy.sample_rate, privacy.local_steps
            )
        if purpose not in self.draft.purposes:
            raise InvalidPrivacyParameter(f"the study has no {purpose}")
        terms = self.draft.evaluation if purpose == "evaluation" else self.draft.prototype
        assert terms is not None
        dim = 2 * terms.bins if isinstance(terms, _Evaluation) else terms.length
        return self._release(terms.noise_multiplier, 1.0, CLOSING_SCALE, dim, 1.0, 1)

    def contradictions(self, charge: Charge, site: str, keys: Collection[str]) -> Iterator[str]:
        """Lists why `charge`, by the site of that name and ledger keys, is no round of this study; nothing if it is."""
        rounds = self.draft.rounds.rounds
        closing = dict(enumerate(self.draft.purposes, start=rounds + 1))
        if self.keys.get(site) not in keys:
            yield "is charged by a site or key that its text does not name"
        if charge.purpose != ("update" if 1 <= charge.round <= rounds else closing.get(charge.round)):
            yield f"has no {charge.purpose} in round {charge.round}: it has {rounds} rounds of training"
            return
        if charge.cohort != self.cohort:
            yield f"is charged for the sites {', '.join(charge.cohort)}, not those of its text"
        if charge.unit != self.draft.data.unit:
            yield f"protects each {self.draft.data.unit!r}, and is charged for each {charge.unit!r}"
        try:
            release = self._update if charge.purpose == "update" else self.release(charge.purpose)
        except InvalidPrivacyParameter as err:
            yield f"cannot be charged as its text is: {err}"
            return
        if charge.release == release:
            return
        expected = asdict(release)
        for name, value in asdict(charge.release).items():
            if value != expected[name]:
                yield f"is charged with {name} {value}; its text gives {expected[name]}"

    def audit_contradictions(self, facts: AuditFacts) -> Iterator[str]:
        """Lists why the audited step is not one of this study's; nothing if it is."""
        privacy = self.draft.privacy
        if (facts.delta, facts.colluding) != (privacy.delta, privacy.collusion):
            yield f"is at delta {facts.delta:g} with {facts.colluding} colluding; the study's text has other terms"
        if privacy.mode == "none":
            yield "is of a study that its text leaves without noise"
            return
        sites = len(self.sites) if privacy.dropouts == "top-up" else self.quorum
        try:
            step = self._release(privacy.noise_multiplier, privacy.clip_norm, self.scale_bits, self.dim, 1.0, 1)
            expected = step.over(sites).noise_multiplier(privacy.collusion)
        except InvalidPrivacyParameter as err:
            yield f"cannot be of its study as the text is: {err}"
            return
        if abs(facts.noise_multiplier - expected) > AUDIT_TOLERANCE * expected:
            yield f"is of noise multiplier {facts.noise_multiplier:.4g}; the study's text gives {expected:.4g}"

    @cached_property
    def _update(self) -> Release:
        return self.release("update")

    def _release(
        self, noise_multiplier: float, clip: float, scale_bits: int, dim: int, rate: float, steps: int
    ) -> Release:
        privacy, planned = self.draft.privacy, len(self.sites)
        is_topped = privacy.dropouts == "top-up"
        noise = site_noise(
            noise_multiplier=noise_multiplier,
            clip_norm=clip,
            cohort=planned,
            max_dropouts=0 if is_topped else privacy.max_dropouts,
            collusion=privacy.collusion,
            scale_bits=scale_bits,
            mode=privacy.mode,
        )
        return Release(
            mode=privacy.mode,
            site_noise_int=noise,
            scale_bits=scale_bits,
            clip_norm=clip,
            dim=dim,
            sample_rate=rate,
            sites=self.quorum,
            planned_sites=planned if is_topped else 0,
            noise_collusion=privacy.collusion if is_topped else 0,
            steps=steps,
        )


def hash_of(text: str) -> str:
    """The hash of the study whose text this is."""
    return hashlib.sha256(text.encode("ascii", "replace")).hexdigest()


def is_other_format(text: str) -> bool:
    """True if the text is of a study of another format, which this version cannot read."""
    try:
        value = canonical.decode(text)
    except ValueError:
        return False
    return isinstance(value, dict) and type(value.get("format")) is int and value["format"] not in FORMATS


def read(text: str) -> StudyTerms:
    """Reads a study's terms from its text.

    Raises:
        ReportInvalid: the text lacks a field that is needed, or has an impossible one; names it.
    """
    try:
        value: Any = canonical.decode(text)
    except ValueError as err:
        raise ReportInvalid(f"its text is not JSON: {err}") from err
    try:
        return StudyTerms.model_validate(value)
    except ValidationError as err:
        problem = err.errors(include_input=False, include_url=False)[0]
        raise ReportInvalid(f"its text: {'.'.join(map(str, problem['loc']))}: {problem['msg']}") from err


def known(studies: list[StudyText]) -> dict[str, StudyTerms]:
    """The terms of those studies whose text is here, has the hash that it stands under, and can be read."""
    found = {}
    for study in studies:
        if study.text is not None and hash_of(study.text) == study.hash:
            try:
                found[study.hash] = read(study.text)
            except ReportInvalid:
                continue  # verification says why
    return found
