import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from confide.kernels.segments import Segments
from confide.models.adapters.combining import combine
from confide.models.adapters.composing import compose
from confide.models.adapters.lora import AdapterConfig, LoRAEmbedding, LoRAExperts, attach
from confide.models.adapters.peft_export import export
from confide.models.adapters.peft_import import read
from confide.models.adapters.prototype import PROTOTYPE, Prototype, read_prototype, save_prototype
from confide.models.adapters.provenance import Source, added_up
from confide.models.backbones.checkpoints import content_hash
from confide.models.backbones.loading import backbone_hash, load, load_text
from confide.models.errors import BackboneMismatch, CombinationRefused, InvalidRelease
from confide.models.heads.signature import signatures

from ..tiny import save_text_backbone
from .test_combining import CARD, OTHER, backbone_dir, pair, trained

__all__ = ["backbone_dir", "pair"]

IDS = torch.tensor([[2, 3, 4, 5], [5, 6, 2, 0], [3, 3, 0, 0], [7, 2, 6, 4]])


@pytest.fixture(scope="module")
def places(backbone_dir):
    """A record of each of two places, as the backbone reads it: [1, 4] tokens, and their signatures [2, 16]."""
    backbone = load(backbone_dir)
    with torch.no_grad():
        return signatures(backbone.model, backbone.head(), IDS[[0, 3]], 16)


@pytest.fixture(scope="module")
def exports(backbone_dir, pair, places, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exports")
    digest = backbone_hash(backbone_dir)
    for number, (adapted, card) in enumerate(zip(pair, (CARD, OTHER), strict=True)):
        prototype = Prototype(1000 * places[number], 1.0)
        export(adapted, folder, folder / str(number), replace(card, backbone_hash=digest), prototype)
    return folder / "0", folder / "1"


@pytest.fixture(scope="module")
def composition(backbone_dir, exports):
    return compose(backbone_dir, exports)


def logits(adapted, ids=IDS):
    with torch.no_grad():
        return adapted.model(ids, attention_mask=(ids > 0).long()).logits


def test_closed_gates_give_the_backbone_back(backbone_dir, composition):
    plain = load(backbone_dir).model
    with torch.no_grad():
        want = plain(IDS, attention_mask=(IDS > 0).long()).logits
    torch.testing.assert_close(logits(composition.adapted), want, rtol=1e-5, atol=1e-6)
    with composition.answering(torch.zeros(4, 2)) as adapted:
        torch.testing.assert_close(logits(adapted), want, rtol=1e-5, atol=1e-6)


def test_where_nobody_asks_for_adapters_no_product_of_theirs_is_taken(backbone_dir, exports):
    composition = compose(backbone_dir, exports)
    with composition.answering(torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 0.0]])) as adapted:
        beside_others = logits(adapted)
    for adapter in composition.adapted.adapters.values():
        for factor in adapter.named_factors().values():
            factor.data.fill_(torch.nan)  # would spoil whatever it enters
    with composition.answering(torch.zeros(4, 2)) as adapted:
        alone = logits(adapted)
    assert torch.equal(alone, logits(composition.adapted))
    torch.testing.assert_close(alone[[0, 3]], beside_others[[0, 3]], rtol=1e-5, atol=1e-6)
    with composition.answering(torch.tensor([[0.0, 0.0]] * 3 + [[0.0, 1e-30]])) as adapted:
        assert logits(adapted).isnan().any()


