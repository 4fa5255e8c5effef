"""Measures a frozen base in each format of `[model] frozen`: memory, the time of a private step, and quality.

    python benchmarks/quantised.py [--quick] [--json] [--part memory|speed|quality]

SmolLM2-135M-Instruct as a Llama, its weights stored in bfloat16 as models are published, is loaded by `load_model` in
every format, embedding, norms and activations in float32. LoRA of rank 8 on all seven linear layers of all decoder
layers, B alone trained.

memory   Loading and one private step over 4 x 64 tokens, each format in a process of its own that has done the same
         with a tiny model before. Private memory (RssAnon) over what the process had, with and without the step; and
         all resident memory (VmHWM), of which mapped files are a part that the kernel may take back.
speed    A private step, clipped by record: processor time over that of float32, and plain PEFT on float32 beside it.
         Methods alternate in one process of one thread; medians. Many tokens share the widening of a matrix.
quality  Perplexity of public texts, adapters at their start: the licence that comes with the model, and the reference
         of Python's language that comes with Python.

Needs the packages of requirements-smollm.txt and gguf.
"""

import argparse
import importlib.metadata
import json
import os
import pydoc_data.topics
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from measuring import Peak, allocated_mib, in_child, medians, restart_peak, status_mib
from models import RANK, ROWS, Call, clipped_step, plain_step, random_ids, row_losses, with_peft
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from confide.kernels.linear import packed_stacks
from confide.models.adapters import AdaptedModel, AdapterConfig, attach
from confide.models.backbones.checkpoints import load_model, quietly, save_model
from confide.models.backbones.packing import PACK_OF
from confide.models.backbones.smollm2 import PACKAGE, read_source, source_file
from confide.models.evaluation.metrics import perplexity

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
PEFT = "PEFT, float32, not clipped"


def write(folder: Path) -> None:
    """SmolLM2 and a tiny Llama, stored in bfloat16."""
    config, state, _ = read_source(source_file())
    llama = LlamaForCausalLM(config)
    llama.load_state_dict(state, strict=False)  # the output matrix is the embedding
    save_model(llama.bfloat16(), folder / "smollm2")
    tiny = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "bos_token_id": None, "eos_token_id": None}
    save_model(LlamaForCausalLM(LlamaConfig(**tiny, **heads)).bfloat16(), folder / "tiny")


def loaded(directory: Path, form: str) -> AdaptedModel:
    with quietly():
        model = load_model(directory, pack_linear=PACK_OF[form])
    return attach(model, AdapterConfig(rank=RANK, alpha=2.0 * RANK, targets=TARGETS, seed="bench"))


def private_step(adapted: AdaptedModel, ids: Tensor) -> Call:
    is_completion = torch.arange(ids.shape[1]).expand_as(ids) > 0
    return clipped_step(adapted, ids, lambda: adapted.losses(ids, is_completion))


def memory(folder: Path, forms: Sequence[str]) -> dict[str, object]:
    """MiB of each format, each from a process of its own."""
    return {"formats": {form: in_child(__file__, str(folder), form) for form in forms}}


def _child(folder: str, form: str) -> None:
    private_step(loaded(Path(folder) / "tiny", form), random_ids(ROWS, 64, words=64))()
    before, resident = allocated_mib(), status_mib("VmRSS")
    restart_peak()
    with Peak() as loading:
        adapted = loaded(Path(folder) / "smollm2", form)
    after = allocated_mib()
    with Peak() as peak:
        private_step(adapted, random_ids(ROWS, 64, words=1000))()
    stacks = [stack for module in adapted.modules() for stack in packed_stacks(module)]
    found = {
        "loading_mib": loading.mib - before,
        "held_mib": after - before,
        "step_mib": peak.mib - before,
        "resident_mib": status_mib("VmHWM") - resident,
        "packed_mib": sum(stack.nbytes for stack in stacks) / 2**20,
    }
    print(json.dumps(found))


