"""Invitation codes."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from confide.client_node.enrolment.protocol import InvitationCode
from confide.client_node.errors import CodeInvalid
from confide.coordinator.errors import InviteExpired, InviteRefused, InviteUnknown, InviteUsed
from confide.coordinator.federation.invites import check, code_text, digest_of, new_invite

CA = hashlib.sha256(b"a certificate").digest()


@pytest.mark.parametrize("address", ["fed.example.org:9443", "10.0.0.1:443", "[2001:db8::1]:9443"])
def test_a_code_gives_back_what_went_in(address: str) -> None:
    secret, _ = new_invite()
    assert InvitationCode.parse(code_text(address, secret, CA)) == InvitationCode(address, secret, CA)


def test_a_code_may_be_typed_in_lower_case_and_broken_over_lines() -> None:
    secret, _ = new_invite()
    text = code_text("fed:9443", secret, CA)
    address, letters = text.split("/")
    assert InvitationCode.parse(f" {address}/{letters[:20]}\n  {letters[20:].lower()} \n").secret == secret


@given(st.text(max_size=200))
def test_whatever_is_not_a_code_is_refused_as_one(text: str) -> None:
    with pytest.raises(CodeInvalid):
        InvitationCode.parse(text)


@pytest.mark.parametrize("cut", [1, 5, 40])
def test_a_code_that_lost_letters_is_refused(cut: int) -> None:
    with pytest.raises(CodeInvalid, match="not a whole invitation code"):
        InvitationCode.parse(code_text("fed:9443", new_invite()[0], CA)[:-cut])


def test_the_store_learns_nothing_that_enrols() -> None:
    secret, digest = new_invite()
    assert secret.hex() not in digest
    with pytest.raises(InviteUnknown):
        check(bytes.fromhex(digest)[:16], digest=digest, expires_at=2.0, is_used=False, now=1.0)


def test_a_good_code_passes_until_it_expires() -> None:
    secret, digest = new_invite()
    check(secret, digest=digest, expires_at=2.0, is_used=False, now=1.9)


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ({"digest": None}, InviteUnknown),
        ({"digest": digest_of(b"another")}, InviteUnknown),
        ({"is_used": True}, InviteUsed),
        ({"now": 2.0}, InviteExpired),
    ],
)
def test_one_thing_wrong_is_one_reason(changed: dict[str, object], error: type[InviteRefused]) -> None:
    secret, digest = new_invite()
    good: dict[str, object] = {"digest": digest, "expires_at": 2.0, "is_used": False, "now": 1.0}
    with pytest.raises(error):
        check(secret, **(good | changed))  # type: ignore[arg-type]


def test_the_secret_is_not_in_the_repr() -> None:
    secret, _ = new_invite()
    assert secret.hex() not in repr(InvitationCode("fed:9443", secret, CA))
    assert repr(secret) not in repr(InvitationCode("fed:9443", secret, CA))
