"""Simulated runs of a tiny study: the same bits from any number of processes, what is kept, what is told."""

import json
import math
from collections import Counter
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from typer.testing import CliRunner

from confide.client_node.replay import Checkpoint
from confide.client_node.study import load_draft
from confide.coordinator.cli.main import app
from confide.coordinator.errors import RunRefused, StateDamaged, StudyRefused
from confide.coordinator.simulation import Faults, Plan, simulate
from confide.coordinator.simulation.outcome import CAUTION
from confide.models.adapters.peft_import import read as read_released
from confide.privacy.accounting import Release, epsilon_pld

from ...client_node.conftest import STUDY_TOML, changed
from ..comparison.test_ladder import write_records

pytestmark = pytest.mark.slow

ROUNDS, SITES = 3, 12
FEW = (
    ("\nrounds = 40", f"\nrounds = {ROUNDS}"),
    ("sample_rate = 0.2", "sample_rate = 0.5"),
    ("batch_units = 1374", "batch_units = 80"),
    ("max_dropouts = 0", "max_dropouts = 8"),
    ("max_records_per_unit = 2\n", ""),
)
NONE = (
    ('mode = "distributed"', 'mode = "none"'),
    ("noise_multiplier = 1.19\n", ""),
    ("delta = 1e-5\n", ""),
    ("max_dropouts = 8\n", ""),
    ("collusion = 1", "collusion = 0"),
)
PLAN = Plan(sites=SITES, max_rows=12, workers=1)


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    return write_records(tmp_path_factory.mktemp("records"))


def simulated(folder, records, backbone, *changes, plan=PLAN, **options):
    """Simulates the tiny study with changes."""
    names = ", ".join(f'"n{number}"' for number in range(SITES))
    text = changed(STUDY_TOML, (*FEW, ('"other", "svi", "svhc", "rest"', names)))
    (folder / "study.toml").write_text(changed(text, changes))
    draft = load_draft(folder / "study.toml")
    return simulate(draft, records, folder / "out", plan=plan, backbone=backbone, **options)


@pytest.fixture
def run(tmp_path, records, backbone):
    return partial(simulated, tmp_path, records, backbone)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, records, backbone):
    """A simulation without noise, in one process, and its folder."""
    folder = tmp_path_factory.mktemp("whole")
    return simulated(folder, records, backbone, *NONE), folder / "out"


@pytest.mark.process
def test_bits_depend_on_neither_processes_nor_shares(run, whole):
    assert run(*NONE, plan=replace(PLAN, workers=3, secret_sharing=True)).state == whole[0].state


def test_a_stopped_simulation_goes_on_to_the_same_bits(run, tmp_path, whole):
    def stop(done, total, newest):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(*NONE, watch=stop)
    told = json.loads((tmp_path / "out" / "simulation.json").read_text())
    assert (told["is_done"], len(told["rounds"])) == (False, 2)
    seen = []
    again = run(*NONE, watch=lambda done, total, newest: seen.append((done, total, newest and newest.number)))
    assert seen == [(2, ROUNDS, None), (3, ROUNDS, 3)]
    assert again.state == whole[0].state
    assert [each.metric for each in again.rounds] == [each.metric for each in whole[0].rounds]
    with pytest.raises(StudyRefused, match="other terms"):
        run(*NONE, plan=replace(PLAN, seed=1))
    next((tmp_path / "out").glob("state-*")).write_bytes(b"")
    with pytest.raises(StateDamaged):
        run(*NONE)


@pytest.fixture(scope="module")
def dropped(tmp_path_factory, records, backbone):
    """A private simulation in which sites are away, with noise for them in advance."""
    plan = replace(PLAN, faults=Faults(dropouts=0.3))
    return simulated(tmp_path_factory.mktemp("dropped"), records, backbone, plan=plan)


