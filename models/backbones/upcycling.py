"""Rewrites a dense Llama as a DeepSeek-V3 Mixture-of-Experts that computes the same function.

Sparse upcycling (Komatsuzaki et al. 2022, arXiv:2212.05055) of the MLPs, and an exact multi-head latent attention:

* Keys. Latent attention has one rotary key for all heads; it is the concatenation of all of Llama's key heads. A query
  head is zero except at its own key head's place. It is scaled by the root of the number of key heads, because
  attention divides by the root of a head's width. The frequencies must be Llama's, once per key head: rope type
  `longrope` multiplies the period theta^(2j/width) by one factor per frequency, so theta = 1 leaves all to the factors,
  which are Llama's own periods in float32. Position for position the angles are then bit for bit the same.
* Values. They are the latent; `kv_b_proj` selects each head's part. In between is an RMS norm that Llama does not have.
  One more latent, fed by a bias alone, is so large that it alone determines the RMS; the norm's weight multiplies by
  the RMS again. Rank and constant are powers of two, so they lose no bit, not even in bfloat16; float16 cannot hold
  them.
* Experts. The shared experts hold an MLP's first neurons; every routed expert holds a copy of all other neurons. The
  weights of the chosen experts sum to one. Copies stay equal until each is trained on its own tokens.

Legend: `H` query heads, `G` key and value heads, `C` width of a head, `D` model width, `F` width of a routed expert,
`E` routed experts, `R` rank of the latent.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ..directories import new_directory
from ..errors import InvalidBackbone
from .checkpoints import Origin, content_hash, load_model, write_parts
from .grouped_query import as_stored

LARGEST_LOGIT_DIFFERENCE = 1e-3  # of logits up to 30: twenty times what float32's order of sums was seen to make
_CONSTANT = 2.0**20  # of the extra latent: in float32 its square over 256 latents swallows any |values|^2 < 2^16
_ROUTER_STD = 0.02  # times a normed state: scores of experts differ by tenths


@dataclass(frozen=True, kw_only=True, slots=True)
class MoeShape:
    """Layout of the experts made from a dense model's MLPs; every shape computes the same function."""

    moe_layers: int = 4  # the last ones; those before stay dense
    experts: int = 8  # routed, in each of these layers
    top_k: int = 2
    expert_width: int = 512  # neurons of a routed expert; all others go to shared experts of this width
    seed: int = 0  # of the routers

    def __post_init__(self) -> None:
        if not (self.moe_layers >= 1 and self.experts >= 2 and 1 <= self.top_k <= self.experts):
            raise InvalidBackbone(f"need moe_layers >= 1, experts >= 2 and top_k in [1, experts], got {self}")
        if self.expert_width < 1:
            raise InvalidBackbone(f"need expert_width >= 1, got {self}")


@dataclass(frozen=True, slots=True)
class Upcycled:
    """The checkpoint that `write_upcycled` wrote."""

    hash: str  # `checkpoints.content_hash` of the directory
    logit_difference: float  # the largest seen between the Llama and the checkpoint, read back


def write_upcycled(
    llama: LlamaConfig,
    state: Mapping[str, Tensor],
    shape: MoeShape,
    tokenizer: PreTrainedTokenizerFast,
    origin: Origin,
    licence: str,
    directory: Path,
    *,
    probe: Sequence[int],
) -> Upcycled:
    """Writes the Llama as a checkpoint, in one rename, after reading it back and checking that it computes the same.

    Equal versions of transformers, tokenizers and safetensors write equal bytes.

    Args:
        state: as for `upcycle`.
        licence: its text; it must be passed on together with the weights.
        directory: must not exist.
        probe: token ids of the text on which the two are compared.

    Raises:
        InvalidBackbone: the Llama cannot be rewritten, or the checkpoint computes something else; nothing was written.
        FileExistsError: `directory` exists already.
    """
    with new_directory(directory) as partial:
        config, weights = upcycle(llama, state, shape)
        write_parts(partial, config, DeepseekV3ForCausalLM.__name__, weights, tokenizer, origin, licence)
        difference = _logit_difference(llama, state, partial, torch.tensor([probe]))
        if not difference < LARGEST_LOGIT_DIFFERENCE:  # NaN fails too
            raise InvalidBackbone(f"the checkpoint's logits are off by up to {difference:.2g}; nothing was written")
        return Upcycled(content_hash(partial), difference)


