"""Writes a trained model as a folder that runs where confide is not installed.

The folder has the model with the adapter in its weights, a description of what it is asked and answers, the model card
with what it may tell of a person, and ask.py, which asks it. Its program is this package's own files, copied as they
are: those of `PROGRAM`, which import nothing of confide but each other.

    onnx    one graph in ONNX; routed experts, or the linear layers of a model without them, in 8 bits; a head on a
            model without them in float32
    torch   a checkpoint for transformers, in float32
    triton  the same graph in the folder that a Triton server takes, with batches of what waits
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from ..adapters import AdaptedModel, ModelCard
from ..adapters.merging import merged, save_facts, save_parts
from ..backbones import checkpoints
from ..backbones.families import family_in
from ..backbones.family import context_length
from ..directories import new_directory
from ..errors import DeploymentRefused, UnsupportedGraph
from ..records.requests import Request, TextShown
from ..records.text import Requests
from ..structure import inputs
from ..structure.readers import READERS
from ..structure.sense import sense_of
from .description import TOKENIZER, Cache, Deployment, Weights
from .onnx_model import OnnxModel
from .torch_model import HEAD, MODEL, STRUCTURE

Target = Literal["onnx", "torch", "triton"]
_ROOT = Path(__file__).parents[1]
PROGRAM = (
    "errors.py",
    "records/requests.py",
    "evaluation/answers.py",
    "evaluation/derivations.py",
    "structure/pictures.py",
    "structure/constructs.py",
    "structure/code.py",
    "structure/formulas.py",
    "structure/readers.py",
    "decoding/guide.py",
    "decoding/arithmetic.py",
    "decoding/grammar.py",
    "deployment/description.py",
    "deployment/reading.py",
    "deployment/writing.py",
    "deployment/onnx_model.py",
    "deployment/torch_model.py",
    "deployment/segments.py",
    "deployment/asking.py",
    "deployment/triton_model.py",
    "deployment/triton_server.py",
)
# Of transformers' models, those whose graph was compared with the model.
GRAPHS = ("deepseek_v3", "llama", "qwen2", "qwen3", "qwen3_moe", "mixtral")
_PACKAGES = ("onnx", "onnxruntime", "onnxscript")
_LICENCES = ("LICENSE", "LICENCE", "NOTICE")


@dataclass(frozen=True, slots=True)
class Deployed:
    """A folder that was written."""

    deployment: Deployment
    target: Target
    bytes: int  # of the model's own files


def deploy(
    adapted: AdaptedModel,
    backbone: Path,
    directory: Path,
    card: ModelCard,
    request: Request,
    *,
    target: Target,
    weights: Weights | None = None,
) -> Deployed:
    """Writes the folder; `directory` appears in one rename.

    Args:
        adapted: the model in float32, with its adapter as it was released.
        backbone: the directory that it was loaded from.
        request: what the study shows of a request, and what it answers.
        weights: of what is written; "int8" goes with onnx and triton. None takes it there, but for a head on a model
            without routed experts, whose chances it moves.

    Raises:
        DeploymentRefused: the target has no such form, or the graph cannot be made or loaded here.
        UnsupportedModule: an adapted weight is quantised.
        InvalidRelease, InvalidBackbone: a file of the backbone cannot be read.
        FileExistsError: `directory` exists already.
    """
    family = family_in(adapted.model)
    if weights is None:
        from .exporting import has_banks

        weights = default_weights(target, is_head=request.writing is None, has_experts=has_banks(adapted.model))
    if target != "torch":
        if absent := [name for name in _PACKAGES if find_spec(name) is None]:
            raise DeploymentRefused(f"it takes {' and '.join(absent)}: pip install 'confide[deploy]'")
        if family.model_type not in GRAPHS:
            raise DeploymentRefused(
                f"no graph is made of a {family.name} yet; there is one of {', '.join(GRAPHS)}: use --target torch, "
                "or serve the adapter"
            )
    elif weights == "int8":
        raise DeploymentRefused("--target torch holds weights in float32; 8 bits go with --target onnx or triton")
    elif sense_of(adapted.model) is not None:
        raise DeploymentRefused("pictures are read by a graph: use --target onnx or triton")
    deployment = _described(adapted, backbone, card, request, target, weights)
    with merged(adapted) as model, new_directory(directory) as partial:
        provenance = save_facts(card, backbone, partial)
        folder = partial if target != "triton" else partial / "models" / card.study / "1"
        folder.mkdir(parents=True, exist_ok=True)
        save_parts(adapted, model, folder / MODEL, beside=folder)
        if isinstance(request.shown, TextShown):
            _save_tokenizer(backbone, folder)
        if target != "torch":
            deployment = _as_graph(deployment, folder, weights, sense_of(model))
        deployment.save(folder)
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        _copy_program(folder)
        if target == "triton":
            _write_triton(partial, folder, card.study)
        else:
            _write(partial / "ask.py", _script("ask", "Asks the model in this folder", "asking", "main"))
        _pass_on_licences(backbone, partial)
        _write(partial / "requirements.txt", _requirements(target, deployment))
        _write(partial / "README.md", _card_text(card, deployment, target, provenance.earlier_studies()))
    return Deployed(deployment, target, size)


def default_weights(target: Target, *, is_head: bool, has_experts: bool) -> Weights:
    """Chooses how weights are held if nobody says: in 8 bits where a graph has them and they move answers little."""
    return "float32" if target == "torch" or (is_head and not has_experts) else "int8"


def _described(
    adapted: AdaptedModel, backbone: Path, card: ModelCard, request: Request, target: Target, weights: Weights
) -> Deployment:
    model: Any = adapted.model
    longest = context_length(model.config)
    sizes = card.segments
    reader = model.model.structure_ids.reader.name if inputs.is_joined(model) else None
    found = Deployment(
        study=card.study, request=request, runtime="torch" if target == "torch" else "onnx", weights=weights,
        words=model.config.vocab_size, longest=longest, structure=reader,
        segments=None if sizes is None else (sizes.window, sizes.top),
    )  # fmt: skip
    if not isinstance(request.shown, TextShown):
        return found
    tokenizer: Any = checkpoints.load_tokenizer(backbone)
    named = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ends = {tokenizer.eos_token_id, *(named if isinstance(named, list) else [named])}
    ends |= set(() if request.writing is None else request.writing.ends)
    ids = tuple(sorted(int(each) for each in ends if each is not None))
    if request.writing is not None and not ids:
        raise DeploymentRefused("nothing ends what the model writes: the checkpoint and the study name no such word")
    return replace(found, words=min(found.words, Requests(tokenizer, longest).words), ends=ids)


def _save_tokenizer(backbone: Path, folder: Path) -> None:
    tokenizer: Any = checkpoints.load_tokenizer(backbone)
    Requests(tokenizer, 1)  # marks added words as special, so that what people write cannot say them
    tokenizer.backend_tokenizer.save(str(folder / TOKENIZER))


def _as_graph(deployment: Deployment, folder: Path, weights: Weights, eye: Any) -> Deployment:
    """Replaces checkpoint, head and tables in a folder by a graph of them, and adds that of an eye, if there is one."""
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    from .exporting import Tables, export_eye, export_head, export_writer, least_runtime, remembered
    from .segments import read_in_segments

    with checkpoints.quietly():
        model: Any = AutoModelForCausalLM.from_pretrained(
            folder / MODEL,
            dtype=torch.float32,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            use_kernels=False,
        )
    model.eval()
    if deployment.segments is not None:
        read_in_segments(model, *deployment.segments)
    tables = None
    if deployment.structure is not None:
        tables = Tables(load_file(folder / STRUCTURE)["weight"], len(READERS[deployment.structure].sizes))
    cache: Cache = ()
    if deployment.request.writing is None:
        export_head(model, load_file(folder / HEAD), tables, folder, weights)
    else:
        cache = remembered(model)
        export_writer(model, tables, cache, folder, weights, picture_tokens=0 if eye is None else eye.layout.tokens)
        if eye is not None:
            export_eye(eye, folder)
    shutil.rmtree(folder / MODEL)
    for name in (HEAD, STRUCTURE):
        (folder / name).unlink(missing_ok=True)
    found = replace(deployment, cache=cache, onnxruntime=least_runtime(model, weights))
    _load_once(folder, found)
    return found


def _load_once(folder: Path, deployment: Deployment) -> None:
    """Loads what was written, so that no folder stays that cannot run."""
    try:
        OnnxModel(folder, deployment, None)
    except UnsupportedGraph:
        import onnxruntime

        raise DeploymentRefused(
            f"the graph cannot be loaded by ONNX Runtime {onnxruntime.__version__}, which is installed here: it takes "
            f"{deployment.onnxruntime} or newer, pip install --upgrade 'confide[deploy]', or --format float32"
        ) from None


def _copy_program(folder: Path) -> None:
    """Copies this package's files; nothing else than they would be imported by them."""
    for name in PROGRAM:
        target = folder / "program" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(_ROOT / name, target)
        for parent in (target.parent, folder / "program"):
            _write(parent / "__init__.py", '"""Files of confide, copied as they are; Apache-2.0."""\n')


