"""A round cut into shards: real processes, dealt sites, and the very total of a party that does it alone."""

import dataclasses
import functools
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from confide.mpc.errors import EnvelopeUnreadable, FrameRejected, NormExceeded, PartyDied
from confide.mpc.links import Channel
from confide.mpc.links.frames import order_to_wire
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
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)))
    assert shard_count(wanted, sites) == count


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
    return pool


@pytest.mark.process
def test_processes_answer_as_one_shard_does(kit, three_shards, tmp_path):
    one, seeds = small(kit, 1), [bytes([i]) * 32 for i in range(5)]
    files, order = kit.lay(tmp_path, one.inbox(1)), one.order(1)
    files["site4"].write_bytes(b"\1" * 300)
    alone = Shard(1, order)
    summands = [Summand(f"site{i}", is_topup=False) for i in (5, 0, 3, 1, 2)]
    assert three_shards.open(order, files, {}) == alone.open(files, {})
    for found, expected in zip(
        three_shards.add_sketched(summands, seeds), alone.add_sketched(summands, seeds), strict=True
    ):
        assert (found == expected).all()
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
    three_shards.forget()  # as the party does after every order
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
    three_shards.open(order, files, {})
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
    part.begin(one.order(1))
    with pytest.raises(FrameRejected, match="total before an order"):
        part.total()


@pytest.fixture
def served():
    ours, theirs = socket.socketpair()
    thread = threading.Thread(target=serve, args=(Channel(theirs),))
    thread.start()
    with ours, theirs:
        channel = Channel(ours)
        channel.send("shard", aggregator_id=0)
        assert channel.receive() == {"kind": "ready"}
        yield channel
        channel.close()
        thread.join()


@pytest.mark.parametrize(
    "message",
    [
        {"kind": "total"},
        {"kind": "open", "order": {}, "updates": {}, "topups": {}},
        {"kind": "open", "order": {}, "updates": {"a": "relative"}},
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


@pytest.mark.process
def test_shards_end_with_their_party(kit, tmp_path):
    code = (
        "import sys; from pathlib import Path\n"
        "from confide.mpc.party import shards\nfrom confide.mpc.links import PartyConfig\n"
        "one = dict(addresses=('a:1',) * 3, pins=('p',) * 3, certificate=Path('c'), key=Path('k'), journal=Path('j'))\n"
        "party = shards.Shards(PartyConfig(aggregator_id=0, timeout_s=9.0, shards=2, **one))\n"
        "print(*(process.pid for process in party._started(2)), flush=True); sys.stdin.read()"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with parent:
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        watched = [os.pidfd_open(pid) for pid in pids]
        parent.kill()
    for pidfd in watched:
        ended, _, _ = select.select([pidfd], [], [], 60)
        os.close(pidfd)
        assert ended, "a shard outlived its party"


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
    releases = ask(1, lambda i, attempt: one.order(i, attempt=attempt, min_sites=150))
    kept = tuple(site for site in one.signers if site not in ("site13", "site77"))
    assert [each.kept for each in releases] == [kept] * 3
    assert [each.rejected for each in releases] == [("site77",)] * 3
    assert {each.total for each in releases} == {one.total(kept).tobytes()}
    tags = np.sum([np.frombuffer(each.tag_share, "<u8") for each in releases], axis=0, dtype=np.uint64)
    assert (tags == np.sum([one.tags[site] for site in kept], axis=0, dtype=np.uint64)).all()
    assert all(_shards_of(party.pid) == 2 for party in parties)


def _shards_of(pid):
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return sum(b"shard_process" in Path(f"/proc/{child}/cmdline").read_bytes() for child in children)
