"""Times simulated sites: beside pfl-research's simulator, Flower's and one process a site; and their memory.

A site has 10 people of one record each, who all take part in a round. The backbone is a small DeepSeek-V3 of random
weights in the shape of the thyroid example's, with LoRA on attention and experts and a head.

    python benchmarks/simulation.py [--part pfl|processes|engines|memory] [--sites 200] [--json]

pfl       Processor milliseconds a site in one process, after a first round, all that a round needs included:
          `coordinator simulate`, whose sites clip every person, and pfl's SimulatedBackend, which clips a whole user,
          with one step of SGD on the same records and model, the GaussianMechanism and FedAvg. Rounds alternate.
processes Seconds of a first round from nothing: one simulation of all sites, and one process a site, as many at once
          as there are cores, of which a few are started and the rest is multiplied. Memory of such a process.
engines   Seconds a round in as many processes as cores: forked processes, and Flower's simulation engine (Ray) with the
          same work in a ClientApp that loads the model once a process. Seconds until the first round has ended, too.
memory    Peak of all processes together, shared pages counted once (PSS), at 10, 100 and 1,000 sites.

pfl, prv-accountant and ray are no dependencies: install them elsewhere and name that folder in PYTHONPATH,
`pip install --no-deps --target FOLDER pfl prv-accountant multiprocess dill ray==2.55.1`.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from confide.client_node.study import StudyDraft, load_draft
from confide.client_node.training.study_model import load_study_model
from confide.coordinator.simulation import Plan, engine, simulate
from confide.models.backbones.family import BackboneConfig
from confide.models.backbones.pretraining import PretrainingConfig, pretrain
from confide.privacy.mechanism.batches import thread_count

PEOPLE, HELD_OUT, ROWS = 10, 100, 256
STUDY = """
name = "simulated"
model = {backbone = "backbone"}
adapter = {rank = 4, alpha = 4.0, targets = ["q_a_proj", "o_proj", "experts"], seed = "public"}
rounds = {rounds = ROUNDS, min_sites = 2, deadline_s = 60, batch_units = UNITS}
optimizer = {}
participants = {sites = ["a", "b", "c", "d"], aggregators = ["x", "y", "z"]}
[data]
unit = "patient"
label = "ill"
max_tokens = 24
flags = ["fever", "cough", "rash", "pain"]
[data.numeric]
age = [20.0, 40.0, 60.0]
weight = [50.0, 70.0, 90.0]
[data.categorical]
sex = ["F", "M"]
[privacy]
mode = "distributed"
noise_multiplier = 1.0
clip_norm = 1.0
sample_rate = 1.0
delta = 1e-5
"""


def made(folder: Path, sites: int, rounds: int) -> StudyDraft:
    """Writes records of so many sites' people, the study and, once, the backbone."""
    text = STUDY.replace("ROUNDS", str(rounds)).replace("UNITS", str(sites * PEOPLE))
    (folder / "study.toml").write_text(text)
    draft = load_draft(folder / "study.toml")
    rng = np.random.default_rng(0)
    (folder / "records").mkdir(exist_ok=True)
    for part, people in (("train", sites * PEOPLE), ("heldout", HELD_OUT)):
        lines = ["patient_id,age,weight,sex,fever,cough,rash,pain,ill"]
        for person in range(people):
            flags = rng.random(4) < 0.4
            told = ",".join("tf"[int(not flag)] for flag in flags)
            age, weight = rng.integers(1, 90), rng.integers(40, 110)
            lines.append(f"p{person},{age},{weight},{'FM'[rng.integers(2)]},{told},{int(flags[0] or age > 60)}")
        (folder / "records" / f"{part}.csv").write_text("\n".join(lines) + "\n")
    if not (folder / "backbone").exists():
        config = PretrainingConfig(steps=2, batch=16, questions=4, moment_records=64)
        pretrain(draft.record_schema(), folder / "backbone", backbone=BackboneConfig(), config=config)
    return draft


def simulated(folder: Path, draft: StudyDraft, sites: int, workers: int, watch: Any = None) -> list[float]:
    """Seconds of each round of a simulation."""
    plan = Plan(sites=sites, workers=workers, evaluate_every=0, max_rows=ROWS)
    with tempfile.TemporaryDirectory() as out:
        found = simulate(
            draft, folder / "records", Path(out, "out"), plan=plan, backbone=folder / "backbone",
            watch=watch or (lambda *_: None),
        )  # fmt: skip
    return [each.seconds for each in found.rounds]


