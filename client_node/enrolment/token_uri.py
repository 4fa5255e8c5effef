"""URIs of keys in a PKCS#11 token, as RFC 7512 writes them.

    pkcs11:token=hospital;object=confide-identity;id=%01?module-path=/usr/lib/softhsm/libsofthsm2.so

The module is code that this process loads. So its path is absolute, and the file is root's, as installed libraries are:
others can read it and not change it. All that confide writes is closed to others, so no backup and no file of a home
brings code of its own, even where confide runs as root. A PIN never stands in a URI.
"""

import os
import re
import stat
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote_from_bytes, unquote_to_bytes

from ..errors import TokenUnusable

SCHEME = "pkcs11:"
_MOST = 2048  # characters
_TOKEN = ("token", "serial", "manufacturer", "model")  # attributes that say which token
_CHARACTERS = re.compile(r"[A-Za-z0-9._~:\[\]@!$'()*+,=/;?&%|#-]*")  # percent signs stand before anything else


@dataclass(frozen=True, slots=True)
class TokenUri:
    """A token, by what it says of itself, and perhaps a key in it."""

    module: Path
    token: tuple[tuple[str, str], ...]  # attribute and value; at least one
    label: str | None = None  # of the key (`object`)
    key_id: bytes | None = None  # of the key (`id`)

    @classmethod
    def parse(cls, text: str) -> "TokenUri":
        """Reads a URI.

        Raises:
            TokenUnusable: it is none, names a PIN or something else that is not taken here, or no token or module.
        """
        text = text.strip()
        if len(text) > _MOST or not text.startswith(SCHEME) or not _CHARACTERS.fullmatch(text):
            raise TokenUnusable("a key in a token is written pkcs11:token=LABEL?module-path=/PATH (RFC 7512)")
        path, _, query = text.removeprefix(SCHEME).partition("?")
        found, asked = _attributes(path, ";"), _attributes(query, "&")
        if {"pin-value", "pin-source"} & (found.keys() | asked.keys()):
            raise TokenUnusable("a PIN does not stand in a URI: set CONFIDE_PIN_FILE to a file that holds it")
        if found.pop("type", b"private") != b"private":
            raise TokenUnusable("a key in a token is one of type=private")
        others = (found.keys() - {*_TOKEN, "object", "id"}) | (asked.keys() - {"module-path"})
        if others:
            raise TokenUnusable(f"a URI of a key in a token has no {sorted(others)[0]!r} here")
        token = tuple((name, _text(found[name])) for name in _TOKEN if name in found)
        if not token or "module-path" not in asked:
            raise TokenUnusable("a URI of a key in a token names the token (token=LABEL) and its module (module-path=)")
        label = _text(found["object"]) if "object" in found else None
        return cls(Path(_text(asked["module-path"])), token, label, found.get("id"))

    def of(self, label: str, key_id: bytes) -> "TokenUri":
        """The same token, and a key in it."""
        return replace(self, label=label, key_id=key_id)

    def text(self) -> str:
        """Writes the URI."""
        named = [f"{name}={_quoted(value.encode())}" for name, value in self.token]
        named += [] if self.label is None else [f"object={_quoted(self.label.encode())}"]
        named += [] if self.key_id is None else ["id=" + "".join(f"%{byte:02X}" for byte in self.key_id)]
        return f"{SCHEME}{';'.join(named)}?module-path={_quoted(str(self.module).encode())}"

    def trusted_module(self) -> str:
        """Returns the module's path, without links in it, if its file is root's, and others read and do not change it.

        Raises:
            TokenUnusable: it is not.
        """
        if not self.module.is_absolute():
            raise TokenUnusable(f"the module {self.module} of a token needs an absolute path")
        real = Path(os.path.realpath(self.module))
        try:
            found = real.stat()
        except OSError as err:
            raise TokenUnusable(f"the module {self.module} of a token cannot be read: {err.strerror}") from err
        is_open = bool(found.st_mode & 0o044)  # to be read
        if not stat.S_ISREG(found.st_mode) or found.st_uid != 0 or found.st_mode & 0o022 or not is_open:
            raise TokenUnusable(
                f"the module {self.module} of a token is code that would run here, so it must be a file of root that "
                "others can read and nobody else can change; nothing was loaded"
            )
        return str(real)


def _attributes(text: str, between: str) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for part in text.split(between) if text else ():
        name, is_there, value = part.partition("=")
        if not is_there or not value or name in found:
            raise TokenUnusable("a URI of a key in a token has attributes of the form NAME=VALUE, each once")
        found[name] = unquote_to_bytes(value)
    return found


def _text(value: bytes) -> str:
    try:
        text = value.decode()
    except UnicodeDecodeError:
        text = ""
    if not text.isprintable() or not text:
        raise TokenUnusable("a value in a URI of a key in a token is no text")
    return text


def _quoted(value: bytes) -> str:
    return quote_from_bytes(value, safe="/")
