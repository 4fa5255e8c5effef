import json
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from confide.models.backbones import checkpoints, loading
from confide.models.backbones.family import BackboneConfig
from confide.models.backbones.pretraining import PretrainingConfig, pretrain
from confide.models.backbones.text_pretraining import TextPretrainingConfig, pretrain_text
from confide.models.compression.compressing import KEPT, compress, read_kept
from confide.models.compression.cutting import Sizes
from confide.models.compression.distilling import DistillingConfig
from confide.models.errors import InvalidBackbone, InvalidCompression
from confide.models.records import RecordSchema
from confide.models.records.fields import FlagField, NumericField
from confide.models.records.vocabularies import COMMANDS, character_tokenizer

FEW = DistillingConfig(steps=3, batch=16, batch_tokens=200)
SCHEMAS = (
    RecordSchema(numeric=(NumericField("age", (20.0, 40.0, 60.0)),), flags=(FlagField("sick"), FlagField("smoker"))),
    RecordSchema(numeric=(NumericField("age", (20.0, 40.0, 60.0)), NumericField("BMI", (18.5, 25.0)))),
)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    """A backbone for two studies."""
    directory = tmp_path_factory.mktemp("made") / "backbone"
    few = PretrainingConfig(steps=3, batch=16, questions=4, moment_records=64)
    pretrain(SCHEMAS, directory, backbone=BackboneConfig(hidden=64, layers=3), config=few)
    return directory


@pytest.fixture(scope="module")
def rows():
    tokenizer = character_tokenizer(COMMANDS)
    texts = [f"{a}+{b}={a + b}" for a in range(20) for b in range(10)]
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id] for text in texts]
    return [(row, [place >= 3 for place in range(len(row))]) for row in ids]


@pytest.fixture(scope="module")
def writer(tmp_path_factory, rows):
    """A backbone that writes, with structure tables and an origin."""
    directory = tmp_path_factory.mktemp("made") / "writer"
    pretrain_text(
        rows, character_tokenizer(COMMANDS), directory, structure="formulas",
        backbone=BackboneConfig(hidden=64, max_tokens=64),
        config=TextPretrainingConfig(tokens=60_000, batch_tokens=300),
    )  # fmt: skip
    origin = dict.fromkeys(("name", "publisher", "licence", "url", "source", "source_sha256"), "x")
    checkpoints.write_json(directory / "origin.json", origin | {"changes": "none"})
    return directory


def test_a_backbone_of_records_is_made_smaller(backbone, tmp_path):
    found = compress(backbone, tmp_path / "small", times=3.0, config=FEW)
    whole, small = loading.load(backbone), loading.load(tmp_path / "small", expected_hash=found.hash)
    assert (found.of, found.measure, found.before) == (whole.hash, "variance lost", 0.0)
    assert found.parameters == checkpoints.size(tmp_path / "small").parameters
    assert found.parameters_before == checkpoints.size(backbone).parameters
    assert 3.0 <= found.times < 4.5
    assert Sizes.of(small.family, small.model.config) == found.sizes
    assert (small.schema, small.parts) == (whole.schema, whole.parts)
    assert small.family is whole.family
    assert small.head().center.numel() == 2 * found.sizes.hidden
    kept, of = read_kept(tmp_path / "small")
    assert of == whole.hash
    assert len(kept.channels) == found.sizes.hidden
    assert {layer: len(each) for layer, each in kept.experts.items()} == dict.fromkeys((1, 2), found.sizes.experts)


def test_equal_settings_make_equal_backbones(backbone, tmp_path):
    torch.manual_seed(1)
    first = compress(backbone, tmp_path / "a", times=3.0, config=FEW)
    torch.manual_seed(2)
    second = compress(backbone, tmp_path / "b", times=3.0, config=FEW)
    other = compress(backbone, tmp_path / "c", times=3.0, config=DistillingConfig(steps=3, batch=16, seed=7))
    assert first == second
    assert other.hash != first.hash


def test_sizes_may_be_given(backbone, tmp_path):
    found = compress(backbone, tmp_path / "small", fixed={"layers": 2, "experts": 4, "hidden": None}, config=FEW)
    assert (found.sizes.layers, found.sizes.experts, found.sizes.hidden) == (2, 4, 64)
    kept, _ = read_kept(tmp_path / "small")
    assert len(kept.layers) == 2


