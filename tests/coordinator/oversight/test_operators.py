import re
import threading
import time

import pytest
import sqlalchemy as sa

from confide.coordinator.errors import AccessRefused, Conflict, NotFound, StateDamaged
from confide.coordinator.oversight import access, operators
from confide.coordinator.oversight.roles import COMMANDS, least_role
from confide.coordinator.store.tables import OperatorRow
from confide.privacy.ledger import chain

from ..conftest import logged

DAY = 86_400.0


@pytest.fixture
def store(empty_store):
    return empty_store


@pytest.fixture
def admin(store):
    return operators.add(store, "anna", "admin")


def require(store, token, role="viewer"):
    found = access.require(store, token, role, command="site list")
    return None if found is None else found.name


def refusals(store):
    return [fields for action, fields in logged(store) if action == "access.refused"]


def ends(store, name, moment):
    with store.session() as session:
        session.execute(sa.update(OperatorRow).where(OperatorRow.name == name).values(expires_at=moment))


def test_before_the_first_operator_everything_goes_and_after_it_nothing_without_a_token(store):
    assert require(store, None, "admin") is None
    token = operators.add(store, "anna", "admin")
    assert require(store, token, "admin") == "anna"
    with pytest.raises(AccessRefused, match="takes the token of an operator: set CONFIDE_TOKEN"):
        require(store, None)
    with pytest.raises(AccessRefused):
        require(store, "")


def test_a_token_is_long_drawn_anew_and_kept_as_a_slow_hash_alone(store, admin):
    other = operators.add(store, "bob", "viewer")
    assert re.fullmatch(r"confide_anna\.[A-Za-z0-9_-]{43}", admin)
    assert admin[-43:] != other[-43:]
    with store.session() as session:
        kept = session.get(OperatorRow, "anna").token
    assert kept.startswith("$argon2id$v=19$m=65536,t=3,p=4$")  # RFC 9106, the second recommendation
    assert admin[-43:] not in kept
    everything = str(logged(store))
    assert admin[-43:] not in everything
    assert kept not in everything
    assert kept not in repr(operators.operators(store))


@pytest.mark.parametrize("role", ["viewer", "operator", "admin"])
def test_each_role_may_do_what_is_its_own_or_less(store, admin, role):
    token = operators.add(store, "bob", role)
    ranks = ["viewer", "operator", "admin"]
    for asked in ranks:
        if ranks.index(asked) <= ranks.index(role):
            assert require(store, token, asked) == "bob"
        else:
            with pytest.raises(AccessRefused, match=f"takes the role {asked}, and bob is {role}"):
                require(store, token, asked)
    assert all(each == {"operator": "bob", "reason": "role", "command": "site list"} for each in refusals(store))


@pytest.mark.parametrize(
    "change",
    [
        lambda token: token[:-1] + ("A" if token[-1] != "A" else "B"),
        lambda token: token[:-1],
        lambda token: token.replace("anna", "nobody"),
        lambda token: token.replace("confide_", ""),
        lambda token: token + "\x00",
        lambda token: "x" * 100_000,
        lambda token: token.replace("anna", "anna' OR '1'='1"),
    ],
)
def test_any_other_token_is_refused_with_one_text_whether_the_name_is_known_or_not(store, admin, change):
    with pytest.raises(AccessRefused) as refused:
        require(store, change(admin))
    assert str(refused.value) == "this token is no operator's; nothing was done"
    assert admin[-43:] not in str(refused.value)


def test_an_unknown_name_costs_a_hash_as_a_known_one_does(store, admin, monkeypatch):
    counted = []
    true = operators.Argon2id.verify_phc_encoded

    class Counting:
        @staticmethod
        def verify_phc_encoded(secret, encoded):
            counted.append(encoded.rsplit("$", 2)[0])
            true(secret, encoded)

    monkeypatch.setattr(operators, "Argon2id", Counting)
    for token in ("confide_anna." + "A" * 43, "confide_nobody." + "A" * 43, "nothing"):
        with pytest.raises(AccessRefused):
            require(store, token)
    assert counted == ["$argon2id$v=19$m=65536,t=3,p=4"] * 3


def test_expired_and_revoked_tokens_have_texts_of_their_own_but_only_for_who_holds_them(store, admin):
    token = operators.add(store, "bob", "viewer", days=1)
    assert require(store, token) == "bob"
    ends(store, "bob", time.time() - 1)
    with pytest.raises(AccessRefused, match="has expired; an admin renews it"):
        require(store, token)
    operators.revoke(store, "bob")
    with pytest.raises(AccessRefused, match="was revoked"):
        require(store, token)
    with pytest.raises(AccessRefused, match="no operator's"):
        require(store, "confide_bob." + "A" * 43)
    assert [each["reason"] for each in refusals(store)] == ["expired", "revoked", "wrong"]


def test_a_flood_of_refusals_fills_no_log(store, admin):
    for _ in range(access.MOST_REFUSALS + 5):
        with pytest.raises(AccessRefused):
            require(store, None)
    found = refusals(store)
    assert len(found) == access.MOST_REFUSALS
    assert "further ones of this hour are not listed" in found[-1]["reason"]


