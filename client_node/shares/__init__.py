"""A site's sealed shares on their way out, and an aggregator's on their way in.

At a site `seal` makes three envelopes of an update, `topup` makes those for missing sites, and the `Outbox` keeps both
until their round is settled. At an aggregator `AggregatorRole` takes orders and runs the party.

A round asked for twice is answered with the bytes that were stored, never with a fresh draw of noise:

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

__all__ = ["AggregatorRole", "Files", "Outbox", "described", "seal", "topup"]
