"""Which server of a federation leads: two of one home, two of several machines, one that hangs."""

import errno
import fcntl
import os
import threading
from io import BytesIO

import pytest
from sqlalchemy import select

from confide.coordinator.errors import AlreadyLed, LeadLost, StoreUnavailable
from confide.coordinator.federation.serving import LOCK, is_served, only_server, read_serving
from confide.coordinator.gateway import leading
from confide.coordinator.gateway.leading import BEAT_S, GIVE_UP_S, LAPSE_S, Seat
from confide.coordinator.store import Store
from confide.coordinator.store.dump import write_dump
from confide.coordinator.store.place import note_database
from confide.coordinator.store.tables import ServerRow

from ..conftest import only_sqlite

GOES_ON = threading.Event()


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def machines(tmp_path, postgresql):
    """The homes of one federation on two machines, with one database."""
    url, homes = postgresql.url(), [tmp_path / "a", tmp_path / "b"]
    stores = []
    for home in homes:
        home.mkdir()
        (home / LOCK).touch()
        note_database(home, url)
        stores.append(Store.open(home))
    yield list(zip(stores, homes, strict=True))
    for store in stores:
        store.close()
    postgresql.drop(url)


def rows(store: Store) -> list[tuple[int, str]]:
    with store.session() as session:
        return [(row.term, row.id) for row in session.scalars(select(ServerRow).order_by(ServerRow.term))]


def waits(seat: Seat, clock: Clock) -> float:
    began = clock.now
    while seat.stand_by() is not None:
        clock.now += 1.0
        assert clock.now < began + 60
    return clock.now - began


@pytest.mark.process
def test_one_leads_and_another_takes_over_only_after_a_time_without_a_beat(machines, clock):
    first, second = (Seat(*machine, clock=clock) for machine in machines)
    store, _ = machines[0]
    assert first.stand_by() is None
    assert first.take(GOES_ON)
    for _ in range(20):
        clock.now += BEAT_S
        first.keep()
        assert second.stand_by() is not None
    assert len(store.standbys()) == 1
    clock.now += 10 * LAPSE_S
    assert second.stand_by() is not None  # nobody looked meanwhile: the database was away, or the machine slept
    waited = waits(second, clock)
    assert LAPSE_S < waited < LAPSE_S + 2
    assert second.take(GOES_ON)
    assert [term for term, _ in rows(store)] == [2]
    with pytest.raises(LeadLost, match="another server has taken this federation over"):
        first.keep()
    second.leave()
    assert rows(store) == []


@pytest.mark.process
def test_a_server_that_does_not_stand_by_refuses_as_soon_as_it_sees_a_beat(machines, clock, monkeypatch):
    first, second = (Seat(*machine, clock=clock) for machine in machines)
    assert first.take(GOES_ON)
    monkeypatch.setattr(leading, "_LOOK_S", 0.0)

    class Beats(threading.Event):
        def wait(self, timeout=None):
            clock.now += BEAT_S
            first.keep()
            return False

    with pytest.raises(AlreadyLed, match="use --standby"):
        second.take(Beats())

    class Silence(threading.Event):
        def wait(self, timeout=None):
            clock.now += 1.0
            return False

    began = clock.now
    assert second.take(Silence())
    assert LAPSE_S < clock.now - began < LAPSE_S + 5


@pytest.mark.process
def test_a_stop_ends_the_wait_for_a_sign_of_life(machines, clock):
    first, second = (Seat(*machine, clock=clock) for machine in machines)
    stop = threading.Event()
    stop.set()
    assert first.take(stop)
    assert not second.take(stop)
    assert [term for term, _ in rows(machines[0][0])] == [1]


@pytest.mark.process
def test_of_two_that_stand_by_one_takes_over(machines, clock):
    first, second = (Seat(*machine, clock=clock) for machine in machines)
    assert (first.stand_by(), second.stand_by()) == (None, None)
    assert first.take(GOES_ON)
    stop = threading.Event()
    stop.set()
    assert not second.take(stop)


@pytest.mark.process
def test_a_leader_that_died_on_this_machine_is_followed_at_once(machines, clock):
    """Its lock is free, and so it is dead, whatever its row says."""
    store, home = machines[0]
    with only_server(home):
        assert Seat(store, home, clock=clock).take(GOES_ON)
        other = Seat(store, home, clock=clock)
        assert other.stand_by() is not None
    assert other.stand_by() is None
    assert other.take(GOES_ON)
    assert [term for term, _ in rows(store)] == [2]


@pytest.mark.process
def test_a_held_lock_is_waited_for_even_without_a_beat(machines, clock):
    """A leader that hangs holds the home's files; its supervisor ends it."""
    store, home = machines[0]
    other = Seat(store, home, clock=clock)
    with only_server(home):
        for _ in range(60):
            assert other.stand_by() == "this machine or another one"
            clock.now += 1.0
    assert other.stand_by() is None


def test_nfs_lets_a_server_ask_for_the_lock(tmp_path, monkeypatch):
    """The kernel's NFS refuses a shared lock of a file that is not open for reading, with EBADF."""
    locks = fcntl.flock

    def strictly(file, kind):
        if kind & fcntl.LOCK_SH and "r" not in file.mode and "+" not in file.mode:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return locks(file, kind)

    monkeypatch.setattr(fcntl, "flock", strictly)
    assert not is_served(tmp_path)
    with only_server(tmp_path):
        assert is_served(tmp_path)
        assert read_serving(tmp_path) is not None
    assert read_serving(tmp_path) is None


def test_a_lock_that_cannot_be_asked_for_is_no_server(tmp_path, monkeypatch):
    def fails(file, kind):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", fails)
    with pytest.raises(OSError, match="No locks available"):
        is_served(tmp_path)


@pytest.mark.process
def test_a_leader_without_a_database_ends_if_another_server_may_reach_it(machines, clock, monkeypatch):
    first, second = (Seat(*machine, clock=clock) for machine in machines)
    assert first.take(GOES_ON)
    first.keep()

    def away():
        raise StoreUnavailable("the database does not answer")

    store, _ = machines[0]
    with monkeypatch.context() as patched:
        patched.setattr(store, "session", away)
        for _ in range(40):
            clock.now += 5.0
            with pytest.raises(StoreUnavailable):
                first.keep()
    second.stand_by()
    clock.now += BEAT_S
    first.keep()
    monkeypatch.setattr(store, "session", away)
    clock.now += GIVE_UP_S
    with pytest.raises(StoreUnavailable):
        first.keep()
    clock.now += BEAT_S + 0.1
    with pytest.raises(LeadLost, match="may reach it"):
        first.keep()


@pytest.mark.process
def test_who_stood_by_and_died_is_forgotten(machines, clock):
    first, second = (Seat(*machine, clock=clock) for machine in machines)
    store, _ = machines[0]
    first.take(GOES_ON)
    second.stand_by()
    for _ in range(40):
        assert len(rows(store)) == 2 or clock.now > 60
        clock.now += BEAT_S
        first.keep()
    assert store.standbys() == []


@only_sqlite
def test_with_sqlite_the_lock_alone_decides(tmp_path, any_store):
    home = tmp_path
    seat = Seat(any_store, home)
    with only_server(home):
        assert seat.stand_by() is not None
    assert seat.stand_by() is None
    assert seat.take(GOES_ON)
    seat.keep()
    assert any_store.standbys() == []


@pytest.mark.process
def test_a_backup_holds_no_server(machines, tmp_path):

    store, home = machines[0]
    Seat(store, home).take(GOES_ON)
    with store.moment() as connection:
        assert write_dump(connection, BytesIO())["server"] == 0
