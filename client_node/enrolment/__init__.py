"""How a node joins a federation: its keys, and the invitation that it answers."""

from .identity import NodeIdentity
from .protocol import Enrolment, InvitationCode, Role, enrol, fetch_studies

__all__ = ["Enrolment", "InvitationCode", "NodeIdentity", "Role", "enrol", "fetch_studies", "identity", "protocol"]
