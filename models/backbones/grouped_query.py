"""Computes the attention of an upcycled Llama at the cost of the grouped-query attention that it was made from.

`upcycling` writes grouped-query attention as multi-head latent attention: queries are zero but at their own key head's
place, and values pass a norm that changes none. `speed_up` finds such layers by their weights and computes them without
the zeros. A layer is found anew when its weights have changed, and one with adapters on its queries or latents is
computed as it stands, since adapters reach the zeros too.

The sums are the same but for terms that are zero, and for the norm of the values: it divides by their root mean square
with a constant of 2**20 among them, and multiplies by that again, which moves no bit in float32 while the squares of a
token's values add up to less than 2**16.

Legend: `B` rows, `T` tokens, `D` model, `H` query heads, `G` key and value heads, `C` width of a head.
"""

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_LEAST_CONSTANT = 2.0**20  # see `upcycling`
_LINEARS = ("q_proj", "kv_a_proj_with_mqa", "kv_b_proj")


def speed_up(model: Any) -> int:
    """Lets the layers of a model that were made from grouped-query attention compute like it.

    Returns:
        how many there are; other layers, and models of other families, are left as they are.
    """
    if model.config.model_type != "deepseek_v3":
        return 0
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Attention

    found = 0
    for module in model.modules():
        if type(module) is DeepseekV3Attention and _has_plain_linears(module) and _compact(module) is not None:
            layer: Any = module
            layer.__class__, layer._grouped = _grouped_class(), None
            found += 1
    return found


def as_stored(model: nn.Module) -> None:
    """Undoes `speed_up`: every layer computes all that its weights say."""
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Attention

    for module in model.modules():
        if type(module) is _grouped_class():
            module.__class__ = DeepseekV3Attention
            del module._grouped


class _Compact(NamedTuple):
    q_HCD: Tensor  # [H * C, D], rotary pairs half a head apart
    kv_GCD: Tensor  # [2 * G * C, D], keys in the same order, then values


@dataclass(slots=True)
class _Grouped:
    """What a layer was found to be, and the weights of which that was said; None if it is no such layer."""

    weights: tuple[tuple[Tensor, int], ...]  # with their versions: each change in place counts one
    compact: _Compact | None

    def is_of(self, weights: tuple[tuple[Tensor, int], ...]) -> bool:
        """True if these are the weights, and neither changed, nor converted or moved since."""
        pairs = zip(self.weights, weights, strict=True)
        if not all(then is now and before == count for (then, before), (now, count) in pairs):
            return False
        own, now = self.compact, weights[0][0]
        return own is None or (own.q_HCD.dtype, own.q_HCD.device) == (now.dtype, now.device)


@dataclass(frozen=True, slots=True)
class _Kind:
    """What transformers' attention functions read of a module."""

    num_key_value_groups: int
    is_causal: bool = True
    training: bool = False


