"""Frozen weights in the format that a study asks for, packed matrix by matrix as a checkpoint's files are read.

Two kinds of matrices are packed: banks of routed experts, and the linear layers of the decoder that a family lists as
targets, adapted or not. Embedding, output matrix, norms and routers are left as they are: a table is looked up and not
multiplied by, the output matrix is often that table and decides every word, norms are vectors, and a router that is
off by a rounding sends a token elsewhere.

A checkpoint may hold these matrices in the fp8 format of DeepSeek-V3: codes of 8 bits, and beside them, as
`NAME_scale_inv`, what each tile of 128 x 128 is to be multiplied by. Read in the format "fp8" they stay as they are
stored; in any other they are widened one at a time. No other quantised checkpoint is read.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming, rename_source_key

from ...kernels.experts import Experts
from ...kernels.formats import FP8_BLOCK, BFloat16, ExpertWeights, FP8Block128, Int8Row, NF4Block64, Pack
from ...kernels.install import fill
from ...kernels.linear import QuantisedLinear
from ..errors import InvalidBackbone
from ..structure.places import sense_in
from .family import Backbone, WeightFormat

PACK_OF: dict[WeightFormat, Pack | None] = {
    "float32": None,
    "bfloat16": BFloat16.quantised,
    "fp8": FP8Block128.quantised,
    "int8": Int8Row.quantised,
    "nf4": NF4Block64.quantised,
}

SCALE = "_scale_inv"  # after the name of a weight in fp8
QUANTISATION = "quantization_config"  # of config.json
_FP8: Mapping[str, tuple[object, ...]] = {  # what a checkpoint in fp8 may say of itself, None for what is left out
    "fmt": (None, "e4m3"),
    "weight_block_size": ([FP8_BLOCK, FP8_BLOCK],),
    "activation_scheme": (None, "dynamic"),
}
_STORED = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_IN_LAYER = re.compile(r"\blayers\.[0-9]+\.")


def is_fp8(config: Mapping[str, Any]) -> bool:
    """True if a checkpoint of this `config.json` may hold matrices in fp8.

    Raises:
        InvalidBackbone: it is quantised in another way.
    """
    stated = config.get(QUANTISATION)
    if stated is None:
        return False
    method = stated.get("quant_method") if isinstance(stated, Mapping) else None
    if method != "fp8":
        raise InvalidBackbone(
            f"its weights are quantised by {_shown(method)}, which is not read: import the checkpoint that they were "
            'made of; frozen = "nf4" or "int8" in study.toml then takes as little memory'
        )
    for name, known in _FP8.items():
        if stated.get(name) not in known:
            raise InvalidBackbone(
                f"its fp8 weights have {name} {_shown(stated.get(name))}, and {known[-1]!r} alone is read"
            )
    return True


def _shown(value: object) -> str:
    """A value of a file that nobody has checked, short enough for one line."""
    return repr(value)[:60]


def linear_layers(family: Backbone, model: nn.Module) -> dict[str, nn.Linear]:
    """Returns the linear layers of a model that may be packed, by name: those in decoder layers that take adapters.

    Modules of these names are called and never read past, which the family's tests prove.
    """
    return {
        name: module
        for name, module in model.named_modules()
        if type(module) is nn.Linear
        and _IN_LAYER.search(name)
        and name.rpartition(".")[2] in family.targets
        and sense_in(name) is None
    }


class StoredWeights:
    """The matrices in a checkpoint's weight files, read one at a time.

    Files are mapped and opened anew for every matrix, so that nothing of them stays in memory but what is kept.
    """

    def __init__(self, directory: Path, files: Sequence[Path], *, is_fp8: bool) -> None:
        """Reads the files' headers.

        Raises:
            InvalidBackbone: a matrix in fp8 has no scales, scales have no matrix, or `config.json` names no fp8.
        """
        self._directory, self._file_of, self._fp8 = directory, dict[str, Path](), set[str]()
        for path in files:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 - no mapping
                    self._file_of[name] = path
                    if file.get_slice(name).get_dtype() == "F8_E4M3":
                        self._fp8.add(name)
        if self._fp8 and not is_fp8:
            raise InvalidBackbone(f"{directory}: {min(self._fp8)} is fp8, and config.json has no {QUANTISATION}")
        scaled = {name.removesuffix(SCALE) for name in self._file_of if name.endswith(SCALE)}
        if alone := scaled ^ self._fp8:
            what = "scales of what is not fp8" if min(alone) in scaled else "fp8 codes without scales"
            raise InvalidBackbone(f"{directory}: {min(alone)} has {what}")

    def matching(self, pattern: re.Pattern[str]) -> set[str]:
        """Returns the names of the stored matrices in which a pattern is found; scales are none."""
        return {name for name in self._file_of if pattern.search(name) and not name.endswith(SCALE)}

    def names_in(self, model: Any) -> dict[str, str]:
        """Returns the stored names by those that a model of transformers has for the same."""
        mapping = get_model_conversion_mapping(model)
        renamings = [each for each in mapping if isinstance(each, WeightRenaming)]
        return {rename_source_key(name, renamings, [])[0]: name for name in self._file_of}

    def is_fp8(self, name: str) -> bool:
        """True if the matrix is stored in fp8."""
        return name in self._fp8

    def matrix(self, name: str, shape: tuple[int, int], dtype: torch.dtype, expert: int | None = None) -> Tensor:
        """Reads one matrix as it is stored, mapped from its file; of fp8 what its codes stand for, in `dtype`.

        Args:
            expert: which of the matrices, if those of all experts are one tensor.

        Raises:
            InvalidBackbone: it is missing, has another shape or holds no numbers.
        """
        if self.is_fp8(name):
            if expert is not None:
                raise InvalidBackbone(f"{self._directory}: {name} is fp8 of all experts in one, which is not read")
            codes, scales = self.codes(name, shape)
            return FP8Block128(codes[None], scales[None], dtype).dense()[0]
        stored = self._read(name, shape, expert)
        if stored.dtype not in _STORED:
            raise InvalidBackbone(f"{self._directory}: {name} is stored as {stored.dtype}, which holds no weights")
        return stored

    def codes(self, name: str, shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Reads the codes of a matrix in fp8 and the scales of its tiles, in float32.

        Raises:
            InvalidBackbone: one of the two does not fit, or holds what stands for no number.
        """
        codes = self._read(name, shape)
        tiles = tuple(-(-side // FP8_BLOCK) for side in shape)
        scales = self._read(f"{name}{SCALE}", tiles)
        if scales.dtype not in (torch.float32, torch.bfloat16):
            raise InvalidBackbone(f"{self._directory}: {name}{SCALE} is stored as {scales.dtype}, not float32")
        if not bool(((scales >= 0) & scales.isfinite()).all()) or bool(codes.isnan().any()):
            raise InvalidBackbone(f"{self._directory}: {name} has codes that are nan, or scales that are no size")
        return codes, scales.float()

    def _read(self, name: str, shape: tuple[int, ...], expert: int | None = None) -> Tensor:
        if name not in self._file_of:
            raise InvalidBackbone(f"{self._directory}: weights do not fit config.json, first {name}")
        with safe_open(self._file_of[name], framework="pt") as file:
            whole: Tensor = file.get_tensor(name)
        found = whole.shape if expert is None else whole.shape[1:]
        if found != shape or (expert is not None and expert >= len(whole)):
            raise InvalidBackbone(f"{self._directory}: {name} is {tuple(whole.shape)}, config.json says {shape}")
        return whole if expert is None else whole[expert]


def unfilled(family: Backbone, *, banks: bool, linear: bool) -> Any:
    """A kind of model that transformers builds and loads without its routed experts, its linear layers, or both."""

    class Unfilled(family.model_class()):  # type: ignore[misc]
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            ignored: Any = self._keys_to_ignore_on_load_unexpected  # this object's own set
            for bank, module in family.banks(self).items() if banks else ():
                del module.gate_up_proj, module.down_proj
                ignored.add(rf"^{re.escape(bank)}\.")
            for name, layer in linear_layers(family, self).items() if linear else ():
                _put(self, name, QuantisedLinear.unfilled(layer))
                ignored.add(rf"^{re.escape(name)}\.weight({SCALE})?$")

    return Unfilled


def fill_linear(model: Any, stored: StoredWeights, dtype: torch.dtype, pack: Pack | None) -> None:
    """Reads and packs one linear layer after another; without `pack` they become plain ones.

    Raises:
        InvalidBackbone: a matrix is missing or does not fit.
    """
    names = stored.names_in(model)
    layers = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, QuantisedLinear)]
    for name, layer in layers:
        own, shape = names.get(f"{name}.weight", f"{name}.weight"), (layer.out_features, layer.in_features)
        matrices = _Matrices(stored, [[(own, None)]], shape, dtype)
        if pack is None:
            plain = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
            plain.weight = nn.Parameter(matrices.stacked()[0])
            if layer.bias is not None:
                plain.bias = layer.bias
            _put(model, name, plain)
        else:
            layer.fill(matrices.packed(pack))