def beside_pfl(folder: Path, sites: int, rounds: int = 12) -> dict[str, float]:
    """Processor milliseconds a site of both; after each of our rounds, pfl does one."""
    draft = made(folder, sites, rounds)
    with thread_count(1):
        their_round = pfl_round(draft, folder, sites)
        their_round()
        own: list[float] = []
        theirs: list[float] = []
        last = time.process_time()

        def watch(done: int, total: int, newest: object) -> None:
            nonlocal last
            own.append(time.process_time() - last)
            start = time.process_time()
            their_round()
            last = time.process_time()
            theirs.append(last - start)

        simulated(folder, draft, sites, 1, watch)
    found = {"ours_ms": statistics.median(own[1:]), "pfl_ms": statistics.median(theirs[1:])}
    return {name: 1000 * seconds / sites for name, seconds in found.items()} | {
        "ratio": found["pfl_ms"] / found["ours_ms"]
    }


def pfl_round(draft: StudyDraft, folder: Path, sites: int) -> Callable[[], None]:
    """Makes what runs a central iteration of pfl over all users."""
    from pfl.aggregate.simulate import SimulatedBackend
    from pfl.algorithm.base import NNAlgorithmParams
    from pfl.algorithm.federated_averaging import FederatedAveraging
    from pfl.data.dataset import Dataset
    from pfl.data.federated_dataset import FederatedDataset
    from pfl.data.sampling import get_user_sampler
    from pfl.hyperparam import NNTrainHyperParams
    from pfl.model.pytorch import PyTorchModel
    from pfl.privacy.gaussian_mechanism import GaussianMechanism
    from pfl.privacy.privacy_mechanism import CentrallyAppliedPrivacyMechanism

    from confide.coordinator.simulation.sites import Split, read_sites

    study = engine.cost.provisional(draft, dim=1)
    loaded = load_study_model(draft, folder / "backbone")
    table = read_sites(study, loaded, folder / "records", split=Split("iid"), sites=sites, seed=0).train
    adapted = loaded.adapted
    trained = torch.nn.Module()
    for number, tensor in enumerate(adapted.trained.values()):
        trained.register_parameter(str(number), tensor)
    trained.loss = lambda ids, targets, eval=False: adapted.losses(ids, targets).mean()  # type: ignore[assignment]
    trained.metrics = lambda *_, **__: {}  # type: ignore[assignment]

    def user(number: str) -> Dataset:
        own = table.of(int(number))
        return Dataset([torch.from_numpy(own.ids), torch.from_numpy(np.asarray(own.targets))])

    names = [str(number) for number in range(sites)]
    model = PyTorchModel(
        model=trained,
        local_optimizer_create=torch.optim.SGD,
        central_optimizer=torch.optim.SGD(trained.parameters(), 0.1),
    )
    noise = CentrallyAppliedPrivacyMechanism(GaussianMechanism(clipping_bound=1.0, relative_noise_stddev=1.0))
    users = FederatedDataset(user, get_user_sampler("minimize_reuse", names))
    backend = SimulatedBackend(training_data=users, val_data=users, postprocessors=[noise])
    own = NNTrainHyperParams(local_num_epochs=1, local_learning_rate=0.1, local_batch_size=None)

    class Unseen(FederatedAveraging):  # type: ignore[misc]
        """Leaves out iteration 0, which evaluates every user twice."""

        def get_next_central_contexts(self, model: Any, iteration: int, *terms: Any, **named: Any) -> Any:
            return super().get_next_central_contexts(model, iteration + 1, *terms, **named)

    once = NNAlgorithmParams(
        central_num_iterations=2, evaluation_frequency=1000, train_cohort_size=sites, val_cohort_size=0
    )
    return lambda: Unseen().run(once, backend, model, own)


def beside_processes(folder: Path, sites: int, tried: int = 6) -> dict[str, float]:
    """Seconds of a round from nothing."""
    made(folder, sites, 1)
    cores = len(os.sched_getaffinity(0))
    start = time.perf_counter()
    child("all", folder, sites, cores)
    together = time.perf_counter() - start
    with ThreadPoolExecutor(cores) as pool:
        start = time.perf_counter()
        peaks = list(pool.map(lambda _: child("one", folder, sites, 1), range(tried)))
    apart = (time.perf_counter() - start) / tried * sites
    return {
        "simulation_s": together, "one_process_a_site_s": apart, "ratio": apart / together,
        "process_mib": statistics.median(peaks),
    }  # fmt: skip


def memory(folder: Path, counts: Sequence[int] = (10, 100, 1000)) -> dict[str, float]:
    """Peak memory in MiB, and its growth a site between the least and the most."""
    found = {}
    for sites in counts:
        made(folder, sites, 2)
        found[f"sites_{sites}"] = child("all", folder, sites, len(os.sched_getaffinity(0)))
    least, most = found[f"sites_{counts[0]}"], found[f"sites_{counts[-1]}"]
    return found | {"mib_a_site": (most - least) / (counts[-1] - counts[0])}


def child(what: str, folder: Path, sites: int, workers: int) -> float:
    """Runs a part of this file in a process of its own; its peak in MiB, with all below it."""
    command = [sys.executable, __file__, "--child", json.dumps([what, str(folder), sites, workers])]
    process, peak = subprocess.Popen(command, stdout=subprocess.DEVNULL), 0.0
    while process.poll() is None:
        peak = max(peak, _pss(process.pid))
        time.sleep(0.2)
    assert process.returncode == 0
    return peak