def test_gates_are_found_once_for_modules_of_the_same_owners(composition):
    linears = [module for module in composition.owners if not isinstance(module, LoRAEmbedding | LoRAExperts)]
    with composition.answering(torch.eye(2)[[0, 1, 0]]) as adapted:
        found = [adapted.gates.of(module, torch.zeros(3, 2, module.lora_A.shape[1])) for module in linears]
        longer = adapted.gates.of(linears[0], torch.zeros(3, 5, linears[0].lora_A.shape[1]))
    owners = {id(composition.owners[module]) for module in linears}
    assert len({id(gates) for gates in found}) == len(owners) < len(linears)
    assert longer.shape == (15, found[0].shape[1])
    assert torch.equal(longer[::5], found[0][::2])
    with composition.answering(torch.eye(2)[[1, 0, 1]]) as adapted:  # of another batch, found anew
        other = adapted.gates.of(linears[0], torch.zeros(3, 2, linears[0].lora_A.shape[1]))
    assert torch.equal(other[:2], found[0][2:4])


def test_unlike_requests_in_one_pass_are_answered_each_by_its_own_adapter(pair, composition):
    gates = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    with composition.answering(gates) as adapted:
        found = logits(adapted)
    by_adapter = [logits(adapted) for adapted in pair]
    for row, which in enumerate((0, 1, 0, 1)):
        own = (IDS[row] > 0).sum()
        torch.testing.assert_close(found[row, :own], by_adapter[which][row, :own], rtol=1e-4, atol=1e-5)
    assert (by_adapter[0] - by_adapter[1]).abs().max() > 0.05


