"""The rotation of the coordinator's signing key: nodes follow it over the real gate, and nobody enrols anew."""

import json
import secrets
import shutil
import threading
import time
from contextlib import suppress
from functools import partial
from itertools import pairwise

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from confide.client_node import authority, secret_files
from confide.client_node.authority import Statement
from confide.client_node.enrolment import Enrolment, NodeIdentity, enrol
from confide.client_node.enrolment.protocol import AuthorityQuery, fetch_studies, follow
from confide.client_node.errors import EnrolmentFailed, KeyNotFollowed, NotEnrolled, StatementRefused
from confide.client_node.passphrase import PASSPHRASE
from confide.client_node.succession import rotation
from confide.client_node.wire.checkpoints import DIGESTS_A_MESSAGE
from confide.coordinator import ca_rotation, key_rotation, key_sealing
from confide.coordinator.errors import EnrolmentInvalid
from confide.coordinator.federation import Pki, backup
from confide.coordinator.federation.register import MOST_CONFIRMATIONS, MOST_WORDS
from confide.coordinator.oversight import trail
from confide.coordinator.store import Store
from confide.privacy.ledger.succession import CoordinatorSuccession

from .cli.test_ca import node
from .rotating_gate import rotating_gate

pytestmark = pytest.mark.slow

A, B, C, EVIL = (Ed25519PrivateKey.from_private_bytes(name.ljust(32)) for name in (b"a", b"b", b"c", b"evil"))
AT = "2026-03-01T09:00:00Z"


def public(key: Ed25519PrivateKey) -> str:
    return key.public_key().public_bytes_raw().hex()


@pytest.fixture
def gate(tmp_path):
    with rotating_gate(tmp_path / "coordinator") as opened:
        yield opened


@pytest.fixture
def north(gate, tmp_path):
    gate.join(tmp_path / "north")
    return tmp_path / "north"


def rotate(gate):
    stated = key_rotation.rotate(gate.store, gate.home)
    gate.tick()
    return stated


def test_a_node_follows_with_its_next_list_of_studies_and_keeps_the_earlier_keys(gate, north):
    first = Enrolment.load(north).coordinator
    assert fetch_studies(north) == []
    stated = [rotate(gate), rotate(gate)]
    assert fetch_studies(north) == []
    known = Enrolment.load(north)
    assert known.coordinators == (first, stated[0].new, stated[1].new) == gate.pki.signing.now.all
    assert known.successions == tuple(stated)
    fetch_studies(north)
    assert Enrolment.load(north) == known


def test_the_gate_tells_of_a_new_key_and_the_list_of_cas_carries_it(gate, north):
    before = gate.announcer.mark
    assert authority.mark(authority.trusted(north).digests, Enrolment.load(north).coordinators) == before
    rotate(gate)
    assert gate.announcer.mark != before
    assert not authority.fetch(north).has_changed
    assert Enrolment.load(north).coordinators == gate.pki.signing.now.all
    assert authority.mark(authority.trusted(north).digests, gate.pki.signing.now.all) == gate.announcer.mark


def test_a_ca_and_a_key_that_change_together_are_both_followed(gate, north):
    ca_rotation.begin(gate.store, gate.home)
    rotate(gate)
    assert authority.fetch(north).has_changed
    ca_rotation.finish(gate.store, gate.home)
    rotate(gate)
    assert len(authority.fetch(north).digests) == 1
    assert Enrolment.load(north).coordinators == gate.pki.signing.now.all


def test_a_node_that_was_away_takes_both_from_a_file(gate, north, tmp_path):
    ca_rotation.begin(gate.store, gate.home)
    ca_rotation.finish(gate.store, gate.home, without=["north"])
    rotate(gate)
    ca_rotation.write_statement(gate.pki, tmp_path / "authority.json")
    told = node("ca", "accept", tmp_path / "authority.json", "--yes", "--home", north).stderr
    assert gate.pki.identity_hex in told  # for a person to compare
    assert gate.pki.identity_hex in node("decisions", "--json", "--home", north).stdout
    assert fetch_studies(north) == []
    assert Enrolment.load(north).coordinators == gate.pki.signing.now.all


