import json
from dataclasses import dataclass, replace

import pytest
import sqlalchemy as sa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from confide.client_node import witness
from confide.client_node.enrolment import NodeIdentity
from confide.client_node.enrolment.identity import write_signer
from confide.coordinator.errors import Conflict, TrailInvalid
from confide.coordinator.federation import Pki, Settings, create_home
from confide.coordinator.oversight import checkpoints, trail
from confide.coordinator.store import audit_log
from confide.coordinator.store.store import Store
from confide.coordinator.store.tables import NodeRow, SuccessionRow
from confide.privacy.ledger.succession import Succession


@dataclass
class Federation:
    home: object
    store: Store
    pki: Pki
    node: NodeIdentity

    def note(self, count=1, site="east"):
        with self.store.session() as session:
            for _ in range(count):
                self.store.log_action(session, "site.revoke", site=site)

    def countersign(self):
        offer = checkpoints.offer(self.store, self.pki, "svi")
        answer = witness.answer(self.node.home, "svi", self.pki.signing.now.all, self.node.signer, offer)
        checkpoints.take(self.store, self.pki.signing.now.all, "svi", self.node.identity_hex, offer.checkpoint, answer)

    def execute(self, *statements):
        with self.store.session() as session:
            for each in statements:
                session.execute(sa.text(each))

    def problems(self):
        return trail.verify(self.store, self.home).problems


@pytest.fixture
def fed(tmp_path):
    home = tmp_path / "home"
    create_home(home, Settings(federation="clinics", address="h:1", listen="h", port=1, superlink_port=2))
    store, node = Store.open(home), NodeIdentity.create(tmp_path / "svi", "svi")
    with store.session() as session:
        session.add(NodeRow(name="svi", roles="train", identity=node.identity_hex, enrolled_at=1.0))
    found = Federation(home, store, Pki.load(home), node)
    found.note(3)
    found.countersign()
    found.note(2)
    found.countersign()
    found.note()
    yield found
    store.close()


def test_an_honest_log_holds_here_and_as_a_file_anywhere(fed, tmp_path):
    here = trail.verify(fed.store, fed.home)
    assert here.ok
    assert (here.federation, here.entries, here.checkpoints, here.signed) == ("clinics", 7, 2, 5)
    assert [(each.site, each.seq, each.decisions) for each in here.witnesses] == [("svi", 5, -1)]
    assert trail.export(fed.store, fed.home, tmp_path / "log.jsonl") == 8  # its own entry too
    found = trail.verify_file(
        tmp_path / "log.jsonl", coordinator=fed.pki.identity_hex, nodes={"svi": fed.node.identity_hex}
    )
    assert found.ok
    assert (found.entries, found.signed) == (8, 7)
    assert (tmp_path / "log.jsonl").stat().st_mode & 0o077 == 0
    with pytest.raises(Conflict, match="exists already"):
        trail.export(fed.store, fed.home, tmp_path / "log.jsonl")


@pytest.mark.parametrize(
    ("statements", "problem"),
    [
        (['UPDATE audit_entry SET fields = \'{"site": "west"}\' WHERE seq = 2'], "entry 2 was changed"),
        (["DELETE FROM audit_entry WHERE seq = 2"], "entry 2 is missing"),
        (["DELETE FROM audit_entry WHERE seq >= 4"], "names an entry that is gone"),
        (["UPDATE audit_checkpoint SET signature = log || log"], "is not signed by the coordinator's key"),
        (["UPDATE audit_checkpoint SET hash = log WHERE seq = 3"], "names another entry"),
        (["UPDATE audit_checkpoint SET log = hash"], "is of another log"),
        (["DELETE FROM audit_checkpoint WHERE seq = 5"], "belongs to no checkpoint"),
        (["UPDATE audit_countersignature SET decisions = 7 WHERE seq = 5"], "does not verify"),
        (["UPDATE audit_countersignature SET site = 'east'"], "by a key that is not that node's"),
        (["UPDATE audit_countersignature SET identity = decisions_hash"], "by a key that is not that node's"),
        (["UPDATE audit_entry SET contents = previous WHERE seq = 6"], "entry 6 has another digest beside it"),
        (["UPDATE audit_head SET seq = 5"], "the head of the log, entry 5, is not its last entry"),
        (["UPDATE audit_head SET hash = 'ab'"], "the head of the log, entry 6, is not its last entry"),
        (
            ["UPDATE audit_head SET (seq, hash) = (SELECT seq, hash FROM audit_entry WHERE seq = 5)"],
            "the head of the log, entry 5, is not its last entry",
        ),
        (["DELETE FROM audit_entry WHERE seq = 6"], "the head of the log, entry 6, is not its last entry"),
    ],
)
def test_whatever_is_changed_in_the_database_is_found(fed, statements, problem):
    assert fed.problems() == ()
    fed.execute(*statements)
    assert any(problem in each for each in fed.problems()), fed.problems()