def _pss(pid: int) -> float:
    total = 0
    try:
        leading = psutil.Process(pid)
        for each in (leading, *leading.children(recursive=True)):
            total += each.memory_full_info().pss
    except psutil.Error:
        return 0.0
    return total / 2**20


def in_child(what: str, folder: str, sites: int, workers: int) -> None:
    """All sites in one simulation, or the first site alone in its round."""
    place, draft = Path(folder), load_draft(Path(folder, "study.toml"))
    if what == "all":
        simulated(place, draft, sites, workers)
        return
    with thread_count(1):
        plan = Plan(sites=sites, workers=1, max_rows=ROWS)
        bench = engine._ready(draft, place / "records", plan, place / "backbone", None).bench
        bench.vector[:] = bench.trainer.start
        bench.share(1, "00" * 32, [0])


def engines(folder: Path, sites: int, rounds: int = 5) -> dict[str, float]:
    """Seconds of a round and until the first has ended, of forked processes and of Flower's engine."""
    draft, cores = made(folder, sites, rounds), len(os.sched_getaffinity(0))
    ended: list[float] = []
    start = time.perf_counter()
    own = simulated(folder, draft, sites, cores, lambda done, *_: ended.append(time.perf_counter() - start))
    theirs = in_flower(folder, sites, rounds, cores)
    return {
        "forked_round_s": statistics.median(own[1:]), "forked_first_s": ended[1],
        "flower_round_s": statistics.median(theirs[1:]), "flower_first_s": theirs[0],
        "ratio": statistics.median(theirs[1:]) / statistics.median(own[1:]),
    }  # fmt: skip


def in_flower(folder: Path, sites: int, rounds: int, cores: int) -> list[float]:
    """Seconds of rounds in Flower's simulation engine; the first with all that comes before it."""
    from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.serverapp import Grid, ServerApp
    from flwr.simulation import run_simulation

    client, server = ClientApp(), ServerApp()
    seconds: list[float] = []
    began = time.perf_counter()

    @client.train()
    def train(message: Message, context: Any) -> Message:
        from simulation import once  # by name: a process of Ray's has none of this file's objects

        bench = once(str(folder), sites)
        bench.vector[:] = message.content["state"].to_numpy_ndarrays()[0]  # type: ignore[union-attr]
        own = int(context.node_config["partition-id"])
        total = bench.share(int(message.content["round"]["number"]), "00" * 32, [own]).sums[0]  # type: ignore[index,call-overload]
        return Message(RecordDict({"sum": ArrayRecord([total])}), reply_to=message)

    @server.main()
    def main(grid: Grid, context: Any) -> None:
        bench, last = once(str(folder), sites), began
        state = bench.trainer.start
        while len(list(grid.get_node_ids())) < sites:
            time.sleep(0.1)
        for number in range(1, rounds + 1):
            content = RecordDict({"state": ArrayRecord([state]), "round": ConfigRecord({"number": number})})
            messages = [Message(content, dst_node_id=node, message_type="train") for node in grid.get_node_ids()]
            answers = list(grid.send_and_receive(messages))
            if failed := [answer.error.reason for answer in answers if not answer.has_content()]:
                raise RuntimeError(f"{len(failed)} of {sites} sites failed: {failed[0]}")
            assert sum(answer.content["sum"].to_numpy_ndarrays()[0] for answer in answers) is not None  # type: ignore[union-attr]
            seconds.append(time.perf_counter() - last)
            last = time.perf_counter()

    resources = {"client_resources": {"num_cpus": 1, "num_gpus": 0.0}, "init_args": {"num_cpus": cores}}
    run_simulation(server_app=server, client_app=client, num_supernodes=sites, backend_config=resources)
    return seconds


_benches: dict[str, Any] = {}


def once(folder: str, sites: int) -> Any:
    """The bench of this process."""
    if folder not in _benches:
        place, draft = Path(folder), load_draft(Path(folder, "study.toml"))
        torch.set_num_threads(1)
        plan = Plan(sites=sites, workers=1, max_rows=ROWS)
        _benches[folder] = engine._ready(draft, place / "records", plan, place / "backbone", None).bench
    return _benches[folder]


PARTS: dict[str, Callable[[Path, int], dict[str, float]]] = {
    "pfl": beside_pfl,
    "processes": beside_processes,
    "engines": engines,
    "memory": lambda folder, sites: memory(folder),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS, action="append")
    parser.add_argument("--sites", type=int, default=200)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        in_child(*json.loads(given.child))
        return
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for part in given.part or PARTS:
            found[part] = PARTS[part](Path(folder), given.sites)
    if given.json:
        print(json.dumps(found, indent=1))
        return
    for part, figures in found.items():
        for name, figure in figures.items():
            print(f"{part:10} {name:24} {figure:10.3g}")


if __name__ == "__main__":
    main()
