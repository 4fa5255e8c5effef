"""A rotation of a site's identity key, with its ledger, its decision log, its studies and its runs under way."""

import json
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from confide.client_node import backup, files, identity_keys, ledger_head
from confide.client_node.approval import charges
from confide.client_node.approval.catalogue import approved_study
from confide.client_node.approval.study_decisions import approve_study, propose, revoke_study
from confide.client_node.cli.main import app
from confide.client_node.enrolment import Enrolment, NodeIdentity
from confide.client_node.enrolment.identity import read_signer
from confide.client_node.errors import ApprovalRefused, CoordinatorUnreachable, PartnerRefused, SiteNotReady
from confide.client_node.node import Node
from confide.client_node.policy import decision_log, decisions
from confide.client_node.succession import own_keys, rotation
from confide.client_node.wire.messages import Prepare, Ready, Update, verify
from confide.privacy.ledger import backup as ledger_backup
from confide.privacy.ledger import canonical
from confide.privacy.ledger.chain import verify_chain
from confide.privacy.ledger.ledger import Budget

from .test_node import make_desk, new_node, prepare


@pytest.fixture(autouse=True)
def coordinator_takes_every_key(monkeypatch):
    monkeypatch.setattr(rotation.protocol, "send_signed", lambda *_: b"{}")


@pytest.fixture
def approved(site):
    study = site.keep(site.study())
    approve_study(site.home, propose(site.home, study.study_hash))
    return study


def holds(site):
    return {key.public: key.holds for key in identity_keys.held(site.home)}


def open_ledger(site):
    return charges.open_ledger(site.home, NodeIdentity.load(site.home), Enrolment.load(site.home))


def test_ledger_and_decision_log_are_handed_over_and_hold_together(site, approved):
    first, public = site.identity.identity_hex, []
    for _ in range(2):
        public.append(identity_keys.rotate(site.home, by="Dr. Ada").identity_hex)
        decisions.approve(site.home, "ab" * 32)  # a decision under each key
        decisions.revoke(site.home, "ab" * 32)
    with open_ledger(site) as ledger:
        assert ledger.keys == (first, *public)
        assert verify_chain(ledger.entries(), first) == ledger.head
        assert ledger_head.kept_head(site.home, first).seq == ledger.head.seq  # an older copy is noticed from here on
    for known in (None, first, *public):
        assert decision_log.verify(site.home, public=known).problems == (), known
    assert decision_log.verify(site.home, public="ab" * 32).problems
    entries, unread = decision_log.read(site.home)
    assert unread == []
    assert [(each.by, each.about) for each in entries if each.decision == "rotate"] == [
        ("Dr. Ada", key) for key in public
    ]
    assert decision_log.signing_key(site.home, own_keys.of_home(site.home)) == public[-1]


def test_an_earlier_key_is_kept_while_an_approved_study_names_it_and_deleted_then(site, approved):
    first = site.identity.identity_hex
    second = identity_keys.rotate(site.home).identity_hex
    assert holds(site) == {first: (f"study thyroid ({approved.study_hash[:12]})",), second: ()}
    assert approved_study(site.home, approved.study_hash) == approved
    identity_keys.settle(site.home)
    assert own_keys.earlier(site.home) == [first]
    revoke_study(site.home, approved.study_hash)
    identity_keys.settle(site.home)
    assert own_keys.earlier(site.home) == []
    assert not list((site.home / "keys").glob("identity-*.key"))
    assert holds(site) == {second: ()}
    assert own_keys.of_home(site.home).all() == (first, second)  # whose they were stays known
    decisions.approve(site.home, approved.study_hash)
    with pytest.raises(PartnerRefused, match="another key than this node's"):
        approved_study(site.home, approved.study_hash)
    with open_ledger(site) as ledger:
        assert ledger.keys == (first, second)


def test_an_approved_study_that_never_came_here_holds_a_key_since_it_may_name_it(site):
    decisions.approve(site.home, "ab" * 32)
    identity_keys.rotate(site.home)
    assert holds(site)[site.identity.identity_hex] == (f"study {'ab' * 6}, which has not reached this node",)


