import copy

import numpy as np
import pytest
import torch

from confide.client_node.replay.checkpoint import Checkpoint
from confide.client_node.replay.server_optimizer import server_step
from confide.client_node.study.terms import StudyDraft, load_draft
from confide.client_node.training.trainer import release_terms
from confide.coordinator.comparison import compare_with_run
from confide.coordinator.comparison.federated import federate
from confide.coordinator.comparison.linear import private_linear, word_inputs
from confide.coordinator.demo.baselines import references
from confide.coordinator.studies.held_out import held_out_policy
from confide.privacy.mechanism.batches import probed_shapes
from confide.privacy.mechanism.site_round import round_release

from ...client_node.conftest import STUDY_TOML, changed
from ...models.tiny import random_ids
from ...privacy.loops import adapted_tiny, clipped_loop, labels_for

ROUNDS = ("\nrounds = 40", "\nrounds = 2")
TINY = (ROUNDS, ("sample_rate = 0.2", "sample_rate = 1.0"), ("batch_units = 1374", "batch_units = 8"))
NO_NOISE = (('"distributed"', '"none"'), ("noise_multiplier = 1.19\n", ""), ("delta = 1e-5\n", ""))
TABLE = """patient_id,age,TSH,sex,sick,diagnosis
p1,34,1.5,F,0,0
p2,71,,M,1,1
p3,25,0.2,F,0,0
p4,50,12,F,1,1
"""


def make_draft(folder, *changes: tuple[str, str]) -> StudyDraft:
    (folder / "study.toml").write_text(changed(STUDY_TOML, changes))
    return load_draft(folder / "study.toml")


def test_two_rounds_without_noise_are_two_steps_on_the_clipped_sum_of_all_sites(tmp_path):
    draft = make_draft(tmp_path, *TINY, ("clip_norm = 1.0", "clip_norm = 0.05"))
    adapted = adapted_tiny(dtype=torch.float64)
    by_hand = copy.deepcopy(adapted)
    sites = {
        name: (random_ids(rows, seed=rows), labels_for(rows), np.arange(rows)) for name, rows in (("a", 3), ("b", 5))
    }
    state = start = adapted.state()
    rates, velocity = np.full(len(state), 0.3), np.zeros(len(state))
    rates[adapted.layout.head_slice] = 10.0
    for _ in range(2):
        sums = [clipped_loop(by_hand, *site, clip_norm=0.05)[0] for site in sites.values()]
        total = sum(np.concatenate([one[name].numpy().ravel() for name in adapted.layout.names]) for one in sums)
        velocity = 0.9 * velocity + total / (8 * 0.05)
        state = state - rates * velocity
        by_hand.load_state(state)
    arrays = {name: (ids.numpy(), labels.numpy(), units) for name, (ids, labels, units) in sites.items()}
    federate(draft, adapted, arrays, mode="none", scale_bits=24, seed=0)
    assert np.abs(state - start).max() > 0.1
    # float32 states near 1, and sums rounded to 2**-24 that a head rate of 10 / (8 * 0.05) enlarges
    np.testing.assert_allclose(adapted.state(), state, atol=1e-5)


def test_the_seed_decides_who_is_drawn_without_noise(tmp_path):
    draft = make_draft(tmp_path, *TINY, ("sample_rate = 1.0", "sample_rate = 0.5"))
    site = random_ids(12).numpy(), labels_for(12).numpy(), np.arange(12)

    def trained(seed: int) -> bytes:
        adapted = adapted_tiny("head")
        federate(draft, adapted, {"a": site}, mode="none", scale_bits=24, seed=seed)
        return adapted.state().tobytes()

    assert trained(1) == trained(1) != trained(2)


