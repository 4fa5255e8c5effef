"""The bill of materials and the list of licences have every locked package."""

import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from .test_lock import LOCKED, ROOT

PAGE = ROOT / "docs" / "licences.md"


@pytest.mark.process
def test_the_bill_fits_its_schema_and_lists_the_lock(tmp_path):
    """The tool checks it against the schema of CycloneDX, and writes equal bills for equal locks."""
    for name in ("one", "two"):
        command = [sys.executable, ROOT / "tools" / "sbom.py", tmp_path / name / "bill.json"]
        subprocess.run(command, check=True, capture_output=True)
    texts = [(tmp_path / name / "bill.json").read_text() for name in ("one", "two")]
    assert texts[0] == texts[1]
    bill = json.loads(texts[0])
    parts = {each["name"]: each for each in bill["components"]}
    assert (bill["bomFormat"], bill["specVersion"], bill["metadata"]["component"]["name"]) == (
        "CycloneDX",
        "1.6",
        "confide",
    )
    assert set(parts) == {*LOCKED, "crypten"}
    for name, requirement in LOCKED.items():
        (pin,) = requirement.specifier
        assert parts[name]["version"] == pin.version
        assert parts[name]["purl"].startswith(f"pkg:pypi/{name}@")
        assert all(re.fullmatch("[0-9a-f]{64}", each["value"]) for each in parts[name]["properties"])
    direct = next(each for each in bill["dependencies"] if each["ref"] == "confide")
    assert len(direct["dependsOn"]) == len(parts)


def test_the_page_of_licences_has_every_locked_package_in_its_version():
    rows = dict(re.findall(r"^\| ([a-z0-9][\w.-]*) \| (\d\S*) \|", PAGE.read_text(), re.MULTILINE))
    assert rows == {name: next(iter(each.specifier)).version for name, each in LOCKED.items()}


@pytest.mark.parametrize(
    ("licence", "is_plain"),
    [("MIT", True), ("BSD-3-Clause", True), ("Apache-2.0 OR BSD-2-Clause", True), ("MPL-2.0 AND MIT", False),
     ("GNU Lesser General Public License v3", False), ("LicenseRef-NVIDIA-Proprietary", False), ("custom", False)],
)  # fmt: skip
def test_what_is_not_plainly_permissive_is_marked(licence, is_plain, monkeypatch):
    tool = runpy.run_path(str(Path(ROOT, "tools", "licences.py")))
    row = tool["row"]
    row.__globals__["licence_of"] = lambda name: licence
    assert ("**Look**" not in row("x", "1")) is is_plain