def test_fixed_weights_are_what_combine_writes(backbone_dir, exports, composition, tmp_path):
    combine(exports, tmp_path / "both", weights=[1, 3])
    one = compose(backbone_dir, [tmp_path / "both"])
    with one.answering(one.fixed(4)) as adapted, composition.answering(composition.fixed(4, [0.25, 0.75])) as ours:
        torch.testing.assert_close(logits(ours), logits(adapted), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(composition.fixed(3), torch.full((3, 2), 0.5))


def test_heads_are_weighted_as_their_adapters(pair, composition):
    gates = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0], [0.3, 0.7]])
    found = composition.classify(IDS, gates)
    with torch.no_grad():
        want = [adapted.classify(IDS) for adapted in pair]
    torch.testing.assert_close(found[0, 0], want[0][0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[1, 0], want[1][1], rtol=1e-4, atol=1e-5)
    assert found[2, 0] == 0  # nobody answers: even odds
    assert found.shape == (4, 1)


def test_a_request_goes_to_the_study_whose_records_the_backbone_reads_alike(composition, places):
    cosine = float(places[0] @ places[1])
    found = composition.by_prototypes(IDS[[0, 3]], temperature=0.05, floor=0.2)
    strong, weak, base = (math.exp(c / 0.05) for c in (1.0, cosine, 0.2))
    # The direction's length is estimated without noise: 1000^2 + 16 were expected, 16 are taken off.
    want = torch.tensor([[strong, weak], [weak, strong]]) / (strong + weak + base)
    torch.testing.assert_close(found, want, rtol=1e-3, atol=1e-4)


def test_where_nothing_is_near_the_backbone_answers(composition):
    assert composition.by_prototypes(IDS, floor=2.0).max() < 1e-6


def test_a_prototype_that_is_lost_in_its_noise_is_never_chosen(backbone_dir, pair, exports, places, tmp_path):
    noise = torch.from_numpy(np.random.default_rng(0).normal(0, 40, 16)).float()
    card = replace(OTHER, backbone_hash=backbone_hash(backbone_dir))
    export(pair[1], tmp_path, tmp_path / "lost", card, Prototype(noise, 40.0))
    assert "lost in its noise" in (tmp_path / "lost" / "README.md").read_text()
    found = compose(backbone_dir, [exports[0], tmp_path / "lost"]).by_prototypes(IDS[[0, 3]])
    assert found[:, 1].eq(0).all()
    assert found[0, 0] > 0.9


@pytest.mark.parametrize("seed", range(5))
def test_the_length_of_a_direction_is_estimated_without_noise(seed):
    rng = np.random.default_rng(seed)
    true = np.zeros(256)
    true[3] = 900.0
    noisy = Prototype(torch.from_numpy(true + rng.normal(0, 40, 256)).float(), 40.0)  # half of its square is noise
    assert noisy.direction[3] == pytest.approx(1.0, abs=0.15)


def test_by_arrow_the_adapter_answers_whose_direction_reacts(pair, composition):
    (bank,) = [module for module in composition.owners if isinstance(module, LoRAExperts)][:1]
    reacts = composition.directions[bank]
    torch.testing.assert_close(reacts.norm(dim=1), torch.ones(2))
    with composition.answering(None) as adapted:
        gates = adapted.gates.of(bank, 50 * reacts[1:])
        assert gates.shape == (1, 5)
        assert (gates[0, :3] < 0.5).all()
        assert (gates[0, 3:] > 0.5).all()
        torch.testing.assert_close(gates[0, 0] + gates[0, 3], torch.tensor(1.0))
        assert logits(adapted).isfinite().all()
        embedding = next(module for module in composition.owners if isinstance(module, LoRAEmbedding))
        assert adapted.gates.of(embedding, IDS).unique().tolist() == [0.5]
    assert composition.classify(IDS, None).isfinite().all()


def test_a_direction_is_the_first_right_singular_vector_of_all_products(exports, composition):
    bank, directions = next((m, d) for m, d in composition.directions.items() if isinstance(m, LoRAExperts))
    name = next(name for name, module in composition.adapted.adapters.items() if module is bank)
    pair = read(exports[0]).pairs[f"base_model.model.{name}.base_layer.lora_{{}}.weight"]
    products = (pair.lora_B.double() @ pair.lora_A.double()).flatten(0, 1)
    want = torch.linalg.svd(products).Vh[0]
    assert abs(float(want @ directions[0].double())) == pytest.approx(1.0, abs=1e-6)


def test_epsilons_add_up_for_one_person(composition):
    (found,) = composition.spent
    assert (found.unit, found.studies) == (CARD.unit, 2)
    assert found.epsilon == CARD.epsilon + OTHER.epsilon
    assert found.delta == CARD.delta + OTHER.delta


def test_what_cannot_be_composed_is_refused(backbone_dir, pair, exports, places, tmp_path):
    with pytest.raises(CombinationRefused, match="one adapter or more"):
        compose(backbone_dir, [])
    export(pair[0], tmp_path, tmp_path / "elsewhere", CARD)  # of a made-up hash
    with pytest.raises(CombinationRefused, match="different backbones"):
        compose(backbone_dir, [exports[0], tmp_path / "elsewhere"])
    with pytest.raises(BackboneMismatch):
        compose(backbone_dir, [tmp_path / "elsewhere"])
    card = replace(OTHER, backbone_hash=backbone_hash(backbone_dir))
    export(pair[1], tmp_path, tmp_path / "bare", card)
    with pytest.raises(CombinationRefused, match="some have none"):
        compose(backbone_dir, [exports[0], tmp_path / "bare"]).by_prototypes(IDS)
    export(pair[1], tmp_path, tmp_path / "short", card, Prototype(torch.ones(8), 0.0))
    with pytest.raises(CombinationRefused, match="lengths differ"):
        compose(backbone_dir, [exports[0], tmp_path / "short"]).by_prototypes(IDS)
    headless = trained(backbone_dir, 3, rank=2, alpha=1.0, head=False)
    export(headless, tmp_path, tmp_path / "headless", card)
    mixed = compose(backbone_dir, [exports[0], tmp_path / "headless"])
    with pytest.raises(CombinationRefused, match="no heads"):
        mixed.classify(IDS, mixed.fixed(4))
    with pytest.raises(CombinationRefused, match="as many finite weights"):
        mixed.fixed(4, [1.0])


def test_heads_alone_are_composed_on_the_plain_backbone(backbone_dir, tmp_path):
    card = replace(OTHER, backbone_hash=backbone_hash(backbone_dir))
    alone = [trained(backbone_dir, seed, rank=1, alpha=1.0, targets=()) for seed in (1, 2)]
    for number, adapted in enumerate(alone):
        export(adapted, tmp_path, tmp_path / str(number), card)
    found = compose(backbone_dir, [tmp_path / "0", tmp_path / "1"])
    with torch.no_grad():
        want = alone[1].classify(IDS)
    torch.testing.assert_close(found.classify(IDS, torch.tensor([[0.0, 1.0]] * 4))[:, 0], want, rtol=1e-4, atol=1e-5)


def test_a_prototype_comes_back_from_its_file(tmp_path):
    assert read_prototype(tmp_path) is None
    save_prototype(Prototype(torch.arange(9.0), 2.5), tmp_path)
    found = read_prototype(tmp_path)
    assert torch.equal(found.total, torch.arange(9.0))
    assert found.noise_std == 2.5


@pytest.mark.parametrize(
    ("tensors", "facts"),
    [
        ({"total": torch.ones(3)}, None),
        ({"total": torch.ones(3)}, '{"noise_std": -1.0}'),
        ({"total": torch.ones(3)}, '{"noise_std": 1.0, "more": 2}'),
        ({"total": torch.ones(3, 2)}, '{"noise_std": 1.0}'),
        ({"total": torch.ones(5000)}, '{"noise_std": 1.0}'),
        ({"total": torch.ones(3, dtype=torch.float64)}, '{"noise_std": 1.0}'),
        ({"total": torch.tensor([1.0, math.inf])}, '{"noise_std": 1.0}'),
        ({"other": torch.ones(3)}, '{"noise_std": 1.0}'),
    ],
    ids=str,
)
def test_a_file_that_is_no_prototype_is_refused(tmp_path, tensors, facts):
    save_file(tensors, tmp_path / PROTOTYPE, metadata=None if facts is None else {"facts": facts})
    with pytest.raises(InvalidRelease):
        read_prototype(tmp_path)
    (tmp_path / PROTOTYPE).write_bytes(b"no tensors")
    with pytest.raises(InvalidRelease):
        read_prototype(tmp_path)


def test_a_closed_gate_holds_whatever_the_adapter_behind_it_is(backbone_dir, pair, exports, places, tmp_path):
    card = replace(OTHER, backbone_hash=backbone_hash(backbone_dir))
    wild = trained(backbone_dir, 2, rank=2, alpha=1.0)
    for adapter in wild.adapters.values():
        for name, factor in adapter.named_factors().items():
            factor.data.fill_(3e38 if "A" in name.rpartition("_")[2] else 0.0)  # finite, and A x is not
    export(wild, tmp_path, tmp_path / "wild", card, Prototype(-1000 * places[0], 1.0))
    both = compose(backbone_dir, [exports[0], tmp_path / "wild"])
    found = both.classify(IDS, torch.tensor([[1.0, 0.0]] * 4))[:, 0]
    with torch.no_grad():
        torch.testing.assert_close(found, pair[0].classify(IDS), rtol=1e-4, atol=1e-5)
    assert both.by_prototypes(IDS).isfinite().all()


def test_a_pass_of_other_rows_than_the_weights_are_of_is_refused(composition):
    with composition.answering(torch.zeros(4, 2)) as adapted:
        with pytest.raises(CombinationRefused, match="a pass of 2 rows, where weights of 4 are set"):
            adapted.model(IDS[:2])
        outside = composition.by_prototypes(IDS[:2])  # reads by the backbone alone, and leaves the gates as they were
        torch.testing.assert_close(outside, composition.by_prototypes(IDS)[:2], rtol=1e-3, atol=1e-4)
        logits(adapted)
    assert not composition.adapted.model.model._forward_pre_hooks


@pytest.fixture(scope="module")
def in_segments(tmp_path_factory):
    """Two adapters of unlike weights on a text backbone that reads in segments, kv_b_proj among their modules."""
    folder, sizes = tmp_path_factory.mktemp("in-segments"), Segments(window=8, top=2)
    save_text_backbone(folder / "backbone")
    card = replace(CARD, backbone_hash=content_hash(folder / "backbone"), segments=sizes)
    for seed, study in enumerate(("one", "two")):
        model = load_text(folder / "backbone", segments=sizes).model
        config = AdapterConfig(rank=2, alpha=8.0, targets=("kv_b_proj", "q_b_proj", "o_proj"), seed=study)
        adapted = attach(model, config, None)
        adapted.load_state(0.5 * np.random.default_rng(seed).normal(size=adapted.layout.dim))
        export(adapted, folder / "backbone", folder / study, replace(card, study=study, study_hash=f"{seed}b" * 32))
    return compose(folder / "backbone", [folder / "one", folder / "two"])


@pytest.mark.parametrize("weights", [[[1, 0]], [[1, 0], [0, 1]], [[0.3, 1], [0, 0], [1, -0.5]], [[0, 0], [0, 0]]])
def test_unlike_requests_write_on_a_cache_of_latents_what_a_whole_pass_gives(in_segments, weights):
    ids = torch.randint(3, 60, (len(weights), 70), generator=torch.Generator().manual_seed(3))
    with in_segments.answering(torch.tensor(weights, dtype=torch.float32)) as adapted:
        whole = adapted.model(ids).logits
        out = adapted.model(ids[:, :60], use_cache=True)
        parts = [out.logits]
        for token in range(60, 70):
            out = adapted.model(ids[:, token : token + 1], cache=out.cache, use_cache=True)
            parts.append(out.logits)
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-4, atol=1e-4)


