"""Measures checkpoint loading in each format, sparse beside dense models, and LoRA beside transformers and PEFT.

    python benchmarks/models.py [--quick] [--json] [--part load|sparse|peft|smollm2]

load    A checkpoint of random weights in the shape of DeepSeek-V3 is written to a temporary folder in shards, then
        loaded by `load_model`, hash check included, in every format in turn. Each time a fresh process loads it, after
        a small one; another process measures memory. That is the rise of private memory (RssAnon), without mapped
        files.
sparse  A sparse model beside a dense one of the same parameters, layers and attention, whose MLPs are as wide as all
        experts of a layer together. FLOPs per token of a forward pass: 2 for each number of each matrix that a token
        meets (attention, router, shared and chosen experts, output), and 2 * row length * heads * (key + value width)
        in each layer for attention itself. The step has LoRA on attention and routed experts, or MLPs, clipped by
        record.
peft    A sparse model of five such layers, loaded from a checkpoint: LoRA on attention and routed experts, only B
        trained, ours with clipping by record and PEFT without clipping. Then greedy text with a key-value cache, 8
        tokens after a prompt of 32, the prompt's time included; a merged adapter takes the time without adapter.
smollm2 SmolLM2 as `coordinator backbone import smollm2-moe` rewrites it, with LoRA on attention, clipped by record,
        its routed experts in each format. Beside it is its dense Llama in transformers and PEFT, not clipped: training,
        greedy text as above, and perplexity of the start of the licence that comes with it, adapters at their start.
        Needs the packages of requirements-smollm.txt and gguf.

Methods alternate; times are medians of processor time in one thread.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import peft
import torch
import torch.nn.functional as F
from measuring import Peak, allocated_mib, medians
from torch import Tensor
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM, LlamaForCausalLM, PreTrainedModel

from confide.kernels.formats import Int8Row, NF4Block64
from confide.kernels.install import install
from confide.models.adapters import AdaptedModel, AdapterConfig, attach
from confide.models.backbones.checkpoints import content_hash, load_model, load_tokenizer, quietly, size
from confide.models.backbones.smollm2 import import_smollm2_moe, read_source, source_file
from confide.models.evaluation.metrics import perplexity
from confide.privacy.mechanism.clipping import PerUnitClipper

Call = Callable[[], object]

ATTENTION = ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj")
FORMATS: dict[str, dict[str, object]] = {
    "float32": {},
    "bfloat16": {"dtype": torch.bfloat16},
    "int8 experts": {"pack": Int8Row.quantised},
    "nf4 experts": {"pack": NF4Block64.quantised},
}
RANK, ROWS, LENGTH, PROMPT, NEW = 8, 4, 128, 32, 8
MOST_FLOPS, LEAST_SPEED = 0.18, 2.3  # of a dense model of the same parameters
PEFT = "transformers and PEFT, not clipped"
MLA = ("q_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj")  # attention of the import


def shape(layers: int, *, dense: bool = False) -> DeepseekV3Config:
    """One dense layer and then MoE layers of 64 experts, 4 and a shared one a token; or all dense, as many numbers."""
    model, hidden, experts, shared = 512, 256, 64, 1
    bank = (experts + shared) * hidden + experts // 3  # as wide; the router's numbers too
    config = DeepseekV3Config(
        vocab_size=4096,
        hidden_size=model,
        intermediate_size=(bank * (layers - 1) + 3 * model) // layers if dense else 3 * model,
        moe_intermediate_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=8,
        n_shared_experts=shared,
        n_routed_experts=experts,
        num_experts_per_tok=4,
        n_group=1,
        topk_group=1,
        first_k_dense_replace=layers if dense else 1,
        q_lora_rank=192,
        kv_lora_rank=128,
        qk_rope_head_dim=32,
        qk_nope_head_dim=64,
        v_head_dim=64,
        max_position_embeddings=512,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=None,
    )
    config._experts_implementation = "grouped_mm"
    return config


def parameters(config: DeepseekV3Config) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in DeepseekV3ForCausalLM(config).parameters())


def flops_per_token(config: DeepseekV3Config, length: int) -> int:
    """Of a forward pass over rows of that length, by the formula above."""
    with torch.device("meta"):
        model = DeepseekV3ForCausalLM(config)
    met = 0.0
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 and "embed_tokens" not in name:
            is_routed = ".mlp.experts." in name
            met += parameter.numel() * (config.num_experts_per_tok / config.n_routed_experts if is_routed else 1)
    width = config.qk_nope_head_dim + config.qk_rope_head_dim + config.v_head_dim
    return round(2 * met + 2 * length * config.num_attention_heads * width * config.num_hidden_layers)


def write(config: DeepseekV3Config, directory: Path) -> DeepseekV3ForCausalLM:
    torch.manual_seed(0)
    model = DeepseekV3ForCausalLM(config).eval()
    with quietly():
        model.save_pretrained(directory, max_shard_size="200MB")
    return model


def loading(layers: int, rounds: int) -> dict[str, object]:
    """Seconds and MiB of each format, each from a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        large, small = Path(folder) / "large", Path(folder) / "small"
        write(shape(layers), large)
        write(shape(2), small)
        found = size(large)

        def child(what: str, **variables: str) -> dict[str, object]:
            command = [sys.executable, __file__, "--child", json.dumps([what, str(large), str(small), rounds])]
            done = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, check=True)
            return json.loads(done.stdout)

        # Freed blocks go back to the system at once, so that the peak is that of live tensors; that takes time.
        peaks = child("memory", MALLOC_MMAP_THRESHOLD_="65536", MALLOC_TRIM_THRESHOLD_="65536")
        times = child("time")
        formats = {name: {"peak_mib": peaks[name]} | times["formats"][name] for name in FORMATS}
    weights = {"parameters": found.parameters, "file_mib": found.weight_bytes / 2**20}
    return weights | {"hashing_cpu_s": times["hashing_cpu_s"], "formats": formats}


