import json
import re
from dataclasses import replace

import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import DeepseekV3ForCausalLM

from confide.kernels.segments import Segments
from confide.models.adapters.card import ModelCard
from confide.models.adapters.lora import AdapterConfig, attach
from confide.models.adapters.merging import save_merged
from confide.models.adapters.peft_export import export
from confide.models.adapters.peft_import import read
from confide.models.backbones.family import BackboneConfig
from confide.models.backbones.loading import build, load, save
from confide.models.errors import ExportRefused
from confide.models.evaluation.metrics import Estimate
from confide.models.heads.objectives import OneClass
from confide.models.heads.pooling import PooledHead, pooled
from confide.models.records.fields import CategoricalField, FlagField, NumericField, RecordSchema

from ..tiny import random_ids, tiny_deepseek

# peft 0.21 reads an attribute of transformers' models that transformers 5.24 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")

SCHEMA = RecordSchema(
    (NumericField("TSH", (0.4, 1.0, 2.0, 4.0)),), (FlagField("sick"),), (CategoricalField("sex", ("F", "M")),)
)
IDS = torch.tensor(SCHEMA.encode(["TSH=b01 sex=F sick", "TSH=na sex=M", "TSH=b04 sex=na sick"]))
ATTENTION = ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj")
DENSE_AND_SHARED = ("gate_proj", "up_proj", "down_proj")
CARD = ModelCard(
    study="thyroid", study_hash="ab" * 32, backbone_hash="cd" * 32, sites=("a", "b", "c"), rounds=40, unit="patient",
    mode="distributed", epsilon=2.914, delta=1e-5, collusion=1, audit="nothing found",
)  # fmt: skip


@pytest.fixture(scope="module")
def backbone_dir(tmp_path_factory):
    directory = tmp_path_factory.mktemp("models") / "backbone"
    model = build(SCHEMA, BackboneConfig(hidden=32, experts=4, layers=3))
    with torch.no_grad():  # a fresh router is zero and ties every expert; its bias is zero until it is balanced
        for name, tensor in model.state_dict().items():
            if name.endswith("gate.weight"):
                tensor.normal_(generator=torch.Generator().manual_seed(1))
            if name.endswith("e_score_correction_bias"):
                tensor.copy_(torch.tensor([0.3, -0.2, 0.1, -0.4]))
    save(model, SCHEMA, torch.zeros(64), torch.eye(64), directory)
    return directory


def adapted_model(backbone_dir, targets, freeze_a=True, layers=None):
    """With every trained number away from its start, so that a tensor in the wrong place shows."""
    backbone = load(backbone_dir)
    config = AdapterConfig(rank=3, alpha=5.0, targets=targets, seed="x", freeze_a=freeze_a, layers=layers)
    adapted = attach(backbone.model, config, PooledHead(backbone.center, backbone.whiten))
    adapted.load_state(0.3 * np.random.default_rng(7).normal(size=adapted.layout.dim))
    return adapted


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")  # of merging; the card says so
@pytest.mark.parametrize(("freeze_a", "layers"), [(True, None), (False, None), (True, (1, 2)), (True, (2,))])
@pytest.mark.parametrize(
    "targets",
    [
        *(ATTENTION, DENSE_AND_SHARED, ("experts",), ("gate",), (*ATTENTION, *DENSE_AND_SHARED, "experts", "gate")),
        # the backbone ties its output matrix to the embedding: each use has an adapter of its own
        *(("embed_tokens",), ("lm_head",), ("embed_tokens", "lm_head")),
        (*ATTENTION, *DENSE_AND_SHARED, "experts", "gate", "embed_tokens", "lm_head"),
    ],
)
def test_plain_peft_computes_what_we_do(backbone_dir, tmp_path, targets, freeze_a, layers):
    if layers and not {*targets}.isdisjoint({"embed_tokens", "lm_head"}):
        targets = ATTENTION  # there is one of each, and in no layer
    adapted = adapted_model(backbone_dir, targets, freeze_a, layers)
    export(adapted, backbone_dir, tmp_path / "adapter", CARD)
    plain = DeepseekV3ForCausalLM.from_pretrained(backbone_dir)
    with torch.no_grad():
        before = plain(IDS).logits
        theirs = peft.PeftModel.from_pretrained(plain, tmp_path / "adapter").eval()(IDS).logits
        ours = adapted.model(IDS).logits
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-5)  # float32, another order of the same sums
    assert (before - ours).abs().max() > 5e-3


