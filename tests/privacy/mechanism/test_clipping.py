"""The contract of the engine, line by line, and where each line is tested.

1.  The clipped sum is that of a loop over units, for every kind of target: `..._is_that_of_a_loop_over_units`,
    `..._equals_a_loop_in_bfloat16`.
2.  No unit adds more than clip_norm, and its coming or leaving moves the sum by no more:
    `test_no_unit_exceeds_the_bound`, `test_another_unit_moves_the_sum_by_at_most_the_bound`.
3.  The loss is a sum over units of terms of each unit alone: `test_independence`.
4.  A unit lies in one microbatch: `test_unit_of_several_rows_is_clipped_as_one`,
    `test_unit_in_two_microbatches_is_refused`.
5.  Noise is added once a logical batch, and the sum divided by the expected number of units: `test_optimizer`.
6.  An empty batch is a counted step: `test_empty_batch_sums_to_zero`, `test_optimizer`, `test_steps`.
7.  Nothing trainable bypasses the clipper: `test_trainable_parameter_out_of_reach_is_named` and the refusals after it.
8.  A unit that is not finite is dropped: `test_unit_that_is_not_finite_is_dropped_and_does_not_spread`.
9.  Padding, rows without targets, crowded and idle experts: `test_padding_is_inert` and the three tests after it.
10. Checkpointing changes nothing: `test_gradient_checkpointing_gives_the_same_sum`.
11. Nothing mixes rows: `test_independence`.
12. Figures of single units stay inside: `test_report_does_not_show_its_figures`,
    `test_step_prints_and_logs_nothing_about_units`.
"""

import itertools
import logging

import numpy as np
import pytest
import torch

from confide.kernels.errors import CaptureClosed, TokensMiscounted
from confide.kernels.formats import FROZEN_FORMATS, Int8Row, NF4Block64
from confide.kernels.install import quantise
from confide.privacy.errors import ClipperMisused, InvalidPrivacyParameter, UnitRepeated, UnprotectedGradient
from confide.privacy.mechanism.clipping import PerUnitClipper, grid_of

from ...models.tiny import random_ids, tiny_deepseek
from ..loops import (
    DTYPES,
    TARGETS,
    adapted_tiny,
    clipped_loop,
    labels_for,
    norm_of,
    packed_tiny,
    row_losses,
    unit_loss,
    unpacked_tiny,
)

LENGTH, C = 12, 0.05
TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-11}


def clipped(adapted, ids, units, *, labels=None, clip_norm=C, clipper=None):
    clipper, units = clipper or PerUnitClipper(adapted), np.asarray(units)
    labels = labels_for(len(ids)) if labels is None else labels
    with clipper.microbatch(units, ids.shape[1]):
        unit_loss(adapted, ids, labels, units).backward()
    return clipper.clipped_sum(clip_norm)


def assert_close(got, want, tolerance):
    """Each tensor within the tolerance of its own largest entry: a wrong small one must not hide behind a large one."""
    assert got.keys() == want.keys()
    for name in want:
        gap = float((got[name] - want[name]).abs().max()) / float(want[name].abs().max())
        assert gap < tolerance, (name, gap)


@pytest.mark.usefixtures("bare_clip")
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("freeze_a", [True, False])
@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.slow
def test_clipped_sum_is_that_of_a_loop_over_units(targets, freeze_a, dtype):
    adapted, ids = adapted_tiny(targets, freeze_a=freeze_a, dtype=dtype), random_ids(6)
    units = np.array([3, 0, 9, 5, 1, 7])
    norms = clipped_loop(adapted, ids, labels_for(6), units, 1.0)[1]
    clip_norm = float(norms.median())  # bites for half of the units
    want, _ = clipped_loop(adapted, ids, labels_for(6), units, clip_norm)
    got, report = clipped(adapted, ids, units, clip_norm=clip_norm)
    torch.testing.assert_close(report.norms, norms, rtol=TOLERANCE[dtype] * 10, atol=0)
    assert 0 < (report.factors < 1).sum() < 6
    assert_close(got, want, TOLERANCE[dtype])


