"""Three real party processes over mutual TLS on 127.0.0.1."""

import dataclasses
import functools
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import confide
from confide.mpc.errors import (
    CohortTooSmall,
    EnvelopeUnreadable,
    Equivocation,
    JournalBroken,
    OrderMismatch,
    PartyDied,
    PartyLost,
    RuntimeUnsound,
    SetConflict,
    TopUpMissing,
)
from confide.mpc.links.tls import TlsCommunicator
from confide.mpc.party import aggregation, handle
from confide.mpc.party.handle import OpenedTotal, PartyProcess
from confide.mpc.party.shard import Shard
from confide.mpc.sharing.ring import Ring, from_integers
from confide.mpc.sharing.sealing import seal_update

pytestmark = pytest.mark.process

RINGS = [Ring(64, 24), Ring(32, 20)]
numbers = iter(range(1000))


@pytest.fixture(scope="module")
def three(kit, tmp_path_factory):
    processes = [PartyProcess(config) for config in kit.configs(tmp_path_factory.mktemp("parties"), 15.0)]
    for one in processes:
        one.start()
    yield processes
    for one in processes:
        one.stop()


@pytest.fixture(autouse=True)
def _all_loaded(three):
    for one in three:
        one.wait_ready()


@pytest.fixture
def new_round(kit):
    return lambda ring=RINGS[0], sites=4: kit.Round(next(numbers), ring, sites, 1000, np.random.default_rng(3))


@pytest.fixture
def ask(kit, three, tmp_path):
    def run(one, *, attempt=0, min_sites=2, without=((), (), ()), attempts=None):
        return list(
            kit.outcomes(
                {
                    i: functools.partial(
                        process.aggregate,
                        one.order(i, attempt=attempts[i] if attempts else attempt, min_sites=min_sites),
                        kit.lay(tmp_path, one.inbox(i, without[i])),
                    )
                    for i, process in enumerate(three)
                }
            ).values()
        )

    return run


@pytest.fixture
def give(kit, three, tmp_path):
    """The calls that give the first two parties their order."""
    return lambda one: {
        i: functools.partial(three[i].aggregate, one.order(i), kit.lay(tmp_path, one.inbox(i))) for i in range(2)
    }


def total_of(releases, one):
    assert all(isinstance(release, OpenedTotal) for release in releases), releases
    assert len({(release.kept, release.set_digest, release.total) for release in releases}) == 1
    return np.frombuffer(releases[0].total, one.ring.unsigned)


def kinds(results):
    return [type(result) for result in results]


@pytest.mark.parametrize("ring", RINGS)
def test_total_is_right_bit_for_bit_and_on_a_retry(ask, new_round, ring):
    one = new_round(ring)
    first, again = ask(one), ask(one, attempt=1)
    assert (total_of(first, one) == one.total(one.vectors)).all()
    assert [release.total for release in first] == [release.total for release in again]


@pytest.mark.parametrize("ring", [Ring(32, 10), Ring(64, 10)], ids=str)
def test_vector_beyond_the_bound_is_left_out_by_a_circuit_on_shares(ask, kit, ring):
    """Oblivious transfers, CrypTen, TLS and three processes; a retry opens no more than the first attempt did."""
    rng = np.random.default_rng(3)
    units = {f"site{i}": rng.integers(-300, 300, 1000) * (30 if i == 2 else 1) for i in range(5)}
    vectors = {site: from_integers(values, ring) for site, values in units.items()}
    one = kit.Round(next(numbers), ring, 5, 1000, rng, norm_bound=6000, vectors=vectors)
    rest = ("site0", "site1", "site3", "site4")
    for attempt in range(2):
        releases = ask(one, attempt=attempt)
        assert [(release.kept, release.rejected) for release in releases] == [(rest, ("site2",))] * 3
        assert (total_of(releases, one) == one.total(rest)).all()


def test_withheld_site_after_a_release_is_a_conflict(ask, new_round):
    one = new_round()
    ask(one)
    results = ask(one, attempt=1, without=(("site2",), (), ()))
    assert kinds(results) == [SetConflict] * 3
    assert {result.bound for result in results} == {("site0", "site1", "site2", "site3")}


