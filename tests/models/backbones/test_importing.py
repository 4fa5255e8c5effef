"""Imports of published checkpoints: what is copied, and one sentence for each way in which a source can be wrong."""

import hashlib
import json
import os
import random
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from confide.models.adapters import AdapterConfig, attach
from confide.models.backbones.chat_trial import MAX_CHARACTERS
from confide.models.backbones.checkpoints import Claims, content_hash, load_model, load_origin, write_json
from confide.models.backbones.families import FAMILIES
from confide.models.backbones.family import BackboneConfig
from confide.models.backbones.importing import check_checkpoint, import_checkpoint
from confide.models.backbones.loading import backbones_in, load_text
from confide.models.errors import InvalidBackbone

from ..tiny import byte_tokenizer, random_ids, tiny_deepseek

CHAT = "{% for m in messages %}<|start|>{{ m['role'] }}: {{ m['content'] }}<|end|>{% endfor %}"
NORM = "model.norm.weight"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 12345\n"


def save_plain(folder, **how):
    """A tiny checkpoint without a chat template: a trial of one starts a process."""
    tokenizer = byte_tokenizer()
    tiny_deepseek(words=len(tokenizer)).save_pretrained(folder, **how)
    tokenizer.save_pretrained(folder)


def save_family(model_type, folder):
    """A tiny checkpoint of a family, with a tokenizer."""
    family = FAMILIES[model_type]
    tokenizer = byte_tokenizer()
    torch.manual_seed(0)
    family.build(len(tokenizer), BackboneConfig(family=model_type, hidden=32, layers=3)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return family


@pytest.fixture(scope="module")
def _whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    save_plain(folder)
    (folder / "README.md").write_text("---\nlanguage: en\nlicense: apache-2.0\n---\n# A model\n")
    (folder / "LICENSE").write_text("Apache License")
    return folder


@pytest.fixture(scope="module")
def _shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    save_plain(folder, max_shard_size="40KB")
    return folder


@pytest.fixture
def source(_whole, tmp_path):
    """A published checkpoint in one file."""
    return shutil.copytree(_whole, tmp_path / "source")


@pytest.fixture
def sharded(_shards, tmp_path):
    """The same in several files, with their index."""
    return shutil.copytree(_shards, tmp_path / "sharded")


def edit(path, **changes):
    stated = json.loads(path.read_text()) | changes
    write_json(path, {name: value for name, value in stated.items() if value is not None})


def reweigh(folder, change, file="model.safetensors"):
    tensors = load_file(folder / file)
    change(tensors)
    save_file(tensors, folder / file, metadata={"format": "pt"})


def refused(source: Path) -> str:
    """The sentence with which both the import and the dry check refuse; nothing is left behind."""
    before = sorted(source.parent.iterdir())
    said = []
    for attempt in (lambda: import_checkpoint(source, source.parent / "out"), lambda: check_checkpoint(source)):
        with pytest.raises(InvalidBackbone) as refusal:
            attempt()
        said.append(str(refusal.value))
    assert said[0] == said[1]
    assert sorted(source.parent.iterdir()) == before
    assert "\n" not in said[0]
    assert str(source.parent) in said[0]
    assert len(said[0]) < 600
    return said[0].replace(str(source), "SOURCE")


def test_an_imported_checkpoint_is_the_published_one_byte_for_byte(source, tmp_path):
    imported = import_checkpoint(source, tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {*imported.copied}
    for path in source.iterdir():
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()
    ids = random_ids(2)
    with torch.no_grad():
        plain = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)(ids).logits
        assert torch.equal(load_text(tmp_path / "out").model(ids).logits, plain)


def test_shards_are_taken_as_they_are(sharded, tmp_path):
    import_checkpoint(sharded, tmp_path / "out")
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 2
    loaded = load_text(tmp_path / "out").model.state_dict()
    assert all(map(torch.equal, loaded.values(), load_model(tmp_path / "out").state_dict().values()))
    expected = tiny_deepseek(words=len(byte_tokenizer())).state_dict()
    assert all(torch.equal(loaded[name], weight) for name, weight in expected.items())


def test_bfloat16_stays_bfloat16(tmp_path):
    save_plain(tmp_path / "source")
    reweigh(tmp_path / "source", lambda all: all.update({name: each.bfloat16() for name, each in all.items()}))
    found = import_checkpoint(tmp_path / "source", tmp_path / "out").description
    assert found.size.weight_bytes == (tmp_path / "source" / "model.safetensors").stat().st_size
    assert load_text(tmp_path / "out").hash == found.hash


@pytest.mark.parametrize("model_type", sorted(FAMILIES))
def test_each_family_is_imported_under_its_published_names(tmp_path, model_type):
    source = tmp_path / "source"
    family = save_family(model_type, source)
    found = import_checkpoint(source, tmp_path / "imported").description
    assert (found.family, found.layers) == (family.name, 3)
    model = load_text(tmp_path / "imported").model
    plain = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).state_dict()
    assert all(torch.equal(weight, plain[name]) for name, weight in model.state_dict().items())
    modules = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    assert modules >= {*found.targets} > {"embed_tokens", "o_proj"}
    assert {*found.suggested_targets} <= {*found.targets}
    first = AdapterConfig(
        rank=2, alpha=2.0, targets=found.suggested_targets, layers=found.suggested_layers, seed="first"
    )
    assert attach(load_model(tmp_path / "imported"), first).frozen_layers == found.suggested_layers[0]
    assert (found.experts is not None) == bool(family.banks(model))
    with safe_open(source / "model.safetensors", "pt") as file:
        names = sorted(file.keys())
    for name in (names[0], names[-1]):
        reweigh(source, drop(name))
        assert "is missing" in (said := refused(source)) or "do not have the shapes" in said
        shutil.copy(tmp_path / "imported" / "model.safetensors", source)


