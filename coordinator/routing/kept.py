"""Keeps what a run's adapter does to routing: a file in the run's folder, bound to the adapter and to its backbone.

It holds counts of public tokens alone. A later round makes another adapter, and the file is then of none.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, TypeAdapter, model_validator

from ...client_node.files import read_json, write_private
from ...models.evaluation.layer_routing import LayerRouting
from ...models.strict import Digest, Label, StrictModel, rule
from ..errors import Conflict, StateDamaged

FILE = "routing.json"  # in the run's folder
MOST_BYTES = 8 << 20
MOST_LAYERS, MOST_EXPERTS, MOST_TOKENS = 1000, 4096, 2**40
_REMEDY = "Nothing else is lost: delete it, and make the heat map anew"

_Share = Annotated[float, Field(ge=0, le=1.0001)]  # sums of shares may be a little off
_Count = Annotated[int, Field(ge=0, lt=2**53)]


class KeptLayer(StrictModel):
    """One layer's `LayerRouting`, as the file holds it."""

    layer: Annotated[int, Field(ge=0, lt=100_000)]
    tokens: Annotated[int, Field(ge=1, le=MOST_TOKENS)]
    choices: Annotated[tuple[_Count, ...], Field(min_length=2, max_length=MOST_EXPERTS)]
    weights: Annotated[tuple[_Share, ...], Field(min_length=2, max_length=MOST_EXPERTS)]
    token_entropy: _Share

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        if len(self.weights) != len(self.choices):
            raise rule("a weight for each expert")
        if not sum(self.choices) or sum(self.choices) % self.tokens:
            raise rule("as many choices for each token")
        return self

    @property
    def found(self) -> LayerRouting:
        """The layer's routing."""
        return LayerRouting(self.layer, self.tokens, self.choices, self.weights, self.token_entropy)


_Layers = Annotated[tuple[KeptLayer, ...], Field(min_length=1, max_length=MOST_LAYERS)]


class KeptRouting(StrictModel):
    """The routing of the same public tokens before a run's training and with its adapter, by layer."""

    adapter: Digest  # SHA-256 of the state after `round`
    round: Annotated[int, Field(ge=1, lt=2**31)]
    backbone: Digest
    read: Label  # what was read, in words
    before: _Layers
    after: _Layers

    @model_validator(mode="after")
    def _is_of_one_model(self) -> Self:
        shapes = [[(each.layer, each.tokens, len(each.choices)) for each in own] for own in (self.before, self.after)]
        numbers = [each.layer for each in self.before]
        if shapes[0] != shapes[1] or numbers != sorted(set(numbers)) or len({len(e.choices) for e in self.before}) > 1:
            raise rule("of the same layers and tokens before and after, the lowest layer first")
        return self

    @classmethod
    def of(
        cls, before: Sequence[LayerRouting], after: Sequence[LayerRouting], *, adapter: str, round: int, backbone: str,
        read: str,
    ) -> Self:  # fmt: skip
        """Makes one of two measurements of the same tokens."""
        layers = [tuple(KeptLayer(**asdict(each)) for each in own) for own in (before, after)]
        return cls(adapter=adapter, round=round, backbone=backbone, read=read, before=layers[0], after=layers[1])

    @property
    def layers(self) -> tuple[tuple[LayerRouting, LayerRouting], ...]:
        """Each layer before training, and with the adapter."""
        return tuple((one.found, other.found) for one, other in zip(self.before, self.after, strict=True))

    def is_of(self, adapter: str | None, backbone: str) -> bool:
        """True if it is of this adapter, on this backbone."""
        return (self.adapter, self.backbone) == (adapter, backbone)


_FORM = TypeAdapter(KeptRouting)


def write(home: Path, run_id: str, found: KeptRouting) -> None:
    """Writes the file of a run, in the place of an older one.

    Raises:
        Conflict: it would be longer than a reader takes.
    """
    data = found.model_dump_json().encode()
    if len(data) > MOST_BYTES:
        raise Conflict(
            f"the routing of so many layers and experts takes more than {MOST_BYTES >> 20} MiB; nothing kept"
        )
    write_private(_file(home, run_id), data)


def read(home: Path, run_id: str) -> KeptRouting | None:
    """Reads the file of a run; None if there is none.

    Raises:
        StateDamaged: it is too long, or does not hold what belongs there.
    """
    return read_json(_file(home, run_id), _FORM, remedy=_REMEDY, error=StateDamaged, max_bytes=MOST_BYTES)


def _file(home: Path, run_id: str) -> Path:
    return home / "runs" / run_id / FILE