def _child(what: str, large: str, small: str, rounds: int) -> None:
    for options in FORMATS.values():
        load_model(Path(small), **options)
    start = time.process_time()
    expected = content_hash(Path(large))
    hashing = time.process_time() - start
    if what == "memory":
        print(json.dumps(_peaks(Path(large), expected)))
    else:
        print(json.dumps({"hashing_cpu_s": hashing, "formats": _times(Path(large), expected, rounds)}))


def _peaks(directory: Path, expected: str) -> dict[str, float]:
    found = {}
    for name, options in FORMATS.items():
        before = allocated_mib()
        with Peak() as peak:
            load_model(directory, expected_hash=expected, **options)
        found[name] = peak.mib - before
    return found


def _times(directory: Path, expected: str, rounds: int) -> dict[str, dict[str, float]]:
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in FORMATS}
    for _ in range(rounds):
        for name, options in FORMATS.items():
            cpu, wall = time.process_time(), time.perf_counter()
            load_model(directory, expected_hash=expected, **options)
            taken[name].append((time.process_time() - cpu, time.perf_counter() - wall))
    middle = {name: tuple(map(statistics.median, zip(*pairs, strict=True))) for name, pairs in taken.items()}
    return {name: {"cpu_s": cpu, "wall_s": wall} for name, (cpu, wall) in middle.items()}


def adapted(model: object, *targets: str) -> AdaptedModel:
    return attach(model, AdapterConfig(rank=RANK, alpha=2.0 * RANK, targets=targets, seed="bench"))


def row_losses(model: Callable[[Tensor], object], ids: Tensor) -> Tensor:
    """[R], mean cross-entropy of the next token."""
    logits = model(ids).logits[:, :-1]
    return F.cross_entropy(logits.mT, ids[:, 1:], reduction="none").mean(1)


def clipped_step(ours: AdaptedModel, ids: Tensor, losses: Callable[[], Tensor] | None = None) -> Call:
    """Forward, backward, norms by record, clipped sum, SGD; of `losses` by record in place of `row_losses`."""
    clipper, sgd = PerUnitClipper(ours), torch.optim.SGD(list(ours.trained.values()), lr=1e-3)
    losses = losses or (lambda: row_losses(ours.model, ids))

    def step() -> None:
        clipper.start_step()
        with clipper.microbatch(range(len(ids)), ids.shape[1]):
            losses().sum().backward()
        total, _ = clipper.clipped_sum(1.0)
        for name, parameter in ours.trained.items():
            parameter.grad = total[name].to(parameter)
        sgd.step()
        sgd.zero_grad()

    return step