def test_what_is_not_needed_is_left_behind_and_named(source, tmp_path):
    unwanted = {
        "pytorch_model.bin",
        "modeling_x.py",
        "model.gguf",
        "training_args.bin",
        "vocab.json",
        "tokenizer.model",
    }
    for name in unwanted:
        (source / name).write_bytes(b"x")
    (source / "onnx").mkdir()
    Path(os.fsdecode(bytes(source) + b"/\xff\n")).write_bytes(b"x")
    imported = import_checkpoint(source, tmp_path / "out")
    assert {*imported.left} == unwanted | {"onnx/", r"'\udcff\n'"}
    assert not {path.name for path in (tmp_path / "out").iterdir()} & unwanted


def test_the_end_tells_what_a_study_may_name(source, tmp_path):
    found = import_checkpoint(source, tmp_path / "out").description
    assert found.hash == content_hash(tmp_path / "out")
    assert (found.family, found.layers, found.experts, found.top_k) == ("DeepSeek-V3", 2, 4, 2)
    assert {"o_proj", "experts", "gate", "q_a_proj"} < {*found.targets}
    assert "q_proj" not in found.targets  # this one's queries are compressed
    assert not found.has_chat_template


def test_the_origin_is_what_was_said_and_nothing_else(source, tmp_path):
    import_checkpoint(source, tmp_path / "out")
    origin = load_origin(tmp_path / "out")
    assert (origin.name, origin.publisher, origin.licence, origin.url) == (
        "not stated", "not stated", "apache-2.0", "not stated",
    )  # fmt: skip
    claims = Claims(name="M", publisher="P", licence="MIT", url="https://m.example")
    import_checkpoint(source, tmp_path / "told", claims=claims)
    told = load_origin(tmp_path / "told")
    assert (told.name, told.publisher, told.licence, told.url) == ("M", "P", "MIT", "https://m.example")


def test_the_origin_holds_the_hash_of_the_published_files(source, tmp_path):
    import_checkpoint(source, tmp_path / "out")
    assert load_origin(tmp_path / "out").source_sha256 == content_hash(source)