@functools.cache
def _grouped_class() -> type[nn.Module]:
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Attention
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    class GroupedQueryAttention(DeepseekV3Attention):
        """Latent attention that leaves out the zeros of an upcycled Llama, as long as nothing is adapted there."""

        def forward(
            self,
            hidden_states: Tensor,
            position_embeddings: tuple[Tensor, Tensor],
            attention_mask: Tensor | None,
            cache: Any = None,
            **kwargs: Any,
        ) -> tuple[Any, ...]:
            """Computes as Llama's attention does, or as the class it is derived from."""
            attention: Any = self
            is_usual = self.config._attn_implementation == "sdpa" and not self.training
            compact = _found(attention) if is_usual and "past_key_values" not in kwargs else None
            if compact is None:
                whole: tuple[Any, ...] = super().forward(
                    hidden_states, position_embeddings, attention_mask, cache, **kwargs
                )
                return whole
            rows, tokens = hidden_states.shape[:-1]
            width: int = attention.v_head_dim
            q = F.linear(hidden_states, compact.q_HCD).view(rows, tokens, -1, width).transpose(1, 2)
            k, v = F.linear(hidden_states, compact.kv_GCD).view(rows, tokens, 2, -1, width).permute(2, 0, 3, 1, 4)
            # All key heads turn alike, and the given angles are those of each head in turn.
            cos, sin = (torch.cat([angles[..., : width // 2]] * 2, dim=-1) for angles in position_embeddings)
            q, k = apply_rotary_pos_emb(q, k, cos, sin)
            if cache is not None:
                k, v = cache.update(k, v, attention.layer_idx, kwargs=kwargs)
            kind: Any = _Kind(attention.num_heads * width // attention.qk_rope_head_dim)
            out, weights = sdpa_attention_forward(kind, q, k, v, attention_mask, scaling=attention.scaling, **kwargs)
            return attention.o_proj(out.reshape(rows, tokens, -1)), weights

    return GroupedQueryAttention


def _found(attention: Any) -> _Compact | None:
    """The weights to compute with, as they are now; None if the layer is to be computed as it stands."""
    if not _has_plain_linears(attention):
        return None
    weights = _weights(attention)
    if weights is None:
        return None
    seen: _Grouped | None = attention._grouped
    if seen is None or not seen.is_of(weights):
        seen = attention._grouped = _Grouped(weights, _compact(attention))
    return seen.compact


def _has_plain_linears(attention: Any) -> bool:
    """True if no linear layer that would be left out is adapted, packed, or absent."""
    return all(type(getattr(attention, name)) is nn.Linear for name in _LINEARS)


def _weights(attention: Any) -> tuple[tuple[Tensor, int], ...] | None:
    """The tensors that decide what a layer is, with their versions; None if they count no changes.

    Nor if they are divided among processes, which a copy of their rows would undo.
    """
    tensors = [attention.q_proj.weight, attention.kv_a_proj_with_mqa.weight, attention.kv_a_proj_with_mqa.bias]
    tensors += [attention.kv_b_proj.weight, attention.kv_a_layernorm.weight]
    if any(tensor.is_inference() or hasattr(tensor, "ds_id") for tensor in tensors):
        return None
    return tuple((tensor, tensor._version) for tensor in tensors)


@torch.no_grad()
def _compact(attention: Any) -> _Compact | None:
    """The weights without the zeros, if the rest of the layer is exactly what `upcycling` writes."""
    config, heads = attention.config, attention.num_heads
    width, wide, rank = attention.v_head_dim, attention.qk_rope_head_dim, attention.kv_lora_rank
    groups = wide // width
    if (
        attention.q_lora_rank is not None
        or attention.qk_nope_head_dim
        or not config.rope_interleave
        or wide % width
        or width % 2
        or heads % max(groups, 1)
        or rank <= wide
        or attention.kv_a_proj_with_mqa.bias is None
        or not _turns_alike(config.rope_parameters, groups, width)
    ):
        return None
    q, down, bias = attention.q_proj.weight, attention.kv_a_proj_with_mqa.weight, attention.kv_a_proj_with_mqa.bias
    if q.numel() != heads * wide * q.shape[-1] or down.shape[0] != rank + wide:  # divided among processes
        return None
    q_HGCD = q.view(heads, groups, width, -1)
    head = torch.arange(heads, device=q.device)
    own_HCD = q_HGCD[head, head // (heads // groups)]
    constant = bias[wide]
    is_made_so = (
        int(q_HGCD.count_nonzero()) == int(own_HCD.count_nonzero())
        and not bool(down[wide:rank].any())
        and int(bias.count_nonzero()) == 1
        and bool(constant >= _LEAST_CONSTANT)
        and bool((attention.kv_a_layernorm.weight == constant / rank**0.5).all())
        and _selects(attention.kv_b_proj.weight, heads, groups, width)
    )
    if not is_made_so:
        return None
    k, v = down[rank:], down[:wide]
    return _Compact(_halves_apart(own_HCD.flatten(0, 1), heads), torch.cat([_halves_apart(k, groups), v]))


def _turns_alike(rope: Any, groups: int, width: int) -> bool:
    """True if the rotary frequencies are those of one head, repeated for each."""
    if rope.get("rope_type") != "longrope" or rope.get("rope_theta") != 1.0 or rope.get("attention_factor") != 1.0:
        return False
    return all(list(rope[name]) == list(rope[name])[: width // 2] * groups for name in ("short_factor", "long_factor"))


def _selects(up: Tensor, heads: int, groups: int, width: int) -> bool:
    """True if each head's values are just those of its group among the latents."""
    wide = groups * width
    ones = up[:, :wide].view(heads, width, groups, width)
    head, place = torch.arange(heads, device=up.device)[:, None], torch.arange(width, device=up.device)
    own = ones[head, place, head // (heads // groups), place]
    return bool((own == 1).all()) and int(up.count_nonzero()) == heads * width


def _halves_apart(weight: Tensor, heads: int) -> Tensor:
    """Reorders the rows of each head from adjacent rotary pairs to Llama's, C/2 apart."""
    return weight.reshape(heads, -1, 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape).contiguous()
