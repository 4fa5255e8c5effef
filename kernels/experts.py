"""A bank of routed SwiGLU experts, and the low-rank factors that adapt it.

Legend: `T` tokens (all leading axes flattened), `D` model, `F` expert hidden, `G` = 2F, `E` experts, `R` rank.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .collect import Collector
from .errors import GatesUntrained, TokensMiscounted, UnfitWeights
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
    """LoRA on a bank: W + scaling * B A for both projections of every expert. The sum is never built.

    With gates, which are for inference, it is W + scaling * B diag(g) A, where g is the row of the pair's token: both
    projections have their rank, and adapters stacked along it can be switched off token by token.
    """

    factors: Factors
    scaling: float
    gates_TR: Tensor | None = None  # by token before routing; of any dtype, products have that of the experts

    def check_fit(self, experts: Experts) -> None:
        """Raises `UnfitWeights` if the factors are not those of such a bank, or the gates not of their ranks."""
        (bank, both, model), hidden = experts.gate_up.shape, experts.hidden
        rank_1, rank_2 = self.factors.gate_up_A_ERD.shape[1], self.factors.down_A_ERF.shape[1]
        want = (bank, rank_1, model), (bank, both, rank_1), (bank, rank_2, hidden), (bank, model, rank_2)
        if tuple(tuple(factor.shape) for factor in self.factors) != want:
            got = ", ".join(str(tuple(factor.shape)) for factor in self.factors)
            raise UnfitWeights(f"factors of shapes {got} do not adapt experts {tuple(experts.gate_up.shape)}")
        gates = self.gates_TR
        if gates is not None and not (gates.ndim == 2 and gates.shape[1] == rank_1 == rank_2):
            raise UnfitWeights(f"gates {tuple(gates.shape)} for factors of ranks {rank_1} and {rank_2}")


def apply_gates(z: Tensor, gates: Tensor) -> None:
    """Multiplies rank-wide products by their gates, in place; what a gate of zero closes is zero, whatever it was."""
    z.mul_(gates).masked_fill_(gates == 0, 0)


def gates_by_token(
    gates: Tensor, axes: torch.Size, rank: int, collector: Collector | None, *inputs: Tensor | None
) -> Tensor:
    """Returns gates on rank components as [T, R], for an op on tokens with these leading axes.

    Args:
        gates: [..., R] with the same leading axes, or [T, R].
        inputs: of the op, so far as it could have their gradients.

    Raises:
        GatesUntrained: there is a collector, or autograd would want a gradient.
        UnfitWeights: the adapter has another rank.
        TokensMiscounted: there are other tokens.
    """
    if collector is not None:
        raise GatesUntrained("gates are for inference: a collector would get no gradients")
    if torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in (gates, *inputs)):
        raise GatesUntrained("gates are for inference and have no backward: run under torch.no_grad()")
    if gates.ndim < 1 or gates.shape[-1] != rank:
        raise UnfitWeights(f"gates {tuple(gates.shape)} for an adapter of rank {rank}")
    if gates.shape[:-1] not in (axes, (axes.numel(),)):
        raise TokensMiscounted(f"gates {tuple(gates.shape)} for tokens {tuple(axes)}")
    return gates.reshape(axes.numel(), rank)


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
