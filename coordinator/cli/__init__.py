"""The command `coordinator`.

`main.app` is the application: a command parses its options, makes one call into another room, and prints. Exit codes
are in the docstring of `main`. Tests call it as this does:

>>> from typer.testing import CliRunner
>>> from confide.coordinator.cli import main
>>> shown = CliRunner().invoke(main.app, ["run", "--help"], prog_name="coordinator")
>>> shown.exit_code, shown.output.split()[:3]
(0, ['Usage:', 'coordinator', 'run'])
"""

__all__ = ["main"]
