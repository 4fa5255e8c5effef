import json
import shutil
from dataclasses import replace

import numpy as np
import peft
import pytest
import torch

from confide.models.adapters.attaching import attached, places
from confide.models.adapters.carrying import carry, cut_adapter
from confide.models.adapters.combining import combine
from confide.models.adapters.composing import compose
from confide.models.adapters.lora import AdapterConfig, attach
from confide.models.adapters.merging import merged, save_merged
from confide.models.adapters.peft_export import export
from confide.models.adapters.peft_import import read
from confide.models.adapters.prototype import Prototype
from confide.models.adapters.provenance import read_provenance
from confide.models.backbones.family import BackboneConfig
from confide.models.backbones.loading import load, load_text
from confide.models.backbones.pretraining import PretrainingConfig, pretrain
from confide.models.backbones.public_tokens import of_records
from confide.models.backbones.text_pretraining import TextPretrainingConfig, pretrain_text
from confide.models.compression.compressing import KEPT, compress, read_kept
from confide.models.compression.cutting import Sizes, cut
from confide.models.compression.distilling import DistillingConfig
from confide.models.errors import BackboneMismatch, InvalidCompression
from confide.models.heads import PooledHead
from confide.models.heads.objectives import OneClass
from confide.models.records import RecordSchema
from confide.models.records.fields import FlagField, NumericField
from confide.models.records.vocabularies import COMMANDS, character_tokenizer
from confide.models.rounding import rounded_up

from .test_merging import EVERYTHING
from .test_peft_export import CARD

pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning"),
]
FEW = DistillingConfig(steps=3, batch=16, batch_tokens=200)
SCHEMA = RecordSchema(
    numeric=(NumericField("age", (20.0, 40.0, 60.0)), NumericField("TSH", (0.4, 4.0))), flags=(FlagField("sick"),)
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    directory = tmp_path_factory.mktemp("made") / "whole"
    few = PretrainingConfig(steps=20, batch=16, questions=8, moment_records=256)
    pretrain(SCHEMA, directory, backbone=BackboneConfig(hidden=64, layers=3), config=few)
    return directory


@pytest.fixture(scope="module")
def smaller(whole, tmp_path_factory):
    directory = tmp_path_factory.mktemp("made") / "smaller"
    compress(whole, directory, fixed={"layers": 2, "hidden": 40, "experts": 4, "neurons": 48}, config=FEW)
    return directory


def adapted_on(directory, *, targets=EVERYTHING, objective=None, seed=1, load=load, head=True, layers=None):
    backbone = load(directory)
    config = AdapterConfig(rank=3, alpha=5.0, targets=targets, seed="public", layers=layers)
    own = backbone.head(objective) if head else None
    adapted = attach(backbone.model, config, own)
    adapted.load_state(0.1 * np.random.default_rng(seed).normal(size=adapted.layout.dim))
    return adapted, replace(CARD, backbone_hash=backbone.hash)


@pytest.fixture(scope="module")
def exported(whole, tmp_path_factory):
    directory = tmp_path_factory.mktemp("made") / "adapter"
    adapted, card = adapted_on(whole)
    export(adapted, whole, directory, card, Prototype(torch.ones(16), 1.0))
    return directory


def test_a_cut_adapter_changes_cut_weights_as_it_changed_the_whole(whole, smaller, exported):
    """(W + s B A) cut is W cut + s (B cut) (A cut), for every kind of module."""
    kept, _ = read_kept(smaller)
    adapted, _ = adapted_on(whole)
    backbone = load(whole)
    sizes = Sizes.of(load(smaller).family, load(smaller).model.config)
    nothing = dict.fromkeys(())
    with merged(adapted) as model:
        want = cut(backbone.family, model, kept, sizes, nothing).state_dict()
    plain = cut(backbone.family, backbone.model, kept, sizes, nothing)
    given = cut_adapter(read(exported), kept)
    assert (given.head, given.prototype) == (None, None)
    on_cut = attached(plain, given, None)
    assert places(given).keys() == on_cut.adapters.keys()
    kinds = {name.rpartition(".")[2] for name in on_cut.adapters}
    assert {"experts", "gate", "embed_tokens", "down_proj"} <= kinds
    with merged(on_cut) as model:
        found = model.state_dict()
    before = cut(backbone.family, load(whole).model, kept, sizes, nothing).state_dict()
    moved = {name.removesuffix(".weight").rpartition(".")[2] for name in want if not want[name].equal(before[name])}
    assert moved >= {"gate_up_proj", "down_proj", "gate", "embed_tokens", "q_a_proj", "o_proj"}
    for name, weight in want.items():
        torch.testing.assert_close(found[name], weight, rtol=1e-5, atol=1e-6)


def outputs(backbone, adapter):
    """What the adapter gives for some hundred records."""
    composed = compose(backbone, [adapter])
    return torch.cat([composed.classify(ids, composed.fixed(len(ids), [1.0])) for ids, _ in of_records(SCHEMA, 1000)])


def test_an_adapter_learns_on_the_smaller_backbone_what_it_did_on_the_whole(whole, smaller, exported, tmp_path):
    found = carry(exported, whole, smaller, tmp_path / "few", config=FEW)
    carry(exported, whole, smaller, tmp_path / "many", config=DistillingConfig(steps=120, lr=1e-2))
    want = outputs(whole, exported)
    apart = [float((outputs(smaller, tmp_path / name) - want).square().mean()) for name in ("few", "many")]
    assert apart[1] < 0.8 * apart[0]
    assert apart[1] < 0.1 * float(want.var())
    assert found.has_lost_prototype
    assert found.numbers < found.numbers_before


def test_the_card_and_its_facts_say_what_was_done(whole, smaller, exported, tmp_path):
    found = carry(exported, whole, smaller, tmp_path / "carried", config=FEW)
    facts = read_provenance(tmp_path / "carried")
    assert facts == found.provenance
    assert facts.sources == read_provenance(exported).sources  # epsilon as it was
    assert facts.backbone_hash == load(smaller).hash
    assert [(move.of, move.learned) for move in facts.carried] == [
        (load(whole).hash, "synthetic records of the backbone's schema")
    ]
    card = (tmp_path / "carried" / "README.md").read_text()
    assert f"epsilon {rounded_up(CARD.epsilon, 3)}" in card
    assert f"carried over from the whole one `{load(whole).hash[:12]}`" in card
    assert "How good it is there was not measured." in card
    assert "carried" not in json.loads((exported / "confide.json").read_text())  # as files were before
    assert sorted(path.name for path in (tmp_path / "carried").iterdir()) == [
        "README.md", "adapter_config.json", "adapter_model.safetensors", "confide.json", "head.safetensors"
    ]  # fmt: skip


def test_carried_adapters_combine_and_are_carried_again(whole, smaller, exported, tmp_path):
    carry(exported, whole, smaller, tmp_path / "a", config=FEW)
    carry(exported, whole, smaller, tmp_path / "b", config=DistillingConfig(steps=2, batch=16, seed=5))
    combine([tmp_path / "a", tmp_path / "b"], tmp_path / "both")
    assert len(read_provenance(tmp_path / "both").carried) == 1
    compress(smaller, tmp_path / "least", times=1.5, config=FEW)
    carry(tmp_path / "a", smaller, tmp_path / "least", tmp_path / "again", config=FEW)
    assert [move.of for move in read_provenance(tmp_path / "again").carried] == [load(whole).hash, load(smaller).hash]


def test_studies_in_the_weights_of_either_backbone_are_told(whole, smaller, exported, tmp_path):
    adapted, card = adapted_on(smaller, targets=("o_proj",))
    save_merged(adapted, smaller, tmp_path / "merged", replace(card, study="secret"))
    assert not (tmp_path / "merged" / KEPT).exists()
    with pytest.raises(InvalidCompression, match="was not made smaller"):
        carry(exported, whole, tmp_path / "merged", tmp_path / "x", config=FEW)
    shutil.copy(smaller / KEPT, tmp_path / "merged" / KEPT)  # as a folder from elsewhere may have it
    carry(exported, whole, tmp_path / "merged", tmp_path / "carried", config=FEW)
    assert [each.study for each in read_provenance(tmp_path / "carried").backbone_sources] == ["secret"]
    assert "* secret `" in (tmp_path / "carried" / "README.md").read_text()


def test_a_carried_adapter_names_each_module_that_it_changes(whole, smaller, exported, tmp_path):
    one, card = adapted_on(whole, targets=("embed_tokens",))
    other = adapted_on(whole, targets=("o_proj", "experts"), layers=(2,))[0]
    for name, adapted in (("one", one), ("other", other)):
        export(adapted, whole, tmp_path / name, card)
    combine([tmp_path / "one", tmp_path / "other"], tmp_path / "both")
    kept, _ = read_kept(smaller)
    place = kept.layers.index(2) if 2 in kept.layers else None
    carry(tmp_path / "both", whole, smaller, tmp_path / "carried", config=FEW)
    given = read(tmp_path / "carried")
    modules, parameters = {"model.embed_tokens"}, set()
    if place is not None:
        modules |= {f"model.layers.{place}.self_attn.o_proj"}
        parameters = {f"model.layers.{place}.mlp.experts.{name}_proj" for name in ("gate_up", "down")}
    assert (given.target_modules, given.target_parameters) == (modules, parameters)


def test_peft_reads_a_carried_adapter_as_we_do(whole, smaller, exported, tmp_path):
    carry(exported, whole, smaller, tmp_path / "carried", config=FEW)
    ids = next(of_records(SCHEMA, 100))[0]
    with torch.no_grad():
        ours = attached(load(smaller).model, read(tmp_path / "carried"), None).model(ids).logits
        theirs = peft.PeftModel.from_pretrained(load(smaller).model, tmp_path / "carried")(ids).logits
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-5)


