"""Real TLS on 127.0.0.1; the parties are threads."""

import contextlib
import dataclasses
import datetime
import functools
import os
import resource
import socket
import ssl
import struct
import threading
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import pytest

from confide.mpc.errors import InvalidField, PartyLost
from confide.mpc.links import certificates
from confide.mpc.links.tls import TlsCommunicator, hold_port


@pytest.fixture
def configs(tmp_path, kit):
    return kit.configs(tmp_path, 30.0)


@pytest.fixture
def hasty(configs):
    """The same for parties that wait in vain."""
    return [dataclasses.replace(config, timeout_s=2.0) for config in configs]


@pytest.fixture
def connect(kit):
    """Links up the parties with these configurations; closes all links at the end."""
    made = []

    def run(configs):
        results = kit.outcomes({c.aggregator_id: functools.partial(TlsCommunicator.connect, c) for c in configs})
        made.extend(one for one in results.values() if isinstance(one, TlsCommunicator))
        return list(results.values())

    yield run
    for one in made:
        one.close()


def together(kit, links, step="TEST", data=None, limit=100):
    words = data or [b"zero", b"one", b"two"]
    return list(
        kit.outcomes(
            {i: functools.partial(one.all_gather, step, words[i], limit) for i, one in enumerate(links)}
        ).values()
    )


def dialled(address, context):
    """What a client gets that dials a listening party: the time-out, or the TLS error."""
    host, port = address.split(":")
    for _ in range(1000):
        try:
            with socket.create_connection((host, int(port)), timeout=60) as raw, context.wrap_socket(raw) as link:
                return link.recv(1)
        except ConnectionRefusedError:
            time.sleep(0.01)
        except OSError as err:
            return err
    raise AssertionError("nobody listens")


def client_context(config):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.load_cert_chain(config.certificate, config.key)
    return context


def while_listening(config, action):
    """Runs `action` while the party of `config` waits for the others, and returns what the party got."""
    result = []

    def wait():
        try:
            result.append(TlsCommunicator.connect(config))
        except PartyLost as err:
            result.append(err)

    thread = threading.Thread(target=wait)
    thread.start()
    answer = action()
    thread.join()
    return answer, result[0]


def test_all_gather_gives_everyones_bytes_in_order(configs, connect, kit):
    assert together(kit, connect(configs)) == [[b"zero", b"one", b"two"]] * 3


@pytest.fixture
def dialled_from():
    """Dials a server from this port alone, as the system would from one that it chooses."""
    opened = [socket.create_server(("127.0.0.1", 0))]

    def dial(port):
        one = socket.socket()
        opened.append(one)
        try:
            one.setsockopt(socket.IPPROTO_IP, 51, struct.pack("I", port << 16 | port))  # IP_LOCAL_PORT_RANGE
        except OSError:  # Linux before 6.3
            one.bind(("127.0.0.1", port))
        one.connect(opened[0].getsockname())
        return one

    yield dial
    for one in opened:
        one.close()


def test_a_port_that_is_held_is_given_to_no_outgoing_connection(configs, dialled_from):
    with socket.create_server(("127.0.0.1", 0)) as chosen:  # by the system, as for a connection
        port = chosen.getsockname()[1]
    config = dataclasses.replace(configs[0], listen=f"127.0.0.1:{port}")
    with hold_port(config), pytest.raises(OSError, match=r"Cannot assign requested address|in use"):
        dialled_from(port)
    with dialled_from(port), pytest.raises(InvalidField, match="Address already in use"):
        hold_port(config)  # what would be so for as long as that connection lasts


def test_parties_link_up_beside_the_ports_that_they_hold(configs, connect, kit):
    held = [hold_port(config) for config in configs]
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(held[0].getsockname())
    assert together(kit, connect(configs)) == [[b"zero", b"one", b"two"]] * 3
    for one in held:
        one.close()


