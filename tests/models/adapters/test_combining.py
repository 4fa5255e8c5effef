import json
import shutil
from dataclasses import replace

import numpy as np
import peft
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import DeepseekV3ForCausalLM

from confide.kernels.segments import Segments
from confide.models.adapters.combining import combine, compress, stack
from confide.models.adapters.lora import AdapterConfig, attach
from confide.models.adapters.merging import merged
from confide.models.adapters.peft_export import export
from confide.models.adapters.peft_import import Pair, read, released
from confide.models.adapters.provenance import Provenance, Source
from confide.models.backbones.loading import load
from confide.models.errors import CombinationRefused, InvalidRelease
from confide.models.heads.objectives import BinaryLabel, OneClass
from confide.models.heads.pooling import PooledHead

from .test_merging import EVERYTHING
from .test_peft_export import ATTENTION, CARD, IDS, backbone_dir

__all__ = ["backbone_dir"]

pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
    pytest.mark.filterwarnings(
        "ignore:Model has `tie_word_embeddings=True`:UserWarning"
    ),  # of merging; the card says so
]
PROVENANCE = Provenance(backbone_hash=CARD.backbone_hash, sources=(Source.of(CARD),))
OTHER = replace(CARD, study="loans", study_hash="ef" * 32, epsilon=1.5, delta=1e-6)


def trained(backbone_dir, seed, *, targets=EVERYTHING, head=True, **settings):
    backbone = load(backbone_dir)
    config = AdapterConfig(targets=targets, seed=f"seed {seed}", **settings)
    adapted = attach(backbone.model, config, PooledHead(backbone.center, backbone.whiten) if head else None)
    adapted.load_state(0.2 * np.random.default_rng(seed).normal(size=adapted.layout.dim))
    return adapted


def product(adapter, name):
    """[.., O, I] in float64, one component after another."""
    pair = adapter.pairs[name]
    total = 0
    for component in range(adapter.rank):
        column, row = pair.lora_B.double()[..., component, None], pair.lora_A.double()[..., None, component, :]
        total = total + column * row
    return adapter.alpha / adapter.rank * total


@pytest.fixture(scope="module")
def pair(backbone_dir):
    """Two adapters of different rank, scale, seed and parts."""
    first = trained(backbone_dir, 1, rank=3, alpha=5.0)
    second = trained(
        backbone_dir, 2, rank=2, alpha=1.0, targets=(*ATTENTION, "experts", "embed_tokens"), freeze_a=False
    )
    return first, second


@pytest.fixture(scope="module")
def exports(pair, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exports")
    for name, adapted, card in zip(("first", "second"), pair, (CARD, OTHER), strict=True):
        export(adapted, folder, folder / name, card)
    return folder / "first", folder / "second"


def test_adapters_of_one_attention_combine_and_others_do_not(pair, tmp_path):
    sizes = Segments(window=16, top=1)
    for name, adapted, card in zip(("first", "second"), pair, (CARD, OTHER), strict=True):
        export(adapted, tmp_path, tmp_path / name, replace(card, segments=sizes))
    export(pair[1], tmp_path, tmp_path / "full", OTHER)
    with pytest.raises(CombinationRefused, match="different attention"):
        combine([tmp_path / "first", tmp_path / "full"], tmp_path / "wrong")
    combine([tmp_path / "first", tmp_path / "second"], tmp_path / "both")
    card = (tmp_path / "both" / "README.md").read_text()
    assert "read_in_segments(model.get_base_model(), Segments(window=16, top=1))" in card
    assert "segments" not in (tmp_path / "full" / "confide.json").read_text()  # as files were before


def test_what_is_read_is_what_was_exported(pair, exports):
    ours, theirs = released(pair[0], PROVENANCE), read(exports[0])
    assert (theirs.rank, theirs.alpha, theirs.provenance) == (3, 5.0, PROVENANCE)
    assert (theirs.target_modules, theirs.target_parameters) == (ours.target_modules, ours.target_parameters)
    assert theirs.pairs.keys() == ours.pairs.keys()
    for name, (lora_A, lora_B) in ours.pairs.items():
        assert torch.equal(theirs.pairs[name].lora_A, lora_A)
        assert torch.equal(theirs.pairs[name].lora_B, lora_B)
    assert all(torch.equal(theirs.head[name], tensor) for name, tensor in ours.head.items())


def test_products_of_a_stack_are_the_weighted_sums_of_products(exports):
    first, second = (read(path) for path in exports)
    both = stack([first, second], [0.75, 2.0])
    assert both.pairs.keys() == first.pairs.keys() > second.pairs.keys()
    assert both.rank == 5
    for name in both.pairs:
        want = 0.75 * product(first, name) + (2.0 * product(second, name) if name in second.pairs else 0)
        torch.testing.assert_close(product(both, name), want, rtol=1e-6, atol=1e-6)  # a number of B rounds once


def test_the_mean_of_two_adapters_computes_the_mean_of_their_merged_weights(backbone_dir, pair, exports, tmp_path):
    combine(exports, tmp_path / "both", weights=[1, 3])
    weights = []
    for adapted in pair:
        with merged(adapted) as model:
            weights.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
    mean = {name: 0.25 * tensor + 0.75 * weights[1][name] for name, tensor in weights[0].items()}
    with merged(pair[0]) as model, torch.no_grad():
        model.load_state_dict(mean)
        ours = model(IDS).logits
        model.load_state_dict(weights[0])
    plain = DeepseekV3ForCausalLM.from_pretrained(backbone_dir)
    with torch.no_grad():
        theirs = peft.PeftModel.from_pretrained(plain, tmp_path / "both").eval()(IDS).logits
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-5)


