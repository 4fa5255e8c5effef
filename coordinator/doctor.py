"""The check-up of a coordinator: everything that can be looked at without a run, each finding with its remedy.

To add a check, write a function and add it to `CHECKS`.
"""

import socket
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from cryptography import x509

from ..client_node.enrolment import protocol
from ..client_node.errors import ClientNodeError
from ..client_node.health import (
    Finding,
    certificate_dates,
    disk_space,
    examine,
    gate_at,
    privacy_of,
    sealed_keys,
    versions,
)
from ..client_node.study.terms import NUM_AGGREGATORS
from ..models.backbones import loading
from ..models.errors import ModelError
from .errors import CoordinatorError
from .federation import Pki, Settings, load_settings, members, opened_store
from .given import is_for, names_of
from .run.overview import is_silent
from .studies.catalogue import load_study, study_start

_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_HERE = ("127.0.0.1", "localhost", "0.0.0.0", "")  # noqa: S104
_RENEW = "renew it: docs/operator.md, Certificates"


@dataclass(frozen=True)
class _Federation:
    """A federation's home, of which checks read what they need."""

    home: Path

    @property
    def is_founded(self) -> bool:
        return (self.home / "settings.json").exists()

    @cached_property
    def settings(self) -> Settings:
        return load_settings(self.home)

    @cached_property
    def pki(self) -> Pki:
        return Pki.load(self.home)


def examine_coordinator(home: Path) -> list[Finding]:
    """Checks everything about the federation at `home` that can be checked without a run."""
    return examine(_Federation(home), CHECKS, (CoordinatorError, ClientNodeError, ModelError, OSError))


def _files(of: _Federation) -> Iterable[Finding]:
    return privacy_of(of.home, ("pki", "runs"))


def _settings(of: _Federation) -> Iterable[Finding]:
    settings = of.settings
    said = f"{settings.federation}, for sites at {settings.address}, listening on {settings.listen}:{settings.port}"
    found = [Finding("settings", "ok", said)]
    host = settings.address.rpartition(":")[0].strip("[]")
    try:
        socket.getaddrinfo(host, settings.port)
    except OSError as err:
        found.append(Finding("address", "failed", f"{host} does not resolve: {err}", "correct the name server's entry"))
    if settings.listen in _LOOPBACK and host not in _LOOPBACK:
        found.append(
            Finding("address", "warning", f"sites dial {host}, and the gate listens on {settings.listen} only",
                    "a proxy on this machine must pass connections on; else found it anew with --listen 0.0.0.0")
        )  # fmt: skip
    return found


def _keys(of: _Federation) -> Iterable[Finding]:
    if not of.is_founded:
        return []
    found = [sealed_keys(of.home, "coordinator")]
    if of.pki.signing.is_cut_off:
        said = "a rotation of it was cut off, and nobody goes by the next one yet"
        found.append(Finding("signing key", "warning", said, "coordinator keys rotate"))
    return found


def _certificates(of: _Federation) -> Iterable[Finding]:
    if not of.is_founded:
        return []
    server = x509.load_pem_x509_certificate(of.pki.certificate_path.read_bytes())
    authority = x509.load_pem_x509_certificate(of.pki.ca_path.read_bytes())
    found = [
        certificate_dates("CA certificate", authority, "give it a successor: coordinator ca rotate"),
        certificate_dates("gate's certificate", server, _RENEW),
    ]
    host = of.settings.address.rpartition(":")[0].strip("[]")
    if not is_for(server, host):
        known = ", ".join(sorted(names_of(server)))
        found.append(Finding("gate's certificate", "failed", f"it is for {known}, not {host}", _RENEW))
    return found


def _database(of: _Federation) -> Iterable[Finding]:
    if not of.is_founded:
        return []
    with opened_store(of.home) as store:
        said, name = store.examine(), store.name
    if said != "ok":
        return [Finding("database", "failed", said, "stop `serve` and restore it from a backup")]
    return [Finding("database", "ok", f"{name}: whole, and of this version")]


