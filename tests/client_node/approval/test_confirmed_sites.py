import hashlib
import json

import pytest
from typer.testing import CliRunner

from confide.client_node.approval.assessment import assess
from confide.client_node.approval.catalogue import approved_study
from confide.client_node.approval.confirmed_sites import doubts, fingerprint
from confide.client_node.cli.main import app
from confide.client_node.errors import PolicyInvalid, SiteNotConfirmed
from confide.client_node.policy.decisions import approve, confirm_sites, load_decisions, remove_sites, revoke

from ..conftest import identity_of


@pytest.fixture
def study(site):
    """One in which the node at hand aggregates, and does not train."""
    facts = json.loads((site.home / "enrolment.json").read_text()) | {"name": "agg-a", "roles": ["aggregate"]}
    (site.home / "enrolment.json").write_text(json.dumps(facts))
    return site.keep(site.study(named="agg-a"))


def spoken(study, *names):
    """What the people of these sites say; of all if none is named."""
    return {each.name: fingerprint(each.identity) for each in study.sites if each.name in names or not names}


def test_a_fingerprint_is_a_hash_of_the_key_in_groups_that_can_be_read_aloud():
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
    key = bytes(range(32))
    bits = int.from_bytes(hashlib.sha256(b"confide/identity/1" + key).digest()[:20], "big")
    letters = "".join(alphabet[bits >> shift & 31] for shift in range(155, -1, -5))
    assert fingerprint(key.hex()).replace("-", "") == letters
    assert [len(group) for group in fingerprint(key.hex()).split("-")] == [4] * 8


def test_an_aggregator_serves_no_study_with_a_site_that_it_has_not_confirmed(site, study):
    approve(site.home, study.study_hash)
    confirm_sites(site.home, spoken(study, "svi", "svhc", "rest"))
    with pytest.raises(SiteNotConfirmed, match="other is not confirmed"):
        approved_study(site.home, study.study_hash)
    confirm_sites(site.home, spoken(study, "other"))
    assert approved_study(site.home, study.study_hash) == study


def test_an_invented_key_under_a_confirmed_name_is_refused(site, study):
    approve(site.home, study.study_hash)
    confirm_sites(site.home, spoken(study) | {"rest": fingerprint(identity_of("whom the people of rest meant"))})
    with pytest.raises(SiteNotConfirmed, match="rest another key than the confirmed one"):
        approved_study(site.home, study.study_hash)


def test_a_confirmation_taken_back_holds_from_the_next_message_on(site, study):
    approve(site.home, study.study_hash)
    confirm_sites(site.home, spoken(study))
    approved_study(site.home, study.study_hash)
    remove_sites(site.home, ["svhc"])
    with pytest.raises(SiteNotConfirmed, match="svhc"):
        approved_study(site.home, study.study_hash)


def test_approval_names_every_site_that_is_in_doubt_and_never_its_fingerprint(site, study):
    confirm_sites(site.home, spoken(study, "svi"))
    reasons = assess(site.home, study).reasons
    assert [reason.split()[0] for reason in reasons] == ["other", "svhc", "rest"]
    assert not any(said in " ".join(reasons) for said in spoken(study).values())  # to be heard, not copied
    confirm_sites(site.home, spoken(study))
    assert assess(site.home, study).reasons == ()


def test_a_site_that_only_trains_confirms_nobody(site):
    assert doubts(site.home, site.study()) == []


def test_a_confirmed_key_is_never_replaced_without_being_removed(site, study):
    confirm_sites(site.home, spoken(study, "rest"))
    with pytest.raises(PolicyInvalid, match="rest was confirmed with another"):
        confirm_sites(site.home, {"rest": fingerprint(identity_of("mallory")), **spoken(study, "svi")})
    assert load_decisions(site.home).sites == spoken(study, "rest")


@pytest.mark.parametrize("heard", ["", "ABCD", "ABCD-" * 8, "abcd-abcd-abcd-abcd-abcd-abcd-abcd-abcd", "0" * 64])
def test_what_is_no_fingerprint_confirms_nothing(site, heard):
    with pytest.raises(PolicyInvalid):
        confirm_sites(site.home, {"rest": heard})
    assert load_decisions(site.home).sites == {}


def test_confirmations_and_verdicts_leave_each_other_alone(site, study):
    confirm_sites(site.home, spoken(study))
    approve(site.home, study.study_hash)
    revoke(site.home, study.study_hash)
    assert load_decisions(site.home).sites == spoken(study)
    with pytest.raises(PolicyInvalid, match="mallory: not confirmed here"):
        remove_sites(site.home, ["mallory"])
    remove_sites(site.home, ["rest"])
    assert load_decisions(site.home).verdict(study.study_hash) == "revoked"


def test_people_confirm_by_command(site, study):
    def call(*words: str) -> str:
        result = CliRunner().invoke(app, ["site", *words, "--home", str(site.home)], env={"COLUMNS": "200"})
        assert result.exit_code == 0, result.output
        return result.stdout

    own = json.loads(CliRunner().invoke(app, ["status", "--home", str(site.home), "--json"]).stdout)["fingerprint"]
    assert own == fingerprint(site.identity.identity_hex)
    call("confirm", *(f"{name}={said.lower()}" for name, said in spoken(study).items()))
    assert {row["site"]: row["fingerprint"] for row in json.loads(call("list", "--json"))} == spoken(study)
    assert "rest" not in call("remove", "rest")
