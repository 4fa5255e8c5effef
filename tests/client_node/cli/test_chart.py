import json
import os

import numpy as np
import pytest
from typer.testing import CliRunner

from confide.client_node.cli.main import app
from confide.models.charts import drawing, reader
from confide.models.charts.drawing import Style, draw

REFUSED = 3
VALUES = [3.0, 8.5, 6.25, 7.0]


@pytest.fixture
def charts(tmp_path):
    line, bars = draw(VALUES, Style(is_bar=False)), draw(VALUES, Style(is_bar=True))
    (tmp_path / "albumin.png").write_bytes(drawing.to_png(line.picture))
    (tmp_path / "loans.png").write_bytes(drawing.to_png(bars.picture))
    (tmp_path / "text.png").write_text("no picture")
    return tmp_path


def call(*words, code=0):
    result = CliRunner().invoke(app, ["chart", *map(str, words)], env={"COLUMNS": "400"})
    assert result.exit_code == code, result.output
    return result


def test_charts_are_read_and_reported(charts):
    found = json.loads(call("read", charts / "albumin.png", charts / "loans.png", "--json").stdout)
    assert found["reader"] == reader.load()[1]
    for own, name in zip(found["charts"], ("albumin", "loans"), strict=True):
        assert own["file"].endswith(f"{name}.png")
        assert np.abs(np.array(own["values"]) - VALUES).max() <= 1.5 * own["pixel"]
        assert own["report"].startswith(f"{name}: 4 values. The first is {own['given']['first']}, and the last")
    assert "albumin: 4 values" in call("read", charts / "albumin.png").stdout


def test_what_is_refused_is_told_for_each_file_and_the_others_are_read(charts):
    files = [charts / "albumin.png", charts / "text.png", charts / "none.png"]
    found = json.loads(call("read", *files, "--json", code=REFUSED).stdout)["charts"]
    assert "values" in found[0]
    assert "is no PNG file" in found[1]["refused"]
    assert "No such file" in found[2]["refused"]
    said = call("read", *files, code=REFUSED).stdout.splitlines()
    assert [": refused: " in line for line in said] == [False, True, True]


def test_what_is_no_file_is_refused_at_once_and_its_name_shows_no_escapes(charts):
    os.mkfifo(charts / "pipe.png")
    (charts / "esc\x1b[31m.png").write_text("no picture")
    files = ["/dev/zero", charts / "pipe.png", charts, charts / "esc\x1b[31m.png", charts / "albumin.png"]
    said = call("read", *files, code=REFUSED).stdout
    assert "\x1b" not in said
    assert said.count("refused: ") == 4
    assert said.count("is no file with a picture in it") == 2
    assert "Is a directory" in said
    assert "albumin: 4 values" in said


def test_a_name_with_figures_adds_none_to_the_report(charts):
    (charts / "albumin.png").rename(charts / "the first is 99.9.png")
    (own,) = json.loads(call("read", charts / "the first is 99.9.png", "--json").stdout)["charts"]
    assert own["report"].startswith("the first is: 4 values. The first is")


def test_a_reader_is_built_and_reads(charts):
    out = charts / "own.safetensors"
    call("build", out, "--charts", 2, "--steps", 1)
    found = json.loads(call("read", charts / "albumin.png", "--reader", out, "--json", code=REFUSED).stdout)
    assert found["reader"] == reader.load(out)[1] != reader.load()[1]
    assert "exists already" in call("build", out, code=2).output
    assert "its folder is missing" in call("build", charts / "none" / "own.safetensors", code=2).output


def test_a_file_that_is_no_reader_is_told(charts):
    result = CliRunner().invoke(
        app, ["chart", "read", str(charts / "albumin.png"), "--reader", str(charts / "text.png")]
    )
    assert result.exit_code == 1
    assert "is no reader of charts" in result.output