def _gate(of: _Federation) -> Iterable[Finding]:
    if not of.is_founded:
        return []
    settings = of.settings
    if _is_open(settings.listen, settings.port):
        # Nodes' doctors ask at the public address, which this machine may not reach itself.
        address = f"127.0.0.1:{settings.port}" if settings.listen in _HERE else settings.address
        return gate_at(address, of.pki.ca_path.read_text(), protocol.CA_PATH)
    found = [
        Finding("gate", "warning", "`serve` does not run: nothing is driven, nobody can enrol", "coordinator serve")
    ]
    if _is_open("127.0.0.1", settings.superlink_port):
        port = settings.superlink_port
        found.append(Finding("ports", "failed", f"another program has loopback port {port}", "free it, then serve"))
    return found


def _is_open(host: str, port: int) -> bool:
    reached = "127.0.0.1" if host in _HERE else "::1" if host == "::" else host
    try:
        with socket.create_connection((reached, port), timeout=5):
            return True
    except OSError:
        return False


def _nodes(of: _Federation) -> Iterable[Finding]:
    if not of.is_founded:
        return []
    with opened_store(of.home) as store:
        known = members.members(store)
        open_ = [node for node in store.nodes() if node.enrolled_at is None and node.revoked_at is None]
    expired = [node.name for node in open_ if (node.invite_expires or 0.0) < time.time()]
    enrolled = [node for node in known if node.state == "enrolled"]
    train, aggregate = (sum(role in node.roles.split(",") for node in enrolled) for role in ("train", "aggregate"))
    found = [Finding("nodes", "ok", f"{train} enrolled to train, {aggregate} to aggregate")]
    if train < 2 or aggregate < NUM_AGGREGATORS:
        found = [Finding("nodes", "warning", f"{found[0].detail}; a study needs 2 and {NUM_AGGREGATORS}",
                         "coordinator site invite NAME...")]  # fmt: skip
    waiting = [node.name for node in known if node.state == "invited" and node.name not in expired]
    if waiting:
        found.append(Finding("invitations", "warning", f"not used yet: {', '.join(waiting)}", "ask them"))
    if expired:
        again = f"coordinator site invite {' '.join(expired)}"
        found.append(Finding("invitations", "warning", f"expired: {', '.join(expired)}", again))
    return found


def _studies(of: _Federation) -> Iterable[Finding]:
    if not of.is_founded:
        return []
    with opened_store(of.home) as store:
        rows = store.studies()
    found = []
    for row in rows:
        study = load_study(row)
        folder = study_start(of.home, study).backbone
        name = f"study {row.name}"
        if not folder.is_dir():
            found.append(Finding(name, "failed", f"{folder} is no folder", "put its backbone back there"))
        elif loading.backbone_hash(folder) != study.backbone_hash:
            found.append(Finding(name, "failed", f"{folder} is another backbone than the study's", "put it back"))
        else:
            found.append(Finding(name, "ok", f"its start and its backbone are there, {row.hash[:12]}..."))
    return found


def _runs(of: _Federation) -> Iterable[Finding]:
    if not of.is_founded:
        return []
    with opened_store(of.home) as store:
        going_on = [run for run in store.runs() if not run.state.is_over]
    return [
        Finding(f"run {run.id}", "ok", f"{run.state}, driven")
        if not is_silent(run)
        else Finding(
            f"run {run.id}", "warning", f"{run.state}, and nobody drives it", "is `coordinator serve` running?"
        )
        for run in going_on
    ]


def _disk(of: _Federation) -> Iterable[Finding]:
    return disk_space(of.home) if of.home.is_dir() else []


def _versions(of: _Federation) -> Iterable[Finding]:
    del of
    return versions("torch", "flwr", "transformers", "cryptography")


CHECKS: tuple[Callable[[_Federation], Iterable[Finding]], ...] = (
    _files, _settings, _keys, _certificates, _database, _gate, _nodes, _studies, _runs, _disk, _versions,
)  # fmt: skip
