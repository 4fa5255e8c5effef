import json
import tempfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from confide.coordinator.cli.main import app


@pytest.fixture(scope="session")
def smollm2():
    """The checkpoint that `coordinator backbone import smollm2` writes, and what it printed; made once, 740 MB."""
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "smollm2"
        result = CliRunner().invoke(app, ["backbone", "import", "smollm2", str(directory), "--json"])
        assert result.exit_code == 0, result.output
        yield directory, json.loads(result.stdout)