def test_too_few_sites_are_refused_and_then_waited_for(ask, new_round):
    one = new_round()
    results = ask(one, min_sites=4, without=((), (), ("site1",)))
    assert kinds(results) == [CohortTooSmall] * 3
    assert {result.names for result in results} == {("site0", "site2", "site3")}
    assert (total_of(ask(one, attempt=1, min_sites=4), one) == one.total(one.vectors)).all()


def test_smaller_set_is_released_with_its_top_ups_only(kit, new_round, three, tmp_path):
    one, left = new_round(), ("site0", "site2", "site3")
    one.top_up(left)

    def asked(topups, attempt):
        calls = {
            i: functools.partial(
                process.aggregate,
                one.order(i, attempt=attempt, sites=left, min_untopped=4),
                kit.lay(tmp_path, one.inbox(i, without=["site1"])),
                kit.lay(tmp_path, topups(i)),
            )
            for i, process in enumerate(three)
        }
        return list(kit.outcomes(calls).values())

    assert kinds(asked(lambda party: {}, 0)) == [TopUpMissing] * 3
    noise = np.sum([one.topups[site][0] for site in left], axis=0, dtype=one.ring.unsigned)
    assert (total_of(asked(one.topup_box, 1), one) == one.total(left) + noise).all()


def test_different_attempts_are_refused(ask, new_round):
    assert kinds(ask(new_round(), attempts=(0, 0, 1))) == [OrderMismatch] * 3


def test_different_messages_of_a_site_stop_the_round(ask, new_round, kit):
    one, other = new_round(), new_round()
    resealed = seal_update(
        other.vectors["site1"], one.context("site1"), one.public, one.signers["site1"], 0, position=kit.PLACE
    )
    inboxes = [one.inbox(0), one.inbox(1), {**one.inbox(2), "site1": resealed[2].to_bytes()}]
    one.inbox = lambda party, without: inboxes[party]
    assert kinds(ask(one)) == [Equivocation] * 3


def test_garbage_and_oversized_envelopes_count_as_absent(ask, new_round):
    one = new_round(sites=5)
    honest = one.inbox
    one.inbox = lambda party, without: {**honest(party), "site0": b"junk", "site4": bytes(100_000), "who": b""}
    assert [release.kept for release in ask(one)] == [("site1", "site2", "site3")] * 3


def test_killed_party_ends_the_call_and_a_new_one_takes_the_retry(ask, new_round, three):
    one = new_round()
    first = ask(one)
    pid = three[1].pid
    os.kill(pid, signal.SIGKILL)
    while three[1].pid == pid:  # until the death is noticed
        time.sleep(0.01)
        three[1].wait_ready()
    again = ask(one, attempt=1)
    assert three[1].pid != pid
    assert total_of(again, one).tobytes() == total_of(first, one).tobytes()
    assert kinds(ask(one, attempt=2, without=(("site0",), (), ()))) == [SetConflict] * 3


@pytest.mark.parametrize("end", [lambda one: os.kill(one.pid, signal.SIGKILL), PartyProcess.stop], ids=["kill", "stop"])
def test_process_that_ends_during_a_call_is_party_died(kit, new_round, three, tmp_path, end):
    one = new_round()
    order, files = one.order(0), kit.lay(tmp_path, one.inbox(0))
    timer = threading.Timer(0.5, end, [three[0]])
    timer.start()
    with pytest.raises(PartyDied):  # it waits for the other two, who have no order
        three[0].aggregate(order, files)
    timer.join()