def _pass_on_licences(backbone: Path, partial: Path) -> None:
    for path in checkpoints.beside_weights(backbone):
        if path.name.upper().startswith(_LICENCES):
            shutil.copyfile(path, partial / path.name)


def _write_triton(partial: Path, folder: Path, study: str) -> None:
    _write(
        folder / "model.py",
        f'"""Holds what Triton loads."""\n\n{_path("")}'
        "from program.deployment.triton_model import TritonPythonModel  # noqa: E402, F401\n",
    )
    _write(
        folder.parent / "config.pbtxt",
        f"""name: "{study}"
backend: "python"
max_batch_size: 64
input [ {{ name: "REQUEST" data_type: TYPE_STRING dims: [ 1 ] }} ]
output [ {{ name: "ANSWER" data_type: TYPE_STRING dims: [ 1 ] }} ]
dynamic_batching {{ max_queue_delay_microseconds: 2000 }}
instance_group [ {{ count: 1 kind: KIND_CPU }} ]
""",
    )
    path = _path(f"models/{study}/1")
    for name, what in (("start", "Starts the server"), ("ask", "Asks the server")):
        _write(partial / f"{name}.py", _script(name, what, "triton_server", name, before=path))


def _path(program: str) -> str:
    """Lines that let a script import the program in a folder below its own."""
    return f"""import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "{program}"))

"""