def test_epsilon_is_that_of_the_sums_that_were_opened(dropped):
    summed = [each.summed for each in dropped.rounds]
    assert min(summed) < SITES
    assert all(each.summed + len(each.away) == each.asked == SITES for each in dropped.rounds)
    sigma = math.ceil(1.19 / math.sqrt(SITES - 8 - 1) * 2**20)  # any 3 honest sites make up the noise
    fixed = {"mode": "distributed", "clip_norm": 1.0, "sample_rate": 0.5, "scale_bits": 20, "site_noise_int": sigma}
    releases = Counter(Release(**fixed, dim=dropped.settings.trained, sites=count) for count in summed)
    want = epsilon_pld(releases, 1e-5, 1)
    assert dropped.epsilon == dropped.rounds[-1].epsilon
    assert want <= dropped.epsilon <= 1.01 * want  # the study's ring is coarser, and dearer by 1 % at most
    assert dropped.rounds[0].epsilon < dropped.rounds[1].epsilon < dropped.epsilon < dropped.epsilon_planned


def test_a_topped_up_sum_costs_what_was_planned(run, dropped):
    top_up = ("max_dropouts = 8", 'max_dropouts = 8\ndropouts = "top-up"')
    topped = run(top_up, plan=replace(PLAN, faults=Faults(dropouts=0.3)))
    assert [each.summed for each in topped.rounds] == [each.summed for each in dropped.rounds]
    assert dropped.epsilon < topped.epsilon <= topped.epsilon_planned
    assert topped.epsilon == pytest.approx(topped.epsilon_planned, rel=0.01)


def test_hostile_sites_are_left_out_and_a_run_without_a_quorum_stops(run):
    hostile = replace(PLAN, faults=Faults(malicious=2))
    found = run(plan=hostile)
    refused = {each.refused for each in found.rounds}
    assert len(refused) == 1
    assert {site.name for site in found.sites if site.is_malicious} == set(*refused)
    assert {site.rounds for site in found.sites if site.is_malicious} == {0}
    assert [each.summed for each in found.rounds] == [SITES - 2] * ROUNDS


def test_a_sum_below_the_quorum_stops_it(run):
    with pytest.raises(RunRefused, match="norm check leaves 10 sites"):
        run(("max_dropouts = 8", "max_dropouts = 1"), plan=replace(PLAN, faults=Faults(malicious=2)))


def test_what_is_told_is_what_the_adapter_gives(whole):
    found, out = whole
    assert found.metric == "auc"
    assert found.value == found.rounds[-1].metric == found.final["auc"]["value"]
    assert (found.epsilon, found.epsilon_planned) == (None, None)
    assert (sum(site.units for site in found.sites), sum(site.held_out for site in found.sites)) == (160, 60)
    assert {site.rounds for site in found.sites} == {ROUNDS}
    told = json.loads((out / "simulation.json").read_text())
    assert told["caution"] == CAUTION
    assert told == json.loads(json.dumps(found.to_dict()))
    checkpoint = Checkpoint.from_bytes(ROUNDS, next((out).glob("state-*")).read_bytes())
    released = read_released(out / "adapter")
    assert found.settings.study_hash in (out / "adapter" / "README.md").read_text()
    head = released.head["weight"].numpy().ravel()
    np.testing.assert_array_equal(head, checkpoint.state[: head.size])


def test_a_command_tells_curve_sites_and_caution(whole, records, backbone):
    out = whole[1]
    words = ["simulate", out.parent / "study.toml", records, "--out", out, "--sites", SITES, "--rows", 12,
             "--backbone", backbone, "--workers", 1]  # fmt: skip
    result = CliRunner().invoke(app, [*map(str, words)], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    text = " ".join(result.output.split())
    assert CAUTION in text
    assert "12 of 12" in text
    assert "Sites by themselves" in text
    found = json.loads(CliRunner().invoke(app, [*map(str, words), "--json"]).stdout)
    assert found == json.loads((out / "simulation.json").read_text())
    refused = CliRunner().invoke(app, [*map(str, words), "--malicious", "3"])
    assert (refused.exit_code, "other terms" in refused.output) == (1, True)


@pytest.mark.parametrize(
    "faults", [Faults(dropouts=1.0), Faults(slow=2.0), Faults(slow_s=0.0), Faults(length=math.nan)]
)
def test_impossible_faults_are_refused(run, faults):
    with pytest.raises(StudyRefused, match="dropouts in"):
        run(plan=replace(PLAN, faults=faults))
