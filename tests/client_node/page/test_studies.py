import re

import pytest

from confide.client_node import login
from confide.client_node.approval import study_decisions, table_check
from confide.client_node.approval.confirmed_sites import fingerprint
from confide.client_node.approval.run_reservations import RunReservations
from confide.client_node.errors import SecondPersonMissing
from confide.client_node.policy import decision_log, load_decisions, load_policy, pending
from confide.client_node.spoken_hash import words

ROOM = ("epsilon = 10.0", "epsilon = 30.0")  # for several runs
FOUR_EYES = ("[limits]", "[policy]\nfour_eyes = true\n[limits]")
UNPROTECTED = (('mode = "distributed"\nnoise_multiplier = 1.19', 'mode = "none"'), ("delta = 1e-5\n", ""))


def at(study, *parts):
    return "/".join(["", "studies", study.study_hash, *parts])


def hidden(answer):
    return dict(re.findall(r'<input type="hidden" name="([^"]+)" value="([^"]*)">', answer.text))


def places(answer):
    """Reads at which places, from 0, the words stand that a page asks for."""
    return [
        int(each) - 1 for each in re.findall(r"\d+", re.search(r"Type words ([^A-Za-z]+ and \d+),", answer.text)[1])
    ]


def heard(answer, study):
    return " ".join(words(study.study_hash)[place] for place in places(answer))


def approved(browser, study, typed=None, **terms):
    """Sends both forms, as a person does."""
    asked = browser.send(at(study, "assess"), **terms)
    assert asked.status_code == 200, asked.text
    fields = hidden(asked)
    typed = heard(asked, study) if typed is None else typed
    return browser.client.post(at(study, "approve"), data=fields | {"typed": typed})


def log_of(site):
    return [(each.by, each.login, each.decision) for each in decision_log.read(site.home)[0]]


def test_a_study_is_approved_in_the_name_of_the_link(site, browser):
    site.write(ROOM)
    study = site.keep(site.study())
    answer = approved(browser, study, runs="2", until="2099-12-31")
    assert "is approved for 2 runs" in answer.text
    verdict = load_decisions(site.home).studies[study.study_hash]
    assert (verdict.verdict, verdict.runs, str(verdict.until), verdict.by) == ("approved", 2, "2099-12-31", "ada")
    assert log_of(site) == [("ada", "ada, by the page", "approve")]
    assert load_policy(site.home).permits(study)


def test_the_log_names_who_decides_beside_the_login(site, browser):
    study = site.keep(site.study())
    approved(browser, study, by="Dr. Ada")
    assert log_of(site) == [("Dr. Ada", "ada, by the page", "approve")]


def test_what_is_shown_before_is_what_the_command_says(site, browser):
    site.write(ROOM)
    study = site.keep(site.study())
    shown = browser.send(at(study, "assess"), runs="3").text
    proposal = study_decisions.propose(site.home, study.study_hash, runs=3)
    assert f"{proposal.assessment.quote.cap:g}" in shown
    assert "It covers 3 runs, without an end." in shown
    assert "Approved by ada." in shown
    assert not (site.home / "decisions.json").exists()


@pytest.mark.parametrize("typed", ["", "one two three four", "THE"])
def test_other_words_approve_nothing(site, browser, typed):
    study = site.keep(site.study())
    answer = approved(browser, study, typed=typed)
    assert answer.status_code == 409
    assert "were not typed as they are" in answer.text
    assert not load_policy(site.home).permits(study)


def test_nobody_knows_before_which_words_are_asked_for(site, browse):
    """Whoever writes studies could search for one with the same words at places that are known."""
    site.write(ROOM)
    study = site.keep(site.study())
    browsers = [browse(login) for login in ("ada", "bob", "eve", "ann")]
    asked = [browser.send(at(study, "assess"), runs="1") for browser in browsers]
    found = [places(each) for each in asked]
    assert all(len({*each}) == 4 and {*each} <= {*range(24)} for each in found)
    assert len({*map(tuple, found)}) > 1  # equal by chance once in 10**12
    for browser, one in zip(browsers, found, strict=True):
        assert places(browser.send(at(study, "assess"), runs="2")) == one  # to ask again does not choose
        other = next(each for each in found if each != one)
        spoken = " ".join(words(study.study_hash)[place] for place in other)
        assert approved(browser, study, typed=spoken).status_code == 409
    assert not load_policy(site.home).permits(study)


def test_all_words_and_the_hash_itself_are_good_as_well(site, browser):
    study = site.keep(site.study())
    assert approved(browser, study, typed=study.study_hash).status_code == 200
    assert approved(browser, study, typed=" ".join(words(study.study_hash))).status_code == 200
    assert load_policy(site.home).permits(study)


