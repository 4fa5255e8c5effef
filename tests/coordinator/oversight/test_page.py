"""What docs/operators.md says of commands and actions is what the program does."""

import re
from pathlib import Path

from confide.coordinator.oversight.roles import COMMANDS
from confide.coordinator.store.actions import ACTIONS

PAGE = (Path(__file__).parents[3] / "docs" / "operators.md").read_text()
ROW = re.compile(r"^\| `([a-z ]+)` \| (\w+) \| (?:`([a-z.]+)` )?\|$", re.MULTILINE)


def test_the_table_of_commands_is_that_of_the_program():
    rows = [(command, role, action or None) for command, role, action in ROW.findall(PAGE)]
    assert rows == [(command, access.role, access.action) for command, access in COMMANDS.items()]


def test_every_action_of_the_vocabulary_is_named():
    assert {name for name in ACTIONS if f"`{name}`" not in PAGE} == set()
