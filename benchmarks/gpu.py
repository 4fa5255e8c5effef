"""Tests, tunes and measures everything of this project that runs on a GPU, in one command, and writes a table.

    python benchmarks/gpu.py [--only SECTION ...] [--out FILE] [--json]
    python benchmarks/gpu.py --check [--brief]        # without a GPU: does all of this run?

    checks      tests/kernels/triton_checks.py, every kernel against its definition
    resources   what the kernels take of the card by its compiler, in tiles by analysis (benchmarks/triton_resources.py)
    exactness   the kernels at the sizes that are measured, against float64
    tiles       finds the quickest tiles and keeps them for this card in kernels/tiles.json
    experts     routed experts, LoRA and clipped sums beside cuBLAS, grouped_mm, transformers, PEFT and Liger
    step        one private step of models of 1 to 7 billion parameters, random weights in nf4
    workers     two workers over NCCL, if there are two cards

Each section is printed when it is done. One that fails is printed with its error, and the others go on.

`--check` runs the same code on the CPU: in Triton's interpreter, on tiny shapes; kernels are compiled for GPUs of
capability 8.0 and 9.0. Its times mean nothing and are not printed; its tiles go to a temporary file.

Exits with 0 if all went well, 1 if anything failed, 2 for a wrong option, 3 if there is no GPU.
"""

import argparse
import datetime
import json
import os
import shutil
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from gpu_experts import Shape
    from gpu_step import Model

