import numpy as np
import pytest

from confide.client_node.study.cost import releases_of_draft, with_noise
from confide.client_node.study.terms import load_draft
from confide.coordinator.studies.examine import EPSILONS
from confide.coordinator.studies.expectation import EARNED, WRITTEN, bought, expectation
from confide.privacy.accounting import epsilon_pld

from ...client_node.conftest import DOCUMENT, STUDY_TOML, TEXT, changed


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
    alone = expectation(draft, trained=2 * few, head=2 * few).sentence()
    assert "adapters" not in alone
    assert "with the head alone" not in alone
    assert expectation(draft, trained=few, head=0).head is None


@pytest.mark.parametrize(
    ("changes", "head", "expected"),
    [
        ((), 10, "a head alone to win, and a linear model on words to be close"),
        (DOCUMENT, 10, "a head alone to win: on chapters"),
        (TEXT, 0, "the adapters to win, but where the answers are few words that come again, a linear model"),
    ],
)
def test_the_rung_to_expect_most_of_depends_on_who_answers(tmp_path, changes, head, expected):
    said = expectation(draft_of(tmp_path, *changes), trained=400, head=head).sentence()
    assert f"xpect {expected}" in said
    assert ("a head alone" in said) == bool(head)  # nobody is told to try a head where none can answer


def test_written_answers_with_more_noise_than_ever_measured_are_told_so(tmp_path):
    draft = draft_of(tmp_path, *TEXT)
    few = int((WRITTEN * draft.update_divisor / draft.noise_std) ** 2)
    assert "beaten every site alone" in expectation(draft, trained=few, head=0).sentence()
    assert "no adapters that write an answer were measured" in expectation(draft, trained=2 * few, head=0).sentence()


def test_an_epsilon_buys_the_ratio_of_the_noise_that_its_rounds_need(tmp_path):
    draft = draft_of(tmp_path, ("[rounds]", "[evaluation]\nbins = 10\nnoise_multiplier = 0.5\n[rounds]"))
    found = bought(draft, EPSILONS, trained=400, head=100)
    assert list(found) == list(EPSILONS)  # whatever the evaluation would cost
    ratios = [each.whole for each in found.values()]
    assert ratios == sorted(ratios, reverse=True)
    for epsilon, each in found.items():
        multiplier = each.whole / expectation(draft, trained=400, head=100).whole * draft.privacy.noise_multiplier
        bare = with_noise(draft.model_copy(update={"evaluation": None}), multiplier)
        spent = epsilon_pld(releases_of_draft(bare, 400), draft.privacy.delta, draft.privacy.collusion)
        assert spent == pytest.approx(epsilon, rel=0.01)
        assert each.head == pytest.approx(each.whole / 2)


def test_an_epsilon_that_no_noise_reaches_buys_nothing(tmp_path):
    draft = draft_of(tmp_path, ("delta = 1e-5", "delta = 1e-300"), ("rounds = 40", "rounds = 9000"))
    assert 1.0 not in bought(draft, EPSILONS, trained=400, head=100)


def test_without_privacy_there_is_nothing_to_expect(tmp_path):
    draft = draft_of(
        tmp_path, ('mode = "distributed"\nnoise_multiplier = 1.19', 'mode = "none"'), ("delta = 1e-5\n", "")
    )
    assert expectation(draft, trained=400, head=100) is None
    assert bought(draft, EPSILONS, trained=400, head=100) == {}
