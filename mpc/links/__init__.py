"""Links of a party: mutual TLS to the other two, frames to its own daemon, orders, certificates, and the journal.

`orders` says what a daemon asks of its party, `frames` carries it over a pair of sockets, `tls.TlsCommunicator` joins
the three parties, `journal.Journal` remembers on disk which set of sites a round is bound to, and
`positions.Positions` how far the sites' ledgers were seen.

A round is bound to one set of sites for ever, also after a restart:

>>> from pathlib import Path
>>> from tempfile import TemporaryDirectory
>>> from confide.mpc.links import journal
>>> round_id = journal.RoundId(study="ab" * 32, run="run-1", round=1)
>>> with TemporaryDirectory() as folder:
...     for sites in (("north", "south"), ("north", "west")):
...         party = journal.Journal(Path(folder) / "journal")
...         try:
...             party.bind(round_id, journal.Binding(set_digest=sites[1].encode().ljust(32), sites=sites))
...         finally:
...             party.close()
Traceback (most recent call last):
confide.mpc.errors.SetConflict: round 1 is bound to another set of sites
"""

from .frames import Channel
from .memory_map import mapped
from .orders import OpenedTotal, Order, PartyConfig

__all__ = [
    "Channel",
    "OpenedTotal",
    "Order",
    "PartyConfig",
    "certificates",
    "frames",
    "journal",
    "mapped",
    "positions",
    "tls",
]
