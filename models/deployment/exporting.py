"""Writes a merged model as an ONNX graph: a head's whole pass, or a step of writing with what is remembered.

Routed experts are the obstacle: which of them run depends on the token, and a graph cannot be traced through that.
ONNX Runtime has an operator for a whole bank, `com.microsoft.QMoE`, that runs only those that are chosen, in 8 bits:
weights and what enters them, with a scale for every 32 inputs. `RoundedExperts` computes the same in PyTorch. Routers
stay as transformers computes them, in float32: whatever rule a family chooses by, the operator is told who was chosen
and at which weight. In float32 there is no such operator, and every expert runs.

An eye is a graph of its own, from pixels to the states that stand before those of words.

Legend: `R` rows, `T` tokens, `N` tokens of all rows or of a picture, `E` experts, `K` of them that are chosen, `D`
model, `F` tables.
"""

import copy
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache, DynamicLayer

from ...kernels.install import experts_of, is_bank
from ..backbones.family import context_length
from ..errors import DeploymentRefused
from ..structure.eye import Eye
from ..tokens import WIDTH
from .description import Cache, Weights
from .onnx_model import EYE, MODEL, past_names
from .torch_model import Embeds, Reads

BLOCK = 32  # inputs that share a scale; without blocks the operator takes a path about as slow as float32
_OPSET = 21
# Versions of ONNX Runtime: those before 1.25 cannot load routed experts, those before 1.31 do not round their inputs.
_PLAIN, _ROUTED = "1.22", "1.31"
_LARGEST = 1 << 31  # bytes of one file of ONNX; weights of a larger one lie beside it


@dataclass(frozen=True, slots=True)
class Tables:
    """Tables of structure, see `structure.inputs`."""

    weight_DS: Tensor
    count: int

    def places(self, rows: int, tokens: int) -> Tensor:
        """[R, T, F] some places, to trace a graph with."""
        return torch.zeros(rows, tokens, self.count, dtype=torch.int64)


class ExpertsIn8Bits(nn.Module):
    """A bank of routed experts as one operator of ONNX Runtime, which torch itself cannot run."""

    fc1: Tensor
    fc1_scale: Tensor
    fc2: Tensor
    fc2_scale: Tensor

    def __init__(self, gate_up: Tensor, down: Tensor) -> None:
        """Packs gate_up [E, 2 * width, D] and down [E, D, width]."""
        super().__init__()
        gate, up = gate_up.detach().chunk(2, dim=1)
        spare = -gate.shape[1] % BLOCK  # neurons of zeros, whose product is zero
        alternating = F.pad(torch.stack([gate, up], 2).flatten(1, 2), (0, 0, 0, 2 * spare))
        for name, weight in (("fc1", alternating), ("fc2", down.detach())):
            codes, scale = _packed(weight)
            self.register_buffer(name, codes)
            self.register_buffer(f"{name}_scale", scale)

    def forward(self, hidden_ND: Tensor, chosen_NK: Tensor, weights_NK: Tensor) -> Tensor:
        """[N, D], the weighted sum of what the chosen experts give."""
        width = hidden_ND.shape[-1]
        x_ND = F.pad(hidden_ND, (0, -width % BLOCK))
        nobody_NE = hidden_ND.new_zeros(hidden_ND.shape[0], len(self.fc1))
        who_NE, share_NE = nobody_NE.scatter(1, chosen_NK, 1.0), nobody_NE.scatter(1, chosen_NK, weights_NK)
        none = None
        told = (x_ND, who_NE, self.fc1, self.fc1_scale, none, self.fc2, self.fc2_scale, *[none] * 7, share_NE)
        settings: dict[str, Any] = {
            "k": chosen_NK.shape[1], "normalize_routing_weights": 0, "expert_weight_bits": 8, "block_size": BLOCK,
            # SiLU(gate) * up without the 1 and the clamp that the operator is used with elsewhere.
            "activation_type": "swiglu", "swiglu_fusion": 1, "activation_alpha": 1.0, "activation_beta": 0.0,
            "swiglu_limit": 1e30,
        }  # fmt: skip
        found: Tensor = torch.onnx.ops.symbolic(
            "com.microsoft::QMoE", told, settings, dtype=x_ND.dtype, shape=x_ND.shape, version=1
        )
        return found[:, :width]


class AllExperts(nn.Module):
    """A bank of routed experts of which every one runs: exact, and for a check more than for use."""

    gate_up: Tensor
    down: Tensor

    def __init__(self, gate_up: Tensor, down: Tensor) -> None:
        super().__init__()
        self.register_buffer("gate_up", gate_up.detach())
        self.register_buffer("down", down.detach())

    def forward(self, hidden_ND: Tensor, chosen_NK: Tensor, weights_NK: Tensor) -> Tensor:
        """[N, D], the weighted sum of what the chosen experts give."""
        gate, up = torch.einsum("nd,ekd->enk", self.entering(hidden_ND), self.gate_up).chunk(2, dim=-1)
        given_END = torch.einsum("enk,edk->end", self.entering(F.silu(gate) * up), self.down)
        share_NE = hidden_ND.new_zeros(hidden_ND.shape[0], len(self.down)).scatter(1, chosen_NK, weights_NK)
        return torch.einsum("end,ne->nd", given_END, share_NE)

    def entering(self, x: Tensor) -> Tensor:
        """Gives what enters a product: the numbers as they are."""
        return x