@pytest.mark.usefixtures("bare_clip")
@pytest.mark.slow
@pytest.mark.parametrize("trained_rank", [1, 3, 4])
@pytest.mark.parametrize("targets", TARGETS)
def test_a_smaller_rank_is_clipped_over_what_it_trains(targets, trained_rank):
    adapted, ids, units = adapted_tiny(targets, dtype=torch.float64), random_ids(6), np.array([3, 0, 9, 5, 1, 7])
    norms = clipped_loop(adapted, ids, labels_for(6), units, 1.0, trained_rank=trained_rank)[1]
    clip_norm = float(norms.median())
    want, _ = clipped_loop(adapted, ids, labels_for(6), units, clip_norm, trained_rank=trained_rank)
    got, report = clipped(
        adapted, ids, units, clip_norm=clip_norm, clipper=PerUnitClipper(adapted, trained_rank=trained_rank)
    )
    torch.testing.assert_close(report.norms, norms, rtol=1e-10, atol=0)
    assert_close(got, want, TOLERANCE[torch.float64])
    for name, total in got.items():
        assert not name.endswith("lora_B") or (total[..., :trained_rank].any() and not total[..., trained_rank:].any())


@pytest.mark.parametrize(("trained_rank", "freeze_a"), [(0, True), (5, True), (2, False)])
def test_a_rank_that_is_not_there_or_a_trained_a_is_refused(trained_rank, freeze_a):
    with pytest.raises(InvalidPrivacyParameter, match="trained_rank must be from 1 to 4, with A frozen"):
        PerUnitClipper(adapted_tiny(freeze_a=freeze_a), trained_rank=trained_rank)


@pytest.mark.usefixtures("bare_clip")
@pytest.mark.parametrize("form", FROZEN_FORMATS)
@pytest.mark.parametrize("targets", ["attention", "all", "all, causal"])
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_clipped_sum_on_packed_layers_is_a_loop_over_units_on_what_their_codes_stand_for(form, targets, dtype):
    """Adapted layers are packed, and those between them."""
    packed = packed_tiny(form, dtype=dtype)
    plain = adapted_tiny(targets, freeze_a=False, base=unpacked_tiny(packed, dtype=dtype), dtype=dtype)
    adapted, ids = adapted_tiny(targets, freeze_a=False, base=packed, dtype=dtype), random_ids(5)
    units = np.array([0, 1, 1, 2, 3])
    want, norms = clipped_loop(plain, ids, labels_for(5), units, C)
    got, report = clipped(adapted, ids, units)
    assert bool((report.factors < 1).any())
    assert_close(got, want, TOLERANCE[dtype])
    torch.testing.assert_close(report.norms, norms, rtol=TOLERANCE[dtype], atol=0)


