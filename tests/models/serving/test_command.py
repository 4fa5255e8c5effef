import os
import re
import signal
import subprocess
import sys
from contextlib import contextmanager

import httpx
import pytest
from typer.testing import CliRunner

from confide.client_node.cli.main import app

pytestmark = pytest.mark.process

SITE = """
[data]
path = "patients.csv"
name = "records"
unit = "patient"
unit_column = "patient_id"

[budget]
epsilon = 3.0
delta = 1e-5

[backbone]
directory = "{backbone}"
"""


@contextmanager
def started(package, *words):
    """A command as a process of its own; yields its address and it."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "400"}
    command = [sys.executable, "-c", f"from confide.{package}.cli.main import app; app()", *map(str, words)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as process:  # fmt: skip
        try:
            lines = []
            for line in process.stdout:
                lines.append(line)
                if found := re.search(r"Serving on (http://\S+)/v1", line):
                    yield found[1], process, lines
                    break
            else:
                raise AssertionError("".join(lines))
        finally:
            process.kill()


@pytest.mark.slow
@pytest.mark.parametrize("who", ["a site", "an operator"])
def test_a_command_serves_until_it_is_told_to_end(parts, tmp_path, who):
    backbone, (one, two) = parts
    (tmp_path / "site.toml").write_text(SITE.format(backbone=backbone))
    words = ("coordinator", "adapter", "serve", backbone, one, two, "--port", 0, "--format", "int8")
    if who == "a site":
        (tmp_path / "start.txt").write_text("what all the requests of a tool begin with: ")
        words = ("client_node", "serve", one, two, "--port", 0, "--home", tmp_path, "--prefix", tmp_path / "start.txt")
    with started(*words) as (address, process, _):
        asked = {"model": "loans", "prompt": "a cough", "max_tokens": 4, "temperature": 0}
        answered = httpx.post(f"{address}/v1/completions", json=asked, timeout=60).json()
        assert answered["usage"]["completion_tokens"] <= 4
        long = {"model": "loans", "prompt": "what all the requests of a tool begin with: a cough", "max_tokens": 1}
        httpx.post(f"{address}/v1/completions", json=long, timeout=60).raise_for_status()
        known = re.search(r'confide_tokens_total\{kind="prefix"\} (\d+)', httpx.get(f"{address}/metrics").text)[1]
        assert (int(known) > 10) == (who == "a site")
        listed = httpx.get(f"{address}/v1/models").json()["data"]
        process.send_signal(signal.SIGTERM)
        said = process.stdout.read()
        assert process.wait(30) == 0
    assert [model["id"] for model in listed] == ["backbone", "thyroid", "loans"]
    assert "thyroid: writes; for one patient, at most epsilon 2.914 at delta 1e-05" in said
    assert "loans: writes, and classifies by its head; for one patient, at most epsilon 1.5" in said
    assert "backbone: writes; of no study" in said
    assert "Traceback" not in said


def test_settings_that_would_open_the_service_to_others_are_refused_before_a_model_is_loaded(tmp_path):
    (tmp_path / "site.toml").write_text(SITE.format(backbone=tmp_path / "nothing"))
    words = ["serve", str(tmp_path / "one"), "--host", "0.0.0.0", "--home", str(tmp_path)]
    found = CliRunner().invoke(app, words)
    assert found.exit_code == 1
    assert "add --certificate and --key and --token-file" in " ".join(found.output.split())


@pytest.mark.parametrize("content", [None, b"\xff\xfe", b"a" * (1 << 19) + b"a"])
def test_a_file_that_is_no_prefix_is_refused_before_a_model_is_loaded(tmp_path, content):
    (tmp_path / "site.toml").write_text(SITE.format(backbone=tmp_path / "nothing"))
    if content is not None:
        (tmp_path / "start.txt").write_bytes(content)
    words = ["serve", str(tmp_path / "one"), "--prefix", str(tmp_path / "start.txt"), "--home", str(tmp_path)]
    found = CliRunner().invoke(app, words)
    assert found.exit_code == 1
    said = " ".join(found.output.split())
    wanted = (
        "cannot be read: No such file" if content is None else "too many" if len(content) > 9 else "no text in UTF-8"
    )
    assert wanted in said


def test_what_is_no_adapter_is_refused_in_a_sentence(parts, tmp_path):
    backbone, _ = parts
    (tmp_path / "site.toml").write_text(SITE.format(backbone=backbone))
    found = CliRunner().invoke(app, ["serve", str(tmp_path), "--home", str(tmp_path)])
    assert found.exit_code == 1
    assert "confide.json cannot be read" in " ".join(found.output.split())