@pytest.mark.parametrize("times", [None, 2.0])
def test_one_layer_alone_is_one_of_experts(backbone, tmp_path, times):
    found = compress(backbone, tmp_path / "small", times=times, fixed={"layers": 1}, config=FEW)
    small = loading.load(tmp_path / "small")
    assert (found.sizes.layers, small.model.config.first_k_dense_replace) == (1, 0)
    assert hasattr(small.model.model.layers[0].mlp, "experts")
    assert found.times >= (times or 1)


def test_a_backbone_that_writes_is_made_smaller_on_public_texts(writer, rows, tmp_path):
    told = []
    config = DistillingConfig(steps=150, batch_tokens=300)
    found = compress(
        writer, tmp_path / "small", times=2.0, rows=rows, config=config, progress=lambda *at: told.append(at)
    )
    assert found.measure == "loss"
    assert found.times >= 2.0  # structure tables and all
    assert found.parameters == checkpoints.size(tmp_path / "small").parameters
    assert found.before < found.after < 0.9 * found.cut
    assert told[-1] == (150, 150)
    small = loading.load_text(tmp_path / "small", expected_hash=found.hash)
    whole = loading.load_text(writer)
    assert small.tokenizer.get_vocab() == whole.tokenizer.get_vocab()
    assert small.model.model.structure_ids.reader.name == "formulas"
    assert small.model.model.structure.weight.shape[0] == found.sizes.hidden
    origin = json.loads((tmp_path / "small" / "origin.json").read_text())
    assert origin["changes"] == f"none; cut to {found.parameters:,} parameters and trained again on public texts"
    with safe_open(tmp_path / "small" / KEPT, framework="pt") as file:
        facts = json.loads(file.metadata()["made_of"])
    assert (facts["of"], facts["texts"], facts["steps"]) == (whole.hash, len(rows), 150)


def test_what_studies_have_put_into_the_weights_is_still_told(writer, rows, tmp_path):
    shutil.copytree(writer, tmp_path / "merged")
    for name in ("confide.json", "README.md", "LICENSE.md"):
        (tmp_path / "merged" / name).write_text('{"a": 1}')
    save_file({"weight": torch.ones(2)}, tmp_path / "merged" / "head.safetensors")
    compress(tmp_path / "merged", tmp_path / "small", times=2.0, rows=rows, config=FEW)
    assert (tmp_path / "small" / "confide.json").read_text() == '{"a": 1}'
    assert (tmp_path / "small" / "LICENSE.md").exists()
    assert not {"head.safetensors", "README.md"} & {path.name for path in (tmp_path / "small").iterdir()}


@pytest.mark.parametrize("name", ["origin.json", "confide.json"])
def test_a_broken_claim_is_told_before_anything_is_learned(backbone, tmp_path, name):
    shutil.copytree(backbone, tmp_path / "broken")
    (tmp_path / "broken" / name).write_text("[1]")
    told = []
    with pytest.raises(InvalidBackbone, match=name):
        compress(tmp_path / "broken", tmp_path / "x", times=2.0, progress=lambda *at: told.append(at))
    assert not told


def test_a_smaller_one_is_made_smaller_again(backbone, tmp_path):
    first = compress(backbone, tmp_path / "once", times=2.0, config=FEW)
    second = compress(tmp_path / "once", tmp_path / "twice", times=2.0, config=FEW)
    assert (second.of, second.parameters_before) == (first.hash, first.parameters)
    assert read_kept(tmp_path / "twice")[1] == first.hash


