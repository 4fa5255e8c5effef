import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

from confide.kernels.errors import SavedWithoutWeights
from confide.kernels.formats import BFloat16, FP8Block128, Int8Row, NF4Block64
from confide.kernels.install import quantise
from confide.kernels.linear import QuantisedLinear, quantise_linear
from confide.models.backbones.checkpoints import content_hash, load_model, quietly, write_json
from confide.models.backbones.families import family_in
from confide.models.backbones.packing import linear_layers
from confide.models.errors import BackboneMismatch, InvalidBackbone

from ..tiny import random_ids, tiny_deepseek

CHILD = Path(__file__).with_name("peak_of_loading.py")
EXPERT = "model.layers.1.mlp.experts.2.up_proj.weight"
IDS = random_ids(2)
every_format = pytest.mark.parametrize("form", [Int8Row, NF4Block64, FP8Block128, BFloat16])
LINEAR = "model.layers.1.self_attn.o_proj.weight"


@pytest.fixture
def directory(tmp_path):
    tiny_deepseek().save_pretrained(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """16 banks of 32 experts, 201 MB in float32, in shards that end within banks."""
    config = DeepseekV3Config(
        vocab_size=64, hidden_size=256, intermediate_size=256, moe_intermediate_size=128, num_hidden_layers=17,
        num_attention_heads=2, num_key_value_heads=2, n_routed_experts=32, num_experts_per_tok=2, n_group=1,
        topk_group=1, first_k_dense_replace=1, q_lora_rank=32, kv_lora_rank=32, qk_rope_head_dim=16,
        qk_nope_head_dim=16, v_head_dim=16, max_position_embeddings=64, pad_token_id=0,
    )  # fmt: skip
    directory = tmp_path_factory.mktemp("large") / "checkpoint"
    with quietly():
        DeepseekV3ForCausalLM(config).save_pretrained(directory, max_shard_size="20MB")
    assert len(list(directory.glob("*.safetensors"))) > 10
    return directory


def edit_weights(directory, change):
    weights = load_file(directory / "model.safetensors")
    change(weights)
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})


@every_format
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shard", ["20KB", "1GB"])
@torch.no_grad()
@pytest.mark.slow
def test_logits_are_bit_for_bit_those_of_quantising_the_whole_model(tmp_path, form, dtype, shard):
    tiny_deepseek().save_pretrained(tmp_path / "checkpoint", max_shard_size=shard)
    whole = load_model(tmp_path / "checkpoint", dtype=dtype)
    before = whole(IDS).logits
    quantise(whole, form.quantised)
    packed = load_model(tmp_path / "checkpoint", dtype=dtype, pack=form.quantised)
    assert torch.equal(packed(IDS).logits, whole(IDS).logits)
    assert not torch.equal(packed(IDS).logits, before)


def pack_linear(model, form):
    quantise_linear(model, linear_layers(family_in(model), model), form.quantised)


@every_format
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shard", ["20KB", "1GB"])
@torch.no_grad()
@pytest.mark.slow
def test_linear_layers_are_bit_for_bit_those_of_quantising_the_whole_model(tmp_path, form, dtype, shard):
    tiny_deepseek().save_pretrained(tmp_path / "checkpoint", max_shard_size=shard)
    for pack in (None, Int8Row.quantised):
        whole = load_model(tmp_path / "checkpoint", dtype=dtype, pack=pack)
        before = whole(IDS).logits
        pack_linear(whole, form)
        packed = load_model(tmp_path / "checkpoint", dtype=dtype, pack=pack, pack_linear=form.quantised)
        assert torch.equal(packed(IDS).logits, whole(IDS).logits)
        assert torch.equal(packed(IDS).logits, before) == (form is BFloat16 and dtype == torch.bfloat16)