HERE = Path(__file__).parent
NO_GPU = 3
SECTIONS = ("checks", "resources", "exactness", "tiles", "experts", "step", "workers")
TUNED = ("dense:32", "dense:128", "nf4:32", "nf4:128")
_PACKAGES = ("torch", "triton", "transformers", "peft", "liger-kernel", "deepspeed")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The device, and what is measured on it."""

    device: "torch.device"
    dtypes: tuple["torch.dtype", ...]  # of exactness; the last one is that of all else
    shapes: dict[str, "Shape"]
    tuned: tuple[str, ...]  # format and class of pairs an expert
    models: dict[str, "Model"]
    capabilities: tuple[int, ...]
    workers: tuple[str, ...]  # options of benchmarks/workers.py; none if there are no two cards
    seconds: float  # of each column; 0 runs everything once
    tiles: Path
    is_brief: bool

    @property
    def is_check(self) -> bool:
        return self.device.type != "cuda"


@dataclass
class Section:
    """The findings of a section."""

    name: str
    lines: list[str] = field(default_factory=list)  # Markdown
    data: Any = None
    problem: str = ""


def checks(plan: Plan) -> Section:
    program = HERE.parent / "tests" / "kernels" / "triton_checks.py"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(program)]
    if plan.is_brief:
        command += ["-k", "e4m3"]
    done = subprocess.run(command, env=_environment(plan.is_check), capture_output=True, text=True)
    if done.returncode:
        return Section("checks", problem=f"pytest ended with {done.returncode}\n{done.stdout}{done.stderr}")
    summary = done.stdout.splitlines()[-1]
    return Section("checks", [f"`triton_checks.py`: {summary}"], summary)


def resources(plan: Plan) -> Section:
    command = [sys.executable, str(HERE / "triton_resources.py"), "--json"]
    command += [option for capability in plan.capabilities for option in ("--capability", str(capability))]
    if plan.is_brief:
        command += ["--kernel", "combine_kernel"]
    with tempfile.TemporaryDirectory() as cache:
        environment = _environment(False) | {"TRITON_CACHE_DIR": cache}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if not done.stdout:
        return Section("resources", problem=f"no answer, exit status {done.returncode}\n{done.stderr}")
    rows = json.loads(done.stdout)
    columns = ("capability", "kernel", "tile", "warps", "registers", "spilled_bytes", "shared_bytes")
    broken = [f"{row['kernel']} on sm_{row['capability']}: {', '.join(row['broken'])}" for row in rows if row["broken"]]
    return Section("resources", _table(columns, ([row[c] for c in columns] for row in rows)), rows, "\n".join(broken))


def exactness(plan: Plan) -> Section:
    from gpu_experts import PACKS
    from gpu_experts import exactness as measured

    shape = list(plan.shapes.values())[-1]
    rows = measured(shape, plan.device, plan.dtypes, ("dense", "nf4") if plan.is_brief else tuple(PACKS))
    columns = [name for name in rows[0] if name != "ok"]
    cells = (
        [f"{value:.1e}" if isinstance(value, float) else value for value in (row[c] for c in columns)] for row in rows
    )
    wrong = [f"{row['experts']} in {row['dtype']} is off by more than it may" for row in rows if not row["ok"]]
    lines = [f"{shape}; relative errors against float64.", "", *_table(columns, cells)]
    return Section("exactness", lines, rows, "\n".join(wrong))


def tiles(plan: Plan) -> Section:
    import torch
    from gpu_experts import Bank
    from gpu_tiles import shape_for, tuned

    from confide.kernels.tiles import TABLE, Card, Measured, as_json, measured
    from confide.kernels.triton_experts import card_of

    # No interpreter is a card: what it finds is written, and read again, under a made-up name.
    card = Card("made up", 80) if plan.is_check else card_of(plan.device)
    known = measured(plan.tiles) if plan.tiles.exists() else measured(TABLE)
    kept = next((dict(entry.tilings) for entry in known if entry.card == card), {})
    rows = []
    for wanted in plan.tuned:
        stored, _, pairs = wanted.partition(":")
        shape = next(iter(plan.shapes.values()))
        bank = Bank(shape_for(int(pairs), shape), plan.device, plan.dtypes[-1])
        found = tuned(bank, stored, seconds=plan.seconds / 20)
        kept[found.case] = found.tilings
        versions = ", ".join([f"driver {_driver()}", *_versions(), datetime.date.today().isoformat()])
        entries = [*(entry for entry in known if entry.card.name != card.name), Measured(card, versions, kept)]
        plan.tiles.write_text(as_json(entries))  # after each case, or a machine that goes away takes all with it
        measured.cache_clear()
        if measured(plan.tiles)[-1].tilings != kept:
            raise RuntimeError(f"{plan.tiles} does not read as it was written")
        rows.append({"experts": stored, "pairs": found.case.pairs, **asdict(found)})
        if plan.device.type == "cuda":
            torch.cuda.empty_cache()
    columns = ("experts", "pairs", "gate_up", "grouped", "inner_gradient", "runs", "over analysis")
    cells = []
    for row in rows:
        sides = ["x".join(map(str, row["tilings"][kernel].values())) for kernel in columns[2:6]]
        ratio = "" if plan.is_check else f"{row['tuned_ms'] / row['analysis_ms']:.2f}"
        cells.append([row["experts"], row["pairs"], *sides, ratio])
    lines = ["Rows x columns x depth x warps x stages; time of a private step over that with tiles by analysis.", ""]
    return Section("tiles", lines + _table(columns, cells), rows)


def experts(plan: Plan) -> Section:
    import torch
    from gpu_experts import speed

    lines, data = [], {}
    for name, shape in plan.shapes.items():
        found = speed(shape, plan.device, plan.dtypes[-1], seconds=plan.seconds)
        data[name] = found
        columns = list(found["ms"])
        methods = list(dict.fromkeys(method for calls in found["ms"].values() for method in calls))
        cells = []
        for method in methods:
            row = [method]
            for column in columns:
                row.append(_ratio(found["ms"][column], method, "limit", plan))
            mib = next(iter(found["added MiB"].values())).get(method)
            cells.append([*row, "" if mib is None or plan.is_check else f"{mib:.0f}"])
        lines += [f"**{name}**: {shape}", "", *_table([name, *columns, "MiB added"], cells), ""]
        if plan.device.type == "cuda":
            torch.cuda.empty_cache()
    return Section("experts", lines[:-1], data)


def step(plan: Plan) -> Section:
    import torch
    from gpu_step import measured

    data: dict[str, Any] = {}
    cells, skipped = [], []
    for name, model in plan.models.items():
        if not plan.is_check:
            free, _ = torch.cuda.mem_get_info(plan.device)
            need = 0.57 * model.expert_parameters + 2**33  # codes; attention, embeddings and activations
            if free < need:
                skipped.append(f"{name} not run: it needs some {need / 2**30:.0f} GiB, {free / 2**30:.0f} are free.")
                continue
        data[name] = measured(model, plan.device, plan.dtypes[-1], seconds=plan.seconds)
        for row in data[name]:
            ms, added = row["ms"], row["added MiB"]
            times = [_ratio(ms, method, "plain", plan) for method in ms]
            memory = [f"{row['MiB at rest']:.0f}", *(f"{added.get(method, float('nan')):.0f}" for method in ms)]
            cells.append(
                [
                    name,
                    row["adapters on"],
                    f"{row['trained numbers']:,}",
                    *times,
                    *([] if plan.is_check else memory),
                    row["batches"],
                ]
            )
    names = ["plain", "clipped", "private"]
    memory_columns = [] if plan.is_check else ["MiB at rest", *(f"MiB added, {name}" for name in names)]
    lines = _table(["model", "adapters on", "trained", *names, *memory_columns, "batches in which rows agree"], cells)
    return Section("step", ["Routed experts and all linear layers in nf4.", "", *lines, *skipped], data)


def workers(plan: Plan) -> Section:
    if not plan.workers:
        return Section("workers", ["Not run: it takes two cards."])
    if find_spec("deepspeed") is None:
        return Section("workers", ["Not run: it takes `pip install 'confide[deepspeed]'`."])
    command = [sys.executable, str(HERE / "workers.py"), "--json", *plan.workers]
    done = subprocess.run(command, env=_environment(False), capture_output=True, text=True)
    if done.returncode:
        return Section("workers", problem=f"exit status {done.returncode}\n{done.stderr}")
    found = json.loads(done.stdout.splitlines()[-1])  # DeepSpeed speaks first
    columns = list(next(iter(found.values())))
    numbers = ([name, *("" if plan.is_check else f"{row[c]:.3g}" for c in columns)] for name, row in found.items())
    return Section("workers", _table(["each process", *columns], numbers), found)


RUN: dict[str, Callable[[Plan], Section]] = {
    "checks": checks, "resources": resources, "exactness": exactness, "tiles": tiles, "experts": experts,
    "step": step, "workers": workers,
}  # fmt: skip


def gpu_plan(asked: argparse.Namespace) -> Plan:
    import torch
    from gpu_experts import Shape
    from gpu_step import MODELS

    device = torch.device("cuda", torch.cuda.current_device())
    major, minor = torch.cuda.get_device_capability(device)
    large = Shape(model=2048, hidden=1408, experts=64, top_k=6, tokens=4096)
    shapes = {
        "large": large,
        "large, few tokens": Shape(**asdict(large) | {"tokens": 256}),
        "small": Shape(model=1024, hidden=704, experts=64, top_k=6, tokens=2048),
    }
    return Plan(
        device=device,
        dtypes=(torch.float32, torch.bfloat16),
        shapes=shapes,
        tuned=tuple(asked.tune or TUNED),
        models={name: MODELS[name] for name in asked.models or MODELS},
        capabilities=(10 * major + minor,),
        workers=("--accelerator", "cuda", "--hidden", "1024") if torch.cuda.device_count() > 1 else (),
        seconds=asked.seconds,
        tiles=asked.tiles,
        is_brief=asked.brief,
    )


def check_plan(asked: argparse.Namespace, folder: Path) -> Plan:
    import torch
    from gpu_experts import Shape
    from gpu_step import TINY

    return Plan(
        device=torch.device("cpu"),
        dtypes=(torch.float32,),  # the interpreter's products of 16 bits are wrong
        shapes={"tiny": Shape(model=32, hidden=32, experts=2, top_k=1, tokens=16, rank=4)},
        tuned=tuple(asked.tune or ["nf4:16"]),
        models={"tiny": TINY},
        capabilities=(80, 90),
        workers=(
            *("--hidden", "32", "--layers", "2", "--experts", "2", "--batch", "4", "--steps", "1"),
            *(("--variant", "two, sharded") if asked.brief else ()),
        ),
        seconds=0,
        tiles=folder / "tiles.json",
        is_brief=asked.brief,
    )


def run(plan: Plan, names: list[str], report: Callable[[Section], None]) -> list[Section]:
    """Runs the sections; one that fails says so, and the next one begins."""
    found = []
    for name in names:
        try:
            section = RUN[name](plan)
        except Exception:  # a card may be lent for minutes: what can still be measured is
            section = Section(name, problem=traceback.format_exc())
        found.append(section)
        report(section)
    return found


def described(section: Section) -> str:
    problem = ["", "**Failed:**", "```", section.problem.strip(), "```"] if section.problem else []
    return "\n".join([f"## {section.name}", *section.lines, *problem, ""])


def heading(plan: Plan) -> str:
    if plan.is_check:
        return "No GPU: Triton's interpreter on the CPU. What follows shows that the code runs, and no speed.\n"
    import torch

    found = torch.cuda.get_device_properties(plan.device)
    memory, cards = found.total_memory / 2**30, torch.cuda.device_count()
    return (
        f"# {found.name}\n{memory:.0f} GiB, compute capability {found.major}.{found.minor}, {cards} in this machine; "
        f"driver {_driver()}, CUDA {torch.version.cuda}; {', '.join(_versions())}; {datetime.date.today()}.\n"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="run all that can be checked without a GPU")
    parser.add_argument("--brief", action="store_true", help="run less of each section")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, metavar="SECTION", help="default: all")
    parser.add_argument("--tune", nargs="+", metavar="FORMAT:PAIRS", help=f"cases of tiles; default: {' '.join(TUNED)}")
    parser.add_argument("--models", nargs="+", choices=["1b", "3b", "7b"], help="of the private step; default: all")
    parser.add_argument("--seconds", type=float, default=3.0, help="for each column of a table")
    tables = HERE.parent / "kernels" / "tiles.json"
    parser.add_argument("--tiles", type=Path, default=tables, help="where measured tiles are kept")
    parser.add_argument("--out", type=Path, help="also write the Markdown to this file")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of Markdown")
    asked = parser.parse_args()
    for case in asked.tune or ():
        stored, _, pairs = case.partition(":")
        if stored not in ("dense", "int8", "nf4", "fp8") or pairs not in ("16", "32", "64", "128"):
            parser.error(f"--tune takes a format and 16, 32, 64 or 128, such as nf4:32, got {case}")
    for path in (asked.out, asked.tiles):
        if path and not path.parent.is_dir():
            parser.error(f"{path.parent} is no folder, so {path.name} could not be written there")
    if asked.check:
        os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported
        os.environ["CONFIDE_MOE_BACKEND"] = "triton"  # which nothing takes by itself on the CPU
    import torch

    if not asked.check and not torch.cuda.is_available():
        print("No GPU was found, so nothing was measured; --check runs what can be run without one.", file=sys.stderr)
        return NO_GPU
    with tempfile.TemporaryDirectory() as folder:
        plan = check_plan(asked, Path(folder)) if asked.check else gpu_plan(asked)
        written = [heading(plan)]

        def report(section: Section) -> None:
            written.append(described(section))
            if not asked.json:
                print(written[-1], flush=True)
            if asked.out:
                asked.out.write_text("\n".join(written))

        if not asked.json:
            print(written[0], flush=True)
        found = run(plan, [name for name in SECTIONS if name in (asked.only or SECTIONS)], report)
    if asked.json:
        print(json.dumps({"heading": written[0], "sections": [asdict(section) for section in found]}))
    return int(any(section.problem for section in found))


def _environment(is_interpreted: bool) -> dict[str, str]:
    hidden = ("TRITON_INTERPRET", "CONFIDE_MOE_BACKEND", "CONFIDE_SEGMENTS_BACKEND")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    return environment | ({"TRITON_INTERPRET": "1"} if is_interpreted else {})


def _ratio(ms: dict[str, float | None], name: str, base: str, plan: Plan) -> str:
    """The base in milliseconds, all else over it."""
    if name not in ms:
        return ""
    if plan.is_check:
        return "ran"
    own, other = ms[name], ms[base]
    if own is None:
        return "out of memory"
    return f"{own:.2f} ms" if name == base or other is None else f"{own / other:.2f}"


def _table(columns: Any, rows: Any) -> list[str]:
    lines = [list(columns), ["---"] * len(list(columns)), *(list(row) for row in rows)]
    return ["| " + " | ".join(map(str, line)) + " |" for line in lines]


def _versions() -> list[str]:
    found = []
    for package in _PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue  # a peer that is not installed is not measured
    return found


def _driver() -> str:
    program = shutil.which("nvidia-smi")
    if program is None:
        return "unknown"
    asked = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(asked, capture_output=True, text=True)
    return done.stdout.splitlines()[0] if done.returncode == 0 and done.stdout else "unknown"


if __name__ == "__main__":
    sys.exit(main())
