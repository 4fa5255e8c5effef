import json
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import DeepseekV3ForCausalLM

from confide.kernels.formats import Int8Row, NF4Block64
from confide.kernels.install import quantise
from confide.models.backbones import loading
from confide.models.backbones.family import BackboneConfig
from confide.models.backbones.loading import backbone_hash, build, load, load_text, save
from confide.models.errors import BackboneMismatch, InvalidBackbone
from confide.models.records.fields import CategoricalField, FlagField, NumericField, RecordSchema

from ..tiny import save_text_backbone

SCHEMA = RecordSchema(
    (NumericField("TSH", (0.4, 1.0, 2.0, 4.0)),), (FlagField("sick"),), (CategoricalField("sex", ("F", "M")),)
)
SMALL = BackboneConfig(hidden=32, experts=4)
IDS = torch.tensor(SCHEMA.encode(["TSH=b01 sex=F sick", "TSH=na sex=M"]))


@pytest.fixture
def directory(tmp_path):
    save(build(SCHEMA, SMALL), SCHEMA, torch.arange(64.0), torch.eye(64), tmp_path / "backbone")
    return tmp_path / "backbone"


def test_what_is_loaded_is_what_was_saved(directory):
    loaded = load(directory)
    assert loaded.schema == SCHEMA
    assert torch.equal(loaded.center, torch.arange(64.0))
    for name, tensor in build(SCHEMA, SMALL).state_dict().items():
        assert torch.equal(tensor, loaded.model.state_dict()[name]), name
    assert not loaded.model.training
    assert not any(p.requires_grad for p in loaded.model.parameters())


@pytest.mark.parametrize(("experts", "form"), [("int8", Int8Row), ("nf4", NF4Block64)])
@torch.no_grad()
def test_either_kind_of_backbone_is_loaded_with_its_experts_packed(directory, tmp_path, experts, form):
    save_text_backbone(tmp_path / "text")
    for read, folder in ((load, directory), (load_text, tmp_path / "text")):
        packed, whole = read(folder, experts=experts), read(folder)
        before = whole.model(IDS).logits
        quantise(whole.model, form.quantised)
        assert packed.hash == whole.hash
        assert torch.equal(packed.model(IDS).logits, whole.model(IDS).logits)
        assert not torch.equal(packed.model(IDS).logits, before)


def test_equal_arguments_build_equal_weights_and_leave_torchs_generator_alone():
    before = torch.random.get_rng_state()
    first, second = build(SCHEMA, SMALL), build(SCHEMA, SMALL)
    assert torch.equal(before, torch.random.get_rng_state())
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)


def test_neighbouring_bins_start_closer_than_distant_ones():
    schema = RecordSchema((NumericField("x", tuple(range(15))),))
    table = build(schema, SMALL).get_input_embeddings().weight.detach()
    bins = table[3 : 3 + 16]  # after <pad>, <eos> and x=na
    distance = torch.cdist(bins, bins)
    assert distance.diagonal(1).mean() < 0.6 * distance.diagonal(8).mean()


def test_directory_is_a_plain_transformers_checkpoint(directory):
    plain = DeepseekV3ForCausalLM.from_pretrained(directory, local_files_only=True).eval()
    with torch.no_grad():
        ours, theirs = load(directory).model(IDS).logits, plain(IDS).logits
    assert torch.equal(ours, theirs)


def test_hash_is_that_of_the_bytes_and_not_of_the_place(directory, tmp_path):
    copy = directory.rename(tmp_path / "elsewhere")
    assert backbone_hash(copy) == load(copy).hash
    pooling = load_file(copy / "pooling.safetensors")
    pooling["center"][3] += 1
    before = backbone_hash(copy)
    save_file(pooling, copy / "pooling.safetensors")
    assert backbone_hash(copy) != before


@pytest.mark.parametrize("name", ["config.json", "schema.json", "model.safetensors", "generation_config.json"])
def test_every_file_counts_in_the_hash(directory, name):
    before = backbone_hash(directory)
    with (directory / name).open("ab") as file:
        file.write(b" ")
    assert backbone_hash(directory) != before


def test_another_content_is_refused_before_it_is_parsed(directory):
    (directory / "config.json").write_text("not even json")
    with pytest.raises(BackboneMismatch, match="expected 00ff"):
        load(directory, expected_hash="00ff")


