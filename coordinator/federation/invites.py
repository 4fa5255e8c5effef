"""One-time invitation codes. The store keeps a digest and a date; the secret is shown once and stored nowhere.

A secret has 128 random bits and cannot be guessed, so a plain SHA-256 of it is stored and looked up.
"""

import hashlib
import secrets
import time

from ...client_node.enrolment import InvitationCode
from ..errors import InviteExpired, InviteUnknown, InviteUsed

VALID_S = 7 * 24 * 3600.0


def new_invite() -> tuple[bytes, str]:
    """Draws a secret of 16 bytes for the invited site; returns it with its digest (hex) for the store."""
    secret = secrets.token_bytes(16)
    return secret, digest_of(secret)


def digest_of(secret: bytes) -> str:
    """Computes the digest by which the store knows a secret."""
    return hashlib.sha256(b"confide invitation 1\n" + secret).hexdigest()


def code_text(address: str, secret: bytes, ca_digest: bytes) -> str:
    """Writes the code to hand over: the gate's address, the secret, and the digest of the CA certificate to trust."""
    return InvitationCode(address, secret, ca_digest).text()


def check(secret: bytes, *, digest: str | None, expires_at: float, is_used: bool, now: float | None = None) -> None:
    """Checks that `secret` is valid for the invitation that the store holds under `digest`.

    Args:
        digest: the stored digest; None if the store has no such invitation.
        expires_at: seconds since the epoch.

    Raises:
        InviteUnknown, InviteUsed, InviteExpired
    """
    if digest is None or not secrets.compare_digest(digest_of(secret), digest):
        raise InviteUnknown("no invitation has this code; it may have been replaced by a newer one")
    if is_used:
        raise InviteUsed("a node has enrolled with this code already; invite the site anew")
    if (time.time() if now is None else now) >= expires_at:
        raise InviteExpired("the code has expired; invite the site anew")