def fill_banks(
    model: Any, family: Backbone, directory: Path, stored: StoredWeights, dtype: torch.dtype, pack: Pack | None
) -> None:
    """Reads and packs one expert after another, from whatever shard each of its matrices lies in.

    Raises:
        InvalidBackbone: a matrix is missing, does not fit, or belongs to no expert.
    """
    routed = family.experts
    if routed is None:
        return
    found = stored.matching(routed.weight)
    banks: dict[str, Any] = family.banks(model)
    for bank, module in banks.items():
        width, hidden, number = module.hidden_dim, module.intermediate_dim, module.num_experts
        place = routed.stored(bank)
        ends = routed.gate_up, (routed.down,)
        gate_up, down = ([[_stored_as(f"{place}.{end}", e) for end in each] for e in range(number)] for each in ends)
        wanted = {name for parts in (*gate_up, *down) for name, _ in parts}
        if wrong := wanted ^ {name for name in found if name.startswith(f"{place}.")}:
            raise InvalidBackbone(f"{directory}: experts do not fit config.json, first {min(wrong)}")
        rows = 2 * hidden // len(routed.gate_up)
        both = _Matrices(stored, gate_up, (rows, width), dtype)
        back = _Matrices(stored, down, (width, hidden), dtype)
        if pack is None:
            module.gate_up_proj, module.down_proj = nn.Parameter(both.stacked()), nn.Parameter(back.stacked())
        else:
            fill(module, Experts(both.packed(pack), back.packed(pack)))


