import hashlib
import json
import subprocess
import sys
import threading

import pytest
import sqlalchemy as sa

from confide.coordinator.errors import StateDamaged
from confide.coordinator.store import audit_log
from confide.coordinator.store.actions import ACTIONS, acting, acting_as, fields_of, plain
from confide.coordinator.store.store import Store, migrate
from confide.coordinator.store.tables import ActionRow

from ..conftest import logged


def note(store, site="east", action="site.revoke", **fields):
    with store.session() as session:
        return store.log_action(session, action, **({"site": site} | fields))


def entries(store, **wanted):
    with store.session() as session:
        return list(audit_log.entries(session, **wanted))


def problems(store):
    return [problem for _, problem in audit_log.links_of(entries(store)) if problem is not None]


def test_every_entry_carries_the_hash_that_the_format_says(empty_store):
    for site in ("east", "north", "west"):
        head = note(empty_store, site)
    previous = "0" * 64
    for number, entry in enumerate(entries(empty_store)):
        whole = {
            "time": entry.time, "actor": entry.actor, "action": entry.action, "fields": dict(entry.fields),
            "salt": entry.salt,
        }  # fmt: skip
        contents = digest("confide log contents 1", whole)
        assert entry.previous == previous
        previous = digest("confide log link 1", {"seq": number, "contents": contents, "previous": previous})
        assert entry.hash == previous
    assert (head.seq, head.hash) == (2, previous)
    assert len({entry.salt for entry in entries(empty_store)}) == 3


def digest(domain, value):
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(f"{domain}\n{text}".encode("ascii")).hexdigest()


def test_entries_of_one_transaction_follow_each_other_and_one_that_fails_leaves_no_gap(empty_store):
    def fail() -> None:
        with empty_store.session() as session:
            empty_store.log_action(session, "site.revoke", site="lost")
            raise RuntimeError

    note(empty_store)
    with pytest.raises(RuntimeError):
        fail()
    with empty_store.session() as session:
        for site in ("north", "west"):
            empty_store.log_action(session, "site.revoke", site=site)
    assert [entry.fields["site"] for entry in entries(empty_store)] == ["east", "north", "west"]
    assert problems(empty_store) == []


@pytest.mark.process
def test_two_processes_and_many_threads_at_once_write_one_chain(empty_store, tmp_path):
    script = (
        "import sys; from pathlib import Path; from confide.coordinator.store.store import Store\n"
        "store = Store.open(Path(sys.argv[1]))\n"
        "for n in range(40):\n"
        "    with store.session() as session:\n"
        "        store.log_action(session, 'site.revoke', site=f'p{n}')\n"
        "        store.log_action(session, 'site.revoke', site=f'q{n}')\n"
    )
    children = [subprocess.Popen([sys.executable, "-c", script, tmp_path]) for _ in range(2)]
    threads = [threading.Thread(target=lambda: [note(empty_store, f"t{n}") for n in range(20)]) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [child.wait(timeout=120) for child in children] == [0, 0]
    assert len(entries(empty_store)) == 2 * 80 + 3 * 20
    assert problems(empty_store) == []
    sites = [entry.fields["site"] for entry in entries(empty_store)]
    assert all(sites[place + 1] == f"q{each[1:]}" for place, each in enumerate(sites) if each.startswith("p"))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ('UPDATE audit_entry SET fields = \'{"site": "west"}\' WHERE seq = 1', "entry 1 was changed"),
        ("UPDATE audit_entry SET actor = 'login:nobody' WHERE seq = 1", "entry 1 was changed"),
        ("UPDATE audit_entry SET time = '2020-01-01T00:00:00Z' WHERE seq = 0", "entry 0 was changed"),
        ("UPDATE audit_entry SET action = 'site.enrol' WHERE seq = 2", "entry 2 was changed"),
        ("UPDATE audit_entry SET salt = '' WHERE seq = 2", "entry 2 was changed"),
        ("UPDATE audit_entry SET hash = previous WHERE seq = 1", "entry 1 was changed"),
        ("DELETE FROM audit_entry WHERE seq = 1", "entry 1 is missing"),
        ("DELETE FROM audit_entry WHERE seq = 0", "entry 0 is missing"),
    ],
)
def test_a_changed_or_missing_entry_is_named(empty_store, change, problem):
    for site in ("east", "north", "south"):
        note(empty_store, site)
    assert problems(empty_store) == []
    with empty_store.session() as session:
        session.execute(sa.text(change))
    assert problem in problems(empty_store)[0]


