"""LoRA on routers: the small matrix that scores experts for a token, and the choice that each architecture makes of it.

Transformers has a class of router for every architecture, and all of them return router logits, weights and ids of the
chosen experts. An adapted router computes the logits itself and chooses as its class does: `CHOICES` is the table. A
token's experts depend on that token alone: none of these has a capacity, and no balance loss is computed. A router
whose class is not in the table is left alone or, as a target, refused.

Legend: `T` tokens, `D` model, `E` experts, `K` top-k.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from ...kernels.collect import CaptureSlot
from ...kernels.lora import lora_linear
from .factors import AdapterConfig, Gates, LoRAFactors, Rows, base_alone

Choose = Callable[[Any, Tensor], tuple[Tensor, Tensor]]  # (stock router, logits [T, E]) -> weights, ids [T, K]


def by_sigmoid(router: Any, logits_TE: Tensor) -> tuple[Tensor, Tensor]:
    """Chooses among the strongest groups by score and balance bias (DeepSeek-V3, arXiv:2412.19437, section 2.1.2)."""
    scores_TE = logits_TE.sigmoid()
    with torch.no_grad():
        biased_TE = scores_TE + router.e_score_correction_bias
        if router.num_group > 1:
            strongest = _grouped(router, biased_TE).topk(2, dim=-1).values.sum(-1)
            biased_TE = _of_groups(router, biased_TE, strongest, -torch.inf)
        ids_TK = biased_TE.topk(router.top_k, dim=-1, sorted=False).indices
    weights_TK = scores_TE.gather(1, ids_TK)
    if router.norm_topk_prob:
        weights_TK = weights_TK / (weights_TK.sum(-1, keepdim=True) + 1e-20)
    return weights_TK * router.routed_scaling_factor, ids_TK


def by_grouped_softmax(router: Any, logits_TE: Tensor) -> tuple[Tensor, Tensor]:
    """Chooses the most probable, of the groups with the most probable ones (DeepSeek-V2, arXiv:2405.04434, 2.2.2)."""
    scores_TE = _softmax(logits_TE)
    if router.topk_method == "group_limited_greedy":
        strongest = _grouped(router, scores_TE.detach()).amax(-1)
        scores_TE = _of_groups(router, scores_TE, strongest, 0.0)
    weights_TK, ids_TK = scores_TE.topk(router.top_k, dim=-1, sorted=False)
    return weights_TK * router.routed_scaling_factor, ids_TK


def by_softmax(router: Any, logits_TE: Tensor) -> tuple[Tensor, Tensor]:
    """Chooses the most probable; their weights sum to one if the model says so (Qwen3-MoE)."""
    weights_TK, ids_TK = _softmax(logits_TE).topk(router.top_k, dim=-1)
    if router.norm_topk_prob:
        weights_TK = weights_TK / weights_TK.sum(-1, keepdim=True)
    return weights_TK.to(logits_TE.dtype), ids_TK


def by_renormalised_softmax(router: Any, logits_TE: Tensor) -> tuple[Tensor, Tensor]:
    """Chooses the most probable; their weights sum to one (Mixtral, arXiv:2401.04088, section 2.1)."""
    weights_TK, ids_TK = _softmax(logits_TE).topk(router.top_k, dim=-1)
    return weights_TK / weights_TK.sum(-1, keepdim=True), ids_TK


def by_softmax_of_chosen(router: Any, logits_TE: Tensor) -> tuple[Tensor, Tensor]:
    """Chooses the largest logits; weights are the softmax of these alone (Granite)."""
    chosen_TK, ids_TK = logits_TE.to(_wide(logits_TE)).topk(router.top_k, dim=-1)
    return chosen_TK.softmax(-1).to(logits_TE.dtype), ids_TK


@dataclass(frozen=True, slots=True)
class Choice:
    """The rule of a class of routers."""

    choose: Choose
    in_float32: bool  # logits, whatever the type of the model; else in the type of the router's matrix


CHOICES: Mapping[str, Choice] = {  # by the name of transformers' class
    "DeepseekV2TopkRouter": Choice(by_grouped_softmax, in_float32=True),
    "DeepseekV3TopkRouter": Choice(by_sigmoid, in_float32=True),
    "GraniteMoeHybridTopKRouter": Choice(by_softmax_of_chosen, in_float32=False),
    "KimiLinearTopkRouter": Choice(by_sigmoid, in_float32=True),
    "MixtralTopKRouter": Choice(by_renormalised_softmax, in_float32=False),
    "Qwen3MoeTopKRouter": Choice(by_softmax, in_float32=False),
}


class RouterFactors(LoRAFactors):
    """The trained part of an adapted router."""

    def __init__(self, weight: Tensor, config: AdapterConfig, name: str) -> None:
        super().__init__(weight, config, name)
        self.lora_scaling = config.lora_scaling

    def forward(self, hidden: Tensor, *, weight: Tensor, slot: CaptureSlot, gates_TR: Tensor | None = None) -> Tensor:
        """Computes logits [.., E] of hidden states [.., D], with the low-rank product."""
        return lora_linear(
            hidden, weight, None, self.lora_A, self.lora_B, self.lora_scaling, slot.collector, gates_TR=gates_TR
        )


class LoRARouter(nn.Module):
    """An adapted token-choice router; a balance bias stays frozen, as it is a statistic of a batch."""

    def __init__(
        self, base: Any, config: AdapterConfig, name: str, slot: CaptureSlot, rows: Rows, gates: Gates | None = None
    ) -> None:
        super().__init__()
        self.factors = RouterFactors(base.weight, config, name)
        self.base, self.lora_scaling, self.slot, self.rows = base, config.lora_scaling, slot, rows
        self.gates = gates or Gates()
        self._choice = CHOICES[type(base).__name__]

    @property
    def lora_A(self) -> nn.Parameter:
        """A, [R, D]."""
        return self.factors.lora_A

    @property
    def lora_B(self) -> nn.Parameter:
        """B, [E, R]."""
        return self.factors.lora_B

    def named_factors(self) -> dict[str, nn.Parameter]:
        """Returns the factors by the last part of their name."""
        return self.factors.named_factors()

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Router logits [T, E], weights [T, K] and expert ids [T, K]."""
        if self.gates.are_closed:
            return cast(tuple[Tensor, Tensor, Tensor], base_alone(self.base, hidden, hidden.dtype))
        weight = self.base.weight
        if self._choice.in_float32:
            weight = weight.to(self.lora_B.dtype)
        hidden_TD = hidden.reshape(-1, hidden.shape[-1]).to(weight.dtype)
        gates_TR = self.gates.of(self, hidden_TD)
        logits = self.factors(self.rows.apart(hidden_TD), weight=weight, slot=self.slot, gates_TR=gates_TR)
        logits_TE = logits.view(len(hidden_TD), logits.shape[-1])
        return logits_TE, *self._choice.choose(self.base, logits_TE)


def _wide(logits_TE: Tensor) -> torch.dtype:
    return torch.promote_types(logits_TE.dtype, torch.float32)


def _softmax(logits_TE: Tensor) -> Tensor:
    return logits_TE.softmax(-1, dtype=_wide(logits_TE))


def _of_groups(router: Any, scores_TE: Tensor, strength_TG: Tensor, elsewhere: float) -> Tensor:
    """Scores of experts in the strongest groups; the others' are replaced."""
    is_kept = torch.zeros_like(strength_TG, dtype=torch.bool)
    is_kept.scatter_(-1, strength_TG.topk(router.topk_group, dim=-1).indices, True)
    return _grouped(router, scores_TE).masked_fill(~is_kept.unsqueeze(-1), elsewhere).flatten(-2)


def _grouped(router: Any, scores_TE: Tensor) -> Tensor:
    return scores_TE.view(len(scores_TE), router.num_group, -1)
