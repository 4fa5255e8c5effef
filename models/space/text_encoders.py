"""Reads a text encoder, a BERT (arXiv:1810.04805) or an XLM-RoBERTa (arXiv:1911.02116), from a checkpoint's folder.

Such an encoder is no backbone, as it writes nothing. Some, such as multilingual E5 (arXiv:2402.05672), bring names of
many languages together. Of `config.json` nothing but sizes is used, and weights are read by safetensors alone.

Legend: `R` rows, `T` tokens, `D` width.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import BertConfig, BertModel, PreTrainedModel, XLMRobertaConfig, XLMRobertaModel

from ..backbones import checkpoints
from ..errors import InvalidBackbone

_KINDS: dict[str, tuple[Any, Any]] = {
    "bert": (BertConfig, BertModel),
    "xlm-roberta": (XLMRobertaConfig, XLMRobertaModel),
}
_PADS = {"bert": 0, "xlm-roberta": 1}  # where `config.json` says nothing
_HEADED = re.compile(r"^(bert|roberta)\.")  # begins a name in a checkpoint that has a head as well
_OLD = {".gamma": ".weight", ".beta": ".bias"}  # of norms, in the first checkpoints of BERT
_TYPES = ("F32", "F16", "BF16")


class _Sizes(BaseModel):
    """What is read of `config.json`; the rest is passed over, or refused where it would compute something else."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")
    vocab_size: int = Field(ge=1, le=2_000_000)
    hidden_size: int = Field(ge=1, le=8192)
    num_hidden_layers: int = Field(ge=1, le=200)
    num_attention_heads: int = Field(ge=1, le=256)
    intermediate_size: int = Field(ge=1, le=65_536)
    max_position_embeddings: int = Field(default=512, ge=1, le=100_000)
    type_vocab_size: int = Field(default=2, ge=1, le=1000)
    layer_norm_eps: float = Field(default=1e-12, gt=0, le=1e-2)
    pad_token_id: int = Field(ge=0)
    hidden_act: str = Field(default="gelu", pattern="^gelu$")
    position_embedding_type: str = Field(default="absolute", pattern="^absolute$")


def is_encoder(directory: Path) -> bool:
    """Returns True if the folder's `config.json` names one of these encoders.

    Raises:
        InvalidBackbone: the file is missing or broken.
    """
    return _kind(_stated(directory)) in _KINDS


def layers_of(directory: Path) -> int:
    """Counts the layers of an encoder.

    Raises:
        InvalidBackbone: a setting is none of such an encoder.
    """
    return _read_config(directory)[1].num_hidden_layers


class TextEncoder:
    """An encoder in float32, which stays as it is, and its tokenizer.

    Args:
        directory: its checkpoint; the caller has checked which files lie in it.
        tokenizer: of the same checkpoint.
        longest: tokens of a text, those at its two ends included; what is longer is cut.

    Raises:
        InvalidBackbone: a setting is none of such an encoder, weights are missing or do not fit, or the tokenizer does
            not fit the encoder.
    """

    def __init__(self, directory: Path, tokenizer: Any, longest: int) -> None:
        kind, sizes = _read_config(directory)
        positions = sizes.max_position_embeddings - (sizes.pad_token_id + 1 if kind == "xlm-roberta" else 0)
        if positions < longest:
            raise InvalidBackbone(f"{directory}: has {positions} positions; {longest} are needed")
        self._directory, self._longest, self._pad = directory, longest, sizes.pad_token_id
        self.layers, self.width = sizes.num_hidden_layers, sizes.hidden_size
        self._tokenizer: Any = tokenizer.backend_tokenizer
        try:
            self._ends = self._tokenizer.encode("").ids
            self._tokenizer.no_padding()
            self._tokenizer.no_truncation()
            words = 1 + max(self._tokenizer.get_vocab(with_added_tokens=True).values())
        except Exception as err:  # the Rust library raises bare ones
            raise checkpoints.as_invalid(directory, err) from err
        if len(self._ends) != 2:
            raise InvalidBackbone(f"{directory}: the tokenizer adds no two tokens to a text, one at each end")
        if words > sizes.vocab_size:
            raise InvalidBackbone(f"{directory}: the tokenizer knows {words} tokens, the encoder {sizes.vocab_size}")
        self._model = _read_model(directory, kind, sizes)

    @torch.no_grad()
    def states(self, texts: Sequence[str], reads: Sequence[int]) -> Tensor:
        """float32 [R, len(reads) D]: means of texts' states over their tokens, side by side; 0 of one without tokens.

        Args:
            texts: at least one.
            reads: states to read; 0 is what the embedding gives, n what layer n gives.

        Raises:
            InvalidBackbone: a text cannot be read, or states are no finite numbers.
        """
        try:
            read = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        except Exception as err:  # the Rust library raises bare ones, of a tokenizer without an unknown word
            raise checkpoints.as_invalid(self._directory, err) from err
        begin, end = self._ends
        control = {begin, end, self._pad}  # a text that says </s> ends nothing, and says nothing by it
        own = [[word for word in each.ids if word not in control][: self._longest - 2] for each in read]
        width = 2 + max(map(len, own))
        ids_RT = torch.tensor([[begin, *ids, end, *[self._pad] * (width - 2 - len(ids))] for ids in own])
        lengths_R = torch.tensor([2 + len(ids) for ids in own])
        is_token_RT = torch.arange(width) < lengths_R[:, None]
        states = self._model(ids_RT, attention_mask=is_token_RT.long(), output_hidden_states=True).hidden_states
        side_by_side = torch.cat([states[read] for read in reads], -1).masked_fill(~is_token_RT[..., None], 0)
        mean: Tensor = side_by_side.sum(1) / lengths_R[:, None]
        if not bool(mean.isfinite().all()):
            raise InvalidBackbone(f"{self._directory}: gives states that are no finite numbers")
        return mean.masked_fill(lengths_R[:, None] == 2, 0)


