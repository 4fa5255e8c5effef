"""Reads public records of a study's own kind, and builds a small backbone that reads text from them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ...client_node.data import Records, read
from ...client_node.study import StudyDraft
from ...client_node.study.cost import provisional
from ...models.backbones import checkpoints, text_pretraining
from ...models.backbones.family import BackboneConfig
from ...models.backbones.moments import read_texts
from ...models.backbones.text_pretraining import Row
from ...models.records import documents
from ...privacy.mechanism.batches import used_tokens
from ..errors import StudyRefused
from .held_out import held_out_policy


def build_text_backbone(
    draft: StudyDraft,
    public: Path,
    directory: Path,
    *,
    unit_column: str | None = None,
    structure: str | None = None,
    backbone: BackboneConfig | None = None,
    config: text_pretraining.TextPretrainingConfig | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> str:
    """Trains a backbone from nothing on a table of public records, and returns its hash.

    Args:
        public: a table with the study's columns; its records must be public or synthetic.
        directory: must not exist.
        unit_column: of the table; by default the study's unit and `_id`.
        structure: name of the structure reader whose tables lie beside the backbone; None: none.

    Raises:
        DataInvalid: a cell does not fit.
        StudyRefused: the study's records are read by a schema, or by a published tokenizer.
        InvalidPicture, InvalidSound: a file that the table names cannot be decoded.
        InvalidPretraining: nothing can be learned from the table.
    """
    kind, terms = draft.data.kind, draft.data.terms
    if not kind.makes_vocabulary:
        raise StudyRefused(
            "a backbone of public records can be built for [data.formulas], [data.code], [data.picture] and "
            f"[data.sound]; records of kind {kind.name} are read by an imported checkpoint, or by one built on "
            "synthetic records without --public"
        )
    text_pretraining.require_reader(structure)
    records = _records(draft, public, unit_column)
    tokenizer = kind.vocabulary(terms, records.columns)
    return text_pretraining.pretrain_text(
        _rows(draft, records, tokenizer), tokenizer, directory, structure=structure,
        lessons=kind.lessons(terms, records.columns), backbone=backbone, config=config, progress=progress,
    )  # fmt: skip


def public_rows(draft: StudyDraft, public: Path, backbone: Path, *, unit_column: str | None = None) -> list[Row]:
    """Reads public records as a backbone's tokens, with what a study of them would learn.

    Args:
        public: a table with the study's columns; its records must be public or synthetic.
        backbone: a folder of one that reads text.
        unit_column: of the table; by default the study's unit and `_id`.

    Raises:
        DataInvalid: a cell does not fit.
        StudyRefused: the study's records are not written by a model.
        BackboneMismatch, InvalidBackbone: the backbone does not read such records, or its tokenizer is broken.
    """
    kind = draft.data.kind
    if kind.head != "lm":
        raise StudyRefused(f"records of kind {kind.name} are read by a head; public ones teach a model that writes")
    return _rows(draft, _records(draft, public, unit_column), checkpoints.load_tokenizer(backbone))


def plain_rows(texts: Path, backbone: Path, *, max_tokens: int) -> list[Row]:
    """Reads public texts, one a line, as a backbone's tokens, all of which are learned.

    Args:
        max_tokens: longer texts are cut, as are those that the model does not read to their end.

    Raises:
        InvalidBackbone: the file cannot be read, or the backbone's tokenizer is broken.
    """
    tokenizer, (_, config) = checkpoints.load_tokenizer(backbone), checkpoints.read_config(backbone)
    longest = min(max_tokens, int(config.get("max_position_embeddings", max_tokens)))
    ids = documents.encoded("{text}", read_texts(texts), tokenizer, longest)
    lengths = (np.where(ids > 0, np.arange(1, ids.shape[1] + 1), 0)).max(axis=1, initial=0)
    return [(row[:length].tolist(), [True] * int(length)) for row, length in zip(ids, lengths, strict=True)]


def _records(draft: StudyDraft, public: Path, unit_column: str | None) -> Records:
    study = provisional(draft, dim=1)  # for its columns alone
    return read(held_out_policy(public, study, unit_column or f"{draft.data.unit}_id"), study, site=None)


def _rows(draft: StudyDraft, records: Records, tokenizer: Any) -> list[Row]:
    reader = draft.data.kind.reader(draft.data.terms, tokenizer, max_tokens=draft.data.max_tokens)
    ids, is_learned = reader.examples(records.columns, records.labels)
    lengths = used_tokens(ids, is_learned)
    return [
        (row[:length] if ids.ndim == 3 else row[:length].tolist(), mask[:length].tolist())
        for row, mask, length in zip(ids, is_learned, lengths, strict=True)
    ]
