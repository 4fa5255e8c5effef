"""A round cut into shards: real processes, dealt sites, and the very total of a party that does it alone."""

import ctypes
import dataclasses
import functools
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

import confide
from confide import machine
from confide.mpc.errors import EnvelopeUnreadable, FrameRejected, NormExceeded, PartyDied, VersionsApart
from confide.mpc.links import Channel
from confide.mpc.links.frames import config_to_wire, order_to_wire
from confide.mpc.party import shards
from confide.mpc.party.handle import PartyProcess
from confide.mpc.party.shard import Shard, Summand
from confide.mpc.party.shards import Shards, dealt, serve, shard_count
from confide.mpc.sharing.ring import Ring, from_integers

RING = Ring(32, 10)
BOUND = 6000


@pytest.mark.parametrize(
    ("wanted", "cores", "sites", "count"),
    [
        (None, 4, 63, 1),
        (None, 4, 64, 2),
        (None, 4, 1000, 4),
        (None, 40, 1000, 8),
        (None, 1, 1000, 1),
        (1, 4, 1000, 1),
        (5, 2, 1000, 5),
        (5, 2, 100, 3),
        (5, 2, 0, 1),
    ],
)
def test_a_round_has_as_many_shards_as_are_worth_it(monkeypatch, wanted, cores, sites, count):
    monkeypatch.setattr(shards, "cores", lambda: cores)
    assert shard_count(wanted, sites, 10_000) == count


def test_unasked_no_shards_are_made_whose_sums_fill_the_memory(monkeypatch):
    monkeypatch.setattr(shards, "cores", lambda: 8)
    sums = {size: shard_count(None, 1000, size) for size in (2**27, 2**28, 2**29, 2**30, 2**31)}
    assert sums == {2**27: 8, 2**28: 4, 2**29: 2, 2**30: 1, 2**31: 1}
    assert shard_count(3, 1000, 2**31) == 3


@pytest.mark.parametrize(
    ("quota", "cores"),
    [
        ("max 100000", 6),
        ("250000 100000", 2),
        ("50000 100000", 1),
        ("900000 100000", 6),
        ("", 6),
        ("1 0", 6),
        (None, 6),
    ],
)
def test_cores_are_counted_by_affinity_and_quota(monkeypatch, tmp_path, quota, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(6)))
    monkeypatch.setattr(machine, "_CGROUP", tmp_path / "cpu.max")
    if quota is not None:
        (tmp_path / "cpu.max").write_text(quota)
    assert machine.cores() == cores


@given(sizes=st.lists(st.integers(0, 5), min_size=1, max_size=30), count=st.integers(1, 7))
def test_shards_have_equally_many_sites_and_long_envelopes(tmp_path_factory, sizes, count):
    folder = tmp_path_factory.mktemp("envelopes")
    files = {f"site{i}": folder / f"site{i}" for i in range(len(sizes))}
    for path, size in zip(files.values(), sizes, strict=True):
        path.write_bytes(bytes(size))
    found = dealt(files, count)
    assert found.keys() == files.keys()
    for least in range(6):  # of every length and above
        held = [
            sum(found[f"site{i}"] == shard for i, size in enumerate(sizes) if size >= least) for shard in range(count)
        ]
        assert max(held) - min(held) <= 1


def test_an_envelope_that_is_gone_is_dealt_out_all_the_same(tmp_path):
    assert dealt({"a": tmp_path / "nowhere"}, 2) == {"a": 0}


def small(kit, number, sites=6, dim=100, **vectors):
    rng = np.random.default_rng(number)
    drawn = {f"site{i}": from_integers(rng.integers(-300, 300, dim), RING) for i in range(sites)}
    return kit.Round(number, RING, sites, dim, rng, tag_count=2, norm_bound=BOUND, vectors=drawn | vectors)


@pytest.fixture(scope="module")
def pool(kit, tmp_path_factory):
    made = Shards(dataclasses.replace(kit.configs(tmp_path_factory.mktemp("pool"), 20.0)[1], shards=3))
    yield made
    made.close()


@pytest.fixture
def three_shards(pool, monkeypatch):
    monkeypatch.setattr(shards, "LEAST_SITES", 1)
    pool.warm(3)
    yield pool
    pool.forget()


