"""Checkpoints as DeepSeek publishes DeepSeek-V3: linear weights in e4m3 codes, a scale for each tile of 128 x 128."""

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

from confide.kernels.formats import BFloat16, FP8Block128, Int8Row, NF4Block64
from confide.kernels.linear import packed_stacks
from confide.models.adapters import AdapterConfig, attach
from confide.models.adapters.merging import merged
from confide.models.backbones.checkpoints import load_model, quietly, size, write_json
from confide.models.errors import InvalidBackbone

from ..tiny import random_ids

STATED = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}
O_PROJ = "model.layers.0.self_attn.o_proj.weight"
EXPERT = "model.layers.1.mlp.experts.2.up_proj.weight"
IDS = random_ids(2)


def model(expert_width=128):
    """Sides that are not whole tiles, and one bank of experts."""
    config = DeepseekV3Config(
        vocab_size=64, hidden_size=160, intermediate_size=192, moe_intermediate_size=expert_width, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=4, n_routed_experts=4, num_experts_per_tok=2, n_group=1,
        topk_group=1, first_k_dense_replace=1, q_lora_rank=32, kv_lora_rank=32, qk_rope_head_dim=16,
        qk_nope_head_dim=32, v_head_dim=40, max_position_embeddings=64, pad_token_id=0, attention_bias=True,
    )  # fmt: skip
    made = DeepseekV3ForCausalLM(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3 + (parameter.ndim == 1))
    return made


