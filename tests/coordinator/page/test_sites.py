import html
import re
import shutil
import time

import pytest

from confide.client_node.enrolment import InvitationCode, join_file
from confide.client_node.spoken_hash import fingerprint
from confide.coordinator.federation import Pki
from confide.coordinator.federation.invites import digest_of
from confide.coordinator.store import LedgerReplica
from confide.coordinator.store.states import RunState
from confide.coordinator.store.tables import CountersignatureRow, LedgerRow, NodeRow, Run, StudyRow, SuccessionRow
from confide.privacy.ledger import backup, chain
from confide.privacy.ledger.succession import Succession

from ...client_node.conftest import identity_of, key_of
from ...privacy.ledgers import eventful_ledger
from ..conftest import PARTIES, SITES, logged
from .conftest import key_of as form_key_of


@pytest.fixture(autouse=True)
def pki_here(federation, pki):
    """Keys and certificates in the home itself, for what loads them from there."""
    shutil.copytree(pki.folder, federation.home / "pki")
    return Pki.load(federation.home)


@pytest.fixture
def ledger(federation, page_app):
    """The replicated ledger of a site that is called svi, which the page has read."""
    found = eventful_ledger("svi", rounds=40)
    with federation.store.session() as session:
        session.add_all(
            LedgerRow(site="svi", seq=each.seq, kind=each.kind, hash=each.hash, entry=each.model_dump_json())
            for each in found.entries
        )
    federation.change("svi", identity=found.public_key)
    page_app.close()  # its thread: two readers at once are not what is tested here
    page_app._federation.ledgers.look()
    return found


def form(client, path, **fields):
    """Sends the form of a page, as somebody who has looked at it."""
    return client.post(path, data={"form_key": form_key_of(client.get(path)), **fields})


def code_in(answer, name):
    found = re.search(rf'<pre[^>]*aria-label="One-time code for {name}">([^<]+)</pre>', answer.text)
    return html.unescape(found[1])


def join_text_in(answer, name):
    found = re.search(rf'<pre[^>]*aria-label="Text of {name}.join">([^<]+)</pre>', answer.text)
    return html.unescape(found[1])


def test_every_member_is_listed_with_the_fingerprint_that_its_people_read_out(page):
    text = page.get("/sites").text
    for name in (*SITES, *PARTIES):
        assert f'href="/sites/{name}"' in text
        assert fingerprint(identity_of(name)) in text


def test_sites_are_chosen_by_name_and_state(page, federation):
    federation.change("svhc", revoked_at=5.0)

    def found(query):
        return re.findall(r'href="/sites/([a-z-]+)"', page.get(f"/sites{query}").text)

    assert found("?name=SV") == ["svhc", "svi"]
    assert found("?state=revoked") == ["svhc"]
    assert found("?state=enrolled&name=sv") == ["svi"]
    assert found("?name=nobody") == []
    assert "None of the 7" in page.get("/sites?name=nobody").text


def test_a_hundred_sites_are_on_two_pages_and_each_on_one(page, federation):
    with federation.store.session() as session:
        session.add_all(NodeRow(name=f"site-{number:03}", roles="train") for number in range(93))
    texts = [page.get(f"/sites?state=&page={number}").text for number in (1, 2)]
    listed = [name for text in texts for name in re.findall(r'href="/sites/([a-z0-9-]+)"', text)]
    assert len(listed) == len(set(listed)) == 100
    assert page.get("/sites?page=9999999999999999999").text.count('scope="row"') == 50  # the last page
    assert page.get("/sites?page=²").status_code == 200


@pytest.mark.parametrize(("days", "words"), [(20, "20 d"), (-2, "ended 2")])
def test_a_certificate_that_ends_soon_is_warned_of(page, monkeypatch, days, words):
    import datetime as dt

    ends = dt.datetime(2026, 1, 1, tzinfo=dt.UTC) + dt.timedelta(days=999)

    class Clock(dt.datetime):
        @classmethod
        def now(cls, tz=None):
            return ends - dt.timedelta(days=days, hours=1)

    monkeypatch.setattr("confide.coordinator.page.sites.dt.datetime", Clock)
    assert words in page.get("/sites").text
    assert "Its party certificate" in page.get("/sites/agg-a").text
    assert "Its party certificate" not in page.get("/sites/svi").text


