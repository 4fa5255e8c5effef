"""Times rounds of a real federation whose members are far from each other, with and without the norm check.

    python benchmarks/wide_area.py [--rank 2 64] [--rounds N] [--json]

A coordinator, three sites and three aggregators, each in a network namespace of its own, reach each other by
`emulated_links`. The row is the median of N rounds, from commit to commit. Needs Linux and root.
"""

import argparse
import itertools
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from emulated_links import Links, Way

from confide.client_node.study.terms import load_draft
from confide.coordinator.demo.processes import DemoFederation
from confide.coordinator.federation.serving import read_serving
from confide.coordinator.store import Store
from confide.models.backbones.family import BackboneConfig
from confide.models.backbones.pretraining import PretrainingConfig, pretrain

SITES, AGGREGATORS = ("north", "south", "east"), ("agg-a", "agg-b", "agg-c")
WAYS = (
    Way(), Way(20), Way(100), Way(300), Way(20, mbit_s=10), Way(100, loss=0.01), Way(300, loss=0.01, mbit_s=10),
)  # fmt: skip
STUDY = """
name = "NAME"
model = {backbone = "backbone"}
adapter = {rank = RANK, alpha = 2.0, targets = ["q_a_proj", "o_proj", "gate_proj", "experts", "gate"], seed = "public"}
data = {unit = "patient", label = "ill", max_tokens = 8, flags = ["fever"], numeric = {age = [20, 40, 60]}}
privacy = {mode = "distributed", noise_multiplier = 20.0, clip_norm = 0.5, sample_rate = 0.5, delta = 1e-5}
rounds = {rounds = 500, min_sites = 3, deadline_s = 120, batch_units = 40}
optimizer = {}
aggregation = {norm_check = CHECKED}
participants = {sites = ["north", "south", "east"], aggregators = ["agg-a", "agg-b", "agg-c"]}
"""


class Apart(DemoFederation):
    """A federation whose members reach each other only by the links."""

    def __init__(self, folder: Path, links: Links) -> None:
        super().__init__(folder, SITES, AGGREGATORS)
        self._links = links

    def start_coordinator(self) -> None:
        """Starts `coordinator serve`, and waits until it says that it serves."""
        if "coordinator" not in self._children:
            self._spawn("coordinator", "coordinator", "serve", "--home", str(self.home), "--page", "none")
            while read_serving(self.home) is None:
                self.check()
                time.sleep(0.1)

    def words(self, program: str, arguments: Sequence[str]) -> list[str]:
        """Puts a command into the namespace of the member that it is of."""
        home = Path(arguments[arguments.index("--home") + 1])
        name = "coordinator" if program == "coordinator" else home.name
        return [*self._links.words(name), *super().words(program, arguments)]

    def _enrol(self, node: str, party_address: str | None) -> str:
        if party_address is not None:
            party_address = f"{self._links.address(node)}:{party_address.rpartition(':')[2]}"
        return super()._enrol(node, party_address)


@contextmanager
def federation(folder: Path, links: Links, rank: int) -> Iterator[Apart]:
    """Founds the federation with two studies, `checked` and `unchecked`."""
    for name in ("checked", "unchecked"):
        words = {"NAME": name, "RANK": str(rank), "CHECKED": str(name == "checked").lower()}
        text = STUDY
        for old, new in words.items():
            text = text.replace(old, new)
        (folder / f"{name}.toml").write_text(text)
    config = PretrainingConfig(steps=3, batch=16, questions=4, moment_records=64)
    schema = load_draft(folder / "checked.toml").record_schema()
    pretrain(schema, folder / "backbone", backbone=BackboneConfig(hidden=32, experts=4), config=config)
    here = Apart(folder / "run", links)
    host = links.address("coordinator")
    try:
        here.found("far", {site: policy(folder, site) for site in SITES}, folder / "checked.toml",
                   init=["--host", host, "--listen", host])  # fmt: skip
        here.bring_up()
        here.add_study(folder / "unchecked.toml")
        yield here
    finally:
        here.shut_down()


def policy(folder: Path, site: str) -> str:
    """Writes a site's made-up records; returns its site.toml."""
    rng = random.Random(site)
    rows = [f"p{row},{rng.randrange(90)},{rng.choice('tf')},{rng.randrange(2)}" for row in range(60)]
    (folder / f"{site}.csv").write_text("\n".join(["patient_id,age,fever,ill", *rows]) + "\n")
    return f"""
data = {{path = "{folder / f"{site}.csv"}", name = "{site}", unit = "patient", unit_column = "patient_id"}}
budget = {{epsilon = 1000.0, delta = 1e-4}}
backbone = {{directory = "{folder / "backbone"}"}}
limits = {{threads = 1}}
"""


def measure(here: Apart, links: Links, study: str, rounds: int) -> Iterator[dict[str, object]]:
    """Runs a study over each of the links in turn."""
    links.way = Way()
    run = here.operator("run", "start", study).strip()
    with closing(Store.open(here.home)) as store:
        for way in WAYS:
            wait_for(here, store, run, 1)
            links.way = way
            wait_for(here, store, run, 1)  # which began before
            passed = links.passed()
            last = wait_for(here, store, run, rounds)
            passed = links.passed() - passed
            ended = [row.committed_at for row in store.rounds(run)][-rounds - 1 :]
            assert last == len(store.rounds(run))
            took = [after - before for before, after in itertools.pairwise(ended)]
            yield {
                "study": study, "rtt_ms": way.rtt_ms, "loss": way.loss, "mbit_s": way.mbit_s,
                "seconds": statistics.median(took), "slowest": max(took), "kib": passed / rounds / 1024,
            }  # fmt: skip
    links.way = Way()
    here.operator("run", "stop", run)


def wait_for(here: Apart, store: Store, run: str, more: int) -> int:
    """Waits for more commits; returns the number of the last."""

    until = store.last_round(run).number + more
    while store.last_round(run).number < until:
        here.check()
        row = store.run(run)
        assert row.state not in ("failed", "stopped"), row.error
        time.sleep(0.02)
    return store.last_round(run).number


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rank", type=int, nargs="+", default=[2, 64], help="of the adapters, which sets the bytes")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    rows = []
    for rank in asked.rank:
        with (
            tempfile.TemporaryDirectory() as folder,
            Links(["coordinator", *SITES, *AGGREGATORS]) as links,
            federation(Path(folder), links, rank) as here,
        ):
            for study in ("checked", "unchecked"):
                for row in measure(here, links, study, asked.rounds):
                    rows.append({"rank": rank, **row})
                    print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    if asked.json:
        print(json.dumps({"rows": rows}))
    else:
        print("| rank | round trip | loss | Mbit/s | norms | s a round | slowest | KiB a round |")
        print("|---" * 8 + "|")
        for row in rows:
            way = f"{row['rtt_ms']:.0f} ms | {row['loss']:.0%} | {row['mbit_s'] or '-'}"
            took = f"{row['seconds']:.2f} | {row['slowest']:.2f} | {row['kib']:,.0f}"
            print(f"| {row['rank']} | {way} | {row['study']} | {took} |")


if __name__ == "__main__":
    main()
