"""Measures time and memory of a private step, beside the same step without privacy and beside Opacus.

    python benchmarks/privacy.py [--quick] [--json] [--invariance] [--shapes]

One step is forward, backward and the optimizer's move over a batch in which every row is a unit of its own. Rows of one
table differ only in privacy: they have the same backbone, adapters, loss and records.

    plain     backward, SGD
    clipped   per-unit gradients, clipping, float64 sum, ring rounding, SGD; no noise
    private   the same with noise
    peft      PEFT's adapters, plain
    hooks     Opacus GradSampleModule over PEFT's adapters, with its float noise
    ghost     Opacus GradSampleModuleFastGradientClipping over the same

Times are medians of processor time over rounds in which the steps alternate, so that ratios hold on a busy machine.
With two threads they include the waiting of the idle one. Memory is the peak resident set (VmHWM) of a fresh process
for each row, and its rise in a step over the process with its model loaded.
"""

import argparse
import json
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from measuring import in_child, restart_peak, status_mib
from torch import Tensor
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

from confide.models.adapters import AdaptedModel, AdapterConfig, attach
from confide.models.heads import PooledHead, pooled
from confide.privacy.mechanism.batches import ONE_BY_ONE, BatchShapes, probed_shapes
from confide.privacy.mechanism.clipping import PerUnitClipper
from confide.privacy.mechanism.independence import unit_gradient
from confide.privacy.mechanism.opacus_optimizer import LoRADPOptimizer, RingNoise
from confide.privacy.mechanism.site_round import ReleaseTerms, private_release

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "models"))
from tiny import put_exact_norms

ATTENTION = ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj")
EVERYWHERE = (*ATTENTION, "gate_proj", "up_proj", "down_proj", "experts", "gate")
# Opacus' ghost clipping fails on the four axes that kv_b_proj sees, so rows beside Opacus leave it out.
OPACUS_TARGETS = ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "o_proj")
OURS, OPACUS = ("plain", "clipped", "private"), ("plain", "clipped", "private", "peft", "hooks", "ghost")
C, SCALE_BITS, VOCABULARY = 1.0, 24, 512
TERMS = ReleaseTerms(
    mode="local", clip_norm=C, sample_rate=1.0, site_noise_int=2**20, scale_bits=SCALE_BITS, max_rows_per_batch=256,
    max_records_per_unit=1,
)  # fmt: skip

Step = Callable[[Tensor], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One table row's setting."""

    hidden: int = 256
    layers: int = 3
    experts: int = 8
    length: int = 64  # tokens a row
    batch: int = 16  # rows, one a unit
    threads: int = 1
    rank: int = 8
    freeze_a: bool = True
    targets: tuple[str, ...] = EVERYWHERE


SMALL, LARGE = Case(), Case(hidden=512, layers=6, experts=16)
CASES = [
    *(
        replace(size, batch=batch, threads=threads)
        for size in (SMALL, LARGE)
        for threads in (1, 2)
        for batch in (16, 32, 64)
    ),
    replace(SMALL, freeze_a=False),
    replace(LARGE, freeze_a=False),
]
QUICK = [SMALL, replace(SMALL, batch=64), replace(SMALL, freeze_a=False)]
BESIDE_OPACUS = replace(SMALL, freeze_a=False, targets=OPACUS_TARGETS)


def backbone(case: Case, dtype: torch.dtype = torch.float32) -> DeepseekV3ForCausalLM:
    """A DeepSeek-V3 of random weights, the first layer dense; the same for equal cases."""
    config = DeepseekV3Config(
        vocab_size=VOCABULARY,
        hidden_size=case.hidden,
        intermediate_size=2 * case.hidden,
        moe_intermediate_size=case.hidden // 2,
        num_hidden_layers=case.layers,
        num_attention_heads=8,
        num_key_value_heads=8,
        n_shared_experts=1,
        n_routed_experts=case.experts,
        num_experts_per_tok=2,
        n_group=1,
        topk_group=1,
        first_k_dense_replace=1,
        q_lora_rank=case.hidden // 2,
        kv_lora_rank=case.hidden // 4,
        qk_rope_head_dim=16,
        qk_nope_head_dim=16,
        v_head_dim=32,
        max_position_embeddings=256,
        use_cache=False,
        pad_token_id=0,
    )
    config._experts_implementation = "eager"  # PEFT's rows; ours replace it
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = DeepseekV3ForCausalLM(config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(std=parameter.shape[-1] ** -0.5)
    if dtype == torch.float64:
        put_exact_norms(model)
    return model.to(dtype).eval()


def adapted_backbone(case: Case, dtype: torch.dtype = torch.float32) -> AdaptedModel:
    """Adapters on the case's targets and a trained head, all away from their start, where half of gradients vanish."""
    config = AdapterConfig(rank=case.rank, alpha=case.rank, targets=case.targets, seed="bench", freeze_a=case.freeze_a)
    width = 2 * case.hidden
    head = PooledHead(torch.zeros(width, dtype=dtype), torch.eye(width, dtype=dtype))
    adapted = attach(backbone(case, dtype), config, head)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in adapted.trained.items():
            if not name.endswith("lora_A"):
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator, dtype=dtype))
    return adapted


