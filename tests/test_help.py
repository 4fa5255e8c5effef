"""Help texts of both commands: every one has examples that the command itself would take, and its exit codes."""

import re
import shlex

import pytest
from typer.main import get_command
from typer.testing import CliRunner

import confide
from confide.client_node import warm_node
from confide.client_node.cli.application import EXIT_CODES, REFUSED
from confide.client_node.cli.main import app as client_node
from confide.coordinator.cli.main import app as coordinator

from .test_docs_commands import ROOT

APPS = {"coordinator": coordinator, "client-node": client_node}
PROGRAMS = {name: get_command(app) for name, app in APPS.items()}


def everything(command, words):
    """A command and all below it, groups included, with the words that call them."""
    yield words, command
    for name, each in getattr(command, "commands", {}).items():
        yield from everything(each, (*words, name))


ALL = [each for name, program in PROGRAMS.items() for each in everything(program, (name,))]
EXAMPLES = sorted({example for _, command in ALL for example in re.findall(r"^Example: (.*)$", command.epilog, re.M)})
each_help = pytest.mark.parametrize(("words", "command"), ALL, ids=[" ".join(words) for words, _ in ALL])


def parse(words):
    """Parses a command line as the program does, without running it; returns the words of the command."""
    program, *rest = words
    command = PROGRAMS[program]
    context = command.make_context(program, rest, resilient_parsing=False)
    found = [program]
    while hasattr(command, "commands"):
        name, command, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        context = command.make_context(name, list(rest), parent=context)
        found.append(name)
    return tuple(found)


@each_help
def test_every_help_text_has_an_example_of_its_own_command_and_the_exit_codes(words, command):
    examples = re.findall(r"^Example: (.*)$", command.epilog, re.MULTILINE)
    assert examples
    assert all(tuple(shlex.split(example))[: len(words)] == words for example in examples)
    assert all(len(f" Example: {example}") <= 80 for example in examples)  # is not broken in a narrow terminal
    shown = " ".join(CliRunner().invoke(APPS[words[0]], [*words[1:], "--help"]).output.split())
    assert all(f"Example: {' '.join(example.split())}" in shown for example in examples)
    assert re.search(r"Exit codes: 0 done; 1 refused or failed; 2 wrong usage,", shown)


@pytest.mark.parametrize("example", EXAMPLES)
def test_every_example_parses(example):
    words = shlex.split(example.partition(" < ")[0])
    assert parse(words) == tuple(words[: len(parse(words))])


@pytest.mark.parametrize(
    "wrong", ["coordinator run start", "coordinator run watch RUN --fast", "client-node chart read", "coordinator go"]
)
def test_an_example_that_is_wrong_would_be_noticed(wrong):
    with pytest.raises(Exception, match=r"Missing|No such"):
        parse(wrong.split())


def test_codes_that_only_some_commands_have_stand_where_they_are_true():
    told = {words: command.epilog for words, command in ALL}
    assert "3 a check found problems" in told["client-node", "data", "check"]
    assert "3 a check" not in told["coordinator", "run", "list"]
    assert "77 the coordinator does not know" in told["client-node", "run"]


def test_exit_codes_are_those_of_the_daemon_and_of_the_pages():
    assert REFUSED == warm_node.REFUSED
    page = (ROOT / "docs" / "site-toml.md").read_text().partition("## Exit codes")[2]
    assert dict(re.findall(r"^\| (\d+) \| (.*?)(?: \(`.*)? \|$", page, re.MULTILINE)) == {
        str(code): meaning for code, meaning in EXIT_CODES.items()
    }


@pytest.mark.parametrize("program", APPS)
@pytest.mark.parametrize("option", ["--version", "-V"])
def test_the_version_is_told(program, option):
    result = CliRunner().invoke(APPS[program], [option])
    assert (result.exit_code, result.stdout) == (0, f"confide {confide.__version__}\n")