def test_no_copy_of_a_deleted_key_is_left_by_a_write_that_was_cut_off(site, monkeypatch):
    def cut(beside, target):
        if target.name.startswith("identity-"):
            raise KeyboardInterrupt
        real(beside, target)

    real = files.move_durably
    with monkeypatch.context() as killed:
        killed.setattr(files, "move_durably", cut)
        killed.setattr(files.os, "getpid", lambda: 424242)  # of the process that ended there
        with pytest.raises(KeyboardInterrupt):
            identity_keys.rotate(site.home)
    old = canonical.public_hex(read_signer(next((site.home / "keys").glob(".identity-*.424242"))))
    assert old == site.identity.identity_hex
    identity_keys.rotate(site.home)
    assert own_keys.earlier(site.home) == []
    left = [path for path in (site.home / "keys").iterdir() if path.name.startswith((".identity-", "identity-"))]
    assert left == []


def test_a_rotation_whose_statement_was_lost_before_the_key_was_in_place_is_completed(site, monkeypatch):
    with monkeypatch.context() as killed:
        killed.setattr(rotation, "move_durably", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            identity_keys.rotate(site.home)
    (stated,) = own_keys.successions(site.home)
    (site.home / "keys" / "next-succession.json").unlink()
    monkeypatch.setattr(rotation.chain, "now", lambda: "2027-01-01T00:00:00Z")
    assert identity_keys.rotate(site.home).identity_hex == stated.new
    assert own_keys.successions(site.home) == (stated,)


def test_a_new_approval_has_to_name_the_present_key(site, approved):
    earlier = site.keep(site.study(("rank = 4", "rank = 5")))
    identity_keys.rotate(site.home)
    with pytest.raises(ApprovalRefused, match="followed by another since"):
        propose(site.home, earlier.study_hash)
    fresh = type(site)(site.home, NodeIdentity.load(site.home))
    study = fresh.keep(fresh.study(("rank = 4", "rank = 6")))
    approve_study(site.home, propose(site.home, study.study_hash))
    assert approved_study(site.home, study.study_hash) == study


@pytest.mark.parametrize("step", ["note_succession", "_hand_over", "delete_earlier"])
def test_what_a_rotation_left_undone_is_done_later(site, approved, monkeypatch, step):
    first = site.identity.identity_hex
    owner = {"note_succession": decisions, "delete_earlier": own_keys}.get(step, identity_keys)

    def cut(*_: object, **__: object) -> None:
        raise CoordinatorUnreachable("cut off here")

    revoke_study(site.home, approved.study_hash)
    monkeypatch.setattr(owner, step, cut)
    with pytest.raises(CoordinatorUnreachable):
        identity_keys.rotate(site.home)
    monkeypatch.undo()
    present = NodeIdentity.load(site.home).identity_hex
    assert present != first  # the key is in place, and both logs can still be written
    decisions.approve(site.home, "ab" * 32)
    decisions.revoke(site.home, "ab" * 32)
    assert decision_log.verify(site.home).problems == ()
    with open_ledger(site) as ledger:
        ledger.set_budget(Budget(dataset="else", unit="patient", epsilon=1.0, delta=1e-6, collusion=0))
        assert verify_chain(ledger.entries(), first) == ledger.head
    identity_keys.settle(site.home)
    assert own_keys.earlier(site.home) == []
    assert decision_log.verify(site.home).problems == ()
    with open_ledger(site) as ledger:
        assert ledger.keys == (first, present)


def test_an_older_copy_of_the_ledger_is_not_handed_over(site, approved, tmp_path):
    with open_ledger(site) as ledger:
        ledger_head.LedgerHead(site.home, ledger).keep()
    older = (site.home / "ledger.db").read_bytes()
    with open_ledger(site) as ledger:
        ledger.set_budget(Budget(dataset="else", unit="patient", epsilon=1.0, delta=1e-6, collusion=0))
        ledger_head.LedgerHead(site.home, ledger).keep()
    identity_keys.rotate(site.home)
    with open_ledger(site) as ledger:
        ledger_backup.write(tmp_path / "newest", ledger.walk(), ledger.public_key)
        newest = ledger.head
    for each in site.home.glob("ledger.db*"):
        each.unlink()
    (site.home / "ledger.db").write_bytes(older)
    with open_ledger(site) as ledger:
        before = ledger.head
        with pytest.raises(SiteNotReady, match="client-node budget import"):
            identity_keys.settle(site.home, ledger)  # as the daemon does
        assert ledger.head == before
    backup.import_ledger(site.home, tmp_path / "newest")
    identity_keys.settle(site.home)
    with open_ledger(site) as ledger:
        assert ledger.head == newest


def daemon_of(site):
    """A desk whose node has its ledger open as the daemon has."""
    made = make_desk(site)
    made.ledger.close()
    ledger = open_ledger(site)
    return replace(made, ledger=ledger, node=new_node(site, ledger))


def test_a_run_goes_on_under_the_key_that_its_study_names(site):
    desk = daemon_of(site)
    first = site.identity.identity_hex
    verify(prepare(desk), first, Ready)
    identity_keys.rotate(site.home)  # by a command, while the daemon holds its ledger open
    answer = verify(desk.step(), first, Update)
    assert desk.charges() == ["reserve"]
    kinds = [entry.kind for entry in answer.ledger]
    assert kinds.index("succeed") < kinds.index("reserve")
    assert verify_chain(desk.ledger.entries(), first) == desk.ledger.head
    restarted = Node(site.home, NodeIdentity.load(site.home), Enrolment.load(site.home), ledger=desk.ledger)
    verify(replace(desk, node=restarted).step(), first, Update)  # it has the new key, and finds the old one
    assert desk.charges() == ["reserve"]


def test_a_daemon_from_before_answers_a_new_study_under_the_new_key(site):
    desk = daemon_of(site)
    after = identity_keys.rotate(site.home)
    named = tuple(
        each.model_copy(update={"identity": after.identity_hex}) if each.name == "svi" else each
        for each in desk.study.sites
    )
    desk.study = desk.site.keep(desk.study.model_copy(update={"sites": named}))
    decisions.approve(site.home, desk.study.study_hash)
    asked = Prepare(to="svi", study=desk.study.study_hash, run="thyroid-0009", lease=1, ledger_from=0)
    verify(desk.ask("prepare", asked), after.identity_hex, Ready)


def test_a_backup_after_a_rotation_restores_both_keys_and_the_ledger(site, approved, tmp_path):
    first = site.identity.identity_hex
    second = identity_keys.rotate(site.home).identity_hex
    backup.back_up(site.home, tmp_path / "kept")
    found = backup.restore(tmp_path / "kept", tmp_path / "again")
    assert found.entries is not None
    keys = own_keys.of_home(tmp_path / "again")
    assert (keys.present, keys.all()) == (second, (first, second))
    assert keys.find(first) is not None
    assert decision_log.verify(tmp_path / "again").problems == ()


def test_the_commands_rotate_and_show(site, approved):
    def call(*words):
        result = CliRunner().invoke(app, [*words, "--home", str(site.home)])
        assert result.exit_code == 0, result.output
        return result.stdout

    rows = json.loads(call("keys", "rotate", "--identity", "--by", "Dr. Ada", "--json"))
    assert rows == json.loads(call("keys", "show", "--json"))
    assert [(row["identity"], row["state"]) for row in rows] == [
        (site.identity.identity_hex, "earlier"), (NodeIdentity.load(site.home).identity_hex, "present"),
    ]  # fmt: skip
    assert rows[0]["kept_for"] == [f"study thyroid ({approved.study_hash[:12]})"]
    assert "signed by both keys" in call("decisions")
    call("study", "revoke", approved.study_hash, "--yes")
    assert [row["state"] for row in json.loads(call("keys", "show", "--json"))] == ["present"]
    call("decisions", "--verify")
