"""Simulated runs of a tiny study: the same bits from any number of processes, what is kept, what is told."""

import json
import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

from confide.client_node.replay import Checkpoint
from confide.client_node.replay.server_optimizer import ServerOptimizer
from confide.client_node.study import load_draft
from confide.coordinator.cli.main import app
from confide.coordinator.comparison import federated
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


@pytest.fixture
def run(tmp_path, records, backbone):
    """Simulates the tiny study with changes."""

    def call(*changes, plan=PLAN, out="out", **options):
        names = ", ".join(f'"n{number}"' for number in range(SITES))
        text = changed(STUDY_TOML, (*FEW, ('"other", "svi", "svhc", "rest"', names)))
        (tmp_path / "study.toml").write_text(changed(text, changes))
        draft = load_draft(tmp_path / "study.toml")
        return simulate(draft, records, tmp_path / out, plan=plan, backbone=backbone, **options)

    return call


@pytest.mark.process
def test_bits_depend_on_neither_processes_nor_shares(run, tmp_path):
    alone = run(*NONE, out="alone")
    shared = run(*NONE, plan=replace(PLAN, workers=3, secret_sharing=True), out="shared")
    assert alone.state == shared.state
    assert alone.state != run(*NONE, plan=replace(PLAN, seed=1), out="other").state
    states = [next((tmp_path / out).glob("state-*")).read_bytes() for out in ("alone", "shared")]
    assert states[0] == states[1]


def test_a_stopped_simulation_goes_on_to_the_same_bits(run, tmp_path):
    whole = run(*NONE, out="whole")

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
    assert again.state == whole.state
    assert [each.metric for each in again.rounds] == [each.metric for each in whole.rounds]
    assert run(*NONE).to_dict() == again.to_dict()  # nothing is left to do
    with pytest.raises(StudyRefused, match="other terms"):
        run(*NONE, plan=replace(PLAN, seed=1))
    next((tmp_path / "out").glob("state-*")).write_bytes(b"")
    with pytest.raises(StateDamaged):
        run(*NONE)


def test_epsilon_is_that_of_the_sums_that_were_opened(run):
    found = run(plan=replace(PLAN, faults=Faults(dropouts=0.3)))
    summed = [each.summed for each in found.rounds]
    assert min(summed) < SITES
    assert all(each.summed + len(each.away) == each.asked == SITES for each in found.rounds)
    sigma = math.ceil(1.19 / math.sqrt(SITES - 8 - 1) * 2**20)  # any 3 honest sites make up the noise
    fixed = {"mode": "distributed", "clip_norm": 1.0, "sample_rate": 0.5, "scale_bits": 20, "site_noise_int": sigma}
    releases = Counter(Release(**fixed, dim=found.settings.trained, sites=count) for count in summed)
    want = epsilon_pld(releases, 1e-5, 1)
    assert found.epsilon == found.rounds[-1].epsilon == pytest.approx(want, rel=1e-3)
    assert found.rounds[0].epsilon < found.rounds[1].epsilon < found.epsilon < found.epsilon_planned


def test_a_topped_up_sum_costs_what_was_planned(run):
    over = run(plan=replace(PLAN, faults=Faults(dropouts=0.3)), out="over")
    topped = run(
        ("max_dropouts = 8", 'max_dropouts = 8\ndropouts = "top-up"'), plan=replace(PLAN, faults=Faults(dropouts=0.3))
    )
    assert [each.summed for each in topped.rounds] == [each.summed for each in over.rounds]
    assert over.epsilon < topped.epsilon <= topped.epsilon_planned
    assert topped.epsilon == pytest.approx(topped.epsilon_planned, rel=0.01)


def test_hostile_sites_are_left_out_and_a_run_without_a_quorum_stops(run):
    hostile = replace(PLAN, faults=Faults(malicious=2))
    found = run(plan=hostile)
    refused = {each.refused for each in found.rounds}
    assert len(refused) == 1
    assert {site.name for site in found.sites if site.is_malicious} == set(*refused)
    assert {site.rounds for site in found.sites if site.is_malicious} == {0}
    assert [each.summed for each in found.rounds] == [SITES - 2] * ROUNDS
    with pytest.raises(RunRefused, match="norm check leaves 10 sites"):
        run(("max_dropouts = 8", "max_dropouts = 1"), plan=hostile, out="stopped")


