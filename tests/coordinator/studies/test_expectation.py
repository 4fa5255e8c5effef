import numpy as np
import pytest

from confide.client_node.study.terms import load_draft
from confide.coordinator.studies.expectation import EARNED, expectation

from ...client_node.conftest import STUDY_TOML, changed


def draft_of(tmp_path, *changes):
    (tmp_path / "study.toml").write_text(changed(STUDY_TOML, changes))
    return load_draft(tmp_path / "study.toml")


def test_the_ratio_is_the_length_of_a_round_s_noise_where_all_records_agree(tmp_path):
    draft = draft_of(tmp_path)
    found = expectation(draft, trained=400, head=100)
    rng, sites = np.random.default_rng(0), len(draft.participants.sites)
    by_site = draft.privacy.noise_multiplier * draft.privacy.clip_norm / (sites - draft.privacy.collusion) ** 0.5
    lengths = [np.linalg.norm(rng.normal(0, by_site, (sites, 400)).sum(0)) for _ in range(50)]
    longest = draft.rounds.batch_units * draft.privacy.clip_norm  # every unit's clipped gradient the same
    assert found.whole == pytest.approx(np.mean(lengths) / longest, rel=0.02)
    assert found.head == pytest.approx(found.whole / 2)


def test_adapters_with_more_noise_than_ever_paid_are_advised_against(tmp_path):
    draft = draft_of(tmp_path)
    few = int((EARNED * draft.update_divisor / draft.noise_std) ** 2)
    assert "may have added 0.004 of AUC" in expectation(draft, trained=few, head=10).sentence()
    assert "try a head alone" in expectation(draft, trained=2 * few, head=10).sentence()
    assert "a head alone is trained" in expectation(draft, trained=2 * few, head=2 * few).sentence()
    assert expectation(draft, trained=few, head=0).head is None


def test_without_privacy_there_is_nothing_to_expect(tmp_path):
    draft = draft_of(
        tmp_path, ('mode = "distributed"\nnoise_multiplier = 1.19', 'mode = "none"'), ("delta = 1e-5\n", "")
    )
    assert expectation(draft, trained=400, head=100) is None
