"""A sweep on a tiny separable problem: what each trial is, what is kept, and what people and programs are told."""

import json
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from confide.client_node.errors import StudyInvalid
from confide.client_node.study import load_draft
from confide.client_node.study.cost import releases_of_draft
from confide.coordinator.cli.main import app
from confide.coordinator.errors import Conflict, StudyRefused
from confide.coordinator.simulation import Plan, engine, sweeping
from confide.coordinator.simulation.axes import Axis, with_settings
from confide.coordinator.simulation.front import pareto_front
from confide.coordinator.simulation.kept import held
from confide.privacy.accounting import epsilon_pld

from ...client_node.conftest import EVALUATION, STUDY_TOML, changed
from ..comparison.test_ladder import FEW, write_records

pytestmark = pytest.mark.slow

PLAN = Plan(workers=1, max_rows=12)  # so that few shapes of batches are probed
NOISE = Axis("privacy.noise_multiplier", (0.8, 3.0, "none"))
CLIP = Axis("privacy.clip_norm", (0.5, 1.0))


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    return write_records(tmp_path_factory.mktemp("records"))


@pytest.fixture(scope="module")
def draft(tmp_path_factory):
    path = tmp_path_factory.mktemp("draft") / "study.toml"
    path.write_text(changed(STUDY_TOML, (*FEW, ("\nrounds = 6", "\nrounds = 2"), EVALUATION)))
    return load_draft(path)


@pytest.fixture(scope="module")
def swept(tmp_path_factory, draft, records, backbone):
    """Two noises and none, two runs each; and the folder where they are kept."""
    folder = tmp_path_factory.mktemp("swept")
    return folder, sweeping.sweep(draft, records, folder, axes=[NOISE], seeds=2, plan=PLAN, backbone=backbone)


def test_a_trial_costs_what_the_rounds_of_its_terms_cost(swept, draft):
    _, found = swept
    assert len(found.trials) == found.planned == 3
    for trial in found.trials:
        terms = with_settings(draft, trial.settings)
        if terms.privacy.mode == "none":
            assert trial.epsilon is None
            continue
        whole, rounds = (
            releases_of_draft(each, trained(swept[0]))
            for each in (terms, terms.model_copy(update={"evaluation": None}))
        )
        assert (sum(whole.values()), sum(rounds.values())) == (3, 2)
        costs = [epsilon_pld(each, terms.privacy.delta, terms.privacy.collusion) for each in (whole, rounds)]
        assert [trial.epsilon_planned, trial.epsilon] == pytest.approx(costs)


def trained(folder):
    """The number of trained numbers, by what a run tells of itself."""
    return json.loads(next((folder / "runs").glob("*/simulation.json")).read_text())["settings"]["trained"]


def test_a_run_is_what_simulate_gives_by_itself(swept, draft, records, backbone, tmp_path):
    folder, found = swept
    settings = found.trials[2].settings
    alone = engine.simulate(
        with_settings(draft, settings), records, tmp_path, plan=replace(PLAN, seed=1), backbone=backbone
    )  # fmt: skip
    assert settings == {"privacy.noise_multiplier": "none"}  # so that a seed fixes all
    (run,) = (run for run in kept_runs(folder) if run["settings"] == settings and run["seed"] == 1)
    assert run["value"] == alone.value
    assert {name: run[name] for name in ("low", "high")} == {name: alone.final["auc"][name] for name in ("low", "high")}
    assert run["worst_tenth"] == min(site.metric for site in alone.sites)


def kept_runs(folder):
    return [json.loads(line) for line in (folder / "tried.jsonl").read_text().splitlines()]


def test_a_trial_is_the_mean_of_its_runs_with_student_s_interval(swept):
    folder, found = swept
    for trial in found.trials:
        one, other = (run["value"] for run in kept_runs(folder) if run["settings"] == trial.settings)
        mean, half = (one + other) / 2, 12.7062 * abs(one - other) / 2  # Student's t of one degree of freedom, 97.5 %
        assert trial.value == pytest.approx(mean)
        assert trial.spread == pytest.approx((mean - half, mean + half), abs=1e-5)


def test_the_front_is_that_of_the_trials(swept):
    _, found = swept
    front = pareto_front([each.epsilon for each in found.trials], [each.value for each in found.trials])
    assert [each.number - 1 for each in found.front] == front
    assert found.front[0].epsilon is not None
    assert found.tried.runs == 6
    assert (found.tried.settings, found.tried.seeds, found.held_out, found.sites) == (3, 2, 60, 4)


def test_a_second_sweep_computes_nothing_and_more_seeds_only_what_is_new(swept, draft, records, backbone, monkeypatch):
    folder, found = swept
    monkeypatch.setattr(sweeping, "simulate", None)
    given = {"axes": [NOISE], "plan": PLAN, "backbone": backbone}
    assert sweeping.sweep(draft, records, folder, **given, seeds=2) == found
    fewer = sweeping.sweep(draft, records, folder, **given, seeds=1)
    assert (fewer.tried, {each.seeds for each in fewer.trials}) == (found.tried, {1})
    with pytest.raises(TypeError):  # there is something to compute
        sweeping.sweep(draft, records, folder, **given, seeds=3)
    with pytest.raises(TypeError):
        sweeping.sweep(draft, records, folder, **given | {"plan": replace(PLAN, sites=5)}, seeds=1)


