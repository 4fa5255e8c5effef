"""Routing of an adapter: the heat map that is kept of it, the table behind it, and how far a new one is."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from ...models.evaluation.layer_routing import LayerRouting, moved
from ..errors import StateDamaged
from ..routing import kept
from ..routing.kept import KeptRouting
from ..routing.page import heat_map
from . import charts
from .model_work import Making
from .visits import Visit

_HALF = 560  # units across, of two pictures beside each other
MOST_CELLS = 8192  # of a table with a cell for each layer and expert


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer in the table: before training, and with the adapter."""

    before: LayerRouting
    after: LayerRouting

    @property
    def moved(self) -> float:
        """Share of choices that fell to other experts than before."""
        return moved(self.before, self.after)

    @property
    def busiest(self) -> int:
        """The expert with the largest load."""
        return self.after.choices.index(max(self.after.choices))


@dataclass(frozen=True, slots=True)
class Shown:
    """An adapter's routing as its page shows it."""

    found: KeptRouting | None  # of this adapter
    problem: str  # why there is none, if somebody should know
    making: Making | None
    layers: tuple[Layer, ...] = ()
    before_map: Markup | None = None
    after_map: Markup | None = None

    @property
    def has_cells(self) -> bool:
        """True if a table of every expert is short enough to be read."""
        return sum(len(each.after.choices) for each in self.layers) <= MOST_CELLS


def shown(visit: Visit, run: str, state_hash: str, backbone_hash: str) -> Shown:
    """Looks for the heat map of a run's adapter; one of an earlier round, or of another backbone, is none."""
    making = visit.federation.models.making(run)
    try:
        found = kept.read(visit.home, run)
    except StateDamaged as err:
        return Shown(None, str(err), making)
    if found is None:
        return Shown(None, "", making)
    if not found.is_of(state_hash, backbone_hash):
        told = f"The heat map that is here is of round {found.round}, and of another adapter than this one"
        return Shown(None, told, making)
    layers = tuple(Layer(before, after) for before, after in found.layers)
    return Shown(
        found, "", making, layers,
        _drawn([each.before for each in layers], "Before training"),
        _drawn([each.after for each in layers], "With the adapter"),
    )  # fmt: skip


def _drawn(layers: Sequence[LayerRouting], title: str) -> Markup:
    return charts.twice(lambda width: heat_map(layers, width=width, title=title), _HALF)
