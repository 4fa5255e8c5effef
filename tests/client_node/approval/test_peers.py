"""Keys of other parties, known from the first approved study on."""

import itertools
import json

import pytest
from typer.testing import CliRunner

from confide.client_node.approval import catalogue, peers
from confide.client_node.approval.catalogue import approved_study
from confide.client_node.approval.confirmed_sites import doubts, fingerprint
from confide.client_node.approval.study_decisions import approve_study, propose
from confide.client_node.cli.main import app
from confide.client_node.errors import ApprovalRefused, FileDamaged, PartnerRefused
from confide.client_node.policy import decision_log, decisions
from confide.client_node.succession import partners, rotation
from confide.privacy.ledger.succession import Succession

from ..conftest import identity_of, key_of


def rekeyed(site, name, key, *changes):
    """A later study in which `name`, a site or an aggregator, has another key."""
    study, other = site.study(("rank = 4", "rank = 5"), *changes), {"identity": identity_of(key)}
    parties = {
        kind: tuple(party.model_copy(update=other) if party.name == name else party for party in found)
        for kind, found in (("sites", study.sites), ("aggregators", study.aggregators))
    }
    return site.keep(study.model_copy(update=parties))


@pytest.fixture
def first(site):
    """A study that was approved here."""
    study = site.keep(site.study())
    approve_study(site.home, propose(site.home, study.study_hash))
    return study


def test_an_approval_shows_names_never_seen_and_makes_them_known(site):
    study = site.keep(site.study())
    proposal = propose(site.home, study.study_hash)
    assert [each.state for each in proposal.peers] == ["new"] * 6
    assert peers.load(site.home) == {}  # to look is not to know
    approve_study(site.home, proposal)
    known = {name: keys[-1].identity for name, keys in peers.load(site.home).items()}
    assert known == {name: key for name, key in study.identities().items() if name != "svi"}
    assert propose(site.home, study.study_hash).peers == ()


@pytest.mark.parametrize("name", ["svhc", "agg-b"])
def test_a_replaced_key_is_refused_at_approval_and_at_every_message(site, first, name):
    later = rekeyed(site, name, "mallory")
    with pytest.raises(ApprovalRefused, match=f"{name} has another key than in earlier studies"):
        propose(site.home, later.study_hash)
    decisions.approve(site.home, later.study_hash)  # by whoever got round the command
    with pytest.raises(PartnerRefused, match=f"{name} has another key"):
        approved_study(site.home, later.study_hash)
    assert approved_study(site.home, first.study_hash) == first


def test_a_refusal_says_the_known_fingerprint_and_never_the_new_one(site, first):
    later = rekeyed(site, "svhc", "mallory")
    with pytest.raises(ApprovalRefused) as refusal:
        propose(site.home, later.study_hash)
    assert fingerprint(identity_of("svhc")) in str(refusal.value)
    assert fingerprint(identity_of("mallory")) not in str(refusal.value)  # to be heard, not copied


def test_a_new_key_is_accepted_by_its_typed_fingerprint_alone(site, first):
    later = rekeyed(site, "svhc", "svhc, rotated")
    typed = fingerprint(identity_of("svhc, rotated"))
    with pytest.raises(ApprovalRefused, match="another key than the one that you typed"):
        propose(site.home, later.study_hash, accepted={"svhc": fingerprint(identity_of("svhc"))})
    with pytest.raises(ApprovalRefused, match="no other site or aggregator of that name"):
        propose(site.home, later.study_hash, accepted={"svhc": typed, "north": typed})
    approve_study(site.home, propose(site.home, later.study_hash, accepted={"svhc": typed}), by="Dr. Ada")
    assert approved_study(site.home, later.study_hash) == later
    assert [(each.by, each.decision, each.about, each.detail) for each in decision_log.read(site.home)[0]][-2:-1] == [
        ("Dr. Ada", "accept", "svhc", typed)
    ]


def test_after_a_rotation_what_was_approved_goes_on_and_the_old_key_opens_nothing_new(site, first):
    later, typed = rekeyed(site, "svhc", "svhc, rotated"), fingerprint(identity_of("svhc, rotated"))
    approve_study(site.home, propose(site.home, later.study_hash, accepted={"svhc": typed}))
    assert approved_study(site.home, first.study_hash) == first
    third = site.keep(site.study(("rank = 4", "rank = 6")))
    with pytest.raises(ApprovalRefused, match="svhc has an earlier key"):
        propose(site.home, third.study_hash)


