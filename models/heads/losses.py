"""The loss of one record, in nats: a function of that record alone.

A unit's loss is the mean over its own records, a batch's the sum over units. Nothing is divided by how many there are.

Legend: `R` rows (records), `T` tokens, `N` tokens of completions, `D` model width, `V` words.
"""

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...kernels.linear import WHOLE
from ..tokens import words_of

_QUICK = 256  # tokens whose logits are made at a time; more of them take memory and no less time
REGISTERS = 64  # numbers, of which torch's vector loops take a whole part at a time, whatever their size


def record_losses(logits_R: Tensor, labels_R: Tensor) -> Tensor:
    """[R] binary cross-entropy of each record's logit.

    Filled up to whole vector registers: torch computes what is left over in another way, and then the last bit of a
    record's gradient would depend on its place in the batch.
    """
    spare = -len(logits_R) % REGISTERS
    logits, labels = F.pad(logits_R, (0, spare)), F.pad(labels_R.to(logits_R), (0, spare))
    return F.binary_cross_entropy_with_logits(logits, labels, reduction="none")[: len(logits_R)]


@dataclass(frozen=True, slots=True)
class Foretold:
    """A causal model's losses on the completions of some records, token by token."""

    row_N: Tensor  # int64, the record of each token
    losses_N: Tensor  # negative log-likelihood of the token given all tokens before it
    is_first_choice_N: Tensor  # bool, whether no other word was more likely
    tokens_R: Tensor  # int64, tokens of each record's completion

    def by_record(self) -> Tensor:
        """[R], the mean loss over the tokens of each completion; 0 where there is none."""
        return _means(self.losses_N, self.row_N, self.tokens_R)

    def is_exact(self) -> Tensor:
        """bool [R], whether greedy decoding after the prompt would write the completion word for word."""
        misses = torch.zeros_like(self.tokens_R).index_add(0, self.row_N, (~self.is_first_choice_N).long())
        return (misses == 0) & (self.tokens_R > 0)


def foretell(model: Any, ids_RT: Tensor, is_completion_RT: Tensor) -> Foretold:
    """Losses on completions alone: what a prompt says is read, not learned.

    The output matrix is applied where a completion's token is foretold and nowhere else: over all tokens, logits would
    be most of the memory of a step.

    Args:
        model: a causal language model, adapted or not; its `lm_head` must not be adapted.
        ids_RT: int64, padded on the right with any word: what follows a token does not reach it.
        is_completion_RT: bool; the first token of a row is never one.
    """
    hidden_ND, target_N, row_N, tokens_R = _foretelling(model, ids_RT, is_completion_RT)
    logits_NV = word_logits(model, hidden_ND)
    return Foretold(
        row_N=row_N,
        losses_N=F.cross_entropy(logits_NV, target_N, reduction="none"),
        is_first_choice_N=logits_NV.argmax(-1) == target_N,
        tokens_R=tokens_R,
    )


def completion_losses(
    model: Any,
    ids_RT: Tensor,
    is_completion_RT: Tensor,
    *,
    tile: int | None = None,
    last_RTD: Tensor | None = None,
) -> Tensor:
    """[R], the mean loss over the tokens of each completion, as `Foretold.by_record`, for training.

    Logits are made for some tokens at a time and turned into the gradient of their states at once, so those of a whole
    batch are never there, nor kept for backward (as in Liger-Kernel's linear cross-entropy). Arguments are those of
    `foretell`.

    Args:
        tile: states that the output matrix is applied to at a time, always as many: how a loss is rounded then does not
            depend on how many tokens the other records have. None: as many as are quick.
        last_RTD: the model's last states of these tokens, if they are known already.
    """
    hidden_ND, target_N, row_N, tokens_R = _foretelling(model, ids_RT, is_completion_RT, last_RTD)
    tokens = len(target_N)
    if tile is not None and tokens:
        spare = -tokens % tile
        hidden_ND, target_N = F.pad(hidden_ND, (0, 0, 0, spare)), F.pad(target_N, (0, spare))
    parts = zip(*(torch.split(part, tile or _QUICK) for part in (hidden_ND, target_N)), strict=True)
    # Where workers gather the matrix, they do so once, however many tokens each has.
    with getattr(model.lm_head, WHOLE, nullcontext)():
        losses_N = torch.cat([_written(model, hidden, target) for hidden, target in parts])[:tokens]
    return _means(losses_N, row_N, tokens_R)


def _foretelling(
    model: Any, ids_RT: Tensor, is_completion_RT: Tensor, last_RTD: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Finds the states [N, D] that foretell the tokens of completions, these tokens, their rows, and rows' counts."""
    if last_RTD is None:
        last_RTD = model.model(input_ids=ids_RT, use_cache=False).last_hidden_state
    is_foretold = is_completion_RT[:, 1:].bool()
    hidden_ND, target_N = last_RTD[:, :-1][is_foretold], words_of(ids_RT)[:, 1:][is_foretold]
    return hidden_ND, target_N, is_foretold.nonzero()[:, 0], is_foretold.sum(1)


def word_logits(model: Any, hidden_ND: Tensor) -> Tensor:
    """[N, V], at least float32, the logits of words that follow last states, as the model itself would scale them."""
    logits_NV: Tensor = model.lm_head(hidden_ND)
    divisor = _divisor(model)
    if divisor != 1:
        logits_NV = logits_NV / divisor
    return logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32))  # bfloat16 cannot tell words apart


def _divisor(model: Any) -> float:
    """Granite's own models divide logits, outside their output matrix."""
    return float(getattr(model.config, "logits_scaling", 1))


def _means(losses_N: Tensor, row_N: Tensor, tokens_R: Tensor) -> Tensor:
    zeros = losses_N.new_zeros(len(tokens_R))
    return zeros.index_add(0, row_N, losses_N) / tokens_R.clamp_min(1)


def _written(model: Any, hidden_ND: Tensor, target_N: Tensor) -> Tensor:
    """[N] losses of tokens by a frozen output matrix; by autograd alone where it is of another kind, or divided."""
    head = model.lm_head
    is_plain = type(head) is nn.Linear and not any(p.requires_grad or hasattr(p, "ds_id") for p in head.parameters())
    if not is_plain:
        return F.cross_entropy(word_logits(model, hidden_ND), target_N, reduction="none")
    return cast(Tensor, _Written.apply(hidden_ND, target_N, model))  # type: ignore[no-untyped-call]


class _Written(torch.autograd.Function):
    """Cross-entropy of words by a frozen output matrix, whose logits do not outlive the forward pass."""

    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, target_N: Tensor, model: Any) -> Tensor:
        logits_NV, weight_VD = word_logits(model, hidden_ND), model.lm_head.weight
        target_N1 = target_N[:, None]
        most_N1, word_N1 = logits_NV.max(-1, keepdim=True)
        chances_NV = logits_NV.softmax(-1)
        losses_N1 = most_N1 - chances_NV.gather(1, word_N1).log() - logits_NV.gather(1, target_N1)
        if ctx.needs_input_grad[0]:
            # Of the logits: each word's chance, less 1 for the right one.
            chances_NV.scatter_add_(1, target_N1, chances_NV.new_full((), -1).expand(target_N1.shape))
            grads_ND = chances_NV.to(weight_VD.dtype) @ weight_VD
            ctx.save_for_backward(grads_ND / _divisor(model))
        return losses_N1[:, 0]

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None]:
        (grads_ND,) = ctx.saved_tensors
        return upstream[0][:, None].to(grads_ND.dtype) * grads_ND, None, None
