"""Public tokens to measure a backbone's routing on: synthetic records of its schema, or a text."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..records import RecordSchema
from . import checkpoints
from .pretraining import MixedRecords

_LICENCES = ("LICENSE.md", "LICENSE", "LICENSE.txt")  # one comes with most published models
_ROW = 256  # tokens in one row of text
_RECORDS = 64  # records in one batch

Batch = tuple[Tensor, Tensor]  # ids int64 [rows, length], and bool, true where there is a token


def licence_of(directory: Path) -> Path | None:
    """Finds the licence that lies beside the weights of an imported backbone."""
    return next((directory / name for name in _LICENCES if (directory / name).exists()), None)


def of_records(schema: RecordSchema, tokens: int, *, parts: Sequence[RecordSchema] = ()) -> Iterator[Batch]:
    """Draws synthetic records of `tokens` words or a few more, as in pretraining; equal for equal schemas.

    Args:
        parts: of `schema`, each what one study reads of it: every record is of one of them. None: it has all fields.
    """
    source, read = MixedRecords(parts or (schema,), schema, questions=1, seed=0), 0
    while read < tokens:
        ids, _ = source.batch(_RECORDS)
        read += int((ids > 0).sum())
        yield ids, ids > 0


def of_text(directory: Path, text: str, tokens: int, *, expected_hash: str | None = None) -> Iterator[Batch]:
    """Cuts the first `tokens` tokens of a text, as the checkpoint in `directory` reads it, into rows."""
    tokenizer = checkpoints.load_tokenizer(directory, expected_hash=expected_hash)
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"][:tokens]
    for row in torch.split(torch.tensor(ids, dtype=torch.int64), _ROW) if ids else ():
        yield row[None], torch.ones(1, len(row), dtype=torch.bool)
