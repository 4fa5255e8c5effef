"""The pages of a simulated run and of a sweep: what they draw and say, against the figures that they were given."""

import re
from dataclasses import replace

import pytest

from confide.coordinator.simulation import run_page, sweep_page
from confide.coordinator.simulation.fairness import fairness
from confide.coordinator.simulation.outcome import CAUTION

from . import made_up

HOSTILE = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def run():
    return made_up.simulation(24, 20)


@pytest.fixture(scope="module")
def swept():
    return made_up.sweep()


def heights(picture, kind):
    """The y of each dot or square of a kind, from the top."""
    dots = re.findall(rf'<circle class="{kind}" cx="([\d.]+)" cy="([\d.]+)"', picture)
    squares = re.findall(rf'<rect class="{kind}" x="([\d.]+)" y="([\d.]+)"', picture)
    return [float(y) for _, y in dots or squares]


def test_every_look_is_a_point_of_the_learning_curve(run):
    picture = str(run_page.learning_curve(run))
    looked = [each.metric for each in run.rounds if each.metric is not None]
    drawn = heights(picture, "mark")
    assert len(drawn) == len(looked) == 4
    assert drawn == sorted(drawn, reverse=True)  # the metric rises in every look
    assert f"{looked[-1]:.3f}" in picture


def test_sites_rise_from_the_worst_tenth_and_malicious_ones_are_crossed(run):
    picture = str(run_page.sites_plot(run))
    judged = [site for site in run.sites if not site.is_malicious and site.metric is not None]
    worst, others = heights(picture, "worst"), heights(picture, "mark")
    assert (len(worst), len(others)) == (3, len(judged) - 3)  # of 22 or so
    assert worst + others == sorted(worst + others, reverse=True)
    assert picture.count('class="malicious"') == 2 * sum(site.is_malicious for site in run.sites)


def test_every_round_has_a_column_as_high_as_sites_were_asked(run):
    picture = str(run_page.attendance(run))
    columns = {}
    for kind, x, height in re.findall(
        r'<rect class="(\w+)" x="([\d.]+)" y="[\d.]+" width="[\d.]+" height="([\d.]+)"', picture
    ):
        columns.setdefault(x, {})[kind] = float(height)
    columns = [own for own in columns.values() if set(own.values()) != {11.0}]  # the legend's
    assert len(columns) == len(run.rounds)
    unit = max(sum(own.values()) for own in columns) / 24
    for each, own in zip(run.rounds, columns, strict=True):
        told = {"summed": each.summed, "late": len(each.late), "refused": len(each.refused), "away": len(each.away)}
        assert {kind: round(height / unit) for kind, height in own.items()} == {k: n for k, n in told.items() if n}


def test_the_page_of_a_run_has_its_figures_in_tables_and_no_script(run):
    page = run_page.render_html(run)
    for each in run.rounds:
        assert f"{each.summed} of {each.asked}" in page
        assert each.epsilon is None or f">{each.epsilon:.2f}<" in page
    for site in run.sites:
        assert site.name in page
        assert site.metric is None or f">{site.metric:.3f}<" in page
    assert f"mean of the worst tenth {fairness(run.sites).worst_tenth:.3f}" in page
    assert "0.871" in page
    assert CAUTION in page
    assert "<script" not in page
    assert "http" not in page.replace("http-equiv", "").replace("http://www.w3.org/2000/svg", "")


def test_a_run_that_has_just_begun_has_a_page_too():
    page = run_page.render_html(made_up.simulation(4, done=2, epsilon=0.0))
    assert "2 of 40 so far" in page
    assert "nobody: no privacy" in page
    assert "Nothing was measured yet." in page
    assert "Sites are judged after the last round." in page
    assert "No round is done yet." in run_page.render_html(
        replace(made_up.simulation(4), rounds=(), sites=(), final={})
    )


