"""The gate of a federation's home, without Flower's server behind it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from confide.coordinator.federation import Pki, Register, load_settings, opened_store
from confide.coordinator.gateway.gate import FleetGate, serve_gate


@contextmanager
def open_gate(home: Path) -> Iterator[None]:
    """Opens the gate at the address of the home's settings as `coordinator serve` does, until the end of the block."""
    pki, settings = Pki.load(home), load_settings(home)
    with opened_store(home) as store:
        register = Register(store, pki)
        gate = FleetGate(
            register, enrol=register.enrol, rotate=register.rotate, studies=register.studies, ca_path=pki.ca_path,
            superlink=1, follow=register.follow,
        )  # fmt: skip
        server = serve_gate(gate, settings.listen, settings.port, pki.certificate_path, pki.key_path)
        try:
            yield
        finally:
            server.stop()
