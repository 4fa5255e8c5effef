import errno
import os
import signal

import pytest
from typer.testing import CliRunner

from confide.client_node.cli.application import application, until_stopped
from confide.client_node.errors import StudyUnknown
from confide.models.errors import ModelError
from confide.mpc.errors import MpcError
from confide.privacy.errors import PrivacyError


class Elsewhere(Exception):
    """An error that only one command knows."""


def raising(problem):
    """An application whose one command, `fail`, raises `problem`."""
    app = application("Fails.", errors=[Elsewhere])

    @app.command()
    def fail() -> None:
        raise problem

    return app


@pytest.mark.parametrize("kind", [StudyUnknown, ModelError, MpcError, PrivacyError, OSError, Elsewhere])
def test_every_error_of_ours_is_one_message_and_exit_code_1(kind):
    text = f"no [bold]markup[/] here, {'and no line is broken ' * 9}"
    result = CliRunner().invoke(raising(kind(text)), ["fail"])
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == f"{kind.__name__}: {text}\n"


def test_an_error_that_nobody_expects_is_told_by_class_and_place_without_its_message():
    result = CliRunner().invoke(raising(KeyError("JOHN DOE")), ["fail"])
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("KeyError in confide.client_node.cli.application, line ")
    assert f"raised by {__name__}" in result.stderr
    assert "CONFIDE_DEBUG=1" in result.stderr
    assert "JOHN" not in result.stderr


def test_an_error_that_nobody_expects_goes_through_with_debug(monkeypatch):
    monkeypatch.setenv("CONFIDE_DEBUG", "1")
    assert isinstance(CliRunner().invoke(raising(ZeroDivisionError()), ["fail"]).exception, ZeroDivisionError)


def test_who_reads_a_pipe_no_more_is_told_nothing():
    result = CliRunner().invoke(raising(BrokenPipeError(errno.EPIPE, "Broken pipe")), ["fail"])
    assert (result.exit_code, result.output) == (1, "")


def test_debug_lets_an_error_of_ours_through():
    result = CliRunner().invoke(raising(Elsewhere("why")), ["--debug", "fail"])
    assert isinstance(result.exception, Elsewhere)
    assert CliRunner().invoke(raising(Elsewhere("why")), ["fail"]).exit_code == 1


def test_ctrl_c_has_an_exit_code_of_its_own():
    assert CliRunner().invoke(raising(KeyboardInterrupt()), ["fail"]).exit_code == 130


@pytest.fixture
def handlers():
    """Puts back what a service sets in the process that it owns."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_service_stops_at_a_signal(number):
    stop = until_stopped()
    assert not stop.is_set()
    os.kill(os.getpid(), number)
    assert stop.wait(5)