def test_only_actions_of_the_vocabulary_with_their_own_fields_are_written(empty_store):
    for action, fields in (
        ("site.praise", {"site": "east"}),
        ("site.revoke", {}),
        ("site.revoke", {"site": "east", "records": 7}),
        ("site.revoke", {"site": "East"}),
        ("site.revoke", {"site": 7}),
        ("run.stop", {"run": "r", "state": "gone", "error": None}),
        ("budget.export", {"site": "east", "file": "x" * 2001}),
    ):
        with pytest.raises(StateDamaged, match="the audit log"), empty_store.session() as session:
            empty_store.log_action(session, action, **fields)
    assert logged(empty_store) == []


def test_no_action_has_a_field_for_what_a_record_could_tell():
    # Names, hashes, roles, states, numbers of rounds and entries, times; words that people typed or a run failed of.
    assert sorted({field for fields in ACTIONS.values() for field in fields}) == [
        "at", "before", "by", "ca", "cas", "command", "coordinator", "decision", "error", "expires", "federation",
        "file", "folder", "hash", "held", "identity", "key", "new", "next", "old", "operator", "override", "reason",
        "result", "role", "roles", "round", "run", "site", "sites", "state", "study", "until", "version", "void",
        "what", "without",
    ]  # fmt: skip


def test_a_path_of_any_bytes_has_text_for_the_log():
    assert fields_of("log.export", {"file": plain(b"a\xff".decode("utf-8", "surrogateescape"))}) == {"file": "a?"}
    assert len(plain("x" * 5000)) == 2000


def test_the_actor_is_the_operator_inside_and_the_account_outside(empty_store):
    outside = acting()
    assert outside.startswith("login:")
    with acting_as("anna"):
        note(empty_store)
    assert acting() == outside
    assert [entry.actor for entry in entries(empty_store)] == ["operator:anna"]


def test_entries_are_found_by_time_actor_and_action(empty_store):
    with acting_as("anna"):
        note(empty_store, "east")
    note(empty_store, "svi", action="site.enrol", identity="ab" * 32, actor="site:svi")
    with empty_store.session() as session:
        empty_store.log_action(session, "serve.stop")
    found = {
        key: [entry.action for entry in entries(empty_store, **wanted)]
        for key, wanted in {
            "anna": {"actor": "anna"}, "whole": {"actor": "operator:anna"}, "site": {"action": "site"},
            "one": {"action": "site.enrol"}, "part": {"action": "sit"}, "none": {"since": "2999-01-01"},
            "all": {"since": "2026-01-01T00:00:00Z"},
        }.items()
    }  # fmt: skip
    assert found == {
        "anna": ["site.revoke"], "whole": ["site.revoke"], "site": ["site.revoke", "site.enrol"],
        "one": ["site.enrol"], "part": [], "none": [], "all": ["site.revoke", "site.enrol", "serve.stop"],
    }  # fmt: skip


def test_lines_of_a_plain_log_become_the_first_entries(tmp_path):
    store = Store.open(tmp_path)
    migrate(store.url, "0005")
    lines = [(1.0, "svi invited to train (by root)"), (1767225600.5, 'study "s" \u00fc created')]
    with store.session() as session:
        for at, what in lines:
            session.execute(sa.text("INSERT INTO audit (at, what) VALUES (:at, :what)"), {"at": at, "what": what})
    migrate(store.url)
    note(store)
    assert problems(store) == []
    assert logged(store) == [
        ("log.earlier", {"at": "1970-01-01T00:00:01Z", "what": lines[0][1]}),
        ("log.earlier", {"at": "2026-01-01T00:00:00Z", "what": lines[1][1]}),
        ("site.revoke", {"site": "east"}),
    ]
    assert all(fields_of(action, fields) == fields for action, fields in logged(store))
    store.close()


def test_a_head_that_is_gone_is_damage(empty_store):
    with empty_store.session() as session:
        session.execute(sa.text("DELETE FROM audit_head"))
    with pytest.raises(StateDamaged, match="has no head"):
        note(empty_store)
    with empty_store.session() as session:
        assert session.scalars(sa.select(ActionRow)).all() == []
