import hashlib
import re

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from confide.client_node.replay.checkpoint import Checkpoint
from confide.coordinator.errors import StateDamaged
from confide.coordinator.store.run_folder import Inbox, RunFolder, require_unchanged

DIM = 7
ENVELOPES = (b"first", b"second", b"third")
PER_FILE = HealthCheck.function_scoped_fixture  # each example damages a fresh copy


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


def keep(inbox: Inbox, site: str, envelopes=ENVELOPES) -> None:
    """Does what a relay does with what a site sends."""
    sealed = inbox.expect(site, [(len(data), hashlib.sha256(data).hexdigest()) for data in envelopes])
    for incoming, data in zip(sealed, envelopes, strict=True):
        incoming.add(0, data)
    inbox.accept(site, sealed)


def contents(inbox: Inbox) -> dict[str, tuple[bytes, ...]]:
    return {site: tuple(incoming.path.read_bytes() for incoming in sealed) for site, sealed in inbox.read().items()}


def test_envelopes_come_back_by_site(folder, tmp_path):
    keep(folder.envelopes(1), "north")
    keep(folder.envelopes(1), "west.wing", ENVELOPES[::-1])  # a name may hold dots
    found = contents(RunFolder(tmp_path, "run-1").envelopes(1))
    assert found == {"north": ENVELOPES, "west.wing": ENVELOPES[::-1]}


def test_a_round_without_envelopes_has_none(folder):
    keep(folder.envelopes(1), "north")
    assert contents(folder.envelopes(2)) == {}


@pytest.mark.parametrize("came", range(4))
def test_a_site_counts_once_its_three_are_there_and_checked(folder, came):
    sealed = folder.envelopes(1).expect("north", [(len(e), hashlib.sha256(e).hexdigest()) for e in ENVELOPES])
    for incoming, data in zip(sealed[:came], ENVELOPES, strict=False):
        incoming.add(0, data)
    assert contents(folder.envelopes(1)) == {}


def test_a_site_that_announces_other_bytes_begins_anew_and_no_other_does(folder):
    inbox = folder.envelopes(1)
    keep(inbox, "west")
    first = inbox.expect("north", [(5, hashlib.sha256(b"12345").hexdigest())] * 3)[0]
    first.add(0, b"123")
    again = inbox.expect("north", [(5, hashlib.sha256(b"12345").hexdigest())] * 3)[0]
    assert again.held == 3
    other = inbox.expect("north", [(5, hashlib.sha256(b"54321").hexdigest())] * 3)[0]
    assert (other.held, first.held) == (0, 0)
    assert contents(inbox) == {"west": ENVELOPES}


def test_what_is_refused_is_gone(folder):
    inbox = folder.envelopes(1)
    keep(inbox, "north")
    keep(inbox, "west")
    inbox.refuse("north")
    assert contents(inbox) == {"west": ENVELOPES}


def test_prune_keeps_what_a_restart_needs(folder):
    hashes = {number: folder.save(checkpoint(number, value=number)) for number in range(1, 5)}
    for number in hashes:
        keep(folder.envelopes(number), "north")
        folder.prune(number - 1, updates=9)  # as a driver does once round `number - 1` is committed
    assert contents(folder.envelopes(3)) == {}
    assert contents(folder.envelopes(4)) == {"north": ENVELOPES}
    assert folder.load(3, hashes[3]).state[0] == 3
    assert folder.load(2, hashes[2]).state[0] == 2
    with pytest.raises(StateDamaged):
        folder.load(1, hashes[1])


def test_prune_drops_every_driver_s_checkpoint_of_an_old_round(folder):
    folder.save(checkpoint(1, value=0.5))
    folder.save(checkpoint(1, value=0.25))
    folder.save(checkpoint(11))  # whose name begins with the same digit
    folder.prune(3, updates=9)
    assert [re.match(r"state-(\d+)-", path.name)[1] for path in folder.path.iterdir()] == ["11"]


def test_prune_of_a_pruned_round_does_nothing(folder):
    folder.prune(1, updates=9)
    folder.prune(1, updates=9)
    assert list(folder.path.iterdir()) == []


def test_top_ups_come_back_by_site_for_their_set_alone(folder):
    folder.fix_set(3, ("a", "b"))
    keep(folder.topups(3, ("a", "b")), "a")
    assert folder.fixed_set(3) == ("a", "b")
    assert contents(folder.topups(3, ("a", "b"))) == {"a": ENVELOPES}
    others = folder.topups(3, ("a",)), folder.topups(4, ("a", "b")), folder.envelopes(3)
    assert [contents(inbox) for inbox in others] == [{}, {}, {}]
    assert folder.fixed_set(4) is None


def test_prune_drops_top_ups_with_their_envelopes(folder):
    folder.fix_set(3, ("a", "b"))
    keep(folder.topups(3, ("a", "b")), "a")
    folder.prune(3, updates=9)
    assert folder.fixed_set(3) is None
    assert contents(folder.topups(3, ("a", "b"))) == {}


def test_the_last_state_stays_whatever_follows_the_last_update(tmp_path):
    folder = RunFolder(tmp_path, "run-1")
    hashes = {number: folder.save(checkpoint(number)) for number in (1, 2)}
    folder.prune(4, updates=2)  # prototype and evaluation are committed
    assert folder.load(2, hashes[2]).round == 2


def test_a_share_that_the_disk_has_changed_is_named_with_what_to_do(folder):
    keep(folder.envelopes(1), "svi")
    kept = folder.envelopes(1).read()
    require_unchanged(kept)
    path = kept["svi"][1].path
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(data)
    assert folder.envelopes(1).read() == kept  # its length alone is looked at there
    with pytest.raises(StateDamaged, match=rf"{path.name} is not the share.*delete .*svi and resume the run"):
        require_unchanged(kept)