def rewritten(fed):
    """A coordinator that rewrites its log from entry 2 on, with links and checkpoints of its own key."""
    with fed.store.session() as session:
        kept = audit_log.hash_at(session, 1)
    fed.execute(
        "DELETE FROM audit_entry WHERE seq > 1", "DELETE FROM audit_checkpoint",
        f"UPDATE audit_head SET seq = 1, hash = '{kept}'",
    )  # fmt: skip
    fed.note(8, site="west")
    checkpoints.make(fed.store, fed.pki)


def test_a_log_rewritten_with_the_coordinator_s_own_key_lacks_what_nodes_signed(fed, tmp_path):
    before = fed.node.home / witness.FILE
    rewritten(fed)
    assert any("belongs to no checkpoint" in each for each in fed.problems())
    fed.execute("DELETE FROM audit_countersignature")  # then the node's own word tells
    assert fed.problems() == ()
    trail.export(fed.store, fed.home, tmp_path / "log.jsonl")
    held = trail.verify_file(tmp_path / "log.jsonl", held=before)
    assert held.problems == ("what the node countersigned: checkpoint 5 names another entry: the log was rewritten",)


def test_a_decision_log_that_was_cut_off_shows_in_what_the_node_signs(fed):
    from confide.client_node.policy import decision_log, decisions

    decisions.approve(fed.node.home, "ab" * 32)
    fed.countersign()
    assert trail.verify(fed.store, fed.home).witnesses[0].decisions == 0
    (fed.node.home / decision_log.FILE).unlink()
    fed.note()
    fed.countersign()
    assert any("its decision log was cut off" in each for each in fed.problems())


def test_decisions_of_the_same_number_that_were_rewritten_show_in_what_the_node_signs(fed, tmp_path):
    from confide.client_node.policy import decision_log, decisions

    decisions.approve(fed.node.home, "ab" * 32)
    fed.countersign()
    (fed.node.home / decision_log.FILE).unlink()
    (fed.node.home / "decisions.head").unlink()
    decisions.revoke(fed.node.home, "ab" * 32)  # the approval is gone, a revocation stands in its place
    assert decision_log.head(fed.node.home).seq == 0
    fed.note()
    fed.countersign()
    assert [each for each in fed.problems() if "its decision log was rewritten" in each] != []
    trail.export(fed.store, fed.home, tmp_path / "log.jsonl")
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert "countersignature" in lines[-2]
    for order in (lines, [*lines[:-2], lines[-1], lines[-2]]):  # however its lines are ordered
        assert any("its decision log was rewritten" in each for each in check(tmp_path, order).problems)


def test_a_node_that_is_named_and_has_signed_nothing_is_a_problem(fed, lines, tmp_path):
    given = {"svi": fed.node.identity_hex}
    assert check(tmp_path, lines, nodes=given).ok
    taken_out = check(tmp_path, [line for line in lines if "countersignature" not in line], nodes=given)
    assert len(taken_out.problems) == 1
    assert "svi was named, and no countersignature" in taken_out.problems[0]


