"""Sites that are away, late or hostile."""

import numpy as np
import pytest

from confide.client_node.study import cost, load_draft
from confide.coordinator.simulation.faults import attendance, hostile, is_refused, malicious
from confide.coordinator.simulation.outcome import Faults
from confide.privacy.mechanism.noise import discrete_gaussian

from ...client_node.conftest import STUDY_TOML, changed

SITES = 40


def study(tmp_path, *changes):
    names = ", ".join(f'"s{number}"' for number in range(SITES))
    changes = (('"other", "svi", "svhc", "rest"', names), ("max_dropouts = 0", "max_dropouts = 10"), *changes)
    (tmp_path / "study.toml").write_text(changed(STUDY_TOML, changes))
    return cost.provisional(load_draft(tmp_path / "study.toml"), dim=2000)


def test_sites_are_away_as_often_as_asked(tmp_path):
    own, faults = study(tmp_path), Faults(dropouts=0.1)
    rounds = [attendance(own, faults, 0, number) for number in range(1, 201)]
    away = [len(each.away) for each in rounds]
    assert np.mean(away) == pytest.approx(4, abs=5 * (40 * 0.1 * 0.9 / 200) ** 0.5)
    assert all(sorted((*each.summed, *each.away)) == list(range(SITES)) for each in rounds)
    assert rounds[0] == attendance(own, faults, 0, 1) != attendance(own, faults, 1, 1)


def test_a_sum_waits_until_there_is_a_quorum(tmp_path):
    own = study(tmp_path)
    for number in range(1, 30):
        found = attendance(own, Faults(dropouts=0.5), 0, number)
        assert len(found.summed) >= own.quorum == 30
        assert not found.waited or len(found.summed) == 30
        assert len(set(found.summed)) + len(found.away) + len(found.late) == SITES
    assert any(attendance(own, Faults(dropouts=0.5), 0, number).waited for number in range(1, 30))


def test_the_same_sites_are_slow_and_miss_the_deadline_by_chance(tmp_path):
    own = study(tmp_path)  # of 60 s
    rounds = [attendance(own, Faults(slow=0.25, slow_s=60.0), 3, number) for number in range(1, 401)]
    late = [site for each in rounds for site in each.late]
    assert len(set(late)) == 10
    assert len(late) / (400 * 10) == pytest.approx(np.exp(-1), abs=0.05)  # an exponential of mean 60 s passes 60 s
    assert all(not each.away for each in rounds)


def test_a_long_hostile_vector_is_refused_and_a_short_one_is_not(tmp_path):
    own = study(tmp_path)
    planned = own.planned_round(1)
    honest = discrete_gaussian(own.site_noise(planned), planned.dim)
    assert not is_refused(honest, planned, bytes(32))
    for length, refused in ((0.9, False), (3.0, True), (100.0, True)):
        vector = hostile(honest, own, planned, length)
        assert np.linalg.norm(vector.astype(float)) == pytest.approx(length * planned.bound_units, rel=1e-6)
        assert vector.astype(float) @ honest < 0
        assert is_refused(vector, planned, bytes(32)) is refused
    blind = hostile(0 * honest, own, planned, 1.0).astype(float)
    assert np.linalg.norm(blind) == pytest.approx(planned.bound_units, abs=planned.dim**0.5)


def test_without_a_norm_check_nothing_is_refused(tmp_path):
    own = study(tmp_path, ("[participants]", "[aggregation]\nnorm_check = false\n[participants]"))
    planned = own.planned_round(1)
    vector = hostile(np.ones(planned.dim, dtype=np.int64), own, planned, 10.0)
    assert np.linalg.norm(vector.astype(float)) > 0
    assert not is_refused(vector, planned, bytes(32))


def test_hostile_sites_are_drawn_once(tmp_path):
    own = study(tmp_path)
    found = malicious(own, Faults(malicious=7), 0)
    assert len(found) == 7 <= max(found) < SITES
    assert found == malicious(own, Faults(malicious=7), 0) != malicious(own, Faults(malicious=7), 1)
