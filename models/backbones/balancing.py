"""Keeps a model's routed experts in use while it is trained, each family by its own means.

Without any the experts that happen to be chosen early learn, are chosen more, and after a few hundred steps some are
never chosen again, though a fresh router spreads tokens evenly. Where a router has a balance bias, as DeepSeek-V3's, no
loss is needed: the bias is added to every expert's score, in the choice and not in the weight, and after each step it
moves by a fixed amount against the load (Wang et al. 2024, arXiv:2408.15664; DeepSeek-V3, arXiv:2412.19437, section
2.1.2). DeepSeek-V3's second means, a small loss for every sequence, is left out: on these short records it made all
experts score alike. Routers by softmax have no such bias; theirs is a loss over the batch (Fedus, Zoph & Shazeer 2022,
arXiv:2101.03961, section 2.2).

Bias and loss are statistics of a batch, so both are for pretraining on public data alone: adapters are trained with
the bias frozen, and without the loss.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..evaluation.router_statistics import router_of, scores_by_sigmoid


@contextmanager
def balanced(model: nn.Module, is_token_RL: Tensor, step: float) -> Iterator[Callable[[], Tensor | None]]:
    """Runs one batch, of training or not, and then moves the bias of every expert by `step` against its load in it.

    An expert that was sent fewer tokens than the mean expert of its layer is raised, one that was sent more is lowered.
    A model without routers is left alone.

    Args:
        is_token_RL: bool, rows by length of a row, false where a row is padded: padding is no load.
        step: 0 moves nothing.

    Yields:
        What computes, behind a forward pass, the balance loss of routers without a bias, summed over layers: for each
        the number of experts times the sum, over experts, of share of the load times mean probability. It is the
        number of experts that a token is sent to where the load is even. None if there are no such routers.
    """
    layers = getattr(getattr(model, "model", None), "layers", ())
    routers: list[Any] = [router for layer in layers if (router := router_of(layer)) is not None]
    biased = [router for router in routers if scores_by_sigmoid(router)]
    loads = [torch.zeros_like(router.e_score_correction_bias) for router in biased]
    losses: list[Tensor] = []

    def load_of(ids_TK: Tensor, experts: int) -> Tensor:
        return torch.bincount(ids_TK[is_token_RL.flatten()].flatten(), minlength=experts)

    def watch(router: Any, load_E: Tensor) -> Any:
        def count(_: nn.Module, __: object, routed: tuple[Tensor, Tensor, Tensor]) -> None:
            load_E.add_(load_of(routed[2], len(load_E)))

        return router.register_forward_hook(count)

    def charge(_: nn.Module, __: object, routed: tuple[Tensor, Tensor, Tensor]) -> None:
        logits_TE = routed[0][is_token_RL.flatten()].float()
        share_E = load_of(routed[2], logits_TE.shape[1]) / max(1, len(logits_TE))
        losses.append(logits_TE.shape[1] * (share_E * logits_TE.softmax(-1).mean(0)).sum())

    handles = [watch(router, load) for router, load in zip(biased, loads, strict=True)]
    handles += [router.register_forward_hook(charge) for router in routers if not scores_by_sigmoid(router)]
    try:
        yield lambda: torch.stack(losses).sum() if losses else None
    finally:
        for handle in handles:
            handle.remove()
    with torch.no_grad():
        for router, load_E in zip(biased, loads, strict=True):
            router.e_score_correction_bias += step * torch.sign(load_E.mean() - load_E)