def test_an_import_of_an_import_keeps_what_the_first_one_said(source, tmp_path):
    import_checkpoint(source, tmp_path / "one", claims=Claims(name="M", url="https://m.example"))
    origin = load_origin(tmp_path / "one").to_dict()
    write_json(tmp_path / "one" / "origin.json", origin | {"changes": "written out in float32"})
    import_checkpoint(tmp_path / "one", tmp_path / "two", claims=Claims(publisher="P"))
    told = load_origin(tmp_path / "two")
    assert (told.name, told.publisher, told.changes) == ("M", "P", "written out in float32")
    assert told.source_sha256 == origin["source_sha256"]


def test_a_folder_of_the_hub_s_cache_is_followed_once(source, tmp_path):
    repository = tmp_path / "models--Some-Bank--tiny-moe"
    snapshot, blobs = repository / "snapshots" / ("a" * 40), repository / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for path in source.iterdir():
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        shutil.copy(path, blobs / digest)
        (snapshot / path.name).symlink_to(f"../../blobs/{digest}")
    import_checkpoint(snapshot, tmp_path / "out")
    assert not any(path.is_symlink() for path in (tmp_path / "out").iterdir())
    origin = load_origin(tmp_path / "out")
    assert (origin.publisher, origin.name) == ("Some-Bank", "tiny-moe")
    assert origin.url == "https://huggingface.co/Some-Bank/tiny-moe"
    assert "a" * 40 in origin.source
    blob = (snapshot / "model.safetensors").resolve()
    damaged = bytearray(blob.read_bytes())
    damaged[-1] ^= 1
    blob.write_bytes(damaged)
    assert "the name of the file in the cache says" in refused(snapshot)


@pytest.mark.process
def test_chat_templates_are_taken_from_each_place_where_publishers_put_them(source, tmp_path):
    said = [{"role": "user", "content": "Hello"}]
    (source / "chat_template.json").write_text(json.dumps({"chat_template": CHAT}))
    imported = import_checkpoint(source, tmp_path / "processor")
    assert load_origin(tmp_path / "processor").changes == "chat_template.json written as chat_template.jinja"
    assert "chat_template.json" not in imported.left
    (source / "chat_template.json").rename(source / "unused.json")
    (source / "chat_template.jinja").write_text(CHAT)
    import_checkpoint(source, tmp_path / "jinja")
    (source / "chat_template.jinja").unlink()
    edit(source / "tokenizer_config.json", chat_template=CHAT)
    import_checkpoint(source, tmp_path / "settings")
    for name in ("processor", "jinja", "settings"):
        loaded = load_text(tmp_path / name)
        assert loaded.tokenizer.apply_chat_template(said, tokenize=False) == "<|start|>user: Hello<|end|>"


@pytest.mark.process
@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("  ", "is empty"),
        ("x" * (MAX_CHARACTERS + 1), "characters; at most"),
        ("{% for %}", "cannot be rendered for a user's and an assistant's turn"),
        ("{{ messages.__class__.__mro__ }}", "access to attribute '__class__' of 'list' object is unsafe"),
        ("{{ 'a' * 10**12 }}", "cannot be rendered"),
        ("{{ 'a' * 10**6 }}" + CHAT, "writes without an end"),
        ("only this", "leaves out what a user and an assistant have said"),
    ],
    ids=["empty", "long", "broken", "hostile", "memory", "endless", "deaf"],
)
def test_a_chat_template_that_is_not_fit_is_refused(source, template, told):
    (source / "chat_template.jinja").write_text(template)
    with pytest.raises(InvalidBackbone) as refusal:
        import_checkpoint(source, source.parent / "out")
    assert told in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert [path.name for path in source.parent.iterdir()] == ["source"]


