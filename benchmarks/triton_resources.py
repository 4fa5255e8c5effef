"""Reports the Triton kernels' needs on a GPU without having it: registers, spills, shared memory, instructions.

    python benchmarks/triton_resources.py [--capability 90] [--tokens 2048] [--format fp8] [--head 192,128,32] [--json]

Runs the launches of forward and backward passes, of experts and of attention in segments, on tensors of the CPU,
records them instead of computing anything, and compiles every kernel for the GPU as it would be launched there: same
constants, same alignment, and the tiles that analysis gives (measured ones are chosen by time). Exits with 1 if a limit
is broken. No figure here is a time: `benchmarks/gpu.py` measures those.
"""

import argparse
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

if os.environ.get("TRITON_INTERPRET"):
    sys.exit("unset TRITON_INTERPRET: an interpreted kernel cannot be compiled")
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")  # the default of today; it is to change and Triton warns of it

import torch
import triton
from torch import nn
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource

from confide.kernels import triton_experts, triton_kernels, triton_segment_kernels, triton_segments
from confide.kernels.collect import Collector
from confide.kernels.experts import Experts, Factors, LoRA
from confide.kernels.formats import Dense, ExpertWeights, FP8Block128, Int8Row, NF4Block64
from confide.kernels.routing import route
from confide.kernels.segment_tiles import Read, Tiles
from confide.kernels.segments import Segments, chosen_blocks
from confide.kernels.tiles import Tiling, by_analysis

SHARED_BYTES = {
    80: 166_912,
    86: 101_376,
    89: 101_376,
    90: 232_448,
    100: 232_448,
    120: 101_376,
}  # most a block may ask for
REGISTERS = 65_536  # of a multiprocessor
TENSOR_CORES = {
    80: "mma.sync",
    86: "mma.sync",
    89: "mma.sync",
    90: "wgmma.mma_async",
    100: "tcgen05.mma",
    120: "mma.sync",
}
TRITON_NAMES = {
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.int64: "*i64",
    torch.int32: "*i32",
    torch.int8: "*i8",
    torch.uint8: "*u8",
}


@dataclass(frozen=True)
class Shape:
    """A bank of experts, a batch, and how the experts are stored."""

    model: int
    hidden: int
    experts: int
    top_k: int
    rank: int
    tokens: int
    units: int
    format: str
    dtype: torch.dtype


@dataclass(frozen=True)
class Head:
    """A head of attention in segments."""

    width: int  # of queries and keys
    values: int
    window: int
    dtype: torch.dtype


HEADS = ("192,128,32", "48,32,16")  # DeepSeek-V3's, and a small one


@dataclass(frozen=True)
class Launch:
    """A kernel with the arguments it was launched with."""

    kernel: Any
    arguments: dict[str, Any]
    warps: int
    stages: int

    @property
    def name(self) -> str:
        return str(self.kernel.fn.__name__)

    @property
    def has_products(self) -> bool:
        return "PRECISION" in self.arguments

    def tiled(self, tiling: Tiling) -> "Launch":
        """The same in another tile."""
        sides = {"ROWS": tiling.rows, "COLS": tiling.cols, "DEPTH": tiling.depth}
        known = {side: size for side, size in sides.items() if side in self.arguments}
        return replace(self, arguments=self.arguments | known, warps=tiling.warps, stages=tiling.stages)

    def source(self) -> ASTSource:
        """As Triton's launcher specialises: constants by value; pointers and integers that 16 divides are marked."""
        signature, constants, attributes = {}, {}, {}
        for place, name in enumerate(self.kernel.arg_names):
            value = self.arguments[name]
            is_number = isinstance(value, int)
            if self.kernel.params[place].is_constexpr or value is None or (is_number and value == 1):
                signature[name], constants[name] = "constexpr", value
                continue
            if isinstance(value, float):
                signature[name] = "fp32"
                continue
            signature[name] = "i32" if is_number else TRITON_NAMES[value.dtype]
            if not is_number or value % 16 == 0:
                attributes[(place,)] = [["tt.divisibility", 16]]
        return ASTSource(self.kernel, signature, constexprs=constants, attrs=attributes)


@dataclass(frozen=True)
class Resources:
    """The resources of one compiled kernel."""

    capability: int
    format: str  # of the experts, or the head
    kernel: str
    tile: str
    warps: int
    registers: int
    spilled_bytes: int
    shared_bytes: int
    tensor_core: int
    async_copies: int
    broken: tuple[str, ...]


class Recorder:
    """Stands in for a module of kernels: notes launches and computes nothing."""

    def __init__(self, kernels: ModuleType) -> None:
        self.kernels = kernels
        self.launches: list[Launch] = []

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.kernels, name)
        return _Recorded(self.launches, found) if hasattr(found, "arg_names") else found


