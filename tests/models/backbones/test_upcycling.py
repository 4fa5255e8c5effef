import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from confide.models.adapters.lora import AdapterConfig, attach
from confide.models.backbones import upcycling
from confide.models.backbones.checkpoints import content_hash, load_model, load_origin, load_tokenizer
from confide.models.backbones.upcycling import MoeShape, upcycle, write_upcycled
from confide.models.errors import InvalidBackbone

from .test_checkpoints import ORIGIN

SHAPE = MoeShape(moe_layers=2, expert_width=32)


def llama(**settings):
    """A dense Llama of random weights, so large that its logits are not all alike."""
    standard = {
        "vocab_size": 97, "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 6,
        "num_key_value_heads": 3, "max_position_embeddings": 128, "initializer_range": 0.15, "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False, "rope_parameters": {"rope_type": "default", "rope_theta": 1e5},
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LlamaForCausalLM(LlamaConfig(**(standard | settings))).eval()


@pytest.fixture
def upcycled(tmp_path):
    """Writes what becomes of a Llama and loads it back."""

    def make(model, shape=SHAPE):
        config, weights = upcycle(model.config, model.state_dict(), shape)
        config.save_pretrained(tmp_path)
        save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
        return load_model(tmp_path)

    return make


IDS = torch.randint(0, 97, (2, 128), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"num_key_value_heads": 1},  # one key head: nothing stands side by side
        {"num_key_value_heads": 6},  # as many as query heads: rank 64 for 48 values
        {"num_key_value_heads": 2, "num_attention_heads": 4, "head_dim": 8},  # values fill 16 latents: rank 64
        {"tie_word_embeddings": True},
    ],
    ids=str,
)
def test_a_moe_computes_what_its_llama_does(upcycled, settings):
    dense = llama(**settings)
    with torch.no_grad():
        expected, found = dense(IDS).logits, upcycled(dense)(IDS).logits
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)  # float32: other orders of the same sums


@pytest.mark.parametrize(
    "shape",
    [
        MoeShape(moe_layers=3, experts=2, top_k=1, expert_width=48),
        MoeShape(moe_layers=1, experts=5, top_k=5, expert_width=16),
        MoeShape(moe_layers=2, experts=4, top_k=3, expert_width=32, seed=9),
    ],
    ids=str,
)
def test_any_shape_of_experts_computes_the_same(upcycled, shape):
    dense = llama()
    with torch.no_grad():
        torch.testing.assert_close(upcycled(dense, shape)(IDS).logits, dense(IDS).logits, rtol=0, atol=2e-5)


