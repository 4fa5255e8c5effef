import hashlib
import json
import re

import pytest

from confide.client_node.spoken_hash import words
from confide.client_node.study.cost import whole_cost
from confide.coordinator.page import terms
from confide.coordinator.store.tables import DecisionRow, Run, StudyRow
from confide.models.rounding import rounded_up

from ...client_node.conftest import EVALUATION
from ..conftest import committed_round, logged, put_in_state
from .conftest import key_of

UNPROTECTED = (('mode = "distributed"\nnoise_multiplier = 1.19', 'mode = "none"'), ("delta = 1e-5\n", ""))


@pytest.fixture
def study(federation):
    return federation.create(EVALUATION)


def text_of(answer) -> str:
    """What a person reads on a page, blanks made one."""
    assert answer.status_code == 200, answer.text
    return " ".join(re.sub(r"<[^>]*>", " ", answer.text).split())


def add_run(store, study, run: str, state: str = "pending", error: str | None = None) -> None:
    with store.session() as session:
        session.add(Run(id=run, study=study.study_hash, state="pending", created_at=float(len(store.runs()))))
    put_in_state(store, run, state, error)


def test_without_a_study_the_list_says_what_to_do(page):
    answer = page.get("/studies")
    assert "No study yet" in answer.text
    assert 'href="/studies/new"' in answer.text


def test_the_list_has_every_study_with_its_cost_and_its_newest_run(page, federation, study):
    other = federation.create(*UNPROTECTED)
    add_run(federation.store, study, "thyroid-00000001", "done")
    told = text_of(page.get("/studies"))
    assert rounded_up(whole_cost(study)) in told
    assert "no privacy" in told
    assert "done" in told
    for each in (study, other):
        assert f"/studies/{each.study_hash}" in page.get("/studies").text


def test_a_study_of_an_earlier_version_does_not_hide_the_others(page, federation, study):
    with federation.store.session() as session:
        session.add(StudyRow(hash="0" * 64, name="old", canonical=b'{"format":3}', signature="", created_at=0.0))
    told = text_of(page.get("/studies"))
    assert "made by an earlier version" in told
    assert rounded_up(whole_cost(study)) in told


def test_the_list_has_25_studies_a_page(page, federation, study):
    with federation.store.session() as session:
        session.add_all(
            StudyRow(hash=f"{number:064x}", name=f"s{number}", canonical=b"{}", signature="", created_at=number)
            for number in range(30)
        )
    assert page.get("/studies").text.count('scope="row"') == 25
    assert page.get("/studies?page=2").text.count('scope="row"') == 6


def test_a_study_shows_what_a_site_approves_in_words_and_whole(page, study):
    answer = page.get(f"/studies/{study.study_hash}")
    told = text_of(answer)
    assert study.study_hash in told
    for word in words(study.study_hash):
        assert word in told
    assert f"ε {rounded_up(whole_cost(study))}" in told
    assert "Only sums over 4 sites or more are opened" in told
    assert "1.19 times the clip" in told
    for site in study.sites:
        assert site.identity in told
    for facts in study.facts().values():
        for name in facts:
            assert name.replace("_", " ") in told


def test_a_study_is_found_by_its_name_too(page, study):
    assert study.study_hash in page.get("/studies/thyroid").text
    assert page.get("/studies/nobody").status_code == 404


def test_the_canonical_text_that_is_downloaded_has_the_hash_of_the_study(page, study):
    answer = page.get(f"/studies/{study.study_hash}/study.json")
    assert hashlib.sha256(answer.content).hexdigest() == study.study_hash
    assert answer.headers["content-type"] == "application/json"
    assert "attachment" in answer.headers["content-disposition"]


def test_a_study_without_privacy_says_that_nothing_bounds_its_cost(page, federation):
    told = text_of(page.get(f"/studies/{federation.create(*UNPROTECTED).study_hash}"))
    assert "Nothing bounds it" in told
    assert "may learn records" in told


def test_nobody_is_known_to_have_approved_before_a_run_asks(page, study):
    told = text_of(page.get(f"/studies/{study.study_hash}"))
    assert told.count("not asked yet") == len(study.sites) + 3
    assert "approved: took part" not in told


def test_who_took_part_who_refuses_and_who_is_awaited_is_told_by_the_newest_run(page, federation, study):
    store = federation.store
    add_run(store, study, "thyroid-00000001")
    row = committed_round(1, run="thyroid-00000001", lease=store.acquire_lease("thyroid-00000001"))
    row.sites = json.dumps(["svi", "rest"])
    store.commit_round(row)
    why = "RunRefused: svi refuses (StudyNotApproved): <b>not</b> approved here"
    add_run(store, study, "thyroid-00000002", "failed", why)
    answer = page.get(f"/studies/{study.study_hash}")
    rows = {
        found[1]: text_row(found[0])
        for found in re.finditer(r'<tr><th scope="row" class="one">(\S+)</th>.*?</tr>', answer.text)
    }
    assert "refuses" in rows["svi"]
    assert "thyroid-00000002" in rows["svi"]
    assert "approved: took part" in rows["rest"]
    assert "thyroid-00000001" in rows["rest"]
    assert "not asked yet" in rows["other"]
    assert "approved: took part" in rows["agg-a"]
    assert "&lt;b&gt;not&lt;/b&gt; approved here" in answer.text
    assert "<b>not</b>" not in answer.text


