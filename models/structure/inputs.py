"""Joins a structure reader to a model: what it says of a token is added to the embedding of the token's word.

The tables of a reader lie side by side as one linear layer without bias, `model.structure`, whose input has a one for
each id and zeros else. So an adapter finds a layer as any other, and clipping by unit holds through it. Where there is
no adapter, the same sums are read column by column, which is many times faster.

A forward pass of the decoder from token ids sees the whole text and is joined by itself. Whoever makes embeddings of
their own, or writes word by word on a cache, calls `embedded`.

Legend: `R` rows (records), `T` tokens, `D` model width, `F` tables, `S` ids of all tables together.
"""

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..errors import InvalidBackbone
from .readers import READERS, STRUCTURE, TARGET, Prefix, StructureReader

Prefixes = list[Prefix]  # texts that are being written, one a row; empty at their beginning
_KEPT = 2**22  # tokens whose ids are kept, two bytes each, some 100 MiB of code: records come again in later rounds


class StructureIds:
    """Says where the tokens of a text stand, by a reader and the vocabulary's words."""

    def __init__(self, reader: StructureReader, words: Sequence[str]) -> None:
        """Takes the text of every token id; control words have none."""
        self.reader, self._words = reader, tuple(words)
        self._starts = np.cumsum([0, *reader.sizes.values()])[:-1]
        self._kept: dict[bytes, npt.NDArray[np.int16]] = {}
        self._tokens_kept = 0

    @property
    def total(self) -> int:
        """S, the number of ids of all tables together."""
        return sum(self.reader.sizes.values())

    def of(self, ids_RT: Tensor) -> Tensor:
        """Places [R, T, F] of token ids among all ids; S where a token has no text."""
        rows = [np.trim_zeros(row, "b").astype(np.int32).tobytes() for row in _on_host(ids_RT)]
        return self._places(ids_RT, [self._of_row(row) for row in rows])

    def next(self, ids_RT: Tensor, prefixes: "Prefixes") -> Tensor:
        """The same of the next words of texts, which grow by them."""
        if not prefixes:
            prefixes += [self.reader.begin() for _ in range(len(ids_RT))]
        rows = zip(prefixes, _on_host(ids_RT), strict=True)
        return self._places(ids_RT, [self._fed(prefix, row.tolist()) for prefix, row in rows])

    def _places(self, ids_RT: Tensor, rows: Sequence[npt.NDArray[np.int16]]) -> Tensor:
        places_RTF = np.full((*ids_RT.shape, len(self._starts)), self.total, dtype=np.int64)  # S: padding, too
        for places_TF, row in zip(places_RTF, rows, strict=True):
            places_TF[: len(row)] = row
        return torch.from_numpy(places_RTF).to(ids_RT.device)

    def _of_row(self, row: bytes) -> npt.NDArray[np.int16]:
        found = self._kept.get(row)
        if found is None:
            found = self._fed(self.reader.begin(), np.frombuffer(row, dtype=np.int32).tolist())
            if self._tokens_kept + len(found) > _KEPT:
                self._kept, self._tokens_kept = {}, 0
            self._kept[row] = found
            self._tokens_kept += len(found)
        return found

    def _fed(self, prefix: Prefix, tokens: Sequence[int]) -> npt.NDArray[np.int16]:
        nowhere, places = np.full(len(self._starts), self.total), []
        for token in tokens:
            word = self._words[token] if token < len(self._words) else ""  # a table may have more rows than words
            places.append(self._starts + prefix.feed(word) if word else nowhere)
        return np.array(places, dtype=np.int16).reshape(-1, len(self._starts))

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies reader and words; texts that were read stay where they were read."""
        return StructureIds, (self.reader, self._words)


def join(model: Any, reader: StructureReader, words: Sequence[str], weight: Tensor | None = None) -> nn.Linear:
    """Adds tables of a reader to a causal language model; returns them, as a layer [D, S].

    Args:
        words: text of each token id, see `words_of`.
        weight: [D, S]; None starts with small random numbers from torch's global generator.

    Raises:
        InvalidBackbone: the model is joined already, or the weight does not fit.
    """
    decoder, table = model.model, model.get_input_embeddings().weight
    if is_joined(model):
        raise InvalidBackbone("the model has structure tables already")
    ids = StructureIds(reader, words)
    layer = nn.Linear(ids.total, table.shape[1], bias=False, device=table.device, dtype=table.dtype)
    if weight is not None and weight.shape != layer.weight.shape:
        raise InvalidBackbone(
            f"structure tables are {tuple(weight.shape)}, reader {reader.name} and the model need "
            f"{tuple(layer.weight.shape)}"
        )
    with torch.no_grad():
        layer.weight.normal_(std=model.config.initializer_range) if weight is None else layer.weight.copy_(weight)
    decoder.structure, decoder.structure_ids = layer, ids
    decoder.register_forward_pre_hook(_embed_first, with_kwargs=True)
    return layer


def embedded(model: Any, ids_RT: Tensor, prefixes: "Prefixes | None" = None) -> Tensor:
    """[R, T, D], embeddings of the words of texts, with what their structure adds if the model is joined.

    Args:
        ids_RT: of whole texts; with `prefixes`, of what comes next in them.
        prefixes: texts that are being written, which grow by these words.
    """
    words_RTD: Tensor = model.get_input_embeddings()(ids_RT)
    if not is_joined(model):
        return words_RTD
    decoder = getattr(model, "model", model)
    ids = decoder.structure_ids
    places_RTF = ids.of(ids_RT) if prefixes is None else ids.next(ids_RT, prefixes)
    return words_RTD + _sums(decoder.structure, places_RTF, ids.total, words_RTD.dtype)


def is_joined(model: Any) -> bool:
    """True if a causal language model, or its decoder, has structure tables."""
    return hasattr(getattr(model, "model", model), TARGET)


def words_of(tokenizer: Any) -> tuple[str, ...]:
    """Lists the text of every token id of a transformers tokenizer in Rust; "" for control words."""
    core = tokenizer.backend_tokenizer
    count = 1 + max(core.get_vocab(with_added_tokens=True).values())
    return tuple(core.decode([token], skip_special_tokens=True) for token in range(count))


def save(model: Any, directory: Path) -> None:
    """Writes the tables of a joined model beside its weights."""
    decoder = model.model
    weight = {"weight": decoder.structure.weight.detach().float().contiguous()}
    save_file(weight, Path(directory) / STRUCTURE, metadata={"reader": decoder.structure_ids.reader.name})


def load(directory: Path, model: Any, tokenizer: Any) -> None:
    """Joins a model to the tables that lie beside its weights; does nothing if there are none.

    Raises:
        InvalidBackbone: they are broken, of a reader that is not known, or do not fit the model.
    """
    path = Path(directory) / STRUCTURE
    if not path.exists():
        return
    try:
        with safe_open(path, framework="pt") as file:
            name = (file.metadata() or {}).get("reader", "")
            if name not in READERS or [*file.keys()] != ["weight"]:
                raise InvalidBackbone(f"{path}: no tables of a reader that is known ({', '.join(READERS)})")
            weight = file.get_tensor("weight")
    except (OSError, SafetensorError) as err:
        raise InvalidBackbone(f"{path}: cannot be read ({str(err)[:100]})") from err
    if weight.dtype != torch.float32 or not bool(torch.isfinite(weight).all()):
        raise InvalidBackbone(f"{path}: tables are not finite, or no float32")
    try:
        join(model, READERS[name], words_of(tokenizer), weight).requires_grad_(False)
    except InvalidBackbone as err:
        raise InvalidBackbone(f"{path}: {err}") from None


def _sums(layer: nn.Module, places_RTF: Tensor, total: int, dtype: torch.dtype) -> Tensor:
    """[R, T, D], the sums of a layer's columns at places; nothing is added where a place is `total`."""
    if type(layer) is nn.Linear:  # whose columns can be read: nearly all that it would multiply are zeros
        table_SD = torch.cat([layer.weight.T, layer.weight.new_zeros(1, layer.out_features)])
        sums_ND = torch.nn.functional.embedding_bag(places_RTF.flatten(0, 1), table_SD, mode="sum")
        return sums_ND.view(*places_RTF.shape[:2], -1)
    ones_RTS = torch.zeros(*places_RTF.shape[:2], total + 1, device=places_RTF.device)
    added: Tensor = layer(ones_RTS.scatter_(2, places_RTF, 1.0)[..., :total].to(dtype))
    return added


def _on_host(ids_RT: Tensor) -> npt.NDArray[np.int64]:
    rows: npt.NDArray[np.int64] = ids_RT.detach().cpu().to(torch.int64).numpy()
    return rows


def _embed_first(decoder: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Embeds the ids of a forward pass with their structure, before the decoder does it without."""
    kwargs = dict(zip(inspect.signature(decoder.forward).parameters, args, strict=False)) | kwargs
    ids_RT = kwargs.get("input_ids")
    if ids_RT is None:
        return (), kwargs
    cache = kwargs.get("cache") or kwargs.get("past_key_values")
    if cache is not None and cache.get_seq_length():
        raise InvalidBackbone("ids behind a cache are half a text, whose structure nobody knows: pass `embedded`")
    return (), kwargs | {"input_ids": None, "inputs_embeds": embedded(decoder, ids_RT)}
