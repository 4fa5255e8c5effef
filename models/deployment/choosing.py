"""Chooses how a model should run, for a use: what it reads, how fast it must answer, in how much memory, for how many.

The figures are estimates from runs on one thread of a processor with VNNI (docs/benchmarks/deployment.md): a runtime's
own time and memory, and what each parameter adds. They tell a factor of two apart and no less; ask.py --time measures.
"""

from dataclasses import dataclass
from typing import Literal

Modality = Literal["table", "text", "code", "mathematics", "pictures", "sounds"]
Way = Literal["onnx", "torch", "triton", "serve"]
_MANY = 4  # who ask at a time, from which on it pays to answer them together


@dataclass(frozen=True, slots=True)
class Use:
    """A use that a model is wanted for."""

    modality: Modality
    milliseconds: float | None = None  # that a record, or a word of an answer, may take; None: any
    megabytes: float | None = None  # of memory that there are; None: any
    clients: int = 1  # that ask at a time
    parameters: int = 1_000_000
    active: int = 1_000_000  # of them, those that one token meets
    in_experts: int = 0  # of them, those in routed experts
    in_words: int = 0  # of them, those in the table of embeddings, which is never packed
    in_float32: bool = False  # the model is a head without routed experts, whose graph is not packed
    is_guided: bool | None = None  # the study has a guide of what is written; None: as code and mathematics have it
    no_graph: str = ""  # why no graph is made of the model; "" if one is
    no_folder: str = ""  # why the study's requests are not read without confide; "" if they are


@dataclass(frozen=True, slots=True)
class Option:
    """A way to run the model, with what it takes and why it suits or not."""

    way: Way
    use: str  # that it is meant for
    runtime: str
    command: str
    milliseconds: float  # estimated
    megabytes: float  # estimated
    misfits: tuple[str, ...]  # reasons against it; none if it suits
    why: str


@dataclass(frozen=True, slots=True)
class _Runtime:
    own_ms: float  # of a token of a model without size
    ms_per_million: float  # active parameters
    own_mb: float
    is_packed: bool  # in 8 bits, unless the use is one of float32


_RUNTIMES: dict[Way, _Runtime] = {
    "onnx": _Runtime(0.6, 0.13, 75, True),
    "torch": _Runtime(2.0, 0.40, 475, False),
    "triton": _Runtime(1.5, 0.13, 250, True),
    "serve": _Runtime(2.0, 0.40, 650, False),
}
_GRAPH_MS = 0.23  # of a graph in float32, for a million active parameters
_SAID: dict[Way, tuple[str, str, str]] = {
    "onnx": (
        "live completion, one record after another",
        "ONNX Runtime",
        "coordinator adapter deploy RUN folder --target onnx",
    ),
    "torch": (
        "help with mathematics, on one's own machine",
        "PyTorch, float32",
        "coordinator adapter deploy RUN folder --target torch",
    ),
    "triton": (
        "many who ask at a time, for records or where a guide writes",
        "Triton server",
        "coordinator adapter deploy RUN folder --target triton",
    ),
    "serve": (
        "many who write with it, tools that speak OpenAI's API",
        "confide's own service",
        "coordinator adapter serve backbone adapter",
    ),
}


_READS: dict[Modality, str] = {
    "pictures": "a graph does, --target onnx or triton",
    "sounds": "confide alone does, coordinator adapter ask --study",
}


def choose(use: Use) -> tuple[Option, ...]:
    """Returns all ways, the best first; those that do not suit say why."""
    options = [_option(way, use) for way in _RUNTIMES]
    preferred = _preferred(use)
    return tuple(sorted(options, key=lambda option: (bool(option.misfits), preferred.index(option.way))))


def _preferred(use: Use) -> tuple[Way, ...]:
    """Ways in the order in which they are taken if all suit."""
    is_served = use.modality in ("text", "code", "mathematics") and not _is_guided(use)
    if use.clients >= _MANY:
        return ("serve", "triton", "onnx", "torch") if is_served else ("triton", "onnx", "torch", "serve")
    if use.modality == "mathematics":
        return ("torch", "onnx", "serve", "triton")
    return ("onnx", "torch", "triton", "serve")


def _is_guided(use: Use) -> bool:
    return use.modality in ("code", "mathematics") if use.is_guided is None else use.is_guided


def _option(way: Way, use: Use) -> Option:
    runtime, (meant, name, command) = _RUNTIMES[way], _SAID[way]
    is_packed = runtime.is_packed and not use.in_float32
    if runtime.is_packed:
        name += ", 8 bits" if is_packed else ", float32"
    each = _GRAPH_MS if runtime.is_packed and not is_packed else runtime.ms_per_million
    milliseconds = runtime.own_ms + each * use.active / 1e6
    megabytes = runtime.own_mb + _weights(use, is_packed=is_packed)
    misfits = []
    if use.milliseconds is not None and milliseconds > use.milliseconds:
        misfits.append(f"takes about {milliseconds:.3g} ms, and {use.milliseconds:g} are given")
    if use.megabytes is not None and megabytes > use.megabytes:
        misfits.append(f"takes about {megabytes:,.0f} MB, and {use.megabytes:,g} are given")
    if way in ("onnx", "triton") and use.no_graph:
        misfits.append(use.no_graph)
    if way != "serve" and use.no_folder:
        misfits.append(use.no_folder)
    if way == "serve" and use.modality == "table":
        misfits.append("serves only models that read text")
    if way == "serve" and _is_guided(use):
        misfits.append(
            "writes without the study's guide: folders compute values, and keep brackets and blocks in order"
        )
    if use.modality == "sounds" or (use.modality == "pictures" and way in ("torch", "serve")):
        misfits.append(f"reads no {use.modality}: {_READS[use.modality]}")
    return Option(way, meant, name, command, milliseconds, megabytes, tuple(misfits), _why(way, use))


def _weights(use: Use, *, is_packed: bool) -> float:
    """Megabytes of weights: four bytes a number, or a byte and an eighth where they are packed, as scales take."""
    packed = 0 if not is_packed else use.in_experts or use.parameters - use.in_words
    return (4 * (use.parameters - packed) + 1.125 * packed) / 1e6


def _why(way: Way, use: Use) -> str:
    if way == "torch":
        also = "its arithmetic is computed exactly, offline" if use.modality == "mathematics" else "needs no graph"
        return f"full precision, and a checkpoint that other tools read; {also}"
    if way == "triton":
        return "answers what waits in one pass, over HTTP and gRPC"
    if way == "serve":
        return "writes all texts together, any of several adapters, and keeps forms; needs confide on the machine"
    exact = "; runs only the experts that a token is sent to" if use.in_experts else ""
    return f"the quickest answer to one request, and the least memory{exact}"
