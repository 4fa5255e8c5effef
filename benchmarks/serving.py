"""Measures texts that are written together, in float32 and in int8, beside texts written one by one in float32.

    python benchmarks/serving.py [--clients 8 32] [--requests 4] [--tokens 24] [--backbone DIR]
    python benchmarks/serving.py --quick               # does it run? A small model of random weights

Clients ask in a closed loop: each asks again when it is answered. Requests name one of two adapters in turn, and have
prompts of 4 to 40 tokens and answers of up to `--tokens`, most of them short. Both ways are run in turn, so that what
else the machine does meets both. Without `--backbone` it is SmolLM2-135M-Instruct, imported into the folder `serving`;
adapters of rank 8 on all layers have random numbers, which take as long as any. Figures: docs/benchmarks/serving.md.
"""

import argparse
import statistics
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from confide.models.adapters import AdapterConfig, ModelCard, attach, export
from confide.models.backbones.checkpoints import content_hash
from confide.models.backbones.loading import load_text
from confide.models.backbones.smollm2 import import_smollm2
from confide.models.serving.engine import End, Engine, Event, Order, Token
from confide.models.serving.served import Served

TARGETS = ("q_proj", "v_proj", "o_proj", "down_proj")
ROUNDS = 2  # of both ways in turn


def make_adapters(backbone: Path, folder: Path) -> list[Path]:
    """Two adapters of random numbers."""
    paths = []
    for number, name in enumerate(("one", "two")):
        paths.append(folder / name)
        if paths[-1].exists():
            continue
        adapted = attach(load_text(backbone).model, AdapterConfig(rank=8, alpha=16.0, targets=TARGETS, seed="s"))
        adapted.load_state(0.02 * np.random.default_rng(number).normal(size=adapted.layout.dim))
        card = ModelCard(
            study=name, study_hash="ab" * 32, backbone_hash=content_hash(backbone), sites=("a", "b", "c"), rounds=1,
            unit="nobody", mode="none", epsilon=None, delta=None, collusion=1, audit="none",
        )  # fmt: skip
        export(adapted, backbone, paths[-1], card)
    return paths


def small_backbone(source: Path, directory: Path) -> None:
    """A small Llama of random weights with the words of a checkpoint."""
    tokenizer = load_text(source).tokenizer
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=len(tokenizer))).save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def orders(served: Served, count: int, longest: int) -> list[Order]:
    """Requests of several lengths, the adapters in turn."""
    rng, names = np.random.default_rng(0), [name for name in served.models if name != "backbone"]
    found = []
    for place in range(count):
        tokens = min(longest, 4 + int(rng.exponential(longest / 3)))
        found.append(
            Order(
                ids=rng.integers(100, 5000, int(rng.integers(4, 41))).tolist(),
                weights=served.models[names[place % len(names)]].weights,
                longest=tokens,
                ends=frozenset(),
            )
        )
    return found


def asked(engine: Engine, work: Sequence[Order], clients: int) -> tuple[list[float], float, list[list[int]]]:
    """Seconds of each request, of all together, and the tokens of each."""

    def ask(order: Order) -> tuple[float, list[int]]:
        ids, ended, began = [], threading.Event(), time.perf_counter()

        def tell(event: Event) -> None:
            if isinstance(event, Token):
                ids.append(event.id)
            elif isinstance(event, End):
                ended.set()

        engine.submit(order, tell)
        ended.wait()
        return time.perf_counter() - began, ids

    started = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:  # each asks again when it is answered
        found = list(pool.map(ask, work))
    return [seconds for seconds, _ in found], time.perf_counter() - started, [ids for _, ids in found]


def measure(plain: Served, packed: Served, clients: int, requests: int, longest: int) -> str:
    """A line of the table: one by one, together, together in int8, and their ratios."""
    work = orders(plain, clients * requests, longest)
    ways = {"one by one": (plain, 1), "together": (plain, clients), "int8": (packed, clients)}
    found: dict[str, list[tuple[list[float], float, list[list[int]]]]] = {way: [] for way in ways}
    for _ in range(ROUNDS):
        for way, (served, rows) in ways.items():
            engine = Engine(served.composition, words=served.requests.words, rows=rows, waiting=len(work))
            found[way].append(asked(engine, work, clients))
            engine.stop()
    tokens = sum(order.longest for order in work)
    p50 = {way: statistics.median(time for seconds, _, _ in runs for time in seconds) for way, runs in found.items()}
    rate = {way: ROUNDS * tokens / sum(whole for _, whole, _ in runs) for way, runs in found.items()}
    alone, together = found["one by one"][0][2], found["together"][0][2]
    same = sum(one == other for one, other in zip(alone, together, strict=True))
    cells = [f"{p50['one by one']:.2f} s, {rate['one by one']:.0f}/s"]
    for way in ("together", "int8"):
        slower, quicker = p50["one by one"] / p50[way], rate[way] / rate["one by one"]
        cells += [f"{p50[way]:.2f} s, {rate[way]:.0f}/s", f"{slower:.1f}, {quicker:.1f}"]
    return f"| {clients} | {' | '.join(cells)} | {same} of {len(work)} |"


def main() -> None:
    """Prepares the model and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--requests", type=int, default=4, help="of each client")
    parser.add_argument("--tokens", type=int, default=24, help="of the longest answer")
    parser.add_argument("--backbone", type=Path, help="a folder that `coordinator backbone import` wrote")
    parser.add_argument("--dir", type=Path, default=Path("serving"))
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    folder = args.dir / "quick" if args.quick else args.dir
    folder.mkdir(parents=True, exist_ok=True)
    backbone = args.backbone or args.dir / "smollm2"
    if not backbone.exists():
        import_smollm2(backbone)
    if args.quick:
        small_backbone(backbone, folder / "small")
        backbone, args.clients, args.requests = folder / "small", args.clients[:1], 2
    adapters = make_adapters(backbone, folder / "adapters")
    plain, packed = Served(backbone, adapters), Served(backbone, adapters, frozen="int8")
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}; median wait and tokens a second\n")
    print("| clients | one by one | together | times as fast | together, int8 | times as fast | same text, float32 |")
    print("|---|---|---|---|---|---|---|")
    for clients in args.clients:
        print(measure(plain, packed, clients, args.requests, args.tokens), flush=True)


if __name__ == "__main__":
    sys.exit(main())
