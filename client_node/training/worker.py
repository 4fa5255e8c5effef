"""Runs a worker: the leading worker answers the node, the others compute parts for the leading worker.

Of all that depends on a record, only the sample, sums and records pass the links between these processes.
"""

import logging
import os
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from ...models.adapters import AdaptedModel
from ...models.errors import ModelError
from ...mpc.links import Channel
from ...privacy.errors import PrivacyError
from ...privacy.mechanism.workers import Alone, Part, ReadPart, ScorePart, SumPart, Vector
from ..data import Records
from ..study import Study
from .record_arrays import from_arrays
from .trainer import Trainer

logger = logging.getLogger(__name__)

_KINDS: dict[str, type[Part]] = {"sum": SumPart, "score": ScorePart, "read": ReadPart}


class LinkedGroup:
    """The other workers, as the leading one sees them."""

    def __init__(self, links: Sequence[Channel]) -> None:
        self._links = links

    @property
    def size(self) -> int:
        """Number of workers, the leading one included."""
        return 1 + len(self._links)

    def begin(self, parts: Sequence[Part]) -> None:
        """See `WorkerGroup`."""
        for link, part in zip(self._links, parts, strict=True):
            values = {each.name: getattr(part, each.name) for each in fields(part)}
            link.send(next(kind for kind, of in _KINDS.items() if isinstance(part, of)), **values)

    def finish(self) -> list[Vector]:
        """See `WorkerGroup`."""
        return [link.receive(array_bytes=None)["vector"] for link in self._links]


def lead(trainer: Trainer, node: Channel, records: list[Records]) -> None:
    """Carries out the node's orders until it closes its end; the trainer reads the received records from `records`."""
    while True:
        order = node.receive(array_bytes=None)
        sent = [from_arrays(order)] if "units" in order else []
        if order["kind"] == "release":
            records.extend(sent)
            vector = trainer.release(order["state"], order["round"])
        elif order["kind"] == "prototype":
            records.extend(sent)
            vector = trainer.prototype(order["round"], site_noise=order["site_noise"])
        else:
            vector = trainer.histogram(order["state"], sent.pop, order["round"], site_noise=order["site_noise"])
        node.send("done", vector=vector)


def follow(trainer: Trainer, leading: Channel) -> None:
    """Computes parts for the leading worker until it closes its end."""
    while True:
        values = leading.receive(array_bytes=None)
        part: Part = _KINDS[values.pop("kind")](**values)
        leading.send("done", vector=trainer.compute(part))


def serve(node: Channel, links: Sequence[Channel]) -> None:
    """Loads the study's model with the other workers, then leads or follows; returns when they are gone.

    Args:
        node: the link to the node, which speaks first.
        links: the leading worker's to all others, or another's to the leading one.
    """
    settings = node.receive()
    records: list[Records] = []
    worker_id = settings["worker_id"]
    try:
        trainer = _trainer(settings, links, records)
    except (ModelError, PrivacyError) as err:
        node.send("failed", reason=f"{type(err).__name__}: {err}")
        return
    node.send("done", **({"start": trainer.start} if worker_id == 0 else {}))
    try:
        if worker_id == 0:
            lead(trainer, node, records)
        else:
            follow(trainer, links[0])
    except EOFError:
        logger.info("worker %d ends: a process that it works with is gone", worker_id)


def _trainer(settings: dict[str, Any], links: Sequence[Channel], records: list[Records]) -> Trainer:
    worker_id, num_workers = settings["worker_id"], settings["num_workers"]
    gpus = torch.cuda.device_count()
    if 0 < gpus < num_workers and worker_id == 0:
        logger.warning("%d workers and %d GPUs: all workers compute on the CPU", num_workers, gpus)
    os.environ["DS_ACCELERATOR"] = "cuda" if gpus >= num_workers else "cpu"
    from . import sharding  # DeepSpeed reads that variable when it is imported

    device = sharding.join(worker_id, num_workers, Path(settings["meeting"]))
    study = Study.parse(settings["study"])

    def shard(adapted: AdaptedModel) -> None:
        weights = sharding.ShardedWeights(adapted, device, offload=settings["offload"])
        logger.info(
            "worker %d of %d on %s keeps %d of %d bytes of frozen matrices",
            worker_id, num_workers, device, weights.own_bytes, weights.total_bytes,
        )  # fmt: skip

    return Trainer(
        study,
        Path(settings["backbone"]),
        records.pop,
        site=settings["site"],
        site_noise=settings["site_noise"],
        max_rows=settings["max_rows"],
        threads=settings["threads"],
        group=LinkedGroup(links) if worker_id == 0 else Alone(),
        place=shard,
    )
