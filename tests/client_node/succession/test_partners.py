"""Successions of other nodes' keys, as a coordinator passes them on: what it can do with them, and what not."""

import json

import pytest

from confide.client_node.errors import FileDamaged
from confide.client_node.succession import partners
from confide.privacy.ledger.succession import Succession

from ..conftest import identity_of, key_of

COORDINATOR = identity_of("coordinator")
A, B, C, EVIL = "svhc", "svhc 2", "svhc 3", "mallory"


def stated(old, new, site="svhc", coordinator=COORDINATOR):
    return Succession.make(site, coordinator, key_of(old), key_of(new), "2026-03-01T09:00:00Z")


def take(home, key, *offered, name="svhc"):
    """Takes what comes with a study that gives `name` a key."""
    sent = [each.model_dump() if isinstance(each, Succession) else each for each in offered]
    return partners.take(home, [COORDINATOR], {name: identity_of(key)}, sent)


def leads(home, earlier, later):
    return bool(partners.path(partners.load(home), "svhc", identity_of(earlier), identity_of(later)))


def test_a_chain_of_successions_leads_from_any_key_to_every_later_one(tmp_path):
    assert take(tmp_path, C, stated(B, C), stated(A, B)) == []
    assert all(leads(tmp_path, *pair) for pair in ((A, B), (A, C), (B, C)))
    assert not any(leads(tmp_path, *pair) for pair in ((B, A), (C, A), (A, A), (EVIL, C), (A, EVIL)))
    known = partners.load(tmp_path)
    path = partners.path(known, "svhc", identity_of(A), identity_of(C))
    assert [each.new for each in path] == [identity_of(B), identity_of(C)]
    assert partners.keys_up_to(known, "svhc", identity_of(C)) == tuple(map(identity_of, (C, B, A)))
    family = {identity_of(key) for key in (A, B, C)}
    assert all({*partners.family(known, "svhc", key)} == family for key in family)
    assert partners.path(known, "north", identity_of(A), identity_of(C)) == ()


@pytest.mark.parametrize(
    "offered",
    [
        stated(A, B).model_copy(update={"old": identity_of(EVIL)}),
        stated(EVIL, B).model_copy(update={"old": identity_of(A)}),  # what a coordinator would like to invent
        stated(A, EVIL).model_copy(update={"new": identity_of(B)}),
        stated(A, B).model_copy(update={"old_signature": "00" * 64}),
        stated(A, B).model_copy(update={"new_signature": "00" * 64}),
        stated(A, B, site="north").model_copy(update={"site": "svhc"}),
        stated(A, B, coordinator="c0" * 32),  # of another federation
        stated(A, B, site="north"),
        {},
        "succession",
        None,
        {"site": "svhc"},
    ],
)
def test_what_its_owner_did_not_sign_for_this_name_here_leads_nowhere(tmp_path, offered):
    take(tmp_path, B, offered)
    assert not leads(tmp_path, A, B)
    assert not (tmp_path / partners.FILE).exists()


def test_the_first_succession_of_a_key_stands(tmp_path):
    take(tmp_path, B, stated(A, B))
    refused = take(tmp_path, EVIL, stated(A, EVIL))  # by a thief of the first key, later
    assert ["the first one stands" in line for line in refused] == [True]
    assert leads(tmp_path, A, B)
    assert not leads(tmp_path, A, EVIL)
    assert take(tmp_path, C, stated(B, C)) == []
    assert leads(tmp_path, A, C)


def test_successions_that_lead_to_no_key_of_the_study_are_not_kept(tmp_path):
    take(tmp_path, B, *(stated(f"junk {i}", f"junk {i + 1}") for i in range(5)), stated(A, B))
    assert [(each.old, each.new) for each in partners.load(tmp_path)["svhc"]] == [(identity_of(A), identity_of(B))]


def test_a_ring_of_successions_ends(tmp_path):
    take(tmp_path, C, stated(A, B), stated(B, C), stated(C, A))
    assert leads(tmp_path, A, C)
    assert len(partners.family(partners.load(tmp_path), "svhc", identity_of(A))) == 3


def test_the_same_again_writes_nothing(tmp_path, monkeypatch):
    take(tmp_path, B, stated(A, B))
    monkeypatch.setattr(partners, "write_private", lambda *_: pytest.fail("written"))
    assert take(tmp_path, B, stated(A, B)) == []


def test_no_more_is_written_than_can_be_read(tmp_path, monkeypatch):
    take(tmp_path, B, stated(A, B))
    for name in ("north", "south"):
        monkeypatch.setattr(partners, "_MOST_BYTES", (tmp_path / partners.FILE).stat().st_size + 400)
        made = [stated(f"{name} {i}", f"{name} {i + 1}", site=name) for i in range(3)]
        refused = take(tmp_path, f"{name} 3", *made, name=name)
        assert ["has no room" in line for line in refused] == [True]
        assert set(partners.load(tmp_path)) == {"svhc"}
    assert "has no room" in take(tmp_path, C, stated(B, C))[0]
    assert leads(tmp_path, A, B)  # what was there stays
    assert not leads(tmp_path, A, C)
    monkeypatch.setattr(partners, "_MOST_BYTES", (tmp_path / partners.FILE).stat().st_size + 1000)
    assert take(tmp_path, C, stated(B, C)) == []
    assert leads(tmp_path, A, C)


def test_a_damaged_file_is_told(tmp_path):
    (tmp_path / partners.FILE).write_text(json.dumps({"format": 1, "successions": {"svhc": [{}]}}))
    with pytest.raises(FileDamaged, match="come again"):
        partners.load(tmp_path)