def test_a_file_that_an_owner_of_the_old_key_dates_back_is_refused(gate, north, tmp_path):
    cas, old = gate.pki.authorities(), gate.pki.signer
    ca_rotation.begin(gate.store, gate.home)
    gate.tick()
    authority.fetch(north)
    both = gate.pki.authorities()
    assert both[:1] == cas
    stolen = CoordinatorSuccession.make(old, EVIL, AT)
    (tmp_path / "authority.json").write_bytes(Statement.issue(both, EVIL, (stolen,), made=1).model_dump_json().encode())
    with pytest.raises(StatementRefused, match="and this node has taken one of"):
        authority.read_file(north, tmp_path / "authority.json")


def test_a_node_that_enrols_afterwards_knows_the_earlier_keys_at_once(gate, tmp_path):
    rotate(gate)
    gate.join(tmp_path / "south")
    assert Enrolment.load(tmp_path / "south").coordinators == gate.pki.signing.now.all


def test_a_node_that_left_comes_back_to_a_coordinator_with_another_key(gate, north):
    gate.register.leave("north")
    rotate(gate)
    enrol(gate.code("north"), north, again=True)
    assert Enrolment.load(north).coordinators == gate.pki.signing.now.all


def test_a_node_that_left_does_not_come_back_to_another_coordinator(gate, north, tmp_path):
    with rotating_gate(tmp_path / "other") as other:
        rotate(other)
        with pytest.raises(EnrolmentFailed, match="of a coordinator with the key"):
            enrol(other.code("north"), north, again=True)
    assert Enrolment.load(north).coordinators == gate.pki.signing.now.all


def test_a_node_that_has_not_heard_yet_gets_a_new_identity_key_of_its_own(gate, north):
    rotate(gate)
    before = NodeIdentity.load(north).identity_hex
    rotation.rotate(north)
    assert gate.store.identities("north") == (before, NodeIdentity.load(north).identity_hex)


def test_a_rotation_of_an_identity_that_was_cut_off_before_the_coordinators_key_changed_is_completed(
    gate, north, monkeypatch
):
    class Lost(Exception):
        pass

    def lost(*_):
        raise Lost

    with monkeypatch.context() as patched:
        patched.setattr(rotation.own_keys, "keep_earlier", lost)
        with pytest.raises(Lost):
            rotation.rotate(north)
    rotate(gate)
    rotation.complete(north)
    assert fetch_studies(north) == []
    keys = gate.store.identities("north")
    assert len(keys) == 2
    assert keys[-1] == NodeIdentity.load(north).identity_hex


def test_a_coordinator_that_was_put_back_to_before_the_rotation_is_not_followed(gate, north, tmp_path):
    shutil.copytree(gate.home / "pki", tmp_path / "pki")
    rotate(gate)
    authority.fetch(north)
    known = Enrolment.load(north)
    shutil.rmtree(gate.home / "pki")
    shutil.copytree(tmp_path / "pki", gate.home / "pki")
    gate.tick()
    for ask in (authority.fetch, fetch_studies):
        with pytest.raises(KeyNotFollowed, match="as after a restored backup"):
            ask(north)
    key_rotation.rotate(gate.store, gate.home)  # whoever has the old key can make another successor of it
    gate.tick()
    for ask in (authority.fetch, fetch_studies):
        with pytest.raises((KeyNotFollowed, StatementRefused)):
            ask(north)
    assert Enrolment.load(north) == known


def test_the_audit_log_holds_the_rotation_and_checkpoints_of_both_keys(gate, tmp_path):
    first = gate.pki.identity_hex
    trail.export(gate.store, gate.home, tmp_path / "before.jsonl")
    stated = rotate(gate)
    (noted,) = trail.actions(gate.store, action="keys.rotate")
    assert noted.fields == {"old": first, "new": stated.new}
    trail.export(gate.store, gate.home, tmp_path / "log.jsonl")
    for known in (None, first, stated.new):
        found = trail.verify_file(tmp_path / "log.jsonl", coordinator=known)
        assert found.ok
        assert found.checkpoints == 2
    assert trail.verify(gate.store, gate.home).ok
    assert trail.verify_file(tmp_path / "before.jsonl", coordinator=first).ok
    assert not trail.verify_file(tmp_path / "before.jsonl", coordinator=stated.new).ok
    assert not trail.verify_file(tmp_path / "log.jsonl", coordinator=public(EVIL)).ok


