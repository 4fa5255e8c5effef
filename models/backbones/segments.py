"""Lets a loaded model read long records by a window and chosen blocks, see `kernels.segments`; no weight changes.

`read_in_segments` gives every attention layer of a DeepSeek-V3 that function in place of full attention. Folder, hash,
adapters, clipping and export stay as they are, but the function is another one: adapters are to be read with the
attention that they were trained with. Positions of the far part are unseen where queries and keys have an unrotated
part (`qk_nope_head_dim`); a model that has none, such as SmolLM2 rewritten, reads far blocks with rotated keys.

A text is written at a cost per token that hardly grows with its length: the cache keeps the latents, a mean key for
each quarter of a block, and expands what is read, nothing else.

Legend: `R` rows, `H` heads, `T` tokens, `W` window, `B` blocks, `Q` quarters of blocks, `K` chosen blocks, `C` width of
a latent, `N` width of the unrotated part of keys, `P` of the rotated part, `V` of values, `X` of the part that is read
far away.
"""

import functools
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import CacheLayerMixin
from transformers.models.deepseek_v3 import modeling_deepseek_v3 as deepseek_v3

from ...kernels.segments import QUARTERS, Segments, quarter_means, segment_attention
from ..errors import BackboneMismatch
from .grouped_query import as_stored

NAME = "confide_segments"  # as transformers knows it
_ROOM = 256  # tokens that a cache has room for at first


def read_in_segments(model: Any, segments: Segments) -> None:
    """Gives a model this attention; again, with other sizes, is no harm.

    Raises:
        BackboneMismatch: the model is of another family than DeepSeek-V3.
    """
    if model.config.model_type != "deepseek_v3":
        raise BackboneMismatch(
            f"is of family {model.config.model_type}: attention in segments is for deepseek_v3, whose queries and keys "
            "have a part without positions"
        )
    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, _refuse_padding)
    as_stored(model)
    for module in model.modules():
        if isinstance(module, deepseek_v3.DeepseekV3Attention):
            layer: Any = module
            layer.__class__, layer.segments = _segmented_class(), segments
    model.set_attn_implementation(NAME)


def _attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, scaling: float, **_: Any
) -> tuple[Tensor, None]:
    """Attends within the rows of a whole text, as transformers calls it."""
    if attention_mask is not None:  # of four dimensions, which transformers passes on as it is
        raise BackboneMismatch("attention in segments chooses what a token reads, and takes no mask of four dimensions")
    unrotated, segments = module.qk_nope_head_dim, module.segments
    out = segment_attention(query, key, value, scaling, unrotated=unrotated, segments=segments)
    return out.transpose(1, 2).contiguous(), None


def _refuse_padding(*, attention_mask: Tensor | None = None, q_length: int = 0, kv_length: int = 0, **_: Any) -> None:
    """Makes no mask, as nothing attends to padding behind it. Padding in front would move the borders of blocks."""
    if attention_mask is None:
        return
    is_token_RT = attention_mask.bool()
    if bool((is_token_RT[:, 1:] & ~is_token_RT[:, :-1]).any()):
        raise BackboneMismatch("attention in segments takes rows that are padded on the right, and no others")
    if q_length != kv_length and not bool(is_token_RT.all()):
        raise BackboneMismatch("attention in segments writes behind rows of one length, without padding")


