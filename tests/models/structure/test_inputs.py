import copy
import json
import pickle

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import save_file
from transformers import DeepseekV3ForCausalLM

from confide.models.adapters import AdapterConfig, ModelCard, attach, export
from confide.models.adapters.merging import save_merged
from confide.models.backbones import checkpoints, importing, loading
from confide.models.backbones.family import BackboneConfig
from confide.models.backbones.text_pretraining import build_text
from confide.models.errors import InvalidBackbone, UnsupportedModule
from confide.models.heads import completion_losses, foretell, pooled
from confide.models.records.vocabularies import COMMANDS, character_tokenizer
from confide.models.structure import inputs
from confide.models.structure.readers import READERS, STRUCTURE
from confide.privacy.mechanism.clipping import PerUnitClipper
from confide.privacy.mechanism.independence import refuse_dependence

TEXT = "D=(-3)^{2}-4\\cdot2=1;d=1;"
READER = READERS["formulas"]
READER_SIZE = sum(READER.sizes.values())


@pytest.fixture(scope="module")
def tokenizer():
    return character_tokenizer(COMMANDS)


@pytest.fixture
def model(tokenizer):
    return joined(tokenizer)


def joined(tokenizer):
    built = build_text(tokenizer, "formulas", BackboneConfig(hidden=32, experts=4, max_tokens=128)).eval()
    with torch.no_grad():
        built.model.structure.weight.normal_(std=0.5, generator=torch.Generator().manual_seed(1))
    return built


def ids_of(tokenizer, *texts):
    rows = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    return torch.tensor([row + [0] * (max(map(len, rows)) - len(row)) for row in rows])


def by_hand(model, tokenizer, row):
    """The embedding of a row, one table and one token at a time."""
    weight, sizes = model.model.structure.weight, list(READER.sizes.values())
    prefix, states = READER.begin(), []
    for token in row.tolist():
        state = model.model.embed_tokens.weight[token].clone()
        word = tokenizer.decode([token], skip_special_tokens=True)
        if word:
            for table, place in enumerate(prefix.feed(word)):
                state = state + weight[:, sum(sizes[:table]) + place]
        states.append(state)
    return torch.stack(states)


def test_every_token_gets_its_word_and_a_row_of_each_table(model, tokenizer):
    ids = ids_of(tokenizer, TEXT, "x^2")
    want = torch.stack([by_hand(model, tokenizer, row) for row in ids])
    torch.testing.assert_close(inputs.embedded(model, ids), want)
    assert torch.equal(inputs.embedded(model, ids)[1, 3:], model.model.embed_tokens(ids)[1, 3:])  # padding


def test_ids_of_every_prefix_are_the_first_ids_of_the_text(model, tokenizer):
    ids = ids_of(tokenizer, TEXT)
    ones = model.model.structure_ids.of(ids)
    for end in range(1, ids.shape[1]):
        assert torch.equal(model.model.structure_ids.of(ids[:, :end]), ones[:, :end])


def test_a_forward_pass_from_ids_is_that_of_the_sums(model, tokenizer):
    ids = ids_of(tokenizer, TEXT, "x^2+1")
    want = model.model(inputs_embeds=inputs.embedded(model, ids), use_cache=False).last_hidden_state
    assert torch.equal(model.model(input_ids=ids, use_cache=False).last_hidden_state, want)
    assert torch.equal(model.model(ids, use_cache=False).last_hidden_state, want)
    assert torch.equal(model(input_ids=ids, use_cache=False).logits, model.lm_head(want))
    del model.model.structure
    assert not torch.allclose(model.model(input_ids=ids, use_cache=False).last_hidden_state, want)


def test_losses_and_pooled_states_read_the_structure(model, tokenizer):
    ids = ids_of(tokenizer, TEXT)
    learned = torch.ones_like(ids, dtype=torch.bool)
    before = foretell(model, ids, learned).by_record(), pooled(model, ids)
    with torch.no_grad():
        model.model.structure.weight.mul_(2)
    assert not torch.allclose(foretell(model, ids, learned).by_record(), before[0])
    assert not torch.allclose(pooled(model, ids), before[1])


