import copy
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from confide.kernels import products
from confide.kernels.formats import FROZEN_FORMATS, Int8Row, NF4Block64
from confide.kernels.linear import PackedMatrix, QuantisedLinear
from confide.kernels.products import TILE, Factor, add_product, prepacks, product, tiles_agree, tiles_seen
from confide.models.adapters import AdapterConfig, attach
from confide.models.heads import objectives, record_losses
from confide.models.heads.written import joined
from confide.privacy.audit.engine_checks import made_up_state
from confide.privacy.errors import BatchMalformed
from confide.privacy.mechanism import batches, clipping, site_round
from confide.privacy.mechanism.batches import ONE_BY_ONE, BatchShapes, microbatches, probed_shapes, used_tokens
from confide.privacy.mechanism.clipping import grid_of
from confide.privacy.mechanism.site_round import ReleaseTerms, partial_sum, private_release
from confide.privacy.mechanism.workers import SumPart

from ..loops import PLAIN, TARGETS, C, adapted_tiny, completing_tiny, given, kept_states, packed_tiny, writing_tiny
from ..sabotage import padded_to_the_longest, products_by_group

TERMS = ReleaseTerms(**{**PLAIN, "clip_norm": 1.0, "max_rows_per_batch": 64, "max_records_per_unit": 4})
SHAPES = BatchShapes({16: (16, 8), 32: (8, 4)})


def shapes_for(adapted, max_records=4, max_tokens=12):
    return probed_shapes(adapted, max_tokens=max_tokens, max_rows=64, max_records=max_records)


def records(adapted, units, seed=0):
    """Records of many lengths and labels, some of one unit; a causal model's have completions."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 4, units)
    ids = rng.integers(1, 64, (sizes.sum(), 12))
    ids[np.arange(12) >= rng.integers(3, 13, len(ids))[:, None]] = 0
    is_completion = (ids > 0) & (np.arange(12) >= rng.integers(1, 3, len(ids))[:, None])
    targets = rng.integers(0, 2, len(ids)) if adapted.head is not None else is_completion
    if adapted.text is not None:  # some records have none behind them
        first = rng.choice([3, 5, 12], len(ids))[:, None]
        is_behind = (ids > 0) & (np.arange(12) >= first)
        is_asked = is_behind & (np.arange(12) == first)
        targets = joined(rng.integers(0, adapted.head.objective.digits, len(ids)), is_asked, is_behind & ~is_asked)
    return ids, targets, sizes


def clipped(adapted, state, ids, targets, sizes, units, *, shapes, terms=TERMS):
    """The exact sum over some units; how it is computed is the engine's affair."""
    rows_of_unit = np.split(np.arange(len(ids)), np.cumsum(sizes)[:-1])
    rows = np.concatenate([rows_of_unit[unit] for unit in units])
    part = SumPart(state=state, ids=ids[rows], targets=targets[rows], sizes=sizes[units], passes=0, shapes=str(shapes))
    return partial_sum(adapted, part, terms=terms, shapes=shapes)


MODELS = {name: lambda name=name: adapted_tiny(name) for name in TARGETS if name not in ("output", "all, causal")}
MODELS["completions"] = completing_tiny
MODELS["labels and a text"] = writing_tiny
for form in FROZEN_FORMATS:
    MODELS[form.__name__] = lambda form=form: adapted_tiny(base=packed_tiny(form))
MODELS["A and B"] = lambda: adapted_tiny(freeze_a=False)


