import pytest

from confide.client_node.errors import FileDamaged
from confide.client_node.files import write_private
from confide.client_node.shares import outbox as outbox_module
from confide.client_node.shares.outbox import Outbox, described
from confide.mpc.sharing.shares import set_name

RUN = "thyroid-0001"
FIRST, SECOND = (b"a", b"b", b"c"), (b"x", b"y", b"z")
WRITES = 4  # three envelopes and the mark that the round is complete


class PowerCut(BaseException):
    pass


def stored(outbox, run=RUN, number=1):
    return contents(outbox.get(run, number))


def stored_topup(outbox, sites, number=1):
    return contents(outbox.topup(RUN, number, set_name(sites)))


def contents(files):
    return None if files is None else tuple(path.read_bytes() for path in files)


@pytest.fixture
def cut_after(monkeypatch):
    """Makes the power fail before the write of that number."""

    def arrange(writes: int) -> None:
        left = iter(range(writes))

        def write(path, data):
            if next(left, None) is None:
                raise PowerCut
            write_private(path, data)

        monkeypatch.setattr(outbox_module, "write_private", write)

    return arrange


def test_a_stored_round_comes_back_byte_for_byte_after_a_restart(tmp_path):
    Outbox(tmp_path).put(RUN, 1, FIRST)
    assert stored(Outbox(tmp_path)) == FIRST


@pytest.mark.parametrize("place", [(RUN, 2), ("other-0001", 1)], ids=["another round", "another run"])
def test_a_round_is_stored_for_its_run_and_number_alone(tmp_path, place):
    Outbox(tmp_path).put(RUN, 1, FIRST)
    assert Outbox(tmp_path).get(*place) is None


@pytest.mark.parametrize("writes", range(WRITES))
def test_half_a_round_is_no_round(tmp_path, cut_after, writes):
    cut_after(writes)
    with pytest.raises(PowerCut):
        Outbox(tmp_path).put(RUN, 1, FIRST)
    assert Outbox(tmp_path).get(RUN, 1) is None


@pytest.mark.parametrize("writes", range(WRITES))
def test_a_round_stored_after_half_of_another_holds_nothing_of_that(tmp_path, cut_after, writes):
    cut_after(writes)
    with pytest.raises(PowerCut):
        Outbox(tmp_path).put(RUN, 1, FIRST)
    cut_after(WRITES)
    Outbox(tmp_path).put(RUN, 1, SECOND)
    assert stored(Outbox(tmp_path)) == SECOND


def test_a_settled_round_is_forgotten_and_no_other(tmp_path):
    outbox = Outbox(tmp_path)
    outbox.put(RUN, 1, FIRST)
    outbox.put(RUN, 2, SECOND)
    outbox.drop(RUN, 1)
    assert outbox.get(RUN, 1) is None
    assert stored(outbox, number=2) == SECOND


def test_a_round_may_be_forgotten_twice(tmp_path):
    outbox = Outbox(tmp_path)
    outbox.put(RUN, 1, FIRST)
    outbox.drop(RUN, 1)
    outbox.drop(RUN, 1)
    assert not list((tmp_path / "outbox" / RUN).iterdir())


def test_a_round_half_forgotten_is_no_round(tmp_path, monkeypatch):
    outbox = Outbox(tmp_path)
    outbox.put(RUN, 1, FIRST)

    def cut(folder, **_):
        (folder / "envelope-0").unlink()
        raise PowerCut

    monkeypatch.setattr(outbox_module.shutil, "rmtree", cut)
    with pytest.raises(PowerCut):
        outbox.drop(RUN, 1)
    assert outbox.get(RUN, 1) is None


def test_sealed_shares_are_their_owners_alone(tmp_path):
    Outbox(tmp_path).put(RUN, 1, FIRST)
    files = [path for path in (tmp_path / "outbox").rglob("*") if path.is_file()]
    assert len(files) == WRITES
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}


def test_a_top_up_comes_back_for_its_set_alone(tmp_path):
    outbox = Outbox(tmp_path)
    assert outbox.topped_set(RUN, 1) is None
    outbox.put_topup(RUN, 1, ("a", "b"), FIRST)
    outbox = Outbox(tmp_path)
    assert (stored_topup(outbox, ("a", "b")), outbox.topped_set(RUN, 1)) == (FIRST, ("a", "b"))
    assert stored_topup(outbox, ("a",)) is stored_topup(outbox, ("a", "b"), 2) is outbox.get(RUN, 1) is None


def test_a_stored_top_up_is_never_written_over(tmp_path):
    outbox = Outbox(tmp_path)
    outbox.put_topup(RUN, 1, ("a", "b"), FIRST)
    outbox.put_topup(RUN, 1, ("a", "b"), SECOND)
    assert stored_topup(outbox, ("a", "b")) == FIRST


@pytest.mark.parametrize("writes", range(WRITES + 1))
def test_half_a_top_up_has_its_set_and_was_not_given(tmp_path, cut_after, writes):
    """The set comes first: whoever was given the noise, the set for which it was given cannot be unknown."""
    outbox = Outbox(tmp_path)
    outbox.put_topup(RUN, 1, ("a", "b", "c"), FIRST)
    cut_after(writes)
    with pytest.raises(PowerCut):
        outbox.put_topup(RUN, 1, ("a", "b"), SECOND)
    assert outbox.topped_set(RUN, 1) == (("a", "b") if writes else ("a", "b", "c"))
    assert stored_topup(outbox, ("a", "b")) is None
    assert outbox.has_topped(RUN, 1, ("a", "b", "c")) is (writes == 0)
    assert not outbox.has_topped(RUN, 1, ("a", "b"))
    cut_after(WRITES + 1)
    outbox.put_topup(RUN, 1, ("a", "b"), SECOND)
    assert outbox.has_topped(RUN, 1, ("a", "b"))


def test_a_top_up_whose_set_was_lost_is_damage(tmp_path):
    outbox = Outbox(tmp_path)
    outbox.put_topup(RUN, 1, ("a", "b"), FIRST)
    (tmp_path / "outbox" / RUN / "1" / "topped.json").unlink()
    with pytest.raises(FileDamaged, match=r"topped\.json is missing"):
        outbox.topped_set(RUN, 1)
    with pytest.raises(FileDamaged, match=r"topped\.json is missing"):
        outbox.has_topped(RUN, 1, ("a", "b"))


def test_an_emptied_mark_does_not_let_unchecked_shares_through(tmp_path):
    files = Outbox(tmp_path).put(RUN, 1, FIRST)
    files[0].write_bytes(b"other")
    (files[0].parent / "complete").write_bytes(b"")
    with pytest.raises(FileDamaged, match="complete is empty"):
        described(files, 100)


def test_top_ups_are_forgotten_with_their_round(tmp_path):
    outbox = Outbox(tmp_path)
    outbox.put(RUN, 1, FIRST)
    outbox.put_topup(RUN, 1, ("a", "b"), SECOND)
    outbox.drop(RUN, 1)
    assert stored_topup(outbox, ("a", "b")) is outbox.topped_set(RUN, 1) is None


def test_a_round_is_lost_until_something_is_sealed_for_it(tmp_path):
    outbox = Outbox(tmp_path)
    assert not outbox.is_lost(RUN, 1)
    outbox.lose(RUN, 1)
    assert Outbox(tmp_path).is_lost(RUN, 1)
    assert not outbox.is_lost(RUN, 2)
    outbox.put(RUN, 1, FIRST)  # by a round that was under way
    assert not outbox.is_lost(RUN, 1)
    assert stored(outbox) == FIRST
