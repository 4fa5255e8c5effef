"""Measures what state-space layers cost by length, and what they learn, beside attention in the same architecture.

    python benchmarks/state_space.py scans [--seconds 5]
    python benchmarks/state_space.py cost [--lengths 2048 8192 32768] [--repeats 3]
    python benchmarks/state_space.py quality [--seeds 0 1 2] [--tokens 2e6] [--results state_space.jsonl]
    python benchmarks/state_space.py cost --quick; python benchmarks/state_space.py quality --quick

scans    the scans of `kernels.scans` beside the code that transformers falls back to on processors, which computes the
         same: a forward pass, and one with its gradients, in one thread, medians of alternating runs.
cost     processor seconds of a forward pass of one record, in one thread, of models with random weights: three layers
         of Mamba-2 and one of attention, four of Mamba-2, four of attention, in the architecture of Granite 4, eight
         routed experts in every layer; and the same of Kimi Linear, whose state-space layers are those of the delta
         rule. Attention is torch's flash attention (`is_causal`, no mask).
quality  such models of Granite 4, made equally large by their shared experts, are trained from nothing on the same
         tokens of the derivations of examples/derivations. The figure is the loss on held-out problems, in nats a
         learned token: of each model, and of the hybrid less that of attention.

Figures: docs/benchmarks/backbones.md.
"""

import argparse
import inspect
import itertools
import statistics
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from federated_arms import spread
from mathematics import LONGEST, drawn
from measuring import medians
from rows import Rows
from torch import Tensor
from transformers.models.granitemoehybrid import modeling_granitemoehybrid
from transformers.models.kimi_linear import modeling_kimi_linear

from confide.models.backbones.families import named
from confide.models.backbones.family import BackboneConfig
from confide.models.backbones.text_pretraining import TextPretrainingConfig, fit_text
from confide.models.heads import foretell
from confide.models.records.formulas import FormulaEncoder, FormulaTerms
from confide.models.records.vocabularies import COMMANDS, character_tokenizer

SSM, ATTENTION = "linear_attention", "full_attention"  # transformers' words
MIXES = {
    "3 state-space, 1 attention": (SSM, SSM, SSM, ATTENTION),
    "4 state-space": (SSM,) * 4,
    "4 attention": (ATTENTION,) * 4,
}
HYBRID, ALONE = "3 state-space, 1 attention", "4 attention"


def built(kind: str, mix: Sequence[str], words: int, hidden: int, seed: int, **settings: Any) -> Any:
    """Builds an untrained model of a family with these layers."""
    family = named(kind)
    config = BackboneConfig(family=kind, hidden=hidden, layers=len(mix), max_tokens=2**17)
    own = family.settings(config) | {"layer_types": list(mix), "vocab_size": words} | settings
    torch.manual_seed(seed)
    return family.model_class()(family.config_class()(**own)).eval()


@torch.inference_mode()
def seconds_of(model: Any, length: int, repeats: int) -> float:
    """Median processor seconds of a forward pass of one record."""
    ids = torch.randint(2, model.config.vocab_size, (1, length), generator=torch.Generator().manual_seed(0))
    model.model(input_ids=ids[:, :256], use_cache=False)
    found = []
    for _ in range(repeats):
        started = time.process_time()
        model.model(input_ids=ids, use_cache=False)
        found.append(time.process_time() - started)
    return statistics.median(found)


def scans(seconds: float, shapes: Sequence[tuple[int, int, int, int]]) -> None:
    """Prints a line for each kind of scan and shape: rows, tokens, heads, numbers of a head."""
    print("| scan | rows x tokens, heads x width | forward, ms | times as fast | with gradients, ms | times as fast |")
    print("|---|---|---|---|---|---|")
    for kind in ("granitemoehybrid", "kimi_linear"):
        named(kind).model_class()  # puts ours where transformers' was
    for shape in shapes:
        rows, tokens, heads, width = shape
        generator = torch.Generator().manual_seed(0)
        wide = [torch.randn(rows, tokens, heads, width, generator=generator) for _ in range(3)]
        step, fading = (torch.rand(rows, tokens, heads, more, generator=generator) for more in (1, width))
        directions = [torch.randn(rows, tokens, 1, 64, generator=generator) for _ in range(2)]
        of_mamba2 = [wide[0], step.squeeze(-1), -torch.ones(heads), *directions, 256]
        mamba2 = beside(modeling_granitemoehybrid.mamba2_chunk_scan, of_mamba2, seconds)
        of_delta_rule = [F.normalize(wide[0], dim=-1), F.normalize(wide[1], dim=-1), wide[2], -fading, step.squeeze(-1)]
        delta_rule = beside(modeling_kimi_linear.chunk_kimi_delta_attention, of_delta_rule, seconds)
        for name, cells in (("Mamba-2", mamba2), ("delta rule", delta_rule)):
            print(f"| {name} | {rows} x {tokens:,}, {heads} x {width} | {' | '.join(cells)} |", flush=True)


def beside(ours: Any, inputs: Sequence[Any], seconds: float) -> list[str]:
    """Cells: milliseconds of a scan and how many times transformers' takes, forward and with gradients."""
    learned = [part.clone().requires_grad_() if isinstance(part, Tensor) else part for part in inputs]
    calls = {"ours": ours, "theirs": inspect.unwrap(ours)}

    def forward(scan: Any, given: Sequence[Any]) -> Tensor:
        out: Any = scan(*given)
        return cast(Tensor, out[0] if isinstance(out, tuple) else out)

    with torch.no_grad():
        reads = medians({name: partial(forward, scan, inputs) for name, scan in calls.items()}, seconds=seconds)
    steps = medians(
        {name: lambda scan=scan: forward(scan, learned).sum().backward() for name, scan in calls.items()},
        seconds=seconds,
    )
    return [f"{each['ours']:.1f} | {each['theirs'] / each['ours']:.1f}" for each in (reads, steps)]