def _script(name: str, what: str, module: str, function: str, *, before: str = "") -> str:
    return f"""\"\"\"{what}: python {name}.py --help\"\"\"

{before}from program.deployment.{module} import {function}  # noqa: E402

{function}()
"""


def _requirements(target: Target, deployment: Deployment) -> str:
    needed = ["numpy"]
    runtime = [f"onnxruntime>={deployment.onnxruntime}"]
    needed += ["torch>=2.9", "transformers>=5.24,<6", "safetensors"] if target == "torch" else runtime
    is_text = isinstance(deployment.request.shown, TextShown)
    needed += ["tokenizers"] if is_text and target != "torch" else []
    needed += ["pillow"] if deployment.request.picture is not None else []
    guide = None if deployment.request.writing is None else deployment.request.writing.guide
    if "code" in (deployment.structure, guide) or guide == "grammar":
        needed += ["tree-sitter>=0.25,<0.26", "tree-sitter-java>=0.23.5,<0.24", "tree-sitter-python>=0.25,<0.26"]
    needed += ["nvidia-pytriton>=0.7,<0.8", "tritonclient[http,grpc]"] if target == "triton" else []
    return "".join(f"{each}\n" for each in needed)


_HELD: Mapping[str, str] = {
    "int8": "8 bits (routed experts, or the linear layers of a model without them), which move answers a little",
    "float32": "float32",
}


def _card_text(card: ModelCard, deployment: Deployment, target: Target, earlier: str) -> str:
    request = deployment.request
    what = "writes a text" if request.writing is not None else f"answers {', '.join(a.name for a in request.answers)}"
    start = "python start.py &" if target == "triton" else ""
    steps = ["pip install -r requirements.txt", *filter(None, [start]), "python ask.py requests.csv"]
    commands = "\n".join(steps)
    return f"""---
tags: [federated-learning, differential-privacy]
---
# {card.study}

A model that {what}, trained by {len(card.sites)} sites together without sharing records. It runs from this folder,
without a network and without confide: {_RUNS[target]}, weights in {_HELD[deployment.weights]}.

{card.table()}

## Ask
```
{commands}
```
`ask.py --help` says what a request may be. Answers are lines of JSON. {_NOTES[target]}
{_picture_text(deployment)}
{earlier}{card.limits()}"""


def _picture_text(deployment: Deployment) -> str:
    if (picture := deployment.request.picture) is None:
        return ""
    height, width = picture.size
    return f"""
`{picture.column}` is a PNG file, 8 bits grey or RGB, {height} pixels high and {width} wide: in a table its name in the
folder `pictures` beside the table, on the command line its path, in JSON its bytes in base64.
"""


_RUNS: Mapping[str, str] = {
    "onnx": "one graph, by ONNX Runtime",
    "torch": "a checkpoint, by PyTorch and transformers",
    "triton": "one graph, by ONNX Runtime in a Triton server",
}
_NOTES: Mapping[str, str] = {
    "onnx": "Nothing that is asked leaves the machine or is kept.",
    "torch": "Nothing that is asked leaves the machine or is kept.",
    "triton": "The server asks nobody for a token, so it listens on this machine alone, where any program, and a page "
    "in a browser, may ask it; `--grpc` asks over gRPC.",
}


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
