import re
import shutil

import pytest
import sqlalchemy as sa

from confide.coordinator.page import log
from confide.coordinator.store.tables import CheckpointRow, CountersignatureRow

from .conftest import key_of


@pytest.fixture(autouse=True)
def pki_here(federation, pki):
    """Keys and certificates in the home itself, for what loads them from there."""
    shutil.copytree(pki.folder, federation.home / "pki")


def note(federation, count, *, actor="operator:anna", site="svi"):
    with federation.store.session() as session:
        for _ in range(count):
            federation.store.log_action(session, "site.leave", actor=actor, site=site)


def numbers(text):
    """The entries that a page shows, in their order."""
    table = text[text.index('id="entries-table"') :]
    return [int(each) for each in re.findall(r'<th scope="row" class="n">(\d+)</th>', table)]


def verified(page):
    return page.post("/log", data={"form_key": key_of(page.get("/log"))})


def test_the_log_is_read_backwards_and_each_entry_once(page, federation):
    note(federation, 120)
    path, seen = "/log", []
    while path:
        text = page.get(path).text
        seen += numbers(text)
        note(federation, 1)  # what comes meanwhile moves nothing
        older = re.search(r'<a rel="next" href="(/log\?[^"]+)">Older</a>', text)
        path = older[1].replace("&amp;", "&") if older else None
    assert seen == list(range(120, -1, -1))  # entry 0 is the entrance
    assert "Newest" in text
    assert page.get("/log").text.count('scope="row" class="n"') == log.ENTRIES_A_PAGE


def test_entries_are_chosen_by_who_what_and_when(page, federation):
    note(federation, 1, actor="operator:anna")
    note(federation, 1, actor="operator:bert")
    with federation.store.session() as session:
        federation.store.log_action(session, "serve.start", actor="operator:anna", version="1")
    assert numbers(page.get("/log?actor=anna").text) == [3, 1]
    assert numbers(page.get("/log?action=serve").text) == [3]
    assert numbers(page.get("/log?actor=anna&action=site.leave&since=2020-01-01").text) == [1]
    assert "No such entry" in page.get("/log?since=2990-01-01").text
    assert "<option selected>serve</option>" in page.get("/log?action=serve").text


@pytest.mark.parametrize(
    ("query", "words"),
    [("since=yesterday", "is no time"), ("action=%22%3E%3Cb%3E", "No action is called"), ("since=<b>", "is no time")],
)
def test_a_filter_that_is_none_is_told_and_stays_to_be_mended(page, query, words):
    answer = page.get(f"/log?{query}")
    assert answer.status_code == 400
    assert words in answer.text
    assert "<b>" not in answer.text


@pytest.mark.parametrize("before", ["-1", "²", "x", "9" * 40, "1;--"])
def test_an_address_that_names_no_entry_shows_the_newest(page, federation, before):
    note(federation, 2)
    assert numbers(page.get("/log", params={"before": before}).text) == [2, 1, 0]


def test_what_people_typed_is_text_and_no_markup(page, federation):
    with federation.store.session() as session:
        federation.store.log_action(session, "federation.backup", actor="login:<i>", file="<script>alert(1)</script>")
    text = page.get("/log").text
    assert "<script>alert" not in text
    assert "<i>" not in text
    assert "&lt;script&gt;alert(1)" in text


def test_an_entry_leads_to_what_it_is_about(page, federation):
    note(federation, 1)
    assert '<a href="/sites/svi">svi</a>' in page.get("/log").text


def test_a_log_is_verified_here_and_a_changed_one_does_not_hold(page, federation):
    note(federation, 3)
    text = verified(page).text
    assert "Everything holds" in text
    assert "Four hospitals: 4 entries, not signed yet" in text
    with federation.store.session() as session:
        session.execute(sa.text("UPDATE audit_entry SET actor = 'operator:eve' WHERE seq = 1"))
    text = verified(page).text
    assert "This log does not hold" in text
    assert "Everything holds" not in text
    assert "Entry 1 was changed" in text


def test_a_long_log_is_left_to_the_command(page, federation, monkeypatch):
    monkeypatch.setattr(log, "MOST_VERIFIED", 2)
    note(federation, 1)
    assert verified(page).status_code == 200
    key = key_of(page.get("/log"))
    with federation.store.session() as session:  # a signature takes as long as an entry
        session.add(CheckpointRow(seq=1, log="0" * 64, hash="0" * 64, time="2026-01-01T00:00:00Z", signature="0" * 128))
    answer = page.post("/log", data={"form_key": key})
    assert answer.status_code == 409
    assert "coordinator audit verify" in answer.text
    text = page.get("/log").text
    assert "Verify now" not in text
    assert f"coordinator audit verify --home {federation.home}" in text


def test_two_do_not_verify_at_once(page):
    key = key_of(page.get("/log"))
    with log._VERIFYING:
        assert page.post("/log", data={"form_key": key}).status_code == 409
    assert page.post("/log", data={"form_key": key}).status_code == 200


def test_who_countersigned_and_who_refuses_is_shown(page, federation):
    note(federation, 6)
    row = {"time": "2026-01-01T00:00:00Z", "decisions": -1, "decisions_hash": "0" * 64, "signature": "0" * 128}
    with federation.store.session() as session:
        session.add(CountersignatureRow(site="svi", seq=4, identity="0" * 64, **row))
        session.add(CountersignatureRow(site="rest", seq=2, identity="0" * 64, **row))
        for site in ("rest", "svhc"):
            federation.store.log_action(session, "log.refused", actor="coordinator", site=site, reason="forked", held=2)
        session.add(CountersignatureRow(site="svhc", seq=8, identity="0" * 64, **row))  # it has come round
    text = page.get("/log").text
    table = re.sub(r"<[^>]+>", " ", text[text.index('id="witnesses-table"') : text.index('id="entries-table"')])
    rows = {line.split()[0]: " ".join(line.split()) for line in table.splitlines() if line.split()}
    table = " ".join(table.split())
    assert re.search(r"svi 4 4 behind", table), rows
    assert re.search(r"svhc 8 up to date", table)
    assert re.search(r"rest 2 refuses since \S+ \(forked\): it has signed entry 2 of another state", table)
    assert re.search(r"agg-a – not yet", table)


def test_a_viewer_reads_and_verifies_the_log(as_role):
    vera = as_role("viewer")
    assert "Everything holds" in verified(vera).text


def test_nobody_verifies_without_the_form_of_the_session(page):
    assert page.post("/log", data={"form_key": "x"}).status_code == 403
