import numpy as np
import pytest
import torch

from confide.models.charts.drawing import Style, draw, made_up_chart
from confide.models.charts.reader import KINDS, LETTERS, STRIDE, ReaderConfig
from confide.models.charts.training import ReaderTrainingConfig, _targets, draw_lesson, train_reader
from confide.models.errors import InvalidChart

SMALL = ReaderConfig(width=8, heads=(1, 2), depths=(1, 1), label_width=8)
VALUE, Y_TICK, X_TICK, MULTIPLIER = range(len(KINDS))


@pytest.fixture(scope="module")
def lesson():
    return draw_lesson(range(8), 1)


def test_targets_give_back_every_mark_of_a_line():
    chart = draw([3.0, 8.5, 6.25], Style(is_bar=False))
    heat, place, near = _targets(chart)
    for kind, wanted in ((VALUE, chart.places), (X_TICK, [(x, chart.base) for x, _ in chart.places])):
        rows, columns = np.nonzero(heat[kind])
        x = (columns + 0.5 + place[kind, 0, rows, columns]) * STRIDE
        y = (rows + 0.5 + place[kind, 1, rows, columns]) * STRIDE
        assert np.allclose(sorted(zip(x, y, strict=True)), sorted(map(tuple, wanted)), atol=0.02)
    rows, columns = np.nonzero(heat[Y_TICK])
    assert sorted((rows + 0.5 + place[Y_TICK, 1, rows, columns]) * STRIDE) == pytest.approx(
        sorted(y for y, _ in chart.ticks), abs=0.02
    )
    assert not heat[MULTIPLIER].any()
    assert (near >= heat).all()


def test_beside_a_mark_its_place_is_told_from_there():
    chart = draw([3.0, 8.5, 6.25], Style(is_bar=False))
    heat, place, near = _targets(chart)
    beside = (near[VALUE] == 1) & (heat[VALUE] == 0)
    rows, columns = np.nonzero(beside)
    y = (rows + 0.5 + place[VALUE, 1, rows, columns]) * STRIDE
    assert all(np.abs(chart.places[:, 1] - one).min() < 0.02 for one in y)
    assert beside.sum() == 2 * len(chart.places)


def test_the_whole_top_of_a_bar_is_marked():
    chart = draw([3.0, 8.5, 6.25], Style(is_bar=True, bar_width=0.8))
    heat, place, _ = _targets(chart)
    rows, columns = np.nonzero(heat[VALUE])
    for (_, y), (left, right) in zip(chart.places, chart.tops, strict=True):
        own = (columns + 0.5) * STRIDE
        inside = (own > left) & (own < right)
        assert inside.sum() >= (right - left) / STRIDE - 2
        assert np.allclose((rows[inside] + 0.5 + place[VALUE, 1, rows[inside], columns[inside]]) * STRIDE, y, atol=0.02)


def test_a_chart_of_a_lesson_depends_on_its_number_and_the_seed_alone(lesson):
    later = draw_lesson(range(4, 6), 1)
    assert np.array_equal(later.charts_NHW, lesson.charts_NHW[4:6])
    assert np.array_equal(draw_lesson([0], 1).charts_NHW[0], made_up_chart(np.random.default_rng([1, 0])).picture)
    assert not np.array_equal(draw_lesson([0], 2).charts_NHW, lesson.charts_NHW[:1])


def test_labels_of_a_lesson_are_told_by_letters(lesson):
    assert len(lesson.labels_LHW) == len(lesson.letters) > 8
    assert all(len(word) > 0 and word.max() < len(LETTERS) for word in lesson.letters)


@pytest.mark.slow
def test_training_makes_a_reader_better_and_is_repeatable(lesson):
    from confide.models.charts.training import _letters_loss, _pointing_loss

    def losses(reader):
        with torch.no_grad():
            charts, labels = np.arange(8), np.arange(len(lesson.labels_LHW))
            return _pointing_loss(reader, lesson, charts).item(), _letters_loss(reader, lesson, labels).item()

    config = ReaderTrainingConfig(charts=8, steps=12, batch=4, lr=3e-3)
    calls = []
    reader = train_reader(SMALL, config, lambda done, total: calls.append((done, total)), lesson)
    again = train_reader(SMALL, config, lesson=lesson)
    untrained = train_reader(SMALL, ReaderTrainingConfig(charts=8, steps=1, batch=4, lr=1e-9), lesson=lesson)
    assert all(after < before for after, before in zip(losses(reader), losses(untrained), strict=True))
    assert all(torch.equal(one, other) for one, other in zip(reader.parameters(), again.parameters(), strict=True))
    assert calls[-1] == (12, 12)
    assert not reader.training


def test_training_draws_its_charts_and_counts_them():
    calls = []
    config = ReaderTrainingConfig(charts=2, steps=1, batch=2)
    train_reader(SMALL, config, lambda done, total: calls.append((done, total)))
    assert calls == [(1, 3), (2, 3), (3, 3)]


def test_training_leaves_the_callers_generator_alone(lesson):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    train_reader(SMALL, ReaderTrainingConfig(charts=1, steps=1, batch=1), lesson=lesson)
    assert torch.equal(torch.get_rng_state(), before)


def test_charts_whose_labels_are_all_cut_off_teach_nothing(monkeypatch):
    monkeypatch.setattr("confide.models.charts.training.letters", lambda label: "")
    with pytest.raises(InvalidChart, match="draw more"):
        draw_lesson(range(2), 1)


@pytest.mark.parametrize("settings", [{"charts": 0}, {"steps": 0}, {"batch": 0}, {"lr": 0.0}, {"lr": float("nan")}])
def test_settings_that_cannot_be_are_refused(settings):
    with pytest.raises(InvalidChart, match="need charts, steps"):
        ReaderTrainingConfig(**settings)
