"""One proof for each family of backbones, on a tiny checkpoint of random weights that transformers itself has written.

Published names, the family's own class, all targets at once: units stay apart, what is trained is clipped unit by unit,
and what is exported computes the same in plain transformers with PEFT.
"""

import json
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
import torch.nn.functional as F
from opacus import GradSampleModule
from safetensors import safe_open

from confide.kernels.install import quantise
from confide.kernels.linear import QuantisedLinear, quantise_linear
from confide.models.adapters import opacus_layers  # noqa: F401 - makes our layers known to Opacus
from confide.models.adapters.card import ModelCard
from confide.models.adapters.factors import AdapterConfig
from confide.models.adapters.lora import LoRALinear, attach
from confide.models.adapters.merging import save_merged
from confide.models.adapters.peft_export import export
from confide.models.backbones.checkpoints import load_model, size
from confide.models.backbones.families import FAMILIES
from confide.models.backbones.family import BackboneConfig
from confide.models.backbones.loading import build, load, save
from confide.models.backbones.packing import PACK_OF, linear_layers
from confide.models.evaluation.router_statistics import router_statistics
from confide.models.heads import foretell
from confide.models.records.fields import CategoricalField, FlagField, NumericField, RecordSchema
from confide.privacy.mechanism.batches import probed_shapes
from confide.privacy.mechanism.clipping import PerUnitClipper
from confide.privacy.mechanism.independence import refuse_dependence

from ..tiny import VOCABULARY

# peft 0.21 reads an attribute of transformers' models that transformers 5.24 deprecates.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning"),  # the card says so
    pytest.mark.slow,
]

WINDOW = 9  # tokens
COMMON = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": None, "eos_token_id": 1,
}  # fmt: skip
SLIDING = {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1}  # the second layer
LATENT = {
    "num_key_value_heads": 4, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8,
    "moe_intermediate_size": 24,
}  # fmt: skip
DEEPSEEK = LATENT | {
    "n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1, "first_k_dense_replace": 1,
    "routed_scaling_factor": 1.5,
}  # fmt: skip
HYBRID = {"layer_types": ["linear_attention", "full_attention"]}
SETTINGS = {
    "llama": {"mlp_bias": True, "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
    "qwen2": SLIDING | {"tie_word_embeddings": True},
    "qwen3": SLIDING | {"head_dim": 12},
    "qwen3_moe": SLIDING | {
        "head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "mlp_only_layers": [0],
    },
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": WINDOW},
    "deepseek_v2": DEEPSEEK | {
        "q_lora_rank": 16, "n_routed_experts": 8, "topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2,
    },
    "deepseek_v3": DEEPSEEK | {"q_lora_rank": None, "n_group": 1, "topk_group": 1},
    "granitemoehybrid": HYBRID | {
        "num_local_experts": 4, "num_experts_per_tok": 2, "shared_intermediate_size": 24, "mamba_n_heads": 4,
        "mamba_d_state": 16, "mamba_chunk_size": 16, "logits_scaling": 3.0, "embedding_multiplier": 2.0,
        "residual_multiplier": 0.5, "tie_word_embeddings": True,
    },
    "kimi_linear": HYBRID | LATENT | {
        "num_experts": 4, "num_experts_per_token": 2, "num_shared_experts": 1, "linear_head_dim": 8,
        "linear_num_heads": 4, "num_expert_group": 2, "topk_group": 1,
    },
}  # fmt: skip
SCHEMA = RecordSchema(
    (NumericField("TSH", (0.4, 1.0, 2.0, 4.0)),), (FlagField("sick"),), (CategoricalField("sex", ("F", "M")),)
)
CARD = ModelCard(
    study="fever", study_hash="ab" * 32, backbone_hash="cd" * 32, sites=("a", "b", "c"), rounds=1, unit="patient",
    mode="none", epsilon=None, delta=None, collusion=1, audit="none",
)  # fmt: skip


@pytest.fixture(scope="module", params=list(SETTINGS))
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def folder(kind, tmp_path_factory) -> Path:
    """A checkpoint as transformers writes it."""
    family = FAMILIES[kind]
    model = family.model_class()(family.config_class()(**COMMON | SETTINGS[kind]))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.ndim > 1 and "conv1d" not in name and "A_log" not in name:
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * tensor.shape[-1] ** -0.5)
            elif name.endswith("correction_bias"):
                tensor.copy_(0.1 * torch.randn(tensor.shape, generator=generator))
    directory = tmp_path_factory.mktemp(kind) / "backbone"
    model.save_pretrained(directory)
    return directory


