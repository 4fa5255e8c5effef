"""Names the programs that the tests need and this machine lacks, or installs them.

python tools/programs.py            # ends with 1 and one command if something is missing
python tools/programs.py --install  # as root, with apt-get
"""

import shutil
import subprocess
import sys
from pathlib import Path

# Program, Debian's package (a second one is the name before Debian 13), what looks at it.
PROGRAMS = (
    ("initdb", ("postgresql",), "tests of the store start a server of their own"),
    ("openssl", ("openssl",), "a hospital's CA, for tests of certificates"),
    ("softhsm2-util", ("softhsm2",), "a token, for tests of keys"),
    ("chromium", ("chromium", "fonts-dejavu-core"), "tests/browser looks at web pages"),  # what fits DejaVu fits others
    ("systemd-analyze", ("systemd",), "tests/deploy checks units"),
    ("promtool", ("promtool|prometheus",), "tests/deploy checks alerts"),
    ("npm", ("npm",), "fetches handwritten digits"),
)


def is_here(program: str) -> bool:
    """Says whether the program can be started; PostgreSQL's lie beside the path."""
    return shutil.which(program) is not None or any(Path("/usr/lib/postgresql").glob(f"*/bin/{program}"))


def packages(program: str) -> list[str]:
    """Names the packages of a missing program as this machine's Debian calls them."""
    (named,) = [names for each, names, _ in PROGRAMS if each == program]
    return [next((name for name in choice.split("|") if _is_known(name)), choice.split("|")[0]) for choice in named]


def _is_known(package: str) -> bool:
    if shutil.which("apt-cache") is None:
        return False
    return subprocess.run(["apt-cache", "show", package], capture_output=True).returncode == 0  # noqa: S607


def main() -> None:
    """Looks, and installs if asked."""
    missing = [program for program, _, _ in PROGRAMS if not is_here(program)]
    if not missing:
        return
    installs = "--install" in sys.argv[1:]
    if installs:
        subprocess.run(["apt-get", "update", "-qq"], check=True)  # noqa: S607
    wanted = [name for program in missing for name in packages(program)]
    command = ["apt-get", "install", "-y", "--no-install-recommends", *wanted]
    if installs:
        subprocess.run(command, check=True)
        return
    for program, _, use in PROGRAMS:
        if program in missing:
            print(f"missing: {program} ({use})", file=sys.stderr)
    sys.exit(f"Tests are not skipped for want of a program. Install them: {' '.join(command)}")


if __name__ == "__main__":
    main()