def test_every_option_at_once_is_the_sites_and_the_server_s_steps_in_turn(tmp_path):
    draft = make_draft(
        tmp_path,
        *TINY,
        ('"distributed"', '"local"'),
        ("clip_norm = 1.0", 'clip_norm = 0.05\nclipping = "adaptive"\nlocal_steps = 2'),
        ("momentum = 0.9", 'momentum = 0.9\nkind = "adam"\naveraging = "ema"\nlocal_lr = 0.1'),
    )
    adapted, by_hand = adapted_tiny(), adapted_tiny()
    ids, labels, units = random_ids(6).numpy(), labels_for(6).numpy(), np.arange(6)
    federate(draft, adapted, {"a": (ids, labels, units)}, mode="none", scale_bits=24, seed=0)
    terms = release_terms(draft, "none", site_noise=0, scale_bits=24, max_rows=256)
    data = draft.data
    shapes = probed_shapes(by_hand, max_tokens=data.max_tokens, max_rows=256, max_records=data.max_records_per_unit)
    checkpoint = Checkpoint.beginning(np.append(by_hand.state(), np.float32(0)))
    for _ in range(2):
        total = round_release(by_hand, checkpoint.state, ids, labels, units, terms=terms, shapes=shapes)
        checkpoint = server_step(draft, checkpoint, total * 2.0**-24, by_hand.layout.head_slice)
    np.testing.assert_array_equal(adapted.state(), checkpoint.exported[:-1])
    assert checkpoint.state[-1] != 0


def test_after_local_steps_plain_descent_averages_the_sites_copies(tmp_path):
    draft = make_draft(
        tmp_path,
        *TINY,
        ("\nrounds = 2", "\nrounds = 1"),
        ('"distributed"', '"local"'),
        ("collusion = 1", "collusion = 1\nlocal_steps = 3"),
        ("lr = 0.3\nhead_lr = 10.0\nmomentum = 0.9", "lr = 0.6\nhead_lr = 3.0\nmomentum = 0.0\nlocal_lr = 0.2"),
    )
    adapted, copies = adapted_tiny(dtype=torch.float64), []
    sites = {
        name: (random_ids(4, seed=i).numpy(), labels_for(4).numpy(), np.arange(4)) for i, name in enumerate("abcd")
    }
    rates = np.full(adapted.layout.dim, 0.2)
    rates[adapted.layout.head_slice] = 1.0
    start = adapted.state()
    for ids, labels, units in sites.values():
        copy = start.astype(np.float64)
        for _ in range(3):
            adapted.load_state(copy)
            step = clipped_loop(adapted, torch.from_numpy(ids), torch.from_numpy(labels), units, clip_norm=1.0)[0]
            copy -= rates * np.concatenate([step[name].numpy().ravel() for name in adapted.layout.names]) / (8 / 4)
        copies.append(copy)
    adapted.load_state(start)
    federate(draft, adapted, sites, mode="none", scale_bits=24, seed=0)
    np.testing.assert_allclose(adapted.state(), np.mean(copies, axis=0), atol=1e-5)  # states are float32


def test_private_linear_without_noise_is_clipped_descent_record_by_record(tmp_path):
    draft = make_draft(tmp_path, *TINY, *NO_NOISE, ("clip_norm = 1.0", "clip_norm = 0.4"))
    rng = np.random.default_rng(0)
    inputs, labels = [rng.normal(size=(rows, 3)) / 2 for rows in (4, 6)], [np.arange(rows) % 2 for rows in (4, 6)]
    weight, velocity = np.zeros(3), np.zeros(3)
    for _ in range(2):
        gradients = [
            (1 / (1 + np.exp(-x @ weight)) - y) * x
            for x, y in zip(np.concatenate(inputs), np.concatenate(labels), strict=True)
        ]
        norms = [np.linalg.norm(gradient) for gradient in gradients]
        assert min(norms) < 0.4 < max(norms)
        total = sum(g * min(1, 0.4 / norm) for g, norm in zip(gradients, norms, strict=True))
        velocity = 0.9 * velocity + total / (8 * 0.4)
        weight = weight - 2.0 * velocity
    found = private_linear(draft, inputs, labels, np.eye(3), lr=2.0, scale_bits=24, rng=rng)
    np.testing.assert_allclose(found, weight, rtol=1e-12)


def test_private_linear_clips_a_unit_with_the_mean_of_its_records(tmp_path):
    changes = ("clip_norm = 1.0", "clip_norm = 0.3"), ("\nrounds = 2", "\nrounds = 1")
    draft = make_draft(tmp_path, *TINY, *NO_NOISE, *changes, ("max_records_per_unit = 2", "max_records_per_unit = 3"))
    rng = np.random.default_rng(0)
    inputs, labels, units = rng.normal(size=(6, 3)) / 2, np.arange(6) % 2, np.array([7, 4, 7, 9, 4, 7])
    total, lengths = np.zeros(3), []
    for unit in (4, 7, 9):
        own = np.mean([(0.5 - labels[row]) * inputs[row] for row in np.flatnonzero(units == unit)], axis=0)
        lengths.append(np.linalg.norm(own))
        total += own * min(1, 0.3 / lengths[-1])
    assert min(lengths) < 0.3 < max(lengths)
    found = private_linear(draft, [inputs], [labels], np.eye(3), lr=2.0, scale_bits=24, rng=rng, units=[units])
    np.testing.assert_allclose(found, -2.0 * total / (8 * 0.3), rtol=1e-12)


