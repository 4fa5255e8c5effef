"""Secret sharing: fixed point in a ring, shares, sealing, sketches and tags.

`ring` writes real numbers as integers modulo 2**32 or 2**64, `shares.split` makes three shares of such a vector, and
`sealing.seal_update` seals each to one aggregator and signs all three. `sketch` and `tags` let parties check norms and
totals, a `position` that a site has not gone back to an older ledger. Byte layouts are in docs/formats-mpc.md.

Two sites share a vector each. Every aggregator adds what it got, and the three sums together are the total:

>>> import numpy as np
>>> from confide.mpc.sharing import Ring, ShareContext, ring, shares
>>> def place(site):
...     return ShareContext(study="s", run="r", round=1, state="00" * 32, site=site, dim=2, ring_bits=32, scale_bits=0)
>>> updates = {"north": [3, -1], "south": [4, 8]}
>>> sums = [0, 0, 0]
>>> for site, values in updates.items():
...     vector = ring.from_integers(np.array(values), Ring(32, 0))
...     for share in shares.split(vector, place(site), full=0):
...         sums[share.aggregator_id] += shares.unpack(share, place(site)).vector
>>> ring.to_integers(sum(sums), Ring(32, 0)).tolist()
[7, 7]
"""

from .ring import Ring
from .shares import ShareContext

__all__ = ["Ring", "ShareContext", "curve25519", "hpke", "position", "ring", "sealing", "shares", "sketch", "tags"]
