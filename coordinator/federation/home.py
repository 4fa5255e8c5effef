"""The coordinator's home folder: it holds all files of one federation, and the few settings of its server."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import ConfigDict, TypeAdapter, ValidationError

from ...client_node.files import write_private
from ..errors import Conflict, NotFound, StateDamaged
from ..store import Store
from .pki import Pki

_SETTINGS = "settings.json"


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
        Conflict: `home` holds a federation already; it is not changed.
    """
    if (home / _SETTINGS).exists():
        raise Conflict(f"{home} holds a federation already; nothing was changed. Use another --home for a new one")
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
