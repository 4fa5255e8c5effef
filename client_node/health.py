"""Findings of a check-up, each with its remedy, and the checks that nodes and the coordinator share."""

import datetime as dt
import importlib
import shutil
import stat
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from importlib import metadata
from pathlib import Path
from typing import Literal, TypeVar

import httpx
from cryptography import x509

import confide

from . import passphrase, secret_files
from .enrolment import outbound

State = Literal["ok", "warning", "failed"]
C = TypeVar("C")

_LEAST_BYTES, _FEW_BYTES = 2**30, 10 * 2**30  # an aggregator stops below the first
_SOON = dt.timedelta(days=30)  # before a certificate ends
_SKEW_S, _SLIGHT_SKEW_S = 300.0, 30.0  # the gate refuses beyond the first
_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    check: str
    state: State
    detail: str
    remedy: str = ""  # what to do; "" if nothing is to be done


def examine(
    context: C, checks: Sequence[Callable[[C], Iterable[Finding]]], errors: tuple[type[Exception], ...]
) -> list[Finding]:
    """Runs every check. One that raises one of `errors`, or fails to parse a file, has failed; the others go on."""
    found: list[Finding] = []
    for check in checks:
        try:
            found += check(context)
        except errors as err:
            found.append(Finding(_name(check), "failed", str(err)))
        except ValueError as err:  # of whoever parses: PEM, JSON, UTF-8
            found.append(Finding(_name(check), "failed", f"a file is damaged: {err}", "restore it from a backup"))
    return found


def sealed_keys(home: Path, command: str) -> Finding:
    """Tells whether the secret keys of a home are sealed.

    Args:
        command: of whoever owns the home, for the remedy.

    Raises:
        FileDamaged, KeysSealed: it cannot be told.
    """
    found, is_given = secret_files.standing(home), passphrase.given() is not None
    again = f"repeat it: {command} keys seal, or keys unseal"
    if found == "sealed":
        return Finding("sealed keys", "ok", "sealed with a passphrase")
    if found != secret_files.NOT_ENCRYPTED:
        return Finding("sealed keys", "warning", f"{found}: a command was cut short", again)
    if is_given:
        return Finding("sealed keys", "warning", "a passphrase is given, and the keys are not sealed with it",
                       f"{command} keys seal, if nobody has unsealed them on purpose")  # fmt: skip
    return Finding("sealed keys", "ok", "not encrypted; who wants it otherwise: docs/keys.md")


def _name(check: Callable[[C], Iterable[Finding]]) -> str:
    return check.__name__.strip("_").replace("_", " ")


def privacy_of(home: Path, secret: Sequence[str]) -> list[Finding]:
    """Checks that nobody else of this machine can read the home folder, or a file below its `secret` folders.

    Raises:
        OSError: a folder cannot be read.
    """
    if not home.is_dir():
        return [Finding("home folder", "failed", f"{home} is no folder", "name it with --home")]
    found = []
    if stat.S_IMODE(home.stat().st_mode) & 0o077:
        found.append(Finding("home folder", "warning", f"others can list {home}", f"chmod 700 {home}"))
    open_files = [
        path
        for folder in secret
        for path in sorted((home / folder).rglob("*"))
        if path.is_file() and path.suffix not in (".crt", ".pem") and stat.S_IMODE(path.stat().st_mode) & 0o077
    ]
    found += [
        Finding("secret files", "failed", f"{path} can be read by others", f"find out who did, then: chmod 600 {path}")
        for path in open_files
    ]
    return found or [Finding("home folder", "ok", f"{home} is its owner's alone")]


def disk_space(home: Path) -> list[Finding]:
    """Checks that there is room. Raises OSError."""
    free = shutil.disk_usage(home).free
    detail, remedy = f"{free / 2**30:,.1f} GiB free for {home}", "make room before the next run"
    if free < _LEAST_BYTES:
        return [Finding("disk space", "failed", detail, remedy)]
    return [
        Finding("disk space", "warning" if free < _FEW_BYTES else "ok", detail, remedy if free < _FEW_BYTES else "")
    ]


def versions(*modules: str) -> list[Finding]:
    """Tells the versions of Python, of this program, and of the modules that it needs and imports on the way."""
    said = [f"Python {sys.version.split()[0]}", f"confide {confide.__version__}"]
    missing = []
    for module in modules:
        try:
            importlib.import_module(module)
            said.append(f"{module} {metadata.version(module)}")
        except (ImportError, OSError) as err:  # OSError: a library of it cannot be loaded
            missing.append(f"{module} ({err})")
    found = [Finding("versions", "ok", ", ".join(said))]
    if missing:
        remedy = "install confide with its dependencies into this environment anew"
        found.append(Finding("versions", "failed", f"cannot be imported: {'; '.join(missing)}", remedy))
    return found


def certificate_dates(name: str, certificate: x509.Certificate, remedy: str) -> Finding:
    """Checks that a certificate is in its time, and for a month to come."""
    now, begins, ends = dt.datetime.now(dt.UTC), certificate.not_valid_before_utc, certificate.not_valid_after_utc
    detail = f"from {begins:%Y-%m-%d} to {ends:%Y-%m-%d}"
    if not begins <= now < ends:
        return Finding(name, "failed", f"valid {detail}, and today is {now:%Y-%m-%d}", remedy)
    if ends - now < _SOON:
        return Finding(name, "warning", f"valid {detail}: {(ends - now).days} days are left", remedy)
    return Finding(name, "ok", f"valid {detail}")


def gate_at(address: str, ca_pem: str, path: str, *, proxy: str | None = None) -> list[Finding]:
    """Asks a coordinator's gate for its CA certificate, and checks its own certificate and the clocks by the answer.

    Raises:
        ProxyInvalid: `proxy` is no setting.
    """
    try:
        with (
            outbound.open_client(address, outbound.trusting(ca_pem), proxy, _TIMEOUT_S) as client,
            client.stream("GET", f"https://{address}{path}") as response,
        ):
            shown = response.extensions["network_stream"].get_extra_info("ssl_object").getpeercert(True)
            told = response.headers.get("date")
    except (httpx.HTTPError, httpx.InvalidURL) as err:
        remedy = "is `coordinator serve` running, the address right, the port open in every firewall between?"
        if trouble := outbound.certificate_trouble(err):
            return [Finding("coordinator", "failed", f"{address}: {trouble}", "what the line says")]
        if isinstance(err, httpx.TransportError):
            trouble = outbound.connection_trouble(err, proxy)
        return [Finding("coordinator", "failed", f"{address}: {trouble or type(err).__name__}", remedy)]
    found = [Finding("coordinator", "ok", f"{address} answers over TLS 1.3 with a certificate of this federation")]
    found.append(
        certificate_dates("coordinator's certificate", x509.load_der_x509_certificate(shown), "the operator renews it")
    )
    return [*found, *([_clock(parsedate_to_datetime(told))] if told else [])]


def _clock(theirs: dt.datetime) -> Finding:
    off = (dt.datetime.now(dt.UTC) - theirs).total_seconds()
    detail = f"{abs(off):.0f} s {'before' if off > 0 else 'behind'} the coordinator's"
    if abs(off) > _SKEW_S:
        return Finding("clock", "failed", detail, f"the gate refuses more than {_SKEW_S:.0f} s: set up NTP")
    if abs(off) > _SLIGHT_SKEW_S:
        return Finding("clock", "warning", detail, "set up NTP")
    return Finding("clock", "ok", f"within {_SLIGHT_SKEW_S:.0f} s of the coordinator's")
