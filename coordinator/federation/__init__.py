"""Membership of the federation: home, certificates, invitations, register.

`create_home` founds a federation in a folder, and `opened_store` opens its store. `Pki` holds its certificates and the
coordinator's key, and knows the keys before it. `Register` invites, enrols and revokes nodes, and
`members` is the operator's view of them. `serving` tells whether a server runs, and what it sees. `backup` keeps and
restores all of it.

An invitation names the gate's address and pins the CA certificate that the node must trust:

>>> from pathlib import Path
>>> from tempfile import TemporaryDirectory
>>> from confide.client_node.enrolment import InvitationCode
>>> from confide.coordinator.federation import Pki, Register, Settings, create_home
>>> from confide.coordinator.store import Store
>>> settings = Settings(
...     federation="clinics", address="127.0.0.1:8443", listen="127.0.0.1", port=8443, superlink_port=0
... )
>>> with TemporaryDirectory() as home:
...     create_home(Path(home), settings)
...     store, pki = Store.open(Path(home)), Pki.load(Path(home))
...     code = InvitationCode.parse(Register(store, pki).invite("north", ("train",), "127.0.0.1:8443"))
...     store.close()
...     code.address, code.ca_digest == pki.ca_digest
('127.0.0.1:8443', True)
"""

from typing import TYPE_CHECKING

from ...faces import lazy

if TYPE_CHECKING:
    from .home import Settings, create_home, is_founded, load_settings, opened_store
    from .pki import Pki
    from .register import Register
else:
    __getattr__ = lazy(
        __name__, home="Settings create_home is_founded load_settings opened_store", pki="Pki", register="Register"
    )

__all__ = [
    "Pki",
    "Register",
    "Settings",
    "backup",
    "create_home",
    "is_founded",
    "load_settings",
    "members",
    "opened_store",
    "serving",
]
