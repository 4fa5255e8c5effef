"""What a node tells of its people's decisions, by the real gate: what its policy lets it, and nobody else for it."""

import datetime as dt
import secrets
import shutil
import time

import httpx
import pytest

from confide.client_node import decision_teller, login
from confide.client_node.approval.catalogue import refresh
from confide.client_node.decision_teller import DecisionTeller, tell
from confide.client_node.enrolment import Enrolment, NodeIdentity, enrol, outbound
from confide.client_node.enrolment.protocol import SIGNATURE_HEADER
from confide.client_node.errors import CallUnknown, CoordinatorRefused, SecondPersonMissing
from confide.client_node.policy import decisions, pending
from confide.client_node.traffic import Traffic
from confide.client_node.wire.decisions import DECISIONS_PATH, MOST_BYTES, DecisionsWord, ToldDecision
from confide.coordinator.gateway import gate as gate_module
from confide.coordinator.run.approvals import approvals
from confide.coordinator.store.tables import StudyRow

from ..coordinator.conftest import logged
from ..coordinator.rotating_gate import RotatingGate, rotating_gate
from .conftest import SITE_TOML, STUDY_TOML, build_study, changed

pytestmark = pytest.mark.slow

TELLS = ("[limits]", "[policy]\ntells_decisions = true\n[limits]")


@pytest.fixture
def gate(tmp_path):
    with rotating_gate(tmp_path / "coordinator") as opened:
        yield opened


@pytest.fixture
def home(gate, tmp_path):
    """The home of svi, whose policy lets it tell."""
    gate.join(tmp_path / "svi")
    write(tmp_path / "svi", TELLS)
    return tmp_path / "svi"


def write(home, *changes) -> None:
    (home / "site.toml").write_text(changed(SITE_TOML, changes))


def offer(gate: RotatingGate, home, *changes) -> str:
    """Lets the coordinator have a study, which the node fetches; returns its hash."""
    path = home.parent / "study.toml"
    path.write_text(changed(STUDY_TOML, changes))
    signing = gate.pki.signing.now
    identities = {"svi": NodeIdentity.load(home).identity_hex}
    study = build_study(path, identities).model_copy(update={"coordinator": signing.public})
    with gate.store.session() as session:
        session.add(
            StudyRow(
                hash=study.study_hash, name=study.name, canonical=study.canonical(), signature=study.sign(signing.key),
                created_at=0.0,
            )
        )  # fmt: skip
    assert refresh(home) == []
    return study.study_hash


def told(gate: RotatingGate):
    return [(each.site, each.study, each.verdict, each.runs_left, each.until) for each in gate.store.decisions()]


def words_of(gate: RotatingGate):
    return [fields["decision"] for action, fields in logged(gate.store) if action == "site.decision"]


def send(home, word: DecisionsWord, signer: NodeIdentity) -> httpx.Response:
    body, enrolment = word.model_dump_json().encode(), Enrolment.load(home)
    return send_bytes(home, body, signer.signer.sign(DecisionsWord.signed_part(body)).hex(), enrolment)


def send_bytes(home, body: bytes, signature: str, enrolment: Enrolment) -> httpx.Response:
    with outbound.open_client(enrolment.address, outbound.trusting(enrolment.ca_pem()), None, 20.0) as client:
        url = f"https://{enrolment.address}{DECISIONS_PATH}"
        return client.post(url, content=body, headers={SIGNATURE_HEADER: signature})


def word_of(home, *told: ToldDecision, **changed) -> DecisionsWord:
    said = {
        "identity": NodeIdentity.load(home).identity_hex, "timestamp": time.time(), "nonce": secrets.token_hex(16),
        "coordinator": Enrolment.load(home).coordinator, "decisions": told,
    }  # fmt: skip
    return DecisionsWord(**(said | changed))


@pytest.fixture
def at_once(monkeypatch):
    """Lets one word follow another at once."""
    monkeypatch.setattr(decision_teller, "_APART_S", 0.0)
    monkeypatch.setattr("confide.coordinator.federation.told_decisions.APART_S", 1e-9)


def test_a_site_tells_nothing_unless_its_policy_says_so(gate, home):
    study = offer(gate, home)
    write(home)
    decisions.approve(home, study)
    assert tell(home) is None
    assert told(gate) == []
    assert not (home / decision_teller.FILE).exists()