@torch.no_grad()
def test_an_adapter_that_reads_in_segments_is_loaded_by_the_code_on_its_card(backbone_dir, tmp_path):
    sizes = Segments(window=16, top=1)
    backbone = load(backbone_dir, segments=sizes)
    adapted = attach(backbone.model, AdapterConfig(rank=3, alpha=5.0, targets=(*ATTENTION, "experts"), seed="x"))
    adapted.load_state(0.3 * np.random.default_rng(7).normal(size=adapted.layout.dim))
    export(adapted, backbone_dir, tmp_path / "adapter", replace(CARD, segments=sizes))
    assert read(tmp_path / "adapter").provenance.sources[0].segments == (16, 1)
    card = (tmp_path / "adapter" / "README.md").read_text()
    assert "in segments of 16 tokens, the last and 1 chosen" in card
    names = {"backbone_directory": backbone_dir, "adapter_directory": tmp_path / "adapter"}
    ids = torch.randint(2, len(SCHEMA.words()), (2, 90), generator=torch.Generator().manual_seed(1))
    found = []
    for code in re.findall(r"```python\n(.*?)```", card, re.DOTALL):
        exec(code, names)
        found.append(names["model"].eval()(ids).logits)
    full, segments = found
    ours = adapted.model(ids).logits
    torch.testing.assert_close(segments, ours, rtol=1e-4, atol=1e-5)
    assert (full - ours).abs().max() > 5e-3
    save_merged(adapted, backbone_dir, tmp_path / "merged", replace(CARD, segments=sizes))
    assert "read_in_segments(model, Segments(window=16, top=1))" in (tmp_path / "merged" / "README.md").read_text()


@pytest.mark.parametrize(
    "targets", [("q_proj",), ("experts",), ("gate",), ("lm_head",), ("q_proj", "experts", "lm_head")]
)
def test_plain_peft_computes_it_with_groups_of_experts_a_whole_query_and_an_output_matrix_of_its_own(tmp_path, targets):
    config = tiny_deepseek(experts=8, groups=4).config
    config.q_lora_rank = None
    plain = DeepseekV3ForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.normal_(std=0.2, generator=torch.Generator().manual_seed(parameter.numel()))
    plain.save_pretrained(tmp_path / "backbone")
    adapted = attach(plain, AdapterConfig(rank=1, alpha=2.0, targets=targets, seed="x"))
    adapted.load_state(np.random.default_rng(7).normal(size=adapted.layout.dim))
    export(adapted, tmp_path, tmp_path / "adapter", CARD)
    ids = random_ids(3)
    with torch.no_grad():
        again = DeepseekV3ForCausalLM.from_pretrained(tmp_path / "backbone")
        before = again(ids).logits
        theirs = peft.PeftModel.from_pretrained(again, tmp_path / "adapter").eval()(ids).logits
        ours = adapted.model(ids).logits
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4)  # of logits up to ten
    assert (before - ours).abs().max() > 1e-2


def test_head_file_is_enough_to_classify_with_the_formula_of_the_card(backbone_dir, tmp_path):
    adapted = adapted_model(backbone_dir, ("experts",))
    export(adapted, backbone_dir, tmp_path / "adapter", CARD)
    head = load_file(tmp_path / "adapter" / "head.safetensors")
    with torch.no_grad():
        white = (pooled(adapted.model, IDS) - head["center"]) @ head["whiten"]
        unit = torch.nn.functional.normalize(torch.cat([white, torch.full((3, 1), 64**0.5 / 2)], 1), dim=1)
        torch.testing.assert_close(unit @ head["weight"], adapted.classify(IDS))


