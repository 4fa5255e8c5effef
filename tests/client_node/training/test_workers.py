import contextlib
import hashlib
import importlib.util
import ipaddress
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import psutil
import pytest

from confide.client_node.data.records import Records, read
from confide.client_node.errors import DataInvalid, ModelUnusable, PolicyInvalid, StepFailed
from confide.client_node.policy.site_policy import load_policy
from confide.client_node.training.trainer import Trainer
from confide.client_node.training.warm_model import WarmModel
from confide.client_node.training.workers import Workers
from confide.privacy.mechanism.batches import microbatches, used_tokens
from confide.privacy.mechanism.site_round import drawn
from confide.privacy.mechanism.workers import shared_out

from ..conftest import PATIENTS_CSV, Site, site_in
from ..test_node import Desk, make_desk, new_node, opened, prepare
from .test_trainer import new_trainer

pytestmark = pytest.mark.process

LIMITS = ("[limits]", "[limits]\nworkers = 2\nmax_rows_per_batch = 2")
NONE = (('mode = "distributed"\nnoise_multiplier = 1.19', 'mode = "none"'), ("delta = 1e-5\n", ""))
STEPS = (
    ("clip_norm = 1.0", 'clip_norm = 0.02\nclipping = "adaptive"\nlocal_steps = 2'),
    ("lr = 0.3", "lr = 0.3\nlocal_lr = 0.3"),
    ("sample_rate = 0.2", "sample_rate = 0.4"),
    ("[participants]", "[prototype]\nlength = 32\n[evaluation]\nbins = 20\n[participants]"),
)
REAL = 2.0**-24  # of a ring unit
NOBODY = "nobody in the second step"


def patients(units: int) -> str:
    """One or two records each, all different."""
    rng = np.random.default_rng(0)
    rows = [
        f"p{unit},{rng.integers(18, 95)},{rng.choice([0.2, 1.5, 12.0])},{rng.choice(['F', 'M'])},f,{unit % 2}"
        for unit in range(units)
        for _ in range(1 + unit % 2)
    ]
    return "\n".join([PATIENTS_CSV.splitlines()[0], *rows]) + "\n"


def new_workers(desk: Desk) -> Workers:
    policy = load_policy(desk.site.home)
    site_noise = desk.study.site_noise(desk.study.planned_round(1))
    return Workers(
        desk.study,
        policy.backbone.directory,
        lambda: read(policy, desk.study, site=None),
        site="svi",
        site_noise=site_noise,
        limits=policy.limits,
    )


