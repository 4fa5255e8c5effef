import numpy as np
import pytest

from confide.client_node.replay.broadcast import broadcast
from confide.client_node.replay.checkpoint import Checkpoint
from confide.client_node.study.state_format import StateFormat
from confide.coordinator.run import questions

from ..fake_fleet import FakeFleet
from ..run.test_rounds import DIM, EVALUATION, Desk, new_desk

INT8 = ("batch_units = 10", 'batch_units = 10\nstate = "int8"')
ROUNDS = ("rounds = 2", "rounds = 4")


def rounded(vector):
    """What sites make of a vector: 12 numbers are one block."""
    scale = np.float32(np.abs(vector).max()) / np.float32(127)
    return np.array([np.float32(round(float(x / scale))) * scale for x in vector], np.float32) if scale else vector


@pytest.fixture
def int8(tmp_path, monkeypatch) -> Desk:
    monkeypatch.setattr(questions, "RETRY_S", 0.0)
    return new_desk(tmp_path, INT8, ROUNDS, evaluation=EVALUATION)


def test_a_float32_state_is_sent_as_it_is_and_leaves_nothing():
    state = np.arange(5, dtype=np.float32)
    sent, residual = broadcast(StateFormat(kind="float32", dim=5), Checkpoint.beginning(state))
    assert (sent, residual) == (state.tobytes(), None)


def test_what_was_sent_adds_up_to_the_states_but_for_the_last_residual():
    form, rng, residual, sent, states = StateFormat(kind="int8", dim=100, exact=1), np.random.default_rng(0), None, 0, 0
    for number in range(50):
        state = rng.normal(0, 1, 100).astype(np.float32)
        before = Checkpoint(round=number, state=state, velocity=state, residual=residual)
        data, residual = broadcast(form, before)
        sent, states = sent + form.decode(data).astype(np.float64), states + state.astype(np.float64)
    assert np.abs(residual[:-1]).max() > 1e-3
    assert residual[-1] == 0
    np.testing.assert_allclose(sent + residual, states, rtol=0, atol=50 * 2e-7)  # float32 rounds each residual


def test_sites_train_from_the_rounded_states_and_are_measured_on_the_exact_one(int8):
    fleet, checkpoints = FakeFleet(int8.study), [Checkpoint.beginning(np.zeros(DIM, np.float32))]

    def watch(kind, name):
        if (kind, name) == ("step", "north"):
            checkpoints.append(int8.checkpoint() if int8.store.last_round("run-1").number else checkpoints[0])

    fleet.before = watch
    int8.drive(fleet)
    residual = np.zeros(DIM, np.float32)
    for number in range(1, 5):
        wanted = checkpoints[number].state + residual
        assert fleet.states[number].tobytes() == rounded(wanted).tobytes()
        residual = wanted - rounded(wanted)
        if number > 2:  # the first states are nearly zero
            assert fleet.states[number].tobytes() != checkpoints[number].state.tobytes()
    assert int8.checkpoint().residual.tobytes() == residual.tobytes()
    assert fleet.states[5].tobytes() == int8.checkpoint().exported.tobytes()


class Cut(Exception):
    """The driver is killed."""


@pytest.mark.slow
@pytest.mark.parametrize("where", [("step", "south"), ("aggregate", "agg-b")])
def test_a_run_that_is_cut_off_and_resumed_sends_the_same_bytes(tmp_path, monkeypatch, where):
    monkeypatch.setattr(questions, "RETRY_S", 0.0)
    for name in ("whole", "broken"):
        (tmp_path / name).mkdir()
    whole, broken = (new_desk(tmp_path / name, INT8, ROUNDS) for name in ("whole", "broken"))
    undisturbed, fleet, seen = FakeFleet(whole.study), FakeFleet(broken.study), []
    whole.drive(undisturbed)

    def cut(kind, name):
        if (kind, name) == where:
            seen.append(kind)
            if len(seen) in (1, 3):
                raise Cut

    fleet.before = cut
    for _ in range(2):
        with pytest.raises(Cut):
            broken.drive(fleet)
    broken.drive(fleet)
    assert all(fleet.states[number].tobytes() == state.tobytes() for number, state in undisturbed.states.items())
    assert broken.checkpoint().residual.tobytes() == whole.checkpoint().residual.tobytes()
    assert broken.state().tobytes() == whole.state().tobytes()