@dataclass(frozen=True)
class _Recorded:
    launches: list[Launch]
    kernel: Any

    def __getitem__(self, grid: object) -> Callable[..., None]:
        def launch(*args: Any, num_warps: int = 4, num_stages: int = 3, **named: Any) -> None:
            arguments = dict(zip(self.kernel.arg_names, args, strict=False)) | named
            self.launches.append(Launch(self.kernel, arguments, num_warps, num_stages))

        return launch


def recorded(capability: int, shape: Shape) -> list[Launch]:
    """The launches of forward, backward without and with a collector, norms and a clipped sum; each kind once."""
    recorder = Recorder(triton_kernels)
    originals = triton_experts._kernels, triton_experts.chosen
    triton_experts._kernels = lambda: recorder
    triton_experts.chosen = lambda _, case: by_analysis(capability, case.pairs, case.itemsize, case.rank)
    try:
        _train(shape)
    finally:
        triton_experts._kernels, triton_experts.chosen = originals
    return _kinds(recorder.launches)


def recorded_attention(head: Head) -> list[Launch]:
    """The launches of forward and backward of one head of 300 tokens; each kind once."""
    recorder = Recorder(triton_segment_kernels)
    original = triton_segments._kernels
    triton_segments._kernels = lambda: recorder
    try:
        q, k = torch.zeros(2, 1, 300, head.width, dtype=head.dtype)
        v = torch.zeros(1, 300, head.values, dtype=head.dtype)
        tiles = Tiles.of(chosen_blocks(q, k, Segments(head.window)), head.window)
        read = Read.of(q, k, v, 0.1, head.width, head.window)
        triton_segments.triton_shares(tiles, read)
        triton_segments.triton_slopes(tiles, read, v[0], torch.zeros(300), torch.zeros(300))
    finally:
        triton_segments._kernels = original
    return _kinds(recorder.launches)


def _kinds(launches: list[Launch]) -> list[Launch]:
    kinds: dict[tuple[str, ...], Launch] = {}
    for launch in launches:
        source = launch.source()
        kinds.setdefault((launch.name, str(source.signature), str(source.constants), str(source.attrs)), launch)
    return list(kinds.values())


