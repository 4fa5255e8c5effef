"""What systemd hears, by a socket such as it makes, and by its own library's words."""

import logging
import os
import socket

import pytest

from confide.client_node.supervision import Supervisor


class Clock:
    now = 50.0

    def __call__(self):
        return self.now


@pytest.fixture(params=["path", "abstract"])
def heard(request, tmp_path):
    """A supervisor's socket: its address in the environment, and what has come."""
    address = str(tmp_path / "notify") if request.param == "path" else f"@confide-test-{os.getpid()}"
    ear = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    ear.bind("\0" + address[1:] if address.startswith("@") else address)
    ear.setblocking(False)

    def words():
        found = []
        while True:
            try:
                found.append(ear.recv(4096).decode())
            except BlockingIOError:
                return found

    yield address, words
    ear.close()


def test_a_start_is_told_once_and_an_end(heard):
    address, words = heard
    supervisor = Supervisor({"NOTIFY_SOCKET": address})
    supervisor.ready()
    supervisor.ready()
    supervisor.live()  # no watchdog is asked for
    supervisor.stopping()
    assert words() == ["READY=1", "STOPPING=1"]


def test_life_is_told_three_times_within_the_time_that_the_watchdog_waits(heard):
    address, words = heard
    clock = Clock()
    asked = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}
    supervisor = Supervisor(asked, clock)
    for _ in range(30):  # a look each second
        supervisor.live()
        clock.now += 1
    assert words() == ["WATCHDOG=1"] * 3


def test_a_watchdog_of_another_process_is_not_answered(heard):
    address, words = heard
    Supervisor({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}).live()
    assert words() == []


def test_children_do_not_inherit_the_socket(heard):
    environment = {"NOTIFY_SOCKET": heard[0], "WATCHDOG_USEC": "1", "WATCHDOG_PID": "1", "HOME": "/"}
    Supervisor(environment)
    assert environment == {"HOME": "/"}


def test_without_a_supervisor_nothing_is_sent_and_one_that_is_gone_is_told_once_in_the_log(tmp_path, caplog):
    Supervisor({}).ready()
    Supervisor({"NOTIFY_SOCKET": "vsock:2:1"}).ready()
    assert caplog.text == ""
    gone = Supervisor({"NOTIFY_SOCKET": str(tmp_path / "gone"), "WATCHDOG_USEC": "3"})
    with caplog.at_level(logging.WARNING):
        gone.ready()
        gone.live()
        gone.stopping()
    assert caplog.text.count("does not hear") == 1