def test_every_linear_layer_of_the_decoder_is_packed_and_nothing_else(directory):
    packed = load_model(directory, pack_linear=NF4Block64.quantised)
    linear = {name.rpartition(".")[2] for name, it in packed.named_modules() if isinstance(it, QuantisedLinear)}
    attention = {"q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"}
    assert linear == attention | {"gate_proj", "up_proj", "down_proj"}  # of dense layers and shared experts
    assert [name for name, it in packed.named_modules() if type(it) is torch.nn.Linear] == ["lm_head"]
    whole = load_model(directory).state_dict()
    found = packed.state_dict()
    assert {name.split(".")[-2] for name in whole.keys() - found.keys()} == linear
    assert all(torch.equal(found[name], whole[name]) for name in found)
    assert found["model.layers.1.mlp.gate.weight"].dtype == torch.float32
    with pytest.raises(SavedWithoutWeights):
        packed.save_pretrained(directory.parent / "copy")


@torch.no_grad()
def test_a_layer_keeps_its_bias(tmp_path):
    model = tiny_deepseek()
    config = DeepseekV3Config(**model.config.to_dict() | {"attention_bias": True})
    biased = DeepseekV3ForCausalLM(config)
    for name, parameter in biased.named_parameters():
        if name.endswith("bias"):
            parameter.normal_()
    biased.save_pretrained(tmp_path / "checkpoint")
    whole, packed = (
        load_model(tmp_path / "checkpoint"),
        load_model(tmp_path / "checkpoint", pack_linear=Int8Row.quantised),
    )
    name = "model.layers.0.self_attn.o_proj"
    assert torch.equal(packed.get_submodule(name).bias, whole.get_submodule(name).bias)
    pack_linear(whole, Int8Row)
    assert torch.equal(packed(IDS).logits, whole(IDS).logits)


@torch.no_grad()
def test_a_checkpoint_in_bfloat16_computes_bit_for_bit_what_it_does_in_float32(tmp_path):
    """At half of the memory, mapped from the file."""
    tiny_deepseek(dtype=torch.bfloat16).save_pretrained(tmp_path / "checkpoint")
    whole = load_model(tmp_path / "checkpoint")
    packed = load_model(tmp_path / "checkpoint", pack_linear=BFloat16.quantised)
    assert torch.equal(packed(IDS).logits, whole(IDS).logits)
    pointer = packed.model.layers[0].self_attn.o_proj.weight.stack.weight_EOI.data_ptr()
    maps = Path("/proc/self/maps").read_text().splitlines()
    ranges = [line.split()[0].split("-") for line in maps if line.endswith("checkpoint/model.safetensors")]
    assert any(int(start, 16) <= pointer < int(end, 16) for start, end in ranges)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_all_but_the_experts_is_what_the_whole_model_has(directory, dtype):
    whole, packed = load_model(directory, dtype=dtype), load_model(directory, dtype=dtype, pack=Int8Row.quantised)
    rest = {name: tensor for name, tensor in whole.state_dict().items() if ".mlp.experts." not in name}
    found = packed.state_dict()
    assert found.keys() == rest.keys()
    assert all(torch.equal(found[name], rest[name]) and found[name].dtype == rest[name].dtype for name in rest)
    assert not packed.training
    assert not any(parameter.requires_grad for parameter in packed.parameters())


def test_what_was_packed_while_loading_is_not_saved_without_its_experts(directory):
    packed = load_model(directory, pack=Int8Row.quantised)
    with pytest.raises(SavedWithoutWeights):
        packed.save_pretrained(directory.parent / "copy")
    assert not (directory.parent / "copy").exists()


def test_weights_stored_in_bfloat16_are_quantised_as_they_are_read(tmp_path):
    stored = tiny_deepseek(dtype=torch.bfloat16)
    stored.save_pretrained(tmp_path / "checkpoint")
    bank = load_model(tmp_path / "checkpoint", pack=Int8Row.quantised).model.layers[1].mlp.experts.confide_experts
    want = Int8Row.quantised(stored.model.layers[1].mlp.experts.gate_up_proj.float())
    assert torch.equal(bank.gate_up.codes_EOI, want.codes_EOI)
    assert torch.equal(bank.gate_up.scale_EO, want.scale_EO)


