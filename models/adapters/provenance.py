"""The origin of an adapter, for programs: the file `confide.json` beside it. People read the card.

A claim of whoever wrote the directory. It is checked for form, not for truth: what a study spent is proved by its
signed budget report.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

import pydantic
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    SerializerFunctionWrapHandler,
    StringConstraints,
    model_serializer,
    model_validator,
)

from ..errors import InvalidRelease
from ..rounding import figures_up, rounded_up
from .card import ModelCard, privacy_text

FILE = "confide.json"
MAX_BYTES = 1 << 20
MAX_SOURCES = 256

Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]


# JSON has no number for it: what a site spent is infinite once it has released something without privacy.
_INFINITE = (
    BeforeValidator(lambda value: math.inf if value == "inf" else value),
    PlainSerializer(lambda value: "inf" if value == math.inf else value, when_used="json"),
)


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
    epsilon: Annotated[float | None, Field(ge=0, allow_inf_nan=True), *_INFINITE]
    delta: float | None = Field(ge=0, le=1)
    collusion: int = Field(ge=0)
    audit: str = Field(max_length=4000)
    weight: float = 1.0  # what its products are multiplied by
    segments: tuple[int, int] | None = None  # window and top of the attention that it was trained with; None: full

    @model_serializer(mode="wrap")
    def _without_full_attention(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leaves out that attention is full: files from before attention in segments say nothing of it."""
        plain: dict[str, Any] = serialize(self)
        return {name: value for name, value in plain.items() if (name, value) != ("segments", None)}

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
            segments=None if card.segments is None else (card.segments.window, card.segments.top),
        )

    @property
    def privacy(self) -> str:
        """Its guarantee in one line."""
        return privacy_text(
            mode=self.mode, epsilon=self.epsilon, delta=self.delta, unit=self.unit, collusion=self.collusion
        )


class Compression(_Fact):
    """A cut of an adapter, or of a part of it before others were added, to a smaller rank, and the loss by it."""

    rank: int = Field(ge=1)
    relative_error: float = Field(ge=0)  # in [0, 1], Frobenius, of all products together


class Carried(_Fact):
    """A move of an adapter to a smaller backbone that was made of its own."""

    of: Digest  # hash of the backbone that it was for
    learned: str = Field(max_length=200)  # the public tokens on which it was trained again, for people


class Provenance(_Fact):
    """All that made an adapter, or a model with one added into its weights."""

    format: Literal[1] = 1
    backbone_hash: Digest
    sources: Annotated[tuple[Source, ...], Field(min_length=1, max_length=MAX_SOURCES)]
    backbone_sources: Annotated[tuple[Source, ...], Field(max_length=MAX_SOURCES)] = ()  # in the backbone's weights
    compressions: Annotated[tuple[Compression, ...], Field(max_length=MAX_SOURCES)] = ()
    carried: Annotated[tuple[Carried, ...], Field(max_length=MAX_SOURCES)] = ()

    @model_serializer(mode="wrap")
    def _without_moves(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leaves out that nothing was carried over: files from before that say nothing of it."""
        plain: dict[str, Any] = serialize(self)
        return plain if self.carried else {name: value for name, value in plain.items() if name != "carried"}

    @classmethod
    def of(cls, card: ModelCard, backbone: Path) -> Self:
        """The provenance of what one study has learned on the backbone in a directory.

        Raises:
            InvalidRelease: `confide.json` lies there and cannot be read.
        """
        earlier: tuple[Source, ...] = ()
        if (backbone / FILE).exists():
            found = read_provenance(backbone)
            earlier = (*found.backbone_sources, *found.sources)
        return cls(backbone_hash=card.backbone_hash, sources=(Source.of(card),), backbone_sources=earlier)

    def earlier_studies(self) -> str:
        """Lists the earlier studies in the backbone, as a Markdown section; "" if it holds nothing of any."""
        if not self.backbone_sources:
            return ""
        lines = "\n".join(f"* {each.study} `{each.study_hash[:12]}`: {each.privacy}" for each in self.backbone_sources)
        return (
            "## Earlier studies\n"
            "The backbone's weights hold what these have learned, and so does all that stands on it:\n"
            f"{lines}\n\n{composition((*self.backbone_sources, *self.sources))}\n"
        )


def composition(sources: Sequence[Source]) -> str:
    """Adds up the guarantees of several studies for one person, unit by unit; a study counts once."""
    distinct = _worst(sources)
    lines = [
        "Made of what these studies released and of nothing else, so all of it is post-processing: whoever took part "
        "in one of them keeps that study's guarantee."
    ]
    if bare := [source.study for source in distinct if source.mode == "none"]:
        lines.append(f"**Nothing bounds what it tells about the records of {', '.join(bare)}.**")
    lines += [
        f"For one {each.unit} who took part in several, epsilons and deltas add up (basic composition): at most "
        f"epsilon {rounded_up(each.epsilon, 3)} at delta {figures_up(each.delta)} in all {each.studies}."
        for each in added_up(sources)
        if each.studies > 1
    ]
    return "\n".join(lines)


def _worst(sources: Sequence[Source]) -> tuple[Source, ...]:
    """Of each study the source that states least: what a later run of it spent includes what an earlier one did."""
    found: dict[str, Source] = {}
    for source in sources:
        other = found.setdefault(source.study_hash, source)
        if _badness(source) > _badness(other):
            found[source.study_hash] = source
    return tuple(found.values())


def _badness(source: Source) -> tuple[float, float]:
    return (source.epsilon, source.delta) if source.epsilon is not None and source.delta is not None else (math.inf, 2)


class Spent(NamedTuple):
    """The guarantee for one person who took part in all of several studies, by basic composition."""

    unit: str
    studies: int  # that protect such a unit; those without privacy are none of them
    epsilon: float
    delta: float


def added_up(sources: Sequence[Source]) -> list[Spent]:
    """Adds up the guarantees of several studies, unit by unit; of several runs of a study the worst counts."""
    distinct = _worst(sources)
    found = []
    for unit in sorted({source.unit for source in distinct}):
        bound = [source for source in distinct if source.unit == unit and source.mode != "none"]
        if bound:
            epsilon, delta = (sum(getattr(each, name) for each in bound) for name in ("epsilon", "delta"))
            found.append(Spent(unit, len(bound), epsilon, delta))
    return found


def write_provenance(provenance: Provenance, directory: Path) -> None:
    """Writes `confide.json`."""
    (directory / FILE).write_text(provenance.model_dump_json(indent=1) + "\n", encoding="utf-8")


def read_provenance(directory: Path) -> Provenance:
    """Reads `confide.json`. Raises `InvalidRelease` if it is missing, too large or of another form."""
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
    """Describes the first problem by its place and kind; never by the value."""
    first = err.errors(include_url=False, include_input=False, include_context=False)[0]
    return f"{'.'.join(map(str, first['loc'])) or 'the file'}: {first['type'].replace('_', ' ')}"