def test_a_damaged_certificate_breaks_no_page(page, federation):
    federation.change("agg-a", party_certificate="-----BEGIN CERTIFICATE-----\nno\n-----END CERTIFICATE-----\n")
    assert "damaged" in page.get("/sites").text
    assert "The party certificate of agg-a in the database is damaged" in page.get("/sites/agg-a").text


def test_a_code_is_shown_once_and_admits_its_site(page, federation):
    answer = form(page, "/sites/invite/new", names="north south\nwest-2", train="1")
    assert (answer.status_code, answer.headers["cache-control"]) == (200, "no-store")
    codes = {name: code_in(answer, name) for name in ("north", "south", "west-2")}
    for name, text in codes.items():
        stored = federation.store.node(name)
        assert stored.invite_digest == digest_of(InvitationCode.parse(text).secret)
        assert join_file.JoinFile.model_validate_json(join_text_in(answer, name)).code == text
        again = page.get("/sites").text + page.get(f"/sites/{name}").text + page.get("/log").text
        again += page.get("/sites/invite/new").text
        assert text not in again
        assert text not in repr(logged(federation.store))
    assert [fields["site"] for action, fields in logged(federation.store) if action == "site.invite"] == [*codes]
    assert "it is void now" not in answer.text
    assert form(page, "/sites/invite/new", names="north east", train="1").text.count("it is void now") == 1


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"names": "  ", "train": "1"}, "no name was typed"),
        ({"names": "north"}, "no role was chosen"),
        ({"names": "north North", "train": "1"}, "is no name for a site"),
        ({"names": "north north", "train": "1"}, "named more than once"),
        ({"names": "north svi", "train": "1"}, "svi is enrolled already"),
        ({"names": "<b>x</b>", "train": "1"}, "is no name for a site"),
        ({"names": " ".join(f"n{each}" for each in range(101)), "train": "1"}, "too many at once"),
    ],
)
def test_who_mistypes_an_invitation_invites_nobody_and_keeps_what_was_typed(page, federation, fields, problem):
    answer = form(page, "/sites/invite/new", **fields)
    assert answer.status_code == 409
    assert problem.lower() in answer.text.lower()
    assert html.escape(fields["names"]) in answer.text.replace("&#39;", "'").replace("&#34;", '"')
    assert "<b>x" not in answer.text
    assert len(federation.store.nodes()) == 7


def test_an_invitation_again_makes_the_first_code_void(page, federation):
    codes = [code_in(form(page, "/sites/invite/new", names="north", train="1"), "north") for _ in range(2)]
    digests = [digest_of(InvitationCode.parse(code).secret) for code in codes]
    assert federation.store.node("north").invite_digest == digests[1] != digests[0]
    assert "names=north&amp;train=1" in page.get("/sites/north").text
    assert ">north</textarea>" in page.get("/sites/invite/new?names=north&train=1").text


def test_a_site_may_be_called_invite(page, federation):
    form(page, "/sites/invite/new", names="invite", train="1")
    assert "<h1>invite</h1>" in page.get("/sites/invite").text


def test_a_form_of_another_session_invites_nobody(page, federation):
    for key in ({}, {"form_key": "x"}):
        answer = page.post("/sites/invite/new", data={"names": "north", "train": "1", **key})
        assert answer.status_code == 403
    assert len(federation.store.nodes()) == 7


@pytest.mark.parametrize("role", ["viewer", "operator"])
@pytest.mark.parametrize("path", ["invite/new", "svi/leave", "svi/revoke"])
def test_only_an_admin_changes_who_takes_part(as_role, federation, role, path):
    client = as_role(role)
    before = [(row.name, row.revoked_at, row.left_at) for row in federation.store.nodes()]
    key = form_key_of(client.get("/sites"))
    answer = client.post(f"/sites/{path}", data={"form_key": key, "names": "north", "train": "1", "typed": "svi"})
    assert answer.status_code == 403
    assert client.get(f"/sites/{path}").status_code == 403
    assert [(row.name, row.revoked_at, row.left_at) for row in federation.store.nodes()] == before
    shown = client.get("/sites").text + client.get("/sites/svi").text
    assert "/revoke" not in shown
    assert "/invite/new" not in shown