@pytest.mark.slow
@pytest.mark.parametrize("max_tokens", [12, 20])  # by the second, of records as short in shapes of 8 and 12 tokens, too
@pytest.mark.parametrize("name", MODELS)
def test_a_unit_takes_exactly_its_own_clipped_gradient_with_it_at_any_state(name, max_tokens):
    adapted = MODELS[name]()
    shapes, rng = shapes_for(adapted, max_tokens=max_tokens), np.random.default_rng(7)
    assert shapes.rows_of_length, "this machine computes batches, so they are what is tested"
    ids, targets, sizes = records(adapted, 11)
    everybody = np.arange(11)
    for state in (adapted.state(), made_up_state(adapted, rng), made_up_state(adapted, rng)):
        total = clipped(adapted, state, ids, targets, sizes, everybody, shapes=shapes)
        for unit in everybody[::2]:
            without = clipped(adapted, state, ids, targets, sizes, np.delete(everybody, unit), shapes=shapes)
            own = clipped(adapted, state, ids, targets, sizes, everybody[[unit]], shapes=shapes)
            np.testing.assert_array_equal(total - without, own)
            assert np.linalg.norm(own) <= TERMS.clip_norm


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"clipping": "adaptive"}, {"trained_rank": 2}])
def test_options_of_a_study_change_nothing_of_it(changes):
    adapted, terms = adapted_tiny(), replace(TERMS, **changes)
    shapes, state = shapes_for(adapted), made_up_state(adapted, np.random.default_rng(2))
    ids, targets, sizes = records(adapted, 9)
    everybody = np.arange(9)
    total = clipped(adapted, state, ids, targets, sizes, everybody, shapes=shapes, terms=terms)
    without = clipped(adapted, state, ids, targets, sizes, everybody[1:], shapes=shapes, terms=terms)
    own = clipped(adapted, state, ids, targets, sizes, everybody[:1], shapes=shapes, terms=terms)
    np.testing.assert_array_equal(total - without, own)


LAST = {
    "completions": lambda: completing_tiny(layers=(1,)),
    "head": lambda: adapted_tiny("head", layers=(1,)),
    "experts": lambda: adapted_tiny("experts", layers=(1,)),
    "labels and a text": lambda: writing_tiny(layers=(1,), reads=(1, 2)),
}


@pytest.mark.slow
@pytest.mark.parametrize("shapes", ["batches", "one by one"])
@pytest.mark.parametrize("name", LAST)
def test_from_kept_states_a_unit_takes_exactly_its_own_clipped_gradient_with_it_too(name, shapes):
    adapted = LAST[name]()
    assert adapted.frozen_layers == 1
    used = shapes_for(adapted) if shapes == "batches" else ONE_BY_ONE
    assert bool(used.rows_of_length) == (shapes == "batches")
    ids, targets, sizes = records(adapted, 9)
    units, terms = np.repeat(np.arange(9), sizes), replace(TERMS, scale_bits=40)
    kept = kept_states(adapted, ids, targets, used)
    for seed in (0, 1):
        adapted.load_state(made_up_state(adapted, np.random.default_rng(seed)))

        def sum_of(rows):
            entering = [kept[row] for row in np.flatnonzero(rows)]
            return private_release(
                adapted, ids[rows], targets[rows], units[rows], terms=terms, shapes=used, entering=given(entering)
            )

        total = sum_of(units >= 0)
        for unit in (0, 4, 8):
            own = sum_of(units == unit)
            assert np.abs(total - sum_of(units != unit) - own).max() <= 2  # of three roundings
            assert np.linalg.norm(own) <= 2.0**40 * TERMS.clip_norm


@pytest.mark.slow
@pytest.mark.parametrize("name", LAST)
def test_from_kept_states_the_sum_is_that_of_all_layers(name):
    adapted = LAST[name]()
    used = shapes_for(adapted, 1)
    ids, targets, _ = records(adapted, 20)
    kept = kept_states(adapted, ids, targets, used)
    for seed in (0, 1):
        adapted.load_state(made_up_state(adapted, np.random.default_rng(seed)))
        everybody = np.arange(len(ids))
        terms = replace(TERMS, scale_bits=40, max_records_per_unit=1)
        plain, resumed = (
            private_release(adapted, ids, targets, everybody, terms=terms, shapes=used, entering=given(entering))
            for entering in (None, kept)
        )
        assert plain.any()
        if name == "head":
            np.testing.assert_array_equal(resumed, plain)
        # Padding may go to other experts, and adds nothing there; but an expert's product is rounded by its tokens.
        assert np.linalg.norm(resumed - plain) <= 5e-7 * np.linalg.norm(plain)


