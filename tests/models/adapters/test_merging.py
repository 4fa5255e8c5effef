import copy
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from transformers import DeepseekV3ForCausalLM

from confide.kernels.formats import Int8Row
from confide.kernels.install import quantise
from confide.kernels.linear import quantise_linear
from confide.models.adapters.lora import AdapterConfig, attach
from confide.models.adapters.merging import merged, save_merged
from confide.models.adapters.peft_export import export
from confide.models.adapters.provenance import read_provenance
from confide.models.backbones import loading as backbones
from confide.models.backbones.checkpoints import Origin, load_model, load_origin, write_json
from confide.models.errors import UnsupportedModule
from confide.models.heads.pooling import PooledHead

from ..tiny import random_ids, tiny_deepseek
from .test_peft_export import ATTENTION, CARD, DENSE_AND_SHARED, IDS, adapted_model, backbone_dir

__all__ = ["backbone_dir"]

EVERYTHING = (*ATTENTION, *DENSE_AND_SHARED, "experts", "gate", "embed_tokens", "lm_head")
PARTS = [ATTENTION, DENSE_AND_SHARED, ("experts",), ("gate",), ("embed_tokens",), ("lm_head",), EVERYTHING]
# As in the index of deepseek-ai/DeepSeek-V3; layer 0 is dense there as here, and the second one's experts are numbered.
ATTENTION_NAMES = [
    f"self_attn.{part}.weight"
    for part in (*ATTENTION, "q_a_layernorm", "kv_a_layernorm")
] + ["input_layernorm.weight", "post_attention_layernorm.weight"]  # fmt: skip
PUBLISHED = {
    "model.embed_tokens.weight",
    "model.norm.weight",
    "lm_head.weight",
    *(f"model.layers.{layer}.{name}" for layer in (0, 1, 2) for name in ATTENTION_NAMES),
    *(f"model.layers.0.mlp.{part}.weight" for part in DENSE_AND_SHARED),
    *(f"model.layers.{layer}.mlp.gate.{name}" for layer in (1, 2) for name in ("weight", "e_score_correction_bias")),
    *(f"model.layers.{layer}.mlp.shared_experts.{part}.weight" for layer in (1, 2) for part in DENSE_AND_SHARED),
    *(
        f"model.layers.{layer}.mlp.experts.{expert}.{part}.weight"
        for layer in (1, 2) for expert in range(4) for part in DENSE_AND_SHARED
    ),
}  # fmt: skip


@pytest.mark.parametrize("targets", PARTS)
def test_merged_weights_compute_what_the_adapters_do(backbone_dir, targets):
    adapted = adapted_model(backbone_dir, targets, freeze_a=False)
    with torch.no_grad():
        ours = adapted.model(IDS).logits
        with merged(adapted) as plain:
            theirs = plain(IDS).logits
            kinds = {type(module).__module__.partition(".")[0] for module in plain.modules()}
        before = DeepseekV3ForCausalLM.from_pretrained(backbone_dir)(IDS).logits
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-5)  # float32, another order of the same sums
    assert (before - ours).abs().max() > 1e-2
    assert kinds == {"torch", "transformers"}


def test_a_merged_weight_is_the_sum_rounded_once():
    plain = tiny_deepseek(dtype=torch.bfloat16)
    adapted = attach(copy.deepcopy(plain), AdapterConfig(rank=2, alpha=3.0, targets=("o_proj",), seed="s"))
    adapted.load_state(np.random.default_rng(0).normal(size=adapted.layout.dim))
    name = "model.layers.1.self_attn.o_proj"
    adapter = adapted.adapters[name]
    exact = plain.get_submodule(name).weight.double() + 1.5 * adapter.lora_B.double() @ adapter.lora_A.double()
    with merged(adapted) as model:
        assert torch.equal(model.get_submodule(name).weight, exact.to(torch.bfloat16))


@pytest.mark.parametrize("fails", [False, True])
def test_afterwards_every_bit_is_as_before(backbone_dir, fails):
    adapted = adapted_model(backbone_dir, EVERYTHING)
    before = {name: tensor.clone() for name, tensor in adapted.state_dict().items()}
    try:
        with merged(adapted):
            if fails:
                raise RuntimeError
    except RuntimeError:
        assert fails
    after = adapted.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert adapted.model.config.tie_word_embeddings
    embedding, output = (adapted.adapters[name] for name in ("model.embed_tokens", "lm_head"))
    assert embedding.base.weight is output.base.weight


@pytest.mark.parametrize("target", ["experts", "o_proj"])
def test_quantised_weights_are_not_merged(target):
    model = tiny_deepseek()
    quantise(model, Int8Row.quantised)
    quantise_linear(model, ["model.layers.0.self_attn.o_proj", "model.layers.1.self_attn.o_proj"], Int8Row.quantised)
    adapted = attach(model, AdapterConfig(rank=2, alpha=3.0, targets=(target,), seed="s"))
    with pytest.raises(UnsupportedModule, match="is quantised"), merged(adapted):
        pass


@pytest.fixture(scope="module")
def saved(backbone_dir, tmp_path_factory):
    """A directory with everything merged, and the logits and scores of the adapted model."""
    directory = tmp_path_factory.mktemp("merged") / "model"
    adapted = adapted_model(backbone_dir, EVERYTHING, freeze_a=False)
    save_merged(adapted, backbone_dir, directory, CARD)
    with torch.no_grad():
        return directory, adapted.model(IDS).logits, adapted.classify(IDS)