@pytest.mark.process
def test_a_chat_template_that_never_ends_is_stopped(source, monkeypatch):
    monkeypatch.setattr("confide.models.backbones.chat_trial._SECONDS", 1)
    loops = "".join(f"{{% for i{n} in range(99999) %}}" for n in range(3)) + "{% endfor %}" * 3
    (source / "chat_template.jinja").write_text(loops)
    with pytest.raises(InvalidBackbone, match="cannot be rendered within 1 s"):
        check_checkpoint(source)


def test_a_checkpoint_is_checked_without_a_word_written(source, tmp_path):
    found = check_checkpoint(source)
    assert (found.family, found.weight_bytes) == ("DeepSeek-V3", (source / "model.safetensors").stat().st_size)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_progress_ends_at_the_whole(source, tmp_path):
    seen = []
    import_checkpoint(source, tmp_path / "out", progress=lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen)
    assert 0.9 < seen[-1][0] / seen[-1][1] <= 1  # headers are copied, and are no weights


def test_an_existing_folder_is_not_touched(source):
    with pytest.raises(FileExistsError):
        import_checkpoint(source, source)


def poison(value):
    return lambda tensors: tensors[NORM].__setitem__(3, value)


def drop(name):
    return lambda tensors: tensors.pop(name)


def put(name, tensor):
    return lambda tensors: tensors.__setitem__(name, tensor)


EXPERT = "model.layers.1.mlp.experts.2.gate_proj.weight"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (poison(torch.nan), f"SOURCE: {NORM} in model.safetensors has NaN or infinite weights"),
        (poison(-torch.inf), f"SOURCE: {NORM} in model.safetensors has NaN or infinite weights"),
        (drop(NORM), f"SOURCE: tensor {NORM} is missing"),
        (drop(EXPERT), "SOURCE: matrices of experts do not have the shapes that config.json says"),
        (put("more\n\x1b[31m", torch.zeros(3)), "SOURCE: tensor more??[31m is none of the model"),
        (put("model.more.weight", torch.zeros(3)), "SOURCE: tensor model.more.weight is none of the model"),
        (put(NORM, torch.zeros(31)), f"SOURCE: tensor {NORM} is (31,), config.json says (32,)"),
        (put(EXPERT, torch.zeros(24, 31)), "SOURCE: matrices of experts do not have the shapes"),
        (put(NORM, torch.zeros(32, dtype=torch.int8)), f"SOURCE: {NORM} in model.safetensors holds I8; weights are"),
        (put(NORM, torch.zeros(32, dtype=torch.complex64)), f"SOURCE: {NORM} in model.safetensors holds C64"),
        (put(NORM, torch.zeros(32).to(torch.float8_e4m3fn)), f"SOURCE: {NORM} in model.safetensors holds F8_E4M3"),
        (put("model.embed_tokens.weight", torch.zeros(100, 32)), "is (100, 32), config.json says (260, 32)"),
    ],
)
def test_tensors_that_are_not_the_model_s_are_refused(source, change, told):
    reweigh(source, change)
    assert told in refused(source)


def put_fp8(scales, name="model.layers.0.self_attn.o_proj.weight"):
    """Codes in the place of a matrix, and what stands beside them."""

    def change(tensors):
        tensors[name] = tensors[name].to(torch.float8_e4m3fn)
        tensors.update(scales)

    return change


O_SCALE = "model.layers.0.self_attn.o_proj.weight_scale_inv"


