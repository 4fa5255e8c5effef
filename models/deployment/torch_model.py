"""Runs a deployed model with PyTorch and transformers, from a checkpoint that has the adapter in its weights.

`Reads` is the whole of a model that a head reads, and also what is written as an ONNX graph.

Legend: `R` rows, `T` tokens, `D` model, `F` tables of a structure reader, `S` their ids, `P` states, `K` outputs.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from .description import Deployment

MODEL, HEAD, STRUCTURE = "model", "head.safetensors", "structure.safetensors"
_EMBEDDING_SCALE, _CONSTANT, _EOS = 0.05, 0.1, 1  # of pooled states, see `heads.pooling`


class Embeds(nn.Module):
    """Embeddings of words, with what their places in a structure add."""

    tables: Tensor

    def __init__(self, words: nn.Module, tables_DS: Tensor | None) -> None:
        super().__init__()
        self.words = words
        if tables_DS is None:
            self.register_buffer("tables", None)
        else:  # the last row is of words without a place
            self.register_buffer("tables", torch.cat([tables_DS.T, tables_DS.new_zeros(1, len(tables_DS))]))

    def forward(self, ids_RT: Tensor, places_RTF: Tensor | None) -> Tensor:
        """[R, T, D]."""
        words_RTD: Tensor = self.words(ids_RT)
        return words_RTD if places_RTF is None else words_RTD + self.tables[places_RTF].sum(2)


class Reads(nn.Module):
    """A head on the pooled states of records or documents, all in one."""

    center: Tensor
    whiten: Tensor
    weight: Tensor

    def __init__(self, model: Any, head: Mapping[str, Tensor], tables_DS: Tensor | None = None) -> None:
        """Takes a causal language model, an exported head (center, whiten, weight, reads) and tables of structure."""
        super().__init__()
        self.decoder, self.embeds = model.model, Embeds(model.get_input_embeddings(), tables_DS)
        self.reads = None if "reads" not in head else tuple(int(number) for number in head["reads"].tolist())
        for name in ("center", "whiten", "weight"):
            self.register_buffer(name, head[name])

    def forward(self, ids_RT: Tensor, places_RTF: Tensor | None = None) -> Tensor:
        """[R] or [R, K] outputs of token ids that are padded on the right with 0."""
        is_token_RT = (ids_RT > 0).flip(1).cumsum(1).flip(1) > 0
        embedded_RTD = self.embeds(ids_RT, places_RTF)
        # No mask: what is padded stands behind the tokens, which see nothing of it.
        told = self.decoder(inputs_embeds=embedded_RTD, use_cache=False, output_hidden_states=self.reads is not None)
        if self.reads is None:
            states, is_read_RT = (
                [embedded_RTD / _EMBEDDING_SCALE, told.last_hidden_state],
                _last_visit(ids_RT, is_token_RT),
            )
        else:
            states, is_read_RT = (
                [told.hidden_states[read] if read else embedded_RTD for read in self.reads],
                is_token_RT,
            )
        tokens_R1 = is_read_RT.sum(1, keepdim=True).clamp_min(1)
        means = [state.masked_fill(~is_read_RT[..., None], 0).sum(1) / tokens_R1 for state in states]
        return self._inputs(means) @ (self.weight if self.weight.ndim == 1 else self.weight.mT)

    def _inputs(self, means: list[Tensor]) -> Tensor:
        """What a head multiplies, of unit length: whitened states and a constant."""
        if self.center.ndim == 1:
            white = (torch.cat(means, 1) - self.center) @ self.whiten
            constant = len(self.center) ** 0.5 / 2
        else:
            parts = zip(means, self.center, self.whiten, strict=True)
            white = torch.cat(
                [nn.functional.normalize((mean - center) @ whiten, dim=1) for mean, center, whiten in parts], 1
            )
            constant = _CONSTANT * len(means) ** 0.5
        return nn.functional.normalize(torch.cat([white, torch.full_like(white[:, :1], constant)], 1), dim=1)


class TorchModel:
    """A checkpoint with the adapter in its weights, its head and its tables, in float32 on the processor."""

    def __init__(self, folder: Path, deployment: Deployment, threads: int | None) -> None:
        from safetensors.torch import load_file
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging

        telling: Any = logging
        telling.disable_progress_bar()
        if threads is not None:
            torch.set_num_threads(threads)
        self._model: Any = AutoModelForCausalLM.from_pretrained(
            folder / MODEL,
            dtype=torch.float32,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            use_kernels=False,
        )
        self._model.train(False)
        if hasattr(self._model, "set_experts_implementation"):
            self._model.set_experts_implementation("eager")
        if deployment.segments is not None:
            from .segments import read_in_segments

            read_in_segments(self._model, *deployment.segments)
        tables = load_file(folder / STRUCTURE)["weight"] if deployment.structure is not None else None
        self._embeds = Embeds(self._model.get_input_embeddings(), tables)
        self._reads = Reads(self._model, load_file(folder / HEAD), tables) if deployment.request.answers else None

    @torch.inference_mode()
    def outputs(self, ids_RT: npt.NDArray[np.int64], places_RTF: npt.NDArray[np.int64] | None) -> Any:
        """Returns what the head gives, [R] or [R, K], of token ids that are padded on the right with 0."""
        assert self._reads is not None
        return self._reads(torch.from_numpy(ids_RT), _tensor(places_RTF)).numpy()

    @torch.inference_mode()
    def next(
        self,
        ids_RT: npt.NDArray[np.int64],
        places_RTF: npt.NDArray[np.int64] | None,
        cache: Any,
        carried_RNB: npt.NDArray[np.uint8] | None = None,
    ) -> tuple[npt.NDArray[np.float32], Any]:
        """Reads some more tokens, before which no picture stands; see `writing.Steps`."""
        assert carried_RNB is None
        embedded_RTD = self._embeds(torch.from_numpy(ids_RT), _tensor(places_RTF))
        told = self._model.model(inputs_embeds=embedded_RTD, cache=cache, use_cache=True)
        divisor = getattr(self._model.config, "logits_scaling", 1)  # Granite's, outside its output matrix
        logits: npt.NDArray[np.float32] = (self._model.lm_head(told.last_hidden_state[:, -1]) / divisor).numpy()
        return logits, told.cache


def _tensor(places_RTF: npt.NDArray[np.int64] | None) -> Tensor | None:
    return None if places_RTF is None else torch.from_numpy(places_RTF)


def _last_visit(ids_RT: Tensor, is_token_RT: Tensor) -> Tensor:
    """bool [R, T], tokens behind the last word that ends a visit and that another follows; all if there is none."""
    is_last_RT = is_token_RT & ~nn.functional.pad(is_token_RT[:, 1:], (0, 1))
    ends_RT = (ids_RT == _EOS) & is_token_RT & ~is_last_RT
    return is_token_RT & (ends_RT.flip(1).cumsum(1).flip(1) == 0)
