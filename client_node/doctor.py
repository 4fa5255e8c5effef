"""The check-up of a node: everything that can be looked at without a run, each finding with its remedy.

Findings count records and stay at the site. Nothing is changed; the coordinator's studies are fetched, as `study list`
does. To add a check, write a function and add it to `CHECKS`.
"""

import socket
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from cryptography import x509

from ..models.backbones import loading
from ..models.errors import ModelError
from ..models.rounding import rounded_up
from ..mpc.errors import MpcError
from ..privacy.errors import PrivacyError
from . import daemon, ledger_head
from .approval import charges, confirmed_sites, site_budget, study_decisions, table_check
from .data import kept_files
from .data.known_units import KnownUnits
from .enrolment import Enrolment, NodeIdentity, protocol
from .errors import ClientNodeError
from .health import Finding, certificate_dates, disk_space, examine, gate_at, privacy_of, sealed_keys, versions
from .policy import SitePolicy, load_policy, site_policy

_SECRETS = ("keys", "party", "aggregator", kept_files.FOLDER)
_CRYPTEN = "from confide.mpc.crypten import runtime"
_IMPORT_S = 120


@dataclass(frozen=True)
class _Node:
    """A node's home, of which checks read what they need."""

    home: Path

    @property
    def is_enrolled(self) -> bool:
        return (self.home / "enrolment.json").exists()

    @cached_property
    def enrolment(self) -> Enrolment:
        return Enrolment.load(self.home)

    def has_role(self, role: str) -> bool:
        return self.is_enrolled and role in self.enrolment.roles

    @property
    def has_policy(self) -> bool:
        """True if site.toml describes a site, or has to."""
        return site_policy.describes_site(self.home)

    @cached_property
    def policy(self) -> SitePolicy:
        return load_policy(self.home)

    @property
    def is_served(self) -> bool:
        return bool(daemon.status(self.home)["running"])


def examine_node(home: Path) -> list[Finding]:
    """Checks everything about the node at `home` that can be checked without a run."""
    return examine(_Node(home), CHECKS, (ClientNodeError, ModelError, MpcError, PrivacyError, OSError))


def _files(node: _Node) -> Iterable[Finding]:
    return privacy_of(node.home, _SECRETS)


def _keys(node: _Node) -> Iterable[Finding]:
    if not node.is_enrolled:
        return []
    NodeIdentity.load(node.home)
    return [Finding("keys", "ok", "both can be read, by their owner alone"), sealed_keys(node.home, "client-node")]


def _enrolment(node: _Node) -> Iterable[Finding]:
    if not node.is_enrolled:
        return [Finding("enrolment", "failed", "in no federation yet", "client-node enroll CODE")]
    roles = " and ".join(node.enrolment.roles)
    return [Finding("enrolment", "ok", f"{node.enrolment.name}, to {roles}, at {node.enrolment.address}")]


def _coordinator(node: _Node) -> Iterable[Finding]:
    if not node.is_enrolled:
        return []
    ca_pem = node.enrolment.ca_pem()
    ends = [
        certificate_dates("federation's CA", each, "ask the operator for its successor")
        for each in x509.load_pem_x509_certificates(ca_pem.encode())
    ]
    return [*ends, *gate_at(node.enrolment.address, ca_pem, protocol.CA_PATH, proxy=node.enrolment.proxy)]


def _studies(node: _Node) -> Iterable[Finding]:
    if not node.is_enrolled:
        return []
    fetched = study_decisions.fetch(node.home)
    known = study_decisions.overview(node.home)
    mine = [each for each in known if each.roles]
    found = [Finding("studies", "ok", f"{len(known)} known, {len(mine)} with a part for this node")]
    if fetched.unreachable:
        found = [Finding("studies", "failed", fetched.unreachable, "the line on the coordinator says more")]
    found += [Finding("studies", "failed", why, "tell the operator") for why in fetched.turned_away]
    for each in mine:
        if doubts := confirmed_sites.doubts(node.home, each.study):
            told = f"{len(doubts)} in doubt for {each.study.name}, the first: {doubts[0]}"
            found.append(Finding("confirmed sites", "warning", told))
        if each.decision is None:
            found.append(Finding("approvals", "warning", f"{each.study.name} waits for a decision",
                                 "client-node study show, then study approve HASH"))  # fmt: skip
        elif each.decision == "approved" and len(each.used) >= each.runs:
            begun = f"{each.study.name}: {len(each.used)} of {each.runs} runs begun"
            found.append(Finding("approvals", "warning", begun, "study approve HASH, if another run is wanted"))
        elif each.decision == "expired":
            found.append(Finding("approvals", "warning", f"{each.study.name}: its approval has expired",
                                 "study approve HASH, if it shall go on"))  # fmt: skip
        else:
            found.append(Finding("approvals", "ok", f"{each.study.name}: {each.decision}"))
    return found


def _policy(node: _Node) -> Iterable[Finding]:
    if node.has_policy:
        return [
            Finding("site.toml", "ok", f"data set {node.policy.data.name}, cap epsilon {node.policy.budget.epsilon:g}")
        ]
    if node.has_role("train"):
        return [Finding("site.toml", "failed", "missing: nothing can run", "client-node init TABLE")]
    if (node.home / site_policy.FILE).exists():
        site_policy.load_node_policy(node.home)
        return [Finding("site.toml", "ok", "limits of a node that only aggregates")]
    return []


