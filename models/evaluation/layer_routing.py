"""Figures of one layer's routing: how many tokens its router sent to each expert, and how evenly.

It needs no torch, so that what shows figures need not load a model's libraries. `router_statistics` counts.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class LayerRouting:
    """Routing of the tokens that one layer's router saw."""

    layer: int  # place in the model, from 0, dense layers counted
    tokens: int
    choices: tuple[int, ...]  # [E], tokens sent to each expert: top_k for every token in all
    weights: tuple[float, ...]  # [E], share of the routing weight of all tokens that each expert has
    token_entropy: float  # mean over tokens of the entropy of a token's affinities over log E; 1: no preference

    @property
    def load(self) -> tuple[float, ...]:
        """[E], each expert's share of all choices."""
        total = sum(self.choices)
        return tuple(count / total for count in self.choices)

    @property
    def entropy(self) -> float:
        """Entropy of the load, over log E: 1 if it is even, 0 if all tokens go to one expert."""
        return -sum(share * math.log(share) for share in self.load if share) / math.log(len(self.choices)) + 0.0

    @property
    def max_violation(self) -> float:
        """Largest load over the mean load, less 1: 0 if even (MaxVio, Wang et al. 2024, arXiv:2408.15664)."""
        return max(self.load) * len(self.choices) - 1

    @property
    def unused(self) -> tuple[int, ...]:
        """Experts that no token was sent to."""
        return tuple(expert for expert, count in enumerate(self.choices) if not count)

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values."""
        derived = ("load", "entropy", "max_violation", "unused")
        return asdict(self) | {name: getattr(self, name) for name in derived}


def moved(before: LayerRouting, after: LayerRouting) -> float:
    """Computes the share of choices that fell to other experts: 0 if no load has changed, 1 if all went elsewhere.

    It is the total variation between the two loads, so tokens that changed places leave it at 0.

    >>> one, other = (LayerRouting(0, 4, choices, (0.5, 0.5), 0.9) for choices in ((4, 0), (3, 1)))
    >>> moved(one, other)
    0.25
    """
    return sum(abs(one - other) for one, other in zip(before.load, after.load, strict=True)) / 2
