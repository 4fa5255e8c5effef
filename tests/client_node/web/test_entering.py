import hashlib
import json
import os
import threading
import time

import pytest
from starlette.requests import Request

from confide.client_node.web import entering
from confide.client_node.web.entering import (
    IDLE_S,
    LINK_S,
    LONGEST_S,
    Attempts,
    Sessions,
    cookie_name,
    is_led_here,
    make_link,
    open_link,
)


@pytest.fixture
def clock(monkeypatch):
    """Sets how many seconds have gone by, on both clocks."""
    began, real = time.monotonic(), time.time()

    class Clock:
        def __init__(self) -> None:
            self.now = 0.0

        def monotonic(self) -> float:
            return began + self.now

        def time(self) -> float:
            return real + self.now

    clock = Clock()
    monkeypatch.setattr(entering, "time", clock)
    return clock


def asked(headers=(), port=9446) -> Request:
    return Request({"type": "http", "headers": list(headers), "server": ("127.0.0.1", port)})


def test_a_session_is_found_by_its_secret_alone():
    sessions = Sessions()
    secret = sessions.open("anna", "hash")
    found = sessions.find(secret)
    assert (found.who, found.proof, found.notice) == ("anna", "hash", "")
    assert len(secret) == len(found.form_key) == 43  # 32 bytes
    assert secret != found.form_key
    for wrong in (None, "", secret[:-1], secret + "=", secret.swapcase(), "\ud800", "x" * 100_000):
        assert sessions.find(wrong) is None


def test_a_secret_is_not_kept_and_nothing_of_a_session_is_shown():
    sessions = Sessions()
    secret = sessions.open("anna", "hash")
    assert secret not in repr(vars(sessions))
    assert sessions.find(secret).form_key not in repr(sessions.find(secret))
    assert "hash" not in repr(sessions.find(secret))


def test_no_two_sessions_share_a_secret_or_a_key():
    sessions = Sessions()
    secrets = [sessions.open(None) for _ in range(20)]
    assert len({*secrets, *(sessions.find(each).form_key for each in secrets)}) == 40


def test_a_session_ends_when_nobody_asks_for_an_hour(clock):
    sessions = Sessions()
    secret = sessions.open("anna")
    for _ in range(3):
        clock.now += IDLE_S - 1
        assert sessions.find(secret) is not None
    clock.now += IDLE_S + 1
    assert sessions.find(secret) is None
    clock.now -= IDLE_S + 1
    assert sessions.find(secret) is None  # for good


def test_a_page_that_looks_by_itself_keeps_no_session_open(clock):
    sessions = Sessions()
    secret = sessions.open("anna")
    for _ in range(3):
        clock.now += IDLE_S / 4
        assert sessions.find(secret, by_itself=True) is not None
    clock.now += IDLE_S / 4 + 1
    assert sessions.find(secret, by_itself=True) is None


def test_a_session_ends_after_half_a_day_whoever_asks(clock):
    sessions = Sessions()
    secret = sessions.open("anna")
    while clock.now + IDLE_S / 2 < LONGEST_S:
        clock.now += IDLE_S / 2
        assert sessions.find(secret) is not None
    clock.now = LONGEST_S + 1
    assert sessions.find(secret) is None


def test_the_oldest_sessions_end_where_there_are_too_many():
    sessions = Sessions()
    secrets = [sessions.open(None) for _ in range(entering._MOST_SESSIONS + 2)]
    assert [sessions.find(each) is None for each in secrets[:4]] == [True, True, False, False]


def test_a_closed_session_is_over_and_others_are_not():
    sessions = Sessions()
    first, second = sessions.open("anna"), sessions.open("anna")
    sessions.close(first)
    sessions.close(None)
    sessions.close("unknown")
    assert (sessions.find(first), sessions.find(second).who) == (None, "anna")


def test_wrong_tokens_are_bounded_and_the_oldest_is_forgotten_first(clock):
    attempts = Attempts(most=3, seconds=60.0)
    for _ in range(3):
        assert attempts.wait_s() == 0
        attempts.note_failure()
        clock.now += 10
    assert attempts.wait_s() == pytest.approx(30)
    clock.now += 31
    assert attempts.wait_s() == 0
    attempts.note_failure()
    assert attempts.wait_s() == pytest.approx(60 - 51)


def test_a_link_works_once(tmp_path):
    secret = make_link(tmp_path, "anna", "hash")
    assert open_link(tmp_path, secret) == ("anna", "hash")
    assert open_link(tmp_path, secret) is None
    assert list((tmp_path / "page-links").iterdir()) == []


def test_a_link_is_read_by_the_account_alone_and_its_secret_is_not_in_it(tmp_path):
    old = os.umask(0)
    try:
        secret = make_link(tmp_path, None)
    finally:
        os.umask(old)
    (file,) = (tmp_path / "page-links").iterdir()
    assert file.parent.stat().st_mode & 0o777 == 0o700
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.stem == hashlib.sha256(secret.encode()).hexdigest()
    assert secret not in file.read_text()