def test_the_first_operator_is_an_admin(store):
    with pytest.raises(Conflict, match="the first operator must be an admin"):
        operators.add(store, "bob", "viewer")
    assert not operators.any_operator(store)


@pytest.mark.parametrize("name", ["", "Anna", "-a", "a b", "a.b", "x" * 64, "a\n"])
def test_a_name_is_one_word(store, name):
    with pytest.raises(Conflict, match="is no name"):
        operators.add(store, name, "admin")


def test_a_name_is_never_used_again(store, admin):
    operators.add(store, "bob", "admin")
    operators.revoke(store, "bob")
    with pytest.raises(Conflict, match="names are not used again"):
        operators.add(store, "bob", "viewer")
    with pytest.raises(Conflict, match="was revoked"):
        operators.renew(store, "bob")


def test_tokens_are_made_and_looked_at_by_many_threads_at_once(store, admin):
    """A page's requests do so; without a lock of ours OpenSSL's threads wait for each other for good."""
    doing = [lambda name=name: operators.add(store, name, "viewer") for name in ("bo", "cy", "di")]
    doing += [lambda: operators.secret_fits(None, admin)] * 3
    threads = [threading.Thread(target=each, daemon=True) for each in doing]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not [thread for thread in threads if thread.is_alive()]
    assert [each.name for each in operators.operators(store)] == ["anna", "bo", "cy", "di"]


def test_a_renewed_token_replaces_the_old_one_at_once(store, admin):
    fresh = operators.renew(store, "anna", days=30)
    assert require(store, fresh, "admin") == "anna"
    with pytest.raises(AccessRefused, match="no operator's"):
        require(store, admin)
    with pytest.raises(NotFound):
        operators.renew(store, "nobody")


def test_the_last_admin_with_a_valid_token_is_not_revoked(store, admin):
    other = operators.add(store, "eve", "admin", days=1)
    ends(store, "eve", time.time() - 1)
    with pytest.raises(Conflict, match="last admin with a valid token"):
        operators.revoke(store, "anna")
    ends(store, "eve", None)
    operators.revoke(store, "anna")
    assert require(store, other, "admin") == "eve"
    with pytest.raises(Conflict, match="revoked before"):
        operators.revoke(store, "anna")


@pytest.mark.parametrize(
    ("days", "told"),
    [(None, None), (15, None), (13.5, "in 14 days no admin's token"), (-1, "no admin's token is valid any more")],
)
def test_people_are_told_before_the_last_admin_s_token_ends(store, admin, days, told):
    ends(store, "anna", None if days is None else time.time() + days * DAY)
    found = access.warnings(store)
    assert (found == []) if told is None else told in found[0]
    operators.add(store, "eve", "admin")
    assert access.warnings(store) == []


def test_nobody_is_told_of_admins_where_there_are_no_operators(store):
    assert access.warnings(store) == []


def test_a_lost_admin_is_recovered_by_who_can_write_in_the_home_and_that_is_logged(store, admin, tmp_path):
    with pytest.raises(Conflict, match="write the name into"):
        operators.recover(store, tmp_path, "anna")
    for content in (b"eve", b"", b"anna eve", b"x" * 1000):
        (tmp_path / "recover").write_bytes(content)
        with pytest.raises(Conflict, match="write the name into"):
            operators.recover(store, tmp_path, "anna")
    (tmp_path / "recover").unlink()
    (tmp_path / "elsewhere").write_text("anna")
    (tmp_path / "recover").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Conflict, match="write the name into"):
        operators.recover(store, tmp_path, "anna")
    (tmp_path / "recover").unlink()
    (tmp_path / "recover").write_text("anna\n")
    token = operators.recover(store, tmp_path, "anna")
    assert require(store, token, "admin") == "anna"
    assert not (tmp_path / "recover").exists()
    assert ("operator.recover", {"operator": "anna", "role": "admin", "expires": None}) in logged(store)
    with pytest.raises(AccessRefused):
        require(store, admin)


def test_a_role_that_is_none_opens_nothing(store, admin):
    with store.session() as session:
        session.execute(sa.update(OperatorRow).values(role="root"))
    with pytest.raises(StateDamaged, match="role of anna"):
        require(store, admin)


def test_a_hash_that_is_damaged_opens_nothing(store, admin):
    with store.session() as session:
        session.execute(sa.update(OperatorRow).values(token="confide"))
    with pytest.raises(AccessRefused):
        require(store, admin)


def test_refusals_of_a_clock_that_was_ahead_silence_none(store, admin, monkeypatch):
    with monkeypatch.context() as ahead:
        ahead.setattr(chain, "now", lambda: "2999-01-01T00:00:00Z")
        for _ in range(25):
            with pytest.raises(AccessRefused):
                require(store, None)
    before = len(refusals(store))
    with pytest.raises(AccessRefused):
        require(store, admin[:-43] + "A" * 43)
    assert refusals(store)[before:] == [{"operator": "anna", "reason": "wrong", "command": "site list"}]


def test_a_command_that_is_not_in_the_table_is_refused():
    with pytest.raises(AccessRefused, match="no role is known for `site praise`"):
        least_role("site praise")


def test_what_changes_something_takes_more_than_a_viewer():
    for command, needed in COMMANDS.items():
        assert needed.action is None or needed.role != "viewer", command
