"""An aggregator party: the handle that a node holds, and the process that it starts.

A daemon makes one `PartyProcess` and calls `aggregate` on it with an `Order` and the sites' sealed shares; the process
is started at the first order. `handle` is the daemon's side, `process` and `aggregation` are the party's.

All three parties must hold the same order, but for the key with which each opens its own shares. Before they add
anything they compare its digest, so none of them can be told of another set of sites:

>>> from dataclasses import replace
>>> from confide.mpc.party import Order
>>> order = Order(
...     study="s", run="r", round=1, state="00" * 32, attempt=0, cohort=(("north", "aa" * 32), ("south", "bb" * 32)),
...     dim=4, ring_bits=32, scale_bits=16, min_sites=2, min_untopped=2, private_key=b"1" * 32,
... )
>>> order.digest() == replace(order, private_key=b"2" * 32).digest()
True
>>> order.digest() == replace(order, cohort=(("north", "aa" * 32), ("west", "cc" * 32))).digest()
False
"""

from .handle import OpenedTotal, Order, PartyConfig, PartyProcess

__all__ = ["OpenedTotal", "Order", "PartyConfig", "PartyProcess"]