def test_a_key_that_people_confirmed_by_voice_is_not_asked_about_again(site):
    study = site.aggregate()
    approve_study(site.home, propose(site.home, study.study_hash))
    decisions.remove_sites(site.home, ["svhc"])
    other = site.study(("rank = 4", "rank = 5"), named="agg-a")
    sites = [
        each.model_copy(update={"identity": identity_of("moved")}) if each.name == "svhc" else each
        for each in other.sites
    ]
    later = site.keep(other.model_copy(update={"sites": tuple(sites)}))
    with pytest.raises(ApprovalRefused, match="svhc has another key"):
        propose(site.home, later.study_hash)
    decisions.confirm_sites(site.home, {"svhc": fingerprint(identity_of("moved"))})
    approve_study(site.home, propose(site.home, later.study_hash))
    assert approved_study(site.home, later.study_hash) == later


def test_somebody_else_under_this_node_s_own_name_is_refused_and_never_known(site):
    study = site.keep(site.study(named="nobody"))
    decisions.approve(site.home, study.study_hash)
    with pytest.raises(PartnerRefused, match="gives svi another key than this node's"):
        approved_study(site.home, study.study_hash)
    assert peers.load(site.home) == {}


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"format":2}', '{"peers":{"svhc":[]}}', '{"peers":{"svhc":[{"identity":"ab"}]}}', '{"more":1}'],
)
def test_a_damaged_file_lets_nothing_run(site, first, text):
    (site.home / peers.FILE).write_text(text)
    with pytest.raises(FileDamaged, match=r"peers\.json"):
        approved_study(site.home, first.study_hash)


def test_the_command_lists_new_names_and_takes_a_new_key(site, monkeypatch):
    monkeypatch.setattr("confide.client_node.approval.catalogue.fetch_studies", lambda home: [])

    def call(*words, code=0):
        result = CliRunner().invoke(app, [*words, "--home", str(site.home)])
        assert result.exit_code == code, result.output
        return result

    study = site.keep(site.study())
    shown = json.loads(call("study", "approve", study.study_hash, "--yes", "--json").stdout)
    assert shown["never_seen_before"]["svhc"] == fingerprint(identity_of("svhc"))
    later, typed = rekeyed(site, "svhc", "svhc, rotated"), fingerprint(identity_of("svhc, rotated"))
    refused = call("study", "approve", later.study_hash, "--yes", code=1).stderr
    assert "--accept-new-key svhc=FINGERPRINT" in " ".join(refused.split())
    shown = json.loads(
        call(
            "study", "approve", later.study_hash, "--yes", "--json", "--accept-new-key", f"svhc={typed.lower()}"
        ).stdout
    )
    assert shown["new_keys"] == {"svhc": typed}


def followed(name, *keys):
    """Successions of a name's keys, as they come with a study."""
    pairs = itertools.pairwise(map(key_of, keys))
    found = [Succession.make(name, identity_of("coordinator"), *pair, "2026-03-01T09:00:00Z") for pair in pairs]
    return [each.model_dump() for each in found]


def offered(site, monkeypatch, study, successions):
    """Has the coordinator offer a study with successions."""
    offer = site.offer(study) | {"successions": successions}
    monkeypatch.setattr(catalogue, "fetch_studies", lambda _: [offer])
    return catalogue.refresh(site.home)


@pytest.mark.parametrize("name", ["svhc", "agg-b"])
def test_a_key_to_which_successions_lead_from_the_known_one_needs_nobody_to_accept_it(site, first, name, monkeypatch):
    later = rekeyed(site, name, "third")
    assert offered(site, monkeypatch, later, followed(name, name, "second", "third")) == []
    proposal = propose(site.home, later.study_hash)
    assert [(each.name, each.state) for each in proposal.peers] == [(name, "followed")]
    assert fingerprint(identity_of("third")) in proposal.peers[0].told()
    approve_study(site.home, proposal, by="Dr. Ada")
    assert approved_study(site.home, later.study_hash) == later
    assert approved_study(site.home, first.study_hash) == first  # which goes on under the earlier key
    assert [key.identity for key in peers.load(site.home)[name]] == [identity_of(name), identity_of("third")]
    made = [each for each in decision_log.read(site.home)[0] if each.decision == "accept"]
    assert [(each.by, each.about, each.detail) for each in made] == [
        ("Dr. Ada", name, fingerprint(identity_of("third")))
    ]
    with pytest.raises(ApprovalRefused, match="has an earlier key"):  # a new study has to name the newest
        propose(site.home, rekeyed(site, name, name, ("rank = 5", "rank = 6")).study_hash)