def test_nobody_agrees_to_what_was_changed_meanwhile(site, browser):
    site.write(ROOM)
    study = site.keep(site.study())
    asked = browser.send(at(study, "assess"), runs="1")
    typed = {"typed": heard(asked, study)}
    answer = browser.client.post(at(study, "approve"), data=hidden(asked) | typed | {"runs": "5"})
    assert "Something has changed since you read it" in answer.text
    assert not load_policy(site.home).permits(study)


def test_all_that_speaks_against_it_is_shown_and_nothing_is_decided(site, browser):
    study = site.keep(site.study())
    site.write(("epsilon = 10.0", "epsilon = 0.5"))
    answer = browser.send(at(study, "assess"), runs="1")
    assert answer.status_code == 409
    assert "the budget cannot pay for all 40 rounds" in answer.text
    assert not (site.home / "decisions.json").exists()


@pytest.mark.parametrize(
    ("field", "value"), [("runs", "0"), ("runs", "1e3"), ("runs", "٣"), ("runs", "1001"), ("until", "tomorrow")]
)
def test_a_form_that_says_nothing_sensible_is_refused(site, browser, field, value):
    study = site.keep(site.study())
    answer = browser.send(at(study, "assess"), **{"runs": "1", field: value})
    assert answer.status_code == 409
    assert "nothing was done" in answer.text


@pytest.mark.parametrize("by", ["a" * 201, "ada\x00", "a\u202eb"])
def test_what_is_no_name_is_refused_before_anything_is_written(site, browser, by):
    study = site.keep(site.study())
    fields = hidden(browser.send(at(study, "assess"), runs="1"))
    for answer in (
        browser.send(at(study, "assess"), runs="1", by=by),
        browser.client.post(at(study, "approve"), data=fields | {"by": by, "typed": study.study_hash}),
    ):
        assert answer.status_code == 400
        assert "printable letters" in answer.text
    assert not (site.home / "decisions.jsonl").exists()


def test_without_privacy_it_takes_a_word_of_its_own(site, browser):
    study = site.keep(site.study(*UNPROTECTED))
    assert "fit for public data only" in browser.send(at(study, "assess"), runs="1").text
    assert approved(browser, study, unprotected="yes").status_code == 200
    assert study.study_hash in load_policy(site.home).studies.unprotected


def test_where_two_people_decide_the_page_refuses_and_names_the_command(site, browser):
    study = site.keep(site.study())
    fields = hidden(browser.send(at(study, "assess"), runs="1"))
    site.write(FOUR_EYES, ROOM)
    shown = browser.send(at(study, "assess"), runs="2").text
    assert f"client-node study approve {study.study_hash} --runs 2" in shown
    assert f'action="{at(study, "approve")}"' not in shown
    answer = browser.client.post(at(study, "approve"), data=fields | {"typed": study.study_hash})
    assert answer.status_code == 409
    assert f"client-node study approve {study.study_hash}" in answer.text
    assert "two people, who are told apart by their logins" in answer.text
    assert not load_policy(site.home).permits(study)
    assert pending.waiting(site.home, "approve", study.study_hash) is None


def test_in_somebody_elses_name_no_word_of_two_counts_whoever_began_the_process(site, monkeypatch):
    """Below the page's own check: the daemon may have been started from the very login of the second person."""
    site.write(FOUR_EYES)
    study = site.keep(site.study())
    monkeypatch.setattr(login, "_audit_id", lambda: 1000)
    monkeypatch.setattr(login, "_session_owners", lambda: {1000})
    assert login.vouched_login() == 1000
    proposal = study_decisions.propose(site.home, study.study_hash)
    with login.in_name_of("ada"), pytest.raises(SecondPersonMissing, match="no login of ada vouches"):
        study_decisions.approve_study(site.home, proposal)
    assert log_of(site) == []
    assert login.login_name() != "ada"


def test_a_study_is_refused_and_an_approval_withdrawn(site, browser):
    study = site.keep(site.study())
    assert "is refused" in browser.send(at(study, "revoke")).text
    assert load_decisions(site.home).verdict(study.study_hash) == "revoked"
    approved(browser, study)
    assert "is withdrawn" in browser.send(at(study, "revoke")).text
    assert not load_policy(site.home).permits(study)
    assert log_of(site) == [("ada", "ada, by the page", decision) for decision in ("revoke", "approve", "revoke")]


def test_a_run_under_way_fails_only_if_the_name_was_typed(site, browser):
    study = site.keep(site.study())
    approved(browser, study)
    RunReservations(site.home).note("thyroid-1", study.study_hash)
    assert "thyroid-1 is under way and fails without this node" in browser.get(at(study, "revoke")).text
    assert browser.send(at(study, "revoke"), typed="other").status_code == 409
    assert load_policy(site.home).permits(study)
    browser.send(at(study, "revoke"), typed=study.name)
    assert not load_policy(site.home).permits(study)


