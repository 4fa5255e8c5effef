"""Resumed at its lowest adapted layer, every family's own forward pass gives what all layers give."""

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from confide.models.adapters import AdapterConfig, attach
from confide.models.errors import InvalidAdapter
from confide.models.heads import PooledHead, foretell
from confide.privacy.mechanism.independence import kept_gap, refuse_dependence

from ..tiny import VOCABULARY, random_ids, tiny_deepseek

SIZES = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2, "use_cache": False,
}  # fmt: skip
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 24}
MLA = {
    "num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8,
    "v_head_dim": 8, "n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 1,
}  # fmt: skip
SLIDING = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}
FAMILIES = {
    "llama": {},
    "qwen2": SLIDING,  # the first layer looks at all, the others at a window: a layer's place chooses its mask
    "qwen3": SLIDING | {"head_dim": 8},
    "qwen3_moe": EXPERTS | {"num_experts": 4, "head_dim": 8},
    "mixtral": {"num_experts_per_tok": 2, "num_local_experts": 4},
    "deepseek_v2": EXPERTS | MLA | {"topk_method": "greedy"},
    "deepseek_v3": EXPERTS | MLA | {"n_group": 1, "topk_group": 1},
    "granitemoehybrid": {  # scales its embeddings
        "num_local_experts": 4, "num_experts_per_tok": 2, "shared_intermediate_size": 24, "embedding_multiplier": 12.0,
        "residual_multiplier": 0.2, "layer_types": ["mamba", "attention", "mamba", "attention"], "mamba_n_heads": 4,
        "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 16,
    },
    "kimi_linear": EXPERTS | MLA | {
        "num_experts": 4, "layer_types": ["linear_attention", "linear_attention", "full_attention", "full_attention"],
        "linear_attn_config": {
            "kda_layers": [1, 2], "full_attn_layers": [3, 4], "head_dim": 8, "num_heads": 4,
            "short_conv_kernel_size": 4,
        },
    },
}  # fmt: skip


def adapted(name: str, layers: tuple[int, ...] = (2, 3), targets: tuple[str, ...] = ("o_proj",)):
    torch.manual_seed(0)
    config = AutoConfig.for_model(name, **{**SIZES, **FAMILIES[name]})
    config._experts_implementation = "eager"
    model = AutoModelForCausalLM.from_config(config)
    found = attach(model, AdapterConfig(rank=2, alpha=4.0, targets=targets, seed="s", layers=layers))
    found.load_state(np.random.default_rng(0).normal(size=found.layout.dim) * 0.2)
    return found


@pytest.mark.parametrize("name", FAMILIES)
def test_resumed_from_kept_states_a_family_foretells_what_it_does_in_full(name):
    model = adapted(name, (3,) if name == "granitemoehybrid" else (2, 3))
    assert model.frozen_layers == (3 if name == "granitemoehybrid" else 2)
    ids = random_ids(5, 9)
    ids[1, 6:] = 0
    is_completion = ids > 0
    is_completion[:, :3] = False
    with torch.no_grad():
        states = model.entering(ids)
        assert states.shape == (5, 9, 32)
        states[1, 6:] = 0.0  # what stands behind a record's last token is nobody's affair
        whole, resumed = model.losses(ids, is_completion), model.losses(ids, is_completion, states)
        moved = model.losses(ids, is_completion, states + 0.1)
        alone = torch.cat([model.entering(row[None]) for row in ids])
    torch.testing.assert_close(resumed, whole, rtol=1e-6, atol=0)
    assert not torch.allclose(moved, whole, rtol=1e-3)  # they are used
    torch.testing.assert_close(alone[0], states[0], rtol=1e-4, atol=1e-6)
    assert kept_gap(model, words=VOCABULARY) < 1e-6


def test_kept_states_are_what_transformers_itself_gives_for_the_layer():
    model = adapted("llama")
    ids = random_ids(2, 6)
    with torch.no_grad():
        states = model.model.model(input_ids=ids, output_hidden_states=True).hidden_states
        kept = model.entering(ids)
    torch.testing.assert_close(kept, states[2])