def test_a_saved_model_has_the_published_names(saved):
    index = json.loads((saved[0] / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == PUBLISHED
    assert set(index["weight_map"].values()) == {"model-00001-of-00001.safetensors"}
    with safe_open(saved[0] / "model-00001-of-00001.safetensors", framework="pt") as file:
        assert set(file.keys()) == PUBLISHED


def test_a_saved_model_keeps_the_balance_bias_of_every_router(saved, backbone_dir):
    """Without it the same weights would send tokens elsewhere."""
    before, after = backbones.load(backbone_dir).model.state_dict(), load_model(saved[0]).state_dict()
    biases = [name for name in before if name.endswith("e_score_correction_bias")]
    assert len(biases) == 2
    for name in biases:
        assert before[name].any()
        assert torch.equal(after[name], before[name])


@pytest.mark.parametrize("load", [DeepseekV3ForCausalLM.from_pretrained, load_model])
def test_a_saved_model_loads_as_any_other_with_the_same_logits(saved, load):
    model = load(saved[0])
    assert not model.config.tie_word_embeddings
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(IDS).logits, saved[1], rtol=1e-4, atol=1e-5)


def test_a_saved_model_is_a_backbone_and_its_head_classifies(saved):
    loaded = backbones.load(saved[0])
    adapted = attach(
        loaded.model, AdapterConfig(rank=1, alpha=1.0, targets=(), seed=""), PooledHead(loaded.center, loaded.whiten)
    )
    with safe_open(saved[0] / "head.safetensors", framework="pt") as file:
        adapted.load_state(file.get_tensor("weight").numpy())
    with torch.no_grad():
        torch.testing.assert_close(adapted.classify(IDS), saved[2], rtol=1e-4, atol=1e-5)


def test_a_saved_model_s_card_states_the_guarantee(saved):
    text = (saved[0] / "README.md").read_text()
    assert [fact for fact in ("epsilon 2.914", "delta 1e-05", CARD.study_hash, "## Limits") if fact not in text] == []


def test_a_backbone_s_origin_goes_along_with_what_was_changed(tmp_path):
    model = tiny_deepseek()
    model.save_pretrained(tmp_path / "backbone")
    origin = Origin(
        name="n", publisher="p", licence="MIT", url="u", source="s", source_sha256="00", changes="rewritten"
    )
    write_json(tmp_path / "backbone" / "origin.json", origin.to_dict())
    (tmp_path / "backbone" / "LICENSE.md").write_text("as is")
    adapted = attach(load_model(tmp_path / "backbone"), AdapterConfig(rank=1, alpha=1.0, targets=("gate",), seed=""))
    adapted.load_state(np.ones(adapted.layout.dim))
    save_merged(adapted, tmp_path / "backbone", tmp_path / "merged", CARD)
    found = load_origin(tmp_path / "merged")
    assert (found.licence, found.changes.startswith("rewritten; adapters of study thyroid")) == ("MIT", True)
    assert (tmp_path / "merged" / "LICENSE.md").read_text() == "as is"
    ids = random_ids(2)
    with torch.no_grad():
        torch.testing.assert_close(
            load_model(tmp_path / "merged")(ids).logits, adapted.model(ids).logits, rtol=1e-4, atol=1e-5
        )


def test_a_model_merged_twice_names_both_studies_and_what_they_add_up_to(saved, tmp_path):
    second = replace(CARD, study="second", study_hash="ef" * 32, epsilon=1.0)
    adapted = attach(load_model(saved[0]), AdapterConfig(rank=1, alpha=1.0, targets=("o_proj",), seed=""))
    save_merged(adapted, saved[0], tmp_path / "twice", second)
    export(adapted, saved[0], tmp_path / "adapter", second)
    for directory in (tmp_path / "twice", tmp_path / "adapter"):
        found = read_provenance(directory)
        assert [source.study for source in (*found.backbone_sources, *found.sources)] == ["thyroid", "second"]
        text = (directory / "README.md").read_text()
        assert "thyroid `abababababab`: epsilon 2.914" in text
        assert "at most epsilon 3.914 at delta 2e-05 in all 2" in text
    assert not (tmp_path / "twice" / "head.safetensors").exists()  # the first study's


def test_a_first_study_s_card_tells_of_no_earlier_one(saved):
    assert "Earlier studies" not in (saved[0] / "README.md").read_text()


def test_an_infinite_epsilon_is_stated(backbone_dir, tmp_path):
    """As it is once a site has released something of the same data without privacy."""
    card = replace(CARD, epsilon=math.inf)
    export(adapted_model(backbone_dir, ("gate",)), backbone_dir, tmp_path / "adapter", card)
    assert json.loads((tmp_path / "adapter" / "confide.json").read_text())["sources"][0]["epsilon"] == "inf"
    assert read_provenance(tmp_path / "adapter").sources[0].epsilon == math.inf
    assert "epsilon ∞" in (tmp_path / "adapter" / "README.md").read_text()


def test_nothing_but_files_is_written(saved, backbone_dir, tmp_path, capfd):
    save_merged(adapted_model(backbone_dir, ("gate",)), backbone_dir, tmp_path / "merged", CARD)
    assert capfd.readouterr().out == ""
