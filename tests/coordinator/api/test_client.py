"""The client in Python, against a page that really listens on a port of this machine."""

import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from confide.client_node.web.serving import Place, serve_page
from confide.coordinator.api import client
from confide.coordinator.api.client import Federation
from confide.coordinator.federation.members import Invitation
from confide.coordinator.oversight import operators, trail
from confide.coordinator.run.glance import look, member_standings
from confide.coordinator.run.overview import opened_rounds, run_standings
from confide.coordinator.store.states import RunState
from confide.coordinator.store.tables import Run
from confide.coordinator.studies.catalogue import load_study
from confide.coordinator.studies.summary import summary

from ..conftest import committed_round, put_in_state


@pytest.fixture
def address(page) -> Iterator[str]:
    """Where the page listens, served by a thread as its own process does."""
    told, opened = [], threading.Event()

    def announce(where, listening):
        told.extend((where, listening))
        opened.set()

    thread = threading.Thread(target=serve_page, args=(page.app, Place(), announce))
    thread.start()
    assert opened.wait(60)
    yield told[0]
    told[1].stop()
    thread.join(60)


@pytest.fixture
def admin(address, tokens) -> Iterator[Federation]:
    with Federation(address, tokens["admin"]) as federation:
        yield federation


def test_answers_are_those_of_the_functions_themselves(admin, store, home, run, study):
    lease = store.acquire_lease(run)
    for number in range(1, 4):
        row = committed_round(number, run=run, lease=lease)
        row.sites = '["other", "svi"]'
        store.commit_round(row)
    put_in_state(store, run, "stopped")
    assert admin.status() == look(store, home)
    assert list(admin.runs()) == run_standings(store)
    assert list(admin.rounds(run)) == list(opened_rounds(store, run).rounds)
    assert list(admin.sites()) == member_standings(store, None)
    assert list(admin.log()) == trail.actions(store)
    assert list(admin.operators()) == operators.standings(store)
    assert admin.study(study).summary == summary(load_study(store.study(study)))
    assert [each.hash for each in admin.studies()] == [study]
    assert admin.site("svi").member.name == "svi"
    assert admin.budgets() == []
    facts = admin.run(run)
    assert (facts.state, facts.is_over, facts.rounds) == (RunState.STOPPED, True, 3)


def test_lists_longer_than_a_page_are_whole(admin, store, study):
    with store.session() as session:
        session.add_all(Run(id=f"run-{n}", study=study, state="done", created_at=float(n)) for n in range(450))
    assert list(admin.runs()) == run_standings(store)[::-1]
    assert list(admin.runs(state="failed")) == []


def test_orders_are_carried_out(admin, store, study):
    run = admin.start_run("thyroid")
    assert admin.stop_run(run).state == RunState.STOPPED
    assert admin.resume_run(run).round == 1
    assert admin.abandon_run(run).state == store.run(run).state
    invited = admin.invite_site("north", "aggregate")
    assert isinstance(invited, Invitation)
    assert invited.roles == ("aggregate",)
    assert admin.let_leave("svi").state == "left"
    assert admin.revoke_site("north").state == "revoked"
    made = admin.add_operator("vera", "viewer", days=1)
    assert admin.renew_operator("vera").token != made.token
    assert admin.revoke_operator("vera").state == "revoked"


def test_a_run_is_followed_to_its_end(admin, store, run):
    told = []

    def hear(facts):
        told.append(facts.state)
        put_in_state(store, run, {"pending": "running", "running": "failed"}.get(facts.state, "failed"), "why")

    ended = admin.wait(run, hear, every_s=0.01, within_s=60)
    assert told == ["pending", "running", "failed"]
    assert (ended.state, ended.error) == (RunState.FAILED, "why")


def test_who_waits_no_longer_is_told_that_the_run_goes_on(admin, run):
    with pytest.raises(TimeoutError, match="it goes on"):
        admin.wait(run, every_s=0.01, within_s=0.0)


def test_refusals_are_errors_with_their_sentences(admin, address, tokens, run):
    with pytest.raises(client.Missing, match="no run is called 'none-such'"):
        admin.run("none-such")
    with pytest.raises(client.NotNow, match="is pending") as refused:
        admin.resume_run(run)
    assert refused.value.problem.type == "urn:confide:TransitionRefused"
    with pytest.raises(client.Wrong, match=r"study\.toml"):
        admin.create_study("name = 3")
    with Federation(address, tokens["viewer"]) as viewer, pytest.raises(client.TokenRefused, match="takes the role"):
        viewer.stop_run(run)
    with Federation(address, "confide_nobody.x") as nobody, pytest.raises(client.TokenRefused, match="no operator"):
        nobody.status()


@pytest.mark.parametrize(
    "address", ["http://fed.example:9449", "fed.example", "ftp://127.0.0.1", "http://127.0.0.1:1/x", "https://"]
)
def test_a_token_goes_to_nobody_without_tls_elsewhere(address):
    with pytest.raises(ValueError, match=r"address|clear"):
        Federation(address, "token")


def test_a_page_that_is_not_there_is_said_so():
    with Federation("http://127.0.0.1:1", "token") as federation, pytest.raises(client.Unreachable, match="no answer"):
        federation.status()


@pytest.mark.parametrize(
    ("status", "kind", "body"),
    [(200, "application/json", b'{"federation": 3}'), (200, "application/json", b"{"), (500, "text/html", b"<p>"),
     (302, "text/html", b""), (404, "application/problem+json", b"[]"), (200, "application/json", b" " * 2000)],
)  # fmt: skip
def test_an_answer_that_is_none_of_the_api_s_is_no_answer(status, kind, body, monkeypatch):
    monkeypatch.setattr(client, "MOST_BYTES", 1000)

    class Other(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Other)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        with Federation(f"http://127.0.0.1:{server.server_port}", "token") as there, pytest.raises(client.Unreachable):
            there.status()
    finally:
        server.shutdown()
        thread.join(60)
        server.server_close()


def test_no_token_stands_in_what_is_printed_of_a_client(tokens):
    with Federation("http://127.0.0.1:1", tokens["admin"]) as federation:
        assert tokens["admin"] not in repr(federation) + repr(vars(federation))


@pytest.mark.usefixtures("study")
def test_the_example_of_the_documentation_runs(address, tokens, store, capsys):
    text = (Path(__file__).parents[3] / "docs" / "api-http.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)

    def finish():
        while not (runs := store.runs()):
            pass
        put_in_state(store, runs[0].id, "done")

    driver = threading.Thread(target=finish)
    driver.start()
    exec(block.replace("https://fed.example:9449", address), {})  # the token is in the environment
    driver.join(60)
    told = capsys.readouterr().out
    assert "done 0.0" in told
    assert "operator:admin run.start" in told
