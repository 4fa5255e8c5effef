"""systemd units of deploy/systemd, by systemd's own tools; where there are none: apt-get install systemd."""

import configparser
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from ..test_help import parse

ROOT = Path(__file__).parents[2]
UNITS = sorted((ROOT / "deploy" / "systemd").glob("*.service"))
PAGE = (ROOT / "docs" / "install.md").read_text()
BIN = "/opt/confide/bin/"
WORST = 1.2  # of 10, by `systemd-analyze security`

pytestmark = pytest.mark.process
each_unit = pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)


class Lines(configparser.RawConfigParser):
    """A unit's settings; those that may be repeated keep their last value."""

    def __init__(self, path):
        super().__init__(strict=False, interpolation=None)
        self.optionxform = str
        self.read(path)


@each_unit
def test_systemd_finds_nothing_wrong(unit, tmp_path):
    """The program is looked for, so it is named where it lies here."""
    here = tmp_path / unit.name
    here.write_text(unit.read_text().replace(BIN, f"{Path(sys.executable).parent}/"))
    found = subprocess.run(["systemd-analyze", "verify", here], capture_output=True, text=True)
    assert (found.returncode, found.stdout + found.stderr) == (0, "")


@each_unit
def test_systemd_takes_the_drop_in_for_a_passphrase(unit, tmp_path):
    here, folder = tmp_path / unit.name, tmp_path / f"{unit.name}.d"
    here.write_text(unit.read_text().replace(BIN, f"{Path(sys.executable).parent}/"))
    folder.mkdir()
    text = (ROOT / "deploy" / "systemd" / "confide-passphrase.conf").read_text()
    (folder / "passphrase.conf").write_text(text)
    verify = ["systemd-analyze", "verify", here]
    found = subprocess.run(verify, capture_output=True, text=True)
    assert (found.returncode, found.stdout + found.stderr) == (0, "")
    (folder / "passphrase.conf").write_text(text.replace("LoadCredentialEncrypted=", "LoadCredentialEncrypted=/"))
    assert subprocess.run(verify, capture_output=True, text=True).stderr  # so the drop-in is read


@each_unit
def test_the_sandbox_is_as_tight_as_the_page_says(unit):
    command = ["systemd-analyze", "security", "--offline=true", f"--threshold={WORST * 10:.0f}", unit]
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout
    assert f"{WORST} of 10" in PAGE


@each_unit
def test_it_starts_a_command_that_exists_and_waits_for_what_that_tells(unit):
    service = Lines(unit)["Service"]
    program, *words = shlex.split(service["ExecStart"].removeprefix(BIN))
    words = [word.replace("%S", "/var/lib") for word in words]
    assert parse([program, *words])[1] in ("serve", "run")
    assert service["Type"] == "notify"
    assert int(service["WatchdogSec"]) > 120  # the longest that a living tick may take (gateway/service.py)
    assert service["Restart"] == "always"
    if program == "client-node":
        assert service["RestartPreventExitStatus"] == "77"


def test_each_role_has_its_unit_account_and_port():
    settings = [Lines(unit)["Service"] for unit in UNITS]
    assert [unit.stem for unit in UNITS] == ["confide-aggregator", "confide-coordinator", "confide-site"]
    assert [each["User"] for each in settings] == [unit.stem for unit in UNITS]
    ports = [re.search(r"--monitor (\d+)", each["ExecStart"])[1] for each in settings]
    assert len(set(ports)) == 3
