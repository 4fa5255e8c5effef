import hashlib
import shutil
from types import SimpleNamespace

import pytest

from confide.client_node.errors import DiskFull, MessageInvalid, RoundOver
from confide.client_node.shares import spool as spool_module
from confide.client_node.shares.spool import Place, Spool

RUN, SET, SMALLER = "thyroid-0001", "ab" * 32, "cd" * 32
UPDATE, TOPUP = Place(RUN, 3, "svi", None), Place(RUN, 3, "svi", SET)
DATA, OTHER = b"sealed share", b"other sealed"


def digest_of(data):
    return hashlib.sha256(data).hexdigest()


def deposit(spool, place, data=DATA, start=0, end=None):
    return spool.add(place, size=len(data), digest=digest_of(data), offset=start, data=data[start:end])


def found(spool, place, data=DATA):
    path = spool.find(place, digest_of(data))
    return None if path is None else path.read_bytes()


def test_a_share_that_came_in_parts_is_found_after_a_restart(tmp_path):
    assert deposit(Spool(tmp_path), UPDATE, end=5) == 5
    assert found(Spool(tmp_path), UPDATE) is None
    assert deposit(Spool(tmp_path), UPDATE, start=5) == len(DATA)
    assert found(Spool(tmp_path), UPDATE) == DATA


@pytest.mark.parametrize(
    "place",
    [TOPUP, Place(RUN, 3, "rest", None), Place(RUN, 2, "svi", None), Place("other-0001", 3, "svi", None)],
    ids=["a top-up", "another site", "another round", "another run"],
)
def test_a_share_is_found_in_its_place_alone(tmp_path, place):
    deposit(Spool(tmp_path), UPDATE)
    assert found(Spool(tmp_path), place) is None


@pytest.mark.parametrize("end", [5, None], ids=["half", "whole"])
def test_a_place_takes_one_file(tmp_path, end):
    spool = Spool(tmp_path)
    deposit(spool, UPDATE, end=end)
    with pytest.raises(MessageInvalid, match="other sealed bytes were announced for svi before"):
        deposit(spool, UPDATE, OTHER)
    deposit(spool, UPDATE, start=5)
    assert found(spool, UPDATE) == DATA


def test_the_same_bytes_again_are_no_error(tmp_path):
    spool = Spool(tmp_path)
    assert [deposit(spool, UPDATE, end=5), deposit(spool, UPDATE, end=5)] == [5, 5]
    assert [deposit(spool, UPDATE), deposit(spool, UPDATE, end=5)] == [len(DATA)] * 2


def test_a_later_round_ends_the_ones_before(tmp_path):
    spool, later = Spool(tmp_path), Place(RUN, 4, "svi", None)
    deposit(spool, UPDATE)
    deposit(spool, later, OTHER)
    assert [path.name for path in (tmp_path / "spool" / RUN).iterdir()] == ["4"]
    for is_late in (deposit, lambda spool, place: spool.put(place, DATA), lambda spool, place: spool.begin(RUN, 3)):
        with pytest.raises(RoundOver, match=f"round 3 of run {RUN} is over here: round 4 has begun"):
            is_late(Spool(tmp_path), UPDATE)
    assert found(spool, later, OTHER) == OTHER


def test_what_was_added_for_a_larger_set_goes_when_the_set_shrinks(tmp_path):
    spool, smaller = Spool(tmp_path), Place(RUN, 3, "rest", SMALLER)
    deposit(spool, UPDATE)
    deposit(spool, TOPUP)
    deposit(spool, smaller)
    assert (found(spool, TOPUP), found(spool, smaller), found(spool, UPDATE)) == (None, DATA, DATA)


def test_a_share_that_came_with_an_order_never_passes_for_one_on_disk(tmp_path):
    spool = Spool(tmp_path)
    path = spool.put(UPDATE, DATA)
    assert path.read_bytes() == DATA
    assert found(spool, UPDATE) is None  # it was not flushed: a power cut may have left half of it
    deposit(spool, UPDATE)
    assert found(spool, UPDATE) == DATA


def test_a_share_that_came_with_an_order_takes_the_place_of_another(tmp_path):
    spool = Spool(tmp_path)
    first = spool.put(UPDATE, OTHER)
    assert spool.put(UPDATE, DATA).read_bytes() == spool.put(UPDATE, DATA).read_bytes() == DATA
    assert not first.exists()


def test_a_pausing_run_keeps_no_shares_and_its_rounds_stay_over(tmp_path):
    spool = Spool(tmp_path)
    deposit(spool, UPDATE)
    spool.clear(RUN)
    spool.clear("never-seen")
    assert not [path for path in (tmp_path / "spool").rglob("*") if path.is_file()]
    with pytest.raises(RoundOver):
        deposit(spool, Place(RUN, 2, "svi", None))


def test_the_end_of_a_run_leaves_nothing_of_it_and_others_alone(tmp_path):
    spool, other = Spool(tmp_path), Place("other-0001", 1, "svi", None)
    deposit(spool, UPDATE)
    deposit(spool, other)
    spool.drop(RUN)
    spool.drop(RUN)
    assert [path.name for path in (tmp_path / "spool").iterdir()] == ["other-0001"]
    assert found(spool, other) == DATA


def test_shares_are_their_owners_alone(tmp_path):
    spool = Spool(tmp_path)
    deposit(spool, UPDATE, end=5)
    deposit(spool, TOPUP)
    spool.put(Place(RUN, 3, "rest", None), DATA)
    files = [path for path in (tmp_path / "spool").rglob("*") if path.is_file()]
    assert [path.stat().st_mode & 0o777 for path in files] == [0o600] * 3


@pytest.mark.parametrize(
    ("limit", "free"), [(2 * len(DATA) - 1, 1 << 40), (1 << 40, len(DATA) + (1 << 30) - 1)], ids=["spool", "disk"]
)
def test_a_share_without_room_is_refused_before_it_comes_and_others_are_kept(tmp_path, monkeypatch, limit, free):
    spool = Spool(tmp_path)
    deposit(spool, UPDATE)
    monkeypatch.setattr(spool_module, "MAX_BYTES", limit)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    with pytest.raises(DiskFull, match="no room for the 12 bytes of rest"):
        deposit(spool, Place(RUN, 3, "rest", None))
    assert found(spool, UPDATE) == DATA
