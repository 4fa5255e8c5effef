import copy
import hashlib

import numpy as np
import pytest
import torch

from confide.models.adapters.layout import AdapterLayout
from confide.models.adapters.lora import AdapterConfig, attach
from confide.models.errors import InvalidAdapter, StateMismatch, TargetMissing, UnsupportedModule
from confide.models.heads.pooling import PooledHead

from ...kernels.fp8 import fp8_twin
from ..tiny import random_ids, tiny_deepseek

TARGETS = (
    *("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"),
    *("gate_proj", "up_proj", "down_proj", "experts", "gate", "embed_tokens", "lm_head"),
)


def config(targets=TARGETS, **changes):
    return AdapterConfig(**{"rank": 4, "alpha": 8.0, "targets": targets, "seed": "public", **changes})


def random_state(dim):
    return np.random.default_rng(0).normal(size=dim).astype(np.float32) * 0.1


@pytest.mark.parametrize("groups", [1, 4])
def test_fresh_adapters_leave_the_backbone_as_it_was(groups):
    model, ids = tiny_deepseek(experts=8, groups=groups), random_ids(4)
    want = model(input_ids=ids).logits
    torch.testing.assert_close(attach(model, config()).model(input_ids=ids).logits, want, rtol=1e-4, atol=1e-5)


def test_trained_adapters_compute_the_merged_weights():
    plain, ids = tiny_deepseek(dtype=torch.float64), random_ids(4)
    adapted = attach(copy.deepcopy(plain), config())
    adapted.load_state(random_state(adapted.layout.dim))
    for name, adapter in adapted.adapters.items():
        base = plain.get_submodule(name)
        weights = {"": base} if hasattr(base, "weight") else {"gate_up_proj": base, "down_proj": base}
        for part in weights:
            factors = getattr(adapter, part) if part else adapter
            weight = getattr(base, part or "weight")
            product = factors.lora_B @ factors.lora_A
            weight.data += adapter.lora_scaling * (product.T if name.endswith("embed_tokens") else product)
    # the stock router rounds to float32 inside, the adapted one does not
    torch.testing.assert_close(adapted.model(ids).logits, plain(ids).logits, rtol=1e-5, atol=1e-6)


def test_only_the_named_layers_take_adapters():
    adapted = attach(tiny_deepseek(), config(("o_proj", "down_proj"), layers=(1,)))
    assert {*adapted.adapters} == {"model.layers.1.self_attn.o_proj", "model.layers.1.mlp.shared_experts.down_proj"}
    with pytest.raises(TargetMissing, match=r"no module named experts in layers 0"):
        attach(tiny_deepseek(), config(("o_proj", "experts"), layers=(0,)))
    with pytest.raises(TargetMissing, match=r"no layer 2, 9 with a module of the targets"):
        attach(tiny_deepseek(), config(("o_proj",), layers=(1, 2, 9)))
    with pytest.raises(TargetMissing, match=r"embed_tokens in layers 0, 1"):
        attach(tiny_deepseek(), config(("o_proj", "embed_tokens"), layers=(0, 1)))


@pytest.mark.parametrize("freeze_a", [True, False])
def test_only_adapters_and_head_are_trainable(freeze_a):
    adapted = attach(tiny_deepseek(), config(freeze_a=freeze_a), PooledHead(torch.zeros(64), torch.eye(64)))
    trainable = {p for p in adapted.parameters() if p.requires_grad}
    assert trainable == set(adapted.trained.values())
    assert any(name.endswith("lora_A") for name in adapted.trained) == (not freeze_a)


def test_layout_has_the_head_first_and_then_sorted_names():
    adapted = attach(tiny_deepseek(), config(), PooledHead(torch.zeros(64), torch.eye(64)))
    head, *rest = adapted.layout.names
    assert head == "head.weight"
    assert rest == sorted(rest)
    assert adapted.layout.head_slice == slice(0, 65)
    assert "model.layers.1.mlp.experts.down_proj.lora_B" in rest


def test_state_round_trip():
    adapted = attach(tiny_deepseek(), config(freeze_a=False), PooledHead(torch.zeros(64), torch.eye(64)))
    state = random_state(adapted.layout.dim)
    adapted.load_state(state)
    np.testing.assert_array_equal(adapted.state(), state)
    np.testing.assert_array_equal(adapted.layout.flatten(adapted.layout.unflatten(state)), state)


@pytest.mark.parametrize("bad", [np.zeros(3), np.array([0.0, np.nan]), np.zeros((2, 1))])
def test_state_that_does_not_fit_is_refused(bad):
    layout = AdapterLayout({"a": (2,)})
    with pytest.raises(StateMismatch):
        layout.unflatten(bad)