def test_private_linear_learns_from_no_more_records_of_a_unit_than_the_study_allows(tmp_path):
    draft = make_draft(tmp_path, *TINY, *NO_NOISE, ("\nrounds = 2", "\nrounds = 1"))  # max_records_per_unit is 2
    rng, one_unit = np.random.default_rng(0), [np.zeros(3, dtype=int)]
    seen = set()
    for _ in range(50):
        found = private_linear(
            draft, [np.eye(3)], [np.zeros(3)], np.eye(3), lr=8.0, scale_bits=24, rng=rng, units=one_unit
        )
        seen.add(tuple(np.flatnonzero(found)))  # the records whose gradients moved it
    assert seen == {(0, 1), (0, 2), (1, 2)}


def test_private_linear_adds_the_noise_of_every_site(tmp_path):
    draft = make_draft(tmp_path, *TINY, ("\nrounds = 2", "\nrounds = 1"))
    nothing, width = [np.zeros((1, 1000))] * 4, 1000
    rng = np.random.default_rng(0)
    found = private_linear(draft, nothing, [np.zeros(1)] * 4, np.eye(width), lr=8.0, scale_bits=24, rng=rng)
    # four sites, each with a third of the variance: one may collude; 0.1 is over four standard errors
    assert found.std() == pytest.approx(1.19 * (4 / 3) ** 0.5, rel=0.1)


def test_words_are_a_set_with_a_constant_at_unit_length(tmp_path):
    draft = make_draft(tmp_path)
    found = word_inputs(draft, np.array([[5, 3, 1], [4, 0, 0]]))
    assert [set(np.flatnonzero(row)) for row in found] == [{0, 1, 3, 5}, {0, 4}]
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1)
    assert found.shape[1] == len(draft.record_schema().words())


def test_the_references_are_two_and_an_untrained_head_knows_nothing(federation):
    study = federation.create(ROUNDS)
    path = federation.home / "table.csv"
    path.write_text(TABLE)
    policy = held_out_policy(path, study, "patient_id")
    found = references(study, federation.backbone, [policy] * 4, [policy] * 2, max_rows=256)
    assert set(found) == {"auc_before", "auc_nonprivate", "auc_nonprivate_interval"}
    assert found["auc_before"] == 0.5
    low, high = found["auc_nonprivate_interval"]
    assert 0 <= low <= found["auc_nonprivate"] <= high <= 1


def test_a_demo_climbs_every_rung_once_and_has_its_own_run_as_the_adapters(federation):
    study = federation.create(ROUNDS)
    path = federation.home / "table.csv"
    path.write_text(TABLE)
    policy, out = held_out_policy(path, study, "patient_id"), federation.home / "ladder"
    own = {"auc_private": 0.7, "auc_private_interval": [0.6, 0.8]}
    own |= {"auc_nonprivate": 0.75, "auc_nonprivate_interval": [0.65, 0.85]}
    found = compare_with_run(study, federation.backbone, [policy] * 4, [policy] * 4, out, own)
    rows = {row.rung: row for row in found.rows if row.left_out is None}
    assert list(rows) == ["constant", "site", "words", "head", "adapters"]
    assert [(point.asked, point.value, point.over_records) for point in rows["adapters"].points] == [
        ("study", 0.7, (0.6, 0.8)), ("none", 0.75, (0.65, 0.85)),
    ]  # fmt: skip
    assert rows["constant"].points[0].value == 0.5
    assert rows["site"].points[0].site in study.site_names()
    assert (out / "ladder.html").stat().st_size > 1000
    again = compare_with_run(study, federation.backbone, [policy] * 4, [policy] * 4, out, own)
    assert again.rows == found.rows  # nothing is computed twice
    assert again.tried == found.tried
