"""A DeepSeek-V3-shaped model of random weights, small enough to differentiate unit by unit."""

from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM, PreTrainedTokenizerFast

VOCABULARY = 64


def tiny_deepseek(
    *, experts: int = 4, groups: int = 1, words: int = VOCABULARY, dtype: torch.dtype = torch.float32
) -> DeepseekV3ForCausalLM:
    """Two layers, one dense and one MoE, width 32.

    In float64 the norms are torch's own (`put_exact_norms`), or errors of the engine below 1e-7 would stay hidden. The
    stock router rounds to float32 as well, so float64 tests adapt it.
    """
    config = DeepseekV3Config(
        vocab_size=words,
        hidden_size=32,
        intermediate_size=64,
        moe_intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        n_shared_experts=1,
        n_routed_experts=experts,
        num_experts_per_tok=2,
        n_group=groups,
        topk_group=max(1, groups // 2),
        first_k_dense_replace=1,
        q_lora_rank=16,
        kv_lora_rank=16,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=8,
        max_position_embeddings=256,
        use_cache=False,
        pad_token_id=0,
    )
    config._experts_implementation = "eager"  # the default, grouped_mm, knows no float64
    model = DeepseekV3ForCausalLM(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * parameter.shape[-1] ** -0.5)
    if dtype == torch.float64:
        put_exact_norms(model)
    return model.to(dtype).eval()


def put_exact_norms(model: DeepseekV3ForCausalLM) -> None:
    """Replaces the norms by torch's own, for float64: the stock ones round to float32 inside."""
    for name, module in list(model.named_modules()):
        if type(module).__name__ == "DeepseekV3RMSNorm":
            parent, _, leaf = name.rpartition(".")
            norm = torch.nn.RMSNorm(module.weight.numel(), eps=module.variance_epsilon)
            setattr(model.get_submodule(parent), leaf, norm)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Every byte a word, ` a` another, and three control words; the first is padding."""
    controls = ("<|pad|>", "<|start|>", "<|end|>")
    alphabet = sorted(ByteLevel.alphabet())
    words = {word: i for i, word in enumerate((*controls, *alphabet, "Ġa"))}
    core = Tokenizer(BPE(vocab=words, merges=[("Ġ", "a")]))
    core.pre_tokenizer = ByteLevel(add_prefix_space=False)
    core.decoder = ByteLevelDecoder()
    core.add_special_tokens(list(controls))
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<|pad|>", eos_token="<|end|>")


# ChatML, as SmolLM2 and Qwen2.5 have it, with the mark of what an assistant writes that transformers knows.
CHATML = (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}"
    "{{ '<|start|>system\nYou help.<|end|>\n' }}{% endif %}{{ '<|start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] + '<|end|>' }}{% endgeneration %}"
    "{% else %}{{ m['content'] + '<|end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant\n' }}{% endif %}"
)


def save_text_backbone(directory: Path) -> None:
    """A checkpoint that reads and writes text and conversations, of random weights."""
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = CHATML
    tiny_deepseek(words=len(tokenizer)).save_pretrained(directory)
    tokenizer.save_pretrained(directory, save_jinja_files=False)


def random_ids(rows: int, length: int = 12, *, seed: int = 0) -> torch.Tensor:
    """Token ids without padding."""
    return torch.randint(1, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))