def test_a_sweep_that_was_stopped_goes_on_within_a_run(draft, records, backbone, tmp_path):
    axes, seen = [Axis("privacy.noise_multiplier", ("none",)), CLIP], []

    def stop(done, total, name):
        if done > 1:  # after a round of the second run
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweeping.sweep(draft, records, tmp_path, axes=axes, plan=PLAN, backbone=backbone, watch=stop)
    assert len(json.loads((tmp_path / "sweep.json").read_text())["trials"]) == 1
    assert "1 of 2" in (tmp_path / "sweep.html").read_text()
    found = sweeping.sweep(
        draft, records, tmp_path, axes=axes, plan=PLAN, backbone=backbone, watch=lambda *told: seen.append(told[:2])
    )
    assert seen == [(0.0, 1), (0.5, 1), (1.0, 1), (1, 1)]  # one run is left, and one of its two rounds
    assert len(found.trials) == 2


def test_values_that_make_one_study_are_one_trial_and_one_look(draft, records, backbone, tmp_path):
    axes = [Axis("privacy.noise_multiplier", ("none",)), Axis("privacy.clip_norm", (1, 1.0))]
    found = sweeping.sweep(draft, records, tmp_path, axes=axes, plan=PLAN, backbone=backbone)
    assert (len(found.trials), found.planned, found.seeds, found.tried.runs) == (1, 1, 1, 1)
    with held(tmp_path), pytest.raises(Conflict, match="another process"):
        sweeping.sweep(draft, records, tmp_path, axes=axes, plan=PLAN, backbone=backbone)


def test_a_trial_that_cannot_be_is_left_out_and_told(draft, records, backbone, tmp_path):
    axes = [Axis("privacy.target_epsilon", (1e-5, "none"))]
    found = sweeping.sweep(draft, records, tmp_path, axes=axes, plan=PLAN, backbone=backbone)
    assert [each.settings for each in found.left_out] == [{"privacy.target_epsilon": 1e-5}]
    assert "target_epsilon" in found.left_out[0].why
    assert len(found.trials) == 1
    with pytest.raises(StudyRefused, match="no trial can be simulated"):
        sweeping.sweep(
            draft, records, tmp_path, axes=[Axis("privacy.target_epsilon", (1e-5,))], plan=PLAN, backbone=backbone
        )


def test_all_trials_are_checked_before_the_first_is_simulated(draft, records, backbone, tmp_path, monkeypatch):
    monkeypatch.setattr(sweeping, "simulate", None)
    with pytest.raises(StudyInvalid, match=r"clip_norm=-1"):
        sweeping.sweep(
            draft, records, tmp_path, axes=[Axis("privacy.clip_norm", (1.0, -1.0))], plan=PLAN, backbone=backbone
        )


def call(folder, records, backbone, *words):
    options = ("--out", folder / "out", "--backbone", backbone, "--workers", 1, "--rows", 12)
    return CliRunner().invoke(app, ["simulate", *map(str, (folder / "study.toml", records, *options, *words))])


def test_the_command_prints_the_front_and_what_was_looked_at(draft, records, backbone, tmp_path):
    (tmp_path / "study.toml").write_text(changed(STUDY_TOML, (*FEW, ("\nrounds = 6", "\nrounds = 2"))))
    words = ("--sweep", "privacy.noise_multiplier=0.8,none", "--trials", 5)
    told = call(tmp_path, records, backbone, *words)
    assert told.exit_code == 0, told.output
    assert "the Pareto front of 2 trials, AUC against ε" in told.stdout
    assert "privacy.noise_multiplier" in told.stdout
    assert "Looked at so far in this folder: 2 runs of 2 settings, 1 seeds, all on the same 60 held-out" in told.stdout
    assert "looks better than it is" in told.stdout
    assert "sweep.html" in told.stdout
    found = json.loads(call(tmp_path, records, backbone, *words, "--json").stdout)
    assert found == json.loads((tmp_path / "out" / "sweep.json").read_text())


@pytest.mark.parametrize(
    ("words", "told", "code"),
    [
        (("--sweep", "rank=4"), "by their dotted name", 1),
        (("--seeds", "2"), "say --sweep", 2),
        (("--trials", "2"), "say --sweep", 2),
        (("--sweep", "optimizer.lr=0.1..1"), "say --trials", 1),
    ],
)
def test_what_makes_no_sweep_is_refused(records, backbone, tmp_path, words, told, code):
    (tmp_path / "study.toml").write_text(changed(STUDY_TOML, FEW))
    result = call(tmp_path, records, backbone, *words)
    assert (result.exit_code, told in " ".join(result.output.split())) == (code, True), result.output