def upcycle(
    llama: LlamaConfig, state: Mapping[str, Tensor], shape: MoeShape
) -> tuple[DeepseekV3Config, dict[str, Tensor]]:
    """Makes an equivalent DeepSeek-V3 configuration and weights, named as in published checkpoints.

    Args:
        state: the Llama's weights under transformers' names, float32.

    Raises:
        InvalidBackbone: the Llama has a part that this rewriting does not know, or MLPs that `shape` cannot split.
    """
    _check(llama, shape)
    config = _config(llama, shape)
    routers = np.random.RandomState(shape.seed)  # its streams never change between versions; those of Generator may
    new = {name: state[name] for name in ("model.embed_tokens.weight", "model.norm.weight")}
    if not llama.tie_word_embeddings:
        new["lm_head.weight"] = state["lm_head.weight"]
    for layer in range(llama.num_hidden_layers):
        prefix = f"model.layers.{layer}."
        for name in ("input_layernorm.weight", "post_attention_layernorm.weight"):
            new[prefix + name] = state[prefix + name]
        q, k, v, o = (state[f"{prefix}self_attn.{name}_proj.weight"] for name in "qkvo")
        groups = len(k) * llama.num_attention_heads // len(q)
        attention = _attention(q, k, v, o, heads=llama.num_attention_heads, groups=groups)
        new |= {f"{prefix}self_attn.{name}": weight for name, weight in attention.items()}
        mlp = {name: state[f"{prefix}mlp.{name}.weight"] for name in ("gate_proj", "up_proj", "down_proj")}
        if layer < llama.num_hidden_layers - shape.moe_layers:
            new |= {f"{prefix}mlp.{name}.weight": weight for name, weight in mlp.items()}
        else:
            new |= {f"{prefix}mlp.{name}": weight for name, weight in _experts(mlp, shape, routers).items()}
    return config, {name: weight.contiguous() for name, weight in new.items()}


def _check(llama: Any, shape: MoeShape) -> None:
    """Refuses a Llama that the rewriting would silently change into another function."""
    if llama.attention_bias or llama.mlp_bias or llama.hidden_act != "silu":
        raise InvalidBackbone("only a Llama with SiLU and without biases can be rewritten")
    if llama.rope_parameters["rope_type"] != "default":
        raise InvalidBackbone(f"rope type {llama.rope_parameters['rope_type']} is none that can be rewritten")
    if shape.moe_layers > llama.num_hidden_layers:
        raise InvalidBackbone(f"{shape.moe_layers} MoE layers in a model of {llama.num_hidden_layers}")
    if llama.intermediate_size % shape.expert_width or llama.intermediate_size == shape.expert_width:
        raise InvalidBackbone(
            f"an MLP of {llama.intermediate_size} neurons is no shared and routed experts of {shape.expert_width} each"
        )


def _config(llama: Any, shape: MoeShape) -> DeepseekV3Config:
    groups, width = llama.num_key_value_heads, llama.head_dim
    exponents_C = torch.arange(0, width, 2).float() / width
    periods = (llama.rope_parameters["rope_theta"] ** exponents_C).tolist() * groups
    return DeepseekV3Config(
        vocab_size=llama.vocab_size,
        hidden_size=llama.hidden_size,
        intermediate_size=llama.intermediate_size,
        moe_intermediate_size=shape.expert_width,
        num_hidden_layers=llama.num_hidden_layers,
        num_attention_heads=llama.num_attention_heads,
        num_key_value_heads=llama.num_attention_heads,
        n_shared_experts=llama.intermediate_size // shape.expert_width - 1,
        n_routed_experts=shape.experts,
        num_experts_per_tok=shape.top_k,
        first_k_dense_replace=llama.num_hidden_layers - shape.moe_layers,
        norm_topk_prob=True,
        routed_scaling_factor=1.0,
        n_group=1,
        topk_group=1,
        q_lora_rank=None,
        kv_lora_rank=_rank(groups * width),
        qk_rope_head_dim=groups * width,
        qk_nope_head_dim=0,
        v_head_dim=width,
        attention_bias=True,
        rope_interleave=True,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 1.0,
            "short_factor": periods,
            "long_factor": periods,
            "factor": 1.0,
            "attention_factor": 1.0,
            "original_max_position_embeddings": llama.max_position_embeddings,
        },
        max_position_embeddings=llama.max_position_embeddings,
        rms_norm_eps=llama.rms_norm_eps,
        hidden_act=llama.hidden_act,
        tie_word_embeddings=llama.tie_word_embeddings,
        num_mtp_layers=0,
        bos_token_id=llama.bos_token_id,
        eos_token_id=llama.eos_token_id,
        pad_token_id=llama.pad_token_id,
    )


