"""Measures the routing of the examples' backbones with and without balancing, and what balancing costs.

    python benchmarks/routing.py [--examples thyroid loans rand] [--seeds 0 1 2] [--json]
    python benchmarks/routing.py --steps 0 0.003 0.01 0.03    # other steps of the bias; 0: none, as before 0.3

A row is one backbone, pretrained as `coordinator backbone build` does (seed 0 is what that command makes). The loss is
that of its questions on further synthetic records. Routing is counted on synthetic records and on the example's own,
which are public.
"""

import argparse
import json
import runpy
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import torch
from quality import EXAMPLES, read_table
from torch.nn import functional as F

from confide.client_node.study import load_draft
from confide.models.backbones import public_tokens
from confide.models.backbones.family import BackboneConfig
from confide.models.backbones.loading import build
from confide.models.backbones.pretraining import PretrainingConfig, SyntheticRecords, fit
from confide.models.evaluation.router_statistics import router_statistics
from confide.models.heads import pooled
from confide.models.records import RecordSchema

BATCHES, TOKENS = 64, 20480  # fresh records behind a loss, tokens behind a load


def own_records(example: str) -> tuple[RecordSchema, torch.Tensor]:
    """The example's schema, and the tokens of all its training records."""
    prepare = runpy.run_path(str(EXAMPLES / example / "prepare.py"))["prepare"]
    draft = load_draft(EXAMPLES / example / "study.toml")
    schema = draft.record_schema()
    with tempfile.TemporaryDirectory() as folder:
        parts = prepare(Path(folder))
        return schema, torch.from_numpy(read_table([Path(p["train"]) for p in parts.values()], draft, schema).ids)


def routing(model: torch.nn.Module, batches: Iterable[public_tokens.Batch]) -> dict:
    """The figures of the one layer of experts."""
    (layer,) = router_statistics(model, batches)
    return {
        "unused": len(layer.unused),
        "entropy": layer.entropy,
        "max_violation": layer.max_violation,
        "least_load": min(layer.load),
        "token_entropy": layer.token_entropy,
    }


def measure(schema: RecordSchema, ids: torch.Tensor, seed: int, bias_step: float) -> dict:
    """Pretrains one backbone; its loss, its routing and the seconds of processor time."""
    config = PretrainingConfig(seed=1 + seed, bias_step=bias_step)
    model = build(schema, BackboneConfig(seed=seed))
    source = SyntheticRecords(schema, questions=config.questions, seed=config.seed)
    started = time.process_time()
    answer, bias = fit(model, source, config, lambda done, total: None)
    seconds, losses = time.process_time() - started, []
    with torch.no_grad():
        for _ in range(BATCHES):
            records, answers = source.batch(config.batch)
            found = pooled(model, records) @ answer + bias
            losses.append(float(F.binary_cross_entropy_with_logits(found, answers)))
    return {
        "loss": sum(losses) / BATCHES,
        "seconds": seconds,
        "synthetic": routing(model, public_tokens.of_records(schema, TOKENS)),
        "own": routing(model, ((part, part > 0) for part in ids.split(512))),
    }


def main() -> None:
    """Prints one row a backbone."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", nargs="+", default=["thyroid", "loans", "rand"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    own = PretrainingConfig().bias_step
    parser.add_argument("--steps", type=float, nargs="+", default=[0.0, own], help="of the bias; 0: none")
    parser.add_argument("--json", action="store_true", help="one object a line")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for example in options.examples:
        schema, ids = own_records(example)
        for seed in options.seeds:
            for step in options.steps:
                row = {"example": example, "seed": seed, "bias_step": step} | measure(schema, ids, seed, step)
                print(json.dumps(row) if options.json else line(row), flush=True)


def line(row: dict) -> str:
    """A row for people."""
    parts = [
        f"{name} records: {part['unused']} never chosen, entropy {part['entropy']:.3f}, "
        f"max violation {part['max_violation']:.2f}, least load {part['least_load']:.4f}"
        for name, part in (("synthetic", row["synthetic"]), ("own", row["own"]))
    ]
    named = f"{row['example']}, seed {row['seed']}, bias step {row['bias_step']:g}"
    return f"{named}: loss {row['loss']:.4f}, {row['seconds']:.0f} s; {'; '.join(parts)}"


if __name__ == "__main__":
    main()
