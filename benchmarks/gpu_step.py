"""A private training step of a whole model on a GPU: random weights in the shape of DeepSeek-V3, experts in nf4.

    plain      forward, backward, nothing else
    clipped    gradients record by record, clipped and summed exactly: what a site does without noise
    private    the same with the noise, which the CPU draws from the operating system

Every record is a unit. The loss is that of completions, the second half of each record. Weights are drawn where they
are used, so no checkpoint is written. The linear layers of the decoder are in nf4 too.

`benchmarks/gpu.py` runs this.
"""

import math
from dataclasses import asdict, dataclass

import numpy as np
import torch
from gpu_timing import added_mib, allocated_on, medians_on
from torch import nn
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

from confide.kernels.experts import Experts
from confide.kernels.formats import NF4_BLOCK, NF4Block64
from confide.kernels.install import fill, install, refuse_saving
from confide.kernels.linear import quantise_linear
from confide.models.adapters import AdaptedModel, AdapterConfig, attach
from confide.models.backbones.families import family_in
from confide.models.backbones.packing import linear_layers
from confide.privacy.mechanism.batches import BatchShapes, probed_shapes
from confide.privacy.mechanism.site_round import ReleaseTerms, private_release

ATTENTION = ("q_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj")
SIGMA, SCALE_BITS = 2**24, 24


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """Sizes of a backbone, and the batch that it sees."""

    hidden: int
    layers: int
    experts: int
    expert_hidden: int
    top_k: int
    words: int = 32_000
    heads: int = 16
    records: int = 16
    tokens: int = 256  # of a record

    def config(self) -> DeepseekV3Config:
        per_head = max(8, self.hidden // self.heads)
        return DeepseekV3Config(
            vocab_size=self.words,
            hidden_size=self.hidden,
            intermediate_size=4 * self.hidden,
            moe_intermediate_size=self.expert_hidden,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.heads,
            n_shared_experts=1,
            n_routed_experts=self.experts,
            num_experts_per_tok=self.top_k,
            n_group=1,
            topk_group=1,
            first_k_dense_replace=1,
            q_lora_rank=None,
            kv_lora_rank=max(8, self.hidden // 4),
            qk_rope_head_dim=per_head // 2,
            qk_nope_head_dim=per_head,
            v_head_dim=per_head,
            max_position_embeddings=self.tokens,
            use_cache=False,
            pad_token_id=0,
        )

    @property
    def expert_parameters(self) -> int:
        return (self.layers - 1) * self.experts * 3 * self.hidden * self.expert_hidden


MODELS = {
    "1b": Model(hidden=1024, layers=12, experts=64, expert_hidden=512, top_k=6),
    "3b": Model(hidden=2048, layers=10, experts=64, expert_hidden=704, top_k=6),
    "7b": Model(hidden=2048, layers=13, experts=64, expert_hidden=1408, top_k=6),
}
TINY = Model(hidden=32, layers=2, experts=2, expert_hidden=32, top_k=1, words=64, heads=2, records=2, tokens=16)


def random_nf4(shape: tuple[int, int, int], device: torch.device, dtype: torch.dtype) -> NF4Block64:
    """Codes at random, in blocks whose largest number gives products of the size of their inputs."""
    experts, outputs, inputs = shape
    blocks = -(-outputs * inputs // NF4_BLOCK)
    codes = torch.randint(0, 256, (experts, blocks * NF4_BLOCK // 2), dtype=torch.uint8, device=device)
    largest = torch.full((experts, blocks), 2 * inputs**-0.5, device=device)
    return NF4Block64(codes, largest, torch.Size(shape), dtype)


def backbone(model: Model, device: torch.device, dtype: torch.dtype) -> DeepseekV3ForCausalLM:
    """A causal model of random weights in nf4: routed experts, which were never anything else, and linear layers."""
    config = model.config()
    config._experts_implementation = install()
    with torch.device("meta"):
        made = DeepseekV3ForCausalLM(config).to(dtype)
        for module in made.modules():
            if hasattr(module, "e_score_correction_bias"):
                module.float()  # a router, as checkpoints are loaded
    for module in made.modules():
        if hasattr(module, "has_gate") and hasattr(module, "is_transposed"):
            shapes = tuple(module.gate_up_proj.shape), tuple(module.down_proj.shape)
            del module.gate_up_proj, module.down_proj
            fill(module, Experts(*(random_nf4(shape, device, dtype) for shape in shapes)))
    made.to_empty(device=device)
    made.model.rotary_emb = type(made.model.rotary_emb)(config).to(device)  # its buffers are no weights
    with torch.no_grad():
        for name, tensor in (*made.named_parameters(), *made.named_buffers()):
            if name.endswith("e_score_correction_bias"):
                tensor.zero_()
            elif isinstance(tensor, nn.Parameter):
                tensor.fill_(1.0) if tensor.ndim == 1 else tensor.normal_(std=tensor.shape[-1] ** -0.5)
    quantise_linear(made, linear_layers(family_in(made), made), NF4Block64.quantised)
    refuse_saving(made)
    return made.eval()


def terms(model: Model, mode: str) -> ReleaseTerms:
    return ReleaseTerms(
        mode=mode,
        clip_norm=1.0,
        sample_rate=1.0,
        site_noise_int=0 if mode == "none" else SIGMA,
        scale_bits=SCALE_BITS,
        max_rows_per_batch=model.records,
        max_records_per_unit=1,
    )


def measured(model: Model, device: torch.device, dtype: torch.dtype, *, seconds: float) -> list[dict[str, object]]:
    """A row for adapters on attention alone, and one for experts too.

    Raises:
        RuntimeError: a step's sum is not finite, or longer than clipping allows.
    """
    rows = []
    for places, targets in (("attention", ATTENTION), ("attention, experts", (*ATTENTION, "experts"))):
        made = backbone(model, device, dtype)
        adapted = attach(made, AdapterConfig(rank=8, alpha=8.0, targets=targets, seed="bench"))
        rows.append({"adapters on": places} | _row(adapted, model, device, seconds))
        del made, adapted
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return rows


def _row(adapted: AdaptedModel, model: Model, device: torch.device, seconds: float) -> dict[str, object]:
    at_rest = allocated_on(device)
    shapes = probed_shapes(adapted, max_tokens=model.tokens - 1, max_rows=model.records, max_records=1)
    rng = np.random.default_rng(0)
    ids = rng.integers(1, model.words, (model.records, model.tokens))
    ids[:, -1] = 0  # one token of padding is always left
    is_completion = (np.arange(model.tokens) >= model.tokens // 2) & (ids > 0)
    ids_on, completion_on = torch.from_numpy(ids).to(device), torch.from_numpy(is_completion).to(device)

    def plain() -> None:
        for parameter in adapted.trained.values():
            parameter.grad = None
        adapted.losses(ids_on, completion_on).sum().backward()

    def released(mode: str) -> np.ndarray:
        for parameter in adapted.trained.values():
            parameter.grad = None
        units = np.arange(model.records)
        return private_release(adapted, ids, is_completion, units, terms=terms(model, mode), shapes=shapes)

    total = released("none") * 2.0**-SCALE_BITS
    length, most = float(np.linalg.norm(total)), model.records + math.sqrt(adapted.layout.dim) * 2.0**-SCALE_BITS
    if not 0 < length <= most:  # nan is neither
        raise RuntimeError(f"the clipped sum of {model.records} records has length {length}, not in (0, {most}]")
    calls = {"plain": plain, "clipped": lambda: released("none"), "private": lambda: released("local")}
    times = medians_on(device, calls, seconds=seconds)
    peaks = {name: added_mib(device, call) for name, call in calls.items() if times[name] is not None}
    return {
        "trained numbers": adapted.layout.dim,
        "batches": str(shapes),
        "rows agree": shapes != BatchShapes(),
        "MiB at rest": at_rest,
        "ms": times,
        "added MiB": peaks,
        "sizes": asdict(model),
    }
