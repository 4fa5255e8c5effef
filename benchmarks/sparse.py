"""Measures models of every family with routed experts beside dense ones of the same size, and the use of their experts.

    python benchmarks/sparse.py cost [--families mixtral ...] [--seconds 10]
    python benchmarks/sparse.py use [--families mixtral ...] [--steps 800]
    python benchmarks/sparse.py cost --quick; python benchmarks/sparse.py use --quick

cost  random weights, width 512, 4 layers, 32 experts of which a token meets 2; the dense model is the same with two
      experts, both met, together as wide as all of them. FLOPs are those that torch counts in a forward pass of four
      rows of 128 tokens; speed is that of the pass, in processor time of one thread, medians of alternating runs.
use   backbones as `coordinator backbone build` makes them for examples/thyroid, of width 128 with 8 experts a layer,
      and how many experts no token of 20,480 of synthetic records is sent to; also without what keeps them in use:
      a balance bias, or the balance loss of routers by softmax.

Figures: docs/benchmarks/backbones.md.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from measuring import medians
from torch.utils.flop_counter import FlopCounterMode

from confide.client_node.study import load_draft
from confide.kernels.install import install
from confide.models.backbones import public_tokens
from confide.models.backbones.families import FAMILIES, named
from confide.models.backbones.family import BackboneConfig
from confide.models.backbones.loading import build
from confide.models.backbones.pretraining import PretrainingConfig, SyntheticRecords, fit
from confide.models.evaluation.router_statistics import router_statistics

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "thyroid" / "study.toml"
SPARSE = [kind for kind, family in FAMILIES.items() if family.experts is not None]
WIDTHS = {"mixtral": "intermediate_size", "granitemoehybrid": "intermediate_size"}  # of an expert; others' is below
WIDTH = "moe_intermediate_size"
ROWS, LENGTH, WORDS, TOKENS = 4, 128, 4096, 20_480


def model_of(kind: str, config: BackboneConfig, *, is_dense: bool) -> Any:
    """Builds an untrained model, of which a token meets all experts if it is dense."""
    family = named(kind)
    assert family.experts is not None
    settings, width = family.settings(config), WIDTHS.get(kind, WIDTH)
    shared = settings.get("n_shared_experts", settings.get("num_shared_experts", 0))  # each as wide as a routed one
    settings[width] = config.hidden * ((config.experts + shared) // (2 + shared) if is_dense else 1)
    if is_dense:
        settings |= {family.experts.count[0]: 2, family.experts.top_k[0]: 2}  # a group has two or more
    torch.manual_seed(0)
    model = family.model_class()(family.config_class()(**settings, vocab_size=WORDS)).eval()
    model.set_experts_implementation(install())
    return model


@torch.no_grad()
def cost(kind: str, config: BackboneConfig, seconds: float) -> str:
    """A line: parameters, the share of FLOPs, and how many times as fast."""
    ids = torch.randint(2, WORDS, (ROWS, LENGTH), generator=torch.Generator().manual_seed(0))
    models = {is_dense: model_of(kind, config, is_dense=is_dense) for is_dense in (False, True)}
    sizes = {is_dense: sum(p.numel() for p in model.parameters()) for is_dense, model in models.items()}
    flops = {}
    for is_dense, model in models.items():
        with FlopCounterMode(display=False) as counter:
            model(input_ids=ids, use_cache=False)
        flops[is_dense] = counter.get_total_flops()
    calls = {
        str(is_dense): lambda model=model: model(input_ids=ids, use_cache=False) for is_dense, model in models.items()
    }
    times = medians(calls, seconds=seconds)
    share, faster = flops[False] / flops[True], times["True"] / times["False"]
    speeds = [f"{1000 * ids.numel() / times[str(is_dense)]:,.0f}" for is_dense in (False, True)]
    return (
        f"| {named(kind).name} | {sizes[False] / 1e6:.1f} M, {sizes[True] / 1e6:.1f} M | {share:.1%} "
        f"| {speeds[0]}, {speeds[1]} | {faster:.1f} x |"
    )


def use(kind: str, steps: int) -> str:
    """A line: experts that are never chosen, with balancing and without, and the least and largest load."""
    schema = load_draft(EXAMPLE).record_schema()
    cells = []
    for config in (PretrainingConfig(steps=steps), PretrainingConfig(steps=steps, bias_step=0.0, balance_loss=0.0)):
        model = build(schema, BackboneConfig(family=kind))
        fit(model, SyntheticRecords(schema, questions=config.questions, seed=config.seed), config, lambda *_: None)
        layers = router_statistics(model, public_tokens.of_records(schema, TOKENS))
        unused, experts = sum(len(layer.unused) for layer in layers), sum(len(layer.load) for layer in layers)
        loads = [load for layer in layers for load in layer.load]
        cells.append(f"{unused} of {experts} | {min(loads):.4f} to {max(loads):.2f}")
    return f"| {named(kind).name} | {' | '.join(cells)} |"


def main() -> None:
    """Prints one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["cost", "use"])
    parser.add_argument("--families", nargs="+", choices=SPARSE, default=SPARSE)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.what == "cost":
        heading = "| family | parameters: sparse, dense | FLOPs | tokens/s: sparse, dense | sparse over dense |"
        sizes = {"hidden": 64, "layers": 2, "experts": 4} if args.quick else {"hidden": 512, "layers": 4, "experts": 32}
        config = BackboneConfig(heads=4, top_k=2, **sizes)
    else:
        heading = "| family | never chosen | least and largest load | without balancing: never chosen | loads |"
    print(heading + "\n" + "|---" * (heading.count("|") - 1) + "|")
    for kind in args.families:
        if args.what == "cost":
            print(cost(kind, config, 0.2 if args.quick else args.seconds), flush=True)
        else:
            print(use(kind, 2 if args.quick else args.steps), flush=True)


if __name__ == "__main__":
    sys.exit(main())