def forward(model: Callable[[Tensor], object], ids: Tensor) -> Call:
    return torch.no_grad()(lambda: model(ids))


def tokens_per_second(calls: dict[str, Call], tokens: int, seconds: float) -> dict[str, float]:
    return {name: 1000 * tokens / ms for name, ms in medians(calls, seconds=seconds).items()}


def sparse(layers: int, rows: int, seconds: float) -> dict[str, object]:
    """Parameters, FLOPs and tokens per second of a sparse model and its dense equal."""
    kinds = {"sparse": shape(layers), "dense": shape(layers, dense=True)}
    ids = random_ids(rows)
    torch.manual_seed(0)
    models = {name: DeepseekV3ForCausalLM(config).eval() for name, config in kinds.items()}
    stock = DeepseekV3ForCausalLM(kinds["sparse"]).eval()
    stock.load_state_dict(models["sparse"].state_dict(), assign=True)
    models["sparse"].set_experts_implementation(install())
    calls = {name: forward(model, ids) for name, model in models.items()}
    calls["sparse, transformers' grouped_mm"] = forward(stock, ids)
    forwards = tokens_per_second(calls, ids.numel(), seconds)
    del calls, stock
    steps = {
        "sparse": clipped_step(adapted(models["sparse"], *ATTENTION, "experts"), ids),
        "dense": clipped_step(adapted(models["dense"], *ATTENTION, "gate_proj", "up_proj", "down_proj"), ids),
    }
    flops = {name: flops_per_token(config, LENGTH) for name, config in kinds.items()}
    return {
        "tokens": ids.numel(),
        "parameters": {name: parameters(config) for name, config in kinds.items()},
        "flops_per_token": flops,
        "active_share": flops["sparse"] / flops["dense"],
        "forward_tokens_per_s": forwards,
        "step_tokens_per_s": tokens_per_second(steps, ids.numel(), seconds),
    }


def random_ids(rows: int, length: int = LENGTH, *, words: int = 4096) -> Tensor:
    return torch.randint(1, words, (rows, length), generator=torch.Generator().manual_seed(0))


def with_peft(model: PreTrainedModel, targets: Sequence[str], parameters: Sequence[str] = ()) -> torch.nn.Module:
    config = peft.LoraConfig(
        r=RANK, lora_alpha=2 * RANK, target_modules=list(targets), target_parameters=list(parameters) or None
    )
    theirs = peft.get_peft_model(model, config).eval()
    for name, parameter in theirs.named_parameters():
        parameter.requires_grad_("lora_B" in name)
    return theirs


def plain_step(theirs: torch.nn.Module, ids: Tensor) -> Call:
    sgd = torch.optim.SGD([p for p in theirs.parameters() if p.requires_grad], lr=1e-3)

    def step() -> None:
        row_losses(theirs, ids).sum().backward()
        sgd.step()
        sgd.zero_grad()

    return step


def generation(model: object, ids: Tensor) -> Call:
    options = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False, "use_cache": True, "pad_token_id": 0}
    return torch.no_grad()(lambda: model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options))


