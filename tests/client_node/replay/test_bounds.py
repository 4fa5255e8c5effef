import math

import numpy as np
import pytest

from confide.client_node.errors import StateRefused
from confide.client_node.replay import bounds
from confide.client_node.replay.checkpoint import Checkpoint
from confide.client_node.replay.following import beginning, follow, round_start, total_bytes
from confide.client_node.study.study import Study

from ..conftest import STUDY_TOML, build_study, changed

ADAM = ("lr = 0.3", 'kind = "adam"\nlr = 0.3')
CORRECTED = ("lr = 0.3", 'kind = "adam"\nnoise_correction = true\nlr = 0.3')
AVERAGED = ("lr = 0.3", 'kind = "adam"\naveraging = "ema"\nlr = 0.3')
SHORT = ("rounds = 40", "rounds = 5")


@pytest.fixture
def make(tmp_path):
    def made(*changes: tuple[str, str]) -> Study:
        (tmp_path / "study.toml").write_text(changed(STUDY_TOML, changes))
        return build_study(tmp_path / "study.toml", {})

    return made


def words(study: Study, units: np.ndarray) -> bytes:
    planned = study.planned_round(1)
    return units.astype(np.int64).astype("<u8" if planned.ring_bits == 64 else "<u4").tobytes()


def longest(study: Study, direction: np.ndarray, kept: int = 4) -> np.ndarray:
    """The longest total along a direction that is let in, in ring units."""
    planned = study.planned_round(1)
    assert planned.bound_units is not None
    return np.trunc(direction / np.linalg.norm(direction) * 2.0 * kept * planned.bound_units)


def test_a_total_is_as_long_as_its_sites_may_make_it_and_no_longer(make):
    study = make(("max_dropouts = 0", "max_dropouts = 1"))
    start = beginning(study, np.zeros(1000, np.float32))
    direction = np.ones(1000)
    for kept in (3, 4):
        follow(study, start, words(study, longest(study, direction, kept)), kept=kept)
        with pytest.raises(StateRefused, match=f"longer than a total of {kept} sites can be"):
            follow(study, start, words(study, 1.001 * longest(study, direction, kept)), kept=kept)


def test_without_a_norm_check_a_total_is_as_long_as_the_ring_holds(make):
    study = make(("[participants]", "[aggregation]\nnorm_check = false\n[participants]"))
    planned = study.planned_round(1)
    assert bounds.longest_total(study, planned, 4) == math.sqrt(1000) * 2.0 ** (63 - planned.scale_bits)
    follow(study, beginning(study, np.zeros(1000, np.float32)), words(study, np.full(1000, 2.0**62)), kept=4)


def test_a_total_of_another_length_is_refused(make):
    study = make()
    start = beginning(study, np.zeros(1000, np.float32))
    with pytest.raises(StateRefused, match="a total of 7992 bytes, where 8000 are due"):
        follow(study, start, bytes(total_bytes(study.planned_round(1)) - 8), kept=4)


def test_with_momentum_the_reach_is_that_of_the_geometric_series(make):
    study = make(SHORT)
    planned, draft = study.planned_round(1), study.draft
    update = 2 * 4 * planned.bound_units * 2.0**-planned.scale_bits / draft.update_divisor
    found = bounds.reach(study)
    assert found.adapters == pytest.approx(0.3 * 5 * update / (1 - 0.9), rel=1e-4)
    assert found.head == pytest.approx(10.0 * 5 * update / (1 - 0.9), rel=1e-4)


@pytest.mark.parametrize("changes", [(), (ADAM,), (CORRECTED,), (AVERAGED,)], ids=["sgd", "adam", "corrected", "ema"])
@pytest.mark.parametrize("worst", ["one direction", "ever smaller", "back and forth", "one number", "at random"])
def test_no_run_of_the_longest_totals_leaves_the_reach(make, changes, worst):
    study = make(SHORT, ("momentum = 0.9", "momentum = 0.5"), *changes)
    rng, start = np.random.default_rng(0), np.zeros(1000, np.float32)
    checkpoint = beginning(study, start)
    for number in range(5):
        direction = {
            "one direction": np.ones(1000),
            "ever smaller": np.ones(1000),
            "back and forth": (-1.0) ** number * np.ones(1000),
            "one number": np.eye(1000)[500],
            "at random": rng.normal(size=1000),
        }[worst]
        units = longest(study, direction) / (100.0**number if worst == "ever smaller" else 1)
        checkpoint = follow(study, checkpoint, words(study, np.trunc(units)), kept=4)
        for state in (checkpoint.state, checkpoint.exported):
            bounds.require_reach(study, start, state)


def test_with_momentum_the_reach_is_nearly_reached(make):
    study = make(("rounds = 40", "rounds = 200"))
    checkpoint = beginning(study, np.zeros(1000, np.float32))
    for _ in range(200):
        checkpoint = follow(study, checkpoint, words(study, longest(study, np.eye(1000)[500])), kept=4)
    assert 0.9 < np.linalg.norm(checkpoint.state) / bounds.reach(study).adapters <= 1


@pytest.mark.parametrize(("place", "factor"), [(500, 1.01), (3, 1.01), (500, np.nan)])
def test_a_state_beyond_the_reach_is_refused(make, place, factor):
    study = make()
    far, start = bounds.reach(study), np.zeros(1000, np.float32)
    state = start.copy()
    state[place] = (far.head if place < 65 else far.adapters) * factor
    with pytest.raises(StateRefused, match="farther from its start than any run"):
        bounds.require_reach(study, start, state)


def test_a_clip_that_adapts_is_no_part_of_the_reach(make):
    study = make(("clip_norm = 1.0", 'clip_norm = 1.0\nclipping = "adaptive"'))
    state = np.zeros(1000, np.float32)
    state[-1] = 1e6
    bounds.require_reach(study, np.zeros(1000, np.float32), state)


def test_what_a_rounded_round_starts_from_is_within_a_127th_of_the_state(make):
    study = make(("rounds = 40", 'rounds = 40\nstate = "int8"'))
    rng = np.random.default_rng(0)
    checkpoint = beginning(study, np.zeros(1000, np.float32))
    for _ in range(10):
        checkpoint = follow(study, checkpoint, words(study, rng.normal(0, 1e6, 1000)), kept=4)
        off = np.abs(round_start(study, checkpoint).vector - checkpoint.state)[:960].reshape(-1, 64)
        assert (off.max(axis=1) <= 1.02 / 127 * np.abs(checkpoint.state[:960]).reshape(-1, 64).max(axis=1)).all()


def test_an_entry_of_adam_s_direction_is_bounded_whatever_the_updates_were(make):
    """The worst updates by Cauchy-Schwarz, u = w / q, reach the bound; others stay below it."""
    study = make(SHORT, ADAM, ("momentum = 0.9", "momentum = 0.5"))
    b1, b2, found = 0.5, 0.99, bounds._adam_entry(study)
    for t in range(1, 6):
        w = np.array([(1 - b1) * b1**k / (1 - b1**t) for k in range(t)])
        q = np.array([(1 - b2) * b2**k / (1 - b2**t) for k in range(t)])
        u = w / q
        assert w @ u / math.sqrt(q @ u**2) <= found * (1 + 1e-12)
    assert w @ u / math.sqrt(q @ u**2) == pytest.approx(found, rel=1e-12)


def test_a_checkpoint_of_nothing_is_the_start(make):
    study = make()
    with pytest.raises(StateRefused, match="not the one that it states"):
        beginning(study, np.full(1000, 1e6, np.float32))
    assert isinstance(beginning(study, np.zeros(1000, np.float32)), Checkpoint)
