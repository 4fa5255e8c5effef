"""The log of refusals: a budget for each reason, and counts of what is not listed."""

import logging

import pytest

from confide.coordinator.gateway.refusals import RefusalLog

from .played import Clock

HOUR_CAP = 1 << 20  # bytes


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def log(clock: Clock, caplog: pytest.LogCaptureFixture) -> RefusalLog:
    caplog.set_level(logging.INFO, logger="confide.gate")
    return RefusalLog(clock)


def test_a_flood_of_strangers_hides_neither_impersonation_nor_revocation(
    log: RefusalLog, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(5000):
        log.stranger("unknown", str(number), "unknown key %s", number)
    log.known("impersonation", "k1", "impersonation: site %r", "north")
    log.known("revoked", "k2", "revoked key of site %r", "south")
    assert caplog.messages[-2:] == [
        "turned away: impersonation: site 'north'", "turned away: revoked key of site 'south'",
    ]  # fmt: skip
    assert len(caplog.messages) < 10


def test_every_key_that_impersonates_has_its_line(log: RefusalLog, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(1000):
        log.known("impersonation", str(number), "impersonation: site %d", number)
    assert len(caplog.messages) == 1000


def test_a_flood_for_one_reason_leaves_lines_for_another(log: RefusalLog, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(5000):
        log.stranger("unknown", str(number), "unknown key %s", number)
    log.stranger("code", "10.0.0.1", "used invitation code")
    assert caplog.messages[-1] == "turned away: used invitation code"


def test_what_is_not_listed_is_counted(log: RefusalLog, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(100):
        log.stranger("unknown", str(number % 50), "unknown key %s", number)
        log.stranger("path", "10.0.0.1", "asked for /")
    caplog.clear()
    log.report()
    assert caplog.messages == ["turned away and not listed in the last minute: 97 unknown, 99 path"]
    caplog.clear()
    log.report()
    assert not caplog.messages


def test_a_new_minute_has_new_lines(log: RefusalLog, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        log.stranger("path", "10.0.0.1", "asked for /")
        log.report()
    assert caplog.messages.count("turned away: asked for /") == 2


def test_a_key_that_repeats_itself_is_counted_after_growing_pauses(
    log: RefusalLog, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(24 * 3600):
        log.known("impersonation", "k", "impersonation")
        clock.now += 1
    assert caplog.messages[:2] == [
        "turned away: impersonation", "turned away: impersonation (59 more like this before)",
    ]  # fmt: skip
    assert len(caplog.messages) < 6 + 24 + 2


def test_a_key_that_stopped_has_its_count_logged(
    log: RefusalLog, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        log.known("impersonation", "k" * 64, "impersonation")
    clock.now += 60
    log.report()
    assert caplog.messages[-1] == f"not listed: 2 more of impersonation, {'k' * 40}"
    clock.now += 24 * 3600
    log.report()
    log.report()
    assert len(caplog.messages) == 2


def test_a_second_victim_is_named_at_once_whatever_the_key_did_before(
    log: RefusalLog, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(130):  # a slip a minute, until the pauses are an hour long
        log.known("impersonation", "k", "spoke for %d", 111, about="111")
        clock.now += 60
        log.report()
    caplog.clear()
    for _ in range(3):
        log.known("impersonation", "k", "spoke for %d", 777, about="777")
    assert caplog.messages == ["turned away: spoke for 777"]
    clock.now += 60
    log.report()
    assert caplog.messages[-1] == "not listed: 2 more of impersonation, k, 777"


def test_victims_without_number_are_counted(log: RefusalLog, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(1000):
        log.known("impersonation", "k", "spoke for %d", number, about=str(number))
    assert len(caplog.messages) == 17
    caplog.clear()
    clock.now += 60
    log.report()
    assert caplog.messages == ["not listed: 983 more of impersonation, k"]


def test_what_keys_together_are_not_listed_for_is_named_in_the_next_minutes(
    log: RefusalLog, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    for key in range(20):
        for number in range(16):
            log.known("impersonation", str(key), "key %d spoke for %d", key, number, about=str(number))
    assert len(caplog.messages) == 20 + 256
    assert {message.split()[3] for message in caplog.messages} == {str(key) for key in range(20)}
    caplog.clear()
    for _ in range(10):
        clock.now += 60
        log.report()
    assert len(caplog.messages) == 20 * 16 - 256 - 20
    assert "not listed: 1 more of impersonation, 19, 15" in caplog.messages


def test_a_key_does_not_fill_the_log_with_successes(
    log: RefusalLog, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3600):
        log.passed("connected", "k", "%s is connected", "north")
        clock.now += 1
    assert caplog.messages[0] == "north is connected"
    assert len(caplog.messages) < 8
    log.passed("connected", "other", "%s is connected", "south")
    assert caplog.messages[-1] == "south is connected"


def test_the_log_of_an_hour_stays_small_under_every_flood_at_once(
    log: RefusalLog, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    reasons = [f"reason-{number}" for number in range(15)]
    for _ in range(60):
        for reason in reasons:
            for party in range(50):
                log.stranger(reason, str(party), "x" * 150)
        for key in range(150):
            for reason in ("impersonation", "revoked", "signature"):
                log.known(reason, str(key), "x" * 150)
            for reason in ("connected", "enrolled"):
                log.passed(reason, str(key), "x" * 150)
            for victim in range(50):
                log.known("impersonation", str(key), "x" * 150, about=str(victim))
        clock.now += 60
        log.report()
    prefix = len("2026-11-27 13:33:43,000 WARNING confide.gate: \n")
    size = sum(len(message) + prefix for message in caplog.messages)
    caplog.clear()
    assert size < HOUR_CAP


def test_an_error_of_the_gate_s_own_has_its_traceback_once(log: RefusalLog, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(1000):
        try:
            raise RuntimeError("broken")
        except RuntimeError as err:
            log.failed("enrolment failed", err)
    assert caplog.messages == ["enrolment failed"]
    assert caplog.records[0].exc_info


def test_an_error_of_the_gate_s_own_is_told_without_its_text(log: RefusalLog, caplog: pytest.LogCaptureFixture) -> None:
    code = "code-of-a-guest"
    try:
        try:
            raise KeyError(code)
        except KeyError as err:
            raise RuntimeError(f"broken by {code}") from err
    except RuntimeError as err:
        log.failed("enrolment failed", err)
    assert "RuntimeError in " in caplog.text
    assert "raise RuntimeError(" in caplog.text
    assert code not in caplog.text