@pytest.mark.parametrize("step", ["MASK", "DONE"])
def test_party_that_dies_in_a_round_is_lost_at_once_and_nothing_is_released(
    ask, give, kit, new_round, three, tmp_path, step
):
    """Party 2 is played by this test up to the step; then its links close, as when it is killed."""
    one = new_round()
    three[2].stop()

    def dying():
        links = TlsCommunicator.connect(three[2]._config)
        links.exchange("SEED", {0: b"s" * 32, 1: b""}, 32)
        order = one.order(2)
        aggregation.compare_orders(order, links)
        files = kit.lay(tmp_path, one.inbox(2))
        opened = Shard(2, order).open(files, {})
        if step == "DONE":
            aggregation._agree(order, opened.updates, links, "MASK", "VIEW")
            links.all_gather("BIND", b"", 2**20)
        links.close()

    results = kit.outcomes({**give(one), 2: dying})
    assert kinds([results[0], results[1]]) == [PartyLost] * 2
    assert not any("timed out" in str(results[party]) for party in (0, 1))  # noticed, not waited for
    three[2].wait_ready()
    assert (total_of(ask(one, attempt=1), one) == one.total(one.vectors)).all()


def test_party_that_never_gets_the_order_is_lost_after_the_timeout(give, kit, new_round):
    assert kinds(kit.outcomes(give(new_round())).values()) == [PartyLost] * 2


def test_file_that_the_disk_does_not_give_is_an_error_and_no_missing_site(ask, give, kit, new_round, three, tmp_path):
    one = new_round()
    files = kit.lay(tmp_path, one.inbox(2))
    files["site1"].unlink()
    broken = {2: functools.partial(three[2].aggregate, one.order(2), files)}
    results = kit.outcomes({**give(one), **broken})
    assert [type(results[party]) for party in range(3)] == [PartyLost, PartyLost, EnvelopeUnreadable]
    assert results[2].names == ("site1",)
    assert (total_of(ask(one, attempt=1), one) == one.total(one.vectors)).all()


def test_process_ends_when_its_parent_is_killed(kit, tmp_path):
    code = (
        "import sys, time, pickle; from confide.mpc.party.handle import PartyProcess\n"
        "party = PartyProcess(pickle.load(sys.stdin.buffer)); party.wait_ready()\n"
        "print(party.pid, flush=True); time.sleep(600)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with parent:
        parent.stdin.write(pickle.dumps(kit.configs(tmp_path, 1.0)[0]))
        parent.stdin.close()
        child = int(parent.stdout.readline())
        parent.kill()
    for _ in range(1200):
        state = Path(f"/proc/{child}/stat")
        if not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    raise AssertionError("the party outlived its parent")


def test_unusable_journal_is_told(kit, tmp_path):
    config = dataclasses.replace(kit.configs(tmp_path, 1.0)[0], journal=tmp_path / "no" / "journal")
    with PartyProcess(config) as party, pytest.raises(JournalBroken):
        party.wait_ready()


WITHOUT_CRYPTEN = """#!{python} -I
import runpy, sys

sys.path.insert(0, {folder!r})
sys.argv = ["party", sys.argv[-1]]
runpy.run_module("confide.mpc.party.process", run_name="__main__")
"""


@pytest.mark.slow
def test_without_crypten_nothing_aggregates(kit, tmp_path, monkeypatch, new_round):
    (tmp_path / "confide").mkdir()
    for name in ("__init__.py", "log_lines.py", "mpc"):  # all that a party imports, without third_party
        (tmp_path / "confide" / name).symlink_to(Path(confide.__file__).with_name(name))
    interpreter = tmp_path / "python"
    interpreter.write_text(WITHOUT_CRYPTEN.format(python=sys.executable, folder=str(tmp_path)))
    interpreter.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(interpreter))
    one = new_round(RINGS[0])
    for party in (PartyProcess(config) for config in kit.configs(tmp_path, 1.0)):
        with party, pytest.raises(RuntimeUnsound, match="CrypTen is missing at"):
            party.aggregate(one.order(0), kit.lay(tmp_path, one.inbox(0)))
        assert party.pid is None


def test_stop_is_harmless_where_nothing_runs(kit, tmp_path):
    party = PartyProcess(kit.configs(tmp_path, 1.0)[0])
    party.stop()
    assert party.pid is None


def test_exported_names_exist():
    assert {name for name in handle.__all__ if hasattr(handle, name)} == {
        "OpenedTotal",
        "Order",
        "PartyConfig",
        "PartyProcess",
        "make_certificate",
    }