def targets_of(family, model):
    """All targets of a family that this model of it has modules for."""
    names = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    return tuple(target for target in family.targets if target in names)


def adapted_model(kind, folder, *, freeze_a=True):
    """All targets of a family adapted, with every trained number away from its start."""
    model = load_model(folder)
    targets = targets_of(FAMILIES[kind], model)
    assert len(targets) >= len(FAMILIES[kind].targets) - 2  # of queries either the one matrix or the two
    adapted = attach(model, AdapterConfig(rank=2, alpha=3.0, targets=targets, seed="x", freeze_a=freeze_a))
    adapted.load_state(0.2 * np.random.default_rng(7).normal(size=adapted.layout.dim))
    return adapted


def random_rows(rows, tokens, seed=1):
    """Ids, padded on the right, and which of them are a completion."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, VOCABULARY, (rows, tokens), generator=generator)
    place = torch.arange(tokens).expand(rows, -1)
    length = torch.randint(tokens // 2, tokens, (rows, 1), generator=generator)
    return ids * (place < length), (place >= length // 2) & (place < length)


def test_every_family_is_proved():
    assert {*SETTINGS} == {*FAMILIES}


def test_units_stay_apart(kind, folder):
    """Probes are as short as any record, and reach beyond each border at which positions are treated otherwise."""
    adapted, family = adapted_model(kind, folder, freeze_a=False), FAMILIES[kind]
    lengths = family.probe_lengths(adapted.model.config, 100)
    assert lengths == (7, *sorted(border + 2 for border in family.borders(adapted.model.config)))
    refuse_dependence(adapted, words=VOCABULARY, lengths=lengths)


def test_clipped_sum_is_that_of_one_unit_at_a_time(kind, folder):
    """By plain autograd, one unit of two records after another; in float64, as far as transformers lets its models."""
    adapted = adapted_model(kind, folder, freeze_a=False).double()
    ids, is_completion = random_rows(10, 24)
    units, gradients = np.arange(10) // 2, []
    for unit in range(5):
        rows = torch.as_tensor(units == unit)
        loss = adapted.losses(ids[rows], is_completion[rows]).mean()
        gradients.append(torch.autograd.grad(loss, list(adapted.trained.values())))
    norms = [float(torch.stack([grad.norm() for grad in of_unit]).norm()) for of_unit in gradients]
    clip_norm = sorted(norms)[2]
    factors = [min(1.0, clip_norm / norm) for norm in norms]
    want = [sum(f * grad for f, grad in zip(factors, grads, strict=True)) for grads in zip(*gradients, strict=True)]
    clipper = PerUnitClipper(adapted)
    with clipper.microbatch(units, 24):
        (adapted.losses(ids, is_completion) / 2).sum().backward()
    got, report = clipper.clipped_sum(clip_norm)
    np.testing.assert_allclose(report.norms, norms, rtol=1e-6)
    assert [*got] == [*adapted.trained]
    gap = torch.cat([(got[name] - grad).flatten() for name, grad in zip(got, want, strict=True)])
    assert gap.norm() < 1e-6 * torch.cat([grad.flatten() for grad in want]).norm()
    assert all(bool(grad.any()) for grad in want)


def test_a_unit_can_be_taken_out_of_a_sum_bit_for_bit(kind, folder):
    """In the shapes that this machine is probed for, with layers of all kinds among those probed."""
    adapted = adapted_model(kind, folder)
    shapes = probed_shapes(adapted, max_tokens=15, max_rows=8, max_records=1)
    assert shapes.rows_of_length
    length, (size, *_) = next(iter(shapes.rows_of_length.items()))
    ids, is_completion = random_rows(size, length)

    def clipped(kept):
        clipper = PerUnitClipper(adapted)
        with clipper.microbatch(kept, length, num_rows=size):
            blank = torch.zeros(size - len(kept), length, dtype=ids.dtype)
            rows = torch.cat([ids[kept], blank]), torch.cat([is_completion[kept], blank.bool()])
            adapted.losses(*rows).sum().backward()
        return clipper.clipped_sum(1.0)[0]

    everybody = np.arange(size)
    total, own = clipped(everybody), clipped(everybody[2:3])
    without = clipped(np.delete(everybody, 2))
    assert all(torch.equal(total[name] - without[name], own[name]) for name in total)


def test_loss_of_a_completion_is_the_one_that_transformers_computes(kind, folder):
    model = load_model(folder)
    ids, is_completion = random_rows(1, 20)
    with torch.no_grad():
        want = model(ids, labels=ids.masked_fill(~is_completion, -100)).loss
        got = foretell(model, ids, is_completion).by_record()
    torch.testing.assert_close(got[0], want)


def test_plain_peft_computes_what_we_do_on_the_original_checkpoint(kind, folder, tmp_path):
    adapted, family = adapted_model(kind, folder), FAMILIES[kind]
    ids, _ = random_rows(3, 20)
    export(adapted, folder, tmp_path / "adapter", CARD)
    plain = family.model_class().from_pretrained(folder)
    with torch.no_grad():
        before = plain(ids).logits
        theirs = peft.PeftModel.from_pretrained(plain, tmp_path / "adapter").eval()(ids).logits
        ours = adapted.model(ids).logits
    assert (before - ours).abs().max() > 0.05 * before.abs().max()
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=2e-5)
    stated = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    dense = {"gate_proj", "up_proj", "down_proj"} & {*family.targets}
    assert dense - {*family.mistaken} <= {*stated["target_modules"]}


def test_every_target_alone_is_an_adapter_of_plain_peft(kind, folder, tmp_path):
    family, (ids, _) = FAMILIES[kind], random_rows(2, 20)
    for target in targets_of(family, load_model(folder)):
        adapted = attach(load_model(folder), AdapterConfig(rank=1, alpha=2.0, targets=(target,), seed="x"))
        adapted.load_state(np.random.default_rng(7).normal(size=adapted.layout.dim))
        export(adapted, folder, tmp_path / target, CARD)
        plain = family.model_class().from_pretrained(folder)
        with torch.no_grad():
            before = plain(ids).logits
            theirs = peft.PeftModel.from_pretrained(plain, tmp_path / target).eval()(ids).logits
            ours = adapted.model(ids).logits
        torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4, msg=target)
        assert (before - ours).abs().max() > 1e-3, target


def test_merged_checkpoint_loads_and_computes_the_same(kind, folder, tmp_path):
    adapted = adapted_model(kind, folder)
    ids, _ = random_rows(3, 20)
    save_merged(adapted, folder, tmp_path / "merged", CARD)
    stock = FAMILIES[kind].model_class().from_pretrained(tmp_path / "merged")
    with torch.no_grad():
        want = adapted.model(ids).logits
        for model in (load_model(tmp_path / "merged"), stock):
            torch.testing.assert_close(model(ids).logits, want, rtol=1e-4, atol=2e-5)


def test_size_is_what_counting_by_hand_gives(kind, folder):
    model, family = load_model(folder), FAMILIES[kind]
    parameters = sum(parameter.numel() for parameter in model.parameters())  # a tied matrix once
    banks = family.banks(model).values()
    idle = sum((1 - 2 / bank.num_experts) * sum(p.numel() for p in bank.parameters()) for bank in banks)  # of K = 2
    found = size(folder)
    assert (found.parameters, found.active_parameters) == (parameters, parameters - idle)
    assert bool(banks) == bool(family.experts)
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        names = [name for name in file.keys() if family.experts and family.experts.weight.search(name)]  # noqa: SIM118
        assert sum(file.get_tensor(name).numel() for name in names) == sum(
            parameter.numel() for bank in banks for parameter in bank.parameters()
        )


@pytest.mark.parametrize("experts", ["int8", "nf4"])
def test_packed_experts_are_those_of_quantising_the_whole_model(kind, folder, experts):
    """Expert by expert as the files have them; a model without any is left as it is."""
    ids, _ = random_rows(3, 20)
    whole = load_model(folder)
    if is_sparse := FAMILIES[kind].experts is not None:
        quantise(whole, PACK_OF[experts])
    packed = load_model(folder, pack=PACK_OF[experts])
    with torch.no_grad():
        assert torch.equal(packed(ids).logits, whole(ids).logits)
        assert torch.equal(load_model(folder)(ids).logits, whole(ids).logits) != is_sparse


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
def test_opacus_attributes_the_same_gradients_to_rows(kind, folder):
    """In training mode, which these models leave by no dropout."""
    adapted = adapted_model(kind, folder, freeze_a=False).double()
    ids, _ = random_rows(3, 20)
    clipper = PerUnitClipper(adapted)
    with clipper.microbatch(range(3), 20):
        next_words(adapted(ids), ids).sum().backward()
    want, report = clipper.clipped_sum(0.1)
    assert (report.norms > 0.1).all()
    rows = GradSampleModule(adapted.train(), loss_reduction="sum")
    next_words(rows(ids), ids).sum().backward()
    samples = [parameter.grad_sample.flatten(1) for parameter in adapted.trained.values()]
    norms = torch.cat(samples, dim=1).norm(dim=1)
    torch.testing.assert_close(norms, report.norms, rtol=1e-6, atol=0)
    for of_rows, total in zip(samples, want.values(), strict=True):
        torch.testing.assert_close((0.1 / norms) @ of_rows, total.flatten(), rtol=1e-4, atol=1e-7)


def next_words(logits_RTV, ids_RT):
    """[R], the loss of each record's next words."""
    losses = F.cross_entropy(logits_RTV[:, :-1].mT, ids_RT[:, 1:], reduction="none")
    return losses.sum(1)


