"""Compares the kernels for routed experts with transformers, PEFT, and one bare matrix product an expert.

    python benchmarks/experts.py [--quick] [--json] [--seconds S] [--shape NAME]

Every figure is processor time divided by that of `limit`: the matrix products alone, one an expert and projection, into
existing buffers, without gather, activation or sum. With LoRA the limit has the rank-wide products too.

    ours          `moe` on the cpu backend; int8, nf4, fp8: the same on quantised experts
    prepacked     the same on experts in the library's own order, in twice the memory
    eager         transformers' loop over experts
    grouped_mm    transformers' default
    peft          `target_parameters` over grouped_mm
    norms         ours with a collector and 8 units, and the norm of each unit's gradient
    clipped       norms, and the clipped sum

Methods alternate; times are medians over rounds in one thread. Memory is the rise of a fresh process's peak resident
set (VmHWM) over the one with weights and input loaded, forward and backward with LoRA; beside it is the size of one
expert stack. The whole step is that of the demo's model, rank 4, batches of 64 records. It compares our step with
per-unit clipping to two others: PEFT's adapters over transformers' default experts without clipping, and the same one
record after another, which clipping needs there.
"""

import argparse
import json
import os
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass

import peft
import torch
import torch.nn.functional as F
from expert_peers import Call, bare_products, no_grad, peft_experts, stock_experts
from measuring import in_child, medians, restart_peak, status_mib
from torch import Tensor, nn

from confide.kernels.collect import Collector
from confide.kernels.experts import Experts, Factors, LoRA
from confide.kernels.formats import Dense, FP8Block128, Int8Row, NF4Block64, Prepacked
from confide.kernels.moe import moe
from confide.kernels.routing import route
from confide.models.adapters import AdapterConfig, attach
from confide.models.backbones.family import BackboneConfig
from confide.models.backbones.loading import build
from confide.models.heads import PooledHead, pooled, record_losses
from confide.models.records.fields import FlagField, NumericField, RecordSchema
from confide.privacy.mechanism.clipping import PerUnitClipper

