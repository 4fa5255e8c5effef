import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import Unigram
from tokenizers.pre_tokenizers import Metaspace
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoModel,
    BertConfig,
    BertForMaskedLM,
    BertModel,
    PreTrainedTokenizerFast,
    XLMRobertaConfig,
    XLMRobertaModel,
)

from confide.models.errors import BackboneMismatch, InvalidBackbone
from confide.models.space.embedding import Embedder
from confide.models.space.public import build_space
from confide.models.space.states import MOST_TOKENS, FrozenReader, layers_of
from confide.models.space.training import SpaceTrainingConfig

from .conftest import SMALL, write_public

PIECES = ["<s>", "<pad>", "</s>", "<unk>", "▁", *"abcdefghijklmnopqrstuvwxyz", "▁a", "ing", "re", "▁b"]
TEXTS = ["a bird", "", "a", "being here and there", "a fox"]
SIZES = {
    "vocab_size": len(PIECES), "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2,
    "intermediate_size": 24, "max_position_embeddings": 40, "pad_token_id": 1,
}  # fmt: skip
KINDS = {
    "bert": lambda: BertModel(BertConfig(**SIZES)),
    "bert-with-a-head": lambda: BertForMaskedLM(BertConfig(**SIZES)),
    "xlm-roberta": lambda: XLMRobertaModel(XLMRobertaConfig(**SIZES, type_vocab_size=1)),
}


def save_encoder(folder, kind):
    model = Tokenizer(Unigram([(piece, -float(place)) for place, piece in enumerate(PIECES)], 3))
    model.pre_tokenizer = Metaspace(prepend_scheme="always")
    model.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    model.add_special_tokens([AddedToken(piece, special=True) for piece in PIECES[:4]])
    torch.manual_seed(1)
    made = KINDS[kind]()
    for parameter in made.parameters():  # as made, attention is all but even
        parameter.data.add_(torch.randn_like(parameter) / 4)
    made.save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=model, pad_token="<pad>", unk_token="<unk>").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=KINDS)
def encoder(request, tmp_path_factory):
    return save_encoder(tmp_path_factory.mktemp("encoder") / request.param, request.param)


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return save_encoder(tmp_path_factory.mktemp("encoder") / "bert", "bert")


def states_by_transformers(folder, text, reads):
    """Means over tokens, of one text by itself, as transformers' own reader has them."""
    tokenizer, model = PreTrainedTokenizerFast.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        states = model(**tokenizer(text, return_tensors="pt"), output_hidden_states=True).hidden_states
    return torch.cat([states[read][0].mean(0) for read in reads])


def test_states_are_those_of_transformers_own_reader(encoder):
    reader = FrozenReader(encoder, (0, 1, 3))
    assert (layers_of(encoder), reader.width) == (3, 48)
    found = reader.states(TEXTS)
    assert not found[1].any()
    for text, row in zip(TEXTS, found, strict=True):
        if text:
            torch.testing.assert_close(row, states_by_transformers(encoder, text, (0, 1, 3)), rtol=0, atol=1e-5)


def test_states_are_the_same_alone_and_beside_longer_texts(bert):
    reader = FrozenReader(bert, (3,))
    alone = torch.cat([reader.states([text]) for text in TEXTS])
    torch.testing.assert_close(reader.states(TEXTS), alone, rtol=0, atol=1e-5)
    many = reader.states(TEXTS * 30)
    torch.testing.assert_close(many, alone.repeat(30, 1), rtol=0, atol=1e-5)
    assert reader.states([]).shape == (0, 16)


def test_a_longer_text_is_cut(bert):
    reader = FrozenReader(bert, (3,))
    kept = MOST_TOKENS - 3  # beside the two ends, and the blank that begins a word
    torch.testing.assert_close(reader.states(["c" * 60]), reader.states(["c" * kept]), rtol=0, atol=1e-6)


def test_too_few_layers_are_refused(bert):
    with pytest.raises(BackboneMismatch, match="has 3 layers"):
        FrozenReader(bert, (0, 4))


def test_a_space_of_names_that_an_encoder_reads(bert, tmp_path):
    table = write_public(tmp_path)
    config = SpaceTrainingConfig(steps=2, batch=4, gallery=4)
    build_space(table, tmp_path / "space", bert, config=config, sizes=SMALL)
    embedder = Embedder(tmp_path / "space", bert)
    assert embedder.names(["red", "a blue thing"]).norm(dim=1).tolist() == pytest.approx([1, 1])
    other = copied(bert, tmp_path / "other")
    (other / "generation_config.json").write_text("{}")
    with pytest.raises(BackboneMismatch):
        Embedder(tmp_path / "space", other).names(["red"])


def test_a_text_that_says_a_control_word_ends_nothing(bert):
    places = [PIECES.index(piece) for piece in ("▁", "a", "▁", "▁", "b")]
    with torch.no_grad():
        model = AutoModel.from_pretrained(bert).eval()
        last = model(torch.tensor([[0, *places, 2]])).last_hidden_state[0].mean(0)
    found = FrozenReader(bert, (3,)).states(["a </s> b<pad>", "<s>"])
    torch.testing.assert_close(found[0], last, rtol=0, atol=1e-5)