def test_a_built_backbone_reads_records_with_a_pooled_head(kind, tmp_path):
    """As `coordinator backbone build` and a study of a table use it, with its experts in a byte a number."""
    config = BackboneConfig(family=kind, hidden=32, layers=2, heads=2, experts=4)
    model = build(SCHEMA, config)
    again = build(SCHEMA, config)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(model.parameters(), again.parameters(), strict=True))
    save(model, SCHEMA, torch.zeros(64), torch.eye(64), tmp_path / "backbone")
    backbone = load(tmp_path / "backbone", experts="int8")
    adapter = AdapterConfig(rank=2, alpha=2.0, targets=targets_of(backbone.family, backbone.model), seed="x")
    adapted = attach(backbone.model, adapter, backbone.head())
    adapted.load_state(0.2 * np.random.default_rng(7).normal(size=adapted.layout.dim))
    lengths = backbone.family.probe_lengths(adapted.model.config, 20)
    refuse_dependence(adapted, words=len(SCHEMA.words()), lengths=lengths)
    ids = torch.tensor(SCHEMA.encode(["TSH=b01 sex=F sick", "TSH=na sex=M", "TSH=b04 sex=na sick"]))
    padded = F.pad(ids, (0, 9))
    with torch.no_grad():
        torch.testing.assert_close(adapted.classify(padded), adapted.classify(ids))
    if backbone.family.experts is not None:
        layers = router_statistics(adapted.model, [(ids, ids > 0)])
        assert [layer.layer for layer in layers] == [*adapted.expert_layers]
        assert all(sum(layer.choices) == 2 * int((ids > 0).sum()) for layer in layers)