def test_adapters_of_some_layers_and_of_all_are_one_that_peft_loads(backbone_dir, pair, exports, tmp_path):
    one = trained(backbone_dir, 4, rank=2, alpha=3.0, targets=("o_proj", "gate_proj", "experts", "gate"), layers=(2,))
    export(one, tmp_path, tmp_path / "one", OTHER)
    combine([exports[0], tmp_path / "one"], tmp_path / "both", weights=[1, 1])
    weights = []
    for adapted in (pair[0], one):
        with merged(adapted) as model:
            weights.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
    with merged(pair[0]) as model, torch.no_grad():
        model.load_state_dict({name: (tensor + weights[1][name]) / 2 for name, tensor in weights[0].items()})
        ours = model(IDS).logits
        model.load_state_dict(weights[0])
    plain = DeepseekV3ForCausalLM.from_pretrained(backbone_dir)
    with torch.no_grad():
        theirs = peft.PeftModel.from_pretrained(plain, tmp_path / "both").eval()(IDS).logits
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-5)


def test_no_rank_below_has_a_smaller_error_than_the_cut(exports):
    both = stack([read(path) for path in exports], [0.5, 0.5])
    cut = compress(both, 2)
    lost = whole = 0.0
    for name in both.pairs:
        full = product(both, name)
        left, values, right = torch.linalg.svd(full, full_matrices=False)
        nearest = (left[..., :2] * values[..., None, :2]) @ right[..., :2, :]
        torch.testing.assert_close(product(cut.adapter, name), nearest, rtol=1e-5, atol=1e-5)  # stored in float32
        tail, total = float(values[..., 2:].square().sum()), float(values.square().sum())
        assert cut.error_of[name] == pytest.approx((tail / total) ** 0.5, rel=1e-9)
        lost, whole = lost + tail, whole + total
    assert cut.relative_error == pytest.approx((lost / whole) ** 0.5, rel=1e-9)
    assert 0.01 < cut.relative_error < 1


