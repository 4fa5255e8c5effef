"""A site's side of a federation: what it approves, trains, charges and sends.

`cli` is the command `client-node`; `daemon` polls the coordinator and `node` answers it. Before a round stand
`enrolment`, `succession`, `policy`, `data` and `approval`; in a round, `replay` computes the state, `training` an
update, and `shares` seals it. `study`, `wire` and `replay` are what coordinator and nodes have in common, and
`supervision` shows that either lives. docs/site.md is the page for people at a site.

A node makes its own keys. Sites read their fingerprints to each other before they train together:

>>> from pathlib import Path
>>> from tempfile import TemporaryDirectory
>>> from confide.client_node.approval import confirmed_sites
>>> from confide.client_node.enrolment import NodeIdentity
>>> with TemporaryDirectory() as home:
...     made, kept = NodeIdentity.create(Path(home)), NodeIdentity.load(Path(home))
>>> confirmed_sites.fingerprint(made.identity_hex) == confirmed_sites.fingerprint(kept.identity_hex)
True
"""

__all__ = [
    "approval",
    "cli",
    "data",
    "enrolment",
    "page",
    "policy",
    "replay",
    "shares",
    "study",
    "succession",
    "supervision",
    "training",
    "web",
    "wire",
]

if "." not in __name__:
    raise ImportError(
        "this folder is the package confide.client_node: write `import confide.client_node`, not `import client_node`"
    )
