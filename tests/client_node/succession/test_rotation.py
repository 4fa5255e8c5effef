"""A node's new identity key, against the real gate and the real register."""

import json
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from confide.client_node.enrolment import NodeIdentity, enrol
from confide.client_node.enrolment.protocol import Enrolment, fetch_studies, send_signed
from confide.client_node.enrolment.protocol import rotate as rotate_transport
from confide.client_node.errors import CoordinatorRefused, CoordinatorUnreachable, EnrolmentFailed, IdentityMissing
from confide.client_node.succession import own_keys, rotation
from confide.client_node.succession.rotation import FOLLOW_PATH, FollowRequest, complete, rotate
from confide.coordinator.federation import register
from confide.coordinator.federation.pki import Pki
from confide.coordinator.federation.register import MOST_ROTATIONS, Register
from confide.coordinator.gateway.gate import FleetGate, serve_gate
from confide.coordinator.store.store import Store
from confide.coordinator.store.tables import ActionRow, NodeRow, SuccessionRow
from confide.privacy.ledger.succession import Succession

from ...coordinator.conftest import logged
from ..conftest import key_of

pytestmark = pytest.mark.slow

AT = "2026-03-01T09:00:00Z"


@dataclass
class Federation:
    register: Register
    store: Store
    pki: Pki
    port: int

    def code(self, name: str = "north") -> str:
        return self.register.invite(name, ("train",), f"127.0.0.1:{self.port}")

    def join(self, home: Path, name: str = "north") -> NodeIdentity:
        enrol(self.code(name), home)
        return NodeIdentity.load(home)

    def known(self, name: str = "north") -> str | None:
        return self.store.node(name).identity


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[Federation]:
    pki, store = Pki.create(tmp_path / "coordinator", []), Store.create(tmp_path / "coordinator")
    register = Register(store, pki)
    app = FleetGate(
        register, enrol=register.enrol, rotate=register.rotate, studies=register.studies, ca_path=pki.ca_path,
        superlink=1, follow=register.follow,
    )  # fmt: skip
    server = serve_gate(app, "127.0.0.1", 0, pki.certificate_path, pki.key_path)
    yield Federation(register, store, pki, server.port)
    server.stop()
    store.close()


def send(home: Path, *stated: Succession, signer=None, identity: str | None = None, **changed: object) -> None:
    """Sends a request to be known by the last key of `stated`, perhaps one that no honest node would send."""
    from dataclasses import replace

    own = NodeIdentity.load(home)
    signed_by = replace(own, signer=signer or own.signer)
    request = FollowRequest.model_construct(
        identity=identity or stated[-1].old, timestamp=time.time(), nonce=secrets.token_hex(16), successions=stated
    ).model_copy(update=changed)
    send_signed(request, FOLLOW_PATH, signed_by, Enrolment.load(home))


def stated_by(federation: Federation, old, new, site: str = "north", at: str = AT) -> Succession:
    return Succession.make(site, federation.pki.identity_hex, old, new, at)


def test_a_new_key_follows_the_old_one_everywhere(federation, tmp_path):
    home = tmp_path / "north"
    before = federation.join(home)
    after = rotate(home)
    assert after.identity_hex != before.identity_hex
    assert after.transport_fingerprint == before.transport_fingerprint  # so its daemon stays connected
    assert federation.known() == after.identity_hex
    assert own_keys.of_home(home).all() == (before.identity_hex, after.identity_hex)
    assert own_keys.earlier(home) == [before.identity_hex]
    assert own_keys.of_home(home).find(before.identity_hex) is not None
    assert not rotation.is_under_way(home)
    (stated,) = federation.store.successions()["north"]
    assert (stated.old, stated.new, stated.problem()) == (before.identity_hex, after.identity_hex, "")
    assert (
        "site.identity",
        {"site": "north", "old": before.identity_hex, "new": after.identity_hex},
    ) in logged(federation.store)
    assert fetch_studies(home) == []  # asked under the new key
    rotate_transport(home)  # for which the new key vouches
    third = rotate(home)
    assert federation.store.identities("north") == (before.identity_hex, after.identity_hex, third.identity_hex)


