"""The command `coordinator`.

`main.app` is the application; each noun has its own file of commands. A command parses its options, makes one call into
another room, and shows the result with `tables` or `model_tables`. Exit codes and common options are those of
`client_node.cli.application`. A test calls a command like this:

>>> from typer.testing import CliRunner
>>> from confide.coordinator.cli import main
>>> shown = CliRunner().invoke(main.app, ["run", "--help"], prog_name="coordinator")
>>> shown.exit_code, shown.output.split()[:3]
(0, ['Usage:', 'coordinator', 'run'])
"""

__all__ = ["main"]
