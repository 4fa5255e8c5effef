"""A site's ledger: where every charge is written, signed and chained before anything is released.

`ledger.Ledger` is the file of one site: open it, set a budget, `reserve` a charge before a round, `settle` it after.
`charges` says what entries mean, `chain` how one follows from the other, `succession` how one key follows another,
`backup` how a copy leaves the machine; `standings` compares each account with its cap. `log_chain` links what people
did, of which digests alone are shown.

A site opens its ledger and puts a cap on a data set. Who holds the entries and the site's public key can check them:

>>> from pathlib import Path
>>> from tempfile import TemporaryDirectory
>>> from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
>>> from confide.privacy.ledger import canonical, chain, charges, ledger
>>> key = Ed25519PrivateKey.generate()
>>> with TemporaryDirectory() as home:
...     book = ledger.Ledger.open(Path(home) / "ledger.sqlite", key, "north")
...     book.set_budget(charges.Budget(dataset="thyroid", unit="patient", epsilon=3.0, delta=1e-5, collusion=1))
...     entries = book.entries()
...     book.close()
>>> [entry.kind for entry in entries], chain.verify_chain(entries, canonical.public_hex(key)).seq
(['open', 'budget'], 1)
"""

__all__ = [
    "backup",
    "canonical",
    "chain",
    "charges",
    "entry_store",
    "ledger",
    "log_chain",
    "standings",
    "succession",
    "tally",
]
