"""Runs Flower's server, the SuperLink, as a child of `coordinator serve`, on loopback only.

Its operator and runtime interfaces have no password, so only this machine may reach its port: nodes come through the
gate. The child dies with its parent, even if the parent is killed, and is started again if it dies. It keeps its state
in memory: that halves the processor time of an exchange, and Flower's runs never survive a restart of the SuperLink
anyway. The coordinator's own store has the valid keys. They are registered again at every start, under new node ids,
and nodes reconnect by themselves.

Not stopped here: a user on the same machine can reach the port. Run the coordinator on a machine of its own.
"""

import logging
import os
import secrets
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from ...client_node.enrolment.identity import wire_form
from ...machine import die_with_parent, free_ports
from ..errors import SuperLinkFailed
from ..federation import Pki
from ..fleet import flower
from ..fleet.calls import SECRET_VARIABLE
from ..fleet.wake import PORT_VARIABLE

logger = logging.getLogger(__name__)

FAB = Path(__file__).resolve().parent / "fab"
_RESTART_S = (0.2, 10.0)
_LASTED_S = 10.0  # a child that lived for so long, and answered, ends a row of failures
_LOOK_S = 5.0  # how often a child that was up is asked whether it still answers
_HUNG_S, _SILENT_ASKS = 60.0, 3  # without an answer, and asked so often, after which it is started anew
_START_S = 300.0  # for the first answer, on a machine however busy
_MOST_UNBORN = 5  # times that the child ends before it has answered once


