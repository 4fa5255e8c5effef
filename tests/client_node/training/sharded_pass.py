"""One of several processes that shard a model and run passes over it: WORKER_ID NUM_WORKERS MEETING RESULT."""

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch.multiprocessing.reductions import StorageWeakRef

from confide.client_node.training.sharding import ShardedWeights, join
from confide.kernels.collect import Collector
from confide.kernels.install import quantise
from confide.kernels.linear import packed_stacks, quantise_linear
from confide.models.adapters.lora import AdaptedModel, AdapterConfig, attach
from confide.models.backbones.families import family_in
from confide.models.backbones.family import BackboneConfig
from confide.models.backbones.loading import build
from confide.models.backbones.packing import PACK_OF, linear_layers
from confide.models.heads.objectives import BinaryLabel, SeveralTasks, Task, TextTask
from confide.models.heads.pooling import PooledHead
from confide.models.heads.written import joined
from confide.models.records.fields import FlagField, NumericField, RecordSchema

SCHEMA = RecordSchema((NumericField("TSH", (0.4, 1.0, 2.0, 4.0)),), (FlagField("sick"),))
ATTENTION = ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj")
TARGETS = {
    "one projection": ("q_a_proj",),  # all others are torch's own linear maps, and the experts transformers'
    "everywhere": ("embed_tokens", *ATTENTION, "gate_proj", "up_proj", "down_proj", "experts", "gate"),
    "head": (),
    "int8": ("o_proj", "experts"),
    "nf4": ("o_proj",),
    "fp8": ("q_a_proj", "experts"),
    "bfloat16": ("down_proj",),
    "text": ("o_proj", "experts"),  # no head: the output matrix is the embedding, so two blocks share it
    "uneven text": ("o_proj", "experts"),  # one worker has more tokens to write than are computed at a time
    "no text": ("o_proj", "experts"),  # another has none
    "text behind a document": ("o_proj", "experts"),
}
WRITERS = ("text", "uneven text", "no text")
FIRST = {"uneven text": (0, 6), "no text": (8, 0), "text behind a document": (8, 1)}  # token learned, by worker
PACKS = {name: pack for name, pack in PACK_OF.items() if name in TARGETS}
ALL_PACKED = ("nf4", "fp8", "bfloat16")  # linear layers as well, adapted or not


def adapted_model(case: str) -> AdaptedModel:
    targets = TARGETS[case]
    config = AdapterConfig(rank=4, alpha=8.0, targets=targets, seed="s", freeze_a=False)
    model = build(SCHEMA, BackboneConfig(hidden=32, layers=3, experts=4))
    if case in PACKS:
        quantise(model, PACKS[case])
    if case in ALL_PACKED:
        quantise_linear(model, linear_layers(family_in(model), model), PACKS[case])
    tasks = SeveralTasks((Task("ill", BinaryLabel()),), text=TextTask("summary", ":"))
    objective = tasks if case == "text behind a document" else None
    head = None if case in WRITERS else PooledHead(torch.zeros(64), torch.eye(64), objective=objective)
    adapted = attach(model, config, head)
    adapted.load_state(np.random.default_rng(0).normal(size=adapted.layout.dim) * 0.2)
    return adapted


def gradients(adapted: AdaptedModel, between: list[int], look, first: int = 3) -> torch.Tensor:
    """All gradients of one batch; `between` gets what `look` sees after forward.

    Args:
        first: tokens behind this place are written, where any are.
    """
    words = len(SCHEMA.words())
    ids = torch.randint(1, words, (6, 9), generator=torch.Generator().manual_seed(1))
    collector = Collector(torch.arange(6), 6, 9)
    with adapted.slot.filled(collector):
        is_written = (torch.arange(9) > first).expand(6, 9)
        targets = torch.arange(6) % 2 if adapted.head is not None else is_written
        if adapted.text is not None:
            targets = torch.from_numpy(joined(1 + targets.numpy(), torch.zeros_like(is_written), is_written))
        loss = adapted.losses(ids, targets).sum()
        between.append(look())
        loss.backward()
    sums = collector.weighted_sum(torch.ones(6))
    return torch.cat([sums[parameter].flatten() for parameter in adapted.trained.values()])


def report(case: str, device: torch.device, *, offload: bool, worker_id: int) -> dict[str, object]:
    adapted, first = adapted_model(case), FIRST.get(case, (3, 3))[worker_id]
    stacks = [stack for module in adapted.modules() for stack in packed_stacks(module)]
    frozen = sum(p.nbytes for p in adapted.model.parameters() if not p.requires_grad and p.ndim > 1)
    frozen += sum(stack.nbytes for stack in stacks)
    want = gradients(adapted, [], lambda: 0, first)
    weights = ShardedWeights(adapted, device, offload=offload)
    gathered: list[StorageWeakRef] = []
    whole: list[int] = []

    def whole_bytes() -> int:
        """Of the matrices that are whole here at this moment."""
        return sum(matrix.nbytes for matrix in weights.matrices)

    def look(*_: object) -> None:
        whole.append(whole_bytes())
        gathered.extend(StorageWeakRef(matrix.untyped_storage()) for matrix in weights.matrices if matrix.numel())

    def watch(_: torch.nn.Module, __: object, output: torch.Tensor) -> None:
        look()
        if output.requires_grad:
            output.register_hook(look)  # backward is inside the layer, too

    def kept() -> int:
        until = time.monotonic() + 5  # gloo's own thread lets go of what it gathered a moment later
        while any(not storage.expired() for storage in gathered) and time.monotonic() < until:
            time.sleep(0.01)
        return sum(not storage.expired() for storage in gathered)

    layers = adapted.model.model.layers
    for layer in layers:
        layer.post_attention_layernorm.register_forward_hook(watch)
    between: list[int] = []
    rest = [whole_bytes()]
    for _ in range(2):
        got = gradients(adapted, between, kept, first)
        rest.append(whole_bytes())
    return {
        "frozen": frozen,
        "total": weights.total_bytes,
        "own": weights.own_bytes,
        "matrices": len(weights.matrices),
        "whole_at_rest": rest,
        "whole_inside": whole,
        "largest_layer": max(
            sum(p.ds_numel * p.element_size() for p in layer.parameters() if hasattr(p, "ds_numel")) for layer in layers
        ),
        "kept_for_backward": between,
        "difference": float((got - want).abs().max()),
        "size": float(want.abs().max()),
    }


def main() -> None:
    worker_id, num_workers, meeting, result = sys.argv[1:]
    device = join(int(worker_id), int(num_workers), Path(meeting))
    number = int(worker_id)
    reports = {case: report(case, device, offload=False, worker_id=number) for case in TARGETS}
    reports["offloaded"] = report("everywhere", device, offload=True, worker_id=number)
    Path(result).write_text(json.dumps(reports))


if __name__ == "__main__":
    main()