def test_what_an_admin_does_stands_in_the_log_under_the_name(as_role, federation):
    anna = as_role("admin")
    assert form(anna, "/sites/svi/leave").headers["location"] == "/sites/svi"
    assert "svi has left" in anna.get("/sites/svi").text
    assert federation.store.node("svi").left_at is not None
    entry = re.search(r"operator:anna</td><td[^>]*>site.leave", anna.get("/log").text)
    assert entry is not None


def test_a_site_is_revoked_only_by_its_name(page, federation):
    assert form(page, "/sites/svi/revoke", typed="svhc").status_code == 409
    assert federation.store.node("svi").revoked_at is None
    assert form(page, "/sites/svi/revoke", typed=" svi ").status_code == 303
    assert federation.store.node("svi").revoked_at is not None
    text = page.get("/sites/svi").text
    assert "/sites/svi/revoke" not in text
    assert "/sites/svi/leave" not in text
    assert "names=svi" not in text
    for order in ("revoke", "leave"):
        assert page.get(f"/sites/svi/{order}").status_code == 409
    assert form(page, "/sites/invite/new", names="svi", train="1").status_code == 409


def test_an_invitation_is_withdrawn_without_a_name_to_type(page, federation):
    form(page, "/sites/invite/new", names="north", train="1")
    assert "Withdraw the invitation" in page.get("/sites/north/revoke").text
    assert form(page, "/sites/north/revoke").status_code == 303
    assert federation.store.node("north").invite_digest is None


def test_a_site_that_has_left_is_let_back_or_its_new_code_withdrawn(page, federation):
    assert "Let svi leave?" in page.get("/sites/svi/leave").text
    form(page, "/sites/svi/leave")
    assert page.get("/sites/svi/leave").status_code == 409
    form(page, "/sites/invite/new", names="svi", train="1")
    assert federation.store.node("svi").invite_digest is not None
    assert "Withdraw the invitation of svi?" in page.get("/sites/svi/leave").text
    assert form(page, "/sites/svi/leave").status_code == 303
    assert federation.store.node("svi").invite_digest is None
    assert "Type the site's name" in page.get("/sites/svi/revoke").text


def test_a_site_shows_its_keys_and_what_it_says_that_it_trusts(page, federation, pki_here):
    old, new = key_of("svi"), key_of("another")
    stated = Succession.make("svi", pki_here.identity_hex, old, new, chain.now())
    with federation.store.session() as session:
        session.add(SuccessionRow(old=stated.old, new=stated.new, site="svi", taken_at=1.0,
                                  statement=stated.model_dump_json()))  # fmt: skip
        session.add(CountersignatureRow(site="svi", seq=4, time=chain.now(), decisions=-1, decisions_hash="0" * 64,
                                        identity=stated.old, signature="0" * 128))  # fmt: skip
    federation.change("svi", identity=stated.new, known_key="ab" * 32, fingerprint="cd" * 32)
    text = page.get("/sites/svi").text
    assert stated.new in text
    assert f'title="{stated.old}"' in text
    assert "goes by a key that this coordinator has not had" in text
    assert "entry 4" in text
    assert "it has not said yet" in text  # which CAs


def test_keys_that_cannot_be_read_are_told_and_break_no_page(page, federation):
    shutil.rmtree(federation.home / "pki")
    answer = page.get("/sites/svi")
    assert answer.status_code == 200
    assert "run `coordinator init` or restore a backup" in answer.text


def test_a_site_shows_studies_and_runs_that_name_it(page, federation):
    study = federation.create()
    with federation.store.session() as session:
        session.add(Run(id="thyroid-1", study=study.study_hash, state=RunState.PENDING, created_at=1.0))
    text = page.get("/sites/svi").text
    assert f'href="/studies/{study.study_hash}"' in text
    assert 'href="/runs/thyroid-1"' in text
    with federation.store.session() as session:
        session.add(NodeRow(name="stranger", roles="train", enrolled_at=1.0, identity="ef" * 32))
    assert "No study names it yet" in page.get("/sites/stranger").text


