"""The command `client-node`, and the frame that the command `coordinator` shares with it.

`main.app` is the application; each noun has its own file of commands. A command parses its options, makes one call into
another room, and shows the result with `tables`. `application` has exit codes, common options and error messages;
`console` prints, `service` serves adapters, and `backup` and `keys` tell of backups and sealed keys for either command.
A test calls a command like this:

>>> from typer.testing import CliRunner
>>> from confide.client_node.cli import main
>>> shown = CliRunner().invoke(main.app, ["study", "--help"], prog_name="client-node")
>>> shown.exit_code, shown.output.split()[:3]
(0, ['Usage:', 'client-node', 'study'])
"""

__all__ = ["application", "backup", "console", "health", "keys", "main", "service", "tables"]
