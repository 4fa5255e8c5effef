"""A throwaway server of PostgreSQL for tests: a cluster of its own, on a socket alone, ended with the test."""

import contextlib
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

_USER = "postgres"  # what runs the server where tests run as root: it refuses to be root's


def binaries() -> Path:
    """The folder of the newest server's programs; Debian keeps them off the PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parents[1].name))
    if found:
        return found[-1].parent
    on_path = shutil.which("initdb")
    if on_path is None:
        raise RuntimeError("no PostgreSQL server here: apt-get install postgresql")
    return Path(on_path).resolve().parent


@contextlib.contextmanager
def postgresql_server(folder: Path, *, password: str | None = None) -> Iterator[str]:
    """Starts a server whose data lie below `folder`; yields the URL of its database, without a password.

    Args:
        password: what the server asks its user for; None lets anybody in who reaches the socket.
    """
    programs, is_root = binaries(), os.geteuid() == 0
    user = _USER if is_root else pwd.getpwuid(os.geteuid()).pw_name
    data = folder / "cluster"
    # A socket's path has at most 107 bytes, which pytest's folders use up.
    with tempfile.TemporaryDirectory(prefix="pg-") as short:
        if is_root:
            account = pwd.getpwnam(user)
            data.mkdir(mode=0o700, parents=True)
            for place in (data, Path(short)):
                os.chown(place, account.pw_uid, account.pw_gid)
            for parent in data.parents:  # of which pytest makes some for root alone
                if not parent.stat().st_mode & 0o001:
                    parent.chmod(parent.stat().st_mode | 0o011)
        secret = Path(short) / "password"
        secret.write_text(password or "unused")
        secret.chmod(0o644)
        method = "trust" if password is None else "scram-sha-256"

        def run(program: str, *words: str) -> None:
            command = [str(programs / program), "-D", str(data), *words]
            subprocess.run(
                command, check=True, user=user if is_root else None, group=user if is_root else None,
                extra_groups=[] if is_root else None, cwd="/", stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT,
                env={"PATH": os.environ.get("PATH", ""), "LC_ALL": "C.UTF-8"},
            )  # fmt: skip

        run("initdb", "--no-sync", "-E", "UTF8", "-A", method, "--pwfile", str(secret), "-U", user)
        options = f"-c listen_addresses='' -c unix_socket_directories={short} -c fsync=off -c log_statement=none"
        run("pg_ctl", "-w", "-l", str(data / "log"), "-o", options, "start")
        try:
            yield f"postgresql://{user}@/postgres?host={short}"
        finally:
            run("pg_ctl", "-w", "-m", "immediate", "stop")
