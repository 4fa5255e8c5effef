"""Where an adapter comes from, for programs: the file `confide.json` beside it. People read the card.

A claim of whoever wrote the directory. It is checked for form, not for truth: what a study spent is proved by its
signed budget report.
"""

from pathlib import Path
from typing import Annotated, Literal, Self

import pydantic
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from .card import ModelCard, privacy_text
from .errors import InvalidRelease

FILE = "confide.json"
MAX_BYTES = 1 << 20

Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]


class _Fact(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


class Source(_Fact):
    """One study that has its part in an adapter."""

    study: Name
    study_hash: Digest
    sites: Annotated[tuple[Name, ...], Field(max_length=1000)]
    rounds: int = Field(ge=0)
    unit: Name
    mode: Literal["distributed", "local", "none"]
    epsilon: float | None = Field(ge=0)
    delta: float | None = Field(ge=0, le=1)
    collusion: int = Field(ge=0)
    audit: str = Field(max_length=4000)
    weight: float = 1.0  # what its products are multiplied by

    @model_validator(mode="after")
    def _states_a_guarantee_or_none(self) -> Self:
        if (self.epsilon is None or self.delta is None) != (self.mode == "none"):
            raise ValueError("mode and epsilon contradict each other")
        return self

    @classmethod
    def of(cls, card: ModelCard) -> Self:
        """The facts of a card that others need."""
        return cls(
            study=card.study,
            study_hash=card.study_hash,
            sites=card.sites,
            rounds=card.rounds,
            unit=card.unit,
            mode=card.mode,
            epsilon=card.epsilon,
            delta=card.delta,
            collusion=card.collusion,
            audit=card.audit[:4000],
        )

    @property
    def privacy(self) -> str:
        """Its guarantee in one line."""
        return privacy_text(
            mode=self.mode, epsilon=self.epsilon, delta=self.delta, unit=self.unit, collusion=self.collusion
        )


class Compression(_Fact):
    """That an adapter, or a part of it before others were added, was cut to a smaller rank, and what was lost."""

    rank: int = Field(ge=1)
    relative_error: float = Field(ge=0)  # in [0, 1], Frobenius, of all products together


class Provenance(_Fact):
    """All that made an adapter."""

    format: Literal[1] = 1
    backbone_hash: Digest
    sources: Annotated[tuple[Source, ...], Field(min_length=1, max_length=256)]
    compressions: Annotated[tuple[Compression, ...], Field(max_length=256)] = ()


def write_provenance(provenance: Provenance, directory: Path) -> None:
    """Writes `confide.json`."""
    (directory / FILE).write_text(provenance.model_dump_json(indent=1) + "\n", encoding="utf-8")


def read_provenance(directory: Path) -> Provenance:
    """What `confide.json` says. Raises `InvalidRelease` if it is missing, too large or of another form."""
    path = directory / FILE
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InvalidRelease(f"{path} is larger than {MAX_BYTES} bytes")
        return Provenance.model_validate_json(path.read_bytes())
    except OSError as err:
        raise InvalidRelease(
            f"{path} cannot be read ({err.strerror}); only what `coordinator adapter` wrote can be combined"
        ) from err
    except pydantic.ValidationError as err:
        raise InvalidRelease(f"{path}: {described(err)}") from None


def described(err: pydantic.ValidationError) -> str:
    """Where and of what kind the first problem is; never the value."""
    first = err.errors(include_url=False, include_input=False, include_context=False)[0]
    return f"{'.'.join(map(str, first['loc'])) or 'the file'}: {first['type'].replace('_', ' ')}"
