"""Where a program finds the passphrase of its home's keys, and which files it takes it from."""

import os

import pytest
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from confide.client_node import passphrase as passphrases
from confide.client_node.errors import BackupInvalid, KeysSealed

SECRET = b"correct horse battery"


@pytest.fixture(autouse=True)
def _given_nothing(monkeypatch):
    for name in ("CONFIDE_PASSPHRASE_FILE", "CREDENTIALS_DIRECTORY"):
        monkeypatch.delenv(name, raising=False)


def written(path, data=SECRET, mode=0o600):
    path.write_bytes(data)
    path.chmod(mode)
    return path


@pytest.fixture
def credentials(tmp_path, monkeypatch):
    """As systemd gives a unit its credentials, of mode 0400 or, where an access list keeps them, 0440."""
    folder = tmp_path / "credentials"
    folder.mkdir(mode=0o700)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(folder))
    return folder


def test_nothing_is_given_where_no_place_is_named(credentials):
    assert passphrases.given() is None


def test_the_file_that_is_named_comes_before_the_credential(tmp_path, monkeypatch, credentials):
    written(credentials / "confide-passphrase", b"of the credential", 0o400)
    assert passphrases.given() == (b"of the credential", credentials / "confide-passphrase")
    named = written(tmp_path / "named", b"of the file named\r\n")
    monkeypatch.setenv("CONFIDE_PASSPHRASE_FILE", str(named))
    assert passphrases.given() == (b"of the file named", named)


@pytest.mark.parametrize("mode", [0o400, 0o440, 0o600])
def test_a_credential_is_taken_as_systemd_writes_it(credentials, mode):
    written(credentials / "confide-passphrase", SECRET, mode)
    assert passphrases.given() == (SECRET, credentials / "confide-passphrase")


@pytest.mark.parametrize("mode", [0o444, 0o460, 0o404])
def test_a_credential_that_others_could_read_or_change_is_refused(credentials, mode):
    written(credentials / "confide-passphrase", SECRET, mode)
    with pytest.raises(KeysSealed, match="can be read by others"):
        passphrases.given()


@pytest.mark.parametrize(
    ("data", "mode", "said"),
    [
        (SECRET, 0o644, "can be read by others"),
        (b"short", 0o600, "holds 5 bytes. It holds the passphrase of a home's keys, 12 to 1024 bytes"),
        (b"x" * 1030, 0o600, "has more than 1026 bytes"),
        (b"", 0o600, "is empty"),
        (b"\n" * 20, 0o600, "holds 0 bytes"),
    ],
)
def test_a_file_that_cannot_be_a_passphrase_is_refused_by_name_and_never_passed_over(
    tmp_path, monkeypatch, credentials, data, mode, said
):
    written(credentials / "confide-passphrase", SECRET, 0o400)
    monkeypatch.setenv("CONFIDE_PASSPHRASE_FILE", str(written(tmp_path / "named", data, mode)))
    with pytest.raises(KeysSealed, match=said) as no:
        passphrases.given()
    assert str(tmp_path / "named") in str(no.value)
    assert SECRET.decode() not in str(no.value)


def test_a_file_that_is_named_and_is_not_there_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("CONFIDE_PASSPHRASE_FILE", str(tmp_path / "gone"))
    with pytest.raises(KeysSealed, match="gone is not there"):
        passphrases.given()


def test_a_path_that_means_another_file_elsewhere_is_refused(tmp_path, monkeypatch):
    written(tmp_path / "named")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CONFIDE_PASSPHRASE_FILE", "named")
    with pytest.raises(KeysSealed, match="needs an absolute path"):
        passphrases.given()


def test_a_passphrase_file_is_read_as_its_user_says(tmp_path):
    with pytest.raises(BackupInvalid, match="passphrase of a backup"):
        passphrases.read(tmp_path / "gone", of="a backup", error=BackupInvalid)


def test_a_key_is_scrypts_of_the_stated_cost():
    salt = os.urandom(16)
    assert passphrases.derive(SECRET, salt) == Scrypt(salt=salt, length=32, n=131072, r=8, p=1).derive(SECRET)