def _table(node: _Node) -> Iterable[Finding]:
    if not node.has_policy:
        return []
    report = table_check.check_table(node.home)
    if not report.is_fit:
        first = [*map(str, report.problems), *report.objections][0]
        remedy = table_check.check_command(node.policy.data.source)
        return [Finding("table", "failed", f"{report.problem_count} problem(s), the first: {first}", remedy)]
    detail = f"{report.rows:,} rows of {report.units:,} units"
    if node.policy.budget.delta > 1 / report.units:
        most = f"delta {node.policy.budget.delta:g} is above 1 in {report.units:,} units"
        return [Finding("table", "failed", most, "lower it: client-node budget set")]
    return [Finding("table", "ok", detail)]


def _backbone(node: _Node) -> Iterable[Finding]:
    if not node.has_policy or not node.is_enrolled:
        return []
    folder = node.policy.backbone.directory
    if not folder.is_dir():
        return [Finding("backbone", "warning", f"{folder} is no folder", "put the operator's backbone folder there")]
    here = loading.backbone_hash(folder)
    wanted = [each.study for each in study_decisions.overview(node.home)
              if "train" in each.roles and each.decision == "approved"]  # fmt: skip
    others = [study for study in wanted if study.backbone_hash != here]
    if not others:
        return [Finding("backbone", "ok", f"{folder}, hash {here[:12]}...")]
    return [
        Finding(
            "backbone",
            "failed",
            f"study {study.name} names {study.backbone_hash[:12]}..., {folder} has {here[:12]}...",
            "ask the operator for the folder again",
        )
        for study in others
    ]


def _ledger(node: _Node) -> Iterable[Finding]:
    if not node.has_role("train"):
        return []
    if not (node.home / charges.LEDGER_FILE).exists():
        if not any((node.home / trace).exists() for trace in (ledger_head.FILE, ledger_head.PEOPLE_FILE)):
            return [Finding("ledger", "ok", "nothing was charged yet")]
        return [Finding("ledger", "failed", f"{charges.LEDGER_FILE} is gone", "docs/site.md, Ledger lost")]
    with charges.whole_ledger(node.home) as ledger:
        entries = ledger.head.seq + 1
    found = [Finding("ledger", "ok", f"{entries} entries, each signed and in its chain")]
    for account in site_budget.accounts(node.home):
        if account.budget and account.spent and account.spent.guaranteed >= account.budget.epsilon:
            spent = f"{account.dataset}: {rounded_up(account.spent.guaranteed)} of {account.budget.epsilon:g} is spent"
            found.append(Finding("budget", "warning", spent, "nothing more runs on these people under this cap"))
    return found


def _known_people(node: _Node) -> Iterable[Finding]:
    if not node.has_role("train"):
        return []
    known = ", ".join(map(str, KnownUnits(node.home).accounts()))
    return [Finding("known people", "ok", f"noted under {known}" if known else "nobody was noted yet")]


def _party(node: _Node) -> Iterable[Finding]:
    if not node.has_role("aggregate"):
        return []
    certificate = x509.load_pem_x509_certificate((node.home / protocol.PARTY_FOLDER / "party.pem").read_bytes())
    renew = "enrol under a new name: studies name this certificate"
    return [certificate_dates("aggregator's certificate", certificate, renew), _party_address(node), _crypten()]


def _party_address(node: _Node) -> Finding:
    name, address = "aggregator's address", node.enrolment.party_address or ""
    listen = site_policy.load_node_policy(node.home).party.listen or address
    host, _, port = listen.rpartition(":")
    if node.is_served:
        return Finding(name, "ok", f"{address}; the daemon runs and takes it in each run")
    try:
        with socket.create_server((host.strip("[]"), int(port)), family=_family(host)):
            where = address if listen == address else f"{listen}, where {address} has to lead,"
            return Finding(name, "ok", f"{where} is free; whether the other two reach it shows in the first run only")
    except (OSError, ValueError) as err:
        remedy = (
            "it must be an address of this machine and a free port; behind a router or in a container, name one as "
            "party.listen in site.toml"
        )
        return Finding(name, "failed", f"cannot listen on {listen!r}: {err}", remedy)


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _crypten() -> Finding:
    command = [sys.executable, "-c", _CRYPTEN]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_IMPORT_S)
    except subprocess.TimeoutExpired:
        return Finding("CrypTen", "failed", f"not imported within {_IMPORT_S} s", "look at this machine's load")
    if done.returncode:
        why = (done.stderr.strip().splitlines() or ["no reason was told"])[-1]
        return Finding("CrypTen", "failed", why, "install confide anew: docs/install.md")
    return Finding("CrypTen", "ok", "can be imported")


def _disk(node: _Node) -> Iterable[Finding]:
    return disk_space(node.home) if node.home.is_dir() else []


def _versions(node: _Node) -> Iterable[Finding]:
    del node
    return versions("torch", "flwr", "transformers", "cryptography")


def _daemon(node: _Node) -> Iterable[Finding]:
    if not node.is_enrolled:
        return []
    if node.is_served:
        return [Finding("daemon", "ok", "runs")]
    return [Finding("daemon", "warning", "does not run, so this node answers nothing", "client-node run")]


CHECKS: tuple[Callable[[_Node], Iterable[Finding]], ...] = (
    _files, _keys, _enrolment, _coordinator, _studies, _policy, _table, _backbone, _ledger, _known_people, _party,
    _disk, _versions, _daemon,
)  # fmt: skip
