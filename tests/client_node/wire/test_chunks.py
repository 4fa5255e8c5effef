import hashlib

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from confide.client_node.errors import MessageInvalid
from confide.client_node.wire import chunks
from confide.client_node.wire.chunks import Incoming, read_part

DATA = bytes(range(256)) * 4


@pytest.fixture
def incoming(tmp_path):
    return coming(tmp_path)


def coming(folder, data=DATA) -> Incoming:
    """As after a restart: nothing but the disk remembers."""
    digest = hashlib.sha256(data).hexdigest()
    return Incoming(folder / "svi" / digest, len(data), digest)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.integers(1, len(DATA) - 1), max_size=6), again=st.data())
def test_a_file_comes_whole_in_any_parts_over_restarts_and_repeats(tmp_path_factory, cuts, again):
    folder = tmp_path_factory.mktemp("parts")
    held = 0
    for end in sorted({*cuts, len(DATA)}):
        assert coming(folder).add(held, DATA[held:end]) == end
        held = end
        start = again.draw(st.integers(0, end))
        assert coming(folder).add(start, DATA[start : again.draw(st.integers(start, end))]) == end
    assert coming(folder).path.read_bytes() == DATA
    assert [path.name for path in (folder / "svi").iterdir()] == [coming(folder).path.name]


def test_a_file_is_there_once_it_is_whole_and_not_before(incoming):
    incoming.add(0, DATA[:-1])
    assert (incoming.is_whole, incoming.held) == (False, len(DATA) - 1)
    incoming.add(len(DATA) - 1, DATA[-1:])
    assert (incoming.is_whole, incoming.held) == (True, len(DATA))


def test_nothing_is_written_behind_a_gap(incoming):
    incoming.add(0, DATA[:10])
    assert incoming.add(11, DATA[11:20]) == 10


def test_other_bytes_for_the_same_place_are_refused_and_the_file_begins_anew(incoming):
    incoming.add(0, DATA[:10])
    with pytest.raises(MessageInvalid, match="not the bytes that were announced"):
        incoming.add(8, b"XX" + DATA[10:20])
    assert incoming.held == 0
    assert incoming.add(0, DATA) == len(DATA)


@pytest.mark.parametrize("place", [0, 500, len(DATA) - 1])
def test_a_whole_with_one_bit_flipped_is_refused_and_not_kept(incoming, place):
    flipped = bytearray(DATA)
    flipped[place] ^= 1
    incoming.add(0, bytes(flipped[:600]))
    with pytest.raises(MessageInvalid, match="not the bytes that were announced"):
        incoming.add(600, bytes(flipped[600:]))
    assert (incoming.is_whole, incoming.held) == (False, 0)


def test_leading_bytes_that_a_power_cut_spoilt_do_not_stop_a_file_for_ever(incoming):
    incoming.add(0, DATA[:100])
    part = incoming.path.with_name(f"{incoming.path.name}.part")
    part.write_bytes(DATA[:50] + bytes(50))
    with pytest.raises(MessageInvalid):
        incoming.add(0, DATA[:100])  # whoever begins from the start
    assert incoming.add(0, DATA) == len(DATA)


@pytest.mark.parametrize("offset", [0, 1, len(DATA), 10**12])
def test_more_than_was_announced_is_refused(incoming, offset):
    with pytest.raises(MessageInvalid, match="more came"):
        incoming.add(offset, DATA + b"x" if offset == 0 else DATA)


def test_parts_are_their_owners_alone(incoming):
    incoming.add(0, DATA[:1])
    (part,) = incoming.path.parent.iterdir()
    assert part.stat().st_mode & 0o777 == 0o600
    incoming.add(0, DATA)
    assert incoming.path.stat().st_mode & 0o777 == 0o600


def test_reading_in_parts_gives_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(chunks, "PART_BYTES", 100)
    (tmp_path / "file").write_bytes(DATA)
    offsets = range(0, len(DATA) + 100, 100)
    assert b"".join(read_part(tmp_path / "file", offset) for offset in offsets) == DATA
    assert read_part(tmp_path / "file", len(DATA)) == b""
