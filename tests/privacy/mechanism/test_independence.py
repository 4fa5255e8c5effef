import copy
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from confide.kernels.formats import FROZEN_FORMATS, Int8Row
from confide.kernels.linear import PackedMatrix, QuantisedLinear
from confide.models.adapters.lora import AdaptedModel, AdapterConfig, attach
from confide.models.heads.losses import record_losses
from confide.models.heads.pooling import PooledHead
from confide.privacy.errors import TargetUnreached, UnitsCoupled
from confide.privacy.mechanism.clipping import PerUnitClipper
from confide.privacy.mechanism.independence import (
    refuse_coupled_loss,
    refuse_coupled_modules,
    refuse_dependence,
    refuse_mixing,
    refuse_moving_gradients,
)

from ...models.tiny import VOCABULARY, tiny_deepseek
from ..loops import (
    CAUSAL,
    DTYPES,
    TARGETS,
    adapted_tiny,
    completing_tiny,
    labels_for,
    packed_tiny,
    row_losses,
    writing_tiny,
)

NORM = "model.layers.0.post_attention_layernorm"
EXPERTS = "model.layers.1.mlp.experts"


def put_after(adapted, name, module):
    """The adapted backbone with `module` behind the module `name`."""
    parent, _, leaf = name.rpartition(".")
    owner = adapted.model.get_submodule(parent)
    setattr(owner, leaf, nn.Sequential(getattr(owner, leaf), module))
    return adapted


def mixing(adapted, run=None):
    refuse_mixing(adapted, run or adapted.classify, words=VOCABULARY)


@pytest.mark.parametrize("dtype", [*DTYPES.values(), torch.bfloat16], ids=[*DTYPES, "bfloat16"])
def test_the_true_model_and_loss_pass(dtype):
    refuse_dependence(adapted_tiny(freeze_a=False, dtype=dtype), words=VOCABULARY)


@pytest.mark.parametrize("targets", CAUSAL)
def test_the_true_causal_model_passes(targets):
    adapted = adapted_tiny(targets)
    refuse_coupled_modules(adapted)
    mixing(adapted, lambda ids: adapted.model(input_ids=ids, attention_mask=(ids > 0).long()).logits)
    refuse_moving_gradients(adapted, lambda ids: row_losses(adapted, ids, labels_for(len(ids))), words=VOCABULARY)


def test_model_is_left_as_it_was():
    adapted = adapted_tiny()
    adapted.model.model.layers[0].train()
    before, modes = copy.deepcopy(adapted.state_dict()), [module.training for module in adapted.modules()]
    refuse_dependence(adapted, words=VOCABULARY)
    assert all(torch.equal(tensor, before[name]) for name, tensor in adapted.state_dict().items())
    assert [module.training for module in adapted.modules()] == modes
    assert adapted.slot.collector is None
    assert all(not module._forward_hooks for module in adapted.modules())
    PerUnitClipper(adapted).clipped_sum(1.0)  # no gradient was left behind


@pytest.mark.parametrize(
    "module",
    [nn.BatchNorm1d(12), nn.SyncBatchNorm(12), nn.LazyBatchNorm1d(), nn.InstanceNorm1d(12, track_running_stats=True)],
    ids=lambda module: type(module).__name__,
)
def test_norm_with_statistics_of_a_batch_is_named(module):
    adapted = put_after(adapted_tiny(), NORM, module)
    with pytest.raises(UnitsCoupled, match=rf"{NORM}\.1 is a {type(module).__name__}"):
        refuse_coupled_modules(adapted)


@pytest.mark.parametrize("module", [nn.Dropout(0.5), nn.LayerNorm(32)], ids=str)
def test_module_that_keeps_rows_apart_passes(module):
    adapted = put_after(adapted_tiny(), NORM, module)
    refuse_coupled_modules(adapted)
    mixing(adapted)


class FP8Linear(nn.Linear):
    def forward(self, x):
        step = x.abs().max() / 8
        return super().forward((x / step).round() * step)