def speed(folder: Path, forms: Sequence[str], lengths: Sequence[int], seconds: float) -> dict[str, object]:
    """Processor time of a step over that of float32, by the tokens of a batch."""
    models = {form: loaded(folder / "smollm2", form) for form in forms}
    found = {}
    for length in lengths:
        ids = random_ids(ROWS, length, words=1000)
        steps: dict[str, Call] = {form: private_step(model, ids) for form, model in models.items()}
        steps[PEFT] = plain_step(with_peft(load_model(folder / "smollm2"), TARGETS), ids)
        found[ids.numel()] = medians(steps, seconds=seconds)
    return {"milliseconds": found}


def quality(folder: Path, forms: Sequence[str], rows: int) -> dict[str, object]:
    """Perplexities of public texts in rows of 256 tokens."""
    _, _, tokenizer = read_source(source_file())
    topics = "\n".join(text for _, text in sorted(pydoc_data.topics.topics.items()))
    licence = importlib.metadata.distribution(PACKAGE).read_text("LICENSE")
    assert licence is not None
    texts = {"the licence": licence, "Python's reference": topics}
    found: dict[str, dict[str, float]] = {}
    for form in forms:
        model = loaded(folder / "smollm2", form).model
        for name, text in texts.items():
            ids = torch.tensor(tokenizer(text[: 8 * 256 * rows])["input_ids"][: 256 * rows]).view(rows, 256)
            with torch.no_grad():
                losses = torch.cat([row_losses(model, row[None]) for row in ids]).double().numpy()
            found.setdefault(name, {})[form] = perplexity(losses * 255, np.full(rows, 255)).value
    return {"tokens": 256 * rows, "perplexity": found}


def memory_table(found: dict[str, object]) -> str:
    columns = (
        "packed layers | held after loading | peak of loading | peak of loading and a step | resident, files included"
    )
    lines = [f"| MiB | {columns} |", "|---|---|---|---|---|---|"]
    for form, of in found["formats"].items():
        names = ("packed_mib", "held_mib", "loading_mib", "step_mib", "resident_mib")
        lines.append(f"| {form} | " + " | ".join(f"{of[name]:.0f}" for name in names) + " |")
    return "\n".join(lines)


def speed_table(found: dict[str, object]) -> str:
    by_tokens = found["milliseconds"]
    lines = ["| private step, over float32 | " + " | ".join(f"{tokens} tokens" for tokens in by_tokens) + " |"]
    lines.append("|---" * (len(by_tokens) + 1) + "|")
    for name in next(iter(by_tokens.values())):
        cells = [f"{taken[name] / taken['float32']:.2f}" for taken in by_tokens.values()]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def quality_table(found: dict[str, object]) -> str:
    texts = found["perplexity"]
    lines = [f"| perplexity, {found['tokens']} tokens | " + " | ".join(texts) + " |", "|---" * (len(texts) + 1) + "|"]
    for form in next(iter(texts.values())):
        cells = [f"{of[form]:.3f} ({of[form] / of['float32'] - 1:+.2%})" for of in texts.values()]
        lines.append(f"| {form} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


PARTS = {"memory": memory_table, "speed": speed_table, "quality": quality_table}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer formats and tokens")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--part", choices=PARTS, action="append", help="all if left out")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args()
    warnings.filterwarnings("ignore")  # PEFT's hints
    torch.set_num_threads(1)
    if given.child:
        return _child(*json.loads(given.child))
    forms = ("float32", "nf4") if given.quick else tuple(PACK_OF)
    figures: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        with quietly():
            write(folder)
        measures: dict[str, Callable[[], dict[str, object]]] = {
            "memory": lambda: memory(folder, forms),
            "speed": lambda: speed(folder, forms, (16,) if given.quick else (16, 64), 0 if given.quick else 30),
            "quality": lambda: quality(folder, forms, 1 if given.quick else 4),
        }
        for part in given.part or PARTS:
            before = os.getloadavg()[0]
            figures[part] = measures[part]()
            if not given.json:
                print(
                    f"{PARTS[part](figures[part])}\n\nload {before:.1f} before, {os.getloadavg()[0]:.1f} after\n",
                    flush=True,
                )
    return print(json.dumps(figures)) if given.json else None


if __name__ == "__main__":
    main()