def test_who_was_missing_most_is_counted_over_all_rounds(run):
    gone = [site for each in run.rounds for site in (*each.away, *each.late, *each.refused)]
    told = run_page.missing(run.rounds)
    assert len(told) == 5
    assert all(gone.count(site) == count for site, count in told)
    assert told[0][1] == max(gone.count(site) for site in gone)


def test_the_front_is_drawn_filled_with_its_numbers_and_all_others_hollow(swept):
    picture = str(sweep_page.scatter(swept))
    assert len(heights(picture, "best")) == len(swept.front)
    assert len(heights(picture, "tried")) == len(swept.trials) - len(swept.front)
    assert re.findall(r'<text class="number"[^>]*>(\d+)<', picture) == [str(each.number) for each in swept.front]
    assert 'text-anchor="end">no privacy<' in picture
    high = {each.number: y for each, y in zip(swept.front, heights(picture, "best"), strict=True)}
    assert list(high.values()) == sorted(high.values(), reverse=True)  # better for more epsilon


@pytest.mark.parametrize("epsilons", [(3.0,), (2.6, 3.6), (0.774, None), (0.0, 1.0), (0.0,), (0.01, 90.0)])
def test_the_axis_of_epsilon_can_be_read_whatever_was_tried(swept, epsilons):
    chosen = zip(swept.trials, epsilons, strict=False)
    own = replace(swept, trials=tuple(replace(trial, epsilon=epsilon, is_on_front=False) for trial, epsilon in chosen))
    picture = str(sweep_page.scatter(own))
    ticks = re.findall(r'<text class="tick" x="([\d.]+)" y="[\d.]+" text-anchor="middle">([\d.]+)<', picture)
    places = dict(zip(epsilons, re.findall(r'<circle class="tried" cx="([\d.]+)"', picture), strict=True))
    assert len(ticks) >= 2 or not any(epsilons)
    for epsilon, place in places.items():
        if epsilon:  # a dot lies between the ticks between which its epsilon does
            assert all((float(value) < epsilon) == (float(x) < float(place)) for x, value in ticks)


@pytest.mark.parametrize("seeds", [1, 3])
def test_the_page_of_a_sweep_has_every_trial_and_what_was_looked_at(seeds):
    swept = made_up.sweep(seeds=seeds)
    page = sweep_page.render_html(swept)
    for each in swept.trials:
        assert f"{each.over_records[0]:.3f}–{each.over_records[1]:.3f}" in page
        assert each.epsilon is None or f'>{each.epsilon:.2f}</td><td class="n">{each.epsilon_planned:.2f}<' in page
    assert page.count('<span class="yes">front</span>') == len(swept.front)
    assert ("± 0.004" in page) == (seeds > 1)
    assert f"{36 * seeds} runs of 36 settings, {seeds} seeds, all on the same 4,812 held-out records" in page
    assert "the best of 36 trials looks better than it is" in page
    assert "no noise reaches 0.01" in page
    assert "<script" not in page


def test_a_sweep_of_one_trial_has_a_page():
    swept = made_up.sweep()
    one = replace(swept, trials=tuple(replace(each, is_on_front=True) for each in swept.trials[-1:]), left_out=())
    page = sweep_page.render_html(one)
    assert "1 of 37" in page
    assert "Left out" not in page


def test_names_from_elsewhere_are_escaped(run, swept):
    pages = (
        run_page.render_html(replace(run, settings=replace(run.settings, study=HOSTILE))),
        run_page.render_html(replace(run, sites=(replace(run.sites[0], name=HOSTILE),))),
        sweep_page.render_html(replace(swept, study=HOSTILE)),
        sweep_page.render_html(replace(swept, left_out=(replace(swept.left_out[0], why=HOSTILE),))),
    )
    for page in pages:
        assert "<script" not in page
        assert "&lt;script&gt;" in page


def test_json_of_a_sweep_names_the_front_and_has_the_notes(swept):
    found = swept.to_dict()
    assert found["front"] == [each["number"] for each in found["trials"] if each["is_on_front"]]
    assert found["notes"] == list(swept.lines)
    assert found["tried"] == {"runs": 108, "settings": 36, "seeds": 3}