def tiles(shape):
    for row in range(0, shape[0], 128):
        for column in range(0, shape[1], 128):
            yield (row // 128, column // 128), (slice(row, row + 128), slice(column, column + 128))


def quantised(weight):
    """Codes and scales, tile by tile."""
    codes = torch.empty(weight.shape, dtype=torch.float8_e4m3fn)
    scales = torch.empty(-(-weight.shape[0] // 128), -(-weight.shape[1] // 128))
    for place, tile in tiles(weight.shape):
        scales[place] = weight[tile].abs().max() / 448
        codes[tile] = (weight[tile] / scales[place]).to(torch.float8_e4m3fn)
    return codes, scales


def widened(codes, scales):
    """What codes stand for, tile by tile in float64, rounded once."""
    weight = torch.empty(codes.shape, dtype=torch.float64)
    for place, tile in tiles(codes.shape):
        weight[tile] = codes[tile].double() * scales[place].double()
    return weight.float()


def is_linear(name):
    return "proj" in name and name.endswith("weight") and "layernorm" not in name


def write(folder, made, *, scale_dtype=torch.float32, shard="1GB"):
    """Writes the model in fp8, and beside it in float32 what its codes stand for; returns both folders."""
    fp8, plain = folder / "fp8", folder / "plain"
    with quietly():
        made.save_pretrained(fp8, max_shard_size=shard)
        made.save_pretrained(plain, max_shard_size=shard)
    for path in fp8.glob("*.safetensors"):
        stored = load_file(path)
        numbers = dict(stored)
        for name in filter(is_linear, list(stored)):
            codes, scales = quantised(stored[name])
            stored[name], stored[f"{name}_scale_inv"] = codes, scales.to(scale_dtype)
            numbers[name] = widened(codes, scales.to(scale_dtype))
        save_file(stored, path, metadata={"format": "pt"})
        save_file(numbers, plain / path.name, metadata={"format": "pt"})
        index = fp8 / "model.safetensors.index.json"
        if index.exists():
            weight_map = json.loads(index.read_text())["weight_map"] | dict.fromkeys(stored, path.name)
            write_json(index, {"metadata": {}, "weight_map": weight_map})
    edit(fp8, quantization_config=STATED)
    return fp8, plain


def edit(folder, **changes):
    write_json(folder / "config.json", json.loads((folder / "config.json").read_text()) | changes)


def edit_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture
def both(tmp_path):
    return write(tmp_path, model())


@pytest.mark.parametrize("shard", ["200KB", "1GB"])
@pytest.mark.parametrize("scale_dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_in_float32_it_is_the_checkpoint_of_what_its_codes_stand_for(tmp_path, shard, scale_dtype):
    fp8, plain = write(tmp_path, model(), shard=shard, scale_dtype=scale_dtype)
    loaded, want = load_model(fp8), load_model(plain)
    assert type(loaded) is DeepseekV3ForCausalLM
    assert loaded.state_dict().keys() == want.state_dict().keys()
    for name, tensor in want.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    torch.testing.assert_close(loaded(IDS).logits, want(IDS).logits, rtol=1e-5, atol=1e-5)
    assert size(fp8).parameters == size(plain).parameters
    assert size(fp8).active_parameters == size(plain).active_parameters


@torch.no_grad()
def test_held_in_fp8_nothing_is_rounded_and_a_weight_takes_a_byte(both):
    held = load_model(both[0], pack=FP8Block128.quantised, pack_linear=FP8Block128.quantised)
    want = load_model(both[1]).state_dict()
    stacks = {name: packed_stacks(module) for name, module in held.named_modules()}
    for name in filter(is_linear, want):
        (stack,) = stacks[name.removesuffix(".weight")]
        assert torch.equal(stack.dense()[0], want[name])
        assert stack.codes_EOI.element_size() == 1
    gate_up, down = stacks["model.layers.1.mlp.experts"]
    assert torch.equal(gate_up.dense(), want["model.layers.1.mlp.experts.gate_up_proj"])
    assert torch.equal(down.dense(), want["model.layers.1.mlp.experts.down_proj"])
    logits = load_model(both[1])(IDS).logits
    assert (held(IDS).logits - logits).norm() < 1e-5 * logits.norm()


@pytest.mark.parametrize("form", [Int8Row, NF4Block64, BFloat16])
@torch.no_grad()
def test_packed_in_another_format_it_is_the_packed_model_of_what_its_codes_stand_for(both, form):
    one, other = (load_model(folder, pack=form.quantised, pack_linear=form.quantised) for folder in both)
    assert torch.equal(one(IDS).logits, other(IDS).logits)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # of a name that PEFT calls
@torch.no_grad()
def test_peft_computes_on_the_widened_checkpoint_what_we_compute_on_the_codes(both):
    held = load_model(both[0], pack=FP8Block128.quantised, pack_linear=FP8Block128.quantised)
    adapted = attach(held, AdapterConfig(rank=4, alpha=8.0, targets=("o_proj",), seed="s", freeze_a=False))
    plain = get_peft_model(load_model(both[1]), LoraConfig(r=4, lora_alpha=8.0, target_modules=["o_proj"]))
    for name, adapter in adapted.adapters.items():
        adapter.lora_B.normal_()
        theirs = plain.base_model.model.get_submodule(name)
        theirs.lora_A["default"].weight.copy_(adapter.lora_A)
        theirs.lora_B["default"].weight.copy_(adapter.lora_B)
    want = plain(IDS).logits
    assert (held(IDS).logits - want).norm() < 1e-5 * want.norm()


@torch.no_grad()
def test_adapters_are_merged_into_what_the_codes_stand_for_and_saved_as_plain_weights(both, tmp_path):
    adapted = attach(load_model(both[0]), AdapterConfig(rank=4, alpha=8.0, targets=("o_proj",), seed="s"))
    for adapter in adapted.adapters.values():
        adapter.lora_B.normal_()
    before = adapted.model(IDS).logits
    with merged(adapted) as whole:
        whole.save_pretrained(tmp_path / "merged")
    assert "quantization_config" not in json.loads((tmp_path / "merged" / "config.json").read_text())
    got = load_model(tmp_path / "merged")(IDS).logits
    assert (got - before).norm() < 1e-5 * before.norm()


def test_experts_that_are_no_whole_tiles_are_widened_or_refused(tmp_path):
    fp8, plain = write(tmp_path, model(expert_width=72))
    with torch.no_grad():
        torch.testing.assert_close(load_model(fp8)(IDS).logits, load_model(plain)(IDS).logits, rtol=1e-5, atol=1e-5)
    load_model(fp8, pack=Int8Row.quantised)
    with pytest.raises(InvalidBackbone, match="width 72 in fp8 cannot be joined"):
        load_model(fp8, pack=FP8Block128.quantised)


def nan_code(weights):
    weights[O_PROJ].view(torch.uint8)[3, 4] = 0x7F


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda w: w.pop(f"{O_PROJ}_scale_inv"), f"{O_PROJ} has fp8 codes without scales"),
        (lambda w: w.pop(f"{EXPERT}_scale_inv"), f"{EXPERT} has fp8 codes without scales"),
        (lambda w: w.update({O_PROJ: w[O_PROJ].float()}), f"{O_PROJ} has scales of what is not fp8"),
        (lambda w: w.pop(O_PROJ), f"{O_PROJ} has scales of what is not fp8"),
        (lambda w: w.update({f"{O_PROJ}_scale_inv": torch.ones(1, 1)}), "scale_inv is"),
        (lambda w: w.update({f"{O_PROJ}_scale_inv": w[f"{O_PROJ}_scale_inv"].T.contiguous().view(-1)}), "scale_inv is"),
        (lambda w: w[f"{O_PROJ}_scale_inv"].fill_(torch.nan), "scales that are no size"),
        (lambda w: w[f"{EXPERT}_scale_inv"].fill_(torch.inf), "scales that are no size"),
        (lambda w: w[f"{EXPERT}_scale_inv"].fill_(-1.0), "scales that are no size"),
        (lambda w: w[f"{O_PROJ}_scale_inv"].fill_(200.0), "stand for weights that no model has"),
        (lambda w: w.update({f"{O_PROJ}_scale_inv": w[f"{O_PROJ}_scale_inv"].half()}), "float16, not float32"),
        (nan_code, "codes that are nan"),
        (
            lambda w: w.update(
                {"lm_head.weight": quantised(w["lm_head.weight"])[0], "lm_head.weight_scale_inv": torch.ones(1, 2)}
            ),
            "lm_head",
        ),
    ],
)
def test_codes_and_scales_that_do_not_fit_are_refused(both, change, why):
    edit_weights(both[0], change)
    for pack in (None, FP8Block128.quantised, NF4Block64.quantised):
        with pytest.raises(InvalidBackbone, match=why):
            load_model(both[0], pack=pack, pack_linear=pack)


def test_codes_that_the_configuration_does_not_name_are_refused(both):
    """Transformers would take the bare codes for weights."""
    edit(both[0], quantization_config=None)
    with pytest.raises(InvalidBackbone, match=r"is fp8, and config\.json has no quantization_config"):
        load_model(both[0])


@pytest.mark.parametrize(
    ("stated", "why"),
    [
        ({"quant_method": "gptq", "bits": 4}, r"quantised by 'gptq', which is not read: .* frozen = \"nf4\""),
        ({"quant_method": "awq"}, "quantised by 'awq'"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "quantised by 'bitsandbytes'"),
        ({"quant_method": "compressed-tensors"}, "quantised by 'compressed-tensors'"),
        ({}, "quantised by None"),
        ("fp8", "quantised by None"),
        (STATED | {"fmt": "e5m2"}, "have fmt 'e5m2', and 'e4m3' alone is read"),
        (STATED | {"weight_block_size": [64, 64]}, r"weight_block_size \[64, 64\]"),
        (STATED | {"activation_scheme": "static"}, "activation_scheme 'static'"),
    ],
)
def test_other_quantised_checkpoints_are_refused_by_name(both, stated, why):
    edit(both[0], quantization_config=stated)
    for read in (load_model, size):
        with pytest.raises(InvalidBackbone, match=why):
            read(both[0])
