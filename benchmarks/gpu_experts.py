"""Routed experts on a GPU: how exact the Triton kernels are, and how fast beside what else computes the same.

    limit            the bare matrix products, one an expert and projection, by cuBLAS; with LoRA the rank-wide ones too
    ours             `moe` on the Triton backend; int8, nf4, fp8: the same on quantised experts
    cpu backend      `moe` on torch's products, to which the Triton backend falls back
    grouped products torch's `grouped_mm` alone, both projections, without gather, activation or sum
    eager            transformers' loop over experts; grouped_mm: its default
    liger            Liger's fused experts, if installed; backward computes the gradients of the experts themselves too
    peft             PEFT's `target_parameters` over transformers' grouped_mm
    norms, clipped   ours with a collector and 8 units: the norm of each unit's gradient; and the clipped sum

`benchmarks/gpu.py` runs this; `benchmarks/experts.py` does the same on a CPU.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

import torch
from expert_peers import bare_products, no_grad, peft_experts, stock_experts
from gpu_timing import Call, added_mib, medians_on
from torch import Tensor, nn

from confide.kernels.collect import Collector
from confide.kernels.experts import Experts, Factors, LoRA
from confide.kernels.formats import Dense, ExpertWeights, FP8Block128, Int8Row, NF4Block64
from confide.kernels.moe import moe
from confide.kernels.routing import route

UNITS = 8
SCALING = 2.0
PACKS: dict[str, Callable[[Tensor], ExpertWeights]] = {
    "dense": Dense,
    "int8": Int8Row.quantised,
    "nf4": NF4Block64.quantised,
    "fp8": FP8Block128.quantised,
}
BOUNDS = {torch.float32: 1e-5, torch.bfloat16: 0.02}  # relative error of a whole tensor, against float64


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """A bank, how many tokens it sees, and the rank of its adapters."""

    model: int
    hidden: int
    experts: int
    top_k: int
    tokens: int
    rank: int = 16

    def __str__(self) -> str:
        bank = f"{self.experts} experts {self.model}/{self.hidden}, top-{self.top_k}"
        return f"{bank}, {self.tokens} tokens, rank {self.rank}"


class Bank:
    """One bank of experts, one batch, and everything that can be done with them on a device."""

    def __init__(self, shape: Shape, device: torch.device, dtype: torch.dtype) -> None:
        self.shape, self.device, generator = shape, device, torch.Generator().manual_seed(0)

        def draw(*size: int, std: float = 1.0) -> Tensor:
            return (torch.randn(size, generator=generator) * std).to(device, dtype)

        D, H, E, R = shape.model, shape.hidden, shape.experts, shape.rank
        self.gate_up, self.down = draw(E, 2 * H, D, std=D**-0.5), draw(E, D, H, std=H**-0.5)
        self.x, self.grad = draw(shape.tokens, D).requires_grad_(), draw(shape.tokens, D)
        chosen = torch.rand(shape.tokens, E, generator=generator).topk(shape.top_k, dim=1)
        self.ids = chosen.indices.to(device)
        self.weights = torch.rand(shape.tokens, shape.top_k, generator=generator).to(device).requires_grad_()
        sizes = (E, R, D), (E, 2 * H, R), (E, R, H), (E, D, R)
        self.factors = Factors(*(nn.Parameter(draw(*size, std=size[-1] ** -0.5)) for size in sizes))
        self.frozen_A = Factors(*(f if i % 2 else f.detach() for i, f in enumerate(self.factors)))
        self._packed: dict[str, Experts] = {}

    def experts(self, stored: str) -> Experts:
        if stored not in self._packed:
            self._packed[stored] = Experts(PACKS[stored](self.gate_up), PACKS[stored](self.down))
        return self._packed[stored]

    def forget(self, stored: str) -> None:
        """Frees a format's copy of the experts."""
        self._packed.pop(stored, None)

    def ours(self, stored: str = "dense", factors: Factors | None = None, *, backend: str = "triton") -> Tensor:
        """One forward pass, the sort of the routing included."""
        lora = None if factors is None else LoRA(factors, SCALING)
        plan = route(self.ids, self.shape.experts)
        return moe(self.x, plan, self.weights, self.experts(stored), lora, backend=backend)

    def backward(self, out: Tensor) -> None:
        """To the input, the routing weights and whatever is trained."""
        self.x.grad = self.weights.grad = None
        out.backward(self.grad)

    def collected(self, stored: str = "dense", *, backend: str = "triton") -> Collector:
        """Forward and backward with a collector; units are rows of a batch."""
        units = torch.arange(UNITS, device=self.device)
        collector = Collector(units, UNITS, self.shape.tokens // UNITS)
        plan = route(self.ids, self.shape.experts, collector.unit_of_token, UNITS)
        lora = LoRA(self.factors, SCALING)
        self.backward(moe(self.x, plan, self.weights, self.experts(stored), lora, backend=backend, collector=collector))
        return collector

    def clipped(self, stored: str = "dense") -> dict[nn.Parameter, Tensor]:
        """Norms by unit, and the sum under clipping factors."""
        collector = self.collected(stored)
        norms = collector.square_norms().sqrt_()
        return collector.weighted_sum((norms.median() / norms).clamp_(max=1))

    def errors(self, stored: str) -> dict[str, float]:
        """Relative errors of output, every gradient, norms by unit and the clipped sum, against float64."""
        exact = self._in_float64(stored)
        found = {"output": (self.ours(stored, self.factors), exact.ours("exact", exact.factors, backend="reference"))}
        for bank, (out, _) in ((self, found["output"]), (exact, (found["output"][1], None))):
            for factor in bank.factors:
                factor.grad = None
            bank.backward(out)
        found |= {"x": (self.x.grad, exact.x.grad), "routing weights": (self.weights.grad, exact.weights.grad)}
        for name, mine, theirs in zip(("A1", "B1", "A2", "B2"), self.factors, exact.factors, strict=True):
            found[name] = mine.grad, theirs.grad
        collectors = self.collected(stored), exact.collected("exact", backend="reference")
        norms = [collector.square_norms().sqrt() for collector in collectors]
        found["norms"] = norms[0], norms[1]
        factors = (norms[1].median() / norms[1]).clamp(max=1)
        sums = [collector.weighted_sum(factors) for collector in collectors]
        found["clipped sum"] = tuple(
            torch.cat([total[factor].flatten() for factor in bank.factors])
            for bank, total in zip((self, exact), sums, strict=True)
        )
        return {name: _relative(got, want) for name, (got, want) in found.items()}

    def _in_float64(self, stored: str) -> "Bank":
        """The same numbers, the experts being what their codes stand for."""
        exact = Bank.__new__(Bank)
        exact.shape, exact.device = self.shape, self.device
        packed = self.experts(stored)
        exact._packed = {"exact": Experts(Dense(packed.gate_up.dense().double()), Dense(packed.down.dense().double()))}
        exact.x, exact.weights = (t.detach().double().requires_grad_() for t in (self.x, self.weights))
        exact.grad, exact.ids = self.grad.double(), self.ids
        exact.factors = Factors(*(nn.Parameter(factor.detach().double()) for factor in self.factors))
        return exact

    def liger(self) -> Callable[[], Tensor]:
        """Liger's forward pass, whose index is of 32 bits."""
        from liger_kernel.ops.fused_moe import LigerFusedMoEFunction

        ids, weights = self.ids.int(), self.weights
        return lambda: LigerFusedMoEFunction.apply(self.x, self.gate_up, self.down, ids, weights.to(self.x.dtype))

    def grouped_products(self) -> dict[str, Call]:
        """Both projections by torch's grouped product, forward, and those of a backward pass to the input.

        Empty before torch 2.10, which named it.
        """
        if not hasattr(torch.nn.functional, "grouped_mm"):
            return {}
        plan = route(self.ids, self.shape.experts)
        counts = torch.zeros(self.shape.experts, dtype=torch.int32)
        for expert, part in plan.slices:
            counts[expert] = part.stop - part.start
        ends = counts.cumsum(0).int().to(self.device)
        D, H = self.shape.model, self.shape.hidden
        x, gu, h, y = (self.x.new_empty(plan.num_pairs, width).normal_() for width in (D, 2 * H, H, D))

        def products(*sides: tuple[Tensor, Tensor]) -> None:
            for left, right in sides:
                torch.nn.functional.grouped_mm(left, right, offs=ends)

        there = (x, self.gate_up.mT), (h, self.down.mT)
        back = (y, self.down), (gu, self.gate_up)
        return {
            "forward": no_grad(lambda: products(*there)),
            "forward + backward": no_grad(lambda: products(*there, *back)),
        }

    def methods(self) -> dict[str, dict[str, Call]]:
        """By column and name, the limit first."""
        eager, grouped = (stock_experts(self.gate_up, self.down, which) for which in ("eager", "grouped_mm"))
        adapted = peft_experts(self.gate_up, self.down, self.shape.rank, SCALING)
        limits = bare_products(route(self.ids, self.shape.experts), self.gate_up, self.down, self.factors)
        plain: dict[str, Callable[[], Tensor]] = {
            "ours": lambda: self.ours(),
            **{name: lambda n=name: self.ours(n) for name in PACKS if name != "dense"},
            "cpu backend": lambda: self.ours(backend="cpu"),
            "eager": lambda: eager(self.x, self.ids, self.weights),
            "grouped_mm": lambda: grouped(self.x, self.ids, self.weights),
        }
        if has_liger():
            plain["liger"] = self.liger()
        lora: dict[str, Callable[[], Tensor]] = {
            "ours": lambda: self.ours("dense", self.factors),
            "ours, A frozen": lambda: self.ours("dense", self.frozen_A),
            "nf4": lambda: self.ours("nf4", self.factors),
            "cpu backend": lambda: self.ours("dense", self.factors, backend="cpu"),
            "peft": lambda: adapted(self.x, self.ids, self.weights),
        }
        private: dict[str, Call] = {
            "norms": lambda: self.collected().square_norms(),
            "clipped": lambda: self.clipped(),
            "nf4, clipped": lambda: self.clipped("nf4"),
        }
        products = self.grouped_products()
        sections: dict[str, dict[str, Call]] = {
            "forward": {name: no_grad(f) for name, f in plain.items()},
            "forward + backward": {name: lambda f=f: self.backward(f()) for name, f in plain.items()},
            "LoRA forward": {name: no_grad(f) for name, f in lora.items()},
            "LoRA forward + backward": {name: lambda f=f: self.backward(f()) for name, f in lora.items()} | private,
        }
        for column, call in products.items():
            sections[column]["grouped products"] = call
        return {column: {"limit": limits[column]} | calls for column, calls in sections.items()}


def has_liger() -> bool:
    return find_spec("liger_kernel") is not None


def exactness(
    shape: Shape, device: torch.device, dtypes: tuple[torch.dtype, ...], formats: tuple[str, ...]
) -> list[dict[str, object]]:
    """A row a dtype and format: the errors, and whether they are within the bound."""
    rows: list[dict[str, object]] = []
    for dtype in dtypes:
        bank = Bank(shape, device, dtype)
        for stored in formats:
            errors = bank.errors(stored)
            bank.forget(stored)
            is_right = all(error <= BOUNDS[dtype] for error in errors.values())  # nan is not
            rows.append({"dtype": str(dtype).removeprefix("torch."), "experts": stored, "ok": is_right, **errors})
    return rows


def speed(
    shape: Shape, device: torch.device, dtype: torch.dtype, *, seconds: float
) -> dict[str, dict[str, dict[str, float | None]]]:
    """Milliseconds by column and method, and MiB that a training step with LoRA adds."""
    bank = Bank(shape, device, dtype)
    methods = bank.methods()
    taken = {column: medians_on(device, calls, seconds=seconds) for column, calls in methods.items()}
    step = "LoRA forward + backward"
    fitting = [name for name, ms in taken[step].items() if ms is not None]
    added: dict[str, float | None] = {name: added_mib(device, methods[step][name]) for name in fitting}
    return {"ms": taken, "added MiB": {step: added}}


def _relative(got: Tensor | None, want: Tensor | None) -> float:
    assert got is not None
    assert want is not None
    return float((got.detach().double() - want.detach()).norm() / want.detach().norm())