def test_what_is_kept_of_a_record_does_not_depend_on_other_records():
    adapted = completing_tiny(layers=(1,))
    used = shapes_for(adapted)
    ids, targets, _ = records(adapted, 15)
    together = kept_states(adapted, ids, targets, used)
    for row in (0, 3, len(ids) - 1):
        (alone,) = kept_states(adapted, ids[[row]], targets[[row]], used)
        assert torch.equal(alone, together[row])
        assert alone.shape == (used_tokens(ids, targets)[row], 32)


def test_kept_states_of_other_rows_or_for_several_processes_are_refused():
    adapted = completing_tiny(layers=(1,))
    ids, targets, _ = records(adapted, 3)
    kept = kept_states(adapted, ids, targets)
    with pytest.raises(BatchMalformed, match="those of each row"):
        private_release(adapted, ids, targets, np.arange(len(ids)), terms=TERMS, entering=lambda rows: kept[1:])
    with pytest.raises(BatchMalformed, match="to 2 processes"):
        private_release(
            adapted, ids, targets, np.arange(len(ids)), terms=TERMS, entering=given(kept), group=SimpleNamespace(size=2)
        )


def test_one_unit_at_a_time_needs_no_test_of_the_machine():
    adapted, state = adapted_tiny(), made_up_state(adapted_tiny(), np.random.default_rng(3))
    ids, targets, sizes = records(adapted, 5)
    everybody = np.arange(5)
    total = clipped(adapted, state, ids, targets, sizes, everybody, shapes=ONE_BY_ONE)
    each = [clipped(adapted, state, ids, targets, sizes, everybody[[unit]], shapes=ONE_BY_ONE) for unit in everybody]
    np.testing.assert_array_equal(total, sum(each))


def test_a_length_from_the_longest_record_would_let_a_unit_move_the_others():
    """The very thing that shapes are for: without them the sum of the others has other bits."""
    adapted = adapted_tiny()
    adapted.load_state(made_up_state(adapted, np.random.default_rng(4)))
    ids, targets, _ = records(adapted, 12)
    ids, targets = ids[:12].copy(), targets[:12]
    ids[:, 7:] = 0
    ids[0] = 5  # the one that is longer
    terms = replace(TERMS, mode="none", scale_bits=40)
    moved = []
    for engine in (
        padded_to_the_longest,
        lambda *a, terms: private_release(*a, terms=terms, shapes=shapes_for(adapted, 1)),
    ):
        sums = [
            engine(adapted, ids[rows], targets[rows], np.arange(12)[rows], terms=terms)
            for rows in (slice(None), slice(1, None), slice(1))
        ]
        moved.append(np.abs(sums[0] - sums[1] - sums[2]).max())
    assert moved[0] > 2  # ring units
    assert moved[1] <= 2  # three roundings


def test_a_machine_that_rounds_a_row_by_the_size_of_its_group_is_found_out():
    adapted = adapted_tiny("experts")
    assert shapes_for(adapted).rows_of_length
    with products_by_group():
        assert shapes_for(adapted) == ONE_BY_ONE


def test_a_machine_that_rounds_a_row_by_its_place_is_found_out(monkeypatch):
    adapted, linear = adapted_tiny("attention"), torch.nn.functional.linear

    def by_place(x, weight, bias=None):
        out = linear(x, weight, bias)
        if x.ndim == 3 and len(x) > 1:
            out[-1] = linear(x[-1].flip(-1), weight.flip(-1), bias)  # the same, added from behind
        return out

    monkeypatch.setattr(torch.nn.functional, "linear", by_place)
    assert shapes_for(adapted) == ONE_BY_ONE


def plainly(logits, labels):
    return torch.nn.functional.binary_cross_entropy_with_logits(logits, labels.to(logits), reduction="none")