def test_a_port_that_another_program_has_is_told(configs):
    host, port = configs[0].addresses[0].split(":")
    with (
        socket.create_server((host, int(port))),
        pytest.raises(InvalidField, match=f"cannot listen on {host}:{port}: Address already in use"),
    ):
        hold_port(configs[0])


def test_links_speak_tls_1_3(configs, connect):
    for one in connect(configs):
        assert {link.version() for link in one._links.values()} == {"TLSv1.3"}


def test_large_words_do_not_block(configs, connect, kit):
    words = [bytes([i]) * 3_000_000 for i in range(3)]
    assert together(kit, connect(configs), data=words, limit=3_000_000) == [words] * 3


@pytest.mark.parametrize("me", range(3))
def test_nobody_waits_for_a_word_before_it_has_spoken_to_both_others(configs, connect, me):
    """Else each step would take two round trips in place of half of one."""
    links = connect(configs)
    one = links[me]
    waiting = threading.Thread(target=one.all_gather, args=("TEST", b"word", 4))
    waiting.start()
    others = [links[peer]._links[me] for peer in range(3) if peer != me]
    for other in others:
        other.settimeout(60)
        assert other.recv(12) == struct.pack(">4sI", b"TEST", 4) + b"word"
    for other in others:
        other.sendall(struct.pack(">4sI", b"TEST", 0))
    waiting.join()


def test_a_party_may_be_a_step_ahead(configs, connect, kit):
    first, second, third = connect(configs)
    words = [bytes([i]) * 3_000_000 for i in range(3)]

    def slow(one, pause):
        found = []
        for turn in range(4):
            time.sleep(pause)
            found.append(one.all_gather(f"STE{turn}", words[one.aggregator_id], 3_000_000))
        return found

    calls = {0: lambda: slow(first, 0), 1: lambda: slow(second, 0), 2: lambda: slow(third, 0.1)}
    assert list(kit.outcomes(calls).values()) == [[words] * 4] * 3


def test_a_party_that_trickles_is_lost_after_the_timeout(configs, connect):
    links = connect(configs)
    links[0].timeout_s, over = 1.0, threading.Event()

    def trickle():
        link = links[1]._links[0]
        link.settimeout(60)
        with contextlib.suppress(OSError):  # once it is given up
            link.sendall(struct.pack(">4sI", b"TEST", 100_000))
            while not over.wait(0.05):
                link.sendall(b"x")

    thread = threading.Thread(target=trickle)
    thread.start()
    with pytest.raises(PartyLost, match=r"aggregator 1 is lost at step TEST: timed out"):
        links[0].all_gather("TEST", b"", 100_000)
    over.set()
    thread.join()


class Dripping:
    """A link whose other end always has one byte more, and takes whatever comes."""

    def __init__(self, size):
        self._ends, self._head = socket.socketpair(), struct.pack(">4sI", b"TEST", size)

    def fileno(self):
        return self._ends[0].fileno()

    def setblocking(self, is_blocking):
        self._ends[0].setblocking(is_blocking)

    def send(self, data):
        return len(data)

    def recv_into(self, room):
        room[:1], self._head = self._head[:1] or b"x", self._head[1:]
        return 1

    def close(self):
        for end in self._ends:
            end.close()


def test_a_party_that_trickles_without_a_pause_is_lost_after_the_timeout_too():
    size = 100_000_000
    links = TlsCommunicator(0, {1: Dripping(size), 2: Dripping(size)}, 0.3)
    with pytest.raises(PartyLost, match=r"aggregator 1 is lost at step TEST: timed out") as raised:
        links.all_gather("TEST", b"", size)
    assert isinstance(raised.value.__cause__, TimeoutError)  # by which a party knows silence


def test_a_step_takes_no_descriptor(configs, connect, kit):
    links, limits = connect(configs), resource.getrlimit(resource.RLIMIT_NOFILE)
    unused = os.dup(0)
    os.close(unused)
    resource.setrlimit(resource.RLIMIT_NOFILE, (unused, limits[1]))
    try:
        found = together(kit, links)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert found == [[b"zero", b"one", b"two"]] * 3