def test_whoever_has_the_old_key_alone_cannot_go_on_with_the_log(gate, tmp_path):
    """He signs a checkpoint of entries that he has added himself."""
    shutil.copytree(gate.home / "pki", tmp_path / "thief" / "pki")
    old = Pki.load(tmp_path / "thief")
    rotate(gate)
    assert trail.checkpoints.make(gate.store, old) is not None
    assert trail.verify(gate.store, gate.home).ok  # a server was quicker than its key
    with gate.store.session() as session:
        gate.store.log_action(session, "site.revoke", site="east")
    trail.checkpoints.make(gate.store, gate.pki)
    with gate.store.session() as session:
        gate.store.log_action(session, "site.revoke", site="west")
    trail.checkpoints.make(gate.store, old)
    (problem,) = trail.verify(gate.store, gate.home).problems
    assert "signed by a key of the coordinator's that another one had followed" in problem


def test_a_node_that_is_far_behind_gets_a_checkpoint_of_an_early_entry_by_the_new_key(gate, tmp_path):
    gate.join(tmp_path / "north")
    with gate.store.session() as session:
        for _ in range(DIGESTS_A_MESSAGE + 20):
            gate.store.log_action(session, "site.revoke", site="east")
    trail.checkpoints.make(gate.store, gate.pki)  # of a later entry, by the first key
    rotate(gate)
    offer = trail.checkpoints.offer(gate.store, gate.pki, "north")
    assert offer.checkpoint.seq == DIGESTS_A_MESSAGE - 1
    assert offer.checkpoint.is_signed_by(gate.pki.identity_hex)
    assert trail.verify(gate.store, gate.home).problems == ()
    trail.export(gate.store, gate.home, tmp_path / "log.jsonl")
    assert trail.verify_file(tmp_path / "log.jsonl").problems == ()


@pytest.mark.parametrize("kept", ["backup", "seal"])
def test_a_rotation_waits_for_a_backup_and_for_sealing(gate, tmp_path, monkeypatch, kept):
    """Each reads the keys and then writes: what came in between would be lost."""
    with rotating_gate(tmp_path / "other"):
        pass  # a federation that no server uses
    home = tmp_path / "other"
    first, store = Pki.load(home).identity_hex, Store.open(home)
    going = threading.Thread(target=key_rotation.rotate, args=(store, home))

    def then_rotate(*args, real, **kwargs):
        if going.ident is None:
            going.start()
            going.join(0.5)
            assert going.is_alive()
        return real(*args, **kwargs)

    if kept == "backup":
        monkeypatch.setattr(backup, "hold", partial(then_rotate, real=backup.hold))
        backup.back_up(home, tmp_path / "kept.backup")
        backup.restore(tmp_path / "kept.backup", tmp_path / "restored")
        assert Pki.load(tmp_path / "restored").identity_hex == first
    else:
        (tmp_path / "passphrase").write_text("correct horse battery")
        (tmp_path / "passphrase").chmod(0o600)
        monkeypatch.setenv(PASSPHRASE.variable, str(tmp_path / "passphrase"))
        monkeypatch.setattr(secret_files, "write_private", partial(then_rotate, real=secret_files.write_private))
        key_sealing.seal(home)
    going.join()
    store.close()
    assert Pki.load(home).signing.now.all[0] == first
    assert len(Pki.load(home).signing.now.all) == 2


