"""A PostgreSQL server of the tests' own: made with initdb in a new folder, reached over a socket there, thrown away.

The server refuses to run as root, so tests of root run it as the account `postgres`, or `nobody`.
"""

import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import URL

from confide.coordinator.store.place import DRIVER
from confide.coordinator.store.store import migrate

TEMPLATE, USER = "confide_new", "confide"
_IN_MEMORY, _ROOM = Path("/dev/shm"), 1 << 30
_FAST = "-c fsync=off -c full_page_writes=off -c max_connections=60 -c shared_buffers=16MB -c listen_addresses=''"


@dataclass
class Cluster:
    """A server with its databases. `url` makes a new database, with the tables of a new federation or empty."""

    folder: Path
    account: str | None  # that runs it, if tests run as root
    numbers: Iterator[int] = field(default_factory=itertools.count)

    def start(self) -> None:
        said = f"{_FAST} -c unix_socket_directories='{self.folder}'"
        self.run("pg_ctl", "-D", str(self.folder / "data"), "-w", "-l", str(self.folder / "log"), "-o", said, "start")

    def stop(self) -> None:
        """Ends the server by a signal: a session's last test, in which a fixture ends, may start no process."""
        file = self.folder / "data" / "postmaster.pid"
        os.kill(int(file.read_text().split()[0]), signal.SIGQUIT)
        end = time.monotonic() + 60
        while file.exists():
            assert time.monotonic() < end, "the server does not end"
            time.sleep(0.02)

    def restart(self) -> None:
        """Ends every connection at once, as a crash would, and starts again."""
        self.stop()
        self.start()

    def url(self, *, is_empty: bool = False) -> URL:
        name = f"t{next(self.numbers)}"
        self.do(f"CREATE DATABASE {name}" + ("" if is_empty else f" TEMPLATE {TEMPLATE}"))
        return self.named(name)

    def drop(self, url: URL) -> None:
        """Deletes a database, whoever is still connected to it."""
        self.do(f"DROP DATABASE {url.database} WITH (FORCE)")

    def named(self, database: str) -> URL:
        return URL.create(DRIVER, username=USER, database=database, query={"host": str(self.folder)})

    def do(self, statement: str, database: str = "postgres") -> None:
        with psycopg.connect(host=str(self.folder), user=USER, dbname=database, autocommit=True) as connection:
            connection.execute(statement)

    def run(self, program: str, *words: str) -> None:
        done = subprocess.run(
            [_found(program), *words], user=self.account, group=_group(self.account), cwd=self.folder, timeout=120,
            env={"PATH": os.defpath, "LC_ALL": "C.UTF-8"}, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )  # fmt: skip
        assert done.returncode == 0, (program, done.stderr[-2000:])


@contextmanager
def server(*, password: str | None = None) -> Iterator[Cluster]:
    """Runs a new server until the end of the block; without a password it lets in whoever reaches its socket."""
    # In memory where there is room: thousands of small files are made and deleted. A short path, as sockets need.
    has_room = _IN_MEMORY.is_dir() and shutil.disk_usage(_IN_MEMORY).free > _ROOM
    folder = Path(tempfile.mkdtemp(prefix="confide-pg-", dir=_IN_MEMORY if has_room else None))
    account = None
    if os.getuid() == 0:
        account = next(name for name in ("postgres", "nobody") if _is_account(name))
        shutil.chown(folder, account)
    made = Cluster(folder, account)
    secret = folder / "password"
    secret.write_text(password or "unused")
    secret.chmod(0o644)
    method = "trust" if password is None else "scram-sha-256"
    words = ("-U", USER, "-A", method, "--pwfile", str(secret), "-E", "UTF8", "--no-sync")
    try:
        made.run("initdb", "-D", str(folder / "data"), *words)
        made.start()
        try:
            yield made
        finally:
            made.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def cluster() -> Iterator[Cluster]:
    """Runs a new server that has the tables of a new federation, until the end of the block."""
    with server() as made:
        made.do(f"CREATE DATABASE {TEMPLATE}")
        migrate(made.named(TEMPLATE))
        yield made


@contextmanager
def postgresql_server(*, password: str | None = None) -> Iterator[str]:
    """Runs a new server; yields the URL of an empty database of it, without the password."""
    with server(password=password) as made:
        yield f"postgresql://{USER}@/postgres?host={made.folder}"


def place(program: str) -> str | None:
    """Finds a program of PostgreSQL; None if it is not installed."""
    places = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{program}"), reverse=True)
    return str(places[0]) if places else shutil.which(program)


def _found(program: str) -> str:
    found = place(program)
    if found is None:
        pytest.fail(f"{program} of PostgreSQL is not installed: apt-get install postgresql, as .ci/run does")
    return found


def _is_account(name: str) -> bool:
    try:
        return bool(pwd.getpwnam(name))
    except KeyError:
        return False


def _group(account: str | None) -> int | None:
    return None if account is None else pwd.getpwnam(account).pw_gid