class PackedLinear(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("codes", torch.zeros(32, 32, dtype=torch.int8))


class Float8Weight(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(32, 32).to(torch.float8_e4m3fn), requires_grad=False)


@pytest.mark.parametrize(
    ("module", "why"),
    [
        (FP8Linear(32, 32), "1 is a FP8Linear, which does more than Linear"),
        (PackedLinear(), "1.codes is stored as torch.int8"),
        (Float8Weight(), "1.weight is stored as torch.float8_e4m3fn"),
        (nn.Embedding(4, 4, max_norm=1.0), "1 rescales its table"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_module_that_may_scale_by_a_batch_is_named(module, why):
    with pytest.raises(UnitsCoupled, match=rf"{NORM}\.{why}"):
        refuse_coupled_modules(put_after(adapted_tiny(), NORM, module))


@pytest.mark.parametrize("form", FROZEN_FORMATS)
def test_our_own_packed_layers_pass(form):
    refuse_dependence(adapted_tiny(base=packed_tiny(form)), words=VOCABULARY)


class ScaledByTheBatch(QuantisedLinear):
    def forward(self, x):
        step = x.abs().max() / 8
        return super().forward((x / step).round() * step)


@dataclass
class OtherFormat:
    shape: tuple[int, ...] = (1, 32, 32)


def test_packed_layer_that_is_not_ours_is_named():
    adapted = adapted_tiny(base=packed_tiny(Int8Row))
    other = ScaledByTheBatch(32, 32)
    other.fill(Int8Row.quantised([torch.ones(32, 32)]))
    with pytest.raises(UnitsCoupled, match=r"1 is a ScaledByTheBatch, which does more than QuantisedLinear"):
        refuse_coupled_modules(put_after(adapted, NORM, other))
    adapted.model.model.layers[0].self_attn.o_proj.base.weight = PackedMatrix(OtherFormat())
    with pytest.raises(UnitsCoupled, match=r"o_proj.base is packed as OtherFormat"):
        refuse_coupled_modules(adapted)


def test_dynamically_quantised_layer_is_named():
    quantised = type("Linear", (nn.Module,), {"__module__": "torch.ao.nn.quantized.dynamic.modules.linear"})()
    with pytest.raises(UnitsCoupled, match=r"is a torch.ao.nn.quantized.dynamic.modules.linear.Linear"):
        refuse_coupled_modules(put_after(adapted_tiny(), NORM, quantised))


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("output_router_logits", True),
        ("capacity_factor", 1.25),
        ("bias_update_speed", 0.001),
    ],
)
def test_setting_that_ties_tokens_together_is_named(setting, value):
    adapted = adapted_tiny()
    setattr(adapted.model.config, setting, type(value)(0))
    refuse_coupled_modules(adapted)
    setattr(adapted.model.config, setting, value)
    with pytest.raises(UnitsCoupled, match=f"DeepseekV3Config.{setting} is {value}"):
        refuse_coupled_modules(adapted)


def test_angles_that_follow_the_longest_row_are_refused():
    adapted = adapted_tiny()
    adapted.model.config.rope_parameters = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    with pytest.raises(UnitsCoupled, match="rope_type 'dynamic'"):
        refuse_coupled_modules(adapted)


def test_longrope_with_equal_factors_has_one_set_of_angles():
    adapted = adapted_tiny()
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0, 2.0], "long_factor": [1.0, 2.0]}
    adapted.model.config.rope_parameters = rope
    refuse_coupled_modules(adapted)
    adapted.model.config.rope_parameters = rope | {"long_factor": [1.0, 4.0]}
    with pytest.raises(UnitsCoupled, match="rope_type 'longrope'"):
        refuse_coupled_modules(adapted)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_the_true_model_that_writes_completions_passes(dtype):
    refuse_dependence(completing_tiny(dtype=dtype), words=VOCABULARY)


@pytest.mark.parametrize("leak", ["PerTensorScale", "LeaksForward", "LeaksBackward"])
def test_a_model_that_writes_behind_what_its_head_reads_passes_unless_it_mixes_rows(leak):
    adapted = writing_tiny(reads=(0, 1))
    refuse_dependence(adapted, words=VOCABULARY)
    with pytest.raises(UnitsCoupled, match="mixes rows"):
        refuse_dependence(put_after(adapted, "model.norm", globals()[leak]()), words=VOCABULARY)  # none the head reads