@pytest.mark.parametrize("first", [3, 11])  # of 8, 12, 16 and 24 tokens; of 16 and 24
def test_a_machine_that_rounds_the_last_words_of_a_text_by_the_row_s_place_is_found_out(first, monkeypatch):
    linear = torch.nn.functional.linear

    def by_place(x, weight, bias=None):
        out = linear(x, weight, bias)
        if x.ndim == 3 and len(x) > 1 and x.shape[1] > first:
            out = out.clone()
            out[-1, first:] = linear(x[-1, first:].flip(-1), weight.flip(-1), bias)
        return out

    honest = shapes_for(completing_tiny(), max_records=1, max_tokens=20).rows_of_length
    monkeypatch.setattr(torch.nn.functional, "linear", by_place)
    found = shapes_for(completing_tiny(), max_records=1, max_tokens=20).rows_of_length
    assert {length for length in honest if length > first + 2}.isdisjoint(found)


@pytest.mark.slow
@pytest.mark.parametrize("losses", [record_losses, plainly])
def test_no_bit_of_a_gradient_shows_how_many_rows_are_left_over_behind_the_registers(losses, monkeypatch):
    """Of a sigmoid in one place and another some numbers in a hundred differ: no few probe records show that."""
    monkeypatch.setattr(objectives, "record_losses", losses)
    adapted, rng, units = adapted_tiny("head"), np.random.default_rng(5), 34
    shapes = probed_shapes(adapted, max_tokens=12, max_rows=64, max_records=1)
    assert shapes.rows_of_length, "rows of full registers agree in any case"
    ids, everybody, ones = rng.integers(1, 64, (units, 12)), np.arange(units), np.ones(units, dtype=np.int64)
    for _ in range(12):
        state = rng.normal(size=adapted.layout.dim).astype(np.float32)
        targets = rng.integers(0, 2, units)
        total = clipped(adapted, state, ids, targets, ones, everybody, shapes=shapes)
        for unit in (0, 7, 20):
            without = clipped(adapted, state, ids, targets, ones, np.delete(everybody, unit), shapes=shapes)
            own = clipped(adapted, state, ids, targets, ones, everybody[[unit]], shapes=shapes)
            np.testing.assert_array_equal(total - without, own)


CPU = torch.device("cpu")
KINDS = [
    *((dtype, is_transposed, False) for dtype in (torch.float32, torch.bfloat16) for is_transposed in (False, True)),
    *([(torch.bfloat16, False, True)] if prepacks(torch.bfloat16, CPU) else []),
]


@pytest.mark.parametrize(("dtype", "is_transposed", "is_prepacked"), KINDS)
@pytest.mark.parametrize("inputs", [48, 512])
def test_a_tile_has_its_bits_beside_any_number_of_others(inputs, dtype, is_transposed, is_prepacked):
    """512 inputs are enough for oneDNN to multiply 32 rows in another order than 64."""
    factor = Factor((inputs, 520), is_transposed, dtype, CPU, is_prepacked)
    if dtype == torch.bfloat16 and not tiles_agree(factor):
        pytest.skip("this machine rounds a row by its place in a tile, so sites compute unit by unit")
    weight, rows = products._telling(factor, 11 * TILE)
    plain = weight.dense() if is_prepacked else weight
    tiles, start = rows.view(11, TILE, inputs), (rows @ plain).roll(1, 1).view(11, TILE, 520)

    def computed(some):
        x, added = tiles[some].contiguous(), start[some].clone()
        add_product(added, x, plain, scaling=0.5)
        return product(x, weight, torch.empty_like(added)), added

    whole = computed(slice(None))
    for first, last in [*((number, number + 1) for number in range(11)), (0, 2), (3, 10), (8, 11)]:
        for part, all_of_them in zip(computed(slice(first, last)), whole, strict=True):
            assert torch.equal(part, all_of_them[first:last])
    assert tiles_agree(factor)
    x = torch.randn(11 * TILE, inputs, generator=torch.Generator().manual_seed(1)).to(dtype)
    got, exact = product(x.view(tiles.shape), weight, torch.empty_like(start)), x.double() @ plain.double()
    assert (got.flatten(0, 1) - exact).norm() <= 4 * torch.finfo(dtype).eps * exact.norm()
    add_product(got, x.view(tiles.shape), plain, scaling=0.5)
    assert (got.flatten(0, 1) - 1.5 * exact).norm() <= 4 * torch.finfo(dtype).eps * exact.norm()


