"""The command `client-node`, and the frame that the command `coordinator` shares with it.

`main.app` is the application, with a file for the commands on each noun: a command parses its options, makes one call
into another room, and shows what comes back by `tables`. `application` holds exit codes, common options and how errors
are told, `console` prints. Tests call a command as this does:

>>> from typer.testing import CliRunner
>>> from confide.client_node.cli import main
>>> shown = CliRunner().invoke(main.app, ["study", "--help"], prog_name="client-node")
>>> shown.exit_code, shown.output.split()[:3]
(0, ['Usage:', 'client-node', 'study'])
"""

__all__ = ["application", "console", "main"]
