"""Messages between coordinator and nodes, and the parts in which large files travel.

`messages` has a class for each message, and `sign` and `verify`. `evidence` proves to a site which sites were summed,
and which total came of it. `chunks` puts a file together from its parts, `one_body` a message and its parts into one
request. `checkpoints` lets nodes countersign the coordinator's audit log, and `decisions` tell it which studies their
people have approved. Nothing here depends on Flower.
docs/formats-messages.md has the formats for other implementations.

A node takes a message only from the key that its study names, and only of the kinds that it expects:

>>> from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
>>> from confide.client_node.wire import messages
>>> coordinator = Ed25519PrivateKey.generate()
>>> asked = messages.Prepare(to="north", study="ab" * 32, run="run-1", lease=1, ledger_from=0)
>>> packet = messages.sign(asked, coordinator)
>>> messages.verify(packet, coordinator.public_key().public_bytes_raw().hex(), messages.Prepare) == asked
True
"""

__all__ = ["checkpoints", "chunks", "decisions", "evidence", "messages", "one_body"]