def _rank(width: int) -> int:
    """Returns the least power of four above `width`: room for one more latent, and a root that is a power of two."""
    rank: int = 4 ** math.ceil(math.log(width + 1, 4))
    return rank


def _attention(q: Tensor, k: Tensor, v: Tensor, o: Tensor, *, heads: int, groups: int) -> dict[str, Tensor]:
    q_HCD, k_GCD = _interleaved(q, heads), _interleaved(k, groups)
    width, hidden = q_HCD.shape[1:]
    wide = groups * width
    rank = _rank(wide)
    head = torch.arange(heads)
    group = head // (heads // groups)
    q_HGCD = torch.zeros(heads, groups, width, hidden)
    q_HGCD[head, group] = q_HCD * groups**0.5
    up_HCGC = torch.zeros(heads, width, groups, width)
    up_HCGC[head, :, group] = torch.eye(width)
    down_bias = torch.zeros(rank + wide)
    down_bias[wide] = _CONSTANT
    unused_RD = torch.zeros(rank - wide, hidden)
    return {
        "q_proj.weight": q_HGCD.flatten(0, 2),
        "kv_a_proj_with_mqa.weight": torch.cat([v, unused_RD, k_GCD.flatten(0, 1)]),
        "kv_a_proj_with_mqa.bias": down_bias,
        "kv_a_layernorm.weight": torch.full((rank,), _CONSTANT / rank**0.5),
        "kv_b_proj.weight": torch.nn.functional.pad(up_HCGC.reshape(heads * width, wide), (0, rank - wide)),
        "o_proj.weight": o,
        "o_proj.bias": torch.zeros(hidden),
    }


def _interleaved(weight: Tensor, heads: int) -> Tensor:
    """Reorders the rows of each head, [heads, C, D], to adjacent rotary pairs as in DeepSeek; Llama's are C/2 apart."""
    hidden = weight.shape[1]
    return weight.reshape(heads, 2, -1, hidden).transpose(1, 2).reshape(heads, -1, hidden)


def _experts(mlp: Mapping[str, Tensor], shape: MoeShape, routers: np.random.RandomState) -> dict[str, Tensor]:
    gate, up, down = mlp["gate_proj"], mlp["up_proj"], mlp["down_proj"]
    cut = len(gate) - shape.expert_width
    router = routers.standard_normal((shape.experts, gate.shape[1])) * _ROUTER_STD
    new = {
        "gate.weight": torch.from_numpy(router.astype(np.float32)),
        "gate.e_score_correction_bias": torch.zeros(shape.experts),
        "shared_experts.gate_proj.weight": gate[:cut],
        "shared_experts.up_proj.weight": up[:cut],
        "shared_experts.down_proj.weight": down[:, :cut],
    }
    for expert in range(shape.experts):
        new[f"experts.{expert}.gate_proj.weight"] = gate[cut:].clone()  # safetensors refuses tensors that share memory
        new[f"experts.{expert}.up_proj.weight"] = up[cut:].clone()
        new[f"experts.{expert}.down_proj.weight"] = down[:, cut:].clone()
    return new


@torch.no_grad()
def _logit_difference(llama: LlamaConfig, state: Mapping[str, Tensor], directory: Path, ids: Tensor) -> float:
    """Computes the largest logit difference between the Llama and the checkpoint, over the tokens of one text."""
    with torch.device("meta"):
        dense = LlamaForCausalLM(llama)
    tied = {"lm_head.weight": state["model.embed_tokens.weight"]} if llama.tie_word_embeddings else {}
    dense.load_state_dict({**state, **tied}, assign=True)
    dense.model.rotary_emb = type(dense.model.rotary_emb)(llama)  # its frequencies are in no state
    want, model = dense.train(False)(ids).logits, load_model(directory)
    found = [model(ids).logits]
    as_stored(model)  # as others compute it
    found.append(model(ids).logits)
    return max(float((logits - want).abs().max()) for logits in found)
