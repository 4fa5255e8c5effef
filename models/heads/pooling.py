"""One logit from a whole record: a linear head on pooled states, scaled by public moments.

Legend: `R` rows (records), `T` tokens, `D` model width.
"""

from typing import Any

import torch
from torch import Tensor, nn

from ...kernels.collect import CaptureSlot
from ...kernels.lora import vector_head
from ..errors import InvalidAdapter

_EMBEDDING_SCALE = 0.05  # spread of the embedding table at its start; brings both halves of a pooled state to unit size


class PooledHead(nn.Module):
    """Centre, whiten, append a constant column, cut to unit length, then one inner product.

    Whitening makes few noisy steps go far; unit length bounds a record's gradient of the head by one. The moments must
    be public: they come from synthetic records, never from a site's.

    Args:
        center: [2D], mean of pooled states.
        whiten: [2D, 2D], symmetric, (covariance + ridge)^-1/2.
    """

    def __init__(self, center: Tensor, whiten: Tensor) -> None:
        super().__init__()
        if center.ndim != 1 or whiten.shape != (len(center), len(center)):
            raise InvalidAdapter(f"center {tuple(center.shape)} and whiten {tuple(whiten.shape)} do not fit")
        # Frozen parameters, not buffers: Opacus refuses trained layers with buffers, as they may hold batch statistics.
        self.center = nn.Parameter(center, requires_grad=False)
        self.whiten = nn.Parameter(whiten, requires_grad=False)
        self.weight = nn.Parameter(torch.zeros(len(center) + 1, dtype=center.dtype))
        self.slot = CaptureSlot()

    def forward(self, pooled: Tensor) -> Tensor:
        """[R] logits of pooled states [R, 2D]."""
        return vector_head(self.inputs(pooled), self.weight, self.slot.collector)

    def inputs(self, pooled: Tensor) -> Tensor:
        """[R, 2D + 1], what the weight is multiplied with, of pooled states [R, 2D]."""
        white = (pooled - self.center) @ self.whiten
        # The constant is sqrt(2D)/2: a quarter of the expected square length of a whitened state.
        constant = white.new_full((len(white), 1), len(self.center) ** 0.5 / 2)
        return nn.functional.normalize(torch.cat([white, constant], dim=1), dim=1)


def pooled(model: Any, ids_RT: Tensor) -> Tensor:
    """[R, 2D]: mean over a record's own tokens of its first and last states, side by side.

    The first half is the embedding output over 0.05 (the fields themselves), the second the last state (what the model
    makes of them). Token 0 is padding and is inert; a row of padding alone pools to zero.

    Args:
        model: a causal language model, adapted or not.
        ids_RT: int64, padded on the right with 0.
    """
    is_token = ids_RT > 0
    embedded = model.get_input_embeddings()(ids_RT)
    attended = is_token.clone()
    attended[:, 0] = True  # a row that attends to nothing would be nan
    last = model.model(
        inputs_embeds=embedded, attention_mask=attended.long(), use_cache=False
    ).last_hidden_state  # fmt: skip
    both = torch.cat([embedded / _EMBEDDING_SCALE, last], dim=-1).masked_fill(~is_token[..., None], 0)
    mean: Tensor = both.sum(1) / is_token.sum(1, keepdim=True).clamp_min(1)
    return mean