def with_more_rows_from_behind(monkeypatch, least):
    exact = torch.mm

    def by_rows(a, b, *, out=None):
        many = len(a) >= least
        found = exact(a.flip(1), b.flip(0)) if many else exact(a, b)
        return found if out is None else out.copy_(found)

    monkeypatch.setattr(products.torch, "mm", by_rows)


def test_a_library_that_adds_many_rows_in_another_order_is_found_out(monkeypatch):
    weight = torch.randn(48, 40)
    with tiles_seen() as seen:
        product(torch.randn(3, TILE, 48), weight, torch.empty(3, TILE, 40))
    [factor] = seen
    if products._way(factor, False, torch.get_num_threads())[:2] != (1, 8):
        pytest.skip("this machine's own library adds many rows in another order")
    assert tiles_agree(factor)
    with_more_rows_from_behind(monkeypatch, 7 * TILE)  # after the trial
    assert not tiles_agree(factor)
    trial = products._way.__wrapped__
    assert trial(factor, False, 1) == (1, 6, False)
    with_more_rows_from_behind(monkeypatch, 3 * TILE)
    way = trial(factor, False, 1)
    assert way.most < 3 or way.is_batch


def test_the_shape_of_a_unit_is_its_own_affair():
    rng = np.random.default_rng(0)
    used = rng.integers(1, 40, 200)
    rows_of_unit = np.split(np.arange(200), np.sort(rng.choice(np.arange(1, 200), 99, replace=False)))
    rows_of_unit = [rows[:4] for rows in rows_of_unit]

    def shape_of(units):
        found = {}
        for batch in microbatches([rows_of_unit[unit] for unit in units], used, SHAPES):
            assert sum(map(len, batch.rows_of_unit)) <= batch.num_rows
            for number, rows in zip(batch.units, batch.rows_of_unit, strict=True):
                assert rows is rows_of_unit[units[number]]
                if used[rows].max() < 32:
                    assert used[rows].max() < batch.length
                    assert batch.num_rows in SHAPES.rows_of_length[batch.length]
                else:  # too long for either
                    assert (batch.num_rows, batch.length) == (len(rows), used[rows].max())
                found[units[number]] = batch.length
        return found

    everybody = shape_of(list(range(100)))
    assert set(everybody) == set(range(100))
    assert {16, 32} < set(everybody.values())
    for units in (range(50), range(1, 100), [3], []):
        assert shape_of(list(units)) == {unit: everybody[unit] for unit in units}


@pytest.mark.parametrize(
    ("longest", "lengths"), [(12, [16]), (16, [8, 12, 16, 24]), (31, [8, 12, 16, 24, 32]), (32, [16, 24, 40])]
)
def test_short_records_have_shorter_shapes_where_few_lengths_are_to_be_tried(longest, lengths):
    assert batches._lengths(longest) == lengths


def test_tokens_that_count_end_at_a_record_s_last_word_or_completion():
    ids = np.array([[4, 5, 0, 0], [4, 5, 6, 7], [0, 0, 0, 0]])
    assert used_tokens(ids, np.array([0, 1, 0])).tolist() == [2, 4, 1]
    is_completion = np.array([[False, True, False, False], [False, True, True, False], [False] * 4])
    assert used_tokens(ids, is_completion).tolist() == [2, 3, 1]
    assert used_tokens(ids[:0], np.zeros(0)).tolist() == []
    behind = np.array([[9, 0, 0, 2], [9, 0, 0, 0], [0, 0, 0, 0]])  # a head reads a record to its end, text or not
    assert used_tokens(ids, behind).tolist() == [4, 4, 1]


@pytest.mark.parametrize("clip_norm", [1e-6, 0.3, 1.0, 1.5, 1e6])
def test_the_grid_holds_as_many_units_as_a_step_may_have(clip_norm):
    assert clip_norm / grid_of(clip_norm) * clipping.MAX_UNITS <= 2**53
    assert clip_norm / grid_of(clip_norm) >= 2**31


