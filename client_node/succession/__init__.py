"""Succession of identity keys: this node's own, and what is known of its partners'.

`own_keys.OwnKeys` finds the key with which this node signs in a study, the present one or an earlier one that the study
names. `rotation` makes the next key known to the coordinator and puts it in the place of the present one. `partners`
keeps the successions of other nodes, by which their later keys are known as theirs.

Every later key is vouched for by the one before:

>>> from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
>>> from confide.privacy.ledger import canonical
>>> from confide.privacy.ledger.succession import Succession, keys_of
>>> first, second = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
>>> stated = Succession.make("north", "00" * 32, first, second, "2026-03-01T09:00:00Z")
>>> stated.problem(), keys_of([stated]) == (canonical.public_hex(first), canonical.public_hex(second))
('', True)
"""

__all__ = ["own_keys", "partners", "rotation"]