@pytest.mark.parametrize(
    ("scales", "also", "told"),
    [
        ({O_SCALE: torch.ones(1, 1)}, None, None),
        ({}, None, f"tensor {O_SCALE} is missing"),
        ({O_SCALE: torch.ones(2, 1)}, None, f"tensor {O_SCALE} is (2, 1), its matrix has (1, 1) blocks"),
        ({O_SCALE: torch.full((1, 1), torch.nan)}, None, f"{O_SCALE} in model.safetensors has NaN"),
        ({O_SCALE: torch.ones(1, 1), f"{NORM}_scale_inv": torch.ones(1)}, None, "scales nothing that is fp8"),
        ({O_SCALE: torch.ones(1, 1)}, drop(NORM), f"tensor {NORM} is missing"),
        ({O_SCALE: torch.ones(1, 1)}, put(NORM, torch.zeros(31)), f"tensor {NORM} is (31,), config.json says (32,)"),
        ({O_SCALE: torch.ones(1, 1)}, put("model.more", torch.zeros(3)), "tensor model.more is none of the model"),
    ],
)
def test_tensors_of_a_checkpoint_in_fp8_are_compared_as_well(source, tmp_path, scales, also, told):
    reweigh(source, put_fp8(scales))
    reweigh(source, also or (lambda _: None))
    stated = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}
    edit(source / "config.json", quantization_config=stated)
    if told is not None:
        assert told in refused(source)
    else:
        import_checkpoint(source, tmp_path / "out")
        load_text(tmp_path / "out")


def test_a_cut_off_file_is_refused(source):
    whole = (source / "model.safetensors").read_bytes()
    (source / "model.safetensors").write_bytes(whole[:-1])
    assert "model.safetensors is cut off or no safetensors file" in refused(source)


def test_a_file_that_git_lfs_has_not_fetched_is_named_so(source):
    for name in ("model.safetensors", "tokenizer.json"):
        (source / name).write_text(POINTER)
        assert f"{name} is the pointer of a download that was not finished" in refused(source)


@pytest.mark.parametrize("who", ["SHA256SUMS", "the download's note"])
def test_weights_of_another_hash_than_stated_are_refused(source, tmp_path, who):
    name = "model.safetensors"
    digest = hashlib.sha256((source / name).read_bytes()).hexdigest()
    notes = source / ".cache" / "huggingface" / "download"
    notes.mkdir(parents=True)

    def state(digest):
        if who == "SHA256SUMS":
            (source / who).write_text(f"{'0' * 64}  other.safetensors\n{digest} *{name}\n")
        else:
            (notes / f"{name}.metadata").write_text(f"{'a' * 40}\n{digest}\n1700000000.0\n")

    state(digest)
    import_checkpoint(source, tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    state("f" * 64)
    assert f"{name} has SHA-256 {digest}, {who} says {'f' * 64}: download it again" in refused(source)


def index_of(folder):
    return json.loads((folder / "model.safetensors.index.json").read_text())


@pytest.mark.parametrize(
    ("shard", "told"),
    [
        ("../outside.safetensors", "which is no weight file of the folder"),
        ("/etc/passwd", "which is no weight file of the folder"),
        ("config.json", "which is no weight file of the folder"),
        ("model-00009-of-00009.safetensors", "names model-00009-of-00009.safetensors, which is not there (1 of"),
        (7, "has no weight_map of names"),
    ],
)
def test_an_index_that_names_what_is_not_there_is_refused(sharded, shard, told):
    weight_map = index_of(sharded)["weight_map"] | {NORM: shard}
    edit(sharded / "model.safetensors.index.json", weight_map=weight_map)
    assert told in refused(sharded)


def test_an_index_that_says_another_place_or_size_is_refused(sharded):
    index = index_of(sharded)
    weight_map, path = index["weight_map"], sharded / "model.safetensors.index.json"
    other = next(shard for shard in weight_map.values() if shard != weight_map[NORM])
    edit(path, weight_map=weight_map | {NORM: other})
    assert f"says that {NORM} is in {other}, and it is in {weight_map[NORM]}" in refused(sharded)
    edit(path, weight_map=weight_map, metadata={"total_size": 12})
    assert "says 12 bytes of tensors, the files hold" in refused(sharded)


def test_a_tensor_in_two_shards_is_refused(sharded):
    weight_map = index_of(sharded)["weight_map"]
    other = next(shard for shard in weight_map.values() if shard != weight_map[NORM])
    reweigh(sharded, put(NORM, torch.ones(32)), other)
    assert f"{NORM} stands in" in refused(sharded)


def test_whole_weights_beside_an_index_are_refused(sharded):
    save_file({NORM: torch.ones(32)}, sharded / "model.safetensors")
    assert "both model.safetensors and model.safetensors.index.json" in refused(sharded)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"model_type": "gpt5"}, "config.json"),
        ({"model_type": ["llama"]}, "config.json"),
        ({"architectures": ["DeepseekV3ForSequenceClassification"]}, "a DeepSeek-V3 is a DeepseekV3ForCausalLM"),
        ({"attn_implementation": "kernels-community/any@main"}, "config.json has attn_implementation"),
        ({"text": {"_experts_implementation": "any/any"}}, "config.json has _experts_implementation"),
        ({"transformers_weights": "other.safetensors"}, "config.json has transformers_weights"),
        ({"quantization_config": {"quant_method": "gptq"}}, "its weights are quantised by 'gptq', which is not read"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers '1000000000'; it must be an integer from 0 to 1000"),
        ({"hidden_size": -32}, "hidden_size '-32'"),
        ({"hidden_size": "32"}, "hidden_size '32'"),
        ({"hidden_size": 32.0}, "hidden_size '32.0'"),
        ({"n_routed_experts": 10**7}, "n_routed_experts '10000000'"),
        ({"vocab_size": 10**9}, "config.json describes"),
        ({"vocab_size": 200}, "model reads 200 words"),
        ({"hidden_act": "no such thing"}, "SOURCE"),
        ({"rope_parameters": {"rope_type": "evil"}}, "SOURCE"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, "take a checkpoint with"),
        ({"output_router_logits": True}, "output_router_logits is True, which ties the tokens of a batch together"),
    ],
    ids=str,
)
def test_a_configuration_that_does_not_fit_is_refused(source, changes, told):
    edit(source / "config.json", **changes)
    if "vocab_size" in changes and changes["vocab_size"] == 200:
        reweigh(source, lambda all: all.update({n: w[:200].clone() for n, w in all.items() if len(w) == 260}))
    assert told in refused(source)


