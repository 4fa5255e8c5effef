"""The coordinator's home folder: it holds all files of one federation, and the few settings of its server."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import ConfigDict, TypeAdapter, ValidationError

from ...client_node.enrolment import protocol
from ...client_node.files import write_private
from ..errors import Conflict, NotFound, StateDamaged
from ..store import Store
from .pki import Pki

_SETTINGS = "settings.json"
_OURS = ("pki", "coordinator.db", "coordinator.db-wal", "coordinator.db-shm")  # of an `init` that was cut short


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

    Raises:
        Conflict: `home` holds a federation or other files already, or settings are surely wrong; nothing is changed.
    """
    if (home / _SETTINGS).exists():
        raise Conflict(f"{home} holds a federation already; nothing was changed. Use another --home for a new one")
    if problems := _problems(home, settings):
        raise Conflict("nothing was made:\n  " + "\n  ".join(problems))
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    Pki.create(home, [settings.address.rpartition(":")[0]])
    Store.create(home).close()
    write_private(home / _SETTINGS, json.dumps(asdict(settings), indent=2).encode())


def _problems(home: Path, settings: Settings) -> list[str]:
    problems = []
    if not re.fullmatch(protocol.ADDRESS, settings.address):
        problems.append(
            f"{settings.address!r} is nothing that sites can dial; --host is a name or an address, --port a port"
        )
    if settings.port == settings.superlink_port:
        problems.append(
            f"port {settings.port} is meant for the gate and for the SuperLink; choose another one for either"
        )
    others = sorted(path.name for path in home.glob("[!.]*") if path.name not in _OURS)
    if others:
        problems.append(
            f"{home} holds other files ({', '.join(others[:3])}); a federation has a folder of its own: --home"
        )
    return problems


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
