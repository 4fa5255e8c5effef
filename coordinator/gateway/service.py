"""The service behind `coordinator serve`: gate, Flower's SuperLink as a child, the drivers of unfinished runs."""

import datetime as dt
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import update

from ... import __version__, log_lines
from ...client_node.enrolment.protocol import RotateRequest
from ...client_node.supervision import Monitor, Pulse, Supervisor
from ...client_node.web.child import WebChild
from ...privacy.ledger.chain import moment
from .. import ca_rotation
from ..errors import StateDamaged, StoreUnavailable, SuperLinkFailed
from ..federation import Pki, Register, load_settings
from ..federation.serving import Serving, note_serving, only_server
from ..oversight import checkpoints
from ..store import Store, migrate
from ..store.actions import SELF
from ..store.tables import NodeRow
from .announcing import Announcer
from .crowd import Limits
from .drivers import Drivers
from .gate import FleetGate, serve_gate
from .leading import Seat
from .listener import GateServer
from .renewal import CertificateKeeper
from .superlink import SuperLink

logger = logging.getLogger(__name__)

TICK_S = 0.25
CHECKPOINT_S = 60.0  # between checkpoints of the audit log
_REPEAT_S = 60.0  # a trouble that stays is logged so often
_NOTE_S = 5.0
_TICK_DUE_S = 120.0  # a database that is locked takes 20 s for each of a few statements
_GATE_DUE_S = 60.0
_LOGS_S = 1.0