@pytest.mark.parametrize("targets", [("experts",), ()], ids=["with adapters", "a head alone"])
def test_a_head_of_documents_is_enough_to_answer_with_the_formula_of_the_card(backbone_dir, tmp_path, targets):
    generator = torch.Generator().manual_seed(5)
    center, whiten = torch.randn(2, 32, generator=generator), torch.randn(2, 32, 32, generator=generator)
    objective = OneClass(("mild", "severe", "none"))
    model = DeepseekV3ForCausalLM.from_pretrained(backbone_dir)
    head = PooledHead(center, whiten, objective=objective, reads=(0, 3))
    adapted = attach(model, AdapterConfig(rank=1, alpha=1.0, targets=targets, seed="x"), head)
    adapted.load_state(np.random.default_rng(7).normal(size=adapted.layout.dim))
    export(adapted, backbone_dir, tmp_path / "adapter", CARD)
    files = {path.name for path in (tmp_path / "adapter").iterdir()}
    assert files == {"confide.json", "README.md", "head.safetensors"} | (
        {"adapter_config.json", "adapter_model.safetensors"} if targets else set()
    )
    card = (tmp_path / "adapter" / "README.md").read_text()
    assert 'a logit for each class, in this order: ["mild", "severe", "none"].' in card
    assert ("PeftModel" in card) == bool(targets)
    read_back = read(tmp_path / "adapter")
    assert read_back.meaning == objective.meaning
    told, normalize = load_file(tmp_path / "adapter" / "head.safetensors"), torch.nn.functional.normalize
    with torch.no_grad():
        states = adapted.model.model(input_ids=IDS, output_hidden_states=True).hidden_states
        is_token = (IDS > 0)[..., None]
        parts = [
            normalize(((states[int(read)] * is_token).sum(1) / is_token.sum(1) - center) @ whiten, dim=1)
            for read, center, whiten in zip(told["reads"], told["center"], told["whiten"], strict=True)
        ]
        unit = normalize(torch.cat([*parts, torch.full((len(IDS), 1), len(parts) ** 0.5 / 10)], 1), dim=1)
        torch.testing.assert_close(unit @ told["weight"].T, adapted.classify(IDS), rtol=1e-4, atol=1e-5)


def test_a_card_tells_the_share_of_right_answers(backbone_dir, tmp_path):
    measured = replace(CARD, accuracy=Estimate(0.77, 0.74, 0.80, 0.95))
    export(adapted_model(backbone_dir, ("experts",)), backbone_dir, tmp_path / "adapter", measured)
    card = (tmp_path / "adapter" / "README.md").read_text()
    assert "share of right answers 0.770 (95 % interval 0.740 to 0.800)" in card


def test_card_says_what_a_stranger_must_know(backbone_dir, tmp_path):
    export(adapted_model(backbone_dir, ("experts",)), backbone_dir, tmp_path / "adapter", CARD)
    text = (tmp_path / "adapter" / "README.md").read_text()
    facts = [
        "epsilon 2.914",
        "delta 1e-05",
        "patient",
        "a, b, c",
        "1 of the sites",
        CARD.study_hash,
        CARD.backbone_hash,
    ]
    assert [fact for fact in facts if fact not in text] == []


def test_card_tells_measured_quality_with_its_interval_or_that_there_is_none(backbone_dir, tmp_path):
    measured = replace(CARD, auc=Estimate(0.951, 0.93, 0.972, 0.95))
    for name, card in (("plain", CARD), ("measured", measured)):
        export(adapted_model(backbone_dir, ("experts",)), backbone_dir, tmp_path / name, card)
    assert "| quality | not measured |" in (tmp_path / "plain" / "README.md").read_text()
    assert "AUC 0.951 (95 % interval 0.930 to 0.972)" in (tmp_path / "measured" / "README.md").read_text()


@pytest.mark.parametrize(("target", "warns"), [("embed_tokens", True), ("lm_head", True), ("o_proj", False)])
def test_card_warns_of_merging_into_a_tied_matrix(backbone_dir, tmp_path, target, warns):
    export(adapted_model(backbone_dir, (target,)), backbone_dir, tmp_path / "adapter", CARD)
    assert ("Do not let PEFT merge" in (tmp_path / "adapter" / "README.md").read_text()) == warns


def test_card_of_an_unprotected_adapter_says_so(backbone_dir, tmp_path):
    card = replace(CARD, mode="none", epsilon=None, delta=None)
    export(adapted_model(backbone_dir, ("experts",)), backbone_dir, tmp_path / "adapter", card)
    assert "trained without noise" in (tmp_path / "adapter" / "README.md").read_text()


@pytest.mark.parametrize("wrong", [{"epsilon": None}, {"mode": "none"}])
def test_a_card_that_contradicts_itself_is_refused(backbone_dir, tmp_path, wrong):
    with pytest.raises(ExportRefused):
        export(adapted_model(backbone_dir, ("experts",)), backbone_dir, tmp_path / "adapter", replace(CARD, **wrong))
    assert list(tmp_path.iterdir()) == []


def test_an_existing_directory_is_not_overwritten(backbone_dir, tmp_path):
    with pytest.raises(FileExistsError):
        export(adapted_model(backbone_dir, ("experts",)), backbone_dir, tmp_path, CARD)


def test_config_names_no_place_on_this_machine(backbone_dir, tmp_path):
    export(adapted_model(backbone_dir, ("experts",)), backbone_dir, tmp_path / "adapter", CARD)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] is None
    assert str(tmp_path) not in json.dumps(config)