@pytest.mark.process
def test_processes_answer_as_one_shard_does(kit, three_shards, tmp_path):
    one, seeds = small(kit, 1), [bytes([i]) * 32 for i in range(5)]
    files, order = kit.lay(tmp_path, one.inbox(1)), one.order(1)
    files["site4"].write_bytes(b"\1" * 300)
    alone = Shard(1, order)
    summands = [Summand(f"site{i}", is_topup=False) for i in (5, 0, 3, 1, 2)]
    assert three_shards.open(order, files, {}) == alone.open(files, {})
    assert len(three_shards._parts) == 3
    found, expected = three_shards.add_sketched(summands, seeds), alone.add_sketched(summands, seeds)
    assert (found.rows == expected.rows).all()
    assert (found.mask_words == expected.mask_words).all()
    assert "[" not in repr(found)
    for taken in ([], ["site3"], ["site5", "site1", "site0", "site2"]):
        three_shards.take_out(taken)
        alone.take_out(taken)
        assert (three_shards.total().vector == alone.total().vector).all()
        assert three_shards.total().tag_share() == alone.total().tag_share()
    assert not three_shards.total().vector.any()


@pytest.mark.process
def test_what_the_disk_does_not_give_is_named_and_the_next_order_goes_on(kit, three_shards, tmp_path):
    one = small(kit, 2)
    files = kit.lay(tmp_path, one.inbox(1))
    kept = files["site2"].read_bytes()
    files["site2"].unlink()
    with pytest.raises(EnvelopeUnreadable) as told:
        three_shards.open(one.order(1), files, {})
    assert told.value.names == ("site2",)
    files["site2"].write_bytes(kept)
    assert len(three_shards.open(one.order(1), files, {}).updates) == 6


@pytest.mark.process
@pytest.mark.parametrize("when", ["between orders", "before it adds", "before it is asked for its sum", "at the end"])
def test_a_shard_that_is_killed_ends_the_order_and_the_next_one_starts_another(kit, three_shards, tmp_path, when):
    one = small(kit, 3)
    order, files = one.order(1), kit.lay(tmp_path, one.inbox(1))
    summands = [Summand(site, is_topup=False) for site in files]

    def kill():
        victim = three_shards._processes[1]
        os.kill(victim.pid, signal.SIGKILL)
        victim._process.wait()

    three_shards.open(order, files, {})
    if when == "between orders":
        three_shards.forget()
        kill()
    elif when == "before it adds":
        kill()
        with pytest.raises(PartyDied, match=r"a shard process of aggregator 1 ended \(-9\)"):
            three_shards.add(summands)
    elif when == "before it is asked for its sum":
        three_shards.add(summands)
        kill()
        with pytest.raises(PartyDied):
            three_shards.total()
    else:
        kill()
        three_shards.forget()  # of no consequence: it has forgotten
    assert len(three_shards.open(order, files, {}).updates) == 6
    assert len(three_shards._parts) == 2  # the third begins to load, and nobody waits for it
    three_shards.add(summands)
    alone = Shard(1, order)
    alone.open(files, {})
    alone.add(summands)
    assert (three_shards.total().vector == alone.total().vector).all()


@pytest.mark.process
def test_a_shard_has_forgotten_an_order_that_is_over(kit, three_shards, tmp_path):
    one = small(kit, 4)
    three_shards.open(one.order(1), kit.lay(tmp_path, one.inbox(1)), {})
    part = three_shards._parts[0]
    three_shards.forget()
    assert part._order is None
    part.begin(one.order(1))
    with pytest.raises(FrameRejected, match="total before an order"):
        part.total()


@pytest.mark.process
def test_a_shard_that_hangs_is_killed_before_its_party_would_be(kit, three_shards, tmp_path):
    one = small(kit, 7)
    order = dataclasses.replace(one.order(1), timeout_s=0.1)
    three_shards.open(order, kit.lay(tmp_path, one.inbox(1)), {})
    victim = three_shards._processes[2]
    os.kill(victim.pid, signal.SIGSTOP)
    with pytest.raises(PartyDied, match="a shard process of aggregator 1 ended"):
        three_shards.total()
    assert victim._process.returncode == -signal.SIGKILL


@pytest.fixture
def cold(kit, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "LEAST_SITES", 1)
    made = Shards(dataclasses.replace(kit.configs(tmp_path, 20.0)[0], shards=2))
    yield made
    made.close()