class _Latents(CacheLayerMixin):
    """The cache of one layer: latents and rotated keys of all tokens, and mean keys of whole blocks."""

    is_sliding, is_croppable = False, True

    def __init__(self, segments: Segments, up: "_Up") -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.segments, self.up = segments, up
        self.tokens = 0
        self._latents: Tensor | None = None  # [R, room, C + P]
        self._means: Tensor | None = None  # [R, H, room, X] of quarters, as far as blocks are whole

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Makes room for the first tokens."""
        rows, width = key_states.shape[0], key_states.shape[-1] + value_states.shape[-1]
        self._latents = key_states.new_empty(rows, _ROOM, width)
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Takes latents [R, 1, T, C] and rotated keys [R, 1, T, P] of new tokens; gives those of all."""
        if self._latents is None:
            self.lazy_initialization(key_states, value_states)
        assert self._latents is not None
        before, rank = self.tokens, key_states.shape[-1]
        self.tokens = before + key_states.shape[-2]
        if self.tokens > self._latents.shape[1]:  # twice the room, so that a token's part of all copies is bounded
            room = max(self.tokens, 2 * self._latents.shape[1])
            self._latents = F.pad(self._latents, (0, 0, 0, room - self._latents.shape[1]))
        self._latents[:, before : self.tokens] = torch.cat([key_states, value_states], -1)[:, 0]
        self._take_means(before // self.segments.window)
        whole = self._latents[:, None, : self.tokens]
        return whole[..., :rank], whole[..., rank:]

    def _take_means(self, first: int) -> None:
        """Takes the mean keys of the quarters of the blocks from `first` on that are whole."""
        assert self._latents is not None
        window = self.segments.window
        last = self.tokens // window
        if last == first:
            return
        known, end = QUARTERS * first, QUARTERS * last
        keys = self.up.far_keys(self._latents[:, first * window : last * window])  # rounded as in a pass of the whole
        new = quarter_means(keys.flatten(0, 1), window, known).view(*keys.shape[:2], end - known, -1)
        if self._means is None:
            self._means = new[:, :, :0]
        if end > self._means.shape[2]:
            room = max(end, 2 * self._means.shape[2])
            self._means = F.pad(self._means, (0, 0, 0, room - self._means.shape[2]))
        self._means[:, :, known:end] = new

    def read(self, far_q_RHX: Tensor) -> tuple[Tensor, Tensor]:
        """[R, n, C + P] of the window, and [R, H, K * W, C + P] of the blocks that the last token chooses."""
        assert self._latents is not None
        window = self.segments.window
        own = (self.tokens - 1) // window
        near = self._latents[:, max(0, own - 1) * window : self.tokens]
        earlier, heads = max(0, own - 1), far_q_RHX.shape[1]
        if not earlier:
            return near, near.new_empty(len(near), heads, 0, near.shape[-1])
        assert self._means is not None
        means_RHQX = self._means[:, :, : QUARTERS * earlier].expand(-1, heads, -1, -1)
        liked_RHB = (
            (means_RHQX @ far_q_RHX.to(means_RHQX.dtype)[..., None]).view(len(near), heads, earlier, QUARTERS).amax(-1)
        )
        chosen_RHK = liked_RHB.topk(min(self.segments.top, earlier), sorted=False).indices
        token_RHT = (chosen_RHK[..., None] * window + torch.arange(window, device=chosen_RHK.device)).flatten(2)
        row_R11 = torch.arange(len(near), device=near.device)[:, None, None]
        return near, self._latents[row_R11, token_RHT]

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Takes rows in another order, as beam search wants them."""
        if self._latents is not None:
            self._latents = self._latents.index_select(0, beam_idx)
        if self._means is not None:
            self._means = self._means.index_select(0, beam_idx)
        if self.up.k_HNC.ndim == 4:
            self.up = _Up(*(part.index_select(0, beam_idx) for part in self.up))

    def crop(self, tokens_to_remove: int) -> None:
        """Forgets the last tokens, as many as minus the number says; means of blocks are taken anew when whole."""
        if tokens_to_remove > 0:
            raise ValueError("a negative number says how many tokens are forgotten")
        self.tokens = max(0, self.tokens + tokens_to_remove)

    def reset(self) -> None:
        """Forgets all tokens."""
        self.tokens, self._latents, self._means, self.is_initialized = 0, None, None, False

    def get_seq_length(self) -> int:
        """Tokens that were taken."""
        return self.tokens

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Tokens with the next ones, from the first on."""
        return self.tokens + query_length, 0

    def get_max_length(self) -> int:
        """There is none."""
        return -1


class _Up(NamedTuple):
    """What a layer makes of latents, as matrices: adapted or packed, it is what the layer computes now."""

    k_HNC: Tensor  # or [R, H, N, C], where adapters count in each row by other weights
    v_HVC: Tensor  # likewise

    @classmethod
    @torch.no_grad()
    def of(cls, attention: Any, rows: int) -> "_Up":
        """Asks the layer for each component of a latent, in every row if its adapters are gated by row.

        Raises:
            BackboneMismatch: they are gated by what enters them, so the layer is no matrix.
        """
        weight: Tensor = attention.kv_a_layernorm.weight
        gates: Any = getattr(attention.kv_b_proj, "gates", None)
        is_gated = gates is not None and gates.rule is not None and not gates.are_closed
        if is_gated and gates.rows is None:
            raise BackboneMismatch(
                "attention in segments writes by no rule that weights adapters anew for each token, such as arrow, "
                "where they adapt kv_b_proj: what it remembers of a token is made into keys and values later"
            )
        ones = torch.eye(attention.kv_lora_rank, dtype=weight.dtype, device=weight.device)
        given = ones.expand(rows, -1, -1) if is_gated else ones
        up = attention.kv_b_proj(given).unflatten(-1, (attention.num_heads, -1)).movedim(-3, -1)
        k, v = up.split([attention.qk_nope_head_dim, attention.v_head_dim], -2)
        return cls(k.contiguous(), v.contiguous())

    def far_keys(self, latents_RTX: Tensor) -> Tensor:
        """[R, H, T, N], or [R, 1, T, P] of a model without an unrotated part, of latents and rotated keys."""
        unrotated, rank = self.k_HNC.shape[-2:]
        if not unrotated:
            return latents_RTX[:, None, :, rank:]
        return latents_RTX[:, None, :, :rank] @ self.k_HNC.mT


@functools.cache
def _segmented_class() -> type[nn.Module]:
    class SegmentedAttention(deepseek_v3.DeepseekV3Attention):
        """Latent attention of which one more token reads a window and a few blocks of the cache."""

        def forward(
            self,
            hidden_states: Tensor,
            position_embeddings: tuple[Tensor, Tensor],
            attention_mask: Tensor | None,
            cache: Any = None,
            **kwargs: Any,
        ) -> tuple[Any, ...]:
            """Computes whole texts as the class it is derived from does, and what follows them token by token."""
            attention: Any = self
            if cache is None:
                whole: tuple[Any, ...] = super().forward(hidden_states, position_embeddings, attention_mask, **kwargs)
                return whole
            latents = _latents_of(attention, cache, len(hidden_states))
            if not latents.tokens:
                whole = super().forward(hidden_states, position_embeddings, attention_mask, cache, **kwargs)
                return whole
            q_RHTD, latent_RTC, turned_RTP = _projected(attention, hidden_states, position_embeddings)
            told = []
            for token in range(hidden_states.shape[1]):
                one = slice(token, token + 1)
                latents.update(latent_RTC[:, None, one], turned_RTP[:, None, one])
                told.append(_told(latents, q_RHTD[:, :, token], attention.scaling))
            return attention.o_proj(torch.stack(told, 1).flatten(2)), None

    return SegmentedAttention


def _latents_of(attention: Any, cache: Any, rows: int) -> _Latents:
    """The layer's part of a cache, which is put there if it is new."""
    layers, place = cache.layers, attention.layer_idx
    if len(layers) <= place:
        layers.append(None)
    if not isinstance(layers[place], _Latents):
        if layers[place] is not None and layers[place].get_seq_length():
            raise BackboneMismatch("attention in segments goes on from no cache that another attention has filled")
        layers[place] = _Latents(attention.segments, _Up.of(attention, rows))
    return cast(_Latents, layers[place])


def _projected(attention: Any, hidden_RTD: Tensor, angles: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Queries [R, H, T, N + P], latents [R, T, C] and rotated keys [R, T, P], as transformers computes them."""
    rows, tokens, _ = hidden_RTD.shape
    if attention.q_lora_rank is None:
        q = attention.q_proj(hidden_RTD)
    else:
        q = attention.q_b_proj(attention.q_a_layernorm(attention.q_a_proj(hidden_RTD)))
    q_RHTD = q.view(rows, tokens, attention.num_heads, -1).transpose(1, 2)
    q_pass, q_turned = q_RHTD.split([attention.qk_nope_head_dim, attention.qk_rope_head_dim], -1)
    latent, k_turned = attention.kv_a_proj_with_mqa(hidden_RTD).split(
        [attention.kv_lora_rank, attention.qk_rope_head_dim], -1
    )
    is_interleaved = attention.config.rope_interleave
    turn = deepseek_v3.apply_rotary_pos_emb_interleave if is_interleaved else deepseek_v3.apply_rotary_pos_emb
    q_turned, k_turned = turn(q_turned, k_turned[:, None], *angles)
    return torch.cat([q_pass, q_turned], -1), attention.kv_a_layernorm(latent), k_turned[:, 0]


def _told(latents: _Latents, q_RHD: Tensor, scale: float) -> Tensor:
    """[R, H, V] what the last token takes from its window and the blocks that it chooses.

    Queries are turned into the space of latents, and values made of their weighted sum (as in section 2.1.2 of
    DeepSeek-V2, arXiv:2405.04434).
    """
    up = latents.up
    unrotated, rank = up.k_HNC.shape[-2:]
    q_pass, q_turned = q_RHD[..., :unrotated], q_RHD[..., unrotated:]
    near_RTC, far_RHTC = latents.read(q_pass if unrotated else q_turned)
    q_RHC = (q_pass[:, :, None] @ up.k_HNC)[:, :, 0]
    near_RHT = q_RHC @ near_RTC[..., :rank].mT + q_turned @ near_RTC[..., rank:].mT
    far_q, far_k = (q_RHC, far_RHTC[..., :rank]) if unrotated else (q_turned, far_RHTC[..., rank:])
    far_RHT = (far_k @ far_q[..., None])[..., 0]
    scores_RHT = torch.cat([near_RHT, far_RHT], -1)
    scores_RHT = scores_RHT.to(torch.promote_types(scores_RHT.dtype, torch.float32)) * scale
    weights_RHT = scores_RHT.softmax(-1).to(near_RTC.dtype)
    near, far = weights_RHT[..., : near_RHT.shape[-1]], weights_RHT[..., near_RHT.shape[-1] :]
    told_RHC = near @ near_RTC[..., :rank] + (far[:, :, None] @ far_RHTC[..., :rank])[:, :, 0]
    told_RHV: Tensor = (up.v_HVC @ told_RHC[..., None])[..., 0]
    return told_RHV
