import json
import re
from dataclasses import replace

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

from confide.coordinator.cli.main import app
from confide.coordinator.cli.model_tables import bars
from confide.coordinator.errors import Conflict, NotFound
from confide.coordinator.routing import kept
from confide.coordinator.routing import measuring as routing
from confide.coordinator.routing.measuring import Routing, keep, measure, reader_of_run
from confide.coordinator.routing.page import render_html
from confide.models.backbones.checkpoints import content_hash, load_model
from confide.models.backbones.loading import backbone_hash
from confide.models.evaluation.layer_routing import LayerRouting
from confide.models.evaluation.router_statistics import router_statistics

from ...client_node.conftest import TEXT as OF_TEXT
from ...models.tiny import save_text_backbone, tiny_deepseek
from ...pages import assert_can_be_read, assert_is_told_to_everybody, colours
from ...privacy.report.test_build import Page
from ..conftest import logged
from ..results.test_export import RUN, with_run

WORDS = [f"w{number}" for number in range(64)]
TEXT = " ".join(WORDS[number * number % 64] for number in range(600))


@pytest.fixture
def reader(tmp_path):
    """A checkpoint that reads text of 64 words."""
    directory = tmp_path / "reader"
    tiny_deepseek().save_pretrained(directory)
    words = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="w0"))
    words.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(directory)
    (directory / "LICENSE.md").write_text(TEXT)
    return directory


def invoke(*words, code=0):
    result = CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "200"})
    assert result.exit_code == code, result.output
    return result


def test_the_licence_is_read_in_rows_up_to_the_limit(reader):
    done = []
    found = measure(reader, None, tokens=500, progress=done.append)
    ids = torch.tensor([number * number % 64 for number in range(500)])
    rows = [(row[None], torch.ones(1, len(row), dtype=torch.bool)) for row in ids.split(256)]
    assert found.layers == router_statistics(load_model(reader), rows)
    assert (found.layers[0].tokens, done, found.hash) == (500, [256, 500], content_hash(reader))
    assert measure(reader, None, tokens=10_000).layers[0].tokens == 600


def test_another_text_is_read_if_named(reader, tmp_path):
    (tmp_path / "mine.txt").write_text("w1 w2 w3")
    found = measure(reader, tmp_path / "mine.txt", tokens=500)
    assert (found.layers[0].tokens, found.read) == (3, "mine.txt")


def test_a_backbone_of_records_reads_synthetic_ones_without_their_padding(backbone):
    found = measure(backbone, None, tokens=700)
    assert found == measure(backbone, None, tokens=700)
    assert 700 <= found.layers[0].tokens < 700 + 64 * 8  # a batch of records of a few words
    assert (found.hash, found.read) == (backbone_hash(backbone), "synthetic records of its schema")


def test_a_text_that_cannot_be_read_is_refused_without_a_word_of_it(reader, tmp_path, backbone, monkeypatch):
    (tmp_path / "latin.txt").write_bytes("Müller".encode("latin-1"))
    with pytest.raises(Conflict, match="not UTF-8") as refused:
        measure(reader, tmp_path / "latin.txt", tokens=5)
    assert "ller" not in str(refused.value)
    (tmp_path / "empty.txt").write_text(" \n")
    with pytest.raises(Conflict, match="empty"):
        measure(reader, tmp_path / "empty.txt", tokens=5)
    with pytest.raises(Conflict, match="reads records"):
        measure(backbone, tmp_path / "empty.txt", tokens=5)
    monkeypatch.setattr(routing, "MAX_TEXT_BYTES", 10)
    with pytest.raises(Conflict, match="larger than 10 bytes"):
        measure(reader, None, tokens=5)
    (reader / "LICENSE.md").unlink()
    with pytest.raises(NotFound, match="--text"):
        measure(reader, None, tokens=5)


def test_the_command_prints_a_table_json_or_a_page(reader, tmp_path):
    table = invoke("backbone", "routing", reader, "--tokens", 300).stdout
    assert "300 tokens of LICENSE.md of the backbone" in " ".join(table.split())
    printed = json.loads(invoke("backbone", "routing", reader, "--tokens", 300, "--json").stdout)
    (layer,) = printed["layers"]
    assert printed["hash"] == content_hash(reader)
    assert sum(layer["choices"]) == 2 * 300
    result = invoke("backbone", "routing", reader, "--tokens", 300, "--html", tmp_path / "page.html")
    assert result.stdout == ""
    assert f"{layer['entropy']:.3f}" in (tmp_path / "page.html").read_text()
    assert "NotFound" in invoke("backbone", "routing", reader, "--text", tmp_path / "x", code=1).stderr