@pytest.mark.parametrize("leak", ["PerTensorScale", "LeaksForward", "LeaksBackward"])
def test_a_model_that_writes_completions_and_mixes_rows_is_refused(leak):
    with pytest.raises(UnitsCoupled, match="mixes rows"):
        refuse_dependence(put_after(completing_tiny(), NORM, globals()[leak]()), words=VOCABULARY)


def test_a_loss_on_completions_that_is_a_mean_over_rows_is_refused(monkeypatch):
    adapted, by_row = completing_tiny(), AdaptedModel.losses
    monkeypatch.setattr(AdaptedModel, "losses", lambda self, ids, *more: by_row(self, ids, *more) / len(ids))
    with pytest.raises(UnitsCoupled):
        refuse_dependence(adapted, words=VOCABULARY)


class PerTensorScale(nn.Module):
    def forward(self, x):
        step = x.abs().max() / 8
        return (x / step).round() * step


class LeaksForward(nn.Module):  # the last row alone hears of the others
    def forward(self, x):
        return torch.cat([x[:-1], x[-1:] + 0.01 * x[:-1].sum(0)])


class LeaksBackward(nn.Module):  # the first row alone hears of the others
    def forward(self, x):
        return torch.cat([x[:1] + 0.01 * x[1:].sum(0), x[1:]])


@pytest.mark.parametrize(
    "module", [PerTensorScale(), LeaksForward(), LeaksBackward()], ids=lambda module: type(module).__name__
)
def test_first_module_whose_row_moves_is_named(module):
    adapted = put_after(adapted_tiny(), NORM, module)
    refuse_coupled_modules(adapted)  # nothing known about it
    with pytest.raises(UnitsCoupled, match=rf"model\.{NORM}\.1 mixes rows"):
        mixing(adapted)


def test_batch_norm_is_found_by_its_behaviour_too():
    with pytest.raises(UnitsCoupled, match=rf"model\.{NORM}\.1"):
        mixing(put_after(adapted_tiny(), NORM, nn.BatchNorm1d(12 - 5, track_running_stats=False)))


class Capacity(nn.Module):
    """A bank that drops the tokens an expert has no room for."""

    def __init__(self, bank, room):
        super().__init__()
        self.bank, self.room = bank, room

    def forward(self, hidden, ids, weights):
        place = F.one_hot(ids.flatten(), 4).cumsum(0).gather(1, ids.reshape(-1, 1)).view_as(ids)
        return self.bank(hidden, ids, weights * (place <= self.room))


def test_expert_without_room_for_all_tokens_is_named():
    adapted = adapted_tiny()
    mlp = adapted.model.model.layers[1].mlp
    mlp.experts = Capacity(mlp.experts, room=1000)
    mixing(adapted)
    mlp.experts.room = 7  # enough for the 7 tokens of one row, whatever experts they choose
    with pytest.raises(UnitsCoupled, match=rf"model\.{EXPERTS} mixes rows"):
        mixing(adapted)


class SelfBalancing(nn.Module):
    """A router that moves its bias towards idle experts, in training only."""

    def __init__(self, router, name):
        super().__init__()
        self.router, self.name = router, name
        self.load = torch.zeros(4)

    @property
    def base(self):
        return self.router.base

    def forward(self, hidden):
        logits, weights, ids = self.router(hidden)
        if self.training:
            load = torch.bincount(ids.flatten(), minlength=4).float()
            {"load": self.load, "bias": self.router.base.e_score_correction_bias}[self.name].add_(load.mean() - load)
        return logits, weights, ids


@pytest.mark.parametrize(
    ("held", "name"), [("bias", r"gate\.router\.base\.e_score_correction_bias"), ("load", r"gate\.load")]
)
def test_state_that_training_overwrites_is_named_and_restored(held, name):
    adapted = adapted_tiny()
    mlp = adapted.model.model.layers[1].mlp
    mlp.gate = SelfBalancing(mlp.gate, held)
    with pytest.raises(UnitsCoupled, match=name + " is overwritten"):
        mixing(adapted)
    assert not mlp.gate.router.base.e_score_correction_bias.any()
    assert not mlp.gate.load.any()