def test_an_approval_a_run_and_a_revocation_are_told_each_once(gate, home, at_once):
    study = offer(gate, home)
    assert tell(home) is None  # nothing is decided
    decisions.approve(home, study, runs=2, until=dt.date(2030, 1, 31))
    for _ in range(2):
        assert len(tell(home)) == 1
        assert told(gate) == [("svi", study, "approved", 2, "2030-01-31")]
    decisions.count_run(home, study, "run-1", allowed=2)
    tell(home)
    assert told(gate) == [("svi", study, "approved", 1, "2030-01-31")]
    assert words_of(gate) == ["approved"]  # that a run has begun is no decision
    decisions.revoke(home, study)
    tell(home)
    assert told(gate) == [("svi", study, "revoked", 0, None)]
    decisions.approve(home, study)
    tell(home)
    assert words_of(gate) == ["approved", "revoked", "approved"]
    assert all(fields["site"] == "svi" for action, fields in logged(gate.store) if action == "site.decision")


def test_an_approval_in_site_toml_is_one_and_ends_with_its_line(gate, home, at_once):
    study = offer(gate, home)
    write(home, TELLS, ("[budget]", f'[studies]\napproved = ["{study}"]\n[budget]'))
    tell(home)
    assert told(gate) == [("svi", study, "approved", 1, None)]
    write(home, TELLS)
    assert tell(home) == ()
    assert told(gate) == []
    assert words_of(gate) == ["approved", "withdrawn"]


def test_what_was_told_is_taken_back_once_the_policy_says_no_more(gate, home, at_once):
    study = offer(gate, home)
    decisions.approve(home, study)
    tell(home)
    write(home)
    assert tell(home) == ()
    assert told(gate) == []
    assert tell(home) is None  # and that is the end of it


def test_one_persons_word_of_two_is_not_told(gate, home, monkeypatch):
    study = offer(gate, home)
    monkeypatch.setattr(pending, "vouched_login", lambda: 1001)
    monkeypatch.setattr(login, "login_name", lambda: "anna")
    with pytest.raises(SecondPersonMissing):
        pending.seconded(home, "approve", study, "runs 1, until revoked")
    assert tell(home) is None
    assert told(gate) == []


def test_a_study_that_names_other_nodes_is_not_told(gate, home):
    study = offer(gate, home, ('"svi", ', '"north", '))
    decisions.approve(home, study)
    assert tell(home) is None


def test_a_lie_about_a_study_of_others_or_of_nobody_changes_nothing(gate, home):
    others = offer(gate, home, ('"svi", ', '"north", '))
    lies = (ToldDecision(study=others, verdict="revoked"), ToldDecision(study="ab" * 32, verdict="approved"))
    assert send(home, word_of(home, *lies), NodeIdentity.load(home)).status_code == 200
    assert told(gate) == []
    assert words_of(gate) == []


def test_nobody_tells_in_the_name_of_another(gate, home, tmp_path):
    study, north = offer(gate, home), gate.join(tmp_path / "north")
    said = ToldDecision(study=study, verdict="approved", runs_left=9)
    assert send(home, word_of(home, said), north).status_code == 401
    assert send(home, word_of(home, said, identity=north.identity_hex), north).status_code == 200
    assert told(gate) == []  # the study does not name north
    gate.register.revoke("svi")
    assert send(home, word_of(home, said), NodeIdentity.load(home)).status_code == 401


@pytest.mark.parametrize("end", ["leave", "revoke"])
def test_who_leaves_or_is_revoked_approves_nothing_any_more(gate, home, end):
    study = offer(gate, home)
    decisions.approve(home, study)
    tell(home)
    assert approvals(gate.store, gate.store.study(study)).approved == 1
    getattr(gate.register, end)("svi")
    found = approvals(gate.store, gate.store.study(study))
    assert {each.says for each in found.parties} == {"has not said"}
    with pytest.raises(CoordinatorRefused):
        tell(home)


def test_who_comes_back_tells_anew(gate, home, at_once):
    study = offer(gate, home)
    decisions.approve(home, study)
    tell(home)
    gate.register.leave("svi")
    enrol(gate.code("svi"), home, again=True)
    tell(home)
    assert [each[:3] for each in told(gate)] == [("svi", study, "approved")]


def test_an_older_word_does_not_come_back_even_after_the_gate_has_forgotten_it(gate, home):
    study, svi = offer(gate, home), NodeIdentity.load(home)
    older = word_of(home, ToldDecision(study=study, verdict="approved", runs_left=1), timestamp=time.time() - 20)
    assert send(home, older, svi).status_code == 200
    assert send(home, word_of(home, ToldDecision(study=study, verdict="revoked")), svi).status_code == 200
    assert send(home, older, svi).status_code == 401
    gate.app._nonces.clear()
    assert send(home, older, svi).status_code == 409
    assert told(gate) == [("svi", study, "revoked", 0, None)]