@pytest.mark.parametrize(
    "keys", [("mallory", "third"), ("second", "third"), ("third", "svhc"), ("north", "third")], ids=lambda keys: keys[0]
)
def test_a_chain_from_another_key_than_the_known_one_is_refused_as_no_chain_is(site, first, keys, monkeypatch):
    later = rekeyed(site, "svhc", "third")
    offered(site, monkeypatch, later, followed("svhc", *keys))
    with pytest.raises(ApprovalRefused, match="svhc has another key than in earlier studies"):
        propose(site.home, later.study_hash)
    decisions.approve(site.home, later.study_hash)  # by whoever got round the command
    with pytest.raises(PartnerRefused, match="svhc has another key"):
        approved_study(site.home, later.study_hash)


def test_an_aggregator_s_confirmed_key_confirms_those_that_follow_it(site, monkeypatch):
    study = site.aggregate()
    assert doubts(site.home, study) == []
    parties = tuple(
        each.model_copy(update={"identity": identity_of("second")}) if each.name == "svhc" else each
        for each in study.sites
    )
    later = study.model_copy(update={"sites": parties})
    assert "another key than the confirmed one" in doubts(site.home, later)[0]
    offered(site, monkeypatch, later, followed("svhc", "mallory", "second"))
    assert "another key than the confirmed one" in doubts(site.home, later)[0]
    offered(site, monkeypatch, later, followed("svhc", "svhc", "second"))
    assert "another key than the confirmed one" in doubts(site.home, later)[0]  # the first succession to a key stands
    (site.home / partners.FILE).unlink()
    offered(site, monkeypatch, later, followed("svhc", "svhc", "second"))
    assert doubts(site.home, later) == []


def test_a_site_invented_with_an_earlier_key_of_this_node_is_doubted_and_compared(site, monkeypatch):
    monkeypatch.setattr(rotation.protocol, "send_signed", lambda *_: b"{}")
    study = site.aggregate()
    approve_study(site.home, propose(site.home, study.study_hash))
    stolen = site.identity.identity_hex
    rotation.rotate(site.home)
    for name, doubt in (("svhc", "another key than the confirmed one"), ("invented", "is not confirmed")):
        parties = tuple(
            each.model_copy(update={"name": name, "identity": stolen}) if each.name == "svhc" else each
            for each in study.sites
        )
        posed = study.model_copy(update={"sites": parties})
        assert doubt in "".join(doubts(site.home, posed))
        state = {each.name: each.state for each in peers.compare(site.home, posed)}[name]
        assert state == ("changed" if name == "svhc" else "new")


@pytest.mark.parametrize("known_by", ["an approval", "a fingerprint", "nothing"])
def test_a_key_from_which_a_succession_is_known_opens_no_new_study_and_runs_go_on(site, known_by, monkeypatch):
    under_way = site.keep(site.study())
    if known_by == "an approval":
        approve_study(site.home, propose(site.home, under_way.study_hash))
    if known_by == "a fingerprint":
        decisions.confirm_sites(site.home, {"svhc": fingerprint(identity_of("svhc"))})
        peers.note(site.home, rekeyed(site, "svhc", "second"))  # the first study that came here named the later key
    later = rekeyed(site, "svhc", "second")  # which nobody has approved yet, and so noted
    offered(site, monkeypatch, later, followed("svhc", "svhc", "second"))
    stolen = site.keep(site.study(("rank = 4", "rank = 6")))
    with pytest.raises(ApprovalRefused, match="svhc has an earlier key") as refusal:
        propose(site.home, stolen.study_hash)
    assert fingerprint(identity_of("second")) in str(refusal.value)
    decisions.approve(site.home, under_way.study_hash)
    assert approved_study(site.home, under_way.study_hash) == under_way
    peers.note(site.home, under_way)  # as with a message of a run
    assert [each.name for each in peers.compare(site.home, under_way) if each.state == "earlier"] == ["svhc"]
    assert propose(site.home, later.study_hash).assessment.study == later