def records(case: Case, rows: int | None = None) -> Tensor:
    """[rows, length] token ids without padding."""
    generator = torch.Generator().manual_seed(2)
    return torch.randint(1, VOCABULARY, (rows or case.batch, case.length), generator=generator)


def row_losses(logits: Tensor) -> Tensor:
    """[R] cross-entropy against the labels 0, 1, 0, 1, ..."""
    target = (torch.arange(len(logits)) % 2).to(logits)
    return F.binary_cross_entropy_with_logits(logits, target, reduction="none")


def step_of(engine: str, case: Case) -> Step:
    """A training step on its own copy of the model."""
    return _our_step(engine, case) if engine in OURS else _opacus_step(engine, case)


def _our_step(engine: str, case: Case) -> Step:
    adapted = adapted_backbone(case)
    sgd = torch.optim.SGD(list(adapted.trained.values()), lr=1e-3)
    if engine == "plain":

        def plain(ids: Tensor) -> None:
            sgd.zero_grad()
            row_losses(adapted.classify(ids)).sum().backward()
            sgd.step()

        return plain
    clipper = PerUnitClipper(adapted)
    noise = RingNoise(sigma=2**SCALE_BITS if engine == "private" else 0, scale_bits=SCALE_BITS)
    optimizer = LoRADPOptimizer(sgd, clipper, clip_norm=C, noise=noise, expected_batch_size=case.batch)

    def private(ids: Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        with clipper.microbatch(range(len(ids)), ids.shape[1]):
            row_losses(adapted.classify(ids)).sum().backward()
        optimizer.step()

    return private


def _opacus_step(engine: str, case: Case) -> Step:
    import peft
    from opacus import GradSampleModule
    from opacus.grad_sample import GradSampleModuleFastGradientClipping
    from opacus.optimizers import DPOptimizer, DPOptimizerFastGradientClipping

    config = peft.LoraConfig(r=case.rank, lora_alpha=case.rank, target_modules=list(case.targets))
    model = peft.get_peft_model(backbone(case), config)
    base = model.base_model.model
    head = PooledHead(torch.zeros(2 * case.hidden), torch.eye(2 * case.hidden))
    torch.nn.init.normal_(head.weight.requires_grad_(False), std=0.1)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    sgd = torch.optim.SGD(trained, lr=1e-3)
    terms = {"noise_multiplier": 1.0, "max_grad_norm": C, "expected_batch_size": case.batch}

    def losses(ids: Tensor) -> Tensor:
        return row_losses(head(pooled(base, ids)))

    if engine == "peft":

        def plain(ids: Tensor) -> None:
            sgd.zero_grad()
            losses(ids).sum().backward()
            sgd.step()

        return plain
    if engine == "hooks":
        model.train()
        GradSampleModule(model, loss_reduction="sum")
        optimizer = DPOptimizer(sgd, **terms)

        def hooks(ids: Tensor) -> None:
            optimizer.zero_grad(set_to_none=True)
            losses(ids).sum().backward()
            optimizer.step()

        return hooks
    model.train()
    wrapped = GradSampleModuleFastGradientClipping(
        model, loss_reduction="sum", use_ghost_clipping=True, max_grad_norm=C
    )  # fmt: skip
    ghost_optimizer = DPOptimizerFastGradientClipping(sgd, **terms)

    def ghost(ids: Tensor) -> None:
        ghost_optimizer.zero_grad(set_to_none=True)
        wrapped.enable_hooks()  # before forward, whose hooks keep the activations
        by_row = losses(ids)
        by_row.sum().backward(retain_graph=True)
        factors = wrapped.get_clipping_coef()
        ghost_optimizer.zero_grad(set_to_none=True)
        wrapped.disable_hooks()
        (factors * by_row).sum().backward()
        ghost_optimizer.step()

    return ghost


def times(engines: tuple[str, ...], case: Case, *, seconds: float) -> dict[str, dict[str, float]]:
    """Median processor and wall milliseconds of a step, by engine; the steps alternate, three times or more."""
    torch.set_num_threads(case.threads)
    ids = records(case)
    steps = {engine: step_of(engine, case) for engine in engines}
    for step in steps.values():
        step(ids[:2])
    cpu: dict[str, list[float]] = {engine: [] for engine in engines}
    wall: dict[str, list[float]] = {engine: [] for engine in engines}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(cpu[engines[0]]) < 3:
        for engine, step in steps.items():
            cpu_start, wall_start = time.process_time(), time.perf_counter()
            step(ids)
            cpu[engine].append(1e3 * (time.process_time() - cpu_start))
            wall[engine].append(1e3 * (time.perf_counter() - wall_start))
    return {
        engine: {"cpu_ms": statistics.median(cpu[engine]), "wall_ms": statistics.median(wall[engine])}
        for engine in engines
    }


def peak_memory(engine: str, case: Case) -> dict[str, float]:
    """Peak MiB of two steps in a process of its own, and how much of it the steps added to the loaded model."""
    return in_child(__file__, engine, asdict(case), threads=case.threads)


def _measure_own_peak(engine: str, case: Case) -> None:
    torch.set_num_threads(case.threads)
    step, ids = step_of(engine, case), records(case)
    step(ids[:1])
    restart_peak()
    base = status_mib("VmRSS")
    step(ids)
    step(ids)
    print(json.dumps({"peak_mib": status_mib("VmHWM"), "step_mib": status_mib("VmHWM") - base}))


def invariance(dtype: torch.dtype, *, trials: int = 20, batch: int = 16, freeze_a: bool = False) -> dict[str, float]:
    """Measures the change of a unit's gradient when other units leave the batch, relative to the gradient's norm.

    This is what a site's step avoids by batches of its own shapes (`privacy.mechanism.batches`). In exact arithmetic it
    would be zero. A trial takes fresh records, the first shorter than the rest, and
    compares its gradient in the full batch with that in a random half of it, alone, and alone without the padding that
    the longer ones made necessary.

    Returns:
        median and max over the trials.
    """
    case = replace(SMALL, batch=batch, freeze_a=freeze_a)
    adapted, generator, moved = adapted_backbone(case, dtype), torch.Generator().manual_seed(3), []

    def gradient(ids: Tensor) -> Tensor:
        parts = unit_gradient(adapted, lambda ids: row_losses(adapted.classify(ids)), ids)
        return torch.cat([part.flatten() for part in parts.values()])

    for trial in range(trials):
        ids = torch.randint(1, VOCABULARY, (batch, case.length), generator=generator)
        own = case.length - trial % (case.length // 2)
        ids[0, own:] = 0
        whole, half = gradient(ids), torch.randperm(batch - 1, generator=generator)[: batch // 2].sort().values + 1
        for fewer in (ids[[0, *half.tolist()]], ids[:1], ids[:1, :own]):
            part = gradient(fewer)
            moved.append(float((whole - part).norm() / part.norm()))
    return {"median": statistics.median(moved), "max": max(moved)}


def shapes_cost(units: int) -> dict[str, float]:
    """Measures a site's step on records of 32 to 63 tokens: median processor milliseconds by the shapes of its batches.

    "all at once" is what no site does: one batch, whose shape is everybody's affair.
    """
    adapted, terms = adapted_backbone(SMALL), replace(TERMS, max_rows_per_batch=max(256, units))
    torch.set_num_threads(1)
    ids, generator = records(SMALL, units).numpy(), np.random.default_rng(0)
    ids[np.arange(SMALL.length) >= generator.integers(32, SMALL.length, units)[:, None]] = 0
    labels = np.arange(units) % 2
    shapes = {
        "all at once": BatchShapes({SMALL.length: (units,)}),
        "probed": probed_shapes(adapted, max_tokens=SMALL.length - 1, max_rows=256, max_records=1),
        "one by one": ONE_BY_ONE,
    }
    found: dict[str, list[float]] = {name: [] for name in shapes}
    for name in [*shapes] * 3:
        start = time.process_time()
        private_release(adapted, ids, labels, np.arange(units), terms=terms, shapes=shapes[name])
        found[name].append(1e3 * (time.process_time() - start))
    return {name: statistics.median(times) for name, times in found.items()}


def measure(engines: tuple[str, ...], case: Case, *, seconds: float) -> dict:
    """One line of the table: milliseconds and MiB by engine, and the trained numbers."""
    by_engine = times(engines, case, seconds=seconds)
    if case.threads == 1:  # tensors are the same with two
        with ThreadPoolExecutor(2) as pool:
            for engine, peak in zip(engines, pool.map(lambda engine: peak_memory(engine, case), engines), strict=True):
                by_engine[engine] |= peak
    return {"case": asdict(case), "dim": adapted_backbone(case).layout.dim, "engines": by_engine}


def show(line: dict) -> None:
    """Ratios to the faster of the steps without privacy, ours and PEFT's."""
    case, engines = line["case"], line["engines"]
    print(
        f"hidden {case['hidden']}, {case['layers']} layers, {case['experts']} experts, batch {case['batch']}, "
        f"{'B' if case['freeze_a'] else 'A and B'} of {len(case['targets'])} targets ({line['dim']:,} numbers), "
        f"{case['threads']} thread{'s' if case['threads'] > 1 else ''}"
    )
    base = min((engines[name] for name in ("plain", "peft") if name in engines), key=lambda got: got["cpu_ms"])
    for engine, got in engines.items():
        memory = ""
        if "peak_mib" in got:
            memory = (
                f"  peak {got['peak_mib']:5.0f} MiB x{got['peak_mib'] / base['peak_mib']:.3f}"
                f"  (step alone {got['step_mib']:4.0f} x{got['step_mib'] / base['step_mib']:.3f})"
            )
        print(f"    {engine:8} {got['cpu_ms']:7.0f} ms x{got['cpu_ms'] / base['cpu_ms']:.3f}{memory}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="three cases of the small model, nothing of Opacus")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--invariance", action="store_true", help="measure how batches move gradients, nothing else")
    parser.add_argument("--shapes", action="store_true", help="measure what batches of a unit's own shape cost")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    warnings.filterwarnings("ignore")  # PEFT's and Opacus' hints
    if asked.child:
        engine, case = json.loads(asked.child)
        return _measure_own_peak(engine, Case(**case | {"targets": tuple(case["targets"])}))
    if asked.invariance:
        moves = {str(dtype): invariance(dtype) for dtype in (torch.float32, torch.float64)}
        return print(json.dumps(moves) if asked.json else _moves_text(moves))
    if asked.shapes:
        costs = {units: shapes_cost(units) for units in (50, 250)}
        return print(
            json.dumps(costs) if asked.json else "\n".join(f"{units} units: {ms}" for units, ms in costs.items())
        )
    lines = []
    plans = [(OURS, case) for case in (QUICK if asked.quick else CASES)]
    for engines, case in plans if asked.quick else [*plans, (OPACUS, BESIDE_OPACUS)]:
        lines.append(measure(engines, case, seconds=4 if asked.quick else 6))
        if not asked.json:
            show(lines[-1])
    if asked.json:
        print(json.dumps({"lines": lines, "load": os.getloadavg()[0]}))
    return None


def _moves_text(moves: dict[str, dict[str, float]]) -> str:
    return "\n".join(
        f"{dtype}: median {move['median']:.1e}, largest {move['max']:.1e}" for dtype, move in moves.items()
    )


if __name__ == "__main__":
    main()