def test_a_step_holds_both_words_that_come_and_one_copy(kit):
    """The machine's memory is bought by this: a word of an update may have hundreds of megabytes."""
    size, links = 8_000_000, kit.linked()
    word = bytes(size)

    def at_the_other_end(link):
        link.settimeout(60)
        taken, frame = 0, memoryview(struct.pack(">4sI", b"TEST", size) + word)
        sending = threading.Thread(target=link.sendall, args=(frame,))
        sending.start()
        while taken < len(frame):
            taken += len(link.recv(1 << 16))
        sending.join()

    others = [threading.Thread(target=at_the_other_end, args=(links[peer]._links[0],)) for peer in (1, 2)]
    tracemalloc.start()
    try:
        before = 2 * size  # the others' frames, which are in this process too
        for other in others:
            other.start()
        links[0].all_gather("TEST", word, size)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        for other in others:
            other.join()
        for one in links:
            one.close()
    assert peak - before < 3.5 * size


def test_closed_link_is_noticed_at_once(configs, connect, kit):
    links = connect(configs)
    links[1].close()
    results = together(kit, [links[0], links[2]])
    assert [type(result) for result in results] == [PartyLost] * 2
    assert not any("timed out" in str(result) for result in results)


def test_silent_party_is_lost_after_the_timeout(configs, connect):
    links = connect(configs)
    links[0].timeout_s = 0.2
    with pytest.raises(PartyLost, match=r"step TEST: .*timed out"):
        links[0].all_gather("TEST", b"", 1)