def runs(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE  # which its parent has not looked after yet
    return False


def are_gone(pids: tuple[int, ...]) -> bool:
    """Whether the processes end within a minute: they do at once, but the machine may be busy."""
    until = time.monotonic() + 60
    while any(map(runs, pids)) and time.monotonic() < until:
        time.sleep(0.02)
    return not any(map(runs, pids))


@contextlib.contextmanager
def killed_after(pids: tuple[int, ...], seconds: float) -> Iterator[None]:
    """A step that hangs fails, instead of the whole test run."""
    timer = threading.Timer(seconds, lambda: [os.kill(pid, signal.SIGKILL) for pid in pids])
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    """A study without noise, with an adaptive clip and two local steps."""
    site = site_in(tmp_path_factory.mktemp("workers"))
    site.write(LIMITS)
    (site.home / "patients.csv").write_text(patients(9))
    return make_desk(site, *NONE, *STEPS)


@pytest.fixture(scope="module")
def workers(desk: Desk) -> Iterator[Workers]:
    workers = new_workers(desk)
    yield workers
    pids = workers.pids
    workers.stop()
    assert pids
    assert are_gone(pids)


def kind_of_round(alone: Trainer, units: np.ndarray, round_number: int) -> str:
    """Says what the first of a round's two steps is for two processes, if the second step draws somebody."""
    source = alone._source(round_number)
    first, second = (drawn(units, alone._terms, source) for _ in range(2))
    if not second:
        return NOBODY
    found = alone._load()
    used = used_tokens(found.ids, found.targets)
    passes = [len(list(microbatches(share, used, alone._shapes))) for share in shared_out(first, 2)]
    return f"{min(len(first), 2)} units or more, {'equal' if len(set(passes)) == 1 else 'unequal'} passes"


def test_two_processes_release_what_one_does_and_none_waits_for_the_other(desk: Desk, workers: Workers):
    alone, rng = new_trainer(desk, max_rows=2), np.random.default_rng(1)
    units = read(load_policy(desk.site.home), desk.study, site=None).units
    rounds = {kind_of_round(alone, units, number): number for number in range(2000)}
    rounds.pop(NOBODY, None)
    assert set(rounds) == {
        "0 units or more, equal passes",
        "1 units or more, unequal passes",
        "2 units or more, equal passes",
        "2 units or more, unequal passes",
    }
    with killed_after(workers.pids, 120):
        for round_number in rounds.values():
            state = rng.normal(0, 0.1, desk.study.dim).astype("<f4")
            want = alone.release(state, round_number) * REAL
            assert np.abs(want).max() > 0.01  # the second local step drew somebody
            assert np.abs(workers.release(state, round_number) * REAL - want).max() < 1e-6


def test_workers_make_the_start_that_one_process_makes(desk: Desk, workers: Workers):
    assert hashlib.sha256(workers.start.tobytes()).hexdigest() == desk.study.start.state


def test_workers_listen_on_loopback_alone(workers: Workers):
    ends = [end for pid in workers.pids for end in psutil.Process(pid).net_connections("inet")]
    assert ends
    assert {ipaddress.ip_address(end.laddr.ip).is_loopback for end in ends} == {True}


def test_two_processes_count_the_scores_that_one_does(desk: Desk, workers: Workers):
    state = np.random.default_rng(2).normal(0, 0.5, desk.study.dim).astype("<f4")
    records = read(load_policy(desk.site.home), desk.study, site=None)
    assert len(records.units) % 2 == 1  # one process has a record less
    want = new_trainer(desk).histogram(state, lambda: records, 42, site_noise=0)
    assert np.count_nonzero(want) > 2
    with killed_after(workers.pids, 120):
        np.testing.assert_array_equal(workers.histogram(state, lambda: records, 42, site_noise=0), want)


def test_two_processes_read_the_prototype_that_one_does(desk: Desk, workers: Workers):
    want = new_trainer(desk).prototype(41, site_noise=0)
    assert np.count_nonzero(want) == 32
    with killed_after(workers.pids, 120):
        np.testing.assert_array_equal(workers.prototype(41, site_noise=0), want)


def test_records_that_cannot_be_read_end_no_process(desk: Desk, workers: Workers):
    before = workers.pids

    def broken() -> Records:
        raise DataInvalid("patients.csv", ())

    with pytest.raises(DataInvalid):
        workers.histogram(np.zeros(desk.study.dim, "<f4"), broken, 42, site_noise=0)
    assert workers.pids == before


def length_over_noise(desk: Desk, vector: np.ndarray) -> float:
    """Of the noise alone it would be 1, give or take 1 / sqrt(2 dim); of noise added twice sqrt(2)."""
    noise = desk.study.site_noise(desk.study.planned_round(1))
    return float(np.linalg.norm(vector / noise)) / len(vector) ** 0.5


def test_a_killed_worker_fails_the_round_under_its_charge_and_the_next_one_starts_others(site: Site):
    site.write(LIMITS)
    desk, model = make_desk(site, ("noise_multiplier = 1.19", "noise_multiplier = 40.0")), WarmModel("svi")
    desk = replace(desk, node=new_node(site, desk.ledger, model))
    prepare(desk)
    workers = model.load(desk.study, load_policy(site.home))
    assert isinstance(workers, Workers)
    first = workers.pids
    # Three gradients of length 1 at most, beside noise of 23 an entry.
    assert length_over_noise(desk, opened(desk, desk.step())) == pytest.approx(1, abs=7 / (2 * desk.study.dim) ** 0.5)
    os.kill(first[1], signal.SIGSTOP)  # the leading one waits for it, in the middle of the step
    with killed_after(first[1:], 1.0), pytest.raises(StepFailed) as failed:
        desk.step(2)
    assert str(failed.value) == "the step failed after its charge; the site's log says why"
    assert desk.charges() == ["reserve", "reserve"]
    assert are_gone(first)
    assert [path.name for path in (site.home / "outbox").glob("*/*")] == ["1"]  # nothing to send of round 2
    vector = opened(desk, desk.step(2), 2)
    assert desk.charges() == ["reserve", "reserve"]
    assert length_over_noise(desk, vector) == pytest.approx(1, abs=7 / (2 * desk.study.dim) ** 0.5)
    second = workers.pids
    assert not set(first) & set(second)
    desk.node.stop()
    assert are_gone(second)


def test_workers_that_cannot_begin_say_why_in_the_log_and_none_is_left(site: Site, caplog: pytest.LogCaptureFixture):
    site.write(LIMITS, ("workers = 2", "workers = 1"))
    desk = make_desk(site)
    (site.home / "backbone" / "schema.json").write_text("{}")
    before = psutil.Process().children()
    with pytest.raises(ModelUnusable):
        prepare(desk)
    assert "BackboneMismatch" in caplog.text
    assert psutil.Process().children() == before


def test_a_worker_ends_with_the_node_that_started_it():
    code = """
import socket, subprocess, sys, time
ours, theirs = socket.socketpair()
command = [sys.executable, "-I", "-m", "confide.client_node.training.worker_process", str(theirs.fileno())]
print(subprocess.Popen(command, pass_fds=[theirs.fileno()], start_new_session=True).pid, flush=True)
theirs.close()
time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as node:
        assert node.stdout is not None
        worker = int(node.stdout.readline())
        node.kill()
    assert are_gone((worker,))


def test_workers_without_deepspeed_are_a_mistake_in_the_policy_that_says_what_to_install(
    site: Site, monkeypatch: pytest.MonkeyPatch
):
    site.write(LIMITS)
    assert load_policy(site.home).limits.workers == 2
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(PolicyInvalid, match=r"limits.workers is 2; it must be 0 .* pip install 'confide\[deepspeed\]'"):
        load_policy(site.home)
    site.write()
    assert load_policy(site.home).limits.workers == 0


def test_offloading_without_workers_is_a_mistake_in_the_policy(site: Site):
    site.write(("[limits]", "[limits]\noffload = true"))
    with pytest.raises(PolicyInvalid, match=r"limits.offload is true with limits.workers 0"):
        load_policy(site.home)
