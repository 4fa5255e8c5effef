"""Budget reports: built from ledgers, shown as a page, and verified by recomputation.

`build.build_report` makes the signed report out of whole ledgers, `build.render_html` a page to print, and
`verify.verify` recomputes every figure of it: a reader has to trust neither the issuer nor its arithmetic.

A report over one site's ledger holds; with another name over the same entries it does not:

>>> from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
>>> from confide.privacy.ledger import canonical, chain, charges
>>> from confide.privacy.report import build, verify
>>> site, issuer = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
>>> key = canonical.public_hex(site)
>>> opening = {"format": charges.FORMAT, "site": "north", "public_key": key}
>>> entry = chain.extend(chain.START, site, chain.now(), "open", opening)
>>> report = build.build_report("clinics", {"north": build.SiteLedger(key, [entry])}, [], issuer)
>>> verify.verify(report).ok
True
>>> report["sites"][0]["name"] = "south"
>>> verify.verify(report).failures
['signature: ...', "site south: ledger: entry 0 opens the ledger of site 'north'"]
"""

__all__ = ["build", "figures", "language", "plot", "schema", "templating", "verify", "workload"]