def test_what_is_told_is_what_the_adapter_gives(run, tmp_path, records, backbone):
    found = run(*NONE)
    assert found.metric == "auc"
    assert found.value == found.rounds[-1].metric == found.final["auc"]["value"]
    assert (found.epsilon, found.epsilon_planned) == (None, None)
    assert (sum(site.units for site in found.sites), sum(site.held_out for site in found.sites)) == (160, 60)
    assert {site.rounds for site in found.sites} == {ROUNDS}
    told = json.loads((tmp_path / "out" / "simulation.json").read_text())
    assert told["caution"] == CAUTION
    assert told == json.loads(json.dumps(found.to_dict()))
    checkpoint = Checkpoint.from_bytes(ROUNDS, next((tmp_path / "out").glob("state-*")).read_bytes())
    released = read_released(tmp_path / "out" / "adapter")
    assert released.provenance.study_hash == found.settings.study_hash
    head = released.head["weight"].numpy().ravel()
    np.testing.assert_array_equal(head, checkpoint.state[: head.size])


def test_the_loop_is_the_plain_one(run, tmp_path, records, backbone):
    """Without sampling, noise or a bound on the sum, rounds are heavy-ball descent on clipped gradients by site."""
    plain = ("sample_rate = 0.5", "sample_rate = 1.0"), ("batch_units = 80", "batch_units = 160")
    off = ("[participants]", "[aggregation]\nnorm_check = false\n[participants]")
    seen = []
    found = run(*NONE, *plain, off, watch=lambda done, total, newest: seen.append(done))
    draft = load_draft(tmp_path / "study.toml")
    adapted = federated.untrained(draft, backbone)
    before = adapted.state().copy()
    from confide.coordinator.comparison.task import read_task
    from confide.coordinator.demo.baselines import word_ids

    own = changed((tmp_path / "study.toml").read_text(), ())
    names = ", ".join(f'"n{number}"' for number in range(SITES))
    (tmp_path / "whole.toml").write_text(own.replace(names, '"other", "svi", "svhc", "rest"'))
    task = read_task(load_draft(tmp_path / "whole.toml"), records)
    sites = {name: (word_ids(draft, each), each.labels, each.units) for name, each in task.train.items()}
    federated.federate(task.draft, adapted, sites, mode="none", scale_bits=20, seed=5, max_rows=12)
    want = adapted.state() - before
    got = Checkpoint.from_bytes(ROUNDS, next((tmp_path / "out").glob("state-*")).read_bytes()).state - before
    assert seen == [0, 1, 2, 3]
    assert found.state is not None
    assert np.abs(want).max() > 1e-3
    np.testing.assert_allclose(got, want, atol=1e-3 * np.abs(want).max())
    assert ServerOptimizer.of(draft).kind == "momentum"


def test_a_command_tells_curve_sites_and_caution(run, tmp_path, records, backbone):
    run(plan=replace(PLAN, max_rows=256, evaluate_every=0))
    words = ["simulate", tmp_path / "study.toml", records, "--out", tmp_path / "out", "--sites", SITES,
             "--backbone", backbone, "--workers", 1]  # fmt: skip
    result = CliRunner().invoke(app, [*map(str, words), "--evaluate-every", "0"], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    text = " ".join(result.output.split())
    assert CAUTION in text
    assert "12 of 12" in text
    assert "Sites by themselves" in text
    found = json.loads(CliRunner().invoke(app, [*map(str, words), "--json"]).stdout)
    assert found == json.loads((tmp_path / "out" / "simulation.json").read_text())
    refused = CliRunner().invoke(app, [*map(str, words), "--malicious", "3"])
    assert (refused.exit_code, "other terms" in refused.output) == (1, True)


@pytest.mark.parametrize(
    "faults", [Faults(dropouts=1.0), Faults(slow=2.0), Faults(slow_s=0.0), Faults(length=math.nan)]
)
def test_impossible_faults_are_refused(run, faults):
    with pytest.raises(StudyRefused, match="dropouts in"):
        run(plan=replace(PLAN, faults=faults))