class Bomb:
    def __reduce__(self):
        raise_in_loader = "raise SystemExit('unpickled')"
        return exec, (raise_in_loader,)


def test_pickled_weights_are_refused_unread(directory):
    (directory / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(InvalidBackbone, match=r"pytorch_model\.bin does not belong"):
        load(directory)


@pytest.mark.parametrize("name", ["adapter_config.json", "modeling.py", "a\nb.json", "folder"])
def test_what_transformers_would_run_or_follow_is_refused(directory, name):
    if name == "folder":
        (directory / name).mkdir()
    else:
        (directory / name).write_text("{}")
    with pytest.raises(InvalidBackbone, match="does not belong"):
        load(directory)


def test_a_link_out_of_the_directory_is_refused(directory, tmp_path):
    (directory / "config.json").rename(tmp_path / "config.json")
    (directory / "config.json").symlink_to(tmp_path / "config.json")
    with pytest.raises(InvalidBackbone, match="does not belong"):
        load(directory)


@pytest.mark.parametrize("name", ["config.json", "schema.json", "pooling.safetensors", "model.safetensors"])
def test_a_missing_or_broken_file_is_refused(directory, name):
    (directory / name).write_bytes(b"\0broken")
    with pytest.raises(InvalidBackbone):
        load(directory)
    (directory / name).unlink()
    with pytest.raises(InvalidBackbone):
        load(directory)


@pytest.mark.parametrize("change", ["missing", "unexpected", "reshaped"])
def test_weights_that_transformers_would_fill_in_or_drop_are_refused(directory, change):
    weights = load_file(directory / "model.safetensors")
    name = "model.norm.weight"
    if change == "missing":
        del weights[name]
    elif change == "unexpected":
        weights["model.more.weight"] = torch.zeros(3)
    else:
        weights[name] = torch.zeros(5)
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InvalidBackbone):
        load(directory)


def test_another_architecture_is_refused(directory):
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "model_type": "gpt2"}))
    with pytest.raises(InvalidBackbone, match=r"model_type 'gpt2', .* there are deepseek_v3, .* is a file in models"):
        load(directory)
    (directory / "config.json").write_text(json.dumps({**config, "model_type": "llama"}))
    with pytest.raises(InvalidBackbone):  # a family that there is, and other weights
        load(directory)


def test_a_schema_with_another_vocabulary_is_refused(directory):
    (directory / "schema.json").write_text(json.dumps(RecordSchema(flags=(FlagField("sick"),)).to_dict()))
    with pytest.raises(InvalidBackbone, match="the schema has 3"):
        load(directory)


def test_moments_that_are_not_finite_are_refused(tmp_path):
    with pytest.raises(InvalidBackbone, match="not finite"):
        save(build(SCHEMA, SMALL), SCHEMA, torch.full((64,), torch.nan), torch.eye(64), tmp_path / "backbone")


def test_a_failed_save_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr(loading, "save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        save(build(SCHEMA, SMALL), SCHEMA, torch.zeros(64), torch.eye(64), tmp_path / "backbone")
    assert list(tmp_path.iterdir()) == []


def test_an_existing_directory_is_not_overwritten(directory):
    before = backbone_hash(directory)
    with pytest.raises(FileExistsError):
        save(build(SCHEMA, SMALL), SCHEMA, torch.zeros(64), torch.eye(64), directory)
    assert backbone_hash(directory) == before


@pytest.mark.parametrize("wrong", [{"hidden": 48}, {"layers": 1}, {"top_k": 9}, {"experts": 1, "top_k": 1}])
def test_impossible_sizes_are_refused(wrong):
    with pytest.raises(InvalidBackbone):
        BackboneConfig(**wrong)


def test_a_tokenizer_with_a_word_beyond_the_model_s_is_refused(tmp_path):
    """However few its words are: one of them would stop a step whenever a record holds it."""
    save_text_backbone(tmp_path / "text")
    words = load_text(tmp_path / "text").model.config.vocab_size
    file = tmp_path / "text" / "tokenizer.json"
    stated = json.loads(file.read_text())
    del stated["model"]["vocab"]["z"]
    stated["model"]["vocab"]["Ġa"] = words
    file.write_text(json.dumps(stated))
    with pytest.raises(InvalidBackbone, match=f"a word of number {words}, the model reads {words} words"):
        load_text(tmp_path / "text")
