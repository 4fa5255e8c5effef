"""The Containerfile, as far as it can be read without building it."""

import json
import re
import shlex
from pathlib import Path

from confide.client_node.cli import serving as node
from confide.coordinator.cli import serving as federation

from ..test_help import parse

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "deploy" / "Containerfile").read_text()
LINES = [line for line in re.sub(r"\\\n\s*", "", TEXT).splitlines() if line and not line.startswith("#")]
STAGES = [part.splitlines() for part in re.split(r"^(?=FROM )", "\n".join(LINES), flags=re.MULTILINE)][1:]
LAST = STAGES[-1]
KNOWN = {"ARG", "FROM", "WORKDIR", "COPY", "RUN", "ENV", "USER", "STOPSIGNAL", "HEALTHCHECK", "CMD"}


def given(name, stage=LAST):
    return [line.partition(" ")[2] for line in stage if line.split()[0] == name]


def test_every_line_is_an_instruction():
    assert {line.split()[0] for line in LINES} == KNOWN


def test_it_runs_as_nobody_and_is_built_of_two_stages():
    assert len(STAGES) == 2
    (user,) = given("USER")
    assert all(int(part) >= 10_000 for part in user.split(":"))
    after = LAST[LAST.index(f"USER {user}") :]
    assert not [line for line in after if line.startswith(("RUN", "COPY"))]
    assert given("COPY") == ["--from=installed /opt/confide /opt/confide"]  # no sources, no context


def test_its_commands_are_those_of_the_product():
    (command,) = given("CMD")
    assert parse(json.loads(command)) == ("client-node", "run")
    (check,) = given("HEALTHCHECK")
    words = json.loads(check.partition("CMD ")[2])
    assert parse(words) == ("client-node", "health")
    (settings,) = given("ENV")
    told = dict(pair.split("=", 1) for pair in shlex.split(settings))
    assert told["CONFIDE_MONITOR"] == words[-1]
    assert not [name for name in told if re.search("TOKEN|SECRET|PASS|KEY", name)]


def test_what_it_installs_is_what_make_wheel_hands_out_with_hashes():
    made = (ROOT / "Makefile").read_text().partition("\nwheel:")[2].partition("\n\n")[0]
    installs = [line for line in STAGES[0] if "pip install" in line]
    for lock in re.findall(r"-r (\S+?\.txt)", " ".join(installs)):
        assert lock in made
    for line in installs:
        for part in re.split(r"&&|;", line):
            if "pip install" in part:
                assert "--require-hashes" in part or "--no-deps" in part
    assert "sha256sum --check" in TEXT
    assert "SHA256SUMS" in made


def test_no_page_has_by_default_the_port_of_a_monitor_or_of_the_other_page():
    """Of the units of all roles on one machine, and in a container, whose monitor's port is always the same."""
    texts = [TEXT, *(path.read_text() for path in (ROOT / "deploy" / "systemd").glob("*.service"))]
    monitors = [port for text in texts for port in re.findall(r"(?:--monitor |CONFIDE_MONITOR=)(\d+)", text)]
    assert len(monitors) == 4
    assert len({*monitors, federation.PAGE, str(node.PAGE)}) == len(set(monitors)) + 2
