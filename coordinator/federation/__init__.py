"""Who belongs to the federation: home, certificates, invitations, register."""

from .home import Settings, create_home, load_settings, opened_store
from .pki import Pki
from .register import Register

__all__ = ["Pki", "Register", "Settings", "create_home", "load_settings", "members", "opened_store"]
