"""Simulated runs of a tiny study: the same bits from any number of processes, what is kept, what is told."""

import json
import math
import os
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from functools import partial
from multiprocessing import get_context

import numpy as np
import pytest
from typer.testing import CliRunner

from confide.client_node.replay import Checkpoint
from confide.client_node.replay.following import round_start
from confide.client_node.study import load_draft
from confide.coordinator.cli.main import app
from confide.coordinator.errors import Conflict, RunFailed, RunRefused, StateDamaged, StudyRefused
from confide.coordinator.simulation import Faults, Plan, engine, simulate
from confide.coordinator.simulation.bench import Bench, Processes, processes
from confide.coordinator.simulation.kept import Kept, held
from confide.coordinator.simulation.outcome import CAUTION
from confide.models.adapters.peft_import import read as read_released
from confide.mpc.sharing import Ring
from confide.mpc.sharing.ring import decode, to_integers
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


def drafted(folder, *changes):
    """The tiny study with changes."""
    names = ", ".join(f'"n{number}"' for number in range(SITES))
    text = changed(STUDY_TOML, (*FEW, ('"other", "svi", "svhc", "rest"', names)))
    (folder / "study.toml").write_text(changed(text, changes))
    return load_draft(folder / "study.toml")


def simulated(folder, records, backbone, *changes, plan=PLAN, out=None, **options):
    """Simulates the tiny study with changes."""
    draft = drafted(folder, *changes)
    return simulate(draft, records, out or folder / "out", plan=plan, backbone=backbone, **options)


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


def test_a_sum_is_topped_up_for_refused_sites_too(records, backbone, tmp_path):
    loud = ("noise_multiplier = 1.19", "noise_multiplier = 100.0")  # beside which the gradients are nothing
    draft = drafted(tmp_path, ("max_dropouts = 8", 'max_dropouts = 8\ndropouts = "top-up"'), loud)
    plan, out = replace(PLAN, faults=Faults(malicious=4)), tmp_path / "out"
    ready = engine._ready(draft, records, plan, backbone, None, None)
    with processes(ready.bench, 1) as group:
        course = engine._Course(ready, group, Kept.of(out, ready.digest))
        words, summed = course.total_of(round_start(ready.study, course.checkpoint()))
    ring = Ring(ready.study.ring_bits, ready.study.scale_bits)
    total = decode(to_integers(np.frombuffer(words, ring.unsigned), ring), ring)
    assert summed == SITES - 4
    # As real sites that are left over make it whole for just this set: sigma C sqrt(n / (n - c)).
    assert total.std() == pytest.approx(100.0 * math.sqrt(8 / 7), rel=0.03)
    found = simulate(draft, records, out, plan=plan, backbone=backbone)
    assert {(each.summed, len(each.refused)) for each in found.rounds} == {(SITES - 4, 4)}
    assert found.epsilon == pytest.approx(found.epsilon_planned, rel=0.01)


def test_without_noise_a_seed_draws_other_samples(run, tmp_path):
    states = set()
    for seed in (0, 1):
        plan = Plan(max_rows=12, workers=1, seed=seed)  # the records are where they are
        four = ", ".join(f'"n{number}"' for number in range(SITES)), '"other", "svi", "svhc", "rest"'
        states.add(run(*NONE, four, ("\nrounds = 3", "\nrounds = 1"), plan=plan, out=tmp_path / str(seed)).state)
    assert len(states) == 2


def test_a_folder_is_held_by_one_simulation(run, tmp_path):
    with held(tmp_path / "out"), pytest.raises(Conflict, match="another process"):
        run(*NONE)


@pytest.mark.process
def test_a_process_that_ended_before_its_task_is_told():
    with ProcessPoolExecutor(1, get_context("fork")) as executor:
        with pytest.raises(BrokenProcessPool):
            executor.submit(os._exit, 1).result()
        with pytest.raises(RunFailed, match="a process ended"):
            list(Processes(None, 1, executor).each(Bench.measure, [(0, "auc")]))


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
    assert (found.epsilon, found.epsilon_planned, found.settings.split) == (None, None, "iid")
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
    assert "must be public or synthetic" in result.stderr
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