class SuperLink:
    """The SuperLink of one coordinator.

    Args:
        home: the coordinator's home, with its `pki` folder; state and log are kept under `home`/flower.
        port: on 127.0.0.1; 0 takes a free one.
        on_start: called after every start, the first included, before `start` returns; runs and node ids are then new.
        fab: folder of the app bundle that Flower demands for a run. Nobody runs it.
    """

    def __init__(self, home: Path, port: int, *, on_start: Callable[[], None] | None = None, fab: Path = FAB) -> None:
        self.home, self.port = home.resolve(), port or free_ports(1)[0]
        self.secret = secrets.token_hex(32)  # by which the SuperLink knows the gate
        self._pki, self._fab_folder = Pki.load(home), fab
        self._pki.loopback_pair()  # now, for whoever connects reads its CA once
        self._ca = self.ca_path.read_bytes()
        self._folder = self.home / "flower"
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._control = flower.Control(self.port, self.ca_path)
        self._child: subprocess.Popen[bytes] | None = None
        self._stopping, self._up = threading.Event(), threading.Event()
        self._failure: Exception | None = None
        self._fab = b""
        self._on_start = on_start
        self._names: dict[bytes, str] = {}  # transport key -> name
        self._keys: dict[int, bytes] = {}  # every node id ever given -> its transport key
        self._present: dict[bytes, int] = {}  # transport key -> node id in the running child
        self._registering = threading.Lock()
        # The kernel kills the child with the thread that started it, so this thread lives as long as we do.
        self._keeper = threading.Thread(target=self._keep, name="confide-superlink", daemon=True)

    def begin(self) -> None:
        """Starts the child, and returns while it is still loading. Raises `SuperLinkFailed`."""
        self._end_strays(self.driver_home)
        if _is_open(self.port):
            raise SuperLinkFailed(f"port {self.port} of 127.0.0.1 is taken by another program; choose another")
        self._keeper.start()

    def start(self) -> None:
        """Starts the child and waits until it answers. Raises `SuperLinkFailed`."""
        self.begin()
        try:
            while not self._up.wait(0.05):
                self.require_kept()
        except SuperLinkFailed:
            self.stop()
            raise

    def require_kept(self) -> None:
        """Raises `SuperLinkFailed` if the child cannot be kept running: it ended again and again while it loaded."""
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        """Ends the child and all processes that it started; returns when all are gone."""
        self._stopping.set()
        if self._child is not None:
            self._child.kill()  # before: the keeper may wait for an answer of one that hangs
        if self._keeper.is_alive():
            self._keeper.join()
        self._control.close()

    @property
    def is_up(self) -> bool:
        """True if the child runs and has answered since its start."""
        return self._up.is_set()

    @property
    def pid(self) -> int | None:
        """Process id of the child."""
        return self._child.pid if self._child is not None else None

    @property
    def ca_path(self) -> Path:
        """Path of the CA certificate by which the SuperLink is known on this machine, PEM."""
        return self._pki.loopback_ca_path

    @property
    def log_path(self) -> Path:
        """Path of the log with the output of the SuperLink and the runs' drivers."""
        return self._folder / "superlink.log"

    def register(self, transport_public: bytes, name: str) -> int:
        """Registers a transport key (OpenSSH or PEM form), also after restarts of the child; returns its node id.

        A second call for the same key returns the same id. A restart gives the node another id; `unregister` accepts
        any of them.
        """
        key = wire_form(transport_public)
        with self._registering:
            self._names[key] = name
            return self._register(key)

    def unregister(self, node_id: int) -> None:
        """Unregisters a node at the SuperLink; the gate refuses it as soon as the register has it as revoked."""
        with self._registering:
            key = self._keys.get(node_id, b"")
            self._names.pop(key, None)
            self._control.unregister(self._present.pop(key, node_id))

    def submit(self) -> flower.Task:
        """Starts a run of Flower's for a driver, and claims its task. Raises `SuperLinkFailed`."""
        if not self._fab:
            self._fab = flower.build_fab(self._fab_folder)
        return self._control.start_task(self._fab)

    def withdraw(self, flower_run: int) -> None:
        """Ends a run of Flower's. Raises `SuperLinkFailed`."""
        self._control.stop_run(flower_run)

    @property
    def driver_home(self) -> Path:
        """Flower's folder of the processes that drive runs."""
        return self._folder / "driver"

    def driver_environment(self) -> dict[str, str]:
        """Returns the environment of the processes that drive runs."""
        alone = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")  # so that the worker can be forked
        return self._environment() | alone | {"FLWR_HOME": str(self.driver_home), PORT_VARIABLE: str(self.port)}

    def _keep(self) -> None:
        delay, unborn = _RESTART_S[0], 0
        try:
            while not self._stopping.is_set():
                self._end_strays()
                began, was_up = time.monotonic(), False
                try:
                    was_up = self._watch(self._spawn())
                    unborn = 0 if was_up else unborn + 1
                except OSError as err:  # the machine is short of processes, memory or disk; later it may not be
                    logger.warning("the SuperLink cannot be started: %s", err)
                if self._stopping.is_set():
                    return
                if unborn == _MOST_UNBORN:
                    raise SuperLinkFailed(
                        f"the SuperLink ended {unborn} times while it started: {self._last_line()} (its log: "
                        f"{self.log_path})"
                    )
                has_lasted = was_up and time.monotonic() - began > _LASTED_S
                delay = _RESTART_S[0] if has_lasted else min(delay * 2, _RESTART_S[1])
                logger.warning("the SuperLink ended; starting it again in %.1f s (its log: %s)", delay, self.log_path)
                self._stopping.wait(delay)
        except Exception as err:
            self._failure = err if isinstance(err, SuperLinkFailed) else SuperLinkFailed(str(err))
            logger.error("the SuperLink cannot be kept running: %s", err)
        finally:
            if self._child is not None:
                self._child.kill()  # nothing to save: its state is in memory, its files are a cache
                self._child.wait()
            self._end_strays()

    def _last_line(self) -> str:
        """Returns the last line that the SuperLink has written, which usually is its reason."""
        with self.log_path.open("rb") as log:
            log.seek(max(0, self.log_path.stat().st_size - 4096))
            lines = log.read().decode(errors="replace").split("\n")
        return next((line.strip()[:300] for line in reversed(lines) if line.strip()), "it has written nothing")

    def _watch(self, child: subprocess.Popen[bytes]) -> bool:
        """Waits until the child has ended or is to end; returns True if it was up. Kills one that hangs."""
        looked = heard = time.monotonic()
        silent = 0
        while not self._stopping.is_set() and child.poll() is None:
            now = time.monotonic()
            if not self._up.is_set():
                if self._begins():
                    looked = heard = time.monotonic()
                elif now - heard > _START_S:
                    self._end_hung(child, now - heard)
            elif now - looked > _LOOK_S:
                looked = now
                silent = 0 if self._control.is_up() else silent + 1
                if not silent:
                    heard = now
                elif silent >= _SILENT_ASKS and now - heard > _HUNG_S:  # more than once: we may have been halted
                    self._end_hung(child, now - heard)
            self._stopping.wait(0.5 if self._up.is_set() else 0.05)
        was_up = self._up.is_set()
        self._up.clear()
        return was_up

    def _begins(self) -> bool:
        """Registers the keys again if the child answers; returns True if it is up now."""
        if not (_is_open(self.port) and self._control.is_up()):
            return False
        try:
            self._register_again()
            if self._on_start is not None:
                self._on_start()
        except SuperLinkFailed as err:
            logger.warning("keys are not registered yet: %s", err)
            return False
        self._up.set()
        return True

    def _end_hung(self, child: subprocess.Popen[bytes], silent_s: float) -> None:
        logger.warning("the SuperLink has not answered for %.0f s and is ended", silent_s)
        child.kill()

    def _register_again(self) -> None:
        with self._registering:
            self._present.clear()
            for key in self._names:
                self._register(key)

    def _register(self, key: bytes) -> int:
        node_id = self._control.register(key, self._names[key])
        self._keys[node_id], self._present[key] = key, node_id
        return node_id

    def _spawn(self) -> subprocess.Popen[bytes]:
        certificate, key = self._pki.loopback_pair()
        if self.ca_path.read_bytes() != self._ca:
            raise SuperLinkFailed(
                f"{certificate} or what belongs to it was damaged, and is made anew: start `coordinator serve` again"
            )
        command = [
            sys.executable, "-m", "confide.coordinator.fleet.superlink_process",
            "--host", "127.0.0.1", "--port", str(self.port),
            "--ssl-ca-certfile", str(self.ca_path), "--ssl-certfile", str(certificate), "--ssl-keyfile", str(key),
            "--enable-supernode-auth", "--isolation", "process",
            "--disable-runtime-dependency-installation",
        ]  # fmt: skip
        environment = self._environment() | {SECRET_VARIABLE: self.secret}
        with self.log_path.open("ab") as log:
            self._child = child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, cwd=self._folder,
                env=environment, start_new_session=True, preexec_fn=die_with_parent,
            )  # fmt: skip
        return child

    def _environment(self) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("FLWR_")}
        return inherited | {
            "FLWR_HOME": str(self._folder),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "PYTHONUNBUFFERED": "1",
        }

    def _end_strays(self, *more: Path) -> None:
        """Kills an earlier SuperLink of this home that still runs, and what has one of `more` as Flower's folder.

        It is known by our FLWR_HOME in its environment; a process id from a file could be that of any process.
        """
        strays, homes = [], {str(self._folder), *map(str, more)}
        for process in psutil.process_iter():
            try:
                if process.pid != os.getpid() and process.environ().get("FLWR_HOME") in homes:
                    process.kill()
                    strays.append(process)
            except (psutil.Error, OSError):  # gone, or another user's
                continue
        psutil.wait_procs(strays, timeout=5)


def _is_open(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0