def test_the_old_key_asks_for_nothing_any_more(federation, tmp_path):
    home = tmp_path / "north"
    before = federation.join(home)
    rotate(home)
    from confide.client_node.enrolment.protocol import STUDIES_PATH, StudiesQuery

    query = StudiesQuery(identity=before.identity_hex, timestamp=time.time(), nonce=secrets.token_hex(16))
    with pytest.raises(CoordinatorRefused, match="does not know"):
        send_signed(query, STUDIES_PATH, before, Enrolment.load(home))


STEPS = ("make_signer", "write_private", "send_signed", "keep_earlier", "add_succession", "move_durably")


@pytest.mark.parametrize("is_done", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("step", STEPS)
def test_a_rotation_cut_off_at_any_step_is_completed_with_one_new_key(federation, tmp_path, monkeypatch, step, is_done):
    home = tmp_path / "north"
    before = federation.join(home)
    owner = {"send_signed": rotation.protocol, "keep_earlier": own_keys, "add_succession": own_keys}.get(step, rotation)
    real = getattr(owner, step)

    def cut(*arguments: object, **named: object) -> None:
        if is_done:
            real(*arguments, **named)
        raise CoordinatorUnreachable("cut off here")

    monkeypatch.setattr(owner, step, cut)
    with pytest.raises(CoordinatorUnreachable, match="cut off"):
        rotate(home)
    monkeypatch.undo()
    is_in_place = (step, is_done) == ("move_durably", True)
    assert (NodeIdentity.load(home).identity_hex == before.identity_hex) is not is_in_place
    may_be_known = own_keys.next_path(home).read_bytes() if rotation.is_under_way(home) else None
    after = complete(home)
    if (step, is_done) == ("make_signer", False):  # nothing was begun
        assert after.identity_hex == before.identity_hex
        return
    if may_be_known is not None:
        assert own_keys.present_path(home).read_bytes() == may_be_known
    assert federation.known() == after.identity_hex != before.identity_hex
    assert own_keys.of_home(home).all() == (before.identity_hex, after.identity_hex)
    assert own_keys.of_home(home).find(before.identity_hex) is not None
    assert complete(home).identity_hex == after.identity_hex
    assert len(federation.store.successions()["north"]) == 1
    rotate(home)  # what was left lying about is not in the way
    assert len(federation.store.successions()["north"]) == 2


def test_forged_successions_change_nothing(federation, tmp_path):
    home, thief = tmp_path / "north", key_of("thief")
    own = federation.join(home)
    south = federation.join(tmp_path / "south", "south")
    fresh = key_of("fresh")
    good = stated_by(federation, own.signer, fresh)
    unsigned = stated_by(federation, own.signer, thief).model_copy(update={"old_signature": "00" * 64})
    forged = Succession.make("north", federation.pki.identity_hex, thief, fresh, AT).model_copy(
        update={"old": own.identity_hex}
    )
    into_thief = [unsigned, stated_by(federation, thief, fresh)]
    for attempt in (
        lambda: send(home, unsigned),
        lambda: send(home, forged, signer=thief),
        lambda: send(home, *into_thief, signer=thief),
        lambda: send(home, good, signer=thief),  # genuine, sent by somebody else
        lambda: send(home, good.model_copy(update={"site": "south"})),
        lambda: send(home, stated_by(federation, own.signer, fresh, site="south")),  # signed, of another's name
        lambda: send(home, Succession.make("north", "c0" * 32, own.signer, fresh, AT)),  # for another coordinator
        lambda: send(home, stated_by(federation, own.signer, south.signer)),  # another's present key
        lambda: send(home, stated_by(federation, own.signer, federation.pki.signer)),
        lambda: send(home, good, timestamp=time.time() - 400),
        lambda: send(home, good, identity=south.identity_hex, signer=south.signer),
        lambda: send(home, good, good),
        lambda: send(home, *[good] * 21),
    ):
        with pytest.raises(CoordinatorRefused):
            attempt()
    assert federation.known() == own.identity_hex
    assert federation.known("south") == south.identity_hex
    assert federation.store.successions() == {}
    send(home, good)  # and this one is in order
    assert federation.known() != own.identity_hex


def test_whoever_has_the_old_key_comes_too_late(federation, tmp_path):
    home, thief = tmp_path / "north", key_of("thief")
    own = federation.join(home)
    after = rotate(home)
    second = stated_by(federation, own.signer, thief)
    with pytest.raises(CoordinatorRefused):
        send(home, second, signer=own.signer)
    with pytest.raises(CoordinatorRefused):
        send(home, second, stated_by(federation, thief, key_of("fresh")), signer=thief)
    assert federation.known() == after.identity_hex


def test_a_replayed_succession_changes_nothing(federation, tmp_path):
    home = tmp_path / "north"
    own = federation.join(home)
    rotate(home)
    (first,) = federation.store.successions()["north"]
    after = rotate(home)
    with pytest.raises(CoordinatorRefused):
        send(home, first, signer=own.signer)  # it leads from a key of the past to another one
    with pytest.raises(CoordinatorRefused):
        send(home, stated_by(federation, after.signer, own.signer))  # back to the first key
    assert federation.known() == after.identity_hex
    send(home, *federation.store.successions()["north"], signer=own_keys.of_home(home).find(first.new))
    assert len(federation.store.successions()["north"]) == 2  # known already: the answer might have been lost


def test_a_key_of_the_past_enrols_under_no_other_name(federation, tmp_path):
    home = tmp_path / "north"
    federation.join(home)
    key = (home / "keys" / "identity.key").read_bytes()
    rotate(home)
    NodeIdentity.create(tmp_path / "other")
    (tmp_path / "other" / "keys" / "identity.key").write_bytes(key)
    from confide.client_node.errors import EnrolmentFailed

    with pytest.raises(EnrolmentFailed, match="another name"):
        federation.join(tmp_path / "other", "other")


def test_a_revoked_node_gets_no_new_key(federation, tmp_path):
    before = federation.join(tmp_path / "north")
    federation.register.revoke("north")
    with pytest.raises(CoordinatorRefused):
        rotate(tmp_path / "north")
    assert federation.known() == before.identity_hex


def test_a_register_from_an_older_backup_is_told_what_it_lacks(federation, tmp_path):
    home = tmp_path / "north"
    first = federation.join(home)
    rotate(home)
    with federation.store.session() as session:  # as a backup from before the rotation has it
        session.query(SuccessionRow).delete()
        session.get(NodeRow, "north").identity = first.identity_hex
    with pytest.raises(CoordinatorRefused, match="does not know"):
        fetch_studies(home)
    after = rotate(home)
    assert federation.store.identities("north")[-1] == after.identity_hex
    assert len(federation.store.identities("north")) == 3


def test_a_node_has_five_new_identity_keys_an_hour(federation, tmp_path):
    home = tmp_path / "north"
    federation.join(home)
    keys = [rotate(home) for _ in range(MOST_ROTATIONS)]
    with pytest.raises(CoordinatorRefused, match="within the hour"):
        rotate(home)
    assert federation.known() == keys[-1].identity_hex == NodeIdentity.load(home).identity_hex


def test_damaged_files_of_a_rotation_are_told(federation, tmp_path):
    home = tmp_path / "north"
    federation.join(home)
    for path, text in (
        (own_keys.next_path(home), "identity.next"),
        (home / "keys" / "next-succession.json", "next-succession.json"),
        (home / own_keys.FILE, "successions.json"),
    ):
        path.write_bytes(b"half")
        path.chmod(0o600)
        with pytest.raises(IdentityMissing, match=text.replace(".", r"\.")):
            rotate(home)
        path.unlink()
    rotate(home)


def test_a_node_does_not_fill_the_register_with_its_keys(federation, tmp_path, monkeypatch):
    home = tmp_path / "north"
    federation.join(home)
    monkeypatch.setattr(register, "MOST", 2)
    keys = [rotate(home) for _ in range(2)]
    with pytest.raises(CoordinatorRefused, match="at most 2"):
        rotate(home)
    assert federation.known() == keys[-1].identity_hex


def test_a_site_that_left_while_a_rotation_s_answer_was_lost_comes_back(federation, tmp_path, monkeypatch):
    home = tmp_path / "north"
    before = federation.join(home)
    with monkeypatch.context() as cut:
        cut.setattr(own_keys, "keep_earlier", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            rotate(home)
    assert federation.known() != before.identity_hex == NodeIdentity.load(home).identity_hex
    federation.register.leave("north")
    facts = json.loads((home / "enrolment.json").read_text()) | {"address": "127.0.0.1:1"}
    (home / "enrolment.json").write_text(json.dumps(facts))  # the coordinator has moved since
    enrol(federation.code(), home, again=True, complete=complete)
    assert federation.known() == NodeIdentity.load(home).identity_hex != before.identity_hex
    assert not rotation.is_under_way(home)
    assert fetch_studies(home) == []


def test_a_site_that_left_a_coordinator_from_an_older_backup_comes_back(federation, tmp_path):
    home = tmp_path / "north"
    first = federation.join(home)
    rotate(home)
    with federation.store.session() as session:
        session.query(SuccessionRow).delete()
        session.get(NodeRow, "north").identity = first.identity_hex
    federation.register.leave("north")
    with pytest.raises(EnrolmentFailed, match="client-node keys rotate --identity"):
        enrol(federation.code(), home, again=True, complete=complete)
    rotate(home)  # shows all its successions
    assert federation.register.site_with_identity(federation.known()) is None  # and has left all the same
    with pytest.raises(CoordinatorRefused):
        fetch_studies(home)
    enrol(federation.code(), home, again=True, complete=complete)
    assert federation.known() == NodeIdentity.load(home).identity_hex
    assert fetch_studies(home) == []


def test_a_rotation_that_the_coordinator_refuses_does_not_keep_a_site_away(federation, tmp_path, monkeypatch):
    home = tmp_path / "north"
    before = federation.join(home)
    monkeypatch.setattr(register, "MOST", 0)
    with pytest.raises(CoordinatorRefused):
        rotate(home)
    assert rotation.is_under_way(home)
    federation.register.leave("north")
    enrol(federation.code(), home, again=True, complete=complete)
    assert federation.known() == before.identity_hex == NodeIdentity.load(home).identity_hex


def test_a_register_that_lacks_more_than_an_hour_s_keys_catches_up(federation, tmp_path, monkeypatch):
    home = tmp_path / "north"
    first = federation.join(home)
    with monkeypatch.context() as years:
        years.setattr(register, "MOST_ROTATIONS", 100)
        for _ in range(MOST_ROTATIONS + 2):
            rotate(home)
    with federation.store.session() as session:
        session.query(SuccessionRow).delete()
        session.query(ActionRow).filter(ActionRow.action == "site.identity").delete()
        session.get(NodeRow, "north").identity = first.identity_hex
    after = rotate(home)
    assert federation.known() == after.identity_hex
    with pytest.raises(CoordinatorRefused, match="within the hour"):
        rotate(home)


def test_of_successions_a_study_brings_those_that_lead_to_the_keys_in_it(federation, tmp_path):
    home = tmp_path / "north"
    keys = [federation.join(home).identity_hex, *(rotate(home).identity_hex for _ in range(2))]
    sent = {}
    for each in keys:
        study = {"sites": [{"name": "north", "identity": each}], "aggregators": []}
        brought = register._of_parties(json.dumps(study).encode(), federation.store.successions())
        sent[each] = [stated["new"] for stated in brought.get("successions", [])]
    assert sent == {keys[0]: [], keys[1]: keys[1:2], keys[2]: keys[1:]}


def test_a_stranger_s_signatures_are_not_checked(federation, tmp_path, monkeypatch):
    home = tmp_path / "north"
    own = federation.join(home)
    checked = []
    problem = Succession.problem
    monkeypatch.setattr(Succession, "problem", lambda self: checked.append(self) or problem(self))
    with pytest.raises(CoordinatorRefused, match="does not know"):
        send(home, stated_by(federation, key_of("stranger"), key_of("fresh")), signer=key_of("stranger"))
    assert checked == []
    send(home, stated_by(federation, own.signer, key_of("fresh")))
    assert checked
