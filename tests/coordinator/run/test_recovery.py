"""A driver goes on from the last committed model also where its file is damaged, with the same bytes or not at all.

The nodes are real ones without a model (`QuietFleet`).
"""

from dataclasses import replace

import pytest

from confide.coordinator.errors import StateDamaged
from confide.coordinator.run import recovery
from confide.coordinator.store.run_folder import RunFolder

from ..quiet_fleet import RUN, SITES, found

pytestmark = pytest.mark.slow


class PowerCut(BaseException):
    pass


@pytest.fixture
def stopped(tmp_path, empty_store, monkeypatch):
    """A run of four rounds whose coordinator is gone after the third."""
    federation = found(tmp_path, empty_store, monkeypatch, dropouts="over-provision", max_dropouts=0, rounds=4)

    def cut(kind, name):
        if len(federation.store.rounds(RUN)) == 3:
            raise PowerCut

    federation.fleet.before = cut
    with pytest.raises(PowerCut):
        federation.drive()
    federation.fleet.before = lambda kind, name: None
    return federation


def file_of(federation, number):
    (path,) = RunFolder(federation.home, RUN).path.glob(f"state-{number}-*")
    return path


DAMAGES = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[:100]),
    "flipped": lambda path: path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1])),
    "deleted": lambda path: path.unlink(),
}


@pytest.mark.parametrize(("rounds", "how"), [((3,), "flipped"), ((3,), "deleted"), ((2, 3), "cut")])
def test_a_damaged_model_is_computed_again_to_the_same_bytes_and_the_run_goes_on(stopped, rounds, how):
    path = file_of(stopped, 3)
    kept = path.read_bytes()
    for number in rounds:
        DAMAGES[how](file_of(stopped, number))
    assert recovery.newest_checkpoint(stopped.context()).to_bytes() == kept
    assert path.read_bytes() == kept
    stopped.drive()
    assert [row.summed for row in stopped.store.rounds(RUN)] == [SITES] * 4


def test_a_model_that_does_not_follow_any_more_stays_damaged_and_the_reasons_are_told(stopped, caplog):
    path = file_of(stopped, 3)
    path.write_bytes(b"")
    (path.parent / "total-3").write_bytes(b"another")
    with pytest.raises(StateDamaged, match=rf"{path.name} of round 3 cannot be read.*restore it from a backup"):
        stopped.drive()
    assert "total-3 is not the total that was opened" in caplog.text
    assert path.read_bytes() == b""


def test_a_folder_in_the_place_of_the_model_is_left_to_a_person(stopped):
    path = file_of(stopped, 3)
    path.unlink()
    path.mkdir()
    with pytest.raises(StateDamaged, match="of round 3 cannot be read"):
        recovery.newest_checkpoint(stopped.context())
    assert path.is_dir()


def test_a_model_that_comes_out_as_another_than_was_committed_is_not_taken(stopped, monkeypatch):
    path, real = file_of(stopped, 3), recovery.follow
    path.write_bytes(b"")

    def other_step(*arguments, **more):  # as if the server step were another one in this version
        after = real(*arguments, **more)
        return replace(after, state=after.state + 1)

    monkeypatch.setattr(recovery, "follow", other_step)
    with pytest.raises(StateDamaged, match="restore it from a backup"):
        recovery.newest_checkpoint(stopped.context())
    assert path.read_bytes() == b""