def cost(lengths: Sequence[int], repeats: int) -> None:
    """Prints a line for each family and mix, with what a length costs over the one before."""
    print(f"| family | layers | {' | '.join(f'{length:,} tokens' for length in lengths)} | over attention |")
    print("|---|---|" + "---|" * (len(lengths) + 1))
    for kind, chunk in (("granitemoehybrid", {"mamba_chunk_size": 128}), ("kimi_linear", {})):
        found = {}
        for name, mix in MIXES.items():
            model = built(kind, mix, 130, 64, 0, **chunk)
            found[name] = [seconds_of(model, length, repeats) for length in lengths]
        for name, seconds in found.items():
            times = ["", *(f" (×{after / before:.1f})" for before, after in itertools.pairwise(seconds))]
            cells = [f"{each:.2f} s{more}" for each, more in zip(seconds, times, strict=True)]
            print(f"| {kind} | {name} | {' | '.join(cells)} | {seconds[-1] / found[ALONE][-1]:.2f} |", flush=True)


def as_large_as(goal: int, mix: Sequence[str], words: int, hidden: int) -> int:
    """Finds the width of the shared expert at which a model has the most parameters up to `goal`."""
    sizes = [
        sum(parameter.numel() for parameter in built(
            "granitemoehybrid", mix, words, hidden, 0, shared_intermediate_size=width
        ).parameters())
        for width in (hidden, hidden + 1)
    ]  # fmt: skip
    return hidden + (goal - sizes[0]) // (sizes[1] - sizes[0])


def quality(seeds: Sequence[int], tokens: int, count: int, rows: Rows) -> None:
    """Trains both models with each seed, and prints their losses."""
    tokenizer, hidden = character_tokenizer(COMMANDS), 96
    terms = FormulaTerms(question="question", derivation="derivation", answer="answer", engine=False)
    encoder, words = FormulaEncoder(terms, tokenizer, LONGEST), len(tokenizer)
    largest = sum(p.numel() for p in built("granitemoehybrid", MIXES[HYBRID], words, hidden, 0).parameters())
    for seed, name in itertools.product(seeds, (HYBRID, ALONE)):
        key = {"arm": name, "seed": seed, "tokens": tokens}
        if rows.of(key):
            continue
        width = as_large_as(largest, MIXES[name], words, hidden)
        # A hybrid's attention has no positions of its own, as the other layers tell them; attention alone needs them.
        positions = {"position_embedding_type": "rope"} if name == ALONE else {}
        model = built("granitemoehybrid", MIXES[name], words, hidden, seed, shared_intermediate_size=width, **positions)
        started = time.process_time()
        config = TextPretrainingConfig(tokens=tokens, seed=1 + seed)
        fit_text(model, drawn(encoder, 1 + seed, tokens), config, lambda done, total: None)
        seconds = round(time.process_time() - started)
        size = sum(parameter.numel() for parameter in model.parameters())
        loss = loss_of(model, drawn(encoder, 77, 400 * count, held_out=True)[:count])
        rows.add(key | {"parameters": size, "loss": loss, "seconds": seconds}, f"{size:,} parameters, loss {loss:.4f}")
    print("| layers | parameters | loss, nats a token | training, CPU s |\n|---|---|---|---|")
    for name in (HYBRID, ALONE):
        own = [row for row in rows.of({"arm": name, "tokens": tokens}) if row["seed"] in seeds]
        losses = [row["loss"] for row in own]
        said = f"{statistics.mean(losses):.4f} ± {spread(losses):.4f}"
        print(f"| {name} | {own[0]['parameters']:,} | {said} | {statistics.mean(row['seconds'] for row in own):.0f} |")
    apart = [
        rows.of({"arm": HYBRID, "seed": seed, "tokens": tokens})[0]["loss"]
        - rows.of({"arm": ALONE, "seed": seed, "tokens": tokens})[0]["loss"]
        for seed in seeds
    ]
    print(f"\nThe hybrid's loss less that of attention: {statistics.mean(apart):+.4f} ± {spread(apart):.4f}")


@torch.no_grad()
def loss_of(model: Any, rows: Sequence[tuple[list[int], list[bool]]]) -> float:
    """Mean loss over the learned tokens of all rows."""
    found = [foretell(model, torch.tensor([ids]), torch.tensor([is_learned])).losses_N for ids, is_learned in rows]
    return torch.cat(found).mean().item()


def main() -> None:
    """Measures what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["scans", "cost", "quality"])
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--lengths", type=int, nargs="+", default=[2048, 8192, 32768])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--tokens", type=float, default=2e6)
    parser.add_argument("--results", type=Path, default=Path("state_space.jsonl"))
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.what == "scans":
        shapes = [(1, 100, 2, 8)] if args.quick else [(4, 128, 8, 64), (1, 2048, 8, 64)]
        return scans(args.seconds, shapes)
    if args.what == "cost":
        return cost(*(([256, 1024], 1) if args.quick else (args.lengths, args.repeats)))
    if args.quick:
        args.seeds, args.tokens = [0], 5000
    quality(args.seeds, int(args.tokens), 20 if args.quick else 400, Rows(args.results))


if __name__ == "__main__":
    sys.exit(main())
