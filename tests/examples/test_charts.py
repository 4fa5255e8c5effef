"""The charts of `examples/charts`: their judge, and what comes of the demonstration."""

import importlib.util
import json
import sys
from dataclasses import replace

import numpy as np
import pytest

from confide.coordinator.demo import run_demo
from confide.coordinator.errors import DemoFailed
from confide.models.charts.drawing import to_png
from confide.models.charts.reading import Reading, decode

from .conftest import EXAMPLES

sys.path.insert(0, str(EXAMPLES / "charts"))
import real_charts


@pytest.fixture(scope="module")
def everything():
    return real_charts.series()


@pytest.fixture
def judged(everything):
    own = next(one for one in everything if len(one.values) == 6 and not one.is_bar)
    chart = real_charts.drawn(own, np.random.default_rng(0))
    pixel = abs(float(np.polyfit(chart.places[:, 1], own.values, 1)[0]))
    return own, chart, Reading(own.values.copy(), pixel, (0.0, 1.0, 2.0), is_percent=False)


def test_series_are_real_and_of_both_kinds(everything):
    assert sum(own.is_bar for own in everything) > 500
    assert sum(not own.is_bar for own in everything) > 1000
    assert all(3 <= len(own.values) <= 16 and np.isfinite(own.values).all() for own in everything)
    assert not any(sign.isdigit() for own in everything for sign in own.name)


def test_the_judge_accepts_the_truth_and_what_is_within_a_pixel(judged):
    own, chart, reading = judged
    verdict = real_charts.judged(own, chart, reading)
    assert not verdict.has_wrong_figure
    assert verdict.apart.max() < 1e-6
    near = replace(reading, values=own.values + 0.9 * reading.pixel)
    verdict = real_charts.judged(own, chart, near)
    assert not verdict.has_wrong_figure
    assert verdict.apart == pytest.approx(0.9)


@pytest.mark.parametrize("place", ["first", "last", "lowest", "highest", "count"])
def test_the_judge_finds_each_wrong_figure(judged, place):
    own, chart, reading = judged
    values = own.values.copy()
    if place == "count":
        values = np.append(values, values[-1])
    else:
        chosen = {"first": 0, "last": -1, "lowest": values.argmin(), "highest": values.argmax()}[place]
        values[chosen] += 4 * reading.pixel * (-1 if place == "lowest" else 1)
    verdict = real_charts.judged(own, chart, replace(reading, values=values))
    assert verdict.has_wrong_figure
    assert np.isinf(verdict.apart).all() == (place == "count")


def test_the_judge_does_not_take_the_readers_word_for_what_a_pixel_is_worth(judged):
    own, chart, reading = judged
    for factor in (0.1, 10, 1000):
        assert real_charts.judged(own, chart, replace(reading, pixel=reading.pixel * factor)).has_wrong_figure


def test_charts_that_were_never_taught_are_charts_of_the_right_size(everything):
    found = real_charts.never_taught(everything[0], everything[5], np.random.default_rng(0))
    assert len(found) >= 10
    for picture in found.values():
        assert decode(to_png(picture)).shape == (192, 320)


@pytest.mark.slow
def test_the_demonstration_reads_real_charts_and_writes_a_page(tmp_path, capsys):
    assert run_demo("charts", tmp_path, rounds=None, is_smoke=True, as_json=True) == 0
    outcome = json.loads(capsys.readouterr().out)
    assert outcome["charts"] == 12
    assert outcome["refused"] <= 4
    assert outcome["within_a_pixel"] > 0.9
    page = (tmp_path / "charts.html").read_text()
    assert page.count("<figure>") == page.count("<img ") == 12
    assert len(list((tmp_path / "charts").glob("*.png"))) == 12


def test_an_example_without_training_has_no_rounds(tmp_path):
    with pytest.raises(DemoFailed, match="has no rounds"):
        run_demo("charts", tmp_path, rounds=3, is_smoke=True, as_json=True)


def test_every_example_with_a_study_or_a_demonstration_is_offered():
    with pytest.raises(DemoFailed, match="chapters, charts, code") as unknown:
        run_demo("flowers", EXAMPLES, rounds=None, is_smoke=True, as_json=True)
    assert "fraud" not in str(unknown.value)  # it has a program of its own


def test_the_demonstration_runs_as_a_script(tmp_path, monkeypatch, capsys):
    spec = importlib.util.spec_from_file_location("charts_demonstrate", EXAMPLES / "charts" / "demonstrate.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    monkeypatch.setattr(sys, "argv", ["demonstrate.py", str(tmp_path), "--charts", "2"])
    script.main()
    assert "charts: 2" in capsys.readouterr().out
