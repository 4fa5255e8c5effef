"""A page's process that is given up, and the file that says where it listens."""

import logging
import socket
import sys
import time

import pytest

from confide.client_node.errors import FileDamaged
from confide.client_node.web import child
from confide.client_node.web.child import WebChild, noted_address

pytestmark = pytest.mark.process

SAYS = 'import sys; print(\'{"address": "http://127.0.0.1:7"}\', flush=True); sys.stdin.read()'
FAILS = "raise SystemExit(1)"


def until(is_so, web):
    for _ in range(600):
        web.tick()
        if is_so():
            return
        time.sleep(0.05)
    raise AssertionError("it never came to that")


def test_the_address_is_noted_while_the_page_is_there(tmp_path):
    noted = tmp_path / "page.json"
    noted.write_text('{"address": "of a process that was killed"}')
    web = WebChild([sys.executable, "-c", SAYS], tmp_path / "log", asked_for=True, noted_in=noted)
    until(lambda: noted.exists() and noted_address(noted) == "http://127.0.0.1:7", web)
    assert noted.stat().st_mode & 0o077 == 0
    web.stop()
    assert noted_address(noted) == ""


def test_a_page_that_nobody_asked_for_is_given_up_and_that_is_said_once(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(child, "PAUSES_S", (0.0, 0.0))
    begun = []
    web = WebChild([sys.executable, "-c", FAILS], tmp_path / "log", asked_for=False, tries=3)
    start = web._start
    monkeypatch.setattr(web, "_start", lambda: begun.append(1) or start())
    with caplog.at_level(logging.WARNING):
        until(lambda: "no page from here on" in caplog.text, web)
        for _ in range(20):
            web.tick()
    assert len(begun) == 3
    assert len(caplog.records) == 1


def test_a_page_that_was_asked_for_is_tried_for_ever(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(child, "PAUSES_S", (0.0, 0.0))
    web = WebChild([sys.executable, "-c", FAILS], tmp_path / "log", asked_for=True)
    with caplog.at_level(logging.WARNING):
        until(lambda: len(caplog.records) >= 4, web)
    assert all("it starts again" in each.getMessage() for each in caplog.records)
    web.stop()


def test_a_folder_in_place_of_the_note_ends_no_daemon(tmp_path, caplog):
    noted = tmp_path / "page.json"
    noted.mkdir()
    web = WebChild([sys.executable, "-c", SAYS], tmp_path / "log", asked_for=True, noted_in=noted)
    until(lambda: web.address, web)
    web.stop()
    assert "cannot be deleted" in caplog.text


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"address": 5}', '{"address": "a", "more": 1}'])
def test_a_file_that_names_no_address_is_damaged(tmp_path, text):
    (tmp_path / "page.json").write_text(text)
    with pytest.raises(FileDamaged, match="restart the daemon"):
        noted_address(tmp_path / "page.json")


def test_a_taken_port_ends_the_process_with_a_sentence(tmp_path, site):
    """A real one: the port of a site's page is held by another program."""
    import subprocess

    from confide.client_node.web import process
    from confide.client_node.web.serving import Place

    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        command = process.command("confide.client_node.page.process", site.home, Place(port=held.getsockname()[1]))
        told = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300)
    assert told.returncode == 1
    assert "the page cannot listen on 127.0.0.1" in told.stderr
    assert "Traceback" not in told.stderr
