"""Reads a whole record: a linear head on pooled states, scaled by public moments.

Legend: `R` rows (records), `T` tokens, `D` model width, `P` states that are read, `K` outputs.
"""

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...kernels.collect import CaptureSlot
from ...kernels.lora import matrix_head, vector_head
from ..errors import InvalidAdapter
from ..structure import inputs
from .objectives import BinaryLabel, Objective, SeveralTasks, TextTask

MOST_NUMBERS = 2**22  # weights of a head: 64 records' gradients of so many take a gigabyte
_CONSTANT = 0.1  # over the length of parts that are whitened apart; five times as much cost several points of accuracy
_EOS = 1  # of every schema's vocabulary
_EMBEDDING_SCALE = 0.05  # spread of the embedding table at its start; brings both halves of a pooled state to unit size


class PooledHead(nn.Module):
    """Centre, whiten, append a constant column, cut to unit length, then an inner product for each output.

    Whitening makes few noisy steps go far; unit length bounds a record's gradient of the head. The moments must be
    public: they come from synthetic records or public texts, never from a site's.

    Args:
        center: [2D], mean of pooled states; or [P, D], of each state that is read by itself.
        whiten: [2D, 2D], symmetric, (covariance + ridge)^-1/2; or [P, D, D], multiplied from the right. States that
            are whitened by themselves are cut to unit length each, so that none drowns the others.
        objective: what is learned of a record; it decides how many outputs there are.
        reads: the states that are read: 0 is what the embedding gives, n what layer n gives, counted from 1, the last
            one behind the model's last norm. None: the two that `pooled` reads by itself.
    """

    def __init__(
        self,
        center: Tensor,
        whiten: Tensor,
        *,
        objective: Objective | None = None,
        reads: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__()
        is_apart = center.ndim == 2 and reads is not None and len(reads) == len(center) > 0
        if not (is_apart or (center.ndim == 1 and reads is None)) or whiten.shape != (*center.shape, center.shape[-1]):
            raise InvalidAdapter(f"center {tuple(center.shape)} and whiten {tuple(whiten.shape)} do not fit")
        self.objective, self.reads = objective or BinaryLabel(), reads
        # Frozen parameters, not buffers: Opacus refuses trained layers with buffers, as they may hold batch statistics.
        self.center = nn.Parameter(center, requires_grad=False)
        self.whiten = nn.Parameter(whiten, requires_grad=False)
        rows = () if self.objective.outputs is None else (self.objective.outputs,)
        if math.prod(rows) * (center.numel() + 1) > MOST_NUMBERS:
            raise InvalidAdapter(
                f"a head of {math.prod(rows):,} outputs on {center.numel():,} numbers is too large: at most "
                f"{MOST_NUMBERS:,} weights; take fewer classes or states"
            )
        self.weight = nn.Parameter(torch.zeros(*rows, center.numel() + 1, dtype=center.dtype))
        self.slot = CaptureSlot()

    @property
    def text(self) -> TextTask | None:
        """The text that is written behind a record beside what the head learns of it; None if there is none."""
        return self.objective.text if isinstance(self.objective, SeveralTasks) else None

    def forward(self, pooled: Tensor) -> Tensor:
        """[R] or [R, K] outputs of pooled states [R, 2D] or [R, P D]."""
        head = vector_head if self.weight.ndim == 1 else matrix_head
        return head(self.inputs(pooled), self.weight, self.slot.collector)

    def inputs(self, pooled: Tensor) -> Tensor:
        """[R, 2D + 1] or [R, P D + 1], what each row of the weight is multiplied with, of pooled states."""
        if self.center.ndim == 1:
            white = (pooled - self.center) @ self.whiten
            # The constant is sqrt(2D)/2: a quarter of the expected square length of a whitened state.
            return _of_unit_length(white, len(self.center) ** 0.5 / 2)
        parts = pooled.view(pooled.shape[0], *self.center.shape).unbind(1)
        white = torch.cat(
            [
                nn.functional.normalize((part - center) @ whiten, dim=1)
                for part, center, whiten in zip(parts, self.center, self.whiten, strict=True)
            ],
            dim=1,
        )
        return _of_unit_length(white, _CONSTANT * len(parts) ** 0.5)


def _of_unit_length(white: Tensor, constant: float) -> Tensor:
    return nn.functional.normalize(torch.cat([white, white.new_full((white.shape[0], 1), constant)], dim=1), dim=1)


def pooled(model: Any, ids_RT: Tensor, reads: tuple[int, ...] | None = None) -> Tensor:
    """[R, 2D] or [R, P D]: means of a record's states over its own tokens, side by side.

    Without `reads`, the first half is the embedding output over 0.05 (the fields themselves), the second the last state
    (what the model makes of them); of a history both are those of its last visit, whose states have seen the others.
    Zeros at the end of a row are padding and are inert; a row of padding alone pools to zero.

    Args:
        model: a causal language model, adapted or not.
        ids_RT: int64, padded on the right with 0.
        reads: the states to read, see `PooledHead`.
    """
    is_token_RT = _up_to_the_last(ids_RT)
    attended_RT = is_token_RT.clone()
    attended_RT[:, 0] = True  # a row that attends to nothing would be nan
    embedded_RTD = inputs.embedded(model, ids_RT)
    with _layers_told(model, reads or ()) as told:
        last_RTD = model.model(
            inputs_embeds=embedded_RTD, attention_mask=attended_RT.long(), use_cache=False
        ).last_hidden_state  # fmt: skip
    return _mean(ids_RT, is_token_RT, embedded_RTD, last_RTD, reads, told)


def pooled_and_last(
    model: Any, ids_RT: Tensor, is_document_RT: Tensor, reads: tuple[int, ...] | None = None
) -> tuple[Tensor, Tensor]:
    """Computes what `pooled` gives of documents, and the last states [R, T, D] of all tokens, in one pass.

    Args:
        is_document_RT: bool; tokens of which the head reads nothing follow the document's.
    """
    embedded_RTD = inputs.embedded(model, ids_RT)
    with _layers_told(model, reads or (), up_to_the_last=True) as told:
        last_RTD = model.model(inputs_embeds=embedded_RTD, use_cache=False).last_hidden_state
    is_token_RT = _up_to_the_last(ids_RT.masked_fill(~is_document_RT, 0))
    return _mean(ids_RT, is_token_RT, embedded_RTD, last_RTD, reads, told), last_RTD


def _up_to_the_last(ids_RT: Tensor) -> Tensor:
    """bool [R, T]; a vocabulary may have a word of number 0, so only zeros behind the last other word are padding."""
    return (ids_RT > 0).flip(1).cumsum(1).flip(1) > 0


def _mean(
    ids_RT: Tensor,
    is_token_RT: Tensor,
    embedded_RTD: Tensor,
    last_RTD: Tensor,
    reads: tuple[int, ...] | None,
    told: dict[int, Tensor],
) -> Tensor:
    if reads is None:
        states, is_read = [embedded_RTD / _EMBEDDING_SCALE, last_RTD], _last_line(ids_RT, is_token_RT)
    else:
        states, is_read = [told.get(read, last_RTD) if read else embedded_RTD for read in reads], is_token_RT
    side_by_side = torch.cat(states, dim=-1).masked_fill(~is_read[..., None], 0)
    mean: Tensor = side_by_side.sum(1) / is_read.sum(1, keepdim=True).clamp_min(1)
    return mean


def _last_line(ids_RT: Tensor, is_token_RT: Tensor) -> Tensor:
    """bool [R, T], tokens behind the last `<eos>` that another token follows; all if there is none."""
    is_last = is_token_RT & ~F.pad(is_token_RT[:, 1:], (0, 1))
    ends = (ids_RT == _EOS) & is_token_RT & ~is_last
    return is_token_RT & (ends.flip(1).cumsum(1).flip(1) == 0)


@contextmanager
def _layers_told(model: Any, reads: tuple[int, ...], *, up_to_the_last: bool = False) -> Iterator[dict[int, Tensor]]:
    """Collects inside what the layers give whose states are read; the last layer's is read behind the norm.

    Layers above all that is read do not run, unless the last is asked for.
    """
    told: dict[int, Tensor] = {}
    last = model.config.num_hidden_layers
    inner = [read for read in reads if 0 < read < last]
    top = None if up_to_the_last or not reads or last in reads else max(1, *reads)
    with ExitStack() as stack:
        layers = stack.enter_context(_up_to(model, top))
        for read in inner:
            # A model that is tried with one layer of each kind has fewer than its configuration says.
            layer = layers[min(read, len(layers)) - 1]
            hook = layer.register_forward_hook(
                lambda _layer, _inputs, output, read=read: told.__setitem__(read, output)
            )
            stack.callback(hook.remove)
        yield told


@contextmanager
def _up_to(model: Any, top: int | None) -> Iterator[Any]:
    """Leaves out all decoder layers behind the first `top`, for as long as the block runs; None leaves out none."""
    layers = getattr(model.model, "layers", None)
    if top is None or layers is None:
        yield layers
        return
    model.model.layers = nn.ModuleList(layers[:top])
    try:
        yield model.model.layers
    finally:
        model.model.layers = layers
