"""Secure aggregation: secret sharing, sealing, and the three parties that add shares up.

Imports nothing of ours and knows neither a model nor an epsilon. Begin with `sharing`: how a vector becomes three
shares, and the shares of a sum the sum. `party` runs an aggregator, `links` connects three of them, and `crypten`
checks norms on shares.

A sum of updates is a sum of ring elements, which wrap as shares do, and is read back exactly:

>>> import numpy as np
>>> from confide.mpc.sharing import Ring, ring
>>> agreed = Ring(32, 16)
>>> updates = [np.array([0.5, -3.0]), np.array([-2.25, 1.0])]
>>> total = sum(ring.from_integers((update * 2**16).astype(np.int64), agreed) for update in updates)
>>> ring.decode(ring.to_integers(total, agreed), agreed).tolist()
[-1.75, -2.0]
"""

__all__ = ["crypten", "links", "party", "sharing"]

if "." not in __name__:
    raise ImportError("this folder is the package confide.mpc: write `import confide.mpc`, not `import mpc`")
