"""How a node joins a federation: its keys, and the invitation that it answers."""

from .enrol import Enrolment, InvitationCode, Role, enroll, fetch_studies
from .identity import NodeIdentity

__all__ = ["Enrolment", "InvitationCode", "NodeIdentity", "Role", "enrol", "enroll", "fetch_studies", "identity"]