def test_packed_linear_layers_are_those_of_quantising_the_whole_model(kind, folder):
    """Found in the files by their published names; every adapted one is packed, and adapters on them are trained."""
    ids, _ = random_rows(3, 20)
    whole, packed = load_model(folder), load_model(folder, pack_linear=PACK_OF["int8"])
    names = set(linear_layers(FAMILIES[kind], whole))
    quantise_linear(whole, names, PACK_OF["int8"])
    with torch.no_grad():
        assert torch.equal(packed(ids).logits, whole(ids).logits)
    assert {name for name, it in packed.named_modules() if isinstance(it, QuantisedLinear)} == names
    adapted = attach(packed, AdapterConfig(rank=2, alpha=3.0, targets=targets_of(FAMILIES[kind], packed), seed="x"))
    refuse_dependence(adapted, words=VOCABULARY)
    adapted_linear = [it for it in adapted.adapters.values() if isinstance(it, LoRALinear)]
    assert adapted_linear
    assert all(isinstance(it.base, QuantisedLinear) for it in adapted_linear)


def test_a_model_goes_on_from_the_states_that_enter_its_lowest_adapted_layer(kind, folder):
    """Beyond any window, and with every layer below left out: states, loss and gradients are those of the whole."""
    model = load_model(folder)
    last = len(model.model.layers) - 1
    adapted = attach(model, AdapterConfig(rank=2, alpha=3.0, targets=("o_proj",), seed="x", layers=(last,)))
    adapted.load_state(0.2 * np.random.default_rng(7).normal(size=adapted.layout.dim))
    ids, is_completion = random_rows(3, 24)
    with torch.no_grad():
        entering = adapted.entering(ids)
        assert torch.equal(entering, model(ids, output_hidden_states=True, use_cache=False).hidden_states[last])
    losses = adapted.losses(ids, is_completion), adapted.losses(ids, is_completion, entering)
    whole, resumed = (torch.autograd.grad(loss.sum(), list(adapted.trained.values())) for loss in losses)
    assert torch.equal(*losses)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(resumed, whole, strict=True))
