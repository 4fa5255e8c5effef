"""Nodes and a coordinator of neighbouring versions, in real processes: a run goes on, an upgrade in its middle too.

The versions are copies of this package with other versions and protocol numbers, each in an environment of its own, as
its processes start others that heed no path. What they do not show: messages of another form, which no version has
beside its neighbour's yet.
"""

import json
import re
import subprocess
import sys
import venv
from collections.abc import Mapping
from pathlib import Path

import pytest

import confide
from confide.client_node.study.terms import load_draft
from confide.coordinator.demo.processes import DemoFederation, environment
from confide.machine import die_with_parent
from confide.models.backbones.family import BackboneConfig
from confide.models.backbones.pretraining import PretrainingConfig, pretrain
from confide.privacy.report.verify import verify_file
from confide.versions import OWN, PROTOCOL, Speaks, apart

from .conftest import PARTIES, committed, finish, private_study, site_toml, wait_for

pytestmark = pytest.mark.process

SITES = ("north", "south", "east")
NEXT = Speaks(version="9.1.0", oldest=PROTOCOL, newest=PROTOCOL + 1)
AFTER = Speaks(version="9.2.0", oldest=PROTOCOL + 1, newest=PROTOCOL + 2)


def installed(folder: Path, spoken: Speaks) -> Path:
    """Installs a copy of this package as another version of it, beside all packages of today; returns its Python."""
    copy, source = folder / spoken.version / "confide", Path(confide.__file__).parent
    copy.mkdir(parents=True)
    for each in source.iterdir():
        if each.name == "__pycache__":  # in one for all, files of the same second and size would pass for each other
            continue
        if each.suffix != ".py":
            (copy / each.name).symlink_to(each.resolve())
            continue
        text = each.read_text()
        for name, value in (("__version__", spoken.version), ("PROTOCOL", spoken.newest), ("OLDEST", spoken.oldest)):
            said = json.dumps(value)
            text = re.sub(rf"(?m)^{name} = \S+", lambda _, name=name, said=said: f"{name} = {said}", text)
        (copy / each.name).write_text(text)
    root = folder / f"python-{spoken.version}"
    venv.create(root, symlinks=True)
    (site,) = root.glob("lib/python*/site-packages")
    others = [path for path in sys.path if path.endswith("-packages")]
    (site / "confide.pth").write_text("\n".join([str(copy.parent), *others]) + "\n")
    return root / "bin" / "python"


class Mixed(DemoFederation):
    """A federation of which each process runs the version that it is told."""

    versions: Mapping[str, Path] = {}

    def _spawn(self, name: str, program: str, *arguments: str) -> None:
        module = f"confide.{program.replace('-', '_')}.cli.main"
        command = [str(self.versions[name]), "-I", "-c", f"from {module} import app; app()", *arguments]
        self.log(name).parent.mkdir(parents=True, exist_ok=True)
        with self.log(name).open("ab") as log:
            self._children[name] = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environment(),
                start_new_session=True, preexec_fn=die_with_parent,
            )  # fmt: skip

    def start(self, name: str, version: Path) -> None:
        self.versions = {**self.versions, name: version}
        self.start_coordinator() if name == "coordinator" else self.start_node(name)

    def worries(self) -> list[str]:
        told: list[str] = json.loads(self.operator("status", "--json"))["worries"]
        return told


@pytest.mark.slow
def test_neighbouring_versions_finish_a_run_and_one_that_is_two_apart_is_refused_on_both_sides(tmp_path: Path):
    (tmp_path / "study.toml").write_text(private_study(SITES, {}))
    schema = load_draft(tmp_path / "study.toml").record_schema()
    config = PretrainingConfig(steps=3, batch=16, questions=4, moment_records=64)
    pretrain(schema, tmp_path / "backbone", backbone=BackboneConfig(hidden=32, experts=4), config=config)
    own, following, after = (installed(tmp_path, each) for each in (OWN, NEXT, AFTER))
    federation = Mixed(tmp_path / "run", SITES, PARTIES)
    federation.versions = {"coordinator": own}
    try:
        federation.found("tiny", {site: site_toml(tmp_path, site) for site in SITES}, tmp_path / "study.toml")
        for name in federation.nodes:
            federation.start(name, {"north": following, "agg-b": following, "east": after}.get(name, own))
        refused = apart("east", AFTER, OWN)
        wait_for(lambda: refused in federation.worries(), "the refusal of east")
        assert f"{refused}; trying again" in federation.log("east").read_text()
        beside = f"agg-b, north: confide {NEXT.version} beside {OWN.version} here; both speak protocol {PROTOCOL}"
        wait_for(lambda: any(each.startswith(beside) for each in federation.worries()), "the neighbours")
        federation.kill("east")
        federation.start("east", own)
        run = federation.operator("run", "start", "tiny").strip()
        wait_for(lambda: committed(federation, run) >= 1, "the first round")
        federation.kill("coordinator")
        federation.start("coordinator", following)  # upgraded in the middle of the run
        finish(federation, run)
        (tmp_path / "report.json").write_text(federation.operator("budget", "report", "--json"))
    finally:
        federation.shut_down()
    assert verify_file(tmp_path / "report.json").ok
    assert f"which runs {NEXT}; both speak protocol {NEXT.newest}" in federation.log("north").read_text()
    assert f"which runs {NEXT}; both speak protocol {PROTOCOL}" in federation.log("south").read_text()
    told = f"the parties speak protocol {PROTOCOL}: aggregator 0 {OWN}, aggregator 1 {NEXT}, aggregator 2 {OWN}"
    assert all(told in federation.log(party).read_text() for party in PARTIES)