@pytest.mark.parametrize("form", [Int8Row, NF4Block64])
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_step_on_quantised_experts_is_that_on_what_their_codes_stand_for(form, dtype):
    packed, dense = tiny_deepseek(dtype=dtype), tiny_deepseek(dtype=dtype)
    quantise(packed, form.quantised)
    bank, codes = dense.model.layers[1].mlp.experts, packed.model.layers[1].mlp.experts.confide_experts
    bank.gate_up_proj.data, bank.down_proj.data = codes.gate_up.dense(), codes.down.dense()
    ids, units, states = random_ids(6), np.array([3, 0, 9, 5, 1, 7]), []
    for model in (packed, dense):
        adapted = adapted_tiny(base=model, dtype=dtype)
        total, report = clipped(adapted, ids, units)
        assert bool((report.factors < 1).any())
        optimizer = torch.optim.SGD(list(adapted.trained.values()), lr=1.0)
        for name, parameter in adapted.trained.items():
            parameter.grad = total[name].to(parameter)
        optimizer.step()
        states.append((total, adapted.classify(ids)))
    (got, got_logits), (want, want_logits) = states
    assert_close(got, want, TOLERANCE[dtype])
    torch.testing.assert_close(got_logits, want_logits, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.slow
def test_clipped_sum_equals_a_loop_in_bfloat16(targets):
    """With the backbone in bfloat16 and adapters in float32; a matrix product rounds to 8 bits, the norms do not."""
    adapted, ids = adapted_tiny(targets, freeze_a=False, dtype=torch.bfloat16), random_ids(3)
    assert {p.dtype for p in adapted.trained.values()} == {torch.float32}
    want, norms = clipped_loop(adapted, ids, labels_for(3), np.arange(3), C, as_it_is=True)
    got, report = clipped(adapted, ids, range(3))
    torch.testing.assert_close(report.norms, norms, rtol=2**-6, atol=0)
    assert norm_of({name: got[name] - want[name] for name in want}) < 2**-5 * norm_of(want)
    for row in range(3):
        assert norm_of(clipped(adapted, ids[row : row + 1], [row])[0]) <= C


@pytest.mark.usefixtures("bare_clip")
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize(("length", "rank"), [(3, 16), (48, 4)])  # short runs of high rank are kept as factors
def test_unit_of_several_rows_is_clipped_as_one(length, rank, dtype):
    adapted, ids = adapted_tiny(freeze_a=False, dtype=dtype, rank=rank), random_ids(7, length)
    units = np.array([2, 8, 2, 2, 5, 8, 1])
    want, norms = clipped_loop(adapted, ids, labels_for(7), units, C)
    got, report = clipped(adapted, ids, units)
    torch.testing.assert_close(report.norms, norms, rtol=TOLERANCE[dtype] * 10, atol=0)
    assert_close(got, want, TOLERANCE[dtype])


@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize(("experts", "rank"), [(4, 4), (16, 16)])  # 16: runs shorter than the rank
@pytest.mark.slow
def test_no_unit_exceeds_the_bound(targets, experts, rank):
    adapted, ids = adapted_tiny(targets, freeze_a=False, experts=experts, rank=rank), random_ids(3)
    for row, clip_norm in itertools.product(range(3), (1e-6, 0.05, 1e3)):
        total, report = clipped(adapted, ids[row : row + 1], [row], clip_norm=clip_norm)
        assert norm_of(total) <= clip_norm  # in a batch of one the sum is that unit's contribution
        cut = grid_of(clip_norm) * adapted.layout.dim**0.5
        assert norm_of(total) == pytest.approx(min(clip_norm, float(report.norms[0])), rel=1e-7, abs=cut)


@pytest.mark.parametrize("targets", TARGETS)
def test_another_unit_moves_the_sum_by_at_most_the_bound(targets):
    adapted, ids = adapted_tiny(targets, freeze_a=False, dtype=torch.float64), random_ids(6)
    units, labels = np.array([0, 1, 2, 3, 3, 4]), labels_for(6)
    with_it, report = clipped(adapted, ids, units, labels=labels, clip_norm=1e-3)
    assert (report.norms > 1e-3).all()
    for unit in (0, 3):  # of one row and of two
        own = units != unit
        without, _ = clipped(adapted, ids[own], units[own], labels=labels[own], clip_norm=1e-3)
        moved = norm_of({name: with_it[name] - without[name] for name in with_it})
        assert 1e-3 * (1 - 1e-7) < moved <= 1e-3  # the whole bound, as it was clipped, and no more


def test_without_a_bound_the_sum_is_the_plain_gradient():
    adapted, ids = adapted_tiny(freeze_a=False, dtype=torch.float64), random_ids(4)
    loss = unit_loss(adapted, ids, labels_for(4), np.arange(4))
    want = dict(zip(adapted.trained, torch.autograd.grad(loss, list(adapted.trained.values())), strict=True))
    got, report = clipped(adapted, ids, range(4), clip_norm=None)
    assert_close(got, want, 1e-11)
    assert torch.equal(report.factors, torch.ones(4, dtype=torch.float64))


@pytest.mark.usefixtures("bare_clip")
@pytest.mark.parametrize("targets", ["all", "all, causal"])
def test_padding_is_inert(targets):
    adapted, ids = adapted_tiny(targets, freeze_a=False, dtype=torch.float64), random_ids(4)
    ids[0, 7:], ids[2, 4:] = 0, 0
    want, _ = clipped_loop(adapted, ids, labels_for(4), np.arange(4), C)
    wider = torch.cat([ids, torch.zeros(4, 5, dtype=torch.int64)], dim=1)
    for padded in (ids, wider):
        assert_close(clipped(adapted, padded, range(4))[0], want, 1e-11)


def test_row_without_targets_contributes_exactly_zero():
    adapted, ids = adapted_tiny("all, causal", freeze_a=False), random_ids(3)
    ids[1, 1:] = 0  # one token, and nothing to predict
    _, report = clipped(adapted, ids, range(3))
    assert report.norms[1] == 0
    assert (report.norms[[0, 2]] > 0).all()


def test_unit_whose_loss_is_constant_contributes_exactly_zero():
    adapted, ids = adapted_tiny(), random_ids(3)
    clipper = PerUnitClipper(adapted)
    with clipper.microbatch(range(3), LENGTH):
        (adapted.classify(ids) * torch.tensor([1.0, 0.0, 1.0])).sum().backward()
    _, report = clipper.clipped_sum(C)
    assert report.norms[1] == 0
    assert report.norms[0] > 0


def test_all_tokens_on_one_pair_of_experts():
    adapted, ids = adapted_tiny("experts"), random_ids(4)
    for module in adapted.modules():
        if hasattr(module, "e_score_correction_bias"):
            module.e_score_correction_bias.copy_(torch.tensor([10.0, 9.0, 0.0, 0.0]))
    want, _ = clipped_loop(adapted, ids, labels_for(4), np.arange(4), C)
    got, _ = clipped(adapted, ids, range(4))
    assert_close(got, want, 2e-5)
    down = got["model.layers.1.mlp.experts.down_proj.lora_B"]
    assert down[:2].any()
    assert not down[2:].any()


def test_empty_batch_sums_to_zero():
    adapted = adapted_tiny()
    total, report = PerUnitClipper(adapted).clipped_sum(C)
    assert list(total) == list(adapted.layout.names)
    assert not any(t.any() for t in total.values())
    assert report.norms.numel() == 0


@pytest.mark.parametrize("targets", ["all", "all, causal"])
@pytest.mark.parametrize("freeze_a", [True, False])
def test_gradient_checkpointing_gives_the_same_sum(freeze_a, targets):
    adapted, ids = adapted_tiny(targets, freeze_a=freeze_a, dtype=torch.float64), random_ids(4)
    want, _ = clipped(adapted, ids, range(4))
    adapted.train()
    adapted.model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    runs = []
    adapted.adapters["model.layers.0.self_attn.o_proj"].register_forward_hook(lambda *_: runs.append(1))
    got, _ = clipped(adapted, ids, range(4))
    assert len(runs) == 2  # it was really computed again
    assert_close(got, want, 1e-11)


@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("poison", [torch.inf, torch.nan])
def test_unit_that_is_not_finite_is_dropped_and_does_not_spread(targets, poison):
    adapted, ids = adapted_tiny(targets, freeze_a=False), random_ids(3)
    clipper = PerUnitClipper(adapted)
    with clipper.microbatch(range(3), LENGTH):
        (row_losses(adapted, ids, labels_for(3)) * torch.tensor([1.0, poison, 1.0])).sum().backward()
    got, report = clipper.clipped_sum(C)
    with clipper.microbatch([10, 12], LENGTH):
        row_losses(adapted, ids[[0, 2]], torch.zeros(2)).sum().backward()
    want, _ = clipper.clipped_sum(C)
    assert report.factors.tolist()[1] == 0
    assert_close(got, want, 2e-5)


def test_unit_in_two_microbatches_is_refused():
    adapted, ids = adapted_tiny(), random_ids(2)
    clipper = PerUnitClipper(adapted)
    clipped(adapted, ids, [0, 1], clipper=clipper)
    with pytest.raises(UnitRepeated), clipper.microbatch([1, 2], LENGTH):
        pass
    clipper.start_step()
    clipped(adapted, ids, [0, 1], clipper=clipper)


@pytest.mark.parametrize("name", ["model.lm_head.weight", "model.model.layers.0.self_attn.o_proj.lora_A"])
def test_trainable_parameter_out_of_reach_is_named(name):
    adapted = adapted_tiny()
    adapted.get_parameter(name).requires_grad_(True)
    with pytest.raises(UnprotectedGradient, match=name):
        PerUnitClipper(adapted)


def test_backward_outside_the_microbatch_is_refused():
    adapted, ids = adapted_tiny(), random_ids(2)
    clipper = PerUnitClipper(adapted)
    adapted.classify(ids).sum().backward()
    with pytest.raises(UnprotectedGradient, match="outside a microbatch"):
        clipper.clipped_sum(C)
    with pytest.raises(UnprotectedGradient, match="outside a microbatch"), clipper.microbatch([0, 1], LENGTH):
        pass


def test_forward_outside_the_microbatch_is_refused():
    adapted, ids = adapted_tiny(), random_ids(2)
    clipper = PerUnitClipper(adapted)
    loss = adapted.classify(ids).sum()
    with pytest.raises(UnprotectedGradient), clipper.microbatch([0, 1], LENGTH):
        loss.backward()


def test_backward_after_the_microbatch_is_refused():
    adapted, ids = adapted_tiny(), random_ids(2)
    clipper = PerUnitClipper(adapted)
    with pytest.raises(ClipperMisused, match="no adapter was reached"), clipper.microbatch([0, 1], LENGTH):
        loss = adapted.classify(ids).sum()
    with pytest.raises(CaptureClosed):
        loss.backward()


def test_two_backwards_without_clipping_between_are_refused():
    adapted, ids = adapted_tiny(), random_ids(2)
    clipper = PerUnitClipper(adapted)
    with clipper.microbatch([0, 1], LENGTH):
        adapted.classify(ids).sum().backward()
    with pytest.raises(ClipperMisused, match="not clipped"), clipper.microbatch([2, 3], LENGTH):
        pass


def test_clipping_inside_the_microbatch_is_refused():
    clipper = PerUnitClipper(adapted_tiny())
    with pytest.raises(ClipperMisused, match="after leaving"), clipper.microbatch([0], LENGTH):
        clipper.clipped_sum(C)


def test_wrong_row_length_is_refused():
    adapted, ids = adapted_tiny("attention"), random_ids(2)
    clipper = PerUnitClipper(adapted)
    with pytest.raises(TokensMiscounted), clipper.microbatch([0, 1], LENGTH + 1):
        adapted.classify(ids).sum().backward()


def test_error_inside_the_microbatch_leaves_the_model_usable():
    adapted, ids = adapted_tiny(), random_ids(2)
    clipper = PerUnitClipper(adapted)
    with pytest.raises(ZeroDivisionError), clipper.microbatch([0, 1], LENGTH):
        1 / 0  # noqa: B018
    assert adapted.slot.collector is None
    clipped(adapted, ids, [0, 1], clipper=clipper)


@pytest.mark.parametrize("clip_norm", [0.0, -1.0, float("nan"), float("inf")])
def test_bound_out_of_range_is_refused(clip_norm):
    with pytest.raises(InvalidPrivacyParameter):
        PerUnitClipper(adapted_tiny()).clipped_sum(clip_norm)


def test_report_does_not_show_its_figures():
    adapted = adapted_tiny()
    _, report = clipped(adapted, random_ids(2), [0, 1])
    assert repr(report) == "ClipReport()"


def test_step_prints_and_logs_nothing_about_units(caplog, capfd):
    adapted = adapted_tiny()
    with caplog.at_level(logging.DEBUG):
        clipped(adapted, random_ids(2), [0, 1])
    assert (caplog.text, capfd.readouterr()) == ("", ("", ""))
