"""Oversight of a federation: who may do what, by operators' roles, and who did what, by the audit log.

`access.require` lets an operator through, by the table in `roles`; `operators` adds, renews and revokes them, `tokens`
bounds wrong ones where anybody may try, and `links` lets browsers in. `checkpoints` signs heads of the audit log and
takes what nodes countersign; `trail` verifies the log, here or from an exported file.

Once there is an admin, nothing goes without a token:

>>> from pathlib import Path
>>> from tempfile import TemporaryDirectory
>>> from confide.coordinator.oversight import access, operators
>>> from confide.coordinator.store import Store
>>> with TemporaryDirectory() as home:
...     store = Store.create(Path(home))
...     before = access.require(store, None, "admin", command="site invite")
...     token = operators.add(store, "anna", "admin")
...     after = access.require(store, token, "admin", command="site invite")
...     store.close()
>>> before is None, after.name
(True, 'anna')
"""

__all__ = ["access", "checkpoints", "links", "operators", "roles", "tokens", "trail"]