def test_a_text_that_is_being_written_is_embedded_as_the_whole_one(model, tokenizer):
    ids = ids_of(tokenizer, TEXT, TEXT[::-1].replace("todc\\", "\\cdot"))
    prefixes = inputs.Prefixes()
    parts = [inputs.embedded(model, part, prefixes) for part in (ids[:, :9], ids[:, 9:10], ids[:, 10:])]
    torch.testing.assert_close(torch.cat(parts, dim=1), inputs.embedded(model, ids))


def test_half_a_text_behind_a_cache_is_refused(model, tokenizer):
    ids = ids_of(tokenizer, TEXT)
    cache = model.model(input_ids=ids[:, :5], use_cache=True).cache
    with pytest.raises(InvalidBackbone, match="half a text"):
        model.model(input_ids=ids[:, 5:6], cache=cache, use_cache=True)


def test_a_copy_of_a_model_reads_by_its_own_tables(model, tokenizer):
    ids, other = ids_of(tokenizer, TEXT), copy.deepcopy(model)
    before = model.model(input_ids=ids, use_cache=False).last_hidden_state
    with torch.no_grad():
        other.model.structure.weight.zero_()
    assert torch.equal(model.model(input_ids=ids, use_cache=False).last_hidden_state, before)
    assert not torch.allclose(other.model(input_ids=ids, use_cache=False).last_hidden_state, before)


def test_a_model_is_joined_once(model, tokenizer):
    with pytest.raises(InvalidBackbone, match="already"):
        inputs.join(model, READER, inputs.words_of(tokenizer))


@pytest.mark.parametrize("freeze_a", [True, False])
def test_clipping_by_unit_through_the_tables_is_that_of_a_loop(tokenizer, freeze_a):
    """Six rows of four units; every unit's gradient by itself, clipped, and summed."""
    model = joined(tokenizer).double()
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child).__name__ == "DeepseekV3RMSNorm":
                norm = torch.nn.RMSNorm(child.weight.numel(), eps=child.variance_epsilon, dtype=torch.float64)
                setattr(module, name, norm)
    model.config._experts_implementation = "eager"
    config = AdapterConfig(rank=2, alpha=2.0, freeze_a=freeze_a, targets=("structure", "o_proj", "experts"), seed="s")
    adapted = attach(model, config)
    assert "model.structure.lora_B" in adapted.trained
    with torch.no_grad():
        for parameter in adapted.trained.values():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
    texts = ("1+2=3;#3", "x^{2}", "\\frac{1}{2}x", "y(0)=-12", "D=4;d=2", "(3+4)\\cdot5=35")
    ids, units = ids_of(tokenizer, *texts), np.array([4, 2, 4, 7, 7, 9])
    learned = torch.arange(ids.shape[1]) >= 2
    learned = learned & (ids > 0)
    order = np.argsort(units, kind="stable")
    ids, learned, units = ids[order], learned[order], units[order]

    def loss_of(rows):
        losses = completion_losses(adapted.model, ids[rows], learned[rows])
        own = torch.from_numpy(units[rows])
        return sum(losses[own == unit].mean() for unit in own.unique())

    by_unit, norms = [], []
    for unit in np.unique(units):
        adapted.zero_grad()
        loss_of(np.flatnonzero(units == unit)).backward()
        by_unit.append({name: parameter.grad.clone() for name, parameter in adapted.trained.items()})
        norms.append(sum(float(grad.square().sum()) for grad in by_unit[-1].values()) ** 0.5)
    adapted.zero_grad()
    clip_norm = float(np.median(norms))  # bites for half of the units
    clipper = PerUnitClipper(adapted)
    with clipper.microbatch(units, ids.shape[1]), adapted.rows.told(ids):
        loss_of(np.arange(len(units))).backward()
    got, _ = clipper.clipped_sum(clip_norm)
    for name in adapted.trained:
        want = sum(grads[name] * min(1.0, clip_norm / norm) for grads, norm in zip(by_unit, norms, strict=True))
        assert float((got[name] - want).abs().max()) < 1e-6 * float(want.abs().max()), name


@pytest.mark.slow
def test_units_stay_apart_in_a_joined_model(model, tokenizer):
    adapted = attach(model, AdapterConfig(rank=2, alpha=2.0, targets=("structure", "o_proj"), seed="s"))
    refuse_dependence(adapted, words=len(tokenizer), lengths=(7,))


