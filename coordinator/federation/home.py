"""The coordinator's home folder: it holds all files of one federation, and the few settings of its server."""

import ipaddress
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

from pydantic import ConfigDict, Field, TypeAdapter

from ...client_node import secret_files
from ...client_node.files import read_json, write_private
from ..errors import Conflict, NotFound, StateDamaged
from ..given import read_given
from ..store import Store, audit_log, place
from ..store.actions import plain
from .pki import Pki

_SETTINGS = "settings.json"
_BEGUN = {
    "pki",
    secret_files.FILE,
    place.FILE,
    "coordinator.db",
    "coordinator.db-wal",
    "coordinator.db-shm",
    "lost+found",
    "serve.lock",
}
_LABEL = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)")
_MAX_BYTES = 2**16
_REMEDY = "It holds the federation's name, address and ports: put the file back from a backup"


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """Settings that `coordinator init` writes; `coordinator serve` reads them when it starts."""

    federation: str  # for people: stands on reports
    address: str  # host:port at which sites reach the gate
    listen: str  # host on which the gate listens
    port: int  # of the gate
    superlink_port: int  # of Flower's SuperLink, on loopback only
    # Connections of one address that show no enrolled key yet; 300 KiB each, and four times as many in all.
    strangers_per_address: Annotated[int, Field(ge=2, le=128)] = 32

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)


_SCHEMA = TypeAdapter(Settings)


def create_home(
    home: Path, settings: Settings, database: str | None = None, given: tuple[Path, Path, Path] | None = None
) -> None:
    """Makes keys, certificates, database and settings under `home`.

    An `init` that was cut short is completed.

    Args:
        database: the URL of an empty PostgreSQL database; None for SQLite in the home.
        given: files with the gate's certificate, its key and its CA, if others keep that; None for a CA of our own.

    Raises:
        Conflict: `home` holds a federation already or other files, the settings contradict each other, or the database
            or a certificate cannot be used; nothing was changed.
        StoreUnavailable: the database cannot be used just now.
    """
    if (home / _SETTINGS).exists():
        raise Conflict(f"{home} holds a federation already; nothing was changed. Use another --home for a new one")
    _refuse_unusable(settings)
    url = None if database is None else place.parse_database(database)
    if others := sorted(path.name for path in home.glob("*") if path.name not in _BEGUN):
        shown = ", ".join(others[:3]) + (" and more" if len(others) > 3 else "")
        raise Conflict(f"{home} holds other files ({shown}); nothing was changed. Use a folder that is new or empty")
    host = settings.address.rpartition(":")[0]
    checked = None if given is None else read_given(*given, host)
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    store = Store.create(home, url)
    try:
        pki = Pki.create(home, [host], checked)
        with store.session() as session:
            if audit_log.hold(session).seq < 0:  # else an `init` that was cut short had come so far
                named = {"federation": plain(settings.federation), "coordinator": pki.identity_hex}
                store.log_action(session, "federation.init", **named)
    finally:
        store.close()
    write_private(home / _SETTINGS, json.dumps(asdict(settings), indent=2).encode())


def is_founded(home: Path) -> bool:
    """True if `home` holds a federation, whole or damaged."""
    return (home / _SETTINGS).exists()


def load_settings(home: Path) -> Settings:
    """Loads the settings under `home`.

    Raises:
        NotFound: `coordinator init` was never run in `home`.
        StateDamaged: the file does not hold settings.
    """
    settings = read_json(home / _SETTINGS, _SCHEMA, remedy=_REMEDY, error=StateDamaged, max_bytes=_MAX_BYTES)
    if settings is None:
        raise NotFound(f"{home} holds no federation; run `coordinator init` first, or name its folder with --home")
    return settings


def _refuse_unusable(settings: Settings) -> None:
    if settings.port == settings.superlink_port:
        raise Conflict(f"--port and --superlink-port are both {settings.port}; nothing was made. Name two ports")
    hosts = {"--host": settings.address.rpartition(":")[0], "--listen": settings.listen}
    for option, host in hosts.items():
        if not _is_host(host):
            raise Conflict(
                f"{option} {host!r} is no name or address of a machine, such as fed.example.org or 192.0.2.7; nothing "
                "was made"
            )


def _is_host(text: str) -> bool:
    with suppress(ValueError):
        return bool(ipaddress.ip_address(text))
    labels = text.removesuffix(".").split(".")
    is_name = len(text) <= 253 and all(_LABEL.fullmatch(label) for label in labels)
    return is_name and not labels[-1].isdigit()  # 192.0.2.300 is neither


@contextmanager
def opened_store(home: Path) -> Iterator[Store]:
    """Opens the store of the federation under `home`, and closes it at the end.

    Raises:
        NotFound: there is no federation.
        Conflict: the database is of another version; nothing is changed.
        StateDamaged: the settings or the database are damaged.
        StoreUnavailable: the database cannot be used just now.
    """
    load_settings(home)
    store = Store.open(home)
    try:
        store.require_schema()
        yield store
    finally:
        store.close()
