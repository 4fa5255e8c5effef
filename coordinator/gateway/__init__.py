"""The public port: listener, gate, enrolment, and the SuperLink behind it."""

from .service import Service
from .superlink import die_with_parent

__all__ = ["Service", "die_with_parent"]