def test_code_that_a_configuration_names_is_neither_copied_nor_run(source, tmp_path):
    named = {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}
    pipelines = {"x": {"impl": "evil.P", "pt": ["AutoModel"]}}
    edit(source / "config.json", auto_map=named, custom_pipelines=pipelines, trust_remote_code=True)
    edit(source / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.T", "evil.T"]}, tokenizer_class="T")
    (source / "evil.py").write_text("raise SystemExit('ran')")
    assert "evil.py" in import_checkpoint(source, tmp_path / "out").left
    assert type(load_text(tmp_path / "out").model).__module__.startswith("transformers.")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[" * 100_000, "is no JSON"),
        ('{"a":' * 100_000, "is no JSON"),
        ("[]", "holds no JSON object"),
        ('{"model_type": "llama", "model_type": "deepseek_v3"}', "'model_type' stands there twice"),
        ('{"a": ' + "9" * 10_000 + "}", "is no JSON"),
        ('{"a": "' + "x" * 2**24 + '"}', "is larger than 16,777,216 bytes"),
        ("\ufeff{}", "is no JSON"),
        ("", "is no JSON"),
    ],
    ids=["deep list", "deep object", "list", "twice", "number", "huge", "mark", "empty"],
)
def test_json_that_is_none_of_a_checkpoint_is_refused(source, text, told):
    (source / "config.json").write_text(text)
    assert told in refused(source)


