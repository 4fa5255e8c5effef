"""A federation whose CA can have a successor: the real gate, register and files, without Flower's server behind it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from confide.client_node.enrolment import NodeIdentity, enrol
from confide.coordinator.federation import Pki, Register, Settings, create_home
from confide.coordinator.gateway.announcing import Announcer
from confide.coordinator.gateway.gate import FleetGate, serve_gate
from confide.coordinator.gateway.listener import GateServer
from confide.coordinator.gateway.renewal import CertificateKeeper
from confide.coordinator.store.store import Store


class RotatingGate:
    """The gate of one federation and what keeps it, which `tick` runs as the server does."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.pki, self.store = Pki.load(home), Store.open(home)
        self.register = Register(self.store, self.pki)
        self.announcer = Announcer(self.pki, self.register.note_trust)
        self.keeper = CertificateKeeper(self.pki)
        self.app = FleetGate(
            self.register, enrol=self.register.enrol, rotate=self.register.rotate, follow=self.register.follow,
            studies=self.register.studies, ca_path=self.pki.ca_path, superlink=1, announcer=self.announcer,
            decisions=self.register.note_decisions,
        )  # fmt: skip
        self.server: GateServer = serve_gate(self.app, "127.0.0.1", 0, self.pki.certificate_path, self.pki.key_path)

    def tick(self) -> None:
        self.keeper.check(self.server)
        if self.announcer.look():
            self.keeper.check(self.server)

    def code(self, name: str) -> str:
        return self.register.invite(name, ("train",), f"127.0.0.1:{self.server.port}")

    def join(self, home: Path) -> NodeIdentity:
        enrol(self.code(home.name), home)
        return NodeIdentity.load(home)

    def close(self) -> None:
        self.server.stop()
        self.store.close()


@contextmanager
def rotating_gate(home: Path) -> Iterator[RotatingGate]:
    """Founds a federation at `home`, unless there is one, and opens its gate at a free port."""
    if not home.exists():
        create_home(home, Settings(federation="f", address="127.0.0.1:1", listen="127.0.0.1", port=1, superlink_port=2))
    gate = RotatingGate(home)
    try:
        yield gate
    finally:
        gate.close()
