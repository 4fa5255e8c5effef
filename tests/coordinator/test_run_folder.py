import re

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from confide.client_node.files import write_private
from confide.coordinator import run_folder as run_folder_module
from confide.coordinator.errors import StateDamaged
from confide.coordinator.run_folder import Checkpoint, RunFolder

DIM = 7
ENVELOPES = (b"first", b"second", b"third")
PER_FILE = HealthCheck.function_scoped_fixture  # each example damages a fresh copy


class PowerCut(BaseException):
    pass


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path, "run-1")


def checkpoint(number: int = 1, *, value: float = 0.5) -> Checkpoint:
    return Checkpoint(
        round=number,
        state=np.full(DIM, value, np.float32),
        velocity=np.arange(DIM, dtype=np.float32) * value,
        second_moment=np.full(DIM, value**2, np.float32),
    )


def only_checkpoint(folder: RunFolder):
    (path,) = folder.path.glob("state-*.safetensors")
    return path


def test_a_checkpoint_comes_back_bit_for_bit_after_a_restart(folder, tmp_path):
    state_hash = folder.save(checkpoint())
    found = RunFolder(tmp_path, "run-1").load(1, state_hash)
    assert found.round == 1
    np.testing.assert_array_equal(found.state, checkpoint().state)
    np.testing.assert_array_equal(found.velocity, checkpoint().velocity)
    np.testing.assert_array_equal(found.second_moment, checkpoint().second_moment)
    assert found.average is None


def test_two_drivers_of_one_round_do_not_overwrite_each_other(folder):
    first, second = folder.save(checkpoint(value=0.5)), folder.save(checkpoint(value=0.25))
    assert first != second
    assert folder.load(1, first).state[0] == 0.5
    assert folder.load(1, second).state[0] == 0.25


def test_equal_checkpoints_have_one_hash(folder):
    assert folder.save(checkpoint()) == folder.save(checkpoint())


@settings(suppress_health_check=[PER_FILE])
@given(data=st.data())
def test_a_file_with_one_bit_flipped_is_damaged(folder, data):
    state_hash = folder.save(checkpoint())
    path = only_checkpoint(folder)
    contents = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(contents) - 1))
    contents[place] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(contents)
    with pytest.raises(StateDamaged, match="restore it from a backup"):
        folder.load(1, state_hash)


@settings(suppress_health_check=[PER_FILE])
@given(contents=st.binary(max_size=200))
def test_a_file_of_other_bytes_is_damaged(folder, contents):
    state_hash = folder.save(checkpoint())
    only_checkpoint(folder).write_bytes(contents)
    with pytest.raises(StateDamaged):
        folder.load(1, state_hash)


def test_a_missing_file_is_damage(folder):
    state_hash = folder.save(checkpoint())
    only_checkpoint(folder).unlink()
    with pytest.raises(StateDamaged, match="round 1 cannot be read"):
        folder.load(1, state_hash)


def test_another_sound_checkpoint_in_its_place_is_damage(folder):
    first = folder.save(checkpoint(value=0.5))
    path = only_checkpoint(folder)
    folder.save(checkpoint(value=0.25))
    (other,) = set(folder.path.glob("state-*.safetensors")) - {path}
    path.write_bytes(other.read_bytes())
    with pytest.raises(StateDamaged, match="is not the file that round 1 committed"):
        folder.load(1, first)


def test_envelopes_come_back_by_site(folder, tmp_path):
    folder.save_envelopes(1, "north", ENVELOPES)
    folder.save_envelopes(1, "west.wing", ENVELOPES[::-1])  # a name may hold dots
    assert RunFolder(tmp_path, "run-1").envelopes(1) == {"north": ENVELOPES, "west.wing": ENVELOPES[::-1]}


def test_a_round_without_envelopes_has_none(folder):
    folder.save_envelopes(1, "north", ENVELOPES)
    assert folder.envelopes(2) == {}


@pytest.mark.parametrize("writes", range(4))
def test_half_a_site_s_envelopes_are_none(folder, monkeypatch, writes):
    left = iter(range(writes))

    def write(path, data):
        if next(left, None) is None:
            raise PowerCut
        write_private(path, data)

    monkeypatch.setattr(run_folder_module, "write_private", write)
    with pytest.raises(PowerCut):
        folder.save_envelopes(1, "north", ENVELOPES)
    assert folder.envelopes(1) == {}


def test_prune_keeps_what_a_restart_needs(folder):
    hashes = {number: folder.save(checkpoint(number, value=number)) for number in range(1, 5)}
    for number in hashes:
        folder.save_envelopes(number, "north", ENVELOPES)
        folder.prune(number - 1)  # as a driver does once round `number - 1` is committed
    assert folder.envelopes(3) == {}
    assert folder.envelopes(4) == {"north": ENVELOPES}
    assert folder.load(3, hashes[3]).state[0] == 3
    assert folder.load(2, hashes[2]).state[0] == 2
    with pytest.raises(StateDamaged):
        folder.load(1, hashes[1])


def test_prune_drops_every_driver_s_checkpoint_of_an_old_round(folder):
    folder.save(checkpoint(1, value=0.5))
    folder.save(checkpoint(1, value=0.25))
    folder.save(checkpoint(11))  # whose name begins with the same digit
    folder.prune(3)
    assert [re.match(r"state-(\d+)-", path.name)[1] for path in folder.path.iterdir()] == ["11"]


def test_prune_of_a_pruned_round_does_nothing(folder):
    folder.prune(1)
    folder.prune(1)
    assert list(folder.path.iterdir()) == []


def test_top_ups_come_back_by_site_for_their_set_alone(folder):
    folder.fix_set(3, ("a", "b"))
    folder.save_topup(3, ("a", "b"), "a", (b"1", b"2", b"3"))
    assert folder.fixed_set(3) == ("a", "b")
    assert folder.topups(3, ("a", "b")) == {"a": (b"1", b"2", b"3")}
    assert folder.topups(3, ("a",)) == folder.topups(4, ("a", "b")) == folder.envelopes(3) == {}
    assert folder.fixed_set(4) is None


def test_prune_drops_top_ups_with_their_envelopes(folder):
    folder.fix_set(3, ("a", "b"))
    folder.save_topup(3, ("a", "b"), "a", (b"1", b"2", b"3"))
    folder.prune(3)
    assert folder.fixed_set(3) is None
    assert folder.topups(3, ("a", "b")) == {}