def _train(shape: Shape) -> None:
    gate_up = _stack(shape, 2 * shape.hidden, shape.model)
    experts = Experts(gate_up, _stack(shape, shape.model, shape.hidden))
    rank = shape.rank
    sides = (rank, shape.model), (2 * shape.hidden, rank), (rank, shape.hidden), (shape.model, rank)
    lora = LoRA(Factors(*(nn.Parameter(torch.empty(shape.experts, *side)) for side in sides)), 0.5)
    ids = torch.arange(shape.tokens * shape.top_k).view(shape.tokens, shape.top_k) % shape.experts
    x = torch.zeros(shape.tokens, shape.model, dtype=shape.dtype, requires_grad=True)
    weights = torch.zeros(shape.tokens, shape.top_k, requires_grad=True)
    for collector in (None, Collector(torch.arange(shape.units), shape.units, shape.tokens // shape.units)):
        owners = (None, 0) if collector is None else (collector.unit_of_token, shape.units)
        plan = route(ids, shape.experts, *owners)
        triton_experts.triton_moe(x, plan, weights, experts, lora, collector).sum().backward()
    collector.square_norms()
    collector.weighted_sum(torch.ones(shape.units))


def _stack(shape: Shape, outputs: int, inputs: int) -> ExpertWeights:
    """Memory that is hardly touched."""
    sides = torch.Size((shape.experts, outputs, inputs))
    if shape.format == "dense":
        return Dense(torch.empty(sides, dtype=shape.dtype))
    if shape.format == "int8":
        return Int8Row(torch.empty(sides, dtype=torch.int8), torch.empty(sides[:2], dtype=shape.dtype))
    if shape.format == "nf4":
        blocks = -(-outputs * inputs // 64)
        codes = torch.empty(shape.experts, 32 * blocks, dtype=torch.uint8)
        return NF4Block64(codes, torch.zeros(shape.experts, blocks), sides, shape.dtype)
    scales = torch.zeros(shape.experts, -(-outputs // 128), -(-inputs // 128))
    return FP8Block128(torch.empty(sides, dtype=torch.float8_e4m3fn), scales, shape.dtype)


def resources(launch: Launch, capability: int, number_format: str) -> Resources:
    """Compiles a launch for a GPU of this capability and holds what it takes against the limits."""
    target = GPUTarget("cuda", capability, 32)
    options = {"num_warps": launch.warps, "num_stages": launch.stages}
    compiled = triton.compile(launch.source(), target=target, options=options)
    ptx, shared = compiled.asm["ptx"], compiled.metadata.shared
    log = _assembled(ptx, capability)
    registers = int(re.search(r"Used (\d+) registers", log)[1])
    spilled = sum(int(size) for size in re.findall(r"(\d+) bytes spill", log))
    # Tiles of fewer than 64 rows take the older instruction on newer GPUs too.
    tensor_core = sum(ptx.count(instruction) for instruction in {TENSOR_CORES[capability], "mma.sync"})
    copies = ptx.count("cp.async.c") + ptx.count("cp.async.bulk")
    limits = {
        "spills": spilled > 0,
        "shared memory": shared > SHARED_BYTES[capability],
        "registers of a block": registers * launch.warps * 32 > REGISTERS,
        "no tensor cores": launch.has_products and tensor_core == 0,
        "no asynchronous copy": launch.has_products and copies == 0,
        "serialised products": "serialized" in log,
    }
    tile = "x".join(str(launch.arguments[side]) for side in ("W", "ROWS", "COLS", "DEPTH") if side in launch.arguments)
    broken = tuple(limit for limit, is_broken in limits.items() if is_broken)
    return Resources(
        capability=capability,
        format=number_format,
        kernel=launch.name,
        tile=tile,
        warps=launch.warps,
        registers=registers,
        spilled_bytes=spilled,
        shared_bytes=shared,
        tensor_core=tensor_core,
        async_copies=copies,
        broken=broken,
    )


def _assembled(ptx: str, capability: int) -> str:
    """What ptxas says of registers; the one that Triton uses, as another may not know the version of the PTX."""
    suffix = "a" if capability >= 90 else ""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "kernel.ptx")
        source.write_text(ptx)
        command = [
            get_ptxas(capability).path,
            "-v",
            f"--gpu-name=sm_{capability}{suffix}",
            source,
            "-o",
            f"{source}.cubin",
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def print_table(rows: list[Resources]) -> None:
    """One line a kernel: of its variants, the most they take and the fewest instructions of a kind."""
    print("| GPU | of | kernel | tile | warps | registers | spilled | shared | tensor core | async | broken |")
    print("|---|---|---|---|---:|---:|---:|---:|---:|---:|---|")
    variants = defaultdict(list)
    for row in rows:
        variants[row.capability, row.format, row.kernel, row.tile, row.warps].append(row)
    for (capability, *named), alike in variants.items():
        numbers = [
            max(row.registers for row in alike),
            max(row.spilled_bytes for row in alike),
            max(row.shared_bytes for row in alike),
            min(row.tensor_core for row in alike),
            min(row.async_copies for row in alike),
        ]
        broken = ", ".join(sorted({limit for row in alike for limit in row.broken})) or "-"
        print("| " + " | ".join(str(cell) for cell in (f"sm_{capability}", *named, *numbers, broken)) + " |")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--capability", type=int, choices=sorted(SHARED_BYTES), action="append", help="default: all")
    parser.add_argument("--tokens", type=int, default=2048, help="of a batch, which decides on the tiles")
    parser.add_argument("--model", type=int, default=1024, help="width of the model")
    parser.add_argument("--hidden", type=int, default=704, help="width of an expert")
    parser.add_argument("--experts", type=int, default=64)
    parser.add_argument("--top-k", type=int, default=6)
    parser.add_argument("--rank", type=int, default=16)
    formats = ["dense", "int8", "nf4", "fp8"]
    parser.add_argument("--format", choices=formats, action="append", help="of the experts; default: dense")
    parser.add_argument("--head", metavar="D,V,WINDOW", action="append", help=f"default: {' '.join(HEADS)}")
    parser.add_argument("--dtype", choices=["bfloat16", "float16", "float32"], default="bfloat16")
    parser.add_argument("--kernel", action="append", help="only kernels of this name")
    parser.add_argument("--tile", metavar="ROWS,COLS,DEPTH,WARPS,STAGES", help="tile to try in place of the chosen one")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()
    tiling = Tiling(*(int(side) for side in args.tile.split(","))) if args.tile else None
    dtype, capabilities = getattr(torch, args.dtype), args.capability or sorted(SHARED_BYTES)
    launches = []
    for number_format, capability in itertools.product(args.format or ["dense"], capabilities):
        shape = Shape(
            args.model, args.hidden, args.experts, args.top_k, args.rank, args.tokens, 8, number_format, dtype
        )  # fmt: skip
        launches += [(launch, capability, number_format) for launch in recorded(capability, shape)]
    for sizes, capability in itertools.product(args.head or HEADS, capabilities):
        head = Head(*(int(size) for size in sizes.split(",")), dtype)
        launches += [(launch, capability, sizes) for launch in recorded_attention(head)]
    rows = [
        resources(launch.tiled(tiling) if tiling else launch, capability, case)
        for launch, capability, case in launches
        if args.kernel is None or launch.name in args.kernel
    ]
    if args.json:
        print(json.dumps([asdict(row) for row in rows]))
    else:
        print_table(rows)
    return int(any(row.broken for row in rows))


if __name__ == "__main__":
    sys.exit(main())