def test_two_words_within_a_second_are_one_too_many(gate, home):
    study, svi, now = offer(gate, home), NodeIdentity.load(home), time.time()
    said = ToldDecision(study=study, verdict="revoked")
    assert send(home, word_of(home, said, timestamp=now - 2), svi).status_code == 200
    assert send(home, word_of(home, timestamp=now - 1.5), svi).status_code == 409
    assert told(gate) == [("svi", study, "revoked", 0, None)]


def test_a_word_for_another_federation_is_refused(gate, home):
    study = offer(gate, home)
    said = ToldDecision(study=study, verdict="revoked")
    answer = send(home, word_of(home, said, coordinator="ab" * 32), NodeIdentity.load(home))
    assert (answer.status_code, "another coordinator" in answer.text) == (409, True)
    assert told(gate) == []


def test_a_signature_for_another_request_and_a_word_that_is_too_large_are_refused(gate, home):
    body, svi, enrolment = word_of(home).model_dump_json().encode(), NodeIdentity.load(home), Enrolment.load(home)
    assert send_bytes(home, body, svi.signer.sign(b"confide studies 1\n" + body).hex(), enrolment).status_code == 401
    assert send_bytes(home, b" " * (MOST_BYTES + 1), "ab" * 64, enrolment).status_code == 413


def test_more_changes_than_an_hour_has_room_for_wait_and_what_holds_no_more_goes_first(gate, home, monkeypatch):
    monkeypatch.setattr("confide.coordinator.federation.told_decisions.MOST_CHANGES", 2)
    first, second = (offer(gate, home, ('seed = "thyroid-1"', f'seed = "{n}"')) for n in ("one", "two"))
    svi, now = NodeIdentity.load(home), time.time()
    both = [ToldDecision(study=each, verdict="approved", runs_left=1) for each in (first, second)]
    assert send(home, word_of(home, both[0], timestamp=now - 9), svi).status_code == 200
    assert send(home, word_of(home, both[1], timestamp=now - 5), svi).status_code == 200
    assert told(gate) == []  # the first was withdrawn, and the second has no room
    monkeypatch.setattr("confide.coordinator.federation.told_decisions.MOST_CHANGES", 3)
    assert send(home, word_of(home, both[1], timestamp=now), svi).status_code == 200
    assert [study for _, study, *_ in told(gate)] == [second]


def test_a_coordinator_of_an_earlier_version_is_told_nothing_more_until_later(gate, home, monkeypatch, caplog):
    study = offer(gate, home)
    decisions.approve(home, study)
    monkeypatch.setattr(gate_module.told_decisions, "DECISIONS_PATH", "/confide/v1/unknown")
    with pytest.raises(CallUnknown):
        tell(home)
    caplog.set_level("INFO")
    teller = DecisionTeller(home)
    for _ in range(3):
        teller.look()
        teller._thread.join()
    assert caplog.text.count("takes no word on decisions") == 1
    assert told(gate) == []


def test_the_daemon_tells_what_has_changed_and_counts_it_for_the_sites_people(gate, home, at_once):
    study, traffic = offer(gate, home), Traffic(home)
    teller = DecisionTeller(home, traffic)
    teller.look()
    teller._thread.join()
    assert traffic.days() == {}  # nothing was decided, and nothing left
    decisions.approve(home, study)
    for _ in range(3):
        teller.look()
        teller._thread.join()
    assert [each[2] for each in told(gate)] == ["approved"]
    ((kind, passed),) = next(iter(traffic.days().values())).items()
    assert (kind, passed.answered, passed.came) == ("decisions", 1, 0)
    assert passed.left_bytes > 200


def test_a_word_that_is_not_taken_is_told_again_after_a_minute(gate, home, monkeypatch, caplog):
    decisions.approve(home, offer(gate, home))
    teller = DecisionTeller(home)
    with monkeypatch.context() as patched:
        patched.setattr(decision_teller, "send_signed", _refuse)
        teller.look()
        teller._thread.join()
    assert "is not told of decisions: not now" in caplog.text
    teller.look()
    assert told(gate) == []
    later = time.monotonic() + 61
    monkeypatch.setattr(decision_teller.time, "monotonic", lambda: later)
    teller.look()
    teller._thread.join()
    assert [each[2] for each in told(gate)] == ["approved"]


def _refuse(*_, **__):
    raise CoordinatorRefused("not now")


def test_an_identity_key_that_was_followed_tells_on_and_the_old_one_no_more(gate, home, tmp_path, at_once):
    from confide.client_node.succession.rotation import rotate

    study = offer(gate, home)
    decisions.approve(home, study)
    tell(home)
    shutil.copytree(home, tmp_path / "copy")
    rotate(home)
    tell(home)
    assert [each[2] for each in told(gate)] == ["approved"]
    decisions.revoke(tmp_path / "copy", study)
    with pytest.raises(CoordinatorRefused):
        tell(tmp_path / "copy")