def test_a_cut_to_the_whole_rank_loses_nothing(exports):
    adapter = read(exports[0])
    cut = compress(adapter, 3)
    assert cut.relative_error == 0
    for name in adapter.pairs:
        torch.testing.assert_close(product(cut.adapter, name), product(adapter, name), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rank", [0, 4])
def test_a_rank_that_is_not_there_is_refused(exports, rank):
    with pytest.raises(CombinationRefused, match="from 1 to 3"):
        compress(read(exports[0]), rank)


def test_a_cut_adapter_loads_in_peft(backbone_dir, exports, tmp_path):
    found = combine(exports, tmp_path / "both", rank=1)
    plain = DeepseekV3ForCausalLM.from_pretrained(backbone_dir)
    with torch.no_grad():
        before = plain(IDS).logits
        after = peft.PeftModel.from_pretrained(plain, tmp_path / "both").eval()(IDS).logits
    assert json.loads((tmp_path / "both" / "adapter_config.json").read_text())["r"] == found.adapter.rank == 1
    assert (before - after).abs().max() > 1e-2


def test_the_head_is_the_weighted_mean(pair, exports, tmp_path):
    combine(exports, tmp_path / "both", weights=[1, 3])
    head = load_file(tmp_path / "both" / "head.safetensors")
    want = 0.25 * pair[0].head.weight.double() + 0.75 * pair[1].head.weight.double()
    torch.testing.assert_close(head["weight"].double(), want, rtol=0, atol=1e-7)
    assert torch.equal(head["whiten"], pair[0].head.whiten)


def test_where_one_has_no_head_there_is_none(backbone_dir, exports):
    bare = released(trained(backbone_dir, 3, rank=1, alpha=1.0, head=False), PROVENANCE)
    assert stack([read(exports[0]), bare], [1, 1]).head is None


def test_what_does_not_fit_together_is_refused(backbone_dir, exports):
    first, second = (read(path) for path in exports)
    stranger = replace(second, provenance=PROVENANCE.model_copy(update={"backbone_hash": "00" * 32}))
    moved = replace(second, head={**second.head, "center": second.head["center"] + 1})
    name = next(iter(second.pairs))
    narrow = replace(second, pairs={name: type(second.pairs[name])(*(it[..., :2, :2] for it in second.pairs[name]))})
    for other, why in ((stranger, "different backbones"), (moved, "pooled states"), (narrow, "another shape")):
        with pytest.raises(CombinationRefused, match=why):
            stack([first, other], [1, 1])


@pytest.mark.parametrize("weights", [[1], [1, 0], [1, -1], [1, float("nan")], [1, float("inf")], [1, 1, 1]])
def test_weights_must_be_one_positive_number_each(exports, tmp_path, weights):
    with pytest.raises(CombinationRefused):
        combine(exports, tmp_path / "both", weights=weights)
    assert list(tmp_path.iterdir()) == []


def test_one_adapter_is_no_combination(exports, tmp_path):
    with pytest.raises(CombinationRefused):
        combine(exports[:1], tmp_path / "both")


def test_the_card_and_the_facts_name_all_sources_also_of_sources(exports, tmp_path):
    combine(exports, tmp_path / "both", weights=[1, 3], rank=2)
    combine([tmp_path / "both", exports[0]], tmp_path / "more")
    found = read(tmp_path / "more").provenance
    assert [(source.study, source.weight) for source in found.sources] == [
        ("thyroid", 0.125), ("loans", 0.375), ("thyroid", 0.5)
    ]  # fmt: skip
    assert [cut.rank for cut in found.compressions] == [2]
    text = (tmp_path / "more" / "README.md").read_text()
    facts = ["epsilon 2.914 at delta 1e-05", "epsilon 1.500 at delta 1e-06", "Cut by singular values to rank 2"]
    assert [fact for fact in facts if fact not in text] == []


def test_the_card_adds_up_what_one_person_may_have_spent(exports, tmp_path):
    combine(exports, tmp_path / "both")
    assert "at most epsilon 4.414 at delta 1.1e-05 in all 2" in (tmp_path / "both" / "README.md").read_text()


def test_the_card_says_where_nothing_bounds_a_part(pair, exports, tmp_path):
    export(pair[1], tmp_path, tmp_path / "open", replace(OTHER, mode="none", epsilon=None, delta=None))
    combine([exports[0], tmp_path / "open"], tmp_path / "both")
    text = (tmp_path / "both" / "README.md").read_text()
    assert "Nothing bounds what it tells about the records of loans" in text
    assert "add up" not in text


def damaged(exports, tmp_path, file, change):
    """A copy of an export with one file changed by `change`, which is given and returns bytes."""
    folder = tmp_path / "damaged"
    folder.mkdir()
    for path in exports[0].iterdir():
        data = path.read_bytes()
        (folder / path.name).write_bytes(change(data) if path.name == file else data)
    return folder


def edited(**values):
    return lambda data: json.dumps(json.loads(data) | values).encode()


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("adapter_config.json", edited(r=0)),
        ("adapter_config.json", edited(r="3")),
        ("adapter_config.json", edited(lora_alpha=float("nan"))),
        ("adapter_config.json", edited(use_rslora=True)),  # each of these would change what the factors mean
        ("adapter_config.json", edited(use_dora=True)),
        ("adapter_config.json", edited(rank_pattern={"o_proj": 1})),
        ("adapter_config.json", edited(peft_type="IA3")),
        ("adapter_config.json", edited(target_modules=["../x"])),
        ("adapter_config.json", lambda data: b" " * 2**20 + data),
        ("adapter_config.json", lambda _: b"\xff"),
        ("confide.json", edited(format=2)),
        ("confide.json", edited(backbone_hash="cd")),
        ("confide.json", edited(sources=[])),
        ("confide.json", edited(more=1)),
        ("confide.json", lambda data: data.replace(b"2.914", b"null")),  # a guarantee without its epsilon
        ("confide.json", lambda data: b" " * 2**20 + data),
        ("confide.json", lambda _: b"[" * 10_000),
        ("adapter_model.safetensors", lambda data: data[:-1]),
        ("adapter_model.safetensors", lambda _: b"\x80\x04."),  # a pickle
        ("head.safetensors", lambda data: data[:-1]),
    ],
)
def test_what_no_export_wrote_is_refused(exports, tmp_path, file, change):
    with pytest.raises(InvalidRelease, match=file):
        read(damaged(exports, tmp_path, file, change))