@pytest.mark.parametrize("change", ["old_signature", "new_signature", "new", "dropped", "newest"])
def test_an_exported_log_with_false_keys_is_found(gate, tmp_path, change):
    rotate(gate)
    stated = rotate(gate)
    file = tmp_path / "log.jsonl"
    trail.export(gate.store, gate.home, file)
    lines = file.read_text().splitlines()
    header = json.loads(lines[0])
    chain = header["header"]["coordinators"]
    if change == "dropped":
        chain.pop(0)
    elif change == "newest":
        made = CoordinatorSuccession.make(EVIL, B, AT).model_dump() | {"old": stated.new}
        chain.append(made)
        header["header"]["coordinator"] = public(B)
    else:
        chain[0][change] = secrets.token_hex(len(chain[0][change]) // 2)
    file.write_text("\n".join([json.dumps(header), *lines[1:]]) + "\n")
    found = trail.verify_file(file, coordinator=stated.old)
    assert bool(found.problems) == (change != "dropped")  # from a key in the middle on all is there


def test_a_new_key_is_not_noted_twice(gate, monkeypatch):
    class Cut(Exception):
        pass

    def cut(*_):
        raise Cut

    with monkeypatch.context() as patched:
        patched.setattr("confide.coordinator.federation.signing_keys.SigningKeys._put_in_place", cut)
        with suppress(Cut):
            key_rotation.rotate(gate.store, gate.home)
    assert gate.pki.signing.now.all == Pki.load(gate.home).signing.now.all  # completed by whoever looks
    assert len(trail.actions(gate.store, action="keys.rotate")) == 1


def stored(home, coordinator):
    home.mkdir()
    kept = {"name": "north", "roles": ["train"], "address": "127.0.0.1:1", "coordinator": coordinator}
    (home / "enrolment.json").write_text(json.dumps(kept))
    (home / "enrolment.json").chmod(0o600)
    return home


def chain_of(*keys):
    return tuple(CoordinatorSuccession.make(old, new, AT) for old, new in pairwise(keys))


def test_only_a_chain_from_the_known_key_on_is_followed(tmp_path):
    home = stored(tmp_path / "north", public(B))
    assert follow(home, chain_of(A, B), public(B)).coordinators == (public(A), public(B))
    assert follow(home, chain_of(A, B, C), public(C)).coordinators == tuple(map(public, (A, B, C)))
    known = Enrolment.load(home)
    for stated, to in (
        (chain_of(A, B), B),  # back
        ((), B),
        ((), EVIL),
        (chain_of(B, EVIL), EVIL),  # a second successor
        (chain_of(A, B, EVIL), EVIL),
        (chain_of(A, B, C), B),
        (chain_of(A, B)[:1] + chain_of(A, C)[:1], C),  # no chain
        ((replace_signature(chain_of(C, EVIL)[0]),), EVIL),
    ):
        with pytest.raises(KeyNotFollowed):
            follow(home, stated, public(to))
    for stated in ((), chain_of(B, C), chain_of(EVIL, C), chain_of(EVIL, B, C)):  # the known past stays
        assert follow(home, stated, public(C)) == known
    assert Enrolment.load(home) == known
    with pytest.raises(NotEnrolled):
        follow(tmp_path / "nowhere", (), public(A))


def test_a_past_that_a_thief_made_up_keeps_no_node_from_following(tmp_path):
    """Whoever has the present key can say that it follows another."""
    home = stored(tmp_path / "north", public(B))
    follow(home, chain_of(EVIL, B), public(B))
    found = follow(home, chain_of(A, B, C), public(C))
    assert found.coordinators == tuple(map(public, (EVIL, B, C)))
    south = stored(tmp_path / "south", public(A))
    follow(south, chain_of(A, B), public(B))
    assert follow(south, chain_of(EVIL, A, B), public(B)).coordinators == (public(A), public(B))
    assert follow(south, chain_of(A, B, C), public(C)).coordinator == public(C)
    with pytest.raises(KeyNotFollowed):
        follow(south, chain_of(B, C, A), public(A))  # back to a key that it had


def replace_signature(stated):
    return stated.model_copy(update={"old_signature": "00" * 64})


def test_a_statement_that_an_earlier_or_a_strange_key_signed_is_refused(gate, north):
    first = gate.pki.signer
    rotate(gate)
    fetch_studies(north)
    known, cas = Enrolment.load(north).coordinator, gate.pki.authorities()
    for signer, successions in (
        (first, ()),
        (EVIL, ()),
        (EVIL, gate.pki.signing.now.successions),
        (EVIL, (*gate.pki.signing.now.successions, replace_signature(chain_of(A, EVIL)[0]))),
    ):
        with pytest.raises(StatementRefused):
            Statement.read(Statement.issue(cas, signer, successions).model_dump_json().encode(), known)
    good = Statement.issue(cas, gate.pki.signer, gate.pki.signing.now.successions)
    for key in gate.pki.signing.now.all:
        assert Statement.read(good.model_dump_json().encode(), key) == good
    without = good.model_copy(update={"successions": ()})
    with pytest.raises(StatementRefused):
        Statement.read(without.model_dump_json().encode(), known)


def test_a_statement_without_successions_has_the_form_of_earlier_versions(gate):
    made = Statement.issue(gate.pki.authorities(), gate.pki.signer)
    assert set(json.loads(made.model_dump_json())) == {"format", "coordinator", "made", "certificates", "signature"}


def knows(gate):
    return {each.name: each.knows for each in key_rotation.standing(gate.store, gate.home).nodes}


def named(gate):
    """The keys that nodes have named, as the audit log has them."""
    return [(each.actor, each.fields["key"]) for each in trail.actions(gate.store, action="site.key")]


@pytest.fixture
def asked(monkeypatch):
    """What nodes have asked about the coordinator's CA, as they signed it."""
    queries: list[dict[str, object]] = []

    def spied(query, *args, real=authority.send_signed, **kwargs):
        queries.append(json.loads(query.model_dump_json()))
        return real(query, *args, **kwargs)

    monkeypatch.setattr(authority, "send_signed", spied)
    return queries


def test_a_node_that_has_followed_says_so_with_one_more_question(gate, north, asked):
    authority.fetch(north)
    assert knows(gate) == {"north": "unknown"}
    assert key_rotation.standing(gate.store, gate.home).lacking == ()  # it knows the only key from its enrolment
    first = rotate(gate)
    assert key_rotation.standing(gate.store, gate.home).lacking == ("north",)
    authority.fetch(north)
    assert knows(gate) == {"north": "present"}
    assert [query.get("coordinator") for query in asked] == [None, None, first.new]
    authority.fetch(north)
    second = rotate(gate)
    assert knows(gate) == {"north": "earlier"}
    authority.fetch(north)
    assert knows(gate) == {"north": "present"}
    assert [query["coordinator"] for query in asked[3:]] == [first.new, first.new, second.new]
    assert named(gate) == [("site:north", first.new), ("site:north", second.new)]
    found = key_rotation.standing(gate.store, gate.home)
    assert (found.key, found.successions, found.lacking, found.strange) == (second.new, (first, second), (), ())


def test_a_node_that_enrols_after_a_rotation_names_the_key_with_its_first_question(gate, tmp_path, asked):
    stated = rotate(gate)
    gate.join(tmp_path / "south")
    assert knows(gate) == {"south": "unknown"}
    authority.fetch(tmp_path / "south")
    assert [query["coordinator"] for query in asked] == [stated.new]
    assert knows(gate) == {"south": "present"}


def test_a_node_that_followed_by_its_list_of_studies_says_so_with_its_next_question(gate, north, asked):
    stated = rotate(gate)
    fetch_studies(north)
    assert knows(gate) == {"north": "unknown"}
    authority.fetch(north)
    assert [query["coordinator"] for query in asked] == [stated.new]
    assert knows(gate) == {"north": "present"}


def test_a_ca_is_confirmed_with_the_key_that_came_with_it(gate, north, asked):
    ca_rotation.begin(gate.store, gate.home)
    stated = rotate(gate)
    authority.fetch(north)
    assert [(len(query["trusts"]), query.get("coordinator")) for query in asked] == [(1, None), (2, stated.new)]
    ca_rotation.finish(gate.store, gate.home)
    further = rotate(gate)
    del asked[:]
    authority.fetch(north)
    assert [(len(query["trusts"]), query["coordinator"]) for query in asked] == [
        (2, stated.new), (2, further.new), (1, further.new),
    ]  # fmt: skip
    assert knows(gate) == {"north": "present"}


def test_what_a_node_signs_that_knows_one_key_has_the_form_of_earlier_versions(gate, north, asked):
    authority.fetch(north)
    (query,) = asked
    assert list(query) == ["identity", "timestamp", "nonce", "trusts"]
    said = {"identity": "ab" * 32, "timestamp": 1.5, "nonce": "cd" * 16, "trusts": ["ef" * 32]}
    plain = json.dumps(said, separators=(",", ":"))
    assert AuthorityQuery.model_validate_json(plain).model_dump_json() == plain


def say(gate, home, key, trusts=None):
    """Says what a node may say to the register, under its identity."""
    listed = authority.trusted(home).digests if trusts is None else trusts
    query = AuthorityQuery(
        identity=NodeIdentity.load(home).identity_hex, timestamp=time.time(), nonce=secrets.token_hex(16),
        trusts=listed, coordinator=key,
    )  # fmt: skip
    gate.register.note_trust(query, authority.trusted(home).digests)


def test_a_node_of_before_is_unknown_and_so_is_one_that_names_no_key_any_more(gate, north):
    """The second is a home that was put back to before the rotation."""
    stated = rotate(gate)
    say(gate, north, None)
    assert knows(gate) == {"north": "unknown"}
    say(gate, north, stated.new)
    assert knows(gate) == {"north": "present"}
    say(gate, north, None)
    assert knows(gate) == {"north": "unknown"}
    assert named(gate) == [("site:north", stated.new)]


def test_a_node_that_comes_back_is_unknown_until_it_says_by_which_key_it_goes(gate, north):
    rotate(gate)
    authority.fetch(north)
    gate.register.leave("north")
    assert knows(gate) == {}
    enrol(gate.code("north"), north, again=True)
    assert knows(gate) == {"north": "unknown"}
    authority.fetch(north)
    assert knows(gate) == {"north": "present"}


def test_a_node_that_a_thief_has_given_a_successor_is_strange(gate, north):
    old = gate.pki.signer
    stolen = CoordinatorSuccession.make(old, EVIL, AT)
    follow(north, (stolen,), public(EVIL))
    rotate(gate)
    with pytest.raises(StatementRefused):
        authority.fetch(north)
    found = key_rotation.standing(gate.store, gate.home)
    assert found.nodes == (key_rotation.NodeKnowledge("north", "strange", public(EVIL)),)
    assert (found.strange, found.lacking) == (("north",), ())
    assert named(gate) == [("site:north", public(EVIL))]


def test_a_coordinator_that_was_put_back_to_before_the_rotation_sees_who_has_heard_of_a_later_key(
    gate, north, tmp_path
):
    shutil.copytree(gate.home / "pki", tmp_path / "pki")
    rotate(gate)
    authority.fetch(north)
    shutil.rmtree(gate.home / "pki")
    shutil.copytree(tmp_path / "pki", gate.home / "pki")
    gate.tick()
    with pytest.raises(KeyNotFollowed):
        authority.fetch(north)
    assert key_rotation.standing(gate.store, gate.home).strange == ("north",)


def test_a_database_that_was_put_back_knows_less_until_the_node_is_asked_again(gate, north, tmp_path):
    rotate(gate)
    authority.fetch(north)
    backup.back_up(gate.home, tmp_path / "kept.backup")
    rotate(gate)
    authority.fetch(north)
    backup.restore(tmp_path / "kept.backup", tmp_path / "restored")
    shutil.rmtree(tmp_path / "restored" / "pki")
    shutil.copytree(gate.home / "pki", tmp_path / "restored" / "pki")
    with rotating_gate(tmp_path / "restored") as restored:
        assert knows(restored) == {"north": "earlier"}
        kept = json.loads((north / "enrolment.json").read_text())
        here = f"127.0.0.1:{restored.server.port}"
        (north / "enrolment.json").write_text(json.dumps(kept | {"address": here}))
        authority.fetch(north)
        assert knows(restored) == {"north": "present"}


def test_a_node_names_another_key_twenty_times_an_hour(gate, north):
    for turn in range(MOST_CONFIRMATIONS):
        say(gate, north, "ab"[turn % 2] * 64)
    say(gate, north, "b" * 64)  # the same again is no change
    with pytest.raises(EnrolmentInvalid, match="named other keys too often within the hour"):
        say(gate, north, "a" * 64)
    with pytest.raises(EnrolmentInvalid, match="named other keys"):
        say(gate, north, "a" * 64, trusts=("c" * 64,))
    assert gate.store.node("north").known_key == "b" * 64
    assert gate.store.node("north").trusted_cas == json.dumps(authority.trusted(north).digests)
    assert len(named(gate)) == MOST_CONFIRMATIONS


def test_a_key_that_is_named_and_not_named_counts_as_a_change_of_mind(gate, north):
    rotate(gate)
    for turn in range(MOST_WORDS):
        say(gate, north, None, trusts=("ab"[turn % 2] * 64,))
    with pytest.raises(EnrolmentInvalid, match="within the hour"):
        say(gate, north, gate.pki.identity_hex, trusts=("b" * 64,))
    assert knows(gate) == {"north": "unknown"}
    assert named(gate) == []


def test_a_rotation_that_was_cut_off_is_told(gate, monkeypatch):
    class Cut(Exception):
        pass

    def cut(*_, **__):
        raise Cut

    with monkeypatch.context() as patched, suppress(Cut):
        patched.setattr(gate.store, "log_action", cut)
        key_rotation.rotate(gate.store, gate.home)
    assert key_rotation.standing(gate.store, gate.home).is_cut_off
    rotate(gate)
    assert not key_rotation.standing(gate.store, gate.home).is_cut_off


def test_a_node_that_confirms_a_new_key_meanwhile_is_not_taken_for_a_strange_one(gate, north, monkeypatch):
    def meanwhile(store, real=Store.nodes):
        monkeypatch.undo()
        rotate(gate)
        authority.fetch(north)
        return real(store)

    monkeypatch.setattr(Store, "nodes", meanwhile)
    assert knows(gate) == {"north": "present"}