def require_all_left(model: nn.Module, directory: Path, stored: StoredWeights) -> None:
    """Raises `InvalidBackbone` if transformers has read bare fp8 codes as weights, and not left them to be filled."""
    names = stored.names_in(model)
    if taken := [name for name, _ in model.named_parameters() if name in names and stored.is_fp8(names[name])]:
        raise InvalidBackbone(f"{directory}: {min(taken)} is stored in fp8, which is read of decoder layers alone")


_Place = tuple[str, int | None]  # the name of a stored tensor, and the expert if it is that of all experts


def _stored_as(name: str, expert: int) -> _Place:
    own = name.format(expert=expert)
    return (own, None) if own != name else (name, expert)


@dataclass(frozen=True, slots=True)
class _Matrices:
    """The matrices of a stack, each joined of stored ones of one shape, one below the other."""

    stored: StoredWeights
    places: Sequence[Sequence[_Place]]
    shape: tuple[int, int]
    dtype: torch.dtype

    def packed(self, pack: Pack) -> ExpertWeights:
        """The stack in a format; what is stored in fp8 stays as it is if that is the format."""
        is_fp8 = all(self.stored.is_fp8(name) and expert is None for parts in self.places for name, expert in parts)
        return self._as_stored() if is_fp8 and pack == FP8Block128.quantised else pack(self._each(), self.dtype)

    def stacked(self) -> Tensor:
        """The stack, unpacked."""
        return torch.stack([matrix.to(self.dtype) for matrix in self._each()])

    def _each(self) -> Iterator[Tensor]:
        for parts in self.places:
            read = [self.stored.matrix(name, self.shape, self.dtype, expert) for name, expert in parts]
            yield read[0] if len(read) == 1 else torch.cat(read)

    def _as_stored(self) -> FP8Block128:
        if len(self.places[0]) > 1 and self.shape[0] % FP8_BLOCK:
            raise InvalidBackbone(
                f"experts of width {self.shape[0]} in fp8 cannot be joined tile by tile: take another format"
            )
        codes, scales = [], []
        for parts in self.places:
            read = [self.stored.codes(name, self.shape) for name, _ in parts]
            codes.append(torch.cat([one for one, _ in read]))
            scales.append(torch.cat([one for _, one in read]))
        return FP8Block128(torch.stack(codes), torch.stack(scales), self.dtype)


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)