@pytest.mark.parametrize("file", ["adapter_config.json", "confide.json", "adapter_model.safetensors"])
def test_a_missing_file_is_told(exports, tmp_path, file):
    folder = damaged(exports, tmp_path, "", None)
    (folder / file).unlink()
    with pytest.raises(InvalidRelease, match=file):
        read(folder)


def retensored(exports, tmp_path, file, change):
    tensors = load_file(exports[0] / file)
    change(tensors)
    folder = damaged(exports, tmp_path, "", None)
    save_file(tensors, folder / file)
    return folder


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("adapter_model.safetensors", lambda tensors: tensors.popitem()),
        ("adapter_model.safetensors", lambda tensors: tensors.update(weight=torch.zeros(1))),
        ("adapter_model.safetensors", lambda tensors: next(iter(tensors.values())).fill_(torch.nan)),
        ("adapter_model.safetensors", lambda tensors: tensors.update({n: t.half() for n, t in tensors.items()})),
        ("adapter_model.safetensors", lambda tensors: tensors.update({n: t[:1] for n, t in tensors.items()})),
        ("head.safetensors", lambda tensors: tensors.pop("center")),
        ("head.safetensors", lambda tensors: tensors.update(center=torch.zeros(3))),
    ],
)
def test_tensors_that_are_no_factors_or_no_head_are_refused(exports, tmp_path, file, change):
    with pytest.raises(InvalidRelease, match=file):
        read(retensored(exports, tmp_path, file, change))


@pytest.fixture(scope="module")
def scratch(exports, tmp_path_factory):
    return damaged(exports, tmp_path_factory.mktemp("fuzz"), "", None)


@settings(max_examples=60, deadline=None)
@given(data=st.one_of(st.binary(max_size=200), st.text(max_size=200).map(str.encode)), file=st.sampled_from(
    ["adapter_config.json", "confide.json", "adapter_model.safetensors", "head.safetensors"]
))  # fmt: skip
def test_whatever_lies_in_a_file_the_refusal_is_ours(exports, scratch, data, file):
    kept = (exports[0] / file).read_bytes()
    (scratch / file).write_bytes(data)
    try:
        with pytest.raises(InvalidRelease):
            read(scratch)
    finally:
        (scratch / file).write_bytes(kept)


def test_a_bank_that_the_config_does_not_name_is_refused(exports, tmp_path):
    with pytest.raises(InvalidRelease, match="is no pair of factors"):
        read(damaged(exports, tmp_path, "adapter_config.json", edited(target_parameters=["experts"])))


@pytest.mark.parametrize("rank", [1, 2, 6])
def test_factors_of_another_rank_than_stated_are_refused(exports, tmp_path, rank):
    with pytest.raises(InvalidRelease, match=f"no pair of factors of rank {rank}"):
        read(damaged(exports, tmp_path, "adapter_config.json", edited(r=rank)))


def test_a_refusal_quotes_no_value(exports, tmp_path):
    folder = damaged(exports, tmp_path, "confide.json", edited(backbone_hash="SECRET"))
    with pytest.raises(InvalidRelease) as caught:
        read(folder)
    assert "SECRET" not in str(caught.value)