def test_a_sign_that_the_tokenizer_cannot_read_is_refused(bert, tmp_path):
    folder = copied(bert, tmp_path / "encoder")
    tokens(lambda held: held["model"].update(unk_id=None))(folder)
    with pytest.raises(InvalidBackbone, match="encoder: "):
        FrozenReader(folder, (3,)).states(["ж"])


def copied(folder, place):
    place.mkdir()
    for file in folder.iterdir():
        (place / file.name).write_bytes(file.read_bytes())
    return place


def stated(**changes):
    def damage(folder):
        settings = json.loads((folder / "config.json").read_text()) | changes
        (folder / "config.json").write_text(json.dumps(settings))

    return damage


def weights(change):
    def damage(folder):
        held = load_file(folder / "model.safetensors")
        change(held)
        save_file(held, folder / "model.safetensors")

    return damage


def tokens(change):
    def damage(folder):
        held = json.loads((folder / "tokenizer.json").read_text())
        change(held)
        (folder / "tokenizer.json").write_text(json.dumps(held))

    return damage


def twice(held):
    held[f"bert.{NORM}"] = held[NORM].clone()


def eight_bits(held):
    held[NORM] = held[NORM].to(torch.int8)


NORM = "embeddings.LayerNorm.weight"


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (stated(hidden_act="relu"), "hidden_act that does not fit"),
        (stated(position_embedding_type="relative_key"), "position_embedding_type that does not fit"),
        (stated(vocab_size="9"), "vocab_size that does not fit"),
        (stated(vocab_size=10**9), "vocab_size that does not fit"),
        (stated(hidden_size=None), "hidden_size that does not fit"),
        (stated(num_attention_heads=3), "sizes that do not fit each other"),
        (stated(pad_token_id=len(PIECES)), "sizes that do not fit each other"),
        (stated(num_hidden_layers=4), r"no weights of the right form for encoder\.layer\.3\."),
        (stated(intermediate_size=4096), "no weights of the right form"),
        (stated(model_type="gpt2"), "gpt2"),
        (stated(model_type=[]), "config.json"),
        (stated(max_position_embeddings=31), "has 31 positions; 32 are needed"),
        (stated(max_position_embeddings=32, model_type="xlm-roberta"), "has 30 positions; 32 are needed"),
        (tokens(lambda held: held.update(post_processor=None)), "adds no two tokens to a text"),
        (tokens(lambda held: held["model"]["vocab"].extend([["zz", -1.0]])), "the tokenizer knows 36 tokens"),
        (weights(twice), "has weights of embeddings.LayerNorm.weight twice"),
        (weights(eight_bits), "no weights of the right form for embeddings.LayerNorm.weight"),
        (weights(lambda held: held["encoder.layer.0.output.dense.weight"].fill_(3e38)), "states that are no finite"),
        (weights(lambda held: held.pop(NORM)), "no weights of the right form for embeddings.LayerNorm.weight"),
        (weights(lambda held: held[NORM].fill_(float("nan"))), "no finite numbers"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"{}"), "header"),
        (lambda folder: (folder / "config.json").write_text("[]"), "no JSON object"),
        (lambda folder: (folder / "config.json").unlink(), "config.json"),
        (lambda folder: (folder / "modeling.py").write_text("raise SystemExit"), "does not belong"),
        (lambda folder: (folder / "pytorch_model.bin").write_bytes(b"x"), "does not belong"),
    ],
)
def test_damaged_folders_are_refused(bert, tmp_path, damage, told):
    folder = copied(bert, tmp_path / "encoder")
    damage(folder)
    with pytest.raises(InvalidBackbone, match=told):
        build_space(write_public(tmp_path), tmp_path / "space", folder, sizes=SMALL)
    assert not (tmp_path / "space").exists()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_of_sixteen_bits_are_read(bert, tmp_path, dtype):
    folder = copied(bert, tmp_path / "encoder")
    weights(lambda held: held.update({name: weight.to(dtype) for name, weight in held.items()}))(folder)
    found = FrozenReader(folder, (3,)).states(TEXTS)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, FrozenReader(bert, (3,)).states(TEXTS), rtol=0, atol=0.2)


def test_weights_in_shards_and_under_the_first_names_are_read(bert, tmp_path):
    folder = copied(bert, tmp_path / "encoder")
    held = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): weight
        for name, weight in held.items()
    }
    names, index = sorted(old), {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        save_file({name: old[name] for name in part}, folder / f"model-{number}.safetensors")
        index |= dict.fromkeys(part, f"model-{number}.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    found = FrozenReader(folder, (3,)).states(TEXTS)
    torch.testing.assert_close(found, FrozenReader(bert, (3,)).states(TEXTS), rtol=0, atol=0)


@pytest.mark.parametrize(("kind", "pad"), [("bert", 0), ("xlm-roberta", 1)])
def test_the_number_of_padding_is_that_of_the_kind_where_none_is_stated(tmp_path, kind, pad):
    stated(pad_token_id=pad)(save_encoder(tmp_path / "said", kind))
    folder = copied(tmp_path / "said", tmp_path / "unsaid")
    settings = json.loads((folder / "config.json").read_text())
    del settings["pad_token_id"]
    (folder / "config.json").write_text(json.dumps(settings))
    found = [FrozenReader(tmp_path / name, (3,)).states(TEXTS) for name in ("said", "unsaid")]
    torch.testing.assert_close(*found, rtol=0, atol=0)
