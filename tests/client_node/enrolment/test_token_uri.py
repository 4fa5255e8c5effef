"""URIs of keys in tokens: what RFC 7512 says, and what is refused."""

from pathlib import Path

import pytest

from confide.client_node.enrolment.token_uri import TokenUri
from confide.client_node.errors import TokenUnusable

MODULE = "?module-path=/usr/lib/module.so"


def test_a_uri_is_read_with_its_escapes():
    uri = TokenUri.parse(f"pkcs11:token=My%20token%3b;object=k%C3%A4y;id=%00%ff%41;type=private{MODULE}")
    assert uri.token == (("token", "My token;"),)
    assert (uri.label, uri.key_id, uri.module) == ("käy", b"\x00\xffA", Path("/usr/lib/module.so"))


def test_what_is_written_is_read():
    uri = TokenUri.parse(f"pkcs11:token=a%20b;serial=12%2F3{MODULE}").of("my key; no 2", bytes(range(16)))
    assert TokenUri.parse(uri.text()) == uri
    assert TokenUri.parse(f"  {uri.text()}\n") == uri


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is written pkcs11:"),
        ("http://token", "is written pkcs11:"),
        ("pkcs11:token=a" + "b" * 3000 + MODULE, "is written pkcs11:"),
        (f"pkcs11:token=a b{MODULE}", "is written pkcs11:"),
        (f"pkcs11:token=a\nb{MODULE}", "is written pkcs11:"),
        (f"pkcs11:{MODULE}", "names the token"),
        ("pkcs11:token=a", "names the token"),
        (f"pkcs11:token=a{MODULE}&pin-value=1234", "a PIN does not stand in a URI"),
        (f"pkcs11:token=a{MODULE}&pin-source=file:/pin", "a PIN does not stand in a URI"),
        (f"pkcs11:token=a;pin-value=1234{MODULE}", "a PIN does not stand in a URI"),
        (f"pkcs11:token=a;token=b{MODULE}", "each once"),
        (f"pkcs11:token={MODULE}", "NAME=VALUE"),
        (f"pkcs11:token{MODULE}", "NAME=VALUE"),
        (f"pkcs11:token=a;slot-id=1{MODULE}", "has no 'slot-id' here"),
        (f"pkcs11:token=a{MODULE}&module-name=x", "has no 'module-name' here"),
        (f"pkcs11:token=a;type=cert{MODULE}", "type=private"),
        (f"pkcs11:token=%ff{MODULE}", "is no text"),
        (f"pkcs11:token=%00{MODULE}", "is no text"),
    ],
)
def test_anything_else_is_refused_without_repeating_a_pin(text, said):
    with pytest.raises(TokenUnusable, match=said) as no:
        TokenUri.parse(text)
    assert "1234" not in str(no.value)


def module(path: Path) -> TokenUri:
    return TokenUri.parse(f"pkcs11:token=a?module-path={path}")


def test_a_module_is_roots_or_is_not_loaded(tmp_path):
    """Else a backup from elsewhere, or whoever writes to a home, would bring code."""
    ours = tmp_path / "module.so"
    ours.write_bytes(b"")
    for mode in (0o666, 0o664, 0o600, 0o700):  # of the last two are files that a restoration writes
        ours.chmod(mode)
        with pytest.raises(TokenUnusable, match="nothing was loaded"):
            module(ours).trusted_module()
    for path in (tmp_path, tmp_path / "gone.so"):
        with pytest.raises(TokenUnusable):
            module(path).trusted_module()
    with pytest.raises(TokenUnusable, match="absolute path"):
        module(Path("module.so")).trusted_module()
    link = tmp_path / "link.so"
    link.symlink_to("/usr/bin/env")
    assert module(link).trusted_module() == str(Path("/usr/bin/env").resolve())