def test_training_that_diverges_writes_nothing(whole, smaller, exported, tmp_path):
    wild = DistillingConfig(steps=30, batch=16, lr=1e20)
    with pytest.raises(InvalidCompression, match="the training has diverged"):
        carry(exported, whole, smaller, tmp_path / "x", config=wild)
    with pytest.raises(InvalidCompression, match="the training has diverged"):
        compress(whole, tmp_path / "y", times=2.0, config=wild)
    assert list(tmp_path.iterdir()) == []


def test_equal_settings_make_equal_files(whole, smaller, exported, tmp_path):
    for name, seed in (("a", 1), ("b", 2)):
        torch.manual_seed(seed)
        carry(exported, whole, smaller, tmp_path / name, config=FEW)
    for path in sorted((tmp_path / "a").iterdir()):
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


@pytest.mark.parametrize("targets", [("q_a_proj", "o_proj"), ()])
def test_a_head_of_several_outputs_and_a_head_alone_are_carried(whole, smaller, targets, tmp_path):
    adapted, card = adapted_on(whole, targets=targets, objective=OneClass(("low", "mid", "high")))
    export(adapted, whole, tmp_path / "adapter", card)
    carry(tmp_path / "adapter", whole, smaller, tmp_path / "carried", config=DistillingConfig(steps=60, lr=1e-2))
    want, found = outputs(whole, tmp_path / "adapter"), outputs(smaller, tmp_path / "carried")
    assert found.shape[1] == 3
    assert float((found - want).square().mean()) < 0.2 * float(want.var(0).mean())
    assert read(tmp_path / "carried").meaning == read(tmp_path / "adapter").meaning


