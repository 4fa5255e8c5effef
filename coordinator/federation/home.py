"""The coordinator's home folder: it holds all files of one federation, and the few settings of its server."""

import ipaddress
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import ConfigDict, TypeAdapter, ValidationError

from ...client_node.files import write_private
from ..errors import Conflict, NotFound, StateDamaged
from ..store import Store
from .pki import Pki

_SETTINGS = "settings.json"
_BEGUN = {"pki", "coordinator.db", "coordinator.db-wal", "coordinator.db-shm", "lost+found"}
_LABEL = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)")


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """Settings that `coordinator init` fixes."""

    federation: str  # for people: stands on reports
    address: str  # host:port at which sites reach the gate
    listen: str  # host on which the gate listens
    port: int  # of the gate
    superlink_port: int  # of Flower's SuperLink, on loopback only

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)


_SCHEMA = TypeAdapter(Settings)


def create_home(home: Path, settings: Settings) -> None:
    """Makes keys, certificates, database and settings under `home`.

    An `init` that was cut short is completed.

    Raises:
        Conflict: `home` holds a federation already or other files, or the settings contradict each other; nothing was
            changed.
    """
    if (home / _SETTINGS).exists():
        raise Conflict(f"{home} holds a federation already; nothing was changed. Use another --home for a new one")
    _refuse_unusable(settings)
    if others := sorted(path.name for path in home.glob("*") if path.name not in _BEGUN):
        shown = ", ".join(others[:3]) + (" and more" if len(others) > 3 else "")
        raise Conflict(f"{home} holds other files ({shown}); nothing was changed. Use a folder that is new or empty")
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    Pki.create(home, [settings.address.rpartition(":")[0]])
    Store.create(home).close()
    write_private(home / _SETTINGS, json.dumps(asdict(settings), indent=2).encode())


def load_settings(home: Path) -> Settings:
    """Loads the settings under `home`.

    Raises:
        NotFound: `coordinator init` was never run in `home`.
        StateDamaged: the file does not hold settings.
    """
    path = home / _SETTINGS
    if not path.exists():
        raise NotFound(f"{home} holds no federation; run `coordinator init` first, or name its folder with --home")
    try:
        return _SCHEMA.validate_json(path.read_bytes())
    except ValidationError as err:
        problem = err.errors(include_input=False, include_url=False)[0]
        where = ".".join(map(str, problem["loc"])) or "file"
        raise StateDamaged(f"{path}: {where}: {problem['msg']}; put the file back from a backup") from err


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
    """
    load_settings(home)
    store = Store.open(home)
    try:
        store.require_schema()
        yield store
    finally:
        store.close()
