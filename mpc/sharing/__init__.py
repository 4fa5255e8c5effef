"""Secret sharing: fixed point in a ring, shares, sealing, sketches and tags."""

from .ring import Ring
from .shares import Share, ShareContext

__all__ = ["Ring", "Share", "ShareContext", "curve25519", "hpke", "ring", "sealing", "shares", "sketch", "tags"]