@pytest.fixture(scope="module")
def writing(tmp_path_factory):
    """A backbone that writes, a smaller one, an adapter, and rows."""
    folder, tokenizer = tmp_path_factory.mktemp("writing"), character_tokenizer(COMMANDS)
    texts = [f"{a}+{b}={a + b}" for a in range(20) for b in range(10)]
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id] for text in texts]
    rows = [(row, [place >= 3 for place in range(len(row))]) for row in ids]
    pretrain_text(
        rows, tokenizer, folder / "whole", structure="formulas", backbone=BackboneConfig(hidden=64, max_tokens=64),
        config=TextPretrainingConfig(tokens=20_000, batch_tokens=300),
    )  # fmt: skip
    compress(
        folder / "whole", folder / "small", times=2.0, rows=rows, config=DistillingConfig(steps=100, batch_tokens=300)
    )
    targets = ("o_proj", "down_proj", "experts", "structure", "embed_tokens")
    adapted, card = adapted_on(folder / "whole", targets=targets, load=load_text, head=False)
    export(adapted, folder / "whole", folder / "adapter", card)
    return folder, rows


def test_an_adapter_that_writes_is_carried_on_public_texts(writing, tmp_path):
    folder, rows = writing
    few, more = DistillingConfig(steps=1, lr=1e-9, of_text=0.0), DistillingConfig(steps=150, of_text=0.0, lr=1e-2)
    for name, config in (("few", few), ("more", more)):
        carry(folder / "adapter", folder / "whole", folder / "small", tmp_path / name, rows=rows, config=config)
    ids = torch.tensor([rows[7][0]])
    with torch.no_grad():
        want = attached(load_text(folder / "whole").model, read(folder / "adapter"), None).model(ids).logits
        found = [
            attached(load_text(folder / "small").model, read(tmp_path / name), None).model(ids).logits
            for name in ("few", "more")
        ]
    kl = [
        float(torch.nn.functional.kl_div(each[0].log_softmax(-1), want[0].softmax(-1), reduction="batchmean"))
        for each in found
    ]
    assert kl[1] < 0.6 * kl[0]
    assert read_provenance(tmp_path / "more").carried[0].learned == "200 public texts"
    assert "load_text(Path(backbone_directory))" in (tmp_path / "more" / "README.md").read_text()


def test_what_does_not_fit_is_refused_before_anything_is_written(whole, smaller, exported, writing, tmp_path):
    folder, rows = writing
    with pytest.raises(InvalidCompression, match="public texts have no part in it"):
        carry(exported, whole, smaller, tmp_path / "x", rows=rows)
    with pytest.raises(InvalidCompression, match="on public texts, and none are given"):
        carry(folder / "adapter", folder / "whole", folder / "small", tmp_path / "x")
    with pytest.raises(InvalidCompression, match="0 public texts have something to learn"):
        carry(folder / "adapter", folder / "whole", folder / "small", tmp_path / "x", rows=[([3, 4], [True, False])])
    with pytest.raises(InvalidCompression, match="was made of backbone"):
        carry(exported, whole, folder / "small", tmp_path / "x")
    with pytest.raises(InvalidCompression, match="was not made smaller"):
        carry(exported, whole, whole, tmp_path / "x")
    with pytest.raises(BackboneMismatch, match="has hash"):
        carry(exported, smaller, smaller, tmp_path / "x")
    adapted, card = adapted_on(whole, targets=("o_proj",))
    adapted.head = PooledHead(torch.zeros(1, 64), torch.eye(64)[None], reads=(3,))
    export(adapted, whole, tmp_path / "documents", card)
    with pytest.raises(InvalidCompression, match="reads documents by a head"):
        carry(tmp_path / "documents", whole, smaller, tmp_path / "x")
    (tmp_path / "there").mkdir()
    with pytest.raises(FileExistsError):
        carry(exported, whole, smaller, tmp_path / "there")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["documents", "there"]