def test_tables_are_saved_beside_the_weights_and_found_again(model, tokenizer, tmp_path):
    save(model, tokenizer, tmp_path)
    found = loading.load_text(tmp_path)
    ids = ids_of(tokenizer, TEXT)
    want = model.model(input_ids=ids, use_cache=False).last_hidden_state
    assert torch.equal(found.model.model(input_ids=ids, use_cache=False).last_hidden_state, want)
    assert not found.model.model.structure.weight.requires_grad
    assert loading.describe(tmp_path).targets[-1] == "structure"
    weights = json.loads((tmp_path / checkpoints.INDEX).read_text())["weight_map"]
    assert not [name for name in weights if "structure" in name]
    other = tmp_path / "other"
    with torch.no_grad():
        model.model.structure.weight[0, 0] += 1
    save(model, tokenizer, other)
    assert loading.describe(other).hash != found.hash


@pytest.mark.parametrize(
    ("tensors", "reader", "said"),
    [
        ({"weight": torch.zeros(32, 99)}, "music", "reader that is known"),
        ({"weight": torch.zeros(32, 99)}, "formulas", "ok"),
        ({"weight": torch.zeros(32, 98)}, "formulas", "need"),
        ({"weight": torch.full((32, 99), torch.nan)}, "formulas", "not finite"),
        ({"weight": torch.zeros(32, 99, dtype=torch.float16)}, "formulas", "no float32"),
        ({"weight": torch.zeros(32, 99), "more": torch.zeros(1)}, "formulas", "reader that is known"),
    ],
)
def test_tables_that_do_not_fit_are_refused(model, tokenizer, tmp_path, tensors, reader, said):
    assert sum(READER.sizes.values()) == 99
    save(model, tokenizer, tmp_path)
    save_file(tensors, tmp_path / STRUCTURE, metadata={"reader": reader})
    if said == "ok":
        loading.load_text(tmp_path)
        return
    with pytest.raises(InvalidBackbone, match=said):
        loading.load_text(tmp_path)


def test_a_file_that_is_none_is_refused(model, tokenizer, tmp_path):
    save(model, tokenizer, tmp_path)
    (tmp_path / STRUCTURE).write_bytes(b"no safetensors")
    with pytest.raises(InvalidBackbone, match="deserializing header"):
        loading.load_text(tmp_path)
    with pytest.raises(InvalidBackbone, match="cannot be read"):
        inputs.load(tmp_path, model, tokenizer)


def save(model, tokenizer, directory):
    directory.mkdir(exist_ok=True)
    checkpoints.save_model(model, directory)
    tokenizer.save_pretrained(directory, save_jinja_files=False)
    inputs.save(model, directory)


