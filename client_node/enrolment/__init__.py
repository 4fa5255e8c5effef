"""Enrolment of a node in a federation: its keys, and the invitation that it answers.

`NodeIdentity` makes and keeps the two private keys. `enrol` joins the federation that issued a code, and `Enrolment` is
the node's record of it. `join_file` has code and next steps in one file. `protocol` has the messages of both ends, and
asks for the studies on offer. `outbound` is the way to the coordinator (TLS, a proxy), and `sessions` tells two daemons
with one key apart.

An invitation is one line of text, on paper or by telephone if need be; case and spaces do not matter:

>>> from confide.client_node.enrolment import InvitationCode
>>> code = InvitationCode(address="fed.example.org:8443", secret=bytes(16), ca_digest=bytes(32))
>>> InvitationCode.parse(f" {code.text().lower()} ") == code
True
"""

from typing import TYPE_CHECKING

from ...faces import lazy

if TYPE_CHECKING:
    from .identity import NodeIdentity
    from .protocol import Enrolment, InvitationCode, Role, enrol
else:
    __getattr__ = lazy(__name__, identity="NodeIdentity", protocol="Enrolment InvitationCode Role enrol")

__all__ = [
    "Enrolment",
    "InvitationCode",
    "NodeIdentity",
    "Role",
    "enrol",
    "identity",
    "join_file",
    "outbound",
    "protocol",
    "sessions",
]