def test_a_site_shows_its_budgets_and_their_course(page, ledger, page_app):
    text = page.get("/sites/svi").text
    standings = page_app._federation.ledgers.standings()["svi"]
    assert len(standings) == 2
    for each in standings:
        assert f"{each.dataset}, by patient" in text
    assert text.count('<svg class="spending"') == 4  # of each account a wide one and a narrow one
    assert "The points of the chart" in text
    assert 'href="/runs/run-2"' in text


def test_a_ledger_that_is_not_read_yet_or_does_not_hold_is_told(page, ledger, page_app, federation):
    assert "No ledger of svhc is here yet" in page.get("/sites/svhc").text
    with federation.store.session() as session:
        session.add(LedgerRow(site="svhc", seq=0, kind="open", hash="0" * 64,
                              entry=ledger.entries[0].model_dump_json()))  # fmt: skip
        session.add(LedgerRow(site="svhc", seq=1, kind="settle", hash="0" * 64,
                              entry=ledger.entries[4].model_dump_json()))  # fmt: skip
    assert "entries are being read" in page.get("/sites/svhc").text
    page_app._federation.ledgers.look()
    assert "does not hold together" in page.get("/sites/svhc").text


def test_a_downloaded_ledger_is_the_one_that_was_sent(as_role, federation, ledger, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))  # no disk is asked for room
    oscar = as_role("operator")
    answer = form(oscar, "/sites/svi/ledger")
    assert answer.headers["content-disposition"] == 'attachment; filename="svi.jsonl"'
    (tmp_path / "taken.jsonl").write_bytes(answer.content)
    taken = list(backup.read(tmp_path / "taken.jsonl"))
    assert taken == list(ledger.entries) == LedgerReplica(federation.store).entries("svi")
    said = {"site": "svi", "file": "svi.jsonl, a download from the page"}
    assert ("budget.export", said) in logged(federation.store)


def test_a_viewer_downloads_no_ledger(as_role, federation, ledger):
    vera = as_role("viewer")
    key = form_key_of(vera.get("/sites"))
    assert vera.post("/sites/svi/ledger", data={"form_key": key}).status_code == 403
    assert "/sites/svi/ledger" not in vera.get("/sites/svi").text


def test_a_ledger_that_is_not_here_is_not_downloaded(page):
    assert "No ledger of svi is here yet" in page.get("/sites/svi/ledger").text
    key = form_key_of(page.get("/sites"))
    assert page.post("/sites/svi/ledger", data={"form_key": key}).status_code == 404


@pytest.mark.parametrize("path", ["/sites/nobody", "/sites/nobody/leave", "/sites/nobody/ledger", "/sites/%3Cb%3E"])
def test_a_site_that_is_none_is_told(page, path):
    answer = page.get(path)
    assert answer.status_code == 404
    assert "<b>" not in answer.text


def test_a_code_that_has_run_out_is_told(page, federation):
    form(page, "/sites/invite/new", names="north", train="1")
    federation.change("north", invite_expires=time.time() - 60)
    assert "which is over" in page.get("/sites/north").text


def test_an_aggregator_is_invited_with_both_roles(page, federation):
    answer = form(page, "/sites/invite/new", names="agg-d", train="1", aggregate="1")
    assert federation.store.node("agg-d").roles == "train,aggregate"
    assert "--party-address HOST:PORT" in answer.text


def test_a_damaged_study_takes_no_site_s_page_away(page, federation):
    whole, damaged = federation.create(), federation.create(('name = "thyroid"', 'name = "broken"'))
    with federation.store.session() as session:
        session.get(StudyRow, damaged.study_hash).canonical = b'{"sites": ['
    answer = page.get("/sites/svi")
    assert answer.status_code == 200
    assert f'<a href="/studies/{whole.study_hash}">' in answer.text
    assert (
        f'Damaged in the database, so nobody can say whether they name it: <a href="/studies/{damaged.study_hash}">'
        in (answer.text)
    )