def test_a_pooled_classifier_reads_its_first_states_from_the_tokens_as_ever():
    g = torch.Generator().manual_seed(1)
    head = PooledHead(torch.randn(64, generator=g), torch.randn(64, 64, generator=g) / 8)
    config = AdapterConfig(rank=2, alpha=4.0, targets=("o_proj",), seed="s", layers=(1,))
    model = attach(tiny_deepseek(), config, head)
    model.load_state(np.random.default_rng(0).normal(size=model.layout.dim) * 0.2)
    ids, labels = random_ids(4, 8), torch.tensor([0, 1, 1, 0])
    ids[2, 3:] = 0
    with torch.no_grad():
        whole = model.losses(ids, labels)
        torch.testing.assert_close(model.losses(ids, labels, model.entering(ids)), whole, rtol=1e-6, atol=0)


def test_a_head_alone_is_trained_from_what_the_last_layer_gives():
    head = PooledHead(torch.zeros(64), torch.eye(64))
    model = attach(tiny_deepseek(), AdapterConfig(rank=2, alpha=4.0, targets=(), seed="s"), head)
    assert model.frozen_layers == 2
    model.load_state(np.random.default_rng(0).normal(size=model.layout.dim))
    ids, labels = random_ids(3, 8), torch.tensor([0, 1, 1])
    with torch.no_grad():
        whole = model.losses(ids, labels)
        torch.testing.assert_close(model.losses(ids, labels, model.entering(ids)), whole, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("targets", "layers", "frozen"),
    [
        (("o_proj",), None, 0),
        (("o_proj",), (1, 3), 1),
        (("gate",), None, 1),  # routers, which the first layer has none of
        (("gate",), (3,), 3),
        (("experts",), (2,), 2),
        (("embed_tokens",), None, 0),
        (("o_proj", "lm_head"), None, 0),  # an output matrix lies above all layers, and is not known to
    ],
)
def test_layers_are_frozen_below_the_lowest_adapter_of_any_kind(targets, layers, frozen):
    assert adapted("deepseek_v3", layers, targets).frozen_layers == frozen


def test_something_else_that_is_trained_below_leaves_nothing_to_keep():
    from confide.models.adapters.resuming import frozen_layers

    model = adapted("llama", (3,))
    names = list(model.adapters)
    assert frozen_layers(model.model, names) == 3
    model.model.model.layers[1].input_layernorm.weight.requires_grad_(True)
    assert frozen_layers(model.model, names) == 1
    model.model.model.norm.weight.requires_grad_(True)
    assert frozen_layers(model.model, names) == 0


def test_a_layer_at_two_places_leaves_nothing_to_keep():
    from confide.models.adapters.resuming import frozen_layers

    model = adapted("llama", (3,))
    model.model.model.layers[1] = model.model.model.layers[0]
    assert frozen_layers(model.model, list(model.adapters)) == 0


def test_where_all_layers_are_trained_there_are_no_states_to_keep():
    with pytest.raises(InvalidAdapter, match="nothing to keep"):
        adapted("llama", None).entering(random_ids(1, 4))


def test_states_of_other_records_are_refused_and_the_layers_are_put_back():
    model = adapted("llama")
    ids, layers = random_ids(2, 6), model.model.model.layers
    states = model.entering(ids)
    with pytest.raises(InvalidAdapter, match="kept states of shape"):
        model.losses(ids[:, :4], ids[:, :4] > 0, states)
    with pytest.raises(InvalidAdapter, match="must not be trained"):
        model.losses(ids, ids > 0, states.requires_grad_())
    assert model.model.model.layers is layers
    assert foretell(model.model, ids, ids > 0).losses_N.isfinite().all()


def test_coupling_that_only_shows_from_kept_states_is_refused():
    """Rows are watched on the path that trains."""
    model = adapted("llama")
    refuse_dependence(model, words=VOCABULARY, are_kept=True)
    seen = []
    true_losses = model.losses

    def coupled(ids, targets, entering=None):
        if entering is not None:
            seen.append(len(ids))
            entering = entering + entering.mean(0, keepdim=True)
        return true_losses(ids, targets, entering)

    model.losses = coupled
    refuse_dependence(model, words=VOCABULARY)
    from confide.privacy.errors import UnitsCoupled

    with pytest.raises(UnitsCoupled, match="moves when other rows are"):
        refuse_dependence(model, words=VOCABULARY, are_kept=True)
    assert seen