def test_the_header_of_the_largest_federation_is_read(fed, tmp_path):
    with fed.store.session() as session:
        session.add_all(
            NodeRow(name=f"{number:063}", roles="train", identity=f"{number:064x}", enrolled_at=1.0)
            for number in range(9_999)
        )
    trail.export(fed.store, fed.home, tmp_path / "log.jsonl")
    assert trail.verify_file(tmp_path / "log.jsonl").ok
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    lines[0] = lines[0] + " " * trail.MOST_HEADER
    with pytest.raises(TrailInvalid, match="line 1 has more than"):
        check(tmp_path, lines)
    lines[0] = lines[0].strip()
    lines[1] = lines[1] + " " * trail.MOST_LINE
    with pytest.raises(TrailInvalid, match="line 2 has more than 65536 bytes"):
        check(tmp_path, lines)


@pytest.fixture
def lines(fed, tmp_path):
    trail.export(fed.store, fed.home, tmp_path / "log.jsonl")
    return (tmp_path / "log.jsonl").read_text().splitlines()


def check(tmp_path, lines, **known):
    (tmp_path / "changed.jsonl").write_text("\n".join(lines) + "\n")
    return trail.verify_file(tmp_path / "changed.jsonl", **known)


def test_every_line_of_a_file_counts(lines, tmp_path):
    assert check(tmp_path, lines).ok
    for place in range(1, len(lines)):
        left_out = check(tmp_path, [*lines[:place], *lines[place + 1 :]])
        # Without its last entry and checkpoint, or a countersignature, a log is a shorter one that holds.
        kind = next(iter(json.loads(lines[place])))
        whole = (len(left_out.witnesses), left_out.signed, left_out.entries) == (1, 7, 8)
        assert not left_out.ok or not whole or kind in ("countersignature", "checkpoint")


def test_keys_known_from_elsewhere_count_more_than_those_in_the_file(lines, fed, tmp_path):
    assert check(tmp_path, lines, coordinator=fed.pki.identity_hex).ok
    other = check(tmp_path, lines, coordinator="ab" * 32)
    assert "another than the one given" in other.problems[0]
    assert any("not signed by the coordinator's key" in each for each in other.problems)
    assert not check(tmp_path, lines, nodes={"svi": "ab" * 32}).ok
    with pytest.raises(TrailInvalid, match="no key of 64"):
        check(tmp_path, lines, coordinator="ab")


@pytest.mark.parametrize(
    "bad",
    [
        b"", b"\n", b"{}\n", b"[1]\n", b'{"entry": 1}\n', b"\xff\xfe\n", b'{"header": {"format": 2}}\n', b"[" * 70_000,
        b"[" * 60_000 + b"\n", b'{"header": null, "header": null}\n',
    ],
)  # fmt: skip
def test_what_is_no_exported_log_is_refused(bad, tmp_path):
    (tmp_path / "bad").write_bytes(bad)
    with pytest.raises(TrailInvalid):
        trail.verify_file(tmp_path / "bad")


@pytest.mark.parametrize("bad", [b"", b"{}", b"[1]", b'{"last": 1}', b"\xff", b'{"last": ' + b"[" * 50_000])
def test_what_no_node_prints_is_refused(bad, lines, tmp_path):
    (tmp_path / "bad").write_bytes(bad)
    with pytest.raises(TrailInvalid, match="is not what"):
        trail.verify_file(tmp_path / "log.jsonl", held=tmp_path / "bad")


def test_a_line_of_a_later_version_or_with_more_in_it_is_refused(lines, tmp_path):
    for place in (0, 1, -1):
        more = json.loads(lines[place])
        next(iter(more.values()))["more"] = 1
        changed = list(lines)
        changed[place] = json.dumps(more)
        with pytest.raises(TrailInvalid, match="no line of an exported audit log"):
            check(tmp_path, changed)


def test_an_action_that_is_not_of_the_vocabulary_is_a_problem_even_if_it_is_chained(fed):
    fed.execute("UPDATE audit_entry SET action = 'site.praise' WHERE seq = 6")
    assert any("knows no action 'site.praise'" in each for each in fed.problems())


