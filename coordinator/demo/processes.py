"""The processes of a demo: a coordinator, its sites and three aggregators on this machine.

Nodes run the same commands that real organisations type.
"""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import psutil

from ...client_node.enrolment import Role
from ...client_node.files import write_private
from ...machine import die_with_parent, free_ports
from ..errors import DemoFailed
from ..federation import Pki, Register, load_settings
from ..federation.serving import read_serving
from ..store import Store

_BIN = Path(sys.executable).parent
_HOST = "127.0.0.1"
_START_S = 120.0
_STOP_S = 15.0
_AT_ONCE = 2  # commands side by side; each starts a Python of its own
_SAMPLE_S = 1.0


class DemoFederation:
    """One federation under one folder; `found` makes it, `bring_up` and `shut_down` start and end its processes."""

    def __init__(self, folder: Path, sites: Sequence[str], aggregators: Sequence[str], *, page: str = "none") -> None:
        """Takes the folder, the nodes, and the port of the operator's page, if there shall be one."""
        self.folder, self.sites, self.aggregators = folder, tuple(sites), tuple(aggregators)
        self.home = folder / "coordinator"
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self.page = page
        self._memory = MemoryPeak()

    @property
    def nodes(self) -> tuple[str, ...]:
        """Names of all nodes, each once: a site may also aggregate."""
        return tuple(dict.fromkeys((*self.sites, *self.aggregators)))

    @property
    def is_founded(self) -> bool:
        """True if `found` was completed."""
        return (self.folder / "founded").exists()

    def node_home(self, name: str) -> Path:
        """Home folder of a node, which no other process reads."""
        return self.folder / "nodes" / name

    def found(
        self,
        name: str,
        site_toml: Mapping[str, str],
        study_toml: Path,
        *,
        unprotected: bool = False,
        runs: int = 1,
        init: Sequence[str] = (),
    ) -> str:
        """Makes the federation: init, invitations, enrolments, policies, study, approvals. Returns the study's hash.

        Args:
            unprotected: True to let every site approve a study without privacy.
            runs: the number of runs that every node approves.
            init: more options of `coordinator init`.
        """
        gate, superlink, *party_ports = free_ports(2 + len(self.aggregators))
        self.command("coordinator", "init", "--home", str(self.home), "--federation", name, "--host", _HOST,
                     "--port", str(gate), "--superlink-port", str(superlink), *init)  # fmt: skip
        self.start_coordinator()
        addresses = {party: f"{_HOST}:{port}" for party, port in zip(self.aggregators, party_ports, strict=True)}
        fingerprints = self._each(lambda node: self._enrol(node, addresses.get(node)), self.nodes)
        spoken = dict(zip(self.nodes, fingerprints, strict=True))
        for site, text in site_toml.items():
            write_private(self.node_home(site) / "site.toml", text.encode())
        # Each aggregator confirms each site's fingerprint, as people do by telephone.
        confirmed = [word for site in self.sites for word in ("--confirm", f"{site}={spoken[site]}")]
        study_hash = self.add_study(study_toml, unprotected=unprotected, runs=runs, confirmed=confirmed)
        write_private(self.folder / "founded", study_hash.encode())
        return study_hash

    def add_study(
        self, study_toml: Path, *, unprotected: bool = False, runs: int = 1, confirmed: Sequence[str] = ()
    ) -> str:
        """Makes a study that every node approves, as `found` says; returns its hash."""
        study_hash = self._create_study(study_toml)
        consent = ["--yes", "--runs", str(runs), *(["--unprotected"] if unprotected else [])]

        def approve(node: str) -> str:
            heard = confirmed if node in self.aggregators else []
            return self.client(node, "study", "approve", study_hash, *heard, *consent)

        self._each(approve, self.nodes)
        return study_hash

    def bring_up(self) -> None:
        """Starts every process that is not running."""
        self._memory.start()
        self.start_coordinator()
        for node in self.nodes:
            self.start_node(node)

    def start_node(self, node: str, *, page: str = "none") -> None:
        """Starts a node's daemon, with its site's page at a port, if there shall be one."""
        self._spawn(node, "client-node", "run", "--home", str(self.node_home(node)), "--page", page)

    def start_coordinator(self) -> None:
        """Starts `coordinator serve` and waits until its gate answers."""
        if "coordinator" in self._children:
            return
        self._spawn("coordinator", "coordinator", "serve", "--home", str(self.home), "--page", self.page)
        port = json.loads((self.home / "settings.json").read_text())["port"]
        deadline = time.monotonic() + _START_S
        while not is_open(port):
            if self._children["coordinator"].poll() is not None or time.monotonic() > deadline:
                raise DemoFailed(f"the coordinator did not start; see {self.log('coordinator')}")
            time.sleep(0.1)

    def kill(self, name: str) -> None:
        """Ends a process as a power cut would, unless it was ended before; `coordinator` is one of the names."""
        if child := self._children.pop(name, None):
            child.kill()
            child.wait()

    def pid(self, name: str) -> int:
        """Process id of a running process."""
        return self._children[name].pid

    def is_alive(self, name: str) -> bool:
        """True if the process was started and has not ended."""
        child = self._children.get(name)
        return child is not None and child.poll() is None

    def check(self) -> None:
        """Raises `DemoFailed` if a process has ended."""
        for name, child in self._children.items():
            if child.poll() is not None:
                raise DemoFailed(f"{name} ended with {child.returncode}; see {self.log(name)}")

    def link(self) -> str:
        """Makes a link to the operator's page, once it is there."""
        deadline = time.monotonic() + _START_S
        while not ((serving := read_serving(self.home)) and serving.page):
            if time.monotonic() > deadline:
                raise DemoFailed(f"the page did not start; see {self.home / 'page.log'}")
            time.sleep(0.2)
        return self.operator("page").strip()

    def shut_down(self) -> None:
        """Ends every process that this federation started, nodes first."""
        self._memory.stop()
        for name in reversed(self._children):
            self._children[name].terminate()
        for child in self._children.values():
            try:
                child.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        self._children.clear()

    @property
    def peak_memory(self) -> int:
        """Peak memory of all processes together, in bytes; shared pages count for each process."""
        return self._memory.peak

    def log(self, name: str) -> Path:
        """Path of the log with a process's output."""
        return self.folder / "logs" / f"{name}.log"

    def command(self, program: str, *arguments: str) -> str:
        """Runs a command to its end and returns its output. Raises `DemoFailed` with the command's message."""
        done = subprocess.run(self.words(program, arguments), capture_output=True, text=True, env=environment())
        if done.returncode != 0:
            words = " ".join((program, *arguments[:3]))
            raise DemoFailed(f"`{words}` failed: {(done.stderr or done.stdout).strip()[-2000:]}")
        return done.stdout

    def words(self, program: str, arguments: Sequence[str]) -> list[str]:
        """Returns the command line of a program."""
        return [str(_BIN / program), *arguments]

    def client(self, node: str, *arguments: str) -> str:
        """Runs a `client-node` command on a node's home."""
        return self.command("client-node", *arguments, "--home", str(self.node_home(node)))

    def operator(self, *arguments: str) -> str:
        """Runs a `coordinator` command on the federation's home."""
        return self.command("coordinator", *arguments, "--home", str(self.home))

    def _enrol(self, node: str, party_address: str | None) -> str:
        """Enrols a node; returns the fingerprint of its key."""
        roles: tuple[Role, ...] = (
            *(("train",) if node in self.sites else ()),
            *(("aggregate",) if node in self.aggregators else ()),
        )
        with closing(Store.open(self.home)) as store:  # an operator types: coordinator site invite
            code = Register(store, Pki.load(self.home)).invite(node, roles, load_settings(self.home).address)
        address = [] if party_address is None else ["--party-address", party_address]
        return str(json.loads(self.client(node, "enroll", code, *address, "--json"))["fingerprint"])

    def _create_study(self, study_toml: Path) -> str:
        """Makes a signed study, and returns its hash; here, as another process would import a model's code anew."""
        from ..studies.create import create_study

        with closing(Store.open(self.home)) as store:  # an operator types: coordinator study create --accept
            return create_study(store, Pki.load(self.home), self.home, study_toml).study_hash

    def _each(self, do: Callable[[str], str], names: Sequence[str]) -> list[str]:
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            return list(pool.map(do, names))

    def _spawn(self, name: str, program: str, *arguments: str) -> None:
        self.log(name).parent.mkdir(parents=True, exist_ok=True)
        with self.log(name).open("ab") as log:
            self._children[name] = subprocess.Popen(
                self.words(program, arguments), stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                env=environment(), start_new_session=True, preexec_fn=die_with_parent,
            )  # fmt: skip


class MemoryPeak:
    """Samples the memory of this process and its descendants."""

    def __init__(self) -> None:
        self.peak = 0
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begins sampling in a thread of its own."""
        self._thread = threading.Thread(target=self._sample, name="confide-memory", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends sampling."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()

    def _sample(self) -> None:
        own = psutil.Process(os.getpid())
        while not self._ended.wait(_SAMPLE_S):
            total = 0
            for process in (own, *own.children(recursive=True)):
                try:
                    total += process.memory_info().rss
                except psutil.Error:  # ended meanwhile
                    continue
            self.peak = max(self.peak, total)


def environment() -> dict[str, str]:
    """Environment of child processes: one thread each, since all share this machine."""
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


def is_open(port: int) -> bool:
    """True if some process listens on this loopback port."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((_HOST, port)) == 0
