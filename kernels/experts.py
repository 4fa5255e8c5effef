"""A bank of routed SwiGLU experts, and the low-rank factors that adapt it.

Legend: `D` model, `F` expert hidden, `G` = 2F, `E` experts, `R` rank.
"""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from .errors import UnfitWeights
from .formats import ExpertWeights


@dataclass(frozen=True, slots=True)
class Experts:
    """down(silu(gate) * up), an expert each; the two projections may be kept in different formats."""

    gate_up: ExpertWeights  # [E, G, D], the F rows of the gate first
    down: ExpertWeights  # [E, D, F]

    def __post_init__(self) -> None:
        experts, both, model = self.gate_up.shape
        if both % 2 or self.down.shape != (experts, model, both // 2):
            raise UnfitWeights(f"gate_up {tuple(self.gate_up.shape)} and down {tuple(self.down.shape)} do not fit")
        if self.gate_up.dtype != self.down.dtype:
            raise UnfitWeights(f"gate_up multiplies {self.gate_up.dtype}, down {self.down.dtype}")

    @property
    def num_experts(self) -> int:
        """E."""
        return self.gate_up.shape[0]

    @property
    def hidden(self) -> int:
        """F."""
        return self.down.shape[2]


class Factors(NamedTuple):
    """Low-rank factors of both projections; each may be frozen or trained. Parameters where a collector is used."""

    gate_up_A_ERD: Tensor
    gate_up_B_EGR: Tensor
    down_A_ERF: Tensor
    down_B_EDR: Tensor


@dataclass(frozen=True, slots=True)
class LoRA:
    """LoRA on a bank: W + scaling * B A for both projections of every expert. The sum is never built."""

    factors: Factors
    scaling: float

    def check_fit(self, experts: Experts) -> None:
        """Raises `UnfitWeights` if the factors are not those of such a bank."""
        (bank, both, model), hidden = experts.gate_up.shape, experts.hidden
        rank_1, rank_2 = self.factors.gate_up_A_ERD.shape[1], self.factors.down_A_ERF.shape[1]
        want = (bank, rank_1, model), (bank, both, rank_1), (bank, rank_2, hidden), (bank, model, rank_2)
        if tuple(tuple(factor.shape) for factor in self.factors) != want:
            got = ", ".join(str(tuple(factor.shape)) for factor in self.factors)
            raise UnfitWeights(f"factors of shapes {got} do not adapt experts {tuple(experts.gate_up.shape)}")


def peft_factors(A_ERI: Tensor, B_EOR: Tensor) -> tuple[Tensor, Tensor]:
    """The pair as PEFT's `target_parameters` stores it: A expert-major [E * R, I], B rank-major [O, R * E]."""
    return A_ERI.flatten(0, 1), B_EOR.permute(1, 2, 0).flatten(1)


def from_peft(weight_A: Tensor, weight_B: Tensor, num_experts: int) -> tuple[Tensor, Tensor]:
    """A [E, R, I] and B [E, O, R] of what PEFT stored; the inverse of `peft_factors`.

    Raises:
        UnfitWeights: the two are no pair for so many experts.
    """
    rows, columns = weight_A.shape[0], weight_B.shape[-1]
    if weight_A.ndim != 2 or weight_B.ndim != 2 or rows != columns or rows % num_experts:
        raise UnfitWeights(
            f"{tuple(weight_A.shape)} and {tuple(weight_B.shape)} are no factors of {num_experts} experts"
        )
    rank = rows // num_experts
    return weight_A.view(num_experts, rank, -1), weight_B.view(-1, rank, num_experts).permute(2, 0, 1)
