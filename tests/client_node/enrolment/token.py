"""A throwaway PKCS#11 token: SoftHSM's, in a folder of its own."""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

MODULES = ("/usr/lib/softhsm/libsofthsm2.so", "/usr/lib64/pkcs11/libsofthsm2.so")
PIN, LABEL = "87654321", "confide test"


@dataclass(frozen=True)
class Token:
    """A token that has just been made, and the environment in which SoftHSM finds it."""

    environment: dict[str, str]
    uri: str
    folder: Path  # of the token's objects


def made(folder: Path) -> Token:
    """Makes a token; the environment of this process must be set to the one that it names before its module is used."""
    module = next(path for path in MODULES if Path(path).exists())
    assert shutil.which("softhsm2-util")
    tokens, pin = folder / "tokens", folder / "pin"
    tokens.mkdir(parents=True)
    (folder / "softhsm2.conf").write_text(
        f"directories.tokendir = {tokens}\nobjectstore.backend = file\nlog.level = ERROR\n"
    )
    pin.write_text(f"{PIN}\n")
    pin.chmod(0o600)
    environment = {"SOFTHSM2_CONF": str(folder / "softhsm2.conf"), "CONFIDE_PIN_FILE": str(pin)}
    subprocess.run(
        ["softhsm2-util", "--init-token", "--free", "--label", LABEL, "--so-pin", "12345678", "--pin", PIN],
        check=True, capture_output=True, env={**os.environ, **environment},
    )  # fmt: skip
    return Token(environment, f"pkcs11:token={LABEL.replace(' ', '%20')}?module-path={module}", tokens)
