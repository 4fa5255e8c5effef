"""Baselines and the attack of a study of free text, on a tiny model: the demo's own functions, on records of files."""

import json

import numpy as np
import pytest
import torch

from confide.client_node.study import load_draft
from confide.client_node.training.study_model import load_study_model
from confide.coordinator.comparison import federated
from confide.coordinator.demo import demo
from confide.coordinator.demo.baselines import answer_references, text_arrays
from confide.coordinator.demo.membership_attack import NO_SHADOWS, Attacked, TextPool, attack_by_loss
from confide.coordinator.studies.held_out import held_out_policy
from confide.models.records.kind import Examples
from confide.privacy.report.schema import membership_facts

from ...client_node.conftest import CHAT, STUDY_TOML, TEXT, TURNS, build_study, changed, of_model
from ...models.tiny import save_text_backbone
from ..results.test_export import RUN, with_run

FEW = (  # steps on all units, long enough to learn them by heart
    ("sample_rate = 0.2", "sample_rate = 1.0"),
    ("batch_units = 1374", "batch_units = 8"),
    ("momentum = 0.9", "momentum = 0.5"),
)


def chat_cell(said, answer):
    turns = [("user", f"which {said}?"), ("assistant", answer)]
    return json.dumps([{"role": role, "content": content} for role, content in turns])


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """Makes a study, its model as it starts, and the policies of two sites' training and held-out records."""
    save_text_backbone(tmp_path / "backbone")

    monkeypatch.setattr(federated, "_ROWS_TRAINED", 12)  # shapes of batches are probed up to that

    def make(*changes, rounds=2):
        rng = np.random.default_rng(0)
        (tmp_path / "study.toml").write_text(
            changed(STUDY_TOML, (*changes, *FEW, ("\nrounds = 40", f"\nrounds = {rounds}"),
                                 ('"other", "svi", "svhc", "rest"', '"other", "svi", "svhc"')))
        )  # fmt: skip
        model = load_study_model(load_draft(tmp_path / "study.toml"), tmp_path / "backbone")
        study = of_model(build_study(tmp_path / "study.toml", {}), model.backbone_hash, model.adapted)
        parts = []
        for part in range(2):
            policies = []
            for site in range(3):
                path, rows = tmp_path / f"{part}{site}.csv", []
                for i in range(4):
                    number = part * 12 + site * 4 + i
                    answer = "".join(rng.choice([*"abcdefgh"], 6))  # nothing to generalise from
                    cell = chat_cell(number, answer).replace('"', '""')
                    rows.append(f'p{number},case {number},{answer},"{cell}"\n')
                path.write_text("patient_id,note,finding,said\n" + "".join(rows))
                policies.append(held_out_policy(path, study, "patient_id"))
            parts.append(policies)
        return study, model, *parts

    return make


def by_hand(study, model, train):
    """The study's rounds without noise: one autograd pass a unit, a clip, and heavy-ball steps, in float64 numbers."""
    adapted, draft = model.adapted, study.draft
    state = adapted.state().astype(np.float64)
    velocity = np.zeros_like(state)
    for _ in range(draft.rounds.rounds):
        adapted.load_state(state)
        total = np.zeros_like(state)
        for site, policy in zip(study.site_names(), train, strict=True):
            ids, targets, units = text_arrays(policy, study, model, site=site)
            for unit in np.unique(units):
                rows = units == unit
                losses = adapted.losses(torch.from_numpy(ids[rows]), torch.from_numpy(targets[rows]))
                grads = torch.autograd.grad(losses.mean(), list(adapted.trained.values()))
                gradient = np.concatenate([grad.double().numpy().ravel() for grad in grads])
                total += gradient * min(1.0, draft.privacy.clip_norm / np.linalg.norm(gradient))
        velocity = draft.optimizer.momentum * velocity + total / (draft.rounds.batch_units * draft.privacy.clip_norm)
        state = state - draft.optimizer.lr * velocity
    return state


LAST_LAYER = ('head = "lm"', 'head = "lm"\nlayers = [1]')  # what lies below is computed once


