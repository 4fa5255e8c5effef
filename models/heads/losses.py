"""The loss of one record, in nats: a function of that record alone.

A unit's loss is the mean over its own records, a batch's the sum over units. Nothing is divided by how many there are.

Legend: `R` rows (records), `T` tokens, `N` tokens of completions, `D` model width, `V` words.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_REGISTERS = 64  # numbers, of which torch's vector loops take a whole part at a time, whatever their size


def record_losses(logits_R: Tensor, labels_R: Tensor) -> Tensor:
    """[R] binary cross-entropy of each record's logit.

    Filled up to whole vector registers: torch computes what is left over in another way, and then the last bit of a
    record's gradient would depend on its place in the batch.
    """
    spare = -len(logits_R) % _REGISTERS
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
        zeros = self.losses_N.new_zeros(len(self.tokens_R))
        return zeros.index_add(0, self.row_N, self.losses_N) / self.tokens_R.clamp_min(1)

    def is_exact(self) -> Tensor:
        """bool [R], whether greedy decoding after the prompt would write the completion word for word."""
        misses = torch.zeros_like(self.tokens_R).index_add(0, self.row_N, (~self.is_first_choice_N).long())
        return (misses == 0) & (self.tokens_R > 0)


def foretell(model: Any, ids_RT: Tensor, is_completion_RT: Tensor, *, tile: int | None = None) -> Foretold:
    """Losses on completions alone: what a prompt says is read, not learned.

    The output matrix is applied where a completion's token is foretold and nowhere else: over all tokens, logits would
    be most of the memory of a step.

    Args:
        model: a causal language model, adapted or not; its `lm_head` must not be adapted.
        ids_RT: int64, padded on the right with any word: what follows a token does not reach it.
        is_completion_RT: bool; the first token of a row is never one.
        tile: states that the output matrix is applied to at a time, always as many: how a loss is rounded then does not
            depend on how many tokens the other records have. None: all at once.
    """
    hidden_RTD = model.model(input_ids=ids_RT, use_cache=False).last_hidden_state
    is_foretold = is_completion_RT[:, 1:].bool()
    hidden_ND, target_N = hidden_RTD[:, :-1][is_foretold], ids_RT[:, 1:][is_foretold]
    tokens = len(target_N)
    if tile is not None and tokens:
        spare = -tokens % tile
        hidden_ND, target_N = F.pad(hidden_ND, (0, 0, 0, spare)), F.pad(target_N, (0, spare))
    divisor = getattr(model.config, "logits_scaling", 1)  # Granite's own models divide, outside their output matrix
    losses, firsts = [], []
    for hidden, target in zip(*(t.split(tile or max(1, tokens)) for t in (hidden_ND, target_N)), strict=True):
        logits = model.lm_head(hidden)
        if divisor != 1:
            logits = logits / divisor
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))  # bfloat16 cannot tell words apart
        losses.append(F.cross_entropy(logits, target, reduction="none"))
        firsts.append(logits.argmax(-1) == target)
    return Foretold(
        row_N=is_foretold.nonzero()[:, 0],
        losses_N=torch.cat(losses)[:tokens],
        is_first_choice_N=torch.cat(firsts)[:tokens],
        tokens_R=is_foretold.sum(1),
    )
