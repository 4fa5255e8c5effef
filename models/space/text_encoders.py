"""Reads a text encoder, a BERT (arXiv:1810.04805) or an XLM-RoBERTa (arXiv:1911.02116), from a checkpoint's folder.

Such encoders are no backbone, as they write nothing; but some, such as multilingual E5 (arXiv:2402.05672), bring names
of many languages together, which no small model that writes one language does. Of `config.json` nothing is used but
sizes, and weights are read by safetensors alone. Legend: `R` rows, `T` tokens, `D` width.
"""

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
_BEFORE = ("bert.", "roberta.")  # a name in a checkpoint that has a head as well


class _Sizes(BaseModel):
    """What is read of `config.json`; the rest is passed over, or refused where it would compute something else."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")
    vocab_size: int = Field(ge=1, le=2_000_000)
    hidden_size: int = Field(ge=1, le=8192)
    num_hidden_layers: int = Field(ge=1, le=200)
    num_attention_heads: int = Field(ge=1, le=256)
    intermediate_size: int = Field(ge=1, le=65_536)
    max_position_embeddings: int = Field(default=512, ge=34, le=100_000)
    type_vocab_size: int = Field(default=2, ge=1, le=1000)
    layer_norm_eps: float = Field(default=1e-12, gt=0, le=1e-2)
    pad_token_id: int = Field(default=0, ge=0)
    hidden_act: str = Field(default="gelu", pattern="^gelu$")
    position_embedding_type: str = Field(default="absolute", pattern="^absolute$")


def is_encoder(directory: Path) -> bool:
    """Returns True if the folder's `config.json` names one of these encoders.

    Raises:
        InvalidBackbone: the file is missing or broken.
    """
    try:
        return checkpoints.read_json(directory / checkpoints.CONFIG).get("model_type") in _KINDS
    except OSError as err:
        raise InvalidBackbone(f"{directory / checkpoints.CONFIG} cannot be read ({err.strerror})") from None


def read_encoder(directory: Path) -> PreTrainedModel:
    """Reads an encoder in float32, frozen and in evaluation mode.

    Raises:
        InvalidBackbone: a setting is none of such an encoder, or weights are missing or do not fit.
    """
    (settings, kind), sizes = _read_config(directory)
    with torch.device("meta"):
        model: PreTrainedModel = kind(settings(**sizes.model_dump()), add_pooling_layer=False)
    wanted = {name: weight.shape for name, weight in model.named_parameters()}
    found: dict[str, Tensor] = {}
    try:
        for path in checkpoints.weight_files(directory):
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 - no mapping
                    own = _own(name)
                    if own in wanted and tuple(file.get_slice(name).get_shape()) == wanted[own]:
                        found[own] = file.get_tensor(name).float()
    except (OSError, SafetensorError) as err:
        raise checkpoints.as_invalid(directory, err) from err
    if absent := sorted(wanted.keys() - found):
        raise InvalidBackbone(f"{directory}: no weights of the right form for {absent[0]}")
    if not all(bool(weight.isfinite().all()) for weight in found.values()):
        raise InvalidBackbone(f"{directory}: weights that are no finite numbers")
    whole: PreTrainedModel = kind(settings(**sizes.model_dump()), add_pooling_layer=False)
    whole.load_state_dict(found, strict=False, assign=True)  # but for buffers, such as the numbers of positions
    whole.train(False)
    return whole.requires_grad_(False)


def layers_of(directory: Path) -> int:
    """Layers of an encoder.

    Raises:
        InvalidBackbone: a setting is none of such an encoder.
    """
    return _read_config(directory)[1].num_hidden_layers


@torch.no_grad()
def encoded(model: PreTrainedModel, tokenizer: Any, texts: list[str], reads: tuple[int, ...], longest: int) -> Tensor:
    """[R, len(reads) D]: means of a text's states over its tokens, side by side; 0 of a text without tokens.

    Args:
        reads: states to read; 0 is what the embedding gives, n what layer n gives.
        longest: tokens of a text, the two at its ends included; what is longer is cut.
    """
    rows = tokenizer(texts, truncation=True, max_length=longest)["input_ids"]
    pad, width = model.config.pad_token_id, max(map(len, rows))
    ids_RT = torch.tensor([[*row, *[pad] * (width - len(row))] for row in rows])
    is_token_RT1 = torch.tensor([[place < len(row) for place in range(width)] for row in rows])[..., None]
    states = model(ids_RT, attention_mask=is_token_RT1[..., 0].long(), output_hidden_states=True).hidden_states
    side_by_side = torch.cat([states[read] for read in reads], -1).masked_fill(~is_token_RT1, 0)
    has_own_R1 = torch.tensor([len(row) > 2 for row in rows])[:, None]
    mean: Tensor = side_by_side.sum(1) / is_token_RT1.sum(1)
    return mean.masked_fill(~has_own_R1, 0)


def _read_config(directory: Path) -> tuple[tuple[Any, Any], _Sizes]:
    """Reads the classes and the sizes that `config.json` states."""
    stated = checkpoints.read_json(directory / checkpoints.CONFIG)
    try:
        sizes = _Sizes.model_validate(stated)
    except ValidationError as err:
        wrong = err.errors()[0]
        raise InvalidBackbone(f"{directory}: config.json has a {wrong['loc'][0]} that does not fit") from None
    if sizes.hidden_size % sizes.num_attention_heads or sizes.pad_token_id >= sizes.vocab_size:
        raise InvalidBackbone(f"{directory}: config.json states sizes that do not fit each other")
    return _KINDS[stated["model_type"]], sizes


def _own(name: str) -> str:
    for before in _BEFORE:
        name = name.removeprefix(before)
    return name