class ScaledByLength(nn.Module):
    def forward(self, x):
        return x / x.shape[1]


def test_result_that_depends_on_the_longest_row_is_refused():
    with pytest.raises(UnitsCoupled, match="a longer row is beside it"):
        mixing(put_after(adapted_tiny(), NORM, ScaledByLength()))


class LeakyGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, hears):
        ctx.hears = hears
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        leaked = grad.clone()
        leaked[ctx.hears] += 0.1 * grad.mean(0)
        return leaked, None


class MixesInBackward(nn.Module):
    def __init__(self, hears):
        super().__init__()
        self.hears = hears

    def forward(self, x):
        return LeakyGradient.apply(x, self.hears)


@pytest.mark.parametrize("hears", [0, -1])
def test_backward_that_mixes_rows_is_found_though_forward_does_not(hears):
    adapted = put_after(adapted_tiny(), NORM, MixesInBackward(hears))
    mixing(adapted)
    with pytest.raises(UnitsCoupled, match="for one record moves when other rows are"):
        refuse_moving_gradients(
            adapted, lambda ids: record_losses(adapted.classify(ids), labels_for(len(ids))), words=VOCABULARY
        )


def test_model_whose_result_has_no_rows_is_refused():
    adapted = adapted_tiny()
    with pytest.raises(UnitsCoupled, match="no result can be told a row's"):
        mixing(adapted, lambda ids: adapted.classify(ids).sum())


@pytest.mark.parametrize("lengths", [(), (1,), (7, 0)])
def test_a_family_without_a_probe_that_shows_anything_is_refused(lengths):
    """Else a backbone that forgets its lengths would pass unseen."""
    with pytest.raises(UnitsCoupled, match="show nothing"):
        refuse_dependence(adapted_tiny(), words=VOCABULARY, lengths=lengths)


def test_target_that_the_loss_does_not_reach_is_named():
    config = AdapterConfig(rank=4, alpha=4.0, targets=("o_proj", "lm_head"), seed="s")
    adapted = attach(tiny_deepseek(), config, PooledHead(torch.zeros(64), torch.eye(64)))
    with pytest.raises(TargetUnreached, match=r"does not depend on lm_head\.lora_B: "):
        refuse_dependence(adapted, words=VOCABULARY)


def token_terms(logits, labels):
    return F.cross_entropy(logits.mT, labels, reduction="none", ignore_index=-100)


COUPLED = {
    "mean over rows": lambda logits, labels: token_terms(logits, labels).mean(),
    "sum over rows": lambda logits, labels: token_terms(logits, labels).sum(),
    "over the tokens of the batch": lambda logits, labels: token_terms(logits, labels).sum(1) / (labels >= 0).sum(),
    "less the mean of the batch": lambda logits, labels: (
        token_terms(logits, labels).sum(1) - token_terms(logits, labels).mean()
    ),
    "over the largest of the batch": lambda logits, labels: (
        token_terms(logits, labels).sum(1) / token_terms(logits, labels).detach().max()
    ),
}


@pytest.mark.parametrize("name", COUPLED)
def test_loss_that_couples_rows_is_refused(name):
    logits, labels = torch.randn(4, 5, 3, generator=torch.Generator().manual_seed(0)), torch.arange(20).view(4, 5) % 3
    labels[2, 3:] = -100
    with pytest.raises(UnitsCoupled, match="the loss "):
        refuse_coupled_loss(COUPLED[name], logits, labels)
    own_tokens = lambda logits, labels: token_terms(logits, labels).sum(1) / (labels >= 0).sum(1)  # noqa: E731
    refuse_coupled_loss(own_tokens, logits, labels)


def test_every_kind_of_target_is_reached():
    for targets in TARGETS:
        if targets not in CAUSAL:
            refuse_dependence(adapted_tiny(targets), words=VOCABULARY)