CARD = ModelCard(
    study="s", study_hash="ab" * 32, backbone_hash="cd" * 32, sites=("north",), rounds=1, unit="patient",
    mode="none", epsilon=None, delta=None, collusion=1, audit="none",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
def test_peft_loads_an_adapter_on_a_backbone_that_confide_loads(model, tokenizer, tmp_path):
    """And on no other: the card says so, and a plain load computes something else."""
    save(model, tokenizer, tmp_path / "backbone")
    adapted = attach(loading.load_text(tmp_path / "backbone").model, AdapterConfig(
        rank=2, alpha=2.0, targets=("structure", "o_proj"), seed="s"))  # fmt: skip
    with torch.no_grad():
        for parameter in adapted.trained.values():
            parameter.normal_(generator=torch.Generator().manual_seed(3))
    ids = ids_of(tokenizer, TEXT)
    want = adapted(ids)
    export(adapted, tmp_path / "backbone", tmp_path / "adapter", CARD)
    assert "structure.safetensors" in (tmp_path / "adapter" / "README.md").read_text()
    found = PeftModel.from_pretrained(loading.load_text(tmp_path / "backbone").model, tmp_path / "adapter")
    torch.testing.assert_close(found(input_ids=ids, use_cache=False).logits, want)
    plain = DeepseekV3ForCausalLM.from_pretrained(tmp_path / "backbone")
    assert not torch.allclose(plain(input_ids=ids, use_cache=False).logits, want, atol=0.1)


def test_a_joined_model_is_not_merged(model, tokenizer, tmp_path):
    save(model, tokenizer, tmp_path / "backbone")
    adapted = attach(model, AdapterConfig(rank=2, alpha=2.0, targets=("o_proj",), seed="s"))
    with pytest.raises(UnsupportedModule, match="structure tables"):
        save_merged(adapted, tmp_path / "backbone", tmp_path / "merged", CARD)
    assert not (tmp_path / "merged").exists()


def test_an_import_of_a_joined_folder_is_refused(model, tokenizer, tmp_path):
    save(model, tokenizer, tmp_path / "backbone")
    with pytest.raises(InvalidBackbone, match="it is a backbone as it stands"):
        importing.import_checkpoint(tmp_path / "backbone", tmp_path / "imported")
    assert not (tmp_path / "imported").exists()


def test_the_tables_count_in_the_size(model, tokenizer, tmp_path):
    save(model, tokenizer, tmp_path)
    assert checkpoints.size(tmp_path).parameters == sum(parameter.numel() for parameter in model.parameters())


def test_texts_that_were_read_do_not_travel_with_a_copy(model, tokenizer):
    ids = model.model.structure_ids
    ids.of(ids_of(tokenizer, TEXT))
    other = pickle.loads(pickle.dumps(ids))
    assert len(ids._kept) == 1
    assert len(other._kept) == 0
    assert len(copy.deepcopy(model).model.structure_ids._kept) == 0
    assert torch.equal(other.of(ids_of(tokenizer, TEXT)), ids.of(ids_of(tokenizer, TEXT)))


def test_a_text_is_kept_once_however_it_is_padded_and_no_rows_are_none(model, tokenizer):
    ids = model.model.structure_ids
    ids.of(ids_of(tokenizer, TEXT))
    ids.of(ids_of(tokenizer, TEXT, TEXT + TEXT))
    assert len(ids._kept) == 2
    assert ids.of(torch.zeros(0, 5, dtype=torch.int64)).shape == (0, 5, 8)


def test_texts_are_kept_up_to_a_number_of_tokens(model, tokenizer, monkeypatch):
    monkeypatch.setattr(inputs, "_KEPT", 20)
    ids = model.model.structure_ids
    want = [ids.of(ids_of(tokenizer, text)) for text in ("1+2=3", "4+5=9;#9", "6+7=13;#13")]
    assert ids._tokens_kept == sum(map(len, ids._kept.values())) <= 20
    assert all(
        torch.equal(ids.of(ids_of(tokenizer, text)), each)
        for text, each in zip(("1+2=3", "4+5=9;#9"), want, strict=False)
    )


def test_a_token_beyond_the_words_has_no_structure(tokenizer):
    ids = inputs.StructureIds(READER, ("", "1", "+"))
    places = ids.of(torch.tensor([[1, 2, 1, 7]]))
    assert (places == ids.total).all(-1).tolist() == [[False, False, False, True]]


def test_columns_are_read_as_a_layer_of_zeros_and_ones_would_sum_them(model, tokenizer):
    """Also the gradient of the tables, in float64."""
    model.double()
    ids = ids_of(tokenizer, TEXT, "x^2")
    places, layer = model.model.structure_ids.of(ids), model.model.structure
    ones = torch.zeros(*ids.shape, READER_SIZE + 1, dtype=torch.float64).scatter_(2, places, 1.0)[..., :READER_SIZE]
    weights = torch.randn(*ids.shape, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    want, got = layer(ones), inputs.embedded(model, ids) - model.model.embed_tokens(ids)
    torch.testing.assert_close(got, want)
    (slope,) = torch.autograd.grad((want * weights).sum(), layer.weight)
    (own,) = torch.autograd.grad((got * weights).sum(), layer.weight)
    torch.testing.assert_close(own, slope)


def test_positional_arguments_are_read_as_the_decoder_reads_them(model, tokenizer):
    ids = ids_of(tokenizer, TEXT)
    mask = torch.ones_like(ids)
    want = model.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    assert torch.equal(model.model(ids, mask, use_cache=False).last_hidden_state, want)