def test_party_at_another_step_is_lost(configs, connect, kit):
    links = connect(configs)
    calls = {i: functools.partial(one.all_gather, "STE" + str(i // 2), b"", 0) for i, one in enumerate(links)}
    assert [type(result) for result in kit.outcomes(calls).values()] == [PartyLost] * 3


def test_party_that_sends_too_much_is_lost(configs, connect, kit):
    results = together(kit, connect(configs), data=[b"", b"", b"xx"], limit=1)
    assert [type(result) for result in results[:2]] == [PartyLost] * 2


def test_a_key_may_come_as_bytes_which_are_on_no_disk_and_in_no_text(configs, connect, kit):
    given = [dataclasses.replace(one, key=one.key.read_bytes()) for one in configs]
    for one in configs:
        one.key.unlink()
    assert together(kit, connect(given), data=[b"a", b"b", b"c"], limit=1) == [[b"a", b"b", b"c"]] * 3
    assert b"PRIVATE" in given[0].key
    assert "PRIVATE" not in repr(given[0])


@pytest.mark.parametrize("key", [b"", b"x" * 20_000, "key.pem"], ids=["empty", "too long", "text"])
def test_a_key_that_is_neither_a_path_nor_a_short_pem_is_refused(configs, key):
    with pytest.raises(InvalidField, match="key must be a path, or PEM"):
        dataclasses.replace(configs[0], key=key)


def test_bytes_that_are_no_key_are_refused_before_anybody_is_dialled(configs):
    with pytest.raises(InvalidField, match="cannot be used"):
        TlsCommunicator.connect(dataclasses.replace(configs[0], key=b"no key"))


@pytest.mark.slow
def test_party_that_never_comes_is_named(hasty, connect):
    results = connect(hasty[:2])
    assert all(isinstance(result, PartyLost) for result in results)
    assert "[2] did not link up" in str(results[0])


@pytest.mark.slow
def test_stranger_certificate_is_refused_by_the_listener(hasty, tmp_path):
    (tmp_path / "stranger").mkdir()
    certificate, key = certificates.make_certificate(tmp_path / "stranger", "party1")
    stranger = dataclasses.replace(hasty[1], certificate=certificate, key=key)
    answer, result = while_listening(hasty[0], lambda: dialled(hasty[0].addresses[0], client_context(stranger)))
    assert isinstance(answer, ssl.SSLError)
    assert "unknown ca" in str(answer).lower()
    assert isinstance(result, PartyLost)


@pytest.mark.slow
def test_client_without_a_certificate_is_refused(hasty):
    bare = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    bare.check_hostname, bare.verify_mode = False, ssl.CERT_NONE
    answer, _ = while_listening(hasty[0], lambda: dialled(hasty[0].addresses[0], bare))
    assert isinstance(answer, ssl.SSLError)
    assert "certificate required" in str(answer).lower()


@pytest.mark.slow
def test_tls_1_2_is_refused(hasty):
    old = client_context(hasty[1])
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    answer, result = while_listening(hasty[0], lambda: dialled(hasty[0].addresses[0], old))
    assert isinstance(answer, ssl.SSLError)
    assert "protocol version" in str(answer).lower()
    assert isinstance(result, PartyLost)


@pytest.mark.slow
def test_stranger_in_a_partys_place_is_refused_by_the_dialler(hasty, connect, tmp_path):
    (tmp_path / "stranger").mkdir()
    certificate, key = certificates.make_certificate(tmp_path / "stranger", "party0")
    pins = (certificate.read_text(), *hasty[0].pins[1:])
    stranger = dataclasses.replace(hasty[0], certificate=certificate, key=key, pins=pins)
    results = connect([stranger, hasty[1], hasty[2]])
    assert all("another certificate" in str(result) for result in results[1:])


@pytest.mark.slow
def test_party_in_another_partys_place_is_refused(hasty, connect):
    """Party 2 answers at the address of party 0, with its own certificate, which is pinned for its own place."""
    swapped = dataclasses.replace(hasty[0], certificate=hasty[2].certificate, key=hasty[2].key)
    results = connect([swapped, hasty[1]])
    assert "certificate of another party" in str(results[1])


@pytest.mark.slow
def test_expired_certificate_is_refused(hasty, connect, tmp_path, monkeypatch):
    class Past(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.datetime.now(tz) - datetime.timedelta(days=3650)

    (tmp_path / "old").mkdir()
    monkeypatch.setattr(certificates, "datetime", Past)
    certificate, key = certificates.make_certificate(tmp_path / "old", "party0")
    pins = (certificate.read_text(), *hasty[0].pins[1:])
    old = [dataclasses.replace(config, pins=pins) for config in hasty]
    old[0] = dataclasses.replace(old[0], certificate=certificate, key=key)
    assert all("expired" in str(result) for result in connect(old)[1:])


def test_silent_strangers_do_not_keep_the_parties_apart(configs, connect, kit):
    """More of them than handshakes are kept open for; they never speak."""
    host, port = configs[0].addresses[0].split(":")
    strangers = []

    def crowd():
        while len(strangers) < 40:
            try:
                strangers.append(socket.create_connection((host, int(port)), timeout=60))
            except OSError:
                time.sleep(0.005)

    thread = threading.Thread(target=crowd)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(connect, configs[:1])
        thread.start()
        thread.join()
        links = connect(configs[1:])
        links = first.result() + links
    for stranger in strangers:
        stranger.close()
    assert together(kit, links) == [[b"zero", b"one", b"two"]] * 3


def test_unusable_certificate_files_are_told(configs, tmp_path):
    with pytest.raises(InvalidField, match="cannot be used"):
        TlsCommunicator.connect(dataclasses.replace(configs[0], key=tmp_path / "none"))


def test_equal_pins_are_refused(configs):
    same = dataclasses.replace(configs[0], pins=(configs[0].pins[0],) * 3)
    with pytest.raises(InvalidField, match="differ"):
        TlsCommunicator.connect(same)


def test_certificate_files_are_private_and_never_overwritten(tmp_path):
    for path in certificates.make_certificate(tmp_path, "agg"):
        assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(FileExistsError):
        certificates.make_certificate(tmp_path, "agg")
