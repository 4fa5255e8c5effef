"""The command `client-node`.

`main.app` is the application: a command parses its options, makes one call into another room, and prints. Exit codes
are in the docstring of `main`, tables in `tables`. Tests call it as this does:

>>> from typer.testing import CliRunner
>>> from confide.client_node.cli import main
>>> shown = CliRunner().invoke(main.app, ["study", "--help"], prog_name="client-node")
>>> shown.exit_code, shown.output.split()[:3]
(0, ['Usage:', 'client-node', 'study'])
"""

__all__ = ["main", "tables"]
