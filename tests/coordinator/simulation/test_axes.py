"""Which trials a sweep has, and the draft of each."""

import json
import math

import pytest

from confide.client_node.errors import StudyInvalid
from confide.client_node.study import load_draft
from confide.coordinator.errors import StudyRefused
from confide.coordinator.simulation.axes import MOST_TRIALS, Axis, read_axis, said, trials, with_settings

from ...client_node.conftest import STUDY_TOML, changed


def draft_at(folder, *changes):
    (folder / "study.toml").write_text(changed(STUDY_TOML, changes))
    return load_draft(folder / "study.toml")


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("privacy.clip_norm=0.5,1,2", (0.5, 1, 2)),
        (" adapter.rank = 4 , 8 ", (4, 8)),
        ("optimizer.kind=momentum,adam", ("momentum", "adam")),
        ('optimizer.kind="momentum","adam"', ("momentum", "adam")),
        ("adapter.freeze_a=true,false", (True, False)),
        ("privacy.target_epsilon=1,none", (1, "none")),
        ('adapter.targets=["experts"],[]', (["experts"], [])),
        ("adapter.rank=4,4,8", (4, 8)),
        ("rounds.deadline_s=07:30:00", ("07:30:00",)),  # no number, as is then said of the study
    ],
)
def test_values_are_those_of_study_toml(text, values):
    assert read_axis(text).values == values


@pytest.mark.parametrize(
    "text",
    ["rank", "adapter.rank=", "=3", "rank=4", "name.x=a", "data.label=a,b", "participants.sites=a", "model.backbone=x",
     "optimizer.lr=0..1", "optimizer.lr=2..1", "optimizer.lr=-1..1", "optimizer.lr=a..b", "adapter.rank=1..inf",
     "adapter.rank=1..2,3", "privacy.delta=1e-5,1e-3", "privacy.collusion=1,0"],
)  # fmt: skip
def test_what_is_no_axis_is_refused(text):
    with pytest.raises(StudyRefused, match="--sweep"):
        read_axis(text)


def test_a_grid_has_every_combination_once():
    axes = [Axis("privacy.clip_norm", (0.5, 1.0, 2.0)), Axis("adapter.rank", (4, 8))]
    want = [{"privacy.clip_norm": c, "adapter.rank": r} for c in (0.5, 1.0, 2.0) for r in (4, 8)]
    assert trials(axes, at_random=None, seed=0) == want


def test_random_trials_are_different_ones_of_the_grid_and_a_seed_fixes_them():
    axes = [Axis("privacy.clip_norm", (0.5, 1.0, 2.0)), Axis("adapter.rank", (4, 8))]
    grid = {json.dumps(each) for each in trials(axes, at_random=None, seed=0)}
    few, many = (trials(axes, at_random=count, seed=5) for count in (3, 100))
    assert {json.dumps(each) for each in many} == grid
    assert len(many) == len(grid)
    assert many[:3] == few
    orders = {json.dumps(trials(axes, at_random=6, seed=seed)) for seed in range(5)}
    assert len(orders) > 1


def test_a_range_is_drawn_evenly_in_its_logarithm():
    drawn = [each["optimizer.lr"] for each in trials([read_axis("optimizer.lr=0.01..1")], at_random=400, seed=1)]
    assert 0.01 <= min(drawn) < max(drawn) <= 1
    # of 400 fair coins the share has a std of 0.025
    assert sum(value < 0.1 for value in drawn) / len(drawn) == pytest.approx(0.5, abs=0.1)


def test_a_range_of_whole_numbers_gives_whole_numbers_and_ends_where_there_are_no_more():
    found = trials([read_axis("adapter.rank=2..5")], at_random=50, seed=0)
    assert sorted(each["adapter.rank"] for each in found) == [2, 3, 4, 5]


def test_what_makes_no_sweep_is_refused():
    with pytest.raises(StudyRefused, match=r"names adapter\.rank twice"):
        trials([Axis("adapter.rank", (1,)), Axis("adapter.rank", (2,))], at_random=None, seed=0)
    with pytest.raises(StudyRefused, match="say --trials"):
        trials([read_axis("optimizer.lr=0.1..1")], at_random=None, seed=0)
    many = [Axis(f"adapter.{number}", tuple(range(101))) for number in range(2)]
    with pytest.raises(StudyRefused, match="10,201 trials; at most 10,000"):
        trials(many, at_random=None, seed=0)
    with pytest.raises(StudyRefused):
        trials(many, at_random=MOST_TRIALS + 1, seed=0)
    assert len(trials(many, at_random=7, seed=0)) == 7


def test_a_trial_changes_what_it_names_and_nothing_else(tmp_path):
    draft = draft_at(tmp_path)
    found = with_settings(draft, {"privacy.clip_norm": 0.5, "adapter.rank": 8, "optimizer.lr": None})
    assert (found.privacy.clip_norm, found.adapter.rank, found.optimizer.lr) == (0.5, 8, None)
    back = with_settings(found, {"privacy.clip_norm": 1, "adapter.rank": 4, "optimizer.lr": 0.3})
    assert back == draft
    assert with_settings(draft, {}) == draft


def test_a_noise_and_a_target_take_each_other_s_place(tmp_path):
    first, second = "privacy.noise_multiplier", "privacy.target_epsilon"
    draft = draft_at(tmp_path)
    for name in (first, second, first):
        draft = with_settings(draft, {name: 2.5})
        noise, target = draft.privacy.noise_multiplier, draft.privacy.target_epsilon
        assert (noise, target) == ((2.5, None) if "noise" in name else (0.0, 2.5))


def test_none_leaves_out_all_that_protects(tmp_path):
    draft = with_settings(draft_at(tmp_path), {"privacy.target_epsilon": "none", "privacy.clip_norm": 2.0})
    privacy = draft.privacy
    assert (privacy.mode, privacy.noise_multiplier, privacy.target_epsilon, privacy.delta) == ("none", 0.0, None, 0.0)
    assert (draft.evaluation, draft.prototype, privacy.clip_norm) == (None, None, 2.0)
    assert draft.noise_std == 0


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"privacy.clip": 1.0}, "is not a setting; did you mean clipping"),
        ({"privacy.clip_norm": -1.0}, r"clip_norm is -1\.0"),
        ({"privacy.clip_norm.x": 1.0}, "clip_norm"),
        ({"adapter.rank": "many"}, "rank"),
        ({"privacy.noise_multiplier": 1.0, "privacy.target_epsilon": 1.0}, "keep one"),
        ({"evaluation.bins": 3}, "even"),
    ],
)
def test_settings_that_do_not_fit_are_refused_by_the_trial_s_name(tmp_path, settings, told):
    with pytest.raises(StudyInvalid, match=told) as refused:
        with_settings(draft_at(tmp_path), settings)
    assert next(iter(settings)) in str(refused.value)


def test_settings_are_said_as_they_are_asked_for():
    assert said({"privacy.clip_norm": 0.5, "optimizer.kind": "adam", "adapter.freeze_a": True}) == (
        "privacy.clip_norm=0.5 optimizer.kind=adam adapter.freeze_a=true"
    )
    assert said({}) == "as in study.toml"
    assert math.isclose(float(said({"a.b": 1 / 3}).partition("=")[2]), 1 / 3, rel_tol=1e-5)
