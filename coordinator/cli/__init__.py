"""The command `coordinator`.

`main.app` is the application, with a file for the commands on each noun: a command parses its options, makes one call
into another room, and shows what comes back by `tables` or `model_tables`. Exit codes and common options are those of
`client_node.cli.application`. Tests call a command as this does:

>>> from typer.testing import CliRunner
>>> from confide.coordinator.cli import main
>>> shown = CliRunner().invoke(main.app, ["run", "--help"], prog_name="coordinator")
>>> shown.exit_code, shown.output.split()[:3]
(0, ['Usage:', 'coordinator', 'run'])
"""

__all__ = ["main"]