@pytest.mark.parametrize(
    "kind", [(*TEXT, TURNS), CHAT, (*TEXT, TURNS, LAST_LAYER)], ids=["turns", "chat", "turns, last layer"]
)
def test_references_are_the_backbone_and_the_study_s_own_rounds_without_noise(desk, kind):
    study, model, train, held_out = desk(*kind)
    named = zip(study.site_names(), held_out, strict=True)
    tested = [Examples(*text_arrays(policy, study, model, site=site)) for site, policy in named]
    start = model.adapted.state()
    before = model.evaluate(tested)
    wanted = by_hand(study, model, train)
    model.adapted.load_state(start)
    found = answer_references(study, model, train, held_out, max_rows=12)
    assert found["exact_match_before"] == before["exact_match"]["value"]
    assert found["perplexity_before"] == before["perplexity"]["value"]
    assert np.abs(wanted - start).max() > 0.01
    np.testing.assert_allclose(model.adapted.state(), wanted, atol=1e-5)
    assert found["perplexity_nonprivate"] == model.evaluate(tested)["perplexity"]["value"]
    assert found["perplexity_nonprivate"] < found["perplexity_before"]


def test_texts_learned_by_heart_are_found_and_an_untrained_model_tells_nothing(federation, desk):
    with_run(federation)
    study, model, train, held_out = desk(*TEXT, ("lr = 0.3", 'kind = "adam"\nlr = 0.05'), rounds=30)
    pool = TextPool.read(model, study, train, held_out)
    assert (pool.is_member.sum(), (~pool.is_member).sum()) == (12, 12)
    before = pool.confidences(model.adapted)
    answer_references(study, model, train, held_out, max_rows=12)
    attacked = [Attacked("learned", "none", pool.confidences(model.adapted)), Attacked("untouched", "local", before)]
    learned, untouched = attack_by_loss(federation.store, RUN, study, pool, before, attacked)
    assert learned.auc > 0.9
    assert untouched.auc == 0.5
    assert (learned.is_private, untouched.is_private) == (False, True)
    assert (learned.members, learned.nonmembers, learned.shadows, learned.shadow_model) == (12, 12, 0, NO_SHADOWS)
    kept = federation.store.privacy_tests(RUN, "membership")
    assert [membership_facts(text) for text in kept] == [learned, untouched]


def test_the_pool_holds_each_text_with_its_own_loss(desk):
    """Against one record at a time; the order is drawn, so members are compared as a set."""
    study, model, train, held_out = desk(*TEXT)
    model.adapted.load_state(np.random.default_rng(0).normal(0, 0.3, model.adapted.layout.dim))
    pool = TextPool.read(model, study, train, held_out)
    found = pool.confidences(model.adapted)
    for policies, is_member in ((train, True), (held_out, False)):
        losses = []
        for site, policy in zip(study.site_names(), policies, strict=True):
            ids, targets, _ = text_arrays(policy, study, model, site=site)
            with torch.no_grad():
                losses += [
                    float(model.adapted.losses(torch.from_numpy(ids[i : i + 1]), torch.from_numpy(targets[i : i + 1])))
                    for i in range(len(ids))
                ]
        np.testing.assert_allclose(np.sort(-found[pool.is_member == is_member]), np.sort(losses), rtol=1e-5)


def test_the_demo_s_table_names_the_reference_without_privacy():
    outcome = {
        "exact_match_private": 0.36, "exact_match_private_interval": [0.33, 0.4], "exact_match_measured": 0.35,
        "exact_match_measured_interval": [0.31, 0.4], "exact_match_before": 0.0, "exact_match_nonprivate": 0.5,
        "perplexity_private": 2.55, "perplexity_before": 61.0, "perplexity_nonprivate": 1.9, "epsilon": None,
        "bytes_per_site_round": 40_665, "seconds_per_round": 39.0, "peak_memory_gib": 3.0,
    }  # fmt: skip
    rows = {name.strip(): (figure, text) for name, figure, text in demo.figures(outcome)}
    assert rows["without privacy"][0] == "0.500"
    assert rows["perplexity"] == ("2.55", "1.90 without noise, 61 before")