def test_another_content_is_refused_before_it_is_parsed(directory):
    good = content_hash(directory)
    load_model(directory, expected_hash=good, pack=Int8Row.quantised)
    (directory / "config.json").write_text("not even json")
    with pytest.raises(BackboneMismatch, match=f"expected {good}"):
        load_model(directory, expected_hash=good, pack=Int8Row.quantised)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda w: w.pop(EXPERT), EXPERT),
        (lambda w: w.update({EXPERT.replace(".2.", ".4."): w[EXPERT].clone()}), EXPERT.replace(".2.", ".4.")),
        (lambda w: w.update({EXPERT: w[EXPERT].T.contiguous()}), EXPERT),
        (lambda w: w.update({EXPERT.replace("s.1.", "s.2."): w[EXPERT].clone()}), "layers.2.mlp.experts"),
        (lambda w: w.pop("model.norm.weight"), "model.norm.weight"),
    ],
    ids=["one is missing", "one more", "transposed", "of a layer that is none", "another weight is missing"],
)
def test_experts_that_do_not_fit_the_configuration_are_refused(directory, change, named):
    edit_weights(directory, change)
    with pytest.raises(InvalidBackbone, match=named):
        load_model(directory, pack=Int8Row.quantised)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda w: w.pop(LINEAR), LINEAR),
        (lambda w: w.update({LINEAR: w[LINEAR][:, 1:].contiguous()}), LINEAR),
        (lambda w: w.update({LINEAR: torch.ones(32, 32, dtype=torch.int8)}), f"{LINEAR} is stored as torch.int8"),
        (lambda w: w.update({LINEAR.replace("o_proj", "x_proj"): w[LINEAR].clone()}), "x_proj"),
        (lambda w: w.pop("model.norm.weight"), "model.norm.weight"),
    ],
    ids=["one is missing", "another shape", "whole numbers", "one more", "another weight is missing"],
)
def test_linear_layers_that_do_not_fit_the_configuration_are_refused(directory, change, named):
    edit_weights(directory, change)
    with pytest.raises(InvalidBackbone, match=named):
        load_model(directory, pack_linear=Int8Row.quantised)


def test_experts_that_the_kernels_do_not_compute_are_refused(directory):
    config = json.loads((directory / "config.json").read_text())
    write_json(directory / "config.json", config | {"hidden_act": "gelu"})
    load_model(directory)
    with pytest.raises(InvalidBackbone, match="another gate"):
        load_model(directory, pack=Int8Row.quantised)


@pytest.fixture(scope="module")
def took(large, tmp_path_factory):
    small = tmp_path_factory.mktemp("small")
    tiny_deepseek().save_pretrained(small)
    # Freed blocks go back to the system at once, so that the peak is that of live tensors.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    command = [sys.executable, str(CHILD), str(large), str(small), content_hash(large)]
    return json.loads(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)


LAYER_MIB = 32 * 3 * 256 * 128 * 4 / 2**20  # of the large checkpoint's experts in float32
EXPERTS_MIB = 16 * LAYER_MIB


@pytest.mark.process
@pytest.mark.parametrize("form", ["int8", "nf4", "all nf4"])
def test_peak_memory_is_at_most_the_quantised_size_and_one_layer(took, form):
    budget = took[form]["packed"] + LAYER_MIB
    assert budget < EXPERTS_MIB / 3  # so that no whole stack of them would fit
    assert 0.9 * took[form]["packed"] < took[form]["peak"] <= budget


@pytest.mark.process
def test_the_measure_sees_a_whole_model(took):
    assert took["later"]["packed"] == took["int8"]["packed"]
    assert took["later"]["peak"] > EXPERTS_MIB