class RoundedExperts(AllExperts):
    """A bank that computes in PyTorch what `ExpertsIn8Bits` does: products of bytes, summed in float32."""

    def __init__(self, gate_up: Tensor, down: Tensor) -> None:
        super().__init__(rounded(gate_up), rounded(down))

    def entering(self, x: Tensor) -> Tensor:
        """Gives what enters a product: what their bytes stand for."""
        return rounded(x)


class Writes(nn.Module):
    """A step of writing: some tokens and what is remembered in, the next word's logits and what to remember out."""

    words: Tensor

    def __init__(self, model: Any, tables_DS: Tensor | None) -> None:
        super().__init__()
        self.decoder = model.model
        # As it is multiplied: a matrix that is turned in the graph is not packed.
        self.register_buffer("words", model.lm_head.weight.detach().T.contiguous())
        self.embeds = Embeds(model.get_input_embeddings(), tables_DS)

    def forward(
        self,
        ids_RT: Tensor,
        past: Sequence[tuple[Tensor, Tensor]],
        places_RTF: Tensor | None = None,
        seen_RND: Tensor | None = None,
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """Returns logits [R, V] behind the last token, and keys and values of all tokens by layer."""
        cache = DynamicCache()
        for layer, parts in enumerate(past):
            cache.update(*parts, layer)
        embedded_RTD = self.embeds(ids_RT, places_RTF)
        if seen_RND is not None:
            embedded_RTD = torch.cat([seen_RND, embedded_RTD], dim=1)
        before, tokens = past[0][0].shape[2], embedded_RTD.shape[1]
        places_T = before + torch.arange(tokens)
        is_seen_TS = torch.arange(before + tokens)[None] <= places_T[:, None]
        told = self.decoder(
            inputs_embeds=embedded_RTD,
            attention_mask=is_seen_TS[None, None].expand(ids_RT.shape[0], 1, -1, -1),
            position_ids=places_T[None],
            cache=cache,
            use_cache=True,
        )
        return told.last_hidden_state[:, -1] @ self.words, [(layer.keys, layer.values) for layer in told.cache.layers]


def as_graph(model: Any, weights: Weights) -> AbstractContextManager[None]:
    """Replaces every bank of routed experts by one that a graph can hold, for as long as the block runs.

    Raises:
        UnsupportedExperts: a bank computes something else than SiLU(gate) * up.
    """
    return with_banks(model, ExpertsIn8Bits if weights == "int8" else AllExperts)


@contextmanager
def with_banks(model: Any, kind: Callable[[Tensor, Tensor], nn.Module]) -> Iterator[None]:
    """Replaces every bank of routed experts by one of this kind, for as long as the block runs.

    Raises:
        UnsupportedExperts: a bank computes something else than SiLU(gate) * up.
    """
    banks = {name: module for name, module in model.named_modules() if is_bank(module)}
    replaced = {}
    try:
        for name, bank in banks.items():
            experts_of(bank)  # raises what a graph would compute otherwise
            _put(model, name, kind(bank.gate_up_proj.float(), bank.down_proj.float()))
            replaced[name] = bank
        yield
    finally:
        for name, bank in replaced.items():
            _put(model, name, bank)


def least_runtime(model: Any, weights: Weights) -> str:
    """Returns the least version of ONNX Runtime that computes a model's graph as it was tested."""
    return _ROUTED if weights == "int8" and has_banks(model) else _PLAIN


def has_banks(model: Any) -> bool:
    """True if a model has routed experts."""
    return any(is_bank(module) for module in model.modules())


def remembered(model: Any) -> Cache:
    """Finds what each layer remembers of a token, as (heads, numbers) of both parts.

    Raises:
        DeploymentRefused: a layer remembers anything else.
    """
    width = model.get_input_embeddings().weight.shape[1]
    with torch.no_grad():
        cache = model.model(inputs_embeds=torch.zeros(1, 1, width), use_cache=True).cache
    if not all(type(layer) is DynamicLayer for layer in cache.layers):
        raise DeploymentRefused(
            "the backbone remembers more than keys and values of tokens, which no graph is made of yet: use --target "
            "torch, or serve the adapter"
        )
    return tuple(
        ((layer.keys.shape[1], layer.keys.shape[3]), (layer.values.shape[1], layer.values.shape[3]))
        for layer in cache.layers
    )


def export_head(model: Any, head: Mapping[str, Tensor], tables: Tables | None, folder: Path, weights: Weights) -> None:
    """Writes the graph of a head: token ids, and places if there are tables of structure, to outputs."""
    tables_DS = None if tables is None else tables.weight_DS
    rows, tokens = (
        torch.export.Dim("requests", min=1, max=4096),
        torch.export.Dim("tokens", min=2, max=context_length(model.config)),
    )
    places = () if tables is None else (tables.places(3, 7),)
    dynamic = ({0: rows, 1: tokens},) + (({0: rows, 1: tokens},) if places else ())
    example = (torch.ones(3, 7, dtype=torch.int64), *places)
    names = ["ids", "places"][: len(example)]
    with as_graph(model, weights):
        _write(Reads(model, head, tables_DS).eval(), example, dynamic, names, ["outputs"], folder / MODEL)
    _pack_linear_layers(folder, model, weights)


def export_eye(eye: Eye, folder: Path) -> None:
    """Writes the graph of an eye, in float32: what the tokens of pictures carry to their states."""
    eye = copy.deepcopy(eye).float().eval()
    eye.swin.set_attn_implementation("eager")  # the fused one has views that no graph can take apart
    example = torch.zeros(3, eye.layout.tokens, eye.layout.carried * WIDTH, dtype=torch.uint8)
    rows = torch.export.Dim("requests", min=1, max=4096)
    _write(eye, (example,), ({0: rows},), ["carried"], ["seen"], folder / EYE)


def export_writer(
    model: Any, tables: Tables | None, cache: Cache, folder: Path, weights: Weights, *, picture_tokens: int = 0
) -> None:
    """Writes the graph of a step of writing, see `Writes`.

    Args:
        picture_tokens: N, of a model with an eye.
    """
    tables_DS = None if tables is None else tables.weight_DS
    most = context_length(model.config)
    rows, tokens = torch.export.Dim("texts", min=1, max=4096), torch.export.Dim("tokens", min=1, max=most)
    before = torch.export.Dim("before", min=0, max=most)
    past = [tuple(torch.randn(3, heads, 5, numbers) for heads, numbers in layer) for layer in cache]
    ids, places, seen = torch.ones(3, 7, dtype=torch.int64), None, None
    given = ["ids", *(name for layer in range(len(cache)) for name in past_names(layer))]
    if tables is not None:
        places = tables.places(3, 7)
        given.append("places")
    if picture_tokens:
        seen = torch.randn(3, picture_tokens, model.get_input_embeddings().weight.shape[1])
        given.append("seen")
    example = (ids, past, places, seen)
    dynamic = (
        {0: rows, 1: tokens},
        [({0: rows, 2: before},) * 2] * len(cache),
        None if places is None else {0: rows, 1: tokens},
        None if seen is None else {0: rows, 1: torch.export.Dim("seen", min=0, max=picture_tokens)},
    )
    found = ["logits", *(f"present.{name[5:]}" for name in given if name.startswith("past."))]
    with as_graph(model, weights):
        _write(Writes(model, tables_DS).eval(), example, dynamic, given, found, folder / MODEL)
    _pack_linear_layers(folder, model, weights)


def rounded(x: Tensor) -> Tensor:
    """Rounds numbers [..., inputs] to what their bytes stand for: 8 bits, with a scale for every `BLOCK` inputs."""
    codes, scale = _packed(x)
    found = (codes.float() - 128) * scale.repeat_interleave(BLOCK, -1)
    return found[..., : x.shape[-1]]


def _packed(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Packs [..., inputs] as bytes around 128, and scales [..., blocks]; inputs are filled up."""
    filled = F.pad(weight.float(), (0, -weight.shape[-1] % BLOCK))
    blocks = filled.view(*filled.shape[:-1], -1, BLOCK)
    scale = blocks.abs().amax(-1).clamp_min(1e-12) / 127
    codes = (blocks / scale[..., None]).round().clamp(-127, 127) + 128
    return codes.to(torch.uint8).flatten(-2), scale


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)


def _write(
    module: nn.Module, example: tuple[Any, ...], dynamic: Any, given: list[str], found: list[str], path: Path
) -> None:
    with warnings.catch_warnings(), _quiet():
        warnings.simplefilter("ignore")  # of torch's own passes: unused names of axes, a class that moves
        program = torch.onnx.export(
            module, example, dynamo=True, dynamic_shapes=dynamic, opset_version=_OPSET, input_names=given,
            output_names=found, verbose=False,
        )  # fmt: skip
        assert program is not None
        program.save(path)


def _pack_linear_layers(folder: Path, model: Any, weights: Weights) -> None:
    """Packs the linear layers of a model without routed experts; beside such experts they weigh little."""
    if weights == "float32" or has_banks(model):
        return
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer

    # Level 4 multiplies in bytes; the exacter ones first unpack all weights, and take nine times as long.
    how = DefaultWeightOnlyQuantConfig(block_size=BLOCK, is_symmetric=True, accuracy_level=4, bits=8)
    with _quiet():
        packing = MatMulNBitsQuantizer(onnx.load(folder / MODEL), algo_config=how)
        packing.process()
    for path in folder.glob(f"{MODEL}*"):
        os.unlink(path)
    packing.model.save_model_to_file(
        str(folder / MODEL), use_external_data_format=packing.model.model.ByteSize() >= _LARGEST
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps exporters from telling of every node."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
