"""The place of a federation's database: a file of SQLite in its home, or a database of PostgreSQL that a URL names.

The URL holds no secret: who reads it in a list of processes, a settings file or an error learns no password. libpq
finds the password where it always does: in a password file (`passfile`, `PGPASSFILE` or `~/.pgpass`), in a service
file, or needs none because of a client certificate (`sslcert`, `sslkey`) or of the account behind a local socket.
"""

import ipaddress
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import ConfigDict, Field, TypeAdapter
from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from ...client_node.files import read_json, write_private
from ..errors import Conflict, StateDamaged

FILE = "database.json"  # under the home, where the database is none of SQLite
SQLITE_FILE = "coordinator.db"
DRIVER = "postgresql+psycopg"
_MAX_BYTES = 2**14
_REMEDY = "It says where the federation's database is: put the file back from a copy, or restore a backup"
_KEYS = {  # of libpq; `options`, passwords and what is not known here are left out on purpose
    "host", "hostaddr", "port", "passfile", "service", "sslmode", "sslrootcert", "sslcert", "sslkey", "sslcrl",
    "channel_binding", "require_auth", "gssencmode", "krbsrvname", "target_session_attrs", "connect_timeout",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Place:
    url: Annotated[str, Field(min_length=1, max_length=4096)]

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)


_SCHEMA = TypeAdapter(_Place)


def parse_database(text: str) -> URL:
    """Reads the URL of a PostgreSQL database, such as `postgresql://confide@db.example.org/confide?sslmode=verify-full`.

    Raises:
        Conflict: it is none, holds a password, or the way to the server is neither local nor `sslmode=verify-full`. The
            message repeats nothing of a password.
    """
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):  # whose text may repeat a password
        raise Conflict("the database is no URL such as postgresql://USER@HOST/NAME; nothing was made") from None
    if url.drivername not in ("postgresql", DRIVER):
        raise Conflict(
            f"a database of the kind {url.drivername!r} is not supported: name none for SQLite in the home folder, or "
            "postgresql://USER@HOST/NAME; nothing was made"
        )
    if url.password is not None or {"password", "sslpassword"} & set(url.query):
        raise Conflict(
            "the URL of the database holds a password, which others could read; leave it out, and put it into a "
            "password file of your own: ...?passfile=/etc/confide/pgpass, with the line HOST:PORT:NAME:USER:PASSWORD "
            "and mode 0600; nothing was made"
        )
    if unknown := sorted(set(url.query) - _KEYS):
        raise Conflict(f"the URL of the database has {unknown[0]!r}, which is not taken; nothing was made")
    if not url.database and "service" not in url.query:
        raise Conflict("the URL of the database names no database: postgresql://USER@HOST/NAME; nothing was made")
    if not _is_local(url) and url.query.get("sslmode") != "verify-full":
        raise Conflict(
            "the database is on another machine, or the URL does not say on which, so that others could read or change "
            "what is stored on its way: add sslmode=verify-full, and sslrootcert=FILE with the CA of its server; "
            "nothing was made"
        )
    return url.set(drivername=DRIVER)


def database_of(home: Path) -> URL:
    """Returns the URL of the database of the federation at `home`.

    Raises:
        StateDamaged: the file that says so is damaged.
    """
    found = read_json(home / FILE, _SCHEMA, remedy=_REMEDY, error=StateDamaged, max_bytes=_MAX_BYTES)
    if found is None:
        return URL.create("sqlite", database=str(home.resolve() / SQLITE_FILE))
    try:
        return parse_database(found.url)
    except Conflict as err:
        raise StateDamaged(f"{home / FILE} does not hold what belongs there. {_REMEDY} ({err})") from err


def note_database(home: Path, url: URL) -> None:
    """Writes down that the federation at `home` has its database at `url`."""
    write_private(home / FILE, json.dumps({"url": url.render_as_string(hide_password=True)}).encode())


def name_of(url: URL) -> str:
    """Names a database for people: the path of a file, or the database and its server."""
    if url.get_backend_name() == "sqlite":
        return str(url.database)
    at = ", ".join(_hosts(url)) or "the server of its service"
    return f"the database {url.database or url.query.get('service')} at {at}"


def _hosts(url: URL) -> list[str]:
    given = [url.host, url.query.get("host"), url.query.get("hostaddr")]
    texts = [text for each in given if each for text in ([each] if isinstance(each, str) else each)]
    return [host for text in texts for host in text.split(",")]


def _is_local(url: URL) -> bool:
    hosts = _hosts(url)
    return bool(hosts) and "service" not in url.query and all(map(_is_here, hosts))


def _is_here(host: str) -> bool:
    if host.startswith("/") or host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
