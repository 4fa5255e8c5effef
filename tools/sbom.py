"""Writes a software bill of materials of the locked packages: CycloneDX 1.6, JSON, checked against its schema.

    python tools/sbom.py FILE

It lists what requirements-lock.txt and requirements-lock-cuda.txt name, with the SHA-256 of every file that pip would
take, and the licence by the packages' own metadata where they are installed. Equal locks, installed, give equal files.
"""

import re
import sys
from pathlib import Path
from uuid import UUID, uuid5

from cyclonedx.model import Property
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.license import DisjunctiveLicense
from cyclonedx.output.json import JsonV1Dot6
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from licences import LOCKS, ROOT, licence_of
from packageurl import PackageURL

_ENTRY = re.compile(r"^([a-z0-9][\w.-]*)==([\w.+!-]+)([^\n]*(?:\n +--hash=[^\n]*)+)", re.MULTILINE)
_SPACE = UUID("6f0f4a52-5a5b-5c9e-9a3c-2b1d9b3f7c11")  # of the serial numbers; any will do


def version() -> str:
    """The version of confide."""
    found = re.search(r'__version__ = "([^"]+)"', (ROOT / "src" / "confide" / "__init__.py").read_text())
    assert found is not None, "the package states its version"
    return found[1]


def component(name: str, of: str, hashes: list[str]) -> Component:
    """One locked package."""
    licence = licence_of(name)
    return Component(
        name=name,
        version=of,
        type=ComponentType.LIBRARY,
        bom_ref=f"{name}=={of}",
        purl=PackageURL("pypi", None, name, of),
        licenses=[DisjunctiveLicense(name=licence)] if licence else None,
        properties=[Property(name="confide:sha256", value=each) for each in sorted(hashes)],
    )


def bill() -> str:
    """The bill as text. Raises ValueError if the schema refuses it."""
    texts = [(ROOT / lock).read_text() for lock in LOCKS]
    ours = Component(
        name="confide", version=version(), type=ComponentType.APPLICATION, bom_ref="confide",
        licenses=[DisjunctiveLicense(name="Apache-2.0 AND MIT")],
    )  # fmt: skip
    parts = [
        component(name, of, re.findall(r"sha256:([0-9a-f]{64})", rest))
        for text in texts
        for name, of, rest in _ENTRY.findall(text)
    ]
    copy = (ROOT / "third_party" / "crypten" / "SHA256SUMS").read_bytes()
    parts.append(
        Component(
            name="crypten", version="0.4.1", type=ComponentType.LIBRARY, bom_ref="crypten",
            purl=PackageURL("pypi", None, "crypten", "0.4.1"), licenses=[DisjunctiveLicense(name="MIT")],
            description="a copy of parts of it, in third_party/crypten",
        )
    )  # fmt: skip
    bom = Bom(components=parts, serial_number=uuid5(_SPACE, "".join(texts) + copy.decode() + version()))
    bom.metadata.component = ours
    bom.register_dependency(ours, parts)
    bom.metadata.tools.components.clear()
    text = JsonV1Dot6(bom).output_as_string(indent=2)
    text = re.sub(r'\n    "timestamp": "[^"]*",?', "", text)  # so that equal locks give equal files
    text = re.sub(r",(\n  \})", r"\1", text)
    if error := JsonStrictValidator(SchemaVersion.V1_6).validate_str(text):
        raise ValueError(f"the schema of CycloneDX refuses the bill: {error}")
    return text + "\n"


if __name__ == "__main__":
    Path(sys.argv[1]).parent.mkdir(parents=True, exist_ok=True)
    Path(sys.argv[1]).write_text(bill())