def test_an_aggregator_confirms_keys_by_what_its_people_heard(site, browse):
    study = site.aggregate()
    (site.home / "decisions.json").unlink()
    browser = browse("ada")
    assert "is not confirmed" in browser.send(at(study, "assess"), runs="1").text
    for each in study.sites:
        assert f"Fingerprint of {each.name}" in browser.get(at(study, "approve")).text
        assert fingerprint(each.identity) not in browser.get(at(study, "approve")).text  # it is heard, not read off
        browser.send(at(study, "confirm"), site=each.name, fingerprint=fingerprint(each.identity).lower())
    assert "Keys of sites to confirm first" not in browser.get(at(study, "approve")).text
    assert approved(browser, study).status_code == 200
    assert load_decisions(site.home).verdict(study.study_hash) == "approved"


def test_a_fingerprint_of_another_key_is_kept_and_told(site, browse):
    study = site.aggregate()
    (site.home / "decisions.json").unlink()
    answer = browse("ada").send(at(study, "confirm"), site="rest", fingerprint="ABCD-" * 7 + "ABCD")
    assert answer.status_code == 409
    assert "another key than this study gives it" in answer.text
    assert load_decisions(site.home).sites == {"rest": "ABCD-" * 7 + "ABCD"}


def test_a_key_that_was_replaced_is_accepted_by_its_fingerprint_alone(site, browser):
    approved(browser, site.keep(site.study()))
    other = site.keep(site.study(("rounds = 40", "rounds = 30")))
    changed = other.model_copy(
        update={
            "sites": tuple(e.model_copy(update={"identity": "ab" * 32}) if e.name == "rest" else e for e in other.sites)
        }
    )
    site.keep(changed)
    assert "New key of rest" in browser.get(at(changed, "approve")).text
    assert browser.send(at(changed, "assess"), runs="1").status_code == 409
    assert browser.send(at(changed, "assess"), runs="1", key__rest="AAAA-" * 7 + "AAAA").status_code == 409
    answer = approved(browser, changed, key__rest=fingerprint("ab" * 32).lower())
    assert answer.status_code == 200, answer.text
    assert load_decisions(site.home).verdict(changed.study_hash) == "approved"


def test_the_table_is_read_only_where_a_person_asks(site, browser, monkeypatch):
    study = site.keep(site.study())
    looked = []
    monkeypatch.setattr("confide.client_node.approval.assessment.check", lambda *a, **k: looked.append(a))
    monkeypatch.setattr(table_check, "check", lambda *a, **k: looked.append(a))
    of_study = [at(study, *part) for part in ([], ["rules"], ["check"], ["approve"], ["assess"], ["revoke"])]
    for path in ("/", "/studies", *of_study, "/budget", "/policy", "/traffic", "/decisions", "/log"):
        assert browser.get(path).status_code == 200, path
    assert not looked


def test_a_table_check_shows_places_and_kinds_and_never_a_cell(site, browser):
    study = site.keep(site.study())
    (site.home / "patients.csv").write_text(
        "patient_id,age,tsh_miu_l,sex,sick,diagnosis\np1,secret-cell,1.5,male,f,0\n"
    )
    shown = browser.send(at(study, "check")).text
    assert "It does not fit" in shown
    assert "line 2, column age" in shown
    assert "secret-cell" not in shown


def test_all_terms_are_on_the_page(site, browser):
    study = site.keep(site.study())
    shown = browser.get(at(study)).text
    for word in (*words(study.study_hash), study.study_hash, study.draft.description, "1.19", *study.site_names()):
        assert word in shown
    assert "waits for a decision" in shown


def test_text_of_a_study_is_no_markup(site, browser):
    study = site.keep(site.study(("Any diagnosis from laboratory values", "<script>alert(1)</script>")))
    for path in (at(study), "/studies", at(study, "approve")):
        assert "<script>alert" not in browser.get(path).text
    assert "&lt;script&gt;alert(1)" in browser.get(at(study)).text


@pytest.mark.parametrize("name", ["nothing", "0" * 64, "..%2f..%2fsite"])
def test_a_study_that_is_not_here_is_not_found(browser, name):
    assert browser.get(f"/studies/{name}").status_code == 404


def test_a_coordinator_that_is_away_is_told(site, browser):
    site.keep(site.study())
    shown = browser.send("/studies").text
    assert "these are the studies that were fetched before" in shown
    assert "thyroid" in shown


def test_a_page_that_looks_by_itself_takes_no_notice_from_the_next_one(site, browser):
    study = site.keep(site.study())
    key = re.search(r'name="form_key" value="([^"]+)"', browser.get("/policy").text)[1]
    browser.client.post(at(study, "revoke"), data={"form_key": key}, follow_redirects=False)
    assert "is refused: it may not run here" not in browser.get("/", headers={"X-Live": "1"}).text
    assert "is refused: it may not run here" in browser.get(at(study)).text