def test_rotary_angles_are_bit_for_bit_those_of_the_llama(upcycled):
    dense = llama()
    moe = upcycled(dense)
    states, positions = torch.zeros(1), torch.arange(128)[None]
    for found, expected in zip(
        moe.model.rotary_emb(states, positions), dense.model.rotary_emb(states, positions), strict=True
    ):
        half = expected[..., :4]  # then the same again
        assert torch.equal(found, torch.cat([half] * 6, dim=-1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_norm_on_the_latent_gives_back_every_bit_of_a_value(upcycled, dtype):
    attention = upcycled(llama()).model.layers[0].self_attn.to(dtype)
    values = 20 * torch.randn(50, 24, generator=torch.Generator().manual_seed(1)).to(dtype)  # |values|^2 up to 2^14
    bias = attention.kv_a_proj_with_mqa.bias[:64]
    latent = torch.nn.functional.pad(values, (0, 40)) + bias
    assert torch.equal(attention.kv_a_layernorm(latent)[:, :24], values)


def test_routed_experts_are_equal_and_hold_what_the_shared_ones_do_not(upcycled):
    dense = llama()
    mlp, old = upcycled(dense).model.layers[2].mlp, dense.model.layers[2].mlp
    bank = mlp.experts.gate_up_proj
    assert bank.shape == (8, 64, 48)
    assert all(torch.equal(expert, bank[0]) for expert in bank)
    assert torch.equal(torch.cat([mlp.shared_experts.gate_proj.weight, bank[0, :32]]), old.gate_proj.weight)
    assert torch.equal(torch.cat([mlp.shared_experts.up_proj.weight, bank[0, 32:]]), old.up_proj.weight)


def test_tokens_are_spread_over_experts(upcycled):
    moe = upcycled(llama())
    chosen = []
    moe.model.layers[2].mlp.gate.register_forward_hook(lambda module, inputs, output: chosen.append(output[2]))
    with torch.no_grad():
        moe(IDS)
    assert set(chosen[0].flatten().tolist()) == set(range(8))


def test_equal_arguments_make_equal_weights():
    dense = llama()
    (_, first), (_, second) = (upcycle(dense.config, dense.state_dict(), SHAPE) for _ in range(2))
    assert first.keys() == second.keys()
    assert all(torch.equal(weight, second[name]) for name, weight in first.items())


def test_every_kind_of_adapter_fits(upcycled):
    dense = llama()
    targets = ("q_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj", "gate_proj", "down_proj", "experts", "gate")
    adapted = attach(upcycled(dense), AdapterConfig(rank=2, alpha=4.0, seed="s", targets=targets))
    with torch.no_grad():
        torch.testing.assert_close(adapted.model(IDS).logits, dense(IDS).logits, rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"attention_bias": True}, "without biases"),
        ({"mlp_bias": True}, "without biases"),
        ({"hidden_act": "gelu"}, "SiLU"),
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}, "rope type linear"),
        ({"num_hidden_layers": 1}, "2 MoE layers in a model of 1"),
        ({"intermediate_size": 80}, "80 neurons"),
        ({"intermediate_size": 32}, "32 neurons"),  # nothing would be shared
    ],
    ids=str,
)
def test_what_would_become_another_function_is_refused(settings, told):
    dense = llama(**settings)
    with pytest.raises(InvalidBackbone, match=told):
        upcycle(dense.config, dense.state_dict(), SHAPE)


def write(directory, dense, **changes):
    words = Tokenizer(WordLevel({str(i): i for i in range(97)}, unk_token="0"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words)
    state = dense.state_dict() | changes
    return write_upcycled(dense.config, state, SHAPE, tokenizer, ORIGIN, "free", directory, probe=[3, 1, 4, 1, 5])


def test_a_written_checkpoint_is_complete_and_its_hash_repeats(tmp_path):
    dense = llama(tie_word_embeddings=True)
    written = write(tmp_path / "one", dense)
    assert written.hash == content_hash(tmp_path / "one") == write(tmp_path / "two", dense).hash
    assert written.logit_difference < 2e-5
    assert load_origin(tmp_path / "one") == ORIGIN
    assert load_tokenizer(tmp_path / "one").vocab_size == 97
    assert (tmp_path / "one" / "LICENSE.md").read_text() == "free"
    with torch.no_grad():
        torch.testing.assert_close(load_model(tmp_path / "one")(IDS).logits, dense(IDS).logits, rtol=0, atol=2e-5)


def test_a_checkpoint_that_computes_something_else_is_not_written(tmp_path, monkeypatch):
    def sabotaged(*arguments):
        config, weights = upcycle(*arguments)
        return config, weights | {"model.norm.weight": weights["model.norm.weight"] * 1.01}

    monkeypatch.setattr(upcycling, "upcycle", sabotaged)
    with pytest.raises(InvalidBackbone, match="nothing was written"):
        write(tmp_path / "out", llama())
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_is_not_finite_is_not_written(tmp_path):
    dense = llama()
    with pytest.raises(InvalidBackbone, match="nothing was written"):
        write(tmp_path / "out", dense, **{"model.norm.weight": torch.full((48,), torch.nan)})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("wrong", [{"moe_layers": 0}, {"experts": 1}, {"top_k": 9}, {"top_k": 0}, {"expert_width": 0}])
def test_impossible_shapes_are_refused(wrong):
    with pytest.raises(InvalidBackbone):
        MoeShape(**wrong)
