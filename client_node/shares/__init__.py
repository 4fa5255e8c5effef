"""Sealed shares: those that a site sends, and those that an aggregator receives.

At a site `seal` makes three envelopes of an update, `topup` makes those of noise for missing sites, and the `Outbox`
stores both until their round is settled. At an aggregator `AggregatorRole` takes orders and runs the party.

A round asked for twice is answered with the stored bytes, never with a fresh draw of noise:

>>> from pathlib import Path
>>> from tempfile import TemporaryDirectory
>>> from confide.client_node.shares import Outbox
>>> with TemporaryDirectory() as home:
...     _ = Outbox(Path(home)).put("run", 1, (b"for a", b"for b", b"for c"))
...     [file.read_bytes() for file in Outbox(Path(home)).get("run", 1)], Outbox(Path(home)).get("run", 2)
([b'for a', b'for b', b'for c'], None)
"""

from .aggregator import AggregatorRole
from .outbox import Files, Outbox, described

__all__ = ["AggregatorRole", "Files", "Outbox", "described", "run_keys", "seal", "topup"]