def tell(store, study, site, verdict="approved", runs_left=1, until=None):
    about = {"verdict": verdict, "runs_left": runs_left, "until": until, "since": 1.75e9}
    with store.session() as session:
        session.add(DecisionRow(site=site, study=study.study_hash, **about))


def test_what_nodes_have_told_is_on_every_page_that_leads_to_a_run(page, federation, study):
    start = f"/studies/{study.study_hash}/start"
    assert "nobody has said" in text_of(page.get("/studies"))
    assert "As far as nodes have told" not in text_of(page.get(start))
    assert "Studies before their first run" not in text_of(page.get("/"))
    tell(federation.store, study, "svi", "revoked", runs_left=0)
    for name in ("other", "svhc", "rest", "agg-a", "agg-b"):
        tell(federation.store, study, name)
    told = text_of(page.get(f"/studies/{study.study_hash}"))
    sentence = "pproved by 5 of 7: svi refuses since 2025-06-15; agg-c has not said"
    assert sentence in told
    assert "approves since 2025-06-15" in told
    assert "for 1 more run" in told
    assert "5 of 7" in text_of(page.get("/studies"))
    assert sentence in text_of(page.get(start))
    assert sentence in text_of(page.get("/"))
    answer = page.post(start, data={"form_key": key_of(page.get(start))})
    assert answer.status_code == 303  # a warning is no refusal
    assert "Studies before their first run" not in text_of(page.get("/"))
    assert "svi refuses since 2025-06-15 (by what nodes have told)" in text_of(page.get("/"))


def text_row(html: str) -> str:
    return re.sub(r"<[^>]*>", " ", html)


def test_starting_a_run_first_says_what_it_costs_and_whom_it_asks(page, federation, study):
    told = text_of(page.get(f"/studies/{study.study_hash}/start"))
    assert f"ε {rounded_up(whole_cost(study))}" in told
    assert "other, svi, svhc, rest" in told
    assert "No server runs" in told
    assert federation.store.runs() == []


def test_an_operator_starts_a_run_and_the_log_says_who(as_role, federation, study):
    oscar = as_role("operator")
    asked = oscar.get(f"/studies/{study.study_hash}/start")
    answer = oscar.post(f"/studies/{study.study_hash}/start", data={"form_key": key_of(asked)})
    (run,) = federation.store.runs()
    assert (answer.status_code, answer.headers["location"]) == (303, f"/runs/{run.id}")
    action, fields = logged(federation.store)[-1]
    assert (action, fields["run"], fields["hash"]) == ("run.start", run.id, study.study_hash)


def test_another_run_beside_an_unfinished_one_is_started_only_if_it_is_meant(page, federation, study):
    add_run(federation.store, study, "thyroid-00000001", "stopped")
    asked = page.get(f"/studies/{study.study_hash}/start")
    assert "It costs up to ε" in text_of(asked)
    key = {"form_key": key_of(asked)}
    refused = page.post(f"/studies/{study.study_hash}/start", data=key)
    assert refused.status_code == 409
    assert len(federation.store.runs()) == 1
    assert page.post(f"/studies/{study.study_hash}/start", data=key | {"again": "yes"}).status_code == 303
    assert len(federation.store.runs()) == 2


def test_a_viewer_starts_and_creates_nothing(as_role, federation, study):
    vera = as_role("viewer")
    shown = vera.get(f"/studies/{study.study_hash}")
    assert shown.status_code == 200
    assert "Start a run" not in shown.text
    key = {"form_key": key_of(shown)}
    for path in (f"/studies/{study.study_hash}/start", "/studies/new"):
        assert vera.get(path).status_code == 403
        assert vera.post(path, data=key | {"do": "check", "text": ""}).status_code == 403
    assert federation.store.runs() == []


def test_a_form_of_another_session_starts_nothing(page, federation, study):
    assert page.post(f"/studies/{study.study_hash}/start", data={"form_key": "x"}).status_code == 403
    assert federation.store.runs() == []


def test_a_value_of_a_term_is_written_for_people():
    found = [terms.said(value) for value in (True, 1e-5, (), {"svi": 0.5}, None, ["a", "b"], 40)]
    assert found == ["yes", "10⁻⁵", "–", "svi: 0.5", "–", "a, b", "40"]