def beside_peft(layers: int, rows: int, seconds: float) -> dict[str, object]:
    """Tokens per second of a training step and of generation."""
    ids = random_ids(rows)
    with tempfile.TemporaryDirectory() as folder:
        write(shape(layers), Path(folder) / "model")
        loaded = {name: load_model(Path(folder) / "model", **options) for name, options in FORMATS.items()}
        bare, stock = (load_model(Path(folder) / "model") for _ in range(2))
    loaded["float32"].set_experts_implementation(install())
    del loaded["bfloat16"]
    ours = {f"ours, {name}": adapted(model, *ATTENTION, "experts") for name, model in loaded.items()}
    for model in (bare, stock):
        model.set_experts_implementation("grouped_mm")
    theirs = with_peft(stock, ATTENTION, ["experts.gate_up_proj", "experts.down_proj"])
    trained = {"ours": sum(p.numel() for p in ours["ours, float32"].trained.values())}
    trained["peft"] = sum(p.numel() for p in theirs.parameters() if p.requires_grad)
    assert trained["ours"] == trained["peft"]
    steps = {name: clipped_step(model, ids) for name, model in ours.items()} | {PEFT: plain_step(theirs, ids)}
    found: dict[str, object] = {"tokens": ids.numel(), "trained": trained["ours"]}
    found["step_tokens_per_s"] = tokens_per_second(steps, ids.numel(), seconds)
    texts_per_s: dict[int, dict[str, float]] = {}
    for batch in (1, rows):
        prompt = random_ids(batch, PROMPT)
        texts = {name: generation(model.model, prompt) for name, model in ours.items()}
        texts |= {PEFT: generation(theirs, prompt), "transformers, no adapter": generation(bare, prompt)}
        texts_per_s[batch] = tokens_per_second(texts, batch * NEW, seconds / 2)
    return found | {"generated_tokens_per_s": texts_per_s}


def beside_llama(rows: int, length: int, context: int, seconds: float) -> dict[str, object]:
    """Tokens per second of a training step and of generation, and perplexities."""
    config, state, _ = read_source(source_file())
    llamas = [LlamaForCausalLM(config).eval() for _ in range(2)]
    for llama in llamas:
        llama.load_state_dict(state, strict=False)  # the output matrix is the embedding
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "smollm2"
        import_smollm2_moe(directory)
        loaded = {name: load_model(directory, **options) for name, options in FORMATS.items()}
        text = load_tokenizer(directory)((directory / "LICENSE.md").read_text(), return_tensors="pt")["input_ids"]
    del loaded["bfloat16"]
    loaded["float32"].set_experts_implementation(install())
    ids = text[:, : rows * length].reshape(rows, length)
    ours = {f"ours, {name}": adapted(model, *MLA) for name, model in loaded.items()}
    theirs, bare = with_peft(llamas[0], [f"{name}_proj" for name in "qkvo"]), llamas[1]
    steps = {name: clipped_step(model, ids) for name, model in ours.items()} | {PEFT: plain_step(theirs, ids)}
    models = {name: model.model for name, model in ours.items()} | {PEFT: theirs, "transformers, no adapter": bare}
    read = text[:, : 4 * context].reshape(4, context)
    perplexities = {name: text_perplexity(model, read) for name, model in models.items()}
    step_speeds = tokens_per_second(steps, ids.numel(), seconds)
    prompt = text[:, :PROMPT]
    texts = {name: generation(model, prompt) for name, model in models.items()}
    return {
        "tokens": ids.numel(),
        "trained": {
            "ours": sum(p.numel() for p in ours["ours, float32"].trained.values()),
            "peft": sum(p.numel() for p in theirs.parameters() if p.requires_grad),
        },
        "step_tokens_per_s": step_speeds,
        "generated_tokens_per_s": tokens_per_second(texts, NEW, seconds / 2),
        "perplexity_tokens": read.numel(),
        "perplexity": perplexities,
    }


@torch.no_grad()
def text_perplexity(model: Callable[[Tensor], object], ids: Tensor) -> float:
    """Of the rows' tokens but the first."""
    losses = row_losses(model, ids).double().numpy()
    tokens = ids.shape[1] - 1
    return perplexity(losses * tokens, np.full(len(ids), tokens)).value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="two or three layers, seconds a part: too small for the aims"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--part", choices=PARTS, action="append", help="all if left out")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args()
    warnings.filterwarnings("ignore")  # PEFT's hints
    torch.set_num_threads(1)
    if given.child:
        return _child(*json.loads(given.child))
    found: dict[str, object] = {}
    for part in given.part or PARTS:
        before = os.getloadavg()[0]
        measure, table = PARTS[part]
        found[part] = figures = measure(given.quick) | {"is_quick": given.quick, "load": [before, os.getloadavg()[0]]}
        if not given.json:
            print(f"{table(figures)}\n\nload {before:.1f} before, {os.getloadavg()[0]:.1f} after\n", flush=True)
    return print(json.dumps(found)) if given.json else None


