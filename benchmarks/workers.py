"""Measures time and memory of a site's step with a second process, with the backbone sharded and with it whole.

    python benchmarks/workers.py [--hidden 512] [--layers 6] [--experts 16] [--batch 32] [--steps 5] [--json]
    python benchmarks/workers.py --accelerator cuda       # two GPUs, linked by NCCL

It compares one process with two threads to two processes of one thread each: with the whole backbone in both (plain
data parallelism), and with half of it in each. All exist at once and step in turn. The step is the engine's own,
without noise: random records of 64 words, adapters of rank 8 on attention, experts and shared experts, and a head.
Memory is the rise of private memory, or with GPUs of memory there, over the same process without a model.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu_timing import allocated_on, peak_on

from confide.client_node.training.sharding import ShardedWeights, join
from confide.client_node.training.worker import LinkedGroup
from confide.models.adapters import AdaptedModel, AdapterConfig, attach
from confide.models.backbones.family import BackboneConfig
from confide.models.backbones.loading import build
from confide.models.heads import PooledHead
from confide.models.records import RecordSchema
from confide.models.records.fields import NumericField
from confide.mpc.links import Channel
from confide.mpc.links.frames import end_with_parent
from confide.privacy.mechanism.batches import probed_shapes
from confide.privacy.mechanism.site_round import ReleaseTerms, partial_sum, private_release
from confide.privacy.mechanism.workers import SumPart

SCHEMA = RecordSchema(tuple(NumericField(f"x{i}", tuple(range(15))) for i in range(16)))
WORDS, LENGTH = len(SCHEMA.words()), 64
TARGETS = ("q_a_proj", "kv_b_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "experts")
VARIANTS = {"one process": (1, False), "two, each whole": (2, False), "two, sharded": (2, True)}


def terms(batch: int) -> ReleaseTerms:
    return ReleaseTerms(
        mode="none",
        clip_norm=1.0,
        sample_rate=1.0,
        site_noise_int=0,
        scale_bits=24,
        max_rows_per_batch=batch,
        max_records_per_unit=1,
    )


def adapted_model(settings: dict[str, Any]) -> AdaptedModel:
    sizes = {name: settings[name] for name in ("hidden", "layers", "experts")}
    model = build(SCHEMA, BackboneConfig(**sizes))
    config = AdapterConfig(rank=8, alpha=8.0, targets=TARGETS, seed="s")
    head = PooledHead(torch.zeros(2 * sizes["hidden"]), torch.eye(2 * sizes["hidden"]))
    return attach(model, config, head)


def child(parent: Channel, links: Sequence[Channel]) -> None:
    """A process that leads or follows; DeepSpeed is loaded in all, so that memory can be compared."""
    settings = parent.receive()
    place, count = settings["place"], settings["count"]
    device = join(place, count, Path(settings["meeting"]))
    torch.set_num_threads(2 // count)
    torch.ones(256, 256) @ torch.ones(256, 256)
    before = allocated_on(device)
    with peak_on(device) as loading:
        adapted = adapted_model(settings)
        if not settings["sharded"]:
            adapted.to(device)
        weights = ShardedWeights(adapted, device, offload=False) if settings["sharded"] else None
    frozen = sum(p.nbytes for p in adapted.parameters() if not p.requires_grad)
    parent.send(
        "done",
        at_rest=allocated_on(device) - before,
        loading=loading.mib - before,
        kept=(weights.own_bytes + frozen if weights else frozen) / 2**20,
    )
    batch = settings["batch"]
    rng = np.random.default_rng(0)
    ids, labels = rng.integers(1, WORDS, (batch, LENGTH)), rng.integers(0, 2, batch)
    shapes = probed_shapes(adapted, max_tokens=LENGTH, max_rows=batch, max_records=1)
    group = LinkedGroup(links if place == 0 else ())
    while True:
        if place:
            part = links[0].receive(array_bytes=None)
            del part["kind"]
            vector = partial_sum(adapted, SumPart(**part), terms=terms(batch), shapes=shapes)
            links[0].send("done", vector=vector)
            continue
        parent.receive()
        start = time.perf_counter()
        with peak_on(device) as peak:
            private_release(adapted, ids, labels, np.arange(batch), terms=terms(batch), shapes=shapes, group=group)
        parent.send("done", seconds=time.perf_counter() - start, peak=peak.mib - before)


def started(count: int, settings: dict[str, Any]) -> tuple[list[subprocess.Popen[bytes]], list[Channel], list[Any]]:
    links = [socket.socketpair() for _ in range(count - 1)]
    processes, channels = [], []
    with tempfile.TemporaryDirectory() as folder:
        for place in range(count):
            ours, theirs = socket.socketpair()
            passed = [theirs, *([near for near, _ in links] if place == 0 else [links[place - 1][1]])]
            processes.append(
                subprocess.Popen(
                    [sys.executable, __file__, "--child", *(str(end.fileno()) for end in passed)],
                    pass_fds=[end.fileno() for end in passed],
                    stdout=subprocess.DEVNULL,
                    env={**os.environ, "DS_ACCELERATOR": settings["accelerator"], "OMP_NUM_THREADS": str(2 // count)},
                )
            )
            theirs.close()
            channels.append(Channel(ours))
            channels[-1].send("begin", place=place, count=count, meeting=f"{folder}/meeting", **settings)
        told = [channel.receive() for channel in channels]
    for link in links:
        for end in link:
            end.close()
    return processes, channels, told


def measured(arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    sizes = {name: getattr(arguments, name) for name in ("hidden", "layers", "experts", "batch", "accelerator")}
    running = {
        name: started(count, sizes | {"sharded": sharded})
        for name, (count, sharded) in VARIANTS.items()
        if name in (arguments.variant or VARIANTS)
    }
    steps: dict[str, list[dict[str, float]]] = {name: [] for name in running}
    try:
        for _ in range(arguments.steps + 1):
            for name, (_, channels, _) in running.items():
                channels[0].send("step")
                steps[name].append(channels[0].receive())
    finally:
        for processes, _, _ in running.values():
            for process in reversed(processes):  # the leading one last, or the others would complain
                process.kill()
                process.wait()
    return {
        name: {
            "frozen MiB kept": told[0]["kept"],
            "MiB while loading": told[0]["loading"],
            "MiB at rest": told[0]["at_rest"],
            "MiB in a step": max(step["peak"] for step in steps[name]),
            "seconds a step": statistics.median(step["seconds"] for step in steps[name][1:]),
        }
        for name, (_, _, told) in running.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("hidden", 512), ("layers", 6), ("experts", 16), ("batch", 32), ("steps", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--accelerator", choices=["cpu", "cuda"], default="cpu", help="a GPU for each process, or none")
    parser.add_argument("--variant", action="append", choices=VARIANTS, help="default: all")
    parser.add_argument("--json", action="store_true")
    table = measured(parser.parse_args())
    if parser.parse_args().json:
        print(json.dumps(table))
        return
    columns = list(next(iter(table.values())))
    print("| each process | " + " | ".join(columns) + " |")
    for name, figures in table.items():
        print(f"| {name} | " + " | ".join(f"{figures[column]:.3g}" for column in columns) + " |")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        node, *others = (Channel(socket.socket(fileno=int(descriptor))) for descriptor in sys.argv[2:])
        end_with_parent(node)
        child(node, others)
    else:
        main()
