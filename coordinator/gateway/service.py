"""The service behind `coordinator serve`: gate, Flower's SuperLink as a child, a driver for each unfinished run."""

import logging
import threading
import time
from contextlib import suppress
from pathlib import Path

from sqlalchemy import update

from ..errors import SuperLinkFailed
from ..federation import Pki, Register, load_settings
from ..store import Store, migrate
from ..store.tables import NodeRow, Run
from .gate import FleetGate, serve_gate
from .renewal import CertificateKeeper
from .superlink import SuperLink

logger = logging.getLogger(__name__)

TICK_S = 0.25
DRIVER_SILENCE_S = 20.0  # without a heartbeat; a driver beats every second, and another one then takes over
SUBMIT_PATIENCE_S = 60.0  # for a submitted driver to show its first heartbeat


class Service:
    """The processes and threads that `coordinator serve` keeps alive."""

    def __init__(self, home: Path) -> None:
        self._settings = load_settings(home)
        self._pki, self._store = Pki.load(home), Store.open(home)
        migrate(self._store.url)
        self._register = Register(self._store, self._pki)
        self._superlink = SuperLink(home, self._settings.superlink_port)
        self._registered: dict[str, tuple[bytes, int]] = {}  # name -> key and Flower's node id
        self._submitted: dict[str, tuple[int, float]] = {}  # run -> Flower's number of its last driver, and when
        self._superlink_pid: int | None = None
        self._since = time.time()  # earlier heartbeats are of drivers that died with an earlier SuperLink

    def serve(self, stop: threading.Event) -> None:
        """Serves until `stop` is set.

        Raises:
            CoordinatorError: a port is taken, or the SuperLink cannot be started.
        """
        gate = FleetGate(
            self._register,
            enrol=self._register.enrol,
            studies=self._register.studies,
            ca_path=self._pki.ca_path,
            superlink=self._superlink.port,
        )
        settings, pki = self._settings, self._pki
        certificates = CertificateKeeper(pki)
        server = serve_gate(gate, settings.listen, settings.port, pki.certificate_path, pki.key_path)
        logger.info("the gate is open at %s", settings.address)
        try:
            self._superlink.start()
            logger.info("the SuperLink answers on loopback port %d", self._superlink.port)
            while not stop.wait(TICK_S):
                self._tick()
                certificates.check(server)
        finally:
            server.stop()
            self._superlink.stop()
            self._store.close()

    def _tick(self) -> None:
        if not self._superlink.is_up:
            return
        if self._superlink.pid != self._superlink_pid:
            self._superlink_pid, self._since = self._superlink.pid, time.time()
            self._submitted.clear()
        try:
            self._sync_keys()
            self._start_drivers()
        except SuperLinkFailed as err:
            logger.warning("%s; trying again", err)

    def _sync_keys(self) -> None:
        """Registers new keys with the SuperLink and unregisters revoked ones."""
        for node in self._store.nodes():
            if node.transport_key is None:
                continue
            if node.revoked_at is not None:
                if node.name in self._registered or node.flower_id:
                    known = self._registered.pop(node.name, None)
                    self._superlink.unregister(known[1] if known else int(node.flower_id or 0))
                    self._note_flower_id(node.name, None)
                    logger.info("%s is shut out: revoked", node.name)
            elif self._registered.get(node.name, (b"", 0))[0] != node.transport_key:
                node_id = self._superlink.register(node.transport_key, node.name)
                self._registered[node.name] = node.transport_key, node_id
                self._note_flower_id(node.name, str(node_id))

    def _note_flower_id(self, name: str, flower_id: str | None) -> None:
        with self._store.session() as session:
            session.execute(update(NodeRow).where(NodeRow.name == name).values(flower_id=flower_id))

    def _start_drivers(self) -> None:
        """Submits a driver for each unfinished run whose driver shows no heartbeat."""
        for run in self._store.runs():
            if run.state.is_over or self._has_driver(run):
                continue
            if run.id in self._submitted:
                with suppress(SuperLinkFailed):  # it may have died with an earlier SuperLink
                    self._superlink.withdraw(self._submitted[run.id][0])
            logger.info("run %s (%s): starting a driver", run.id, run.state)
            self._submitted[run.id] = self._superlink.submit(run.id), time.time()

    def _has_driver(self, run: Run) -> bool:
        now = time.time()
        if run.heartbeat > self._since and now - run.heartbeat < DRIVER_SILENCE_S:
            return True
        submitted = self._submitted.get(run.id)
        return submitted is not None and run.heartbeat < submitted[1] and now - submitted[1] < SUBMIT_PATIENCE_S
