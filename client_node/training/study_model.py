"""A study's model: backbone, adapters and head, and how its records become what the model reads."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ...models.adapters import AdaptedModel, AdapterConfig, attach
from ...models.backbones import loading
from ...models.backbones.checkpoints import ExpertFormat
from ...models.errors import BackboneMismatch
from ...models.heads import PooledHead
from ...models.records import PromptEncoder, RecordSchema
from ..data import Records
from ..study import StudyDraft


@dataclass(frozen=True, slots=True)
class Examples:
    """Records as a model reads them. Nothing of them shows in its repr."""

    ids: npt.NDArray[np.int64] = field(repr=False)  # [rows, longest record], padded on the right with 0
    targets: npt.NDArray[np.generic] = field(repr=False)  # [rows] or [rows, longest], for `AdaptedModel.losses`
    units: npt.NDArray[np.int64] = field(repr=False)  # [rows], whose record it is


@dataclass(frozen=True, slots=True)
class StudyModel:
    """What a study adapts, with its adapters as they start."""

    adapted: AdaptedModel
    reader: RecordSchema | PromptEncoder
    words: int  # size of the vocabulary
    backbone_hash: str

    def examples(self, records: Records) -> Examples:
        """The records as token ids, with what is learned of each."""
        if isinstance(self.reader, PromptEncoder):
            return Examples(*self.reader.encode(records.columns), records.units)
        assert records.labels is not None
        return Examples(records.tokens(self.reader), records.labels, records.units)


def load_study_model(
    draft: StudyDraft, directory: Path, *, expected_hash: str | None = None, experts: ExpertFormat | None = None
) -> StudyModel:
    """The model of a study from the folder of its backbone.

    Args:
        experts: format of the routed experts; None for the study's.

    Raises:
        BackboneMismatch: the content is not the expected one, or the backbone does not read such records.
        InvalidBackbone: a file is missing, broken, refused or does not fit the others.
        InvalidPrompt: the template by itself is longer than a record may be.
        TargetMissing, UnsupportedModule: an adapter has no place there.
    """
    config, experts = AdapterConfig(**draft.adapter_config()), experts or draft.model.experts
    if draft.data.text is not None:
        text = loading.load_text(directory, expected_hash=expected_hash, experts=experts)
        encoder = PromptEncoder(draft.data.text.template(), text.tokenizer, draft.data.max_tokens)
        return StudyModel(attach(text.model, config), encoder, encoder.words, text.hash)
    loaded = loading.load(directory, expected_hash=expected_hash, experts=experts)
    schema = draft.record_schema()
    if loaded.schema != schema:
        raise BackboneMismatch(f"the backbone in {directory} reads records of another schema than [data] describes")
    head = PooledHead(loaded.center, loaded.whiten)
    return StudyModel(attach(loaded.model, config, head=head), schema, len(schema.words()), loaded.hash)
