"""Makes the homes of a small federation, as the present code writes them, into an archive beside this file.

    .venv/bin/python tests/upgrade/make_home.py 0.3.0

It is run once, when that version is released, and the archive is never made anew: whoever cannot read it cannot read
what people have. The homes are made by the federation's own commands: a coordinator, three sites and three aggregators,
with a run of two rounds that a power cut ended when the second total was signed and not committed yet.
"""

import importlib
import json
import shutil
import sys
import tarfile
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

HERE = Path(__file__).resolve().parent
MACHINES = (".lock", "-shm", "-wal", "answer-times.json", "driver.log")  # ends of names: of that machine, not of homes
LEFT_OUT = {"draft.toml", "study.toml"}  # of the folder, beside the homes


def homes() -> ModuleType:
    """Imports what makes the homes as pytest does: another installed package may be called `tests`."""
    tests = sys.modules["tests"] = ModuleType("tests")
    tests.__path__ = [str(HERE.parent)]
    return importlib.import_module("tests.damage.homes")


def pack(made: Any, archive: Path) -> None:
    """Writes the federation under `made.folder` into `archive`, with nobody's name in it."""
    facts = {"folder": str(made.folder), "study": made.study, "run": made.run}
    (made.folder / "facts.json").write_text(json.dumps(facts))

    def unnamed(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
        member.uid = member.gid = 0
        member.uname = member.gname = ""
        is_left_out = member.name in LEFT_OUT or member.name.endswith(MACHINES)
        return None if is_left_out else member

    with tarfile.open(archive, "x:xz") as written:
        for each in sorted(made.folder.iterdir()):
            written.add(each, each.name, filter=unnamed)


def main(version: str) -> None:
    """Makes the archive of a version. Raises FileExistsError if there is one."""
    folder = Path(tempfile.mkdtemp(prefix="homes-"))
    try:
        pack(homes().found(folder), HERE / f"home-{version}.tar.xz")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main(sys.argv[1])
