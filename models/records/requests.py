"""Requests to a trained model: how one becomes token ids, said so that nothing of this package is needed to do it.

A study's own reader makes rows of whole tables with their targets. Whoever deploys a model elsewhere needs less: what
the model is shown of one request, and what ends its answer. Every kind of record that can say so gives a `Request`, of
plain values alone; `models.deployment` reads it.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

TRUE = ("1", "t", "true", "y", "yes")
FALSE = ("0", "f", "false", "n", "no")
MISSING = ("", "?", "n/a", "na", "nan", "none", "null")  # in any case; a category of such a name is a value
NUMBER = r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$"


@dataclass(frozen=True, slots=True)
class FieldWords:
    """A field of a record, and the token ids of its values."""

    name: str
    kind: Literal["number", "category", "flag"]
    ids: tuple[int, ...]  # missing, then one for each bin or value; of a flag the one word that says it is set
    cuts: tuple[float, ...] = ()  # of a number: inner borders of its bins; a value on one is in the bin above
    values: tuple[str, ...] = ()  # of a category


@dataclass(frozen=True, slots=True)
class FieldsShown:
    """A record of values, field by field in this order; of a history one visit after another."""

    fields: tuple[FieldWords, ...]
    end: int  # stands behind each visit of a history, and for a record of which nothing is told
    visits: int = 1  # most of one record: the last ones
    order: str | None = None  # of a history: the field by which visits are sorted


@dataclass(frozen=True, slots=True)
class Words:
    """Words that stand in every prompt."""

    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class CellShown:
    """A cell of a request, tokenized by itself as plain text."""

    column: str
    before: str = ""  # belongs to the cell
    behind: str = ""
    values: tuple[str, ...] = ()  # that it may have; none: any
    is_begun: bool = False  # a text that goes on where it ends, so that blanks at its end count


@dataclass(frozen=True, slots=True)
class PictureShown:
    """A picture, of which a token is shown for every square."""

    column: str
    size: tuple[int, int]  # height and width, in pixels
    cell: tuple[int, int]  # of what is read by itself


@dataclass(frozen=True, slots=True)
class TextShown:
    """A prompt, piece by piece."""

    pieces: tuple[Words | CellShown, ...]
    room: int | None = None  # tokens for all cells together, the longest are cut; None: what is too long is refused
    picture: PictureShown | None = None  # stands before all of them


@dataclass(frozen=True, slots=True)
class Writing:
    """An answer that is written."""

    ends: tuple[int, ...] = ()  # words that end it, beside those that the checkpoint names
    longest: int = 64  # tokens, where nothing else is asked for
    guide: Literal["arithmetic", "grammar"] | None = None  # that says which words may come, see `models.decoding`


@dataclass(frozen=True, slots=True)
class Answered:
    """A thing that a head answers."""

    name: str
    kind: Literal["label", "class", "labels", "number"]
    names: tuple[str, ...] = ()  # of classes or labels, in the order of the outputs
    low: float = 0.0  # of a number: what -1 stands for
    high: float = 1.0  # and what 1 stands for


@dataclass(frozen=True, slots=True)
class Request:
    """A request as a model is shown it, and its answer: outputs of a head in this order, or a text."""

    shown: FieldsShown | TextShown
    answers: tuple[Answered, ...] = ()
    writing: Writing | None = None

    @property
    def picture(self) -> PictureShown | None:
        """The picture that is shown before a prompt, if there is one."""
        return self.shown.picture if isinstance(self.shown, TextShown) else None

    def to_dict(self) -> dict[str, Any]:
        """Returns plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> "Request":
        """Reads what `to_dict` returned.

        Raises:
            KeyError, TypeError: it is something else.
        """
        shown, writing = plain["shown"], plain["writing"]
        return cls(
            _fields_shown(shown) if "fields" in shown else _text_shown(shown),
            tuple(Answered(**{**each, "names": tuple(each["names"])}) for each in plain["answers"]),
            None if writing is None else Writing(**{**writing, "ends": tuple(writing["ends"])}),
        )


def _fields_shown(plain: Mapping[str, Any]) -> FieldsShown:
    listed = ("ids", "cuts", "values")
    fields = (FieldWords(**{**each, **{name: tuple(each[name]) for name in listed}}) for each in plain["fields"])
    return FieldsShown(**{**plain, "fields": tuple(fields)})


def _text_shown(plain: Mapping[str, Any]) -> TextShown:
    pieces = (
        Words(tuple(each["ids"])) if "ids" in each else CellShown(**{**each, "values": tuple(each["values"])})
        for each in plain["pieces"]
    )
    picture = plain.get("picture")  # descriptions of before pictures have none
    if picture is not None:
        picture = PictureShown(**{**picture, **{name: tuple(picture[name]) for name in ("size", "cell")}})
    return TextShown(**{**plain, "pieces": tuple(pieces), "picture": picture})
