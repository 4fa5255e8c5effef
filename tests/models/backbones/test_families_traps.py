"""What looks like a family's checkpoint and is not: refused by name. And what looks like a trap and is none."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GraniteMoeHybridConfig, GraniteMoeHybridForCausalLM, MixtralConfig, MixtralForCausalLM

from confide.client_node.study.terms import AdapterTerms
from confide.models.adapters import AdapterConfig, attach
from confide.models.backbones import families
from confide.models.backbones.checkpoints import load_model, size
from confide.models.backbones.family import BackboneConfig
from confide.models.backbones.loading import build
from confide.models.errors import InvalidBackbone, TargetMissing, UnsupportedModule
from confide.models.records.fields import FlagField, RecordSchema
from confide.models.records.text import PromptEncoder, PromptTemplate
from confide.privacy.errors import UnitsCoupled
from confide.privacy.mechanism.independence import refuse_dependence, unit_gradient

from ..tiny import byte_tokenizer, random_ids

TINY = {
    "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "vocab_size": 64, "num_local_experts": 4, "pad_token_id": 0,
}  # fmt: skip


def checkpoint(directory, family, **settings):
    """A built model as a plain checkpoint, whose config.json says something else in these settings; None leaves out."""
    model = build(RecordSchema(flags=(FlagField("sick"),)), BackboneConfig(family=family, hidden=32, heads=2))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * parameter.shape[-1] ** -0.5)
    model.save_pretrained(directory)
    change_config(directory, **settings)
    return directory


def change_config(directory, **settings):
    config = json.loads((directory / "config.json").read_text()) | settings
    (directory / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


@pytest.mark.parametrize(
    ("family", "settings", "said"),
    [
        ("llama", {"attention_dropout": 0.1}, "attention_dropout is 0.1, which draws random numbers for a whole batch"),
        ("mixtral", {"router_jitter_noise": 0.01}, "router_jitter_noise is 0.01, which draws random numbers"),
        ("qwen3", {"use_kernels": True}, "use_kernels is True, which makes transformers fetch code from a hub"),
        ("deepseek_v2", {"topk_method": "noaux_tc"}, "topk_method is 'noaux_tc', and transformers computes greedy and"),
        ("deepseek_v2", {"norm_topk_prob": True}, "norm_topk_prob is true, and transformers' router"),
        ("llama", {"model_type": "gemma"}, "model_type 'gemma', an architecture without a family here; there are deep"),
        ("llama", {"model_type": None}, "config.json has no model_type"),
    ],
)
def test_a_config_that_cannot_be_adapted_is_refused_by_name(tmp_path, family, settings, said):
    with pytest.raises(InvalidBackbone, match=re.escape(said)) as refused:
        load_model(checkpoint(tmp_path / "backbone", family, **settings))
    assert str(refused.value).startswith(f"{tmp_path / 'backbone'}: config.json")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("target", "why"),
    [
        ("out_proj", "a Mamba-2 layer in training mode gives its weight to a fused kernel and passes an adapter by"),
        ("conv1d", "no adapter fits the short convolution"),
        ("lm_head", "a pooled head never runs lm_head"),
    ],
)
def test_a_target_that_no_family_takes_is_refused_in_a_study_with_the_reason(target, why):
    with pytest.raises(ValueError, match=f"left out: {why}"):
        AdapterTerms(rank=2, alpha=2.0, targets=(target,), seed="x")


def test_every_target_of_every_family_can_be_named_in_a_study():
    for family in families.FAMILIES.values():
        assert AdapterTerms(rank=2, alpha=2.0, targets=family.targets, seed="x").targets == family.targets
        assert not {*family.frozen} & {*family.targets}


def test_a_weight_that_is_read_past_its_module_takes_no_adapter():
    config = GraniteMoeHybridConfig(**TINY, layer_types=["linear_attention", "full_attention"], mamba_n_heads=4)
    model = GraniteMoeHybridForCausalLM(config)
    with pytest.raises(UnsupportedModule, match=r"layers.0.mamba.out_proj is read past its module by"):
        attach(model, AdapterConfig(rank=1, alpha=1.0, targets=("out_proj",), seed="x"))


def test_a_coefficient_of_a_balance_loss_is_none_of_ours():
    """All published Mixtrals have one. Transformers adds that loss to its own, which it computes for nobody here."""
    gradients, ids = [], random_ids(4)
    for coefficient in (0.0, 100.0):
        torch.manual_seed(0)
        model = MixtralForCausalLM(MixtralConfig(**TINY, router_aux_loss_coef=coefficient))
        adapted = attach(model, AdapterConfig(rank=1, alpha=1.0, targets=("experts", "gate"), seed="x"))
        adapted.load_state(np.random.default_rng(0).normal(size=adapted.layout.dim))
        refuse_dependence(adapted, words=64)
        gradients.append(unit_gradient(adapted, lambda ids, of=adapted: of.losses(ids, ids > 0), ids))
    assert all(torch.equal(grad, gradients[1][name]) for name, grad in gradients[0].items())
    adapted.model.config.output_router_logits = True
    with pytest.raises(UnitsCoupled, match=r"MixtralConfig\.output_router_logits is True, which ties the tokens"):
        refuse_dependence(adapted, words=64)


def test_the_side_on_which_a_tokenizer_pads_does_not_matter():
    """A state-space layer would carry padding on the left into the record."""
    template, columns = PromptTemplate("of {note}", "{code}"), {"note": ["ab", "abcdef"], "code": ["x", "y"]}
    tokenizer = byte_tokenizer()
    right, _ = PromptEncoder(template, tokenizer, 16).encode(columns)
    tokenizer.padding_side = "left"
    left, _ = PromptEncoder(template, tokenizer, 16).encode(columns)
    np.testing.assert_array_equal(left, right)
    assert right[:, 0].all()
    assert not right[0, -1]


PUBLISHED = {  # what config.json has on a hub, where transformers writes something else
    "qwen3_moe": {"num_experts": 8, "num_local_experts": None, "router_aux_loss_coef": 0.001, "decoder_sparse_step": 1},
    "mixtral": {"router_aux_loss_coef": 0.02, "sliding_window": None},
    "deepseek_v3": {
        "aux_loss_alpha": 0.001, "seq_aux": True, "scoring_func": "sigmoid", "topk_method": "noaux_tc", "ep_size": 1,
    },
    "deepseek_v2": {"aux_loss_alpha": 0.001, "seq_aux": True, "scoring_func": "softmax", "topk_method": "greedy"},
    "granitemoehybrid": {
        "layer_types": ["mamba", "attention"], "time_step_limit": None, "router_aux_loss_coef": 0.0001,
        "mamba_proj_bias": False, "position_embedding_type": "nope", "init_method": "mup",
    },
    "kimi_linear": {
        "layer_types": None, "mlp_layer_types": None, "linear_head_dim": None, "linear_num_heads": None,
        "linear_conv_kernel_dim": None, "first_k_dense_replace": 1, "moe_layer_freq": 1, "num_nextn_predict_layers": 0,
        "linear_attn_config": {
            "full_attn_layers": [2], "kda_layers": [1], "head_dim": 16, "num_heads": 2, "short_conv_kernel_size": 4,
        },
        "moe_router_activation_func": "sigmoid", "use_grouped_topk": True, "mla_use_nope": True,
    },
}  # fmt: skip


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", *PUBLISHED])
def test_a_config_as_it_is_published_describes_the_same_model(family, tmp_path):
    folder = checkpoint(tmp_path / "backbone", family)
    with torch.no_grad():
        want, counted = load_model(folder)(torch.tensor([[1, 2, 1, 2]])).logits, size(folder)
    theta = json.loads((folder / "config.json").read_text()).get("rope_parameters", {}).get("rope_theta")
    change_config(
        folder, **PUBLISHED.get(family, {}), rope_parameters=None, rope_theta=theta, torch_dtype="bfloat16",
        dtype=None, transformers_version="4.44.0", auto_map={"AutoModelForCausalLM": "modeling.Model"},
    )  # fmt: skip
    if family == "kimi_linear":  # transformers writes the dense layer under a name of the others
        rename(folder / "model.safetensors", r"^(model.layers.0).block_sparse_moe.", r"\1.mlp.")
    with torch.no_grad():
        got = load_model(folder)(torch.tensor([[1, 2, 1, 2]])).logits
    assert torch.equal(got, want)
    assert size(folder).parameters == counted.parameters
    assert size(folder).active_parameters == counted.active_parameters


def rename(path, pattern, new):
    tensors = load_file(path)
    renamed = {re.sub(pattern, new, name): tensor for name, tensor in tensors.items()}
    assert renamed.keys() != tensors.keys()
    save_file(renamed, path, metadata={"format": "pt"})


def test_angles_that_old_checkpoints_store_are_no_parameters(tmp_path):
    folder = checkpoint(tmp_path / "backbone", "llama")
    counted = size(folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert size(folder).parameters == counted.parameters
    load_model(folder)


def test_a_family_that_is_not_in_the_table_is_not_built(tmp_path):
    with pytest.raises(InvalidBackbone, match="no family 'gemma'; there are deepseek_v3, deepseek_v2, llama"):
        build(RecordSchema(flags=(FlagField("sick"),)), BackboneConfig(family="gemma"))


@pytest.mark.parametrize("family", ["granitemoehybrid", "llama"])
def test_probes_are_no_longer_than_a_record_may_be(family):
    config = families.FAMILIES[family].config_class()()
    borders = (64, 256) if family == "granitemoehybrid" else ()
    for longest in (64, 65, 256, 257):
        want = (7, *(border + 2 for border in borders if border < longest))
        assert families.FAMILIES[family].probe_lengths(config, longest) == want


def test_the_table_in_the_docs_is_the_table_of_families():
    """After a change: print the rows and put them into docs/backbones.md."""
    page = (Path(__file__).parents[3] / "docs" / "backbones.md").read_text()
    rows = [line for line in page.splitlines() if re.match(r"\| [^|]+ \| `[a-z0-9_]+` \| ", line)]
    assert rows[1:] == [row(family) for family in families.FAMILIES.values()]


def row(family):
    def code(names):
        return ", ".join(f"`{name}`" for name in names) or "–"

    projections = [name for name in family.targets if name not in ("experts", family.router)]
    routed = code(["experts"] if family.experts else []), code([family.router] if family.router else [])
    cells = family.name, f"`{family.model_type}`", family.published, code(projections), *routed, code(family.frozen)
    return f"| {' | '.join(cells)} |"


def test_a_granite_without_routed_experts_is_of_its_family_too(tmp_path):
    """Granite-4.0-Micro is one: attention and shared MLPs alone."""
    config = GraniteMoeHybridConfig(
        **TINY | {"num_local_experts": 0, "num_experts_per_tok": 0}, layer_types=["full_attention"] * 2, mamba_n_heads=4
    )
    model = GraniteMoeHybridForCausalLM(config)
    model.save_pretrained(tmp_path / "backbone")
    counted = size(tmp_path / "backbone")
    assert counted.parameters == counted.active_parameters == sum(p.numel() for p in model.parameters())
    config_of = {"rank": 1, "alpha": 1.0, "seed": "x"}
    adapted = attach(load_model(tmp_path / "backbone"), AdapterConfig(**config_of, targets=("input_linear",)))
    refuse_dependence(adapted, words=64, lengths=families.named("granitemoehybrid").probe_lengths(config, 4096))
    with pytest.raises(TargetMissing, match="no module named router"):
        attach(load_model(tmp_path / "backbone"), AdapterConfig(**config_of, targets=("router",)))
