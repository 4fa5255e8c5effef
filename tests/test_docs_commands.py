"""Commands on the pages exist, with all options that are shown of them; and so does every Python name of ours."""

import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

from confide.client_node.cli.main import app as client_node
from confide.coordinator.cli.main import app as coordinator

from .test_habits import MOVED
from .test_hidden_imports import DOTTED, resolves

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").glob("*.md"),
        *(ROOT / "docs" / "benchmarks").glob("*.md"),
        *(ROOT / "examples").rglob("README.md"),
    ]
)
PROGRAMS = {"coordinator": get_command(coordinator), "client-node": get_command(client_node)}
INLINE = re.compile(r"`(?:\.venv/bin/)?((?:coordinator|client-node) [^`]+)`")
BLOCK = re.compile(r"^```\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINE = re.compile(r"^(?:\.venv/bin/)?((?:coordinator|client-node) .*)$", re.MULTILINE)

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def shown(text: str) -> list[str]:
    """Commands in the text and in its blocks, as they are written."""
    inside = [line for block in BLOCK.findall(text) for line in LINE.findall(block)]
    return [*INLINE.findall(BLOCK.sub("", text)), *inside]


def problems(line: str) -> list[str]:
    """Words of a command that the program does not know: a name of a command, or an option."""
    program, *words = shlex.split(line, comments=True)
    command, options = PROGRAMS[program], {"--help"}
    while True:
        options |= {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        names = [word for word in words if not word.startswith("-")]
        if not (commands := getattr(command, "commands", {})) or not names or not names[0].islower():
            break  # what is not in small letters stands for any command
        if names[0] not in commands:
            return names[:1]
        command = commands[names[0]]
        words.remove(names[0])
    return sorted({*re.findall(r"--[a-z][\w-]*", " ".join(words))} - options)


@each_page
def test_every_command_that_a_page_shows_exists(page):
    assert {line: found for line in shown(page.read_text()) if (found := problems(line))} == {}


@each_page
def test_every_name_of_ours_that_a_page_shows_exists(page):
    names = {*DOTTED.findall(page.read_text())} - {old for old, _ in MOVED}
    assert [name for name in sorted(names) if not resolves(name)] == []


def test_commands_are_found_and_wrong_ones_noticed():
    assert sum(len(shown(page.read_text())) for page in PAGES) > 100
    assert problems("coordinator run start thyroid --json") == []
    assert problems("coordinator run begin thyroid") == ["begin"]
    assert problems("coordinator run start thyroid --fast") == ["--fast"]
    assert problems("coordinator --debug COMMAND") == []