def test_a_kept_map_compares_the_backbone_by_itself_with_the_adapter_in_place(federation, backbone):
    study = with_run(federation)
    told = []
    found = keep(federation.store, federation.home, RUN, tokens=500, progress=lambda *each: told.append(each))
    alone = measure(backbone, None, tokens=500)
    adapted = measure(backbone, None, tokens=500, model=reader_of_run(federation.store, federation.home, RUN)[1])
    assert [before for before, _ in found.layers] == list(alone.layers)
    assert [after for _, after in found.layers] == list(adapted.layers)
    assert alone.layers != adapted.layers  # else this test could not fail
    assert found.is_of(federation.store.last_round(RUN).state_hash, study.backbone_hash)
    assert found == kept.read(federation.home, RUN)
    assert [of for _, of in told] == [1000] * len(told)
    assert sorted(told) == told
    assert told[-1] == (1000, 1000)
    assert ("adapter.map", {"run": RUN, "round": 2}) in logged(federation.store)


def test_no_map_is_kept_where_nothing_is_trained(federation):
    with_run(federation, rounds=0)
    with pytest.raises(Conflict, match="no committed round yet"):
        keep(federation.store, federation.home, RUN)
    assert kept.read(federation.home, RUN) is None
    assert "adapter.map" not in [action for action, _ in logged(federation.store)]


@pytest.mark.parametrize("has_licence", [True, False])
def test_a_model_of_text_reads_the_licence_of_its_backbone_and_nothing_without_one(federation, tmp_path, has_licence):
    save_text_backbone(tmp_path / "text")
    if has_licence:
        (tmp_path / "text" / "LICENSE").write_text("Use it as you like. " * 9)
    with_run(replace(federation, backbone=tmp_path / "text"), *OF_TEXT)
    if has_licence:
        found = keep(federation.store, federation.home, RUN, tokens=100)
        assert (found.read, found.after[0].tokens) == ("LICENSE of the backbone", 100)
    else:
        with pytest.raises(NotFound, match="nothing public is here to read"):
            keep(federation.store, federation.home, RUN)
        assert kept.read(federation.home, RUN) is None


def page_of(*choices, directory="b"):
    layers = tuple(
        LayerRouting(layer, sum(row) // 2, row, tuple(count / sum(row) for count in row), 0.9)
        for layer, row in enumerate(choices, start=3)
    )
    return render_html(directory, Routing(directory, "ab" * 32, "a text", layers))


def test_the_page_is_whole_escaped_and_asks_nothing_of_the_network():
    text = page_of((4, 0, 8, 4), (4, 4, 4, 4), directory="<b>&x")
    page = Page()
    page.feed(text)
    assert page.open == []
    assert page.tags.count("svg") == page.tags.count("desc") == 2
    assert not {"script", "link", "img", "iframe", "object", "b"} & set(page.tags)
    assert not re.search(r"url\(|@import|https?://(?!www\.w3\.org/2000/svg)", text)
    assert "&lt;b&gt;&amp;x" in text


def test_the_page_can_be_read_at_night_and_is_told_to_who_does_not_see_it():
    text = page_of((4, 0, 8, 4), (4, 4, 4, 4))
    assert_is_told_to_everybody(text, "en")
    assert_can_be_read(text)
    found = colours(text)
    assert found["light"].keys() == found["dark"].keys() >= {f"shade-{shade}" for shade in range(7)}


def test_the_heat_map_has_a_cell_for_each_expert_and_crosses_out_the_unused():
    heat, loads = re.findall(r"<svg.*?</svg>", page_of((4, 0, 8, 4), (4, 4, 4, 4)), re.S)
    cells = {shade: path.count("M") for shade, path in re.findall(r'<path class="shade-(\d)" d="([^"]+)"', heat)}
    assert cells == {"0": 1, "3": 6, "5": 1}  # 0, 1 and 2 times an even share; the second layer's are all even
    assert heat.count('class="unused"') == 2
    assert "2.00 times an even share, in layer 3" in heat
    assert [loads.count(f'class="{kind}"') for kind in ("least", "most", "other")] == [1, 1, 0]
    assert "1.000 in layer 4" in loads


def test_bars_are_full_at_one_and_blank_at_nothing():
    assert bars([0.0, 0.01, 0.5, 1.0, 7.0]) == " ▁▄██"
    assert bars([0.0, 1.0] * 64) == "▄" * 64