def test_a_table_of_more_units_than_an_exact_sum_holds_is_refused(monkeypatch):
    adapted = adapted_tiny("head")
    monkeypatch.setattr(site_round, "MAX_UNITS", 3)
    ids = np.ones((4, 3), dtype=np.int64)
    private_release(adapted, ids[:3], np.zeros(3), range(3), terms=replace(TERMS, clip_norm=C))
    with pytest.raises(BatchMalformed, match="at most"):
        private_release(adapted, ids, np.zeros(4), range(4), terms=replace(TERMS, clip_norm=C))


def test_a_worker_that_computes_in_other_shapes_is_refused():
    adapted = adapted_tiny("head")
    ids, targets, sizes = records(adapted, 3)
    part = SumPart(state=adapted.state(), ids=ids, targets=targets, sizes=sizes, passes=0, shapes=str(ONE_BY_ONE))
    with pytest.raises(BatchMalformed, match="make workers alike"):
        partial_sum(adapted, part, terms=TERMS, shapes=SHAPES)


def test_of_layers_that_are_made_alike_one_is_tried_and_all_are_put_back():
    adapted = adapted_tiny("attention")
    layers = adapted.model.model.layers
    twice = torch.nn.ModuleList([*layers, copy.deepcopy(layers[1])])
    adapted.model.model.layers = twice
    with batches._one_layer_of_each_kind(adapted):
        assert list(adapted.model.model.layers) == list(layers)  # one dense, one with experts
    assert adapted.model.model.layers is twice


def test_layers_that_are_made_alike_and_attend_to_other_tokens_are_of_two_kinds():
    """The model looks up by a layer's place what it attends to, so the places are told anew."""
    kinds = ["full_attention", "full_attention", "sliding_attention", "full_attention", "sliding_attention"]
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_key_value_heads": 2}
    config = Qwen2Config(
        **sizes, num_hidden_layers=5, layer_types=kinds, use_sliding_window=True, sliding_window=4, vocab_size=16
    )
    adapted = attach(Qwen2ForCausalLM(config), AdapterConfig(rank=1, alpha=1.0, targets=("o_proj",), seed="x"))
    layers = list(adapted.model.model.layers)
    ids = torch.ones(2, 9, dtype=torch.long)
    whole = adapted.model(ids, use_cache=False).logits
    with batches._one_layer_of_each_kind(adapted):
        assert list(adapted.model.model.layers) == [layers[0], layers[2]]
        assert adapted.model.config.layer_types == ["full_attention", "sliding_attention"]
        adapted.model(ids, use_cache=False)
    assert adapted.model.config.layer_types == kinds
    assert torch.equal(adapted.model(ids, use_cache=False).logits, whole)


def test_layers_whose_packed_weights_differ_are_all_tried():
    adapted = adapted_tiny("attention", base=packed_tiny(Int8Row))
    layers = adapted.model.model.layers
    alike, other = copy.deepcopy(layers[1]), copy.deepcopy(layers[1])
    wide = QuantisedLinear(32, 24)
    wide.fill(NF4Block64.quantised([torch.ones(24, 32)]))
    other.mlp.shared_experts.up_proj = wide
    adapted.model.model.layers = torch.nn.ModuleList([*layers, alike, other])
    with batches._one_layer_of_each_kind(adapted):
        assert list(adapted.model.model.layers) == [*layers, other]


def test_a_machine_that_rounds_a_packed_row_by_its_place_is_found_out(monkeypatch):
    adapted = adapted_tiny("attention", base=packed_tiny(Int8Row))
    assert shapes_for(adapted).rows_of_length
    linear = PackedMatrix.linear

    def by_place(self, x, bias=None):
        out = linear(self, x, bias)
        if len(x) > 32:
            out[-12:] = linear(self, x[-12:] * (1 + 2**-20), bias)
        return out

    monkeypatch.setattr(PackedMatrix, "linear", by_place)
    assert shapes_for(adapted) == ONE_BY_ONE