def test_what_does_not_fit_is_refused_before_anything_is_written(backbone, writer, rows, tmp_path):
    with pytest.raises(InvalidCompression, match="public texts have no part in it"):
        compress(backbone, tmp_path / "x", times=2.0, rows=rows)
    with pytest.raises(InvalidCompression, match="none are given"):
        compress(writer, tmp_path / "x", times=2.0)
    with pytest.raises(InvalidCompression, match="5 public texts have something to learn; need 8"):
        compress(writer, tmp_path / "x", times=2.0, rows=[*rows[:5], ([3, 4], [True, False])])
    with pytest.raises(InvalidCompression, match="has 90 tokens, and the model reads 64"):
        compress(writer, tmp_path / "x", times=2.0, rows=[*rows, ([3] * 90, [True] * 90)])
    with pytest.raises(InvalidCompression, match="experts is 99"):
        compress(backbone, tmp_path / "x", fixed={"experts": 99})
    with pytest.raises(InvalidCompression, match="layers is 4; it can be 1 to 3"):
        compress(backbone, tmp_path / "x", fixed={"layers": 4})
    with pytest.raises(InvalidCompression, match="there is no size 'width'; sizes are layers, hidden"):
        compress(backbone, tmp_path / "x", fixed={"width": 4})
    with pytest.raises(InvalidCompression, match="has token 5000, and the model reads"):
        compress(writer, tmp_path / "x", times=2.0, rows=[*rows, ([3, 5000], [True, True])])
    with pytest.raises(InvalidBackbone, match="cannot be listed"):
        compress(tmp_path / "nothing", tmp_path / "x", times=2.0)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "there").mkdir()
    with pytest.raises(FileExistsError):
        compress(backbone, tmp_path / "there", times=2.0)


@pytest.mark.parametrize(
    ("tensors", "facts", "said"),
    [
        ({"layers": [0], "channels": [0, 2]}, {"of": "ab" * 32}, None),
        ({"layers": [0], "channels": [2, 0]}, {"of": "ab" * 32}, "channels is no ascending list"),
        ({"layers": [0], "channels": [-1, 0]}, {"of": "ab" * 32}, "channels is no ascending list"),
        ({"layers": [0], "channels": [1, 1]}, {"of": "ab" * 32}, "channels is no ascending list"),
        ({"layers": [0], "channels": []}, {"of": "ab" * 32}, "channels is no ascending list"),
        ({"layers": [0]}, {"of": "ab" * 32}, "does not say what was kept"),
        ({"layers": [0], "channels": [0]}, {"of": "ab"}, "does not say what was kept"),
        ({"layers": [0], "channels": [0]}, ["of"], "does not say what was kept"),
        ({"layers": [0], "channels": [0], "../x": [0]}, {"of": "ab" * 32}, "is none of the parts"),
        ({"layers": [0], "channels": 3}, {"of": "ab" * 32}, "channels is no ascending list"),
        ({"layers": [0], "channels": [[0], [1]]}, {"of": "ab" * 32}, "channels is no ascending list"),
    ],
)
def test_a_file_of_what_was_kept_is_read_by_a_schema(tmp_path, tensors, facts, said):
    parts = {name: torch.tensor(each, dtype=torch.int32) for name, each in tensors.items()}
    save_file(parts, tmp_path / KEPT, {"made_of": json.dumps(facts)})
    if said is None:
        kept, of = read_kept(tmp_path)
        assert (kept.layers, kept.channels.tolist(), of) == ((0,), [0, 2], "ab" * 32)
    else:
        with pytest.raises(InvalidCompression, match=said):
            read_kept(tmp_path)


@pytest.mark.parametrize("dtype", [torch.uint16, torch.float8_e4m3fn, torch.complex64, torch.int64, torch.bool])
def test_numbers_of_another_kind_are_refused(tmp_path, dtype):
    parts = {"layers": torch.zeros(1, dtype=torch.int32), "channels": torch.tensor([0, 1]).to(dtype)}
    save_file(parts, tmp_path / KEPT, {"made_of": json.dumps({"of": "ab" * 32})})
    with pytest.raises(InvalidCompression, match="channels is no ascending list"):
        read_kept(tmp_path)


def test_a_folder_without_such_a_file_is_told_apart_from_a_broken_one(backbone, tmp_path):
    with pytest.raises(InvalidCompression, match="was not made smaller from another backbone"):
        read_kept(backbone)
    for content in (b"", b"\0" * 100, b"[1]\n"):
        (tmp_path / KEPT).write_bytes(content)
        with pytest.raises(InvalidCompression, match="cannot be read"):
            read_kept(tmp_path)
    save_file({"layers": torch.zeros(1, dtype=torch.int32)}, tmp_path / KEPT)
    with pytest.raises(InvalidCompression, match="cannot be read"):
        read_kept(tmp_path)