def _stated(directory: Path) -> dict[str, Any]:
    try:
        return checkpoints.read_json(directory / checkpoints.CONFIG)
    except OSError as err:
        raise InvalidBackbone(f"{directory / checkpoints.CONFIG} cannot be read ({err.strerror})") from None


def _kind(stated: dict[str, Any]) -> str:
    return str(stated.get("model_type"))


def _read_config(directory: Path) -> tuple[str, _Sizes]:
    """Reads the kind and the sizes that `config.json` states."""
    stated = _stated(directory)
    kind = _kind(stated)
    if kind not in _KINDS:
        raise InvalidBackbone(f"{directory}: config.json names none of {', '.join(_KINDS)}")
    try:
        sizes = _Sizes.model_validate({"pad_token_id": _PADS[kind]} | stated)
    except ValidationError as err:
        wrong = err.errors()[0]
        raise InvalidBackbone(f"{directory}: config.json has a {wrong['loc'][0]} that does not fit") from None
    if sizes.hidden_size % sizes.num_attention_heads or sizes.pad_token_id >= sizes.vocab_size:
        raise InvalidBackbone(f"{directory}: config.json states sizes that do not fit each other")
    return kind, sizes


def _read_model(directory: Path, kind: str, sizes: _Sizes) -> PreTrainedModel:
    """Reads the weights; nothing is allocated before their sizes are known to fit."""
    settings, kind_of_model = _KINDS[kind]
    with torch.device("meta"):
        model: PreTrainedModel = kind_of_model(settings(**sizes.model_dump()), add_pooling_layer=False)
    wanted = {name: weight.shape for name, weight in model.named_parameters()}
    found: dict[str, Tensor] = {}
    try:
        for path in checkpoints.weight_files(directory):
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 - no mapping
                    own, part = _own(name), file.get_slice(name)
                    if own in found:
                        raise InvalidBackbone(f"{directory}: has weights of {own} twice")
                    if own in wanted and tuple(part.get_shape()) == wanted[own] and part.get_dtype() in _TYPES:
                        found[own] = file.get_tensor(name).float()
    except (OSError, SafetensorError) as err:
        raise checkpoints.as_invalid(directory, err) from err
    if absent := sorted(wanted.keys() - found):
        raise InvalidBackbone(f"{directory}: no weights of the right form for {absent[0]}")
    if not all(bool(weight.isfinite().all()) for weight in found.values()):
        raise InvalidBackbone(f"{directory}: weights that are no finite numbers")
    model.load_state_dict(found, strict=False, assign=True)
    embeddings: Any = model.get_submodule("embeddings")  # its two buffers are no weights, and still without numbers
    embeddings.position_ids = torch.arange(sizes.max_position_embeddings)[None]
    embeddings.token_type_ids = torch.zeros(1, sizes.max_position_embeddings, dtype=torch.long)
    model.train(False)
    return model.requires_grad_(False)


def _own(name: str) -> str:
    """Name of a weight as transformers has it today."""
    name = _HEADED.sub("", name)
    for old, new in _OLD.items():
        if name.endswith(old):
            return name.removesuffix(old) + new
    return name
