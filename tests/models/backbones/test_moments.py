import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from confide.models.backbones import checkpoints
from confide.models.backbones.loading import describe, load_text
from confide.models.backbones.moments import POOLING, RIDGE, default_reads, read_texts, take_moments
from confide.models.errors import BackboneMismatch, InvalidBackbone, InvalidPrompt
from confide.models.heads.objectives import OneClass

from ..tiny import byte_tokenizer, save_text_backbone

TEXTS = [f"text {number}: {'abcdefgh'[number % 8] * (1 + number % 11)} of many" for number in range(70)]
CLASSES = OneClass(("a", "b"))


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("moments") / "imported"
    save_text_backbone(folder)
    return folder


@pytest.fixture(scope="module")
def taken(imported):
    folder = imported.with_name("with-moments")
    return folder, take_moments(imported, TEXTS, folder)


def by_hand(imported, read, texts, around=("", "")):
    """Mean and whitening of one state by torch's own functions, one text at a time."""
    model, core = checkpoints.load_model(imported), byte_tokenizer().backend_tokenizer
    core.encode_special_tokens = True
    pooled = []
    for text in texts:
        ids = torch.tensor([core.encode(around[0] + text + around[1], add_special_tokens=False).ids])
        with torch.no_grad():
            pooled.append(model.model(input_ids=ids, output_hidden_states=True).hidden_states[read][0].double().mean(0))
    states = torch.stack(pooled)
    std = states.std(0)
    values, vectors = torch.linalg.eigh(torch.corrcoef(states.T))
    root = vectors @ torch.diag((values + RIDGE) ** -0.5) @ vectors.T
    return states.mean(0), torch.diag(1 / std) @ root


def test_moments_are_those_of_states_read_one_by_one(imported, taken):
    moments = load_text(taken[0]).moments
    assert moments.reads == taken[1].reads == (0, 1, 2)
    for read in moments.reads:
        center, whiten = by_hand(imported, read, TEXTS)
        torch.testing.assert_close(moments.center[read].double(), center, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(moments.whiten[read].double(), whiten, rtol=2e-3, atol=1e-3)


def test_a_template_stands_around_every_text(imported, tmp_path):
    folder = tmp_path / "backbone"
    take_moments(imported, TEXTS[:5], folder, template="Of: {note}.", reads=[2])
    center, _ = by_hand(imported, 2, TEXTS[:5], around=("Of: ", "."))
    torch.testing.assert_close(load_text(folder).moments.center[2].double(), center, rtol=1e-4, atol=1e-5)


def test_a_description_names_the_states(imported, taken):
    assert describe(taken[0]).moments == (0, 1, 2)
    assert describe(imported).moments == ()


def test_the_folder_is_a_backbone_of_its_own_with_the_same_files(imported, taken):
    folder, found = taken
    assert found.hash == checkpoints.content_hash(folder) != checkpoints.content_hash(imported)
    assert {path.name for path in folder.iterdir()} - {path.name for path in imported.iterdir()} == {POOLING}
    assert found.is_linked
    assert (folder / "config.json").samefile(imported / "config.json")
    assert describe(folder).size == describe(imported).size


def test_moments_are_the_same_bits_for_the_same_texts(imported, taken, tmp_path):
    again = take_moments(imported, TEXTS, tmp_path / "again")
    assert again.hash == taken[1].hash


def test_a_head_reads_the_states_that_it_is_told(taken):
    backbone = load_text(taken[0])
    assert backbone.head(CLASSES).reads == (0, 1, 2)
    head = backbone.head(CLASSES, (2, 0))
    assert (head.reads, tuple(head.weight.shape)) == ((2, 0), (2, 65))
    assert torch.equal(head.center[0], backbone.moments.center[2])
    with pytest.raises(BackboneMismatch, match="no moments of state 9"):
        backbone.head(CLASSES, (0, 9))


def test_a_folder_that_has_moments_already_is_refused(taken, tmp_path):
    with pytest.raises(InvalidBackbone, match="has moments already"):
        take_moments(taken[0], TEXTS, tmp_path / "again")


@pytest.mark.parametrize(
    ("texts", "terms", "error", "said"),
    [
        (["one"], {}, InvalidBackbone, "1 public texts"),
        (["", ""], {}, InvalidBackbone, "fewer than two of the texts have a word"),
        (TEXTS, {"template": "no place"}, InvalidPrompt, "one name in braces"),
        (TEXTS, {"template": "{a} {b}"}, InvalidPrompt, "one name in braces"),
        (TEXTS, {"reads": [3]}, InvalidBackbone, "numbered from 0 to 2; got 3"),
        (TEXTS, {"reads": []}, InvalidBackbone, "got none"),
    ],
)
def test_what_gives_no_moments_is_refused_and_nothing_is_written(imported, tmp_path, texts, terms, error, said):
    with pytest.raises(error, match=said):
        take_moments(imported, texts, tmp_path / "backbone", **terms)
    assert list(tmp_path.iterdir()) == []


def spoiled(tensors, name):
    if name == "another name":
        tensors["centre.0"] = tensors.pop("center.0")
    elif name == "no whitening":
        del tensors["whiten.1"]
    elif name == "another width":
        tensors["center.0"] = tensors["center.0"][1:].clone()
    elif name == "no number":
        tensors["whiten.0"][0, 0] = float("nan")
    elif name == "a layer too many":
        tensors["center.3"], tensors["whiten.3"] = tensors["center.0"].clone(), tensors["whiten.0"].clone()
    elif name == "nothing":
        tensors.clear()


@pytest.mark.parametrize(
    "damage", ["another name", "no whitening", "another width", "no number", "a layer too many", "nothing", "no file"]
)
def test_broken_moments_are_refused(taken, tmp_path, damage):
    for path in taken[0].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    if damage == "no file":
        (tmp_path / POOLING).write_bytes(b"{}")
    else:
        tensors = load_file(tmp_path / POOLING)
        spoiled(tensors, damage)
        save_file(tensors, tmp_path / POOLING)
    with pytest.raises(InvalidBackbone):
        load_text(tmp_path)


def test_texts_are_the_lines_of_a_file(tmp_path):
    (tmp_path / "texts").write_text("one\n\n  \nzwei ü\n", encoding="utf-8")
    assert read_texts(tmp_path / "texts") == ["one", "zwei ü"]
    (tmp_path / "texts").write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidBackbone, match="UTF-8"):
        read_texts(tmp_path / "texts")
    with pytest.raises(InvalidBackbone, match="cannot be read"):
        read_texts(tmp_path / "absent")


def test_states_that_are_taken_by_default_are_spread_over_the_layers():
    assert default_reads(30) == (0, 15, 24, 30)
    assert default_reads(1) == (0, 1)


def test_the_file_tells_what_it_was_made_of(taken):
    with safe_open(taken[0] / POOLING, framework="pt") as file:
        facts = json.loads(file.metadata()["made_of"])
    assert facts["texts"] == len(TEXTS)
    assert facts["template"] == "{text}"
