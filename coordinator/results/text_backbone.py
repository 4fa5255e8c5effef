"""Builds a small backbone that reads text from public records of a study's own kind."""

from collections.abc import Callable
from pathlib import Path

from ...client_node.data import read
from ...client_node.study import StudyDraft
from ...client_node.study.cost import provisional
from ...models.backbones import text_pretraining
from ...models.backbones.family import BackboneConfig
from ...privacy.mechanism.batches import used_tokens
from ..errors import StudyRefused
from .export import held_out_policy


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
        InvalidPretraining: nothing can be learned from the table.
    """
    kind, terms = draft.data.kind, draft.data.terms
    if not kind.makes_vocabulary:
        raise StudyRefused(
            f"a backbone of public records can be built for [data.formulas] and [data.code]; records of kind "
            f"{kind.name} are read by an imported checkpoint, or by one built on synthetic records without --public"
        )
    text_pretraining.require_reader(structure)
    study = provisional(draft, dim=1)  # for its columns alone
    records = read(held_out_policy(public, study, unit_column or f"{draft.data.unit}_id"), study, site=None)
    tokenizer = kind.vocabulary(terms, records.columns)
    reader = kind.reader(terms, tokenizer, max_tokens=draft.data.max_tokens)
    ids, is_learned = reader.examples(records.columns, records.labels)
    lengths = used_tokens(ids, is_learned)
    rows = [
        (row[:length].tolist(), mask[:length].tolist())
        for row, mask, length in zip(ids, is_learned, lengths, strict=True)
    ]
    return text_pretraining.pretrain_text(
        rows, tokenizer, directory, structure=structure, backbone=backbone, config=config, progress=progress
    )