def loading_table(found: dict[str, object]) -> str:
    title = f"{found['parameters'] / 1e6:.0f} M parameters, {found['file_mib']:.0f} MiB of files"
    hashing = f"of which hashing {found['hashing_cpu_s']:.1f}"
    lines = [f"| {title} | processor seconds, {hashing} | seconds | peak MiB |", "|---|---|---|---|"]
    for name, of in found["formats"].items():
        lines.append(f"| {name} | {of['cpu_s']:.1f} | {of['wall_s']:.1f} | {of['peak_mib']:.0f} |")
    return "\n".join(lines)


def sparse_table(found: dict[str, object]) -> str:
    columns = "parameters | MFLOP a token | forward, tokens/s | clipped LoRA step, tokens/s"
    lines = [f"| {found['tokens']} tokens | {columns} |", "|---|---|---|---|---|"]
    forwards, steps = found["forward_tokens_per_s"], found["step_tokens_per_s"]
    for name, speed in forwards.items():
        kind = name.partition(",")[0]
        count, flops = found["parameters"][kind], found["flops_per_token"][kind]
        step = f"{steps[name]:.0f}" if name in steps else ""
        lines.append(f"| {name} | {count / 1e6:.1f} M | {flops / 1e6:.1f} | {speed:.0f} | {step} |")
    share, *times = found["active_share"], *(taken["sparse"] / taken["dense"] for taken in (forwards, steps))
    lines.append(f"| sparse over dense | | {share:.1%} | {times[0]:.2f} x | {times[1]:.2f} x |")
    aims = f"Aims: at most {MOST_FLOPS:.0%} of the FLOPs, at least {LEAST_SPEED} times the forward tokens per second"
    is_met = share <= MOST_FLOPS and times[0] >= LEAST_SPEED
    found_out = "not judged by models this small" if found["is_quick"] else "met" if is_met else "missed"
    return "\n".join([*lines, "", f"{aims}: {found_out}."])


def peft_table(found: dict[str, object]) -> str:
    columns = {"LoRA step": found["step_tokens_per_s"]} | {
        f"text, batch of {batch}": speeds for batch, speeds in found["generated_tokens_per_s"].items()
    }
    lines = [f"| tokens/s, {found['trained']:,} numbers trained | " + " | ".join(columns) + " |"]
    lines.append("|---" * (len(columns) + 1) + "|")
    for name in dict.fromkeys(name for speeds in columns.values() for name in speeds):
        cells = [f"{s[name]:.0f} ({s[name] / s[PEFT]:.1f} x)" if name in s else "" for s in columns.values()]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def smollm2_table(found: dict[str, object]) -> str:
    trained = found["trained"]
    title = f"tokens/s; {trained['ours']:,} numbers trained, PEFT {trained['peft']:,}"
    columns = (
        f"LoRA step, {found['tokens']} tokens",
        "text, one row",
        f"perplexity, {found['perplexity_tokens']} tokens",
    )
    lines = [f"| {title} | " + " | ".join(columns) + " |", "|---|---|---|---|"]
    steps, texts = found["step_tokens_per_s"], found["generated_tokens_per_s"]
    for name, value in found["perplexity"].items():
        cells = [f"{s[name]:.1f} ({s[name] / s[PEFT]:.2f} x)" if name in s else "" for s in (steps, texts)]
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {value:.4f} |")
    return "\n".join(lines)


PARTS: dict[str, tuple[Callable[[bool], dict[str, object]], Callable[[dict[str, object]], str]]] = {
    "load": (lambda quick: loading(3 if quick else 13, 1 if quick else 3), loading_table),
    "sparse": (lambda quick: sparse(*((2, 2, 1) if quick else (9, ROWS, 10))), sparse_table),
    "peft": (lambda quick: beside_peft(*((2, 2, 1) if quick else (5, ROWS, 10))), peft_table),
    "smollm2": (lambda quick: beside_llama(*((2, 32, 32, 1) if quick else (ROWS, 64, 256, 60))), smollm2_table),
}


if __name__ == "__main__":
    main()
