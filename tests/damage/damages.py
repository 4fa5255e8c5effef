"""Ways in which a state file is damaged, and the commands that are tried on it."""

from collections.abc import Callable
from pathlib import Path

Damage = Callable[[Path], object]


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _flip(path: Path) -> None:
    """Flips the highest bit of a byte in the middle: text is no text any more.

    Not of a line's end: one key in 256 is shorter and has it there, and readers of base64 pass over it.
    """
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle + (data[middle : middle + 1] == b"\n")] ^= 0x80
    path.write_bytes(bytes(data))


def _replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES: dict[str, Damage] = {
    "empty": lambda path: path.write_bytes(b""),
    "cut": _cut,
    "flipped": _flip,
    "other": lambda path: path.write_bytes(b"[1]\n"),  # JSON of another type, and no key, certificate or database
    "folder": _replace_by_folder,  # no user can read it, not even root
}

_SPOKEN = "ABCD-EF23-ABCD-EF23-ABCD-EF23-ABCD-EF23"
NODE_COMMANDS = (
    "status",
    "page",
    "traffic",
    "proxy",
    "decisions",
    "decisions --verify",
    "witness",
    "witness --forget --yes",
    "study list",
    "study list --offline",
    "study show thyroid",
    "study forget thyroid",
    "study approve {study} --yes",
    "study approve {study} --yes --runs 2",
    "study revoke thyroid --yes",
    "study audit thyroid",
    "data check {data}",
    "data check {data} --study thyroid",
    "budget show",
    "budget set --epsilon 20 --delta 1e-5 --yes",
    "budget report --json",
    "budget plan thyroid",
    "budget export {out}",
    "budget import {ledger}",
    "budget recover --yes",
    f"site confirm new={_SPOKEN}",
    "keys rotate",
    "ca show",
    "ca fetch",
    "ca accept {data} --yes",
    "keys rotate --identity",
    "keys show",
    "keys seal --passphrase-file {passphrase}",
    "keys unseal --passphrase-file {passphrase}",
    "keys token pkcs11:token=none?module-path=/nowhere/module.so",
    "site remove east",
    "site list",
    "policy show",
    "policy explain thyroid",
    "enroll 127.0.0.1:1/" + "A" * 77,
    "init {data}",
    "doctor",
    "backup {out}",
)
COORDINATOR_COMMANDS = (
    "init",
    "status",
    "page",
    "site invite new",
    "site list",
    "site revoke east --yes",
    "site leave east --yes",
    "certificate use {draft} {draft} --ca {draft}",
    "ca rotate",
    "ca status",
    "keys status",
    "ca finish --yes",
    "ca cancel",
    "ca statement {out}",
    "study check {draft}",
    "study init {draft} --units 100",
    "study create {draft}",
    "study list",
    "study show thyroid",
    "study show thyroid --json",
    "run start thyroid --again",
    "run list",
    "run rounds {run}",
    "run watch {run}",
    "run stop {run}",
    "run resume {run}",
    "run abandon {run} --yes",
    "run metrics {run}",
    "budget report",
    "budget export east {out}",
    "adapter export {run} {out} --override-audit no",
    "adapter merge {run} {out} --override-audit no",
    "adapter deploy {run} {out} --target torch --override-audit no",
    "adapter choose {run} --clients 2",
    "adapter evaluate {run} --data {data} --unit-column patient_id",
    "adapter routing {run} --tokens 8",
    "adapter map {run} --tokens 8",
    "audit privacy {run}",
    "audit log",
    "audit verify",
    "audit export {out}",
    "operator list",
    "operator add anna --role admin",
    "operator renew anna",
    "operator revoke anna --yes",
    "operator recover anna",
    "keys seal --passphrase-file {passphrase}",
    "keys unseal --passphrase-file {passphrase}",
    "keys rotate --yes",
    "doctor",
    "backup {out}",
)

SLOW = {"study audit thyroid", "audit privacy {run}"}  # seconds where nothing is damaged: tried on a few damages
SERVERS = {"run", "serve"}  # started as processes of their own
WITHOUT_HOME = {
    "demo", "study compare", "budget verify", "adapter combine", "adapter carry", "adapter ask", "adapter serve",
    "backbone build", "backbone import", "backbone moments", "backbone compress", "backbone list", "backbone show",
    "backbone routing", "restore", "chart read", "chart build", "space build", "search", "health", "simulate",
}  # fmt: skip
