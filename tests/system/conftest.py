"""A small federation of real processes on public made-up records: four sites, three aggregators, no privacy.

Without privacy a run is a function of the study alone, so two runs can be compared bit for bit.
"""

import json
import random
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from confide.client_node.policy.site_policy import load_policy
from confide.client_node.study.study import Study
from confide.client_node.study.terms import load_draft
from confide.coordinator.demo.processes import DemoFederation
from confide.coordinator.run.driver import LOG_FILE
from confide.coordinator.simulation import Plan, simulate
from confide.coordinator.store.run_folder import RunFolder
from confide.coordinator.store.store import Store
from confide.models.backbones.family import BackboneConfig
from confide.models.backbones.pretraining import PretrainingConfig, pretrain

SITES = ("north", "south", "east", "west")
PARTIES = ("agg-a", "agg-b", "agg-c")
ROUNDS = 5
BINS = 4
DEADLINE_S = 9
MARK = "CONFIDE_TEST_FEDERATION"  # in the environment of every process of a federation, so that none is overlooked
STUDY_TOML = f"""
name = "tiny"
[model]
backbone = "backbone"
[adapter]
rank = 2
alpha = 2.0
targets = ["q_a_proj", "o_proj", "gate_proj", "experts", "gate"]
seed = "tiny"
[data]
label = "ill"
unit = "patient"
max_records_per_unit = 2
max_tokens = 8
flags = ["fever"]
[data.numeric]
age = [20.0, 40.0, 60.0]
[data.categorical]
sex = ["F", "M"]
[privacy]
mode = "none"
clip_norm = 0.5
sample_rate = 0.5
collusion = 0
[rounds]
rounds = {ROUNDS}
min_sites = 4
deadline_s = {DEADLINE_S}
batch_units = 40
[optimizer]
lr = 1.0
head_lr = 5.0
momentum = 0.9
[prototype]
length = 16
[evaluation]
bins = {BINS}
[participants]
sites = {json.dumps(SITES)}
aggregators = {json.dumps(PARTIES)}
"""


@pytest.fixture(scope="session")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DemoFederation]:
    folder = tmp_path_factory.mktemp("federation")
    study_toml = folder / "study.toml"
    study_toml.write_text(STUDY_TOML)
    schema = load_draft(study_toml).record_schema()
    config = PretrainingConfig(steps=3, batch=16, questions=4, moment_records=64)
    pretrain(schema, folder / "backbone", backbone=BackboneConfig(hidden=32, experts=4), config=config)
    made = DemoFederation(folder / "run", SITES, PARTIES)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv(MARK, str(folder))
        environment.setenv("CONFIDE_MONITOR", "0")
        environment.setenv("CONFIDE_LOG_FORMAT", "json")
        yield from up(made, folder, study_toml)


def up(made: DemoFederation, folder: Path, study_toml: Path) -> Iterator[DemoFederation]:
    """A founded federation with all its processes, as long as somebody uses it."""
    try:
        made.found("tiny", {site: site_toml(folder, site) for site in SITES}, study_toml, unprotected=True, runs=15)
        made.bring_up()
        yield made
    finally:
        made.shut_down()


def site_toml(folder: Path, site: str) -> str:
    """Writes a site's made-up records, some of them held out, and returns its policy."""
    rng = random.Random(site)
    for name, records, per_unit in ((site, 30, 2), (f"{site}-held-out", 12, 1)):
        lines = ["patient_id,age,sex,fever,ill"]
        for row in range(records):
            fever, age = rng.random() < 0.4, rng.randrange(90)
            ill = int(fever or age > 60)
            lines.append(f"p{row // per_unit},{age},{rng.choice('FM')},{'t' if fever else 'f'},{ill}")
        (folder / f"{name}.csv").write_text("\n".join(lines) + "\n")
    return f"""
[data]
path = "{folder / f"{site}.csv"}"
heldout_path = "{folder / f"{site}-held-out.csv"}"
name = "{site}"
unit = "patient"
unit_column = "patient_id"
[budget]
epsilon = 1.0
delta = 1e-5
[backbone]
directory = "{folder / "backbone"}"
[limits]
threads = 1
"""


def private_study(sites: Sequence[str], changes: Mapping[str, str]) -> str:
    """The tiny study with noise, of three sites and two rounds, and other changes."""
    changes = {
        'mode = "none"': 'mode = "distributed"\nnoise_multiplier = 20.0\ndelta = 1e-5',
        "rounds = 5": "rounds = 2",
        "min_sites = 4": "min_sites = 3",
        "collusion = 0": "collusion = 1",
        "deadline_s = 9": "deadline_s = 60",
        "bins = 4": "bins = 4\nnoise_multiplier = 40.0",
        "length = 16": "length = 16\nnoise_multiplier = 40.0",
        json.dumps(SITES): json.dumps(sites),
        **changes,
    }
    text = STUDY_TOML
    for old, new in changes.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


def start_run(federation: DemoFederation, study: str = "tiny") -> str:
    return federation.operator("run", "start", study, "--again").strip()


def wait_for(claim: Callable[[], bool], what: str, seconds: float = 600, seen: Callable[[], str] = str) -> None:
    """Waits until `claim` is true; if it is not in time, `seen` says what is there instead."""
    end = time.monotonic() + seconds
    while not claim():
        assert time.monotonic() < end, f"{what} did not come true within {seconds} s {seen()}"
        time.sleep(0.05)


def finish(federation: DemoFederation, run: str) -> None:
    """Waits until the run is done."""
    store = Store.open(federation.home)

    def ended() -> bool:
        row = store.run(run)
        assert row.state not in ("failed", "stopped"), row.error
        return row.state == "done"

    def seen() -> str:
        row, log = store.run(run), RunFolder(federation.home, run).path / LOG_FILE
        last = log.read_text().splitlines()[-5:] if log.exists() else []
        return "\n".join([f"({row.state} after round {store.last_round(run).number}: {row.error})", *last])

    wait_for(ended, f"run {run}", seconds=1200, seen=seen)
    store.close()


def committed(federation: DemoFederation, run: str) -> int:
    store = Store.open(federation.home)
    number = store.last_round(run).number
    store.close()
    return number


def histogram(federation: DemoFederation, run: str) -> list[float]:
    """What the run's evaluation counted."""
    store = Store.open(federation.home)
    row = store.evaluation(run)
    store.close()
    assert row is not None
    assert row.problem is None
    counts: list[float] = json.loads(row.counts)
    return counts


def final_hash(federation: DemoFederation, run: str, *, rounds: int = ROUNDS) -> str:
    """SHA-256 of state and velocity after the last round."""
    store = Store.open(federation.home)
    last = store.last_round(run)
    store.close()
    assert last.number == rounds
    return last.state_hash or ""


def simulated_hash(federation: DemoFederation, study: Study, folder: Path, *, workers: int) -> str:
    """SHA-256 of state and velocity at the end of a simulation of the study, without the federation's processes."""
    for site in SITES:
        data = load_policy(federation.node_home(site)).data
        (folder / site).mkdir(parents=True)
        shutil.copy(data.path, folder / site / "train.csv")
        shutil.copy(data.heldout_path, folder / site / "heldout.csv")
    backbone = load_policy(federation.node_home(SITES[0])).backbone.directory
    plan = Plan(workers=workers, secret_sharing=True)
    return simulate(study, folder, folder / "out", plan=plan, backbone=backbone).state
