"""Measures a private step on SmolLM2-135M as the Llama that it is, beside PEFT, and text by it and by its conversion.

    python benchmarks/llama.py [--quick] [--json] [--rows N] [--length T]

plain     our adapters, backward, SGD
clipped   the same with gradients by record, clipping, float64 sum, SGD
private   clipped, ring rounding and discrete noise
peft      PEFT's adapters, plain

LoRA on all seven projections of every layer, B trained, rank 8, the same records and loss for all. Peak memory is that
of a fresh process that loads the model and makes two steps (VmHWM), and its rise in these over the loaded model.

Text is greedy with a key-value cache: 8 tokens after a prompt of 32, whose time is in it. Rows are the Llama without
adapters and with PEFT's on attention; ours on attention; and the import of SmolLM2 (a DeepSeek-V3 Mixture-of-Experts)
without adapters, with them in the last two layers as in the study `diagnoses`, and in all. Methods alternate; times are
medians of processor time in one thread. Needs the packages of requirements-smollm.txt and gguf.
"""

import argparse
import json
import os
import tempfile
import warnings
from functools import cache
from pathlib import Path

import torch
from measuring import in_child, medians, restart_peak, status_mib
from models import (
    LENGTH,
    MLA,
    PROMPT,
    RANK,
    Call,
    clipped_step,
    generation,
    plain_step,
    random_ids,
    row_losses,
    with_peft,
)
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from confide.kernels.install import install
from confide.models.adapters import AdaptedModel, AdapterConfig, attach
from confide.models.backbones.checkpoints import load_model
from confide.models.backbones.smollm2 import import_smollm2, read_source, source_file
from confide.privacy.mechanism.clipping import PerUnitClipper
from confide.privacy.mechanism.opacus_optimizer import LoRADPOptimizer, RingNoise

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
EVERYWHERE = (*ATTENTION, "gate_proj", "up_proj", "down_proj")
ENGINES = ("plain", "clipped", "private", "peft")
SCALE_BITS = 24


@cache
def _source() -> tuple[object, dict[str, Tensor]]:
    config, state, _ = read_source(source_file())
    return config, state


def llama() -> LlamaForCausalLM:
    config, state = _source()
    model = LlamaForCausalLM(config).eval()
    model.load_state_dict(state, strict=False)  # the output matrix is the embedding
    return model


def warmed(model: nn.Module) -> nn.Module:
    """Adapters away from their start, where products by them are zeros."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.01, generator=generator)
    return model


def adapted(model: nn.Module, targets: tuple[str, ...], layers: tuple[int, ...] | None = None) -> AdaptedModel:
    config = AdapterConfig(rank=RANK, alpha=2.0 * RANK, targets=targets, seed="bench", layers=layers)
    return warmed(attach(model, config))


def step_of(engine: str, ids: Tensor) -> Call:
    """A step on a model of its own."""
    if engine == "peft":
        return plain_step(warmed(with_peft(llama(), EVERYWHERE)), ids)
    ours = adapted(llama(), EVERYWHERE)
    if engine == "plain":
        return plain_step(ours.model, ids)
    if engine == "clipped":
        return clipped_step(ours, ids)
    clipper, sgd = PerUnitClipper(ours), torch.optim.SGD(list(ours.trained.values()), lr=1e-3)
    noise = RingNoise(sigma=2**SCALE_BITS, scale_bits=SCALE_BITS)
    optimizer = LoRADPOptimizer(sgd, clipper, clip_norm=1.0, noise=noise, expected_batch_size=len(ids))

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with clipper.microbatch(range(len(ids)), ids.shape[1]):
            row_losses(ours.model, ids).sum().backward()
        optimizer.step()

    return step


def peak(engine: str, rows: int, length: int) -> dict[str, float]:
    """MiB of a process of its own."""
    return in_child(__file__, engine, rows, length)


def _measure_own_peak(engine: str, rows: int, length: int) -> None:
    step = step_of(engine, random_ids(rows, length))
    _source.cache_clear()
    restart_peak()
    before = status_mib("VmRSS")
    step()
    step()
    print(json.dumps({"peak_mib": status_mib("VmHWM"), "step_mib": status_mib("VmHWM") - before}))


def steps(rows: int, length: int, seconds: float) -> dict[str, dict[str, float]]:
    ids = random_ids(rows, length)
    taken = medians({engine: step_of(engine, ids) for engine in ENGINES}, seconds=seconds)
    return {engine: {"cpu_ms": ms} | peak(engine, rows, length) for engine, ms in taken.items()}


def texts(seconds: float) -> dict[str, float]:
    """Milliseconds of a text."""
    prompt = random_ids(1, PROMPT)
    with tempfile.TemporaryDirectory() as folder:
        import_smollm2(Path(folder) / "smollm2")
        first, second, third = (load_model(Path(folder) / "smollm2") for _ in range(3))
    first.set_experts_implementation(install())
    models = {
        "Llama, no adapter": llama(),
        "Llama, PEFT": warmed(with_peft(llama(), ATTENTION)),
        "Llama, ours": adapted(llama(), ATTENTION).model,
        "import, no adapter": first,
        "import, ours in two layers": adapted(second, MLA, (28, 29)).model,
        "import, ours": adapted(third, MLA).model,
    }
    return medians({name: generation(model, prompt) for name, model in models.items()}, seconds=seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="three rounds of each")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--length", type=int, default=LENGTH)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args()
    warnings.filterwarnings("ignore")  # PEFT's hints
    torch.set_num_threads(1)
    if given.child:
        return _measure_own_peak(*json.loads(given.child))
    seconds = 1 if given.quick else 60
    by_engine, by_text = steps(given.rows, given.length, seconds), texts(seconds)
    if given.json:
        return print(json.dumps({"steps": by_engine, "texts_ms": by_text, "load": os.getloadavg()[0]}))
    print(f"| {given.rows} rows of {given.length} tokens | ms | over PEFT | peak MiB | over PEFT | rise MiB |")
    print("|---|---|---|---|---|---|")
    base = by_engine["peft"]
    for engine, of in by_engine.items():
        time, memory = (of[name] / base[name] for name in ("cpu_ms", "peak_mib"))
        cells = f"{of['cpu_ms']:.0f} | {time:.2f} | {of['peak_mib']:.0f} | {memory:.2f} | {of['step_mib']:.0f}"
        print(f"| {engine} | {cells} |")
    print("\n| text | ms | speed over Llama without adapter | over Llama with PEFT |\n|---|---|---|---|")
    for name, ms in by_text.items():
        bare, theirs = (by_text[f"Llama, {other}"] / ms for other in ("no adapter", "PEFT"))
        print(f"| {name} | {ms:.0f} | {bare:.2f} | {theirs:.2f} |")
    return print(f"\nload {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
