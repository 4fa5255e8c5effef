from pathlib import Path

import pytest
import torch

from confide.client_node.study.terms import load_draft
from confide.models.adapters.lora import AdapterConfig, attach
from confide.models.backbones.family import BackboneConfig
from confide.models.backbones.loading import build
from confide.models.heads.pooling import PooledHead
from confide.privacy.accounting.composition import Release, epsilon_pld, epsilon_rdp, site_noise

EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "thyroid"
SCALE_BITS = 24


@pytest.fixture(scope="module")
def draft():
    return load_draft(EXAMPLE / "study.toml")


@pytest.fixture(scope="module")
def adapted(draft):
    config = BackboneConfig()
    head = PooledHead(torch.zeros(2 * config.hidden), torch.eye(2 * config.hidden))
    return attach(build(draft.record_schema(), config), AdapterConfig(**draft.adapter_config()), head=head)


def spent(draft, adapted, accountant, colluding, *, evaluated=True):
    privacy, sites = draft.privacy, len(draft.participants.sites)

    def release(multiplier: float, scale_bits: int, dim: int, sample_rate: float) -> Release:
        noise = site_noise(
            multiplier, privacy.clip_norm, sites, privacy.max_dropouts, privacy.collusion, scale_bits, privacy.mode
        )
        return Release(
            mode=privacy.mode, site_noise_int=noise, scale_bits=scale_bits, clip_norm=privacy.clip_norm, dim=dim,
            sample_rate=sample_rate, sites=sites,
        )  # fmt: skip

    update = release(privacy.noise_multiplier, SCALE_BITS, adapted.layout.dim, privacy.sample_rate)
    histogram = release(draft.evaluation.noise_multiplier, 20, 2 * draft.evaluation.bins, 1.0)
    return accountant([update] * draft.rounds.rounds + [histogram] * evaluated, privacy.delta, colluding)


def test_the_whole_run_costs_less_than_3_by_both_accountants_even_if_one_site_colludes(draft, adapted):
    assert draft.privacy.delta <= 1e-5
    assert spent(draft, adapted, epsilon_pld, 1) < spent(draft, adapted, epsilon_rdp, 1) < 3
    assert spent(draft, adapted, epsilon_pld, 0) < spent(draft, adapted, epsilon_pld, 1)


def test_the_evaluation_costs_a_small_part_of_it(draft, adapted):
    updates = spent(draft, adapted, epsilon_pld, 1, evaluated=False)
    assert 0 < spent(draft, adapted, epsilon_pld, 1) - updates < 0.1 * updates


def test_attention_and_the_head_are_trained_and_nothing_else(adapted):
    head, *others = adapted.layout.names
    assert head == "head.weight"
    assert others
    assert all(".self_attn." in name for name in others)
    assert adapted.layout.dim == 4_737  # as README and docs say


def test_records_fit_the_token_limit(draft):
    assert len(draft.record_schema().fields()) <= draft.data.max_tokens


@pytest.mark.parametrize(
    ("name", "low", "high"),  # usual adult reference intervals, see the example's README
    [("TSH", 0.4, 4.0), ("T3", 1.2, 2.7), ("TT4", 60, 160)],
)
def test_cut_points_bracket_the_reference_interval_on_both_sides(draft, name, low, high):
    cuts = draft.data.numeric[name]
    assert {low, high} <= set(cuts)
    assert sum(cut < low for cut in cuts) >= 3
    assert sum(cut > high for cut in cuts) >= 3
    assert len(cuts) <= 15