def test_by_arrow_nothing_is_written_on_a_cache_of_latents(in_segments):
    ids = torch.randint(3, 60, (1, 30), generator=torch.Generator().manual_seed(3))
    with in_segments.answering(None) as adapted:
        adapted.model(ids)
        with pytest.raises(BackboneMismatch, match="arrow"):
            adapted.model(ids, use_cache=True)


@pytest.mark.parametrize("floor", [math.nan, math.inf, -math.inf])
def test_a_floor_that_is_no_number_is_refused(composition, floor):
    with pytest.raises(CombinationRefused, match="finite likeness"):
        composition.by_prototypes(IDS, floor=floor)


def test_by_arrow_untrained_adapters_leave_the_backbone_as_it_is(backbone_dir, places, tmp_path):
    card = replace(OTHER, backbone_hash=backbone_hash(backbone_dir))
    fresh = trained(backbone_dir, 2, rank=2, alpha=1.0)
    fresh.load_state(0 * fresh.state())
    export(fresh, tmp_path, tmp_path / "fresh", card)
    found = compose(backbone_dir, [tmp_path / "fresh"])
    with found.answering(None) as adapted:
        torch.testing.assert_close(logits(adapted), logits(fresh), rtol=1e-5, atol=1e-6)


def test_of_several_runs_of_a_study_the_worst_counts_in_whatever_order():
    sources = [Source.of(replace(CARD, epsilon=epsilon)) for epsilon in (1.0, 2.5)]
    bare = Source.of(replace(CARD, mode="none", epsilon=None, delta=None))
    for order in (sources, sources[::-1]):
        assert added_up(order) == [(CARD.unit, 1, 2.5, CARD.delta)]
        assert added_up([*order, bare]) == added_up([bare, *order]) == []


def test_heads_of_another_backbone_s_moments_are_refused(backbone_dir, exports, tmp_path):
    shutil.copytree(exports[0], tmp_path / "moved")
    head = load_file(tmp_path / "moved" / "head.safetensors")
    meaning = {"meaning": "It gives the logit of label 1."}
    save_file({**head, "center": head["center"] + 1}, tmp_path / "moved" / "head.safetensors", metadata=meaning)
    with pytest.raises(CombinationRefused, match="pooled states of this backbone"):
        compose(backbone_dir, [tmp_path / "moved"])
