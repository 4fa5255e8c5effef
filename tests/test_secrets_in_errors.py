"""No command and no child process of ours shows a variable when it fails of an error that nobody foresaw."""

import functools
import os
import socket
import subprocess
import sys
import tempfile

import pytest
from typer.main import get_command

from confide.client_node.cli.main import app as client_node
from confide.coordinator.cli.main import app as coordinator
from confide.mpc.crash import place

MARKER = "MARKER-JOHN-DOE"
APPS = {"coordinator": coordinator, "client-node": client_node}


def commands(app, words=()):
    """Every command of an application as it is registered, with the words that call it."""
    for each in app.registered_commands:
        yield (*words, each.name or each.callback.__name__), each
    for group in app.registered_groups:
        yield from commands(group.typer_instance, (*words, group.name))


COMMANDS = [(program, words) for program, app in APPS.items() for words, _ in commands(app)]
each_command = pytest.mark.parametrize(("program", "words"), COMMANDS, ids=[" ".join((p, *w)) for p, w in COMMANDS])


built = functools.cache(lambda program: get_command(APPS[program]))


def filled_in(program, words):
    """The words of a command, and of all that it demands."""
    command = built(program)
    for word in words:
        command = command.commands[word]
    filled = list(words)
    for parameter in command.params:
        if parameter.required:
            value = str(next(iter(getattr(parameter.type, "choices", ["1"]))))
            filled += [value] if parameter.param_type_name == "argument" else [parameter.opts[0], value]
    return filled


def failing(callback):
    """A function with the parameters of a command, that fails as a bug would: two frames deep, secrets in both."""

    @functools.wraps(callback)
    def fail(**given):
        secret = {"cell": MARKER, "code": MARKER.encode()}

        def inner(records):
            raise ZeroDivisionError(f"cannot read {records!r}")

        inner([secret, given])

    return fail


def ended(program, words, *, debug=False):
    """Runs a command that fails, in a process forked from this one; returns exit code, and both its outputs."""
    asked = [*(["--debug"] if debug else []), *filled_in(program, words)]
    with tempfile.TemporaryFile() as shown:
        child = os.fork()
        if child == 0:
            code = 97
            try:
                for stream in (1, 2):
                    os.dup2(shown.fileno(), stream)
                sys.stdout, sys.stderr = (os.fdopen(stream, "w", closefd=False) for stream in (1, 2))
                registered = dict(commands(APPS[program]))[words]
                registered.callback = failing(registered.callback)
                code = as_an_interpreter(lambda: APPS[program](asked))
                for stream in (sys.stdout, sys.stderr):
                    stream.flush()
            finally:
                os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        shown.seek(0)
        return code, shown.read().decode()


def as_an_interpreter(main):
    try:
        main()
    except SystemExit as end:
        return end.code
    except BaseException:
        sys.excepthook(*sys.exc_info())
        return 98
    return 0


def test_all_commands_are_found():
    assert len(COMMANDS) == len(set(COMMANDS)) >= 49
    assert {("client-node", ("budget", "set")), ("coordinator", ("init",))} <= set(COMMANDS)


@pytest.mark.process
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@each_command
def test_no_command_shows_a_variable_or_a_message_that_it_does_not_know(program, words):
    code, shown = ended(program, words)
    assert code == 1, shown
    assert MARKER not in shown
    assert "ZeroDivisionError in " in shown
    assert "CONFIDE_DEBUG=1" in shown
    assert len(shown.splitlines()) <= 3


@pytest.mark.process
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@each_command
def test_debug_shows_the_traceback_without_variables(program, words):
    code, shown = ended(program, words, debug=True)
    assert code == 98
    assert "Traceback (most recent call last)" in shown
    assert shown.count(MARKER) == shown.splitlines()[-1].count(MARKER) == 2  # in the message alone


CHILDREN = {
    "party": ("confide.mpc.party.process", "confide.mpc.party.serving"),
    "shard": ("confide.mpc.party.shard_process", "confide.mpc.party.shards"),
    "worker": ("confide.client_node.training.worker_process", "confide.client_node.training.worker"),
}


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.parametrize("child", CHILDREN)
@pytest.mark.parametrize("where", ["main thread", "another thread"])
def test_a_child_process_shows_lines_of_code_and_no_values(child, where):
    process, serving = CHILDREN[child]
    script = f"""
import importlib, sys, threading
def fail(*_):
    cell = {MARKER!r}
    raise ValueError("cannot read " + cell)
def in_a_thread(*_):
    thread = threading.Thread(target=fail)
    thread.start()
    thread.join()
    raise SystemExit(1)
importlib.import_module({serving!r}).serve = {"fail" if where == "main thread" else "in_a_thread"}
importlib.import_module({process!r}).main()
"""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ended = subprocess.run([sys.executable, "-c", script, str(theirs.fileno())], pass_fds=[theirs.fileno()],
                               capture_output=True, text=True, timeout=300)  # fmt: skip
    assert ended.returncode == 1
    assert "ValueError in __main__" in ended.stderr or "ValueError in confide" in ended.stderr
    assert "in fail" in ended.stderr
    assert MARKER not in ended.stdout + ended.stderr


@pytest.mark.process
def test_the_drivers_process_has_no_traceback_with_variables():
    """Whatever it imports, Flower writes an error of the driver to the SuperLink's log as Python does."""
    script = """
import importlib.metadata, logging, sys
(entry,) = [each for each in importlib.metadata.entry_points(group="console_scripts") if each.name == "flwr-serverapp"]
entry.load()
from confide.coordinator.run import driver
assert sys.excepthook is sys.__excepthook__
for logger in [logging.getLogger(), *map(logging.getLogger, list(logging.root.manager.loggerDict))]:
    assert not [handler for handler in logger.handlers if "rich" in type(handler).__module__], logger
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=300)


def test_a_place_is_the_last_line_of_ours_and_who_raised_there():
    with pytest.raises(AttributeError) as raised:
        place(object())
    assert place(raised.value).startswith("AttributeError in confide.mpc.crash, line ")
    assert place(raised.value).endswith("(place)")
    assert place(KeyError(MARKER)) == "KeyError"