@pytest.mark.parametrize("since", ["yesterday", "2026-3-1", "2026-03-01 12:00"])
def test_a_time_that_is_none_is_refused_with_words(fed, since):
    with pytest.raises(Conflict, match="is no time; write 2026-03-01"):
        trail.actions(fed.store, since=since)


def test_an_action_that_does_not_exist_is_refused_with_the_nouns(fed):
    with pytest.raises(Conflict, match=r"access, adapter, .*budget"):
        trail.actions(fed.store, action="sites")
    assert len(trail.actions(fed.store, action="federation")) == 1


def followed(fed, new, *, site="svi", coordinator=None):
    """Has the register know the node by another key, as a rotation does; the node signs with it from now on."""
    made = Succession.make(site, coordinator or fed.pki.identity_hex, fed.node.signer, new, "2026-03-01T09:00:00Z")
    with fed.store.session() as session:
        session.get(NodeRow, "svi").identity = made.new
        session.add(
            SuccessionRow(old=made.old, new=made.new, site="svi", taken_at=1.0, statement=made.model_dump_json())
        )
    write_signer(fed.node.home / "keys" / "identity.key", new)
    fed.node = replace(fed.node, signer=new)
    return made


def test_countersignatures_of_a_node_s_earlier_keys_hold_here_and_in_a_file(fed, tmp_path):
    first = fed.node.identity_hex
    for seed in (b"second", b"third"):
        followed(fed, Ed25519PrivateKey.from_private_bytes(seed.ljust(32)))
        fed.note()
        fed.countersign()
    assert fed.problems() == ()
    file = tmp_path / "log.jsonl"
    trail.export(fed.store, fed.home, file)
    for known in (first, fed.node.identity_hex):
        found = trail.verify_file(file, coordinator=fed.pki.identity_hex, nodes={"svi": known})
        assert found.problems == ()
        assert [(each.site, each.seq) for each in found.witnesses] == [("svi", 8)]
    problems = trail.verify_file(file, nodes={"svi": "ab" * 32}).problems
    assert problems[0] == "the key of svi in the file is another than the one given"


@pytest.mark.parametrize("change", ["old_signature", "new_signature", "coordinator"])
def test_an_invented_succession_ties_no_key_to_a_node(fed, tmp_path, change):
    followed(fed, Ed25519PrivateKey.from_private_bytes(b"second".ljust(32)))
    fed.note()
    fed.countersign()
    file = tmp_path / "log.jsonl"
    trail.export(fed.store, fed.home, file)
    lines = file.read_text().splitlines()
    header = json.loads(lines[0])
    stated = header["header"]["successions"][0]
    stated[change] = "00" * (len(stated[change]) // 2)
    file.write_text("\n".join([json.dumps(header), *lines[1:]]) + "\n")
    assert any("a key that is not that node's" in problem for problem in trail.verify_file(file).problems)


def test_a_log_in_which_no_key_was_followed_is_written_as_it_always_was(fed, tmp_path):
    trail.export(fed.store, fed.home, tmp_path / "log.jsonl")
    header = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[0])["header"]
    assert set(header) == {"format", "federation", "coordinator", "ca", "nodes"}


def test_the_newest_entries_come_first_and_are_those_of_the_whole_list(fed):
    fed.note(5, site="west")
    every = trail.actions(fed.store)
    assert trail.newest(fed.store, 100) == every[::-1]
    assert trail.newest(fed.store, 3) == every[:-4:-1]
    assert trail.newest(fed.store, 3, before=4) == every[1:4][::-1]
    assert trail.newest(fed.store, 3, before=0) == []
    chosen = {"actor": every[-1].actor.partition(":")[2], "action": "site", "since": every[2].time}
    assert trail.newest(fed.store, 100, **chosen) == trail.actions(fed.store, **chosen)[::-1]
    for wrong in ({"since": "now"}, {"action": "sites"}):
        with pytest.raises(Conflict):
            trail.newest(fed.store, 3, **wrong)


def test_the_nouns_are_those_that_entries_are_chosen_by(fed):
    assert {"site", "run", "operator"} <= set(trail.nouns())
    for noun in trail.nouns():
        trail.newest(fed.store, 1, action=noun)