def test_tensors_that_do_not_fit_are_refused():
    layout = AdapterLayout({"a": (2,), "b": (1,)})
    with pytest.raises(StateMismatch, match="names"):
        layout.flatten({"a": np.zeros(2)})
    with pytest.raises(StateMismatch, match="b has shape"):
        layout.flatten({"a": np.zeros(2), "b": np.zeros(2)})


def test_start_depends_on_the_seed_and_nothing_else():
    torch.manual_seed(1)
    first = attach(tiny_deepseek(), config(freeze_a=False)).state()
    torch.manual_seed(2)
    np.testing.assert_array_equal(attach(tiny_deepseek(), config(freeze_a=False)).state(), first)
    assert not np.array_equal(attach(tiny_deepseek(), config(freeze_a=False, seed="other")).state(), first)


def test_start_of_a_is_the_published_expansion():
    """SHAKE-256 of the label, little-endian 32-bit words mapped to [-1, 1) * sqrt(3 / inputs), computed by hand."""
    adapted = attach(tiny_deepseek(), config(("o_proj",)))
    digest = hashlib.shake_256(b"confide lora_A 1\0public\0model.layers.0.self_attn.o_proj.lora_A").digest(4)
    want = ((int.from_bytes(digest, "little") + 0.5) / 2**31 - 1) * (3 / 32) ** 0.5
    got = float(adapted.adapters["model.layers.0.self_attn.o_proj"].lora_A[0, 0].detach())
    assert got == pytest.approx(want, rel=1e-6)


def test_missing_target_is_named():
    with pytest.raises(TargetMissing, match="w_proj"):
        attach(tiny_deepseek(), config(("o_proj", "w_proj")))


def test_other_modules_are_refused():
    with pytest.raises(UnsupportedModule, match="norm is a DeepseekV3RMSNorm"):
        attach(tiny_deepseek(), config(("norm",)))


@pytest.mark.parametrize("setting", [{"max_norm": 1.0}, {"scale_grad_by_freq": True}])
def test_embedding_that_depends_on_the_words_of_a_batch_is_refused(setting):
    model = tiny_deepseek()
    model.model.embed_tokens = torch.nn.Embedding(64, 32, **setting)
    with pytest.raises(UnsupportedModule, match="embed_tokens rescales its table"):
        attach(model, config(("embed_tokens",)))


def test_adapting_one_use_of_a_tied_matrix_leaves_the_other_alone():
    model, ids = tiny_deepseek(), random_ids(4)
    model.lm_head.weight = model.model.embed_tokens.weight
    before = model(input_ids=ids, output_hidden_states=True)
    adapted = attach(model, config(("lm_head",)))
    adapted.load_state(random_state(adapted.layout.dim))
    after = adapted.model(input_ids=ids, output_hidden_states=True)
    assert torch.equal(after.hidden_states[0], before.hidden_states[0])
    want = before.logits + adapted.model.lm_head.lora_scaling * (
        before.hidden_states[-1] @ adapted.model.lm_head.lora_A.T @ adapted.model.lm_head.lora_B.T
    )
    torch.testing.assert_close(after.logits, want, rtol=1e-4, atol=1e-5)


def test_bank_in_fp8_is_adapted_as_what_its_codes_stand_for():
    widened, ids = tiny_deepseek(), random_ids(4)
    fp8 = fp8_twin(widened)
    logits = []
    for model in (fp8, widened):
        adapted = attach(model, config(("experts",)))
        adapted.load_state(random_state(adapted.layout.dim))
        logits.append(adapted.model(ids).logits)
    torch.testing.assert_close(*logits, rtol=1e-4, atol=1e-5)


def test_bank_with_another_activation_is_refused():
    model = tiny_deepseek()
    model.model.layers[1].mlp.experts.act_fn = torch.nn.GELU()
    with pytest.raises(UnsupportedModule, match="SiLU"):
        attach(model, config(("experts",)))


@pytest.mark.parametrize("bad", [{"rank": 0}, {"alpha": 0.0}, {"alpha": float("nan")}, {"targets": ("gate", "gate")}])
def test_config_out_of_range_is_refused(bad):
    with pytest.raises(InvalidAdapter):
        config(**bad)


def test_nothing_to_train_is_refused():
    with pytest.raises(InvalidAdapter, match="nothing to train"):
        attach(tiny_deepseek(), config(()))


def test_copy_is_independent():
    adapted = attach(tiny_deepseek(), config(), PooledHead(torch.zeros(64), torch.eye(64)))
    other = copy.deepcopy(adapted)
    other.load_state(random_state(adapted.layout.dim))
    assert not adapted.state().any()
    assert other.head.slot is other.slot
    assert other.slot is not adapted.slot
