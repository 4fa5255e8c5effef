import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from confide.models.backbones.checkpoints import (
    Origin,
    content_hash,
    load_model,
    load_origin,
    load_tokenizer,
    size,
    write_json,
)
from confide.models.errors import BackboneMismatch, InvalidBackbone

from ..tiny import random_ids, tiny_deepseek

ORIGIN = Origin(
    name="n",
    publisher="p",
    licence="Apache-2.0",
    url="https://example.org",
    source="s",
    source_sha256="00",
    changes="c",
)
IDS = random_ids(2)


@pytest.fixture
def directory(tmp_path):
    """A small checkpoint of two MoE layers' worth of files, in one file of weights."""
    tiny_deepseek().save_pretrained(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


@pytest.fixture
def sharded(tmp_path):
    """The same, in several."""
    tiny_deepseek().save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2
    return tmp_path / "sharded"


def edit(path, **changes):
    write_json(path, json.loads(path.read_text()) | changes)


def test_a_sharded_checkpoint_is_the_same_model(directory, sharded):
    original = tiny_deepseek()
    for loaded in (load_model(directory), load_model(sharded)):
        assert all(map(torch.equal, loaded.state_dict().values(), original.state_dict().values()))
        with torch.no_grad():  # mapped weights lie otherwise in memory, and sums may be taken in another order
            torch.testing.assert_close(loaded(IDS).logits, original(IDS).logits, rtol=1e-5, atol=1e-5)
    assert size(sharded).parameters == size(directory).parameters


def test_a_loaded_model_is_frozen_and_evaluates(directory):
    model = load_model(directory)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_weights_are_mapped_and_a_change_stays_out_of_the_file(directory):
    model, before = load_model(directory), content_hash(directory)
    name, pointer = str(directory / "model.safetensors"), model.model.embed_tokens.weight.data_ptr()
    maps = Path("/proc/self/maps").read_text().splitlines()
    ranges = [line.split()[0].split("-") for line in maps if line.endswith(name)]
    assert any(int(start, 16) <= pointer < int(end, 16) for start, end in ranges)
    model.model.embed_tokens.weight.zero_()
    assert content_hash(directory) == before
    assert load_model(directory).model.embed_tokens.weight.any()


def test_another_content_is_refused_before_it_is_parsed(directory):
    good = content_hash(directory)
    load_model(directory, expected_hash=good)
    (directory / "config.json").write_text("not even json")
    with pytest.raises(BackboneMismatch, match=f"expected {good}"):
        load_model(directory, expected_hash=good)


def test_a_pickle_is_refused(directory):
    torch.save(load_file(directory / "model.safetensors"), directory / "pytorch_model.bin")
    (directory / "model.safetensors").unlink()
    for read in (load_model, content_hash, size, load_tokenizer):
        with pytest.raises(InvalidBackbone, match=r"pytorch_model\.bin does not belong"):
            read(directory)


@pytest.mark.parametrize(
    "shard", ["../outside.safetensors", "/outside.safetensors", "absent.safetensors", "config.json"]
)
def test_an_index_that_leads_out_of_the_directory_is_refused(sharded, tmp_path, shard):
    index = sharded / "model.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    save_file(load_file(sharded / weight_map["model.norm.weight"]), tmp_path / "outside.safetensors")
    shard = str(tmp_path / "outside.safetensors") if shard.startswith("/") else shard
    edit(index, weight_map=weight_map | {"model.norm.weight": shard})
    for read in (load_model, size):
        with pytest.raises(InvalidBackbone, match="no weight file of the directory"):
            read(sharded)


def test_a_tensor_in_two_shards_is_refused(sharded):
    """Which of them holds would be decided by the order in which files are read."""
    weight_map = json.loads((sharded / "model.safetensors.index.json").read_text())["weight_map"]
    home = weight_map["model.norm.weight"]
    other = next(shard for shard in weight_map.values() if shard != home)
    tensors = load_file(sharded / other) | {"model.norm.weight": torch.full((1,), 8.0)}
    save_file(tensors, sharded / other, metadata={"format": "pt"})
    for read in (load_model, size):
        with pytest.raises(InvalidBackbone, match="does not say what"):
            read(sharded)


@pytest.mark.parametrize("name", ["attn_implementation", "_attn_implementation", "experts_implementation"])
def test_a_configuration_that_names_code_is_refused(directory, name):
    edit(directory / "config.json", **{name: "kernels-community/anything@some-branch"})
    for read in (load_model, size):
        with pytest.raises(InvalidBackbone, match=f"config.json has {name}"):
            read(directory)


@pytest.mark.parametrize(
    "changes", [{"vocab_size": 10**9}, {"moe_intermediate_size": 10**8}, {"num_hidden_layers": 10**9}]
)
def test_a_configuration_larger_than_its_files_allocates_nothing(directory, changes):
    edit(directory / "config.json", **changes)
    with pytest.raises(InvalidBackbone, match=r"describes|layers"):  # 10**9 words would take 64 GB
        load_model(directory)


@pytest.mark.parametrize(
    ("read", "changes"),
    [
        (load_model, {"hidden_size": "32"}),
        (load_model, {"hidden_act": "no such thing"}),
        (size, {"n_routed_experts": float("inf")}),
        (size, {"num_experts_per_tok": None}),
    ],
)
def test_a_configuration_that_lies_is_an_error_of_ours(directory, read, changes):
    edit(directory / "config.json", **changes)
    with pytest.raises(InvalidBackbone):
        read(directory)


def test_an_origin_that_is_too_deep_is_an_error_of_ours(directory):
    (directory / "origin.json").write_text("[" * 200_000)
    with pytest.raises(InvalidBackbone):
        load_origin(directory)


def test_whole_weights_beside_shards_are_refused(directory, sharded):
    (directory / "model.safetensors").rename(sharded / "model.safetensors")
    with pytest.raises(InvalidBackbone, match="both"):
        load_model(sharded)


def test_an_index_that_is_none_is_refused(sharded):
    (sharded / "model.safetensors.index.json").write_text("[]")
    for read in (load_model, size):
        with pytest.raises(InvalidBackbone):
            read(sharded)


@pytest.mark.parametrize(
    "setting",
    [{"compression_config": {"format": "dense"}}, {"transformers_weights": "other.safetensors"}],
    ids=lambda setting: next(iter(setting)),
)
def test_settings_that_would_load_other_weights_are_refused(directory, setting):
    edit(directory / "config.json", **setting)
    with pytest.raises(InvalidBackbone, match=next(iter(setting))):
        load_model(directory)


def test_size_is_the_model_s_own_and_active_are_those_a_token_meets(directory):
    model = tiny_deepseek()  # 4 experts, 2 for each token, one of two layers
    found = size(directory)
    assert found.parameters == sum(parameter.numel() for parameter in model.parameters())
    one_expert = model.model.layers[1].mlp.experts.gate_up_proj[0].numel() + 32 * 24
    assert found.active_parameters == found.parameters - 2 * one_expert
    assert found.weight_bytes == (directory / "model.safetensors").stat().st_size


@pytest.mark.parametrize("counts", [(0, 0), (4, 5), (4, 0), ("x", 2), (None, 2)], ids=str)
def test_a_size_without_a_sense_is_refused(directory, counts):
    edit(directory / "config.json", n_routed_experts=counts[0], num_experts_per_tok=counts[1])
    with pytest.raises(InvalidBackbone):
        size(directory)


def test_missing_or_broken_weights_have_no_size(directory):
    (directory / "model.safetensors").write_bytes(b"\0broken")
    with pytest.raises(InvalidBackbone):
        size(directory)
    (directory / "model.safetensors").unlink()
    with pytest.raises(InvalidBackbone):
        size(directory)


def test_an_origin_is_read_as_it_was_written(directory):
    assert load_origin(directory) is None
    write_json(directory / "origin.json", ORIGIN.to_dict())
    assert load_origin(directory) == ORIGIN


@pytest.mark.parametrize("change", ["missing", "more", "number", "list", "broken"])
def test_an_origin_that_says_something_else_is_refused(directory, change):
    stated = ORIGIN.to_dict()
    if change == "missing":
        del stated["licence"]
    changed = {"more": stated | {"x": "y"}, "number": stated | {"licence": 3}, "list": [stated]}.get(change, stated)
    (directory / "origin.json").write_text("{" if change == "broken" else json.dumps(changed))
    with pytest.raises(InvalidBackbone):
        load_origin(directory)


def test_a_tokenizer_is_read_as_one_class_whatever_its_files_ask_for(directory):
    words = Tokenizer(WordLevel({"a": 0, "b": 1}, unk_token="a"))
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="b").save_pretrained(directory)
    asked = {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}}
    edit(directory / "tokenizer_config.json", **asked)
    found = load_tokenizer(directory)
    assert type(found) is PreTrainedTokenizerFast
    assert (found("b")["input_ids"], found.eos_token_id) == ([1], 1)


def test_a_tokenizer_of_another_content_is_refused(directory):
    words = Tokenizer(WordLevel({"a": 0, "b": 1}, unk_token="a"))
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="b").save_pretrained(directory)
    good = content_hash(directory)
    assert load_tokenizer(directory, expected_hash=good)("b")["input_ids"] == [1]
    edit(directory / "tokenizer_config.json", eos_token="a")
    with pytest.raises(BackboneMismatch):
        load_tokenizer(directory, expected_hash=good)


def test_a_checkpoint_without_or_with_a_broken_tokenizer_says_so(directory):
    with pytest.raises(InvalidBackbone, match=r"no tokenizer\.json"):
        load_tokenizer(directory)
    (directory / "tokenizer.json").write_text("{}")
    with pytest.raises(InvalidBackbone):
        load_tokenizer(directory)