def test_more_numbers_than_a_computer_holds_are_refused_before_they_are_made(exports):
    adapter = read(exports[0])
    large = Pair(torch.zeros(1, 20_000), torch.zeros(20_000, 1))  # of which the sum of ranks makes 2.6 thousand million
    with pytest.raises(CombinationRefused, match=r"would have 2,600,\d{3},000 numbers"):
        stack([replace(adapter, pairs={}), replace(adapter, rank=65_000, pairs={"x": large})], [0.5, 0.5])
    with pytest.raises(CombinationRefused, match="ranks add up to"):
        stack([replace(adapter, rank=65_000)] * 2, [0.5, 0.5])


def test_more_studies_than_a_file_names_are_refused(exports):
    with pytest.raises(CombinationRefused, match="studies to 257"):
        stack([read(exports[0])] * 257, [1 / 257] * 257)


@pytest.fixture(scope="module")
def heads(backbone_dir, tmp_path_factory):
    """Exports of heads alone: two of the same classes, one of others, one of fewer."""
    folder, generator = tmp_path_factory.mktemp("heads"), torch.Generator().manual_seed(0)
    center, whiten = torch.randn(1, 32, generator=generator), torch.randn(1, 32, 32, generator=generator)
    for seed, (name, classes) in enumerate(
        {"a": ("x", "y", "z"), "b": ("x", "y", "z"), "other": ("x", "y, z", "w"), "fewer": ("x", "y")}.items()
    ):
        head = PooledHead(center, whiten, objective=OneClass(classes), reads=(1,))
        adapted = attach(load(backbone_dir).model, AdapterConfig(rank=1, alpha=1.0, targets=(), seed="s"), head)
        adapted.load_state(np.random.default_rng(seed).normal(size=adapted.layout.dim))
        export(adapted, folder, folder / name, CARD)
    return folder


def test_the_mean_of_heads_alone_says_what_it_is_and_has_no_adapter(heads, tmp_path):
    combine([heads / "a", heads / "b"], tmp_path / "both", weights=[1, 3])
    assert {path.name for path in (tmp_path / "both").iterdir()} == {"README.md", "confide.json", "head.safetensors"}
    card = (tmp_path / "both" / "README.md").read_text()
    assert "The weighted mean of 2 heads" in card
    assert "PeftModel" not in card
    both, first, second = (read(path).head["weight"] for path in (tmp_path / "both", heads / "a", heads / "b"))
    torch.testing.assert_close(both, (first + 3 * second) / 4)


@pytest.mark.parametrize("other", ["other", "fewer"])
def test_heads_that_learn_something_else_are_not_combined(heads, tmp_path, other):
    with pytest.raises(CombinationRefused, match="do not learn the same"):
        combine([heads / "a", heads / other], tmp_path / "both", weights=[1, 1])


def test_a_head_of_another_shape_under_the_same_name_is_not_combined(heads, tmp_path):
    shutil.copytree(heads / "b", tmp_path / "b")
    tensors = load_file(tmp_path / "b" / "head.safetensors")
    tensors["weight"] = tensors["weight"][:1].clone()
    save_file(tensors, tmp_path / "b" / "head.safetensors", metadata={"meaning": read(heads / "a").meaning})
    with pytest.raises(CombinationRefused, match="do not learn the same"):
        combine([heads / "a", tmp_path / "b"], tmp_path / "both", weights=[1, 1])


@pytest.mark.parametrize("reads", [[0.5], [-1.0]])
def test_a_head_that_reads_no_state_is_refused(heads, tmp_path, reads):
    shutil.copytree(heads / "b", tmp_path / "b")
    tensors = load_file(tmp_path / "b" / "head.safetensors") | {"reads": torch.tensor(reads)}
    save_file(tensors, tmp_path / "b" / "head.safetensors", metadata={"meaning": "x"})
    with pytest.raises(InvalidRelease, match="by their numbers"):
        read(tmp_path / "b")


def test_an_export_from_before_heads_said_what_they_mean_is_one_of_a_label(exports, tmp_path):
    shutil.copytree(exports[0], tmp_path / "older")
    head = tmp_path / "older" / "head.safetensors"
    save_file(load_file(head), head, metadata={"format": "pt"})
    assert read(tmp_path / "older").meaning == read(exports[0]).meaning == BinaryLabel().meaning
    combine([exports[0], tmp_path / "older"], tmp_path / "both", weights=[1, 1])