class Service:
    """The processes and threads that `coordinator serve` keeps alive."""

    def __init__(self, home: Path, seat: Seat) -> None:
        self._settings = load_settings(home)
        self._pki, self._store = Pki.load(home), Store.open(home)
        self._register = Register(self._store, self._pki)
        self._superlink = SuperLink(home, self._settings.superlink_port)
        self._drivers = Drivers(home, self._store, self._superlink)
        self._registered: dict[str, tuple[bytes, int]] = {}  # name -> key and Flower's node id
        self._synced: tuple[object, ...] | None = None  # the register's mark when all of it was done
        self._rotations = 0  # of transport keys, of which the register's mark says nothing
        self._home, self._seat, self._since = home, seat, time.time()
        self._noted = ("", "", 0.0)  # trouble, the page's address, and when
        self._was_up = False
        self._trouble = ("", 0.0)  # logged last, and when
        self._pulse = Pulse()
        self._logs_cut = 0.0
        self._sign_next = 0.0
        self._page: WebChild | None = None

    def serve(
        self,
        stop: threading.Event,
        *,
        monitor: int | None = None,
        supervisor: Supervisor | None = None,
        page: WebChild | None = None,
    ) -> None:
        """Serves until `stop` is set.

        Args:
            monitor: loopback port for health checks and metrics; None for none.
            page: the process of the operator's page, not started yet; None for none.
            supervisor: told that the server is ready, lives, and ends.

        Raises:
            AlreadyLed: another process serves this federation.
            LeadLost: another server has taken over.
            CoordinatorError: a port is taken, or the SuperLink cannot be started.
            MonitorUnavailable: the monitor's port is taken.
        """
        with closing(self._store), only_server(self._home):
            self._store.require_no_later()  # nor an emptied database, which would become a new federation's
            if not self._seat.take(stop):  # before tables may change beneath who leads
                return
            migrate(self._store.url)
            if not self._seat.take(stop):  # an earlier version's database had no place for it
                return
            self._page = page
            self._note_action("serve.start", version=__version__)
            try:
                with self._pki.changing():  # no command notes it at the same time
                    ca_rotation.note_takeover(self._store, self._pki)
                self._serve(stop, monitor, supervisor or Supervisor())
            finally:
                self._note_end()

    def _serve(self, stop: threading.Event, monitor: int | None, supervisor: Supervisor) -> None:
        announcer = Announcer(self._pki, self._register.note_trust)
        gate = FleetGate(
            self._register,
            enrol=self._register.enrol,
            rotate=self._rotate,
            follow=self._register.follow,
            studies=self._register.studies,
            ca_path=self._pki.ca_path,
            superlink=self._superlink.port,
            secret=self._superlink.secret,
            superlink_ca=self._superlink.ca_path,
            announcer=announcer,
            decisions=self._register.note_decisions,
        )
        settings, pki = self._settings, self._pki
        certificates = CertificateKeeper(pki, self._note_renewal)
        server = serve_gate(
            gate, settings.listen, settings.port, pki.certificate_path, pki.key_path,
            limits=Limits(per_address=settings.strangers_per_address),
        )  # fmt: skip
        logger.info("the gate is open at %s", settings.address)
        self._show_life(server, supervisor)  # so that a loop is missed that never begins
        self._pulse.beat("the gate", within_s=_GATE_DUE_S)
        try:
            with self._monitored(monitor, gate, server):
                self._superlink.begin()
                while not stop.wait(TICK_S):
                    self._superlink.require_kept()
                    self._tick(gate)
                    certificates.check(server)
                    if announcer.look():
                        logger.info("nodes are told of another list of CAs to trust")
                        certificates.check(server)  # so that nobody is told to drop a CA whose certificate is shown
                    self._show_life(server, supervisor)
                    self._cut_logs_off()
                    if self._page is not None:
                        self._page.tick()
        finally:
            supervisor.stopping()
            server.stop()
            if self._page is not None:
                self._page.stop()
            self._drivers.stop()
            self._superlink.stop()

    @contextmanager
    def _monitored(self, port: int | None, gate: FleetGate, server: GateServer) -> Iterator[None]:
        """Serves the monitor, if one is wanted."""
        if port is None:
            yield
            return
        from ..ledger_standings import Ledgers
        from .service_metrics import ServiceMetrics

        ledgers = Ledgers(self._store)
        metrics = ServiceMetrics(
            home=self._home, store=self._store, pki=self._pki, superlink=self._superlink, drivers=self._drivers,
            gate=gate, server=server, pulse=self._pulse, trouble=lambda: self._noted[0], ledgers=ledgers,
        )  # fmt: skip
        served = Monitor(port, metrics.answers())
        ledgers.start()
        try:
            yield
        finally:
            served.stop()
            ledgers.stop()

    def _show_life(self, server: GateServer, supervisor: Supervisor) -> None:
        self._pulse.beat("the server's tick", within_s=_TICK_DUE_S)
        server.echo(lambda: self._pulse.beat("the gate", within_s=_GATE_DUE_S))
        if not self._pulse.stuck() and server.is_alive:
            supervisor.live()
        if self._superlink.is_up:
            supervisor.ready()

    def _tick(self, gate: FleetGate) -> None:
        """Does what is due. What does not work now may work at the next tick: the gate stays open meanwhile."""
        trouble, is_up = "", self._superlink.is_up
        if is_up and not self._was_up:
            logger.info("the SuperLink answers on loopback port %d", self._superlink.port)
        self._was_up = is_up
        try:
            self._seat.keep()
        except StoreUnavailable as err:
            trouble = str(err)
        try:
            if is_up:
                self._sync_keys()
            self._drivers.tick()
            self._sign_log()
        except (SuperLinkFailed, StoreUnavailable) as err:
            trouble = str(err)
        except OSError as err:
            trouble = f"{err.strerror or type(err).__name__}: {err.filename or 'no process can be started'}"
        if trouble:
            self._complain(trouble)
        self._note(gate, trouble)

    def _cut_logs_off(self) -> None:
        """Keeps the logs small that child processes write as their output."""
        now = time.monotonic()
        if now - self._logs_cut < _LOGS_S:
            return
        self._logs_cut = now
        for path in (self._superlink.log_path, self._drivers.log_path):
            try:
                log_lines.cut_off(path)
            except OSError as err:
                self._complain(f"{path} was emptied, and its older lines not kept ({err.strerror})")

    def _note(self, gate: FleetGate, trouble: str) -> None:
        """Notes what `coordinator status` shows, every few seconds, and when a trouble or the page comes or goes."""
        now, page = time.monotonic(), "" if self._page is None else self._page.address
        if (trouble, page) == self._noted[:2] and now - self._noted[2] < _NOTE_S:
            return
        self._noted = trouble, page, now
        serving = Serving(
            since=self._since,
            noted=time.time(),
            version=__version__,
            superlink=self._superlink.is_up,
            worker=self._drivers.is_ready,
            trouble=trouble,
            page=page,
            nodes=dict(gate.seen),
            apart=gate.apart(),
        )
        try:
            note_serving(self._home, serving)
        except OSError as err:
            self._complain(f"{err.filename or self._home} cannot be written ({err.strerror})")

    def _sign_log(self) -> None:
        """Signs the head of the audit log if it has moved, at most once a minute."""
        if time.monotonic() < self._sign_next:
            return
        self._sign_next = time.monotonic() + CHECKPOINT_S
        try:
            checkpoints.make(self._store, self._pki)
        except StateDamaged as err:  # nothing else that the server does needs the log's signature
            self._complain(str(err))

    def _note_action(self, action: str, *, actor: str | None = None, **fields: Any) -> None:
        with self._store.session() as session:
            self._store.log_action(session, action, actor=actor, **fields)

    def _note_renewal(self, ends: dt.datetime) -> None:
        self._note_action("certificate.renew", actor=SELF, until=moment(ends.timestamp()))

    def _note_end(self) -> None:
        """Notes the server's end; a disk that is full just now, which may have ended it, leaves a start without one."""
        try:
            self._note_action("serve.stop")
            checkpoints.make(self._store, self._pki)
        except (StoreUnavailable, StateDamaged) as err:
            logger.error("the audit log lacks this server's end: %s", err)

    def _complain(self, trouble: str) -> None:
        """Logs a trouble when it is new, and once a minute while it lasts."""
        now = time.monotonic()
        if trouble != self._trouble[0] or now - self._trouble[1] > _REPEAT_S:
            logger.warning("%s; trying again", trouble)
            self._trouble = trouble, now

    def _sync_keys(self) -> None:
        """Registers new keys with the SuperLink and unregisters revoked ones, if the register has changed."""
        mark = (*self._store.nodes_mark(), self._rotations)
        if mark == self._synced:
            return
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
                if old := self._registered.get(node.name):
                    self._superlink.unregister(old[1])
                self._registered[node.name] = node.transport_key, node_id
                self._note_flower_id(node.name, str(node_id))
        self._synced = mark

    def _rotate(self, request: RotateRequest) -> str:
        """Takes a node's new transport key; the next tick makes the SuperLink know it."""
        old = self._register.rotate(request)
        self._rotations += 1
        return old

    def _note_flower_id(self, name: str, flower_id: str | None) -> None:
        with self._store.session() as session:
            session.execute(update(NodeRow).where(NodeRow.name == name).values(flower_id=flower_id))
