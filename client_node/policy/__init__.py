"""A site's policy: site.toml, and the decisions that people make beside it.

`load_policy` reads both into a `SitePolicy`: the source of records (`sources`), the budget, the approved studies, the
limits.
Default deny: no study is approved until a person at the site has approved its hash. docs/site-toml.md lists every key.

A person's decision is about one hash:

>>> from pathlib import Path
>>> from tempfile import TemporaryDirectory
>>> from confide.client_node.policy import decisions
>>> with TemporaryDirectory() as home:
...     decisions.approve(Path(home), "ab" * 32)
...     said = decisions.load_decisions(Path(home))
>>> said.verdict("ab" * 32), said.verdict("cd" * 32)
('approved', None)
"""

from typing import TYPE_CHECKING

from ...faces import lazy

if TYPE_CHECKING:
    from .decisions import load_decisions
    from .site_policy import LimitPolicy, SitePolicy, load_policy
else:
    __getattr__ = lazy(
        __name__,
        decisions="load_decisions",
        site_policy="LimitPolicy SitePolicy load_policy",
    )

__all__ = [
    "LimitPolicy",
    "SitePolicy",
    "decision_log",
    "decisions",
    "load_decisions",
    "load_policy",
    "pending",
    "places",
    "site_policy",
    "sources",
]
