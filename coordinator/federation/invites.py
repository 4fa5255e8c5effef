"""One-time invitation codes. The store keeps a digest and a date; the secret is shown once and kept nowhere.

A secret has 128 random bits, so its SHA-256 can be looked up and stored as it is: there is nothing to guess.
"""

import hashlib
import secrets
import time

from ...client_node.enrolment import InvitationCode
from ..errors import InviteExpired, InviteUnknown, InviteUsed

VALID_S = 7 * 24 * 3600.0


def new_invite() -> tuple[bytes, str]:
    """A fresh secret of 16 bytes for the invited site, and the digest (hex) for the store."""
    secret = secrets.token_bytes(16)
    return secret, digest_of(secret)


def digest_of(secret: bytes) -> str:
    """What the store knows a secret by."""
    return hashlib.sha256(b"confide invitation 1\n" + secret).hexdigest()


def code_text(address: str, secret: bytes, ca_digest: bytes) -> str:
    """The code to hand over: the gate's address, the secret, and the CA certificate that the node is to trust."""
    return InvitationCode(address, secret, ca_digest).text()


def check(secret: bytes, *, digest: str | None, expires_at: float, is_used: bool, now: float | None = None) -> None:
    """Says whether `secret` admits to the invitation that the store holds under `digest`.

    Args:
        digest: what the store has, None when it has nothing of the kind.
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