RANK, UNITS, SCALING = 16, 8, 2.0
FORMATS = {
    "prepacked": Prepacked.of,
    "int8": Int8Row.quantised,
    "nf4": NF4Block64.quantised,
    "fp8": FP8Block128.quantised,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """A bank and how many tokens it sees."""

    model: int
    hidden: int
    experts: int
    top_k: int
    tokens: int


SHAPES = {
    "large": Shape(model=1024, hidden=704, experts=64, top_k=6, tokens=2048),
    "small": Shape(model=512, hidden=256, experts=16, top_k=4, tokens=2048),
    "few rows": Shape(model=1024, hidden=704, experts=64, top_k=6, tokens=384),
    "small, few tokens": Shape(model=512, hidden=256, experts=16, top_k=4, tokens=256),
}


class Bench:
    """One bank in bfloat16, one batch, and everything that can be done with them."""

    def __init__(self, shape: Shape) -> None:
        self.shape, generator = shape, torch.Generator().manual_seed(0)

        def draw(*size: int, std: float = 1.0) -> Tensor:
            return (torch.randn(size, generator=generator) * std).bfloat16()

        D, H, E = shape.model, shape.hidden, shape.experts
        self.gate_up, self.down = draw(E, 2 * H, D, std=D**-0.5), draw(E, D, H, std=H**-0.5)
        self.x = draw(shape.tokens, D).requires_grad_()
        self.grad = draw(shape.tokens, D)
        self.ids = torch.rand(shape.tokens, E, generator=generator).topk(shape.top_k, dim=1).indices
        self.weights = torch.rand(shape.tokens, shape.top_k, generator=generator).requires_grad_()
        self.factors = Factors(
            *(
                nn.Parameter(draw(*size, std=0.02))
                for size in ((E, RANK, D), (E, 2 * H, RANK), (E, RANK, H), (E, D, RANK))
            )
        )
        self.dense = Experts(Dense(self.gate_up), Dense(self.down))
        self.units = torch.arange(UNITS).repeat_interleave(shape.tokens // UNITS)

    def ours(self, experts: Experts | None = None, factors: Factors | None = None) -> Tensor:
        """One forward pass, the sort of the routing included."""
        lora = None if factors is None else LoRA(factors, SCALING)
        return moe(
            self.x, route(self.ids, self.shape.experts), self.weights, experts or self.dense, lora, backend="cpu"
        )

    def private(self, *, clipped: bool) -> None:
        """Forward, backward and norms by unit, each unit a row of the batch."""
        collector = Collector(torch.arange(UNITS), UNITS, self.shape.tokens // UNITS)
        plan = route(self.ids, self.shape.experts, collector.unit_of_token, UNITS)
        lora = LoRA(self.factors, SCALING)
        self.backward(moe(self.x, plan, self.weights, self.dense, lora, backend="cpu", collector=collector))
        norms = collector.square_norms().sqrt_()
        if clipped:
            collector.weighted_sum((1 / norms).clamp_(max=1))

    def backward(self, out: Tensor) -> None:
        """To the input, the routing weights and whatever is trained."""
        self.x.grad = self.weights.grad = None
        out.backward(self.grad)

    def methods(self) -> dict[str, dict[str, Call]]:
        """By section and name, the limit first."""
        packed = {n: Experts(pack(self.gate_up), pack(self.down)) for n, pack in FORMATS.items()}
        eager, grouped = (stock_experts(self.gate_up, self.down, which) for which in ("eager", "grouped_mm"))
        adapted = peft_experts(self.gate_up, self.down, RANK, SCALING)
        frozen = Factors(*(f if i % 2 else nn.Parameter(f.detach(), False) for i, f in enumerate(self.factors)))
        limits = bare_products(route(self.ids, self.shape.experts), self.gate_up, self.down, self.factors)
        plain: dict[str, Callable[[], Tensor]] = {
            "ours": self.ours,
            **{name: lambda e=experts: self.ours(e) for name, experts in packed.items()},
            "eager": lambda: eager(self.x, self.ids, self.weights),
            "grouped_mm": lambda: grouped(self.x, self.ids, self.weights),
        }
        lora: dict[str, Callable[[], Tensor]] = {
            "ours": lambda: self.ours(factors=self.factors),
            "ours, A frozen": lambda: self.ours(factors=frozen),
            "prepacked": lambda: self.ours(packed["prepacked"], self.factors),
            "int8": lambda: self.ours(packed["int8"], self.factors),
            "peft": lambda: adapted(self.x, self.ids, self.weights),
        }
        private = {"norms": lambda: self.private(clipped=False), "clipped": lambda: self.private(clipped=True)}
        sections = {
            "forward": {name: no_grad(f) for name, f in plain.items()},
            "forward + backward": {name: lambda f=f: self.backward(f()) for name, f in plain.items()},
            "LoRA forward": {name: no_grad(f) for name, f in lora.items()},
            "LoRA forward + backward": {name: lambda f=f: self.backward(f()) for name, f in lora.items()} | private,
        }
        return {section: {"limit": limits[section]} | calls for section, calls in sections.items()}

    def rising(self, method: str) -> Call:
        """Forward and backward with LoRA, for a measurement of memory."""
        if method == "clipped":
            return lambda: self.private(clipped=True)
        if method == "peft":
            adapted = peft_experts(self.gate_up, self.down, RANK, SCALING)
            return lambda: self.backward(adapted(self.x, self.ids, self.weights))
        if method == "ours":
            return lambda: self.backward(self.ours(factors=self.factors))
        packed = Experts(FORMATS[method](self.gate_up), FORMATS[method](self.down))
        return lambda: self.backward(self.ours(packed, self.factors))


def peak(name: str, method: str) -> dict[str, float]:
    """MiB that forward and backward with LoRA add in a process of its own."""
    return in_child(__file__, name, method)


def _measure_own_peak(name: str, method: str) -> None:
    bench = Bench(SHAPES[name])
    call = bench.rising(method)
    call()  # what libraries set up once is not the method's
    before = status_mib("VmRSS")
    restart_peak()
    call()
    print(json.dumps({"added_mib": status_mib("VmHWM") - before}))


def demo_steps() -> dict[str, Call]:
    """A training step on 64 records of 24 words, by whose adapters and experts."""
    fields = [NumericField(f"n{i}", tuple(float(c) for c in range(14))) for i in range(8)]
    schema = RecordSchema(numeric=tuple(fields), flags=tuple(FlagField(f"f{i}") for i in range(14)))
    attention = ["q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"]
    targets = (*attention, "gate_proj", "up_proj", "down_proj", "experts")
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(2, len(schema.words()), (64, 24), generator=generator)
    labels = torch.arange(64) % 2
    width = 2 * BackboneConfig().hidden

    def head() -> PooledHead:
        return PooledHead(torch.zeros(width), torch.eye(width))

    config = AdapterConfig(rank=4, alpha=4.0, targets=targets, seed="bench")
    ours = attach(build(schema, BackboneConfig()), config, head())
    clipper, sgd = PerUnitClipper(ours), torch.optim.SGD(list(ours.trained.values()), lr=1e-3)

    def clipped() -> None:
        clipper.start_step()
        with clipper.microbatch(range(len(ids)), ids.shape[1]):
            record_losses(ours.classify(ids), labels).sum().backward()
        total, _ = clipper.clipped_sum(1.0)
        for name, parameter in ours.trained.items():
            parameter.grad = total[name].to(parameter)
        sgd.step()
        sgd.zero_grad()

    stock = build(schema, BackboneConfig())
    stock.set_experts_implementation("grouped_mm")
    leaves = ["mlp.shared_experts", "mlp"]  # PEFT takes these names for those of routed experts
    projections = [f"{parent}.{leaf}.weight" for parent in leaves for leaf in ("gate_proj", "up_proj", "down_proj")]
    theirs = peft.get_peft_model(
        stock,
        peft.LoraConfig(
            r=4,
            lora_alpha=4,
            target_modules=attention,
            target_parameters=[*projections, "experts.gate_up_proj", "experts.down_proj"],
        ),
    )
    base, own_head = theirs.base_model.model, head()
    for name, parameter in theirs.named_parameters():
        parameter.requires_grad_("lora_B" in name)
    trained = [p for p in (*theirs.parameters(), *own_head.parameters()) if p.requires_grad]
    their_sgd = torch.optim.SGD(trained, lr=1e-3)

    def loss(rows: slice) -> Tensor:
        return record_losses(own_head(pooled(base, ids[rows])), labels[rows]).sum()

    def unclipped() -> None:
        their_sgd.zero_grad()
        loss(slice(None)).backward()
        their_sgd.step()

    def one_by_one() -> None:
        total = [torch.zeros_like(p) for p in trained]
        for row in range(len(ids)):
            grads = torch.autograd.grad(loss(slice(row, row + 1)), trained)
            norm = torch.stack([g.norm() for g in grads]).norm()
            for so_far, g in zip(total, grads, strict=True):
                so_far.add_(g * (1 / norm).clamp(max=1))
        for p, g in zip(trained, total, strict=True):
            p.grad = g
        their_sgd.step()

    return {"ours, clipped": clipped, "default experts, no clipping": unclipped, "default experts, clipped": one_by_one}


def table(name: str, taken: dict[str, dict[str, float]]) -> str:
    """Markdown: methods by sections, each over the limit of its section."""
    shape, sections = SHAPES[name], list(taken)
    methods = list(dict.fromkeys(method for calls in taken.values() for method in calls))
    title = f"{name}: {shape.model}/{shape.hidden}, {shape.experts} experts, top-{shape.top_k}, {shape.tokens} tokens"
    lines = [f"| {title} | " + " | ".join(sections) + " |", "|---" * (len(sections) + 1) + "|"]
    for method in methods:
        cells = [method]
        for section in sections:
            ms, limit = taken[section].get(method), taken[section]["limit"]
            cells.append("" if ms is None else f"{ms:.1f} ms" if method == "limit" else f"{ms / limit:.2f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the small shapes alone, a few seconds each")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--seconds", type=float, default=20, help="for each section of a table")
    parser.add_argument("--shape", choices=SHAPES, action="append", help="all if left out")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args()
    warnings.filterwarnings("ignore")  # PEFT's hints
    torch.set_num_threads(1)
    if given.child:
        return _measure_own_peak(*json.loads(given.child))
    names = given.shape or (list(SHAPES)[1:] if given.quick else list(SHAPES))
    seconds = 3 if given.quick else given.seconds
    found: dict[str, object] = {"load": os.getloadavg()[0]}
    for name in names:
        methods = Bench(SHAPES[name]).methods()
        taken = {section: medians(calls, seconds=seconds) for section, calls in methods.items()}
        stack = 2 * SHAPES[name].experts * 2 * SHAPES[name].hidden * SHAPES[name].model / 2**20
        peaks = {
            method: peak(name, method)["added_mib"]
            for method in ("ours", "prepacked", "int8", "nf4", "fp8", "clipped", "peft")
        }
        found[name] = {"shape": asdict(SHAPES[name]), "ms": taken, "added_mib": peaks, "gate_up_mib": stack}
        if not given.json:
            print(table(name, taken), end="\n\n")
            rises = ", ".join(f"{method} {mib:.0f}" for method, mib in peaks.items())
            print(f"MiB added, gate_up alone being {stack:.0f} in bfloat16: {rises}", end="\n\n", flush=True)
    steps = medians(demo_steps(), seconds=seconds)
    found["demo step"] = steps
    if given.json:
        return print(json.dumps(found))
    print("| step of the demo's model | ms | over ours |\n|---|---|---|")
    for name, ms in steps.items():
        print(f"| {name} | {ms:.1f} | {ms / steps['ours, clipped']:.2f} |")
    return print(f"\nload {os.getloadavg()[0]:.1f}, {F.__name__.partition('.')[0]} {torch.__version__}")


if __name__ == "__main__":
    main()