def test_a_link_that_others_can_write_or_read_lets_nobody_in(tmp_path):
    for mode in (0o644, 0o620, 0o602):
        secret = make_link(tmp_path, "anna", "hash")
        (file,) = (tmp_path / "page-links").iterdir()
        file.chmod(mode)
        assert open_link(tmp_path, secret) is None


@pytest.mark.parametrize("seconds", [LINK_S + 1, -LINK_S - 1, -1])
def test_a_link_is_over_after_five_minutes_and_before_it_was_made(tmp_path, clock, seconds):
    secret = make_link(tmp_path, "anna", "hash")
    clock.now += seconds
    assert open_link(tmp_path, secret) is None
    clock.now -= seconds
    assert open_link(tmp_path, secret) is None  # it is used up


def test_a_link_lasts_five_minutes(tmp_path, clock):
    secret = make_link(tmp_path, "anna", "hash")
    clock.now += LINK_S - 1
    assert open_link(tmp_path, secret) == ("anna", "hash")


@pytest.mark.parametrize(
    "change",
    [
        lambda link: link | {"role": "admin"},
        lambda link: link | {"until": "never"},
        lambda link: link | {"until": 1e300},
        lambda link: link | {"who": "a" * 257},
        lambda link: {"until": link["until"]},
        lambda link: [],
    ],
)
def test_a_link_of_another_form_lets_nobody_in(tmp_path, change):
    secret = make_link(tmp_path, "anna", "hash")
    (file,) = (tmp_path / "page-links").iterdir()
    file.write_text(json.dumps(change(json.loads(file.read_text()))))
    assert open_link(tmp_path, secret) is None


@pytest.mark.parametrize("secret", ["", "../settings", "\0", "\ud800", "a" * 43, "%2e%2e%2f"])
def test_what_is_no_link_opens_nothing(tmp_path, secret):
    assert open_link(tmp_path, secret) is None
    make_link(tmp_path, "anna", "hash")
    assert open_link(tmp_path, secret) is None


def test_of_many_at_once_one_has_the_link(tmp_path):
    for _ in range(10):
        secret, start, found = make_link(tmp_path, "anna", "hash"), threading.Barrier(6), []

        def use(secret=secret, start=start, found=found) -> None:
            start.wait()
            found.append(open_link(tmp_path, secret))

        threads = [threading.Thread(target=use) for _ in range(6)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        assert sorted(found, key=str) == [("anna", "hash"), *[None] * 5]


def test_links_are_few_and_the_newest_stay(tmp_path):
    secrets = []
    for number in range(entering._MOST_LINKS + 3):
        secrets.append(make_link(tmp_path, None))
        file = tmp_path / "page-links" / f"{hashlib.sha256(secrets[-1].encode()).hexdigest()}.json"
        os.utime(file, (number, number))
    assert len(list((tmp_path / "page-links").iterdir())) == entering._MOST_LINKS
    assert [open_link(tmp_path, each) is None for each in secrets[:4]] == [True, True, True, False]


def test_what_a_crash_leaves_of_links_does_not_pile_up(tmp_path):
    make_link(tmp_path, None)
    for number in range(200):
        (tmp_path / "page-links" / f"taken.{number}").touch()
    make_link(tmp_path, None)
    assert len(list((tmp_path / "page-links").iterdir())) == entering._MOST_LINKS


def test_a_link_that_goes_while_another_is_made_is_no_error(tmp_path, monkeypatch):
    make_link(tmp_path, None)
    (file,) = (tmp_path / "page-links").iterdir()
    stamp = entering.stamp

    def gone(path):
        file.unlink(missing_ok=True)  # a browser opens it just now
        return stamp(path)

    monkeypatch.setattr(entering, "stamp", gone)
    assert open_link(tmp_path, make_link(tmp_path, "anna", "hash")) == ("anna", "hash")


def test_pages_on_one_machine_leave_each_others_cookies_alone():
    """A browser sends a cookie of a host to all its ports (RFC 6265, section 8.5)."""
    assert cookie_name(asked(port=9446), is_https=False) != cookie_name(asked(port=9447), is_https=False)
    assert cookie_name(asked(), is_https=True).startswith("__Host-")


@pytest.mark.parametrize(
    ("site", "is_led"), [(None, False), (b"none", False), (b"same-origin", False), (b"same-site", True),
                         (b"cross-site", True), (b"", True)],
)  # fmt: skip
def test_a_link_on_another_page_is_noticed(site, is_led):
    headers = [] if site is None else [(b"sec-fetch-site", site)]
    assert is_led_here(asked(headers)) == is_led


def test_another_account_goes_on_with_no_session():
    sessions = Sessions()
    secret = sessions.open("anna", account=1001)
    assert sessions.find(secret, account=1002) is None
    assert sessions.find(secret) is None
    assert sessions.find(secret, account=1001).who == "anna"