@pytest.mark.process
def test_nobody_waits_for_shards_to_load(kit, cold, tmp_path):
    one = small(kit, 8)
    files = kit.lay(tmp_path, one.inbox(0))
    assert len(cold.open(one.order(0), files, {}).updates) == 6
    assert [type(part) for part in cold._parts] == [Shard]
    cold.warm(2)
    assert len(cold.open(one.order(0), files, {}).updates) == 6
    assert len(cold._parts) == 2


def test_a_machine_that_starts_no_more_processes_does_the_round_in_one_piece(kit, cold, tmp_path, monkeypatch, caplog):
    def refused(*_, **__):
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(subprocess, "Popen", refused)
    one = small(kit, 9)
    assert len(cold.open(one.order(0), kit.lay(tmp_path, one.inbox(0)), {}).updates) == 6
    assert [type(part) for part in cold._parts] == [Shard]
    assert "of 2 shards 0 can be started" in caplog.text


@pytest.mark.process
def test_a_shard_of_another_version_takes_no_part(kit, cold, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(shards, "__version__", "0.0.1")
    with pytest.raises(VersionsApart, match=r"the party runs confide 0\.0\.1"):
        cold.warm(2)
    one = small(kit, 10)
    assert len(cold.open(one.order(0), kit.lay(tmp_path, one.inbox(0)), {}).updates) == 6
    assert [type(part) for part in cold._parts] == [Shard]


@pytest.fixture
def served():
    ours, theirs = socket.socketpair()
    thread = threading.Thread(target=serve, args=(Channel(theirs),))
    thread.start()
    with ours, theirs:
        channel = Channel(ours)
        channel.send("shard", aggregator_id=0, version=confide.__version__)
        assert channel.receive() == {"kind": "ready"}
        yield channel
        channel.close()
        thread.join()


@pytest.mark.parametrize(
    "message",
    [
        {"kind": "total"},
        {"kind": "open", "order": {}, "updates": {}, "topups": {}},
        {"kind": "open", "order": {}, "updates": {}},
        {"kind": "something"},
    ],
    ids=lambda message: message["kind"],
)
def test_what_no_shard_is_asked_is_refused_and_it_goes_on(served, message):
    for _ in range(2):
        served.send(**message)
        assert served.receive()["error"] == "FrameRejected"


@pytest.mark.parametrize(
    "message", [{"kind": "add", "summands": ()}, {"kind": "take out", "sites": (1,)}, {"kind": "something"}], ids=str
)
def test_what_no_shard_is_asked_within_an_order_is_refused(kit, served, message):
    one = small(kit, 5)
    served.send("open", order=order_to_wire(one.order(0)), updates={}, topups={})
    assert served.receive() == {"kind": "opened", "updates": {}, "topups": {}}
    served.send(**message)
    assert served.receive()["error"] == "FrameRejected"


@pytest.mark.parametrize("files", [{"updates": {"a": "relative"}}, {"topups": {"a": 1}}], ids=str)
def test_a_shard_opens_no_file_that_is_not_named_in_full(kit, served, files):
    order = order_to_wire(small(kit, 5).order(0))
    served.send("open", **{"order": order, "updates": {}, "topups": {}, **files})
    assert served.receive()["message"] == "files must be absolute paths by site"


PARTY = """
import os, sys
from confide.mpc.party import process, serving, shards

class Noted(shards.Shards):
    def __init__(self, config):
        super().__init__(config)
        self.warm(2)
        if {hangs}:
            os.kill(self._processes[0].pid, 19)
        print(*(one.pid for one in self._processes), flush=True)

serving.Shards = Noted
process.main()
"""


def party_with_shards(kit, folder, *, hangs):
    """A party's own process with two shards, the other end of its channel, and the shards."""
    ours, theirs = socket.socketpair()
    with theirs:
        code = PARTY.format(hangs=hangs)
        party = subprocess.Popen(
            [sys.executable, "-c", code, str(theirs.fileno())],
            pass_fds=(theirs.fileno(),), stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
    channel = Channel(ours)
    channel.send("config", config=config_to_wire(kit.configs(folder, 20.0)[0]))
    return party, channel, [os.pidfd_open(int(pid)) for pid in party.stdout.readline().split()]


def has_ended(pidfd):
    ended, _, _ = select.select([pidfd], [], [], 60)
    os.close(pidfd)
    return bool(ended)


@pytest.mark.process
@pytest.mark.parametrize("hangs", [False, True], ids=["", "one hangs"])
@pytest.mark.parametrize("end", ["its daemon lets it go", "it is killed"])
def test_shards_end_with_their_party(kit, tmp_path, end, hangs):
    party, channel, watched = party_with_shards(kit, tmp_path, hangs=hangs)
    with party:
        if end == "it is killed":
            party.kill()
            party.wait()
        channel.close()
    assert all(has_ended(pidfd) for pidfd in watched)
    assert len(watched) == 2


@pytest.mark.process
def test_a_party_that_is_let_go_leaves_no_process_to_anybody(kit, tmp_path):
    """Where the daemon is process 1 of a container, nobody would wait for orphans of its party."""
    libc, subreaper = ctypes.CDLL(None), 36  # PR_SET_CHILD_SUBREAPER
    libc.prctl(subreaper, 1)
    try:
        party, channel, watched = party_with_shards(kit, tmp_path, hangs=False)
        children = Path(f"/proc/{party.pid}/task/{party.pid}/children").read_text().split()
        channel.close()
        party.wait()
        party.stdout.close()
        assert len(children) == len(watched) == 2
        assert not any(Path(f"/proc/{child}").exists() for child in children)
    finally:
        libc.prctl(subreaper, 0)
        for pidfd in watched:
            os.close(pidfd)


@pytest.fixture
def parties(kit, tmp_path):
    made = [PartyProcess(dataclasses.replace(config, shards=2)) for config in kit.configs(tmp_path, 60.0)]
    for one in made:
        one.start()
    yield made
    for one in made:
        one.stop()


@pytest.mark.process
def test_two_hundred_sites_are_summed_in_shards_to_the_bit(kit, parties, tmp_path):
    """Three real committee members, each with two shards: one site away, one whose vector is too long."""
    dim, long = 300, from_integers(np.full(300, 5000), RING)
    one = small(kit, 6, sites=200, dim=dim, site77=long)

    def ask(attempt, order):
        boxes = [kit.lay(tmp_path, one.inbox(i, {"site13"} if i == 2 else ())) for i in range(3)]
        calls = {i: functools.partial(party.aggregate, order(i, attempt), boxes[i]) for i, party in enumerate(parties)}
        return list(kit.outcomes(calls).values())

    refused = ask(0, lambda i, attempt: one.order(i, attempt=attempt, min_sites=199))
    assert [(type(each), each.names) for each in refused] == [(NormExceeded, ("site77",))] * 3
    shards_of = [_children(party.pid) for party in parties]
    assert [len(pids) for pids in shards_of] == [2] * 3
    loaded = {pid: _seconds_to_load(pid) for pids in shards_of for pid in pids}
    releases = ask(1, lambda i, attempt: one.order(i, attempt=attempt, min_sites=150))
    kept = tuple(site for site in one.signers if site not in ("site13", "site77"))
    assert [each.kept for each in releases] == [kept] * 3
    assert [each.rejected for each in releases] == [("site77",)] * 3
    assert {each.total for each in releases} == {one.total(kept).tobytes()}
    tags = np.sum([np.frombuffer(each.tag_share, "<u8") for each in releases], axis=0, dtype=np.uint64)
    assert (tags == np.sum([one.tags[site] for site in kept], axis=0, dtype=np.uint64)).all()
    assert all(_seconds(pid) > spent for pid, spent in loaded.items())  # each took part

    victim = os.pidfd_open(shards_of[1][0])
    signal.pidfd_send_signal(victim, signal.SIGKILL)  # the party goes on, in one piece until another has loaded
    assert has_ended(victim)
    again = ask(2, lambda i, attempt: one.order(i, attempt=attempt, min_sites=150))
    assert {each.total for each in again} == {one.total(kept).tobytes()}


def _children(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _seconds(pid):
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


def _seconds_to_load(pid):
    """Processor time of a process once it has done nothing for half a second, after more than one of work."""
    spent = -1.0
    for _ in range(200):
        if spent == _seconds(pid) > 1:
            return spent
        spent = _seconds(pid)
        time.sleep(0.5)
    raise AssertionError(f"process {pid} never came to rest")
