"""States of names: how an imported model that stays as it is reads a text.

The mean of a text's states over its tokens, of the embedding and of some layers, side by side: what the tokens are, and
what the model makes of them. The model is a backbone, or a text encoder.

Legend: `R` rows (texts), `E` numbers of a text's states.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..backbones import checkpoints
from ..errors import BackboneMismatch
from ..heads import pooled
from ..records import documents
from . import text_encoders

MOST_TOKENS = 32  # of a text: it is a name, and a longer one is cut
_TOKENS = 2048  # at a time, padding included
_TEXTS = _TOKENS // MOST_TOKENS  # at a time


def layers_of(backbone: Path) -> int:
    """Counts the layers of the model that reads names.

    Raises:
        InvalidBackbone: the folder's `config.json` is broken.
    """
    if text_encoders.is_encoder(backbone):
        return text_encoders.layers_of(backbone)
    return int(checkpoints.read_config(backbone)[1]["num_hidden_layers"])


class FrozenReader:
    """Reads texts by the model of a backbone's folder.

    Args:
        backbone: an imported checkpoint, or the folder of a text encoder; see `text_encoders`.
        reads: states to read; 0 is what the embedding gives, n what layer n gives.
        expected_hash: refuse any other content; None: take what is there.

    Raises:
        BackboneMismatch: it is another backbone, or has fewer layers.
        InvalidBackbone: the folder is broken.
    """

    def __init__(self, backbone: Path, reads: Sequence[int], *, expected_hash: str | None = None) -> None:
        self.reads = tuple(reads)
        self._tokenizer = checkpoints.load_tokenizer(backbone, expected_hash=expected_hash)
        self._encoder: text_encoders.TextEncoder | None = None
        if text_encoders.is_encoder(backbone):
            self._encoder = text_encoders.TextEncoder(backbone, self._tokenizer, MOST_TOKENS)
            layers, width = self._encoder.layers, self._encoder.width
        else:
            self._model = checkpoints.load_model(backbone)
            layers, width = int(self._model.config.num_hidden_layers), int(self._model.config.hidden_size)
        if not self.reads or min(self.reads) < 0 or max(self.reads) > layers:
            raise BackboneMismatch(f"has {layers} layers; states {', '.join(map(str, self.reads))} are to be read")
        self.width = len(self.reads) * width

    @torch.no_grad()
    def states(self, texts: Sequence[str], progress: Callable[[int, int], None] = lambda done, total: None) -> Tensor:
        """float32 [R, E] of texts; of a text without a token, zeros.

        Raises:
            InvalidBackbone: a text encoder cannot read a text, or gives no finite numbers.
        """
        found = torch.zeros(len(texts), self.width)
        if not texts:
            return found
        if self._encoder is not None:
            for start in range(0, len(texts), _TEXTS):
                part = texts[start : start + _TEXTS]
                found[start : start + len(part)] = self._encoder.states(part, self.reads)
                progress(start + len(part), len(texts))
            return found
        ids_RT = torch.from_numpy(documents.encoded("{text}", texts, self._tokenizer, MOST_TOKENS))
        lengths = torch.where(ids_RT > 0, torch.arange(1, ids_RT.shape[1] + 1), 0).amax(1)
        order, start = lengths.argsort(stable=True), 0
        while start < len(order):
            ahead = lengths[order[start : start + _TOKENS]].clamp_min(1)
            count = max(1, int((ahead * torch.arange(1, len(ahead) + 1) <= _TOKENS).sum()))
            some = order[start : start + count]
            found[some] = pooled(self._model, ids_RT[some, : int(ahead[count - 1])], self.reads).float()
            start += count
            progress(start, len(order))
        return found