def test_links_that_lead_elsewhere_are_refused(source, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (source / "tokenizer.json").rename(tmp_path / "elsewhere" / "tokenizer.json")
    (source / "tokenizer.json").symlink_to(tmp_path / "elsewhere" / "tokenizer.json")
    assert "tokenizer.json is a link to another folder" in refused(source)
    (tmp_path / "elsewhere" / "tokenizer.json").unlink()
    assert "tokenizer.json is a link to nothing" in refused(source)


@pytest.mark.parametrize(
    ("gone", "added", "told"),
    [
        ("config.json", (), "holds no config.json"),
        ("model.safetensors", ("pytorch_model.bin",), "pytorch_model.bin, which is never read"),
        ("model.safetensors", (), "holds no weights"),
        ("tokenizer.json", ("tokenizer.model",), "its tokenizer as tokenizer.model alone: tokenizer.json is needed"),
        ("tokenizer.json", (), "holds no tokenizer"),
        (None, ("adapter_config.json",), "merge it into them first"),
    ],
)
def test_half_a_checkpoint_is_refused_with_the_way_to_a_whole_one(source, gone, added, told):
    if gone:
        (source / gone).unlink()
    for name in added:
        (source / name).write_text("{}")
    said = refused(source)
    assert told in said
    if added and gone == "tokenizer.json":
        assert "AutoTokenizer.from_pretrained('SOURCE').save_pretrained('NEW')" in said


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{}", "SOURCE"),
        ("not json", "SOURCE"),
        ('{"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "vocab": {}, "merges": []}}', "no tokens"),
    ],
)
def test_a_tokenizer_that_is_no_fast_one_is_refused(source, text, told):
    (source / "tokenizer.json").write_text(text)
    edit(source / "tokenizer_config.json", eos_token=None, pad_token=None)
    assert told in refused(source)


def test_a_tokenizer_with_more_words_than_the_embedding_is_refused(source):
    stated = json.loads((source / "tokenizer.json").read_text())
    stated["model"]["vocab"]["zebra"] = 260
    write_json(source / "tokenizer.json", stated)
    assert "the tokenizer has a word of number 260, the model reads 260 words" in refused(source)


def test_a_folder_that_is_none_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    for name in ("absent", "file"):
        with pytest.raises(InvalidBackbone, match=r"cannot be listed") as refusal:
            import_checkpoint(tmp_path / name, tmp_path / "out")
        assert ("nothing is downloaded" in str(refusal.value)) == (name == "absent")


def test_what_a_killed_import_left_is_no_backbone(source, tmp_path):
    shutil.copytree(source, tmp_path / "all" / ".out-x1y2")
    import_checkpoint(source, tmp_path / "all" / "out")
    assert [*backbones_in(tmp_path / "all")] == ["out"]


def test_a_full_disk_is_told_before_the_copy(source, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(InvalidBackbone, match="GB are free"):
        import_checkpoint(source, source.parent / "out")
    assert [path.name for path in source.parent.iterdir()] == ["source"]


def attempted(source, out):
    """Imports; returns the refusal, if any."""
    try:
        import_checkpoint(source, out)
    except InvalidBackbone as refusal:
        return str(refusal)
    return None


FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "generation_config.json")


@pytest.mark.parametrize("name", FILES)
def test_damage_anywhere_is_refused_in_a_sentence_or_harmless(source, tmp_path, name):
    """Bytes flipped, cut out, doubled or cut off: what is imported all the same is the source, and loads."""
    chance = random.Random(name)
    whole = (source / name).read_bytes()
    refusals = 0
    for round_ in range(25):
        damaged = bytearray(whole)
        place = chance.randrange(min(len(whole), 20_000))  # also in the header of large files
        match round_ % 4:
            case 0:
                damaged[place] ^= 1 << chance.randrange(8)
            case 1:
                del damaged[place : place + chance.randrange(1, 20)]
            case 2:
                damaged[place:place] = damaged[place : place + chance.randrange(1, 20)]
            case _:
                del damaged[place:]
        (source / name).write_bytes(damaged)
        out = tmp_path / f"out-{round_}"
        said = attempted(source, out)
        if said is not None:
            refusals += 1
            assert "\n" not in said
            assert len(said) < 800
            assert not out.exists()
        else:
            assert (out / name).read_bytes() == damaged
            assert load_text(out).model.config.vocab_size == 260
    assert refusals > 5 or name == "generation_config.json"
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
