"""Loads a study's model (backbone, adapters and head) and turns records into its inputs."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ...kernels.segments import Segments
from ...models.adapters import AdaptedModel, AdapterConfig, attach
from ...models.backbones import loading, public_tokens
from ...models.backbones.family import Backbone
from ...models.errors import BackboneMismatch, InvalidAdapter, MetricUndefined, TargetMissing
from ...models.evaluation.binned import bin_of
from ...models.evaluation.router_statistics import router_statistics, unused_by_layer
from ...models.heads import PooledHead
from ...models.heads.signature import require_length, shown, signatures
from ...models.records.kind import Examples, Reader, RecordKind
from ...models.strict import StrictModel
from ...models.structure.inputs import is_joined
from ...models.structure.places import TARGETS as OF_SENSES
from ...models.structure.readers import TARGET
from ...models.structure.sense import require_layout, sense_of
from ..data import Records
from ..study import StudyDraft

# Tokens on which an expert counts as never chosen. One with a hundredth of an even share is sent 20 of the records'.
_TOKENS_OF_RECORDS, _TOKENS_OF_TEXT = 8192, 1024


@dataclass(frozen=True, slots=True)
class StudyModel:
    """The model of a study, with its adapters in their initial state."""

    adapted: AdaptedModel
    family: Backbone
    kind: RecordKind
    terms: StrictModel  # of the records, as `kind` reads them
    reader: Reader
    backbone_hash: str
    segments: Segments | None = None  # sizes of attention in segments; None for full attention
    lens: PooledHead | None = None  # by whose moments signatures are read, if the study releases a prototype

    @property
    def words(self) -> int:
        """Size of the vocabulary."""
        return self.reader.words

    def examples(self, records: Records) -> Examples:
        """Turns records into token ids, with the target of each."""
        return Examples(*self.reader.examples(records.columns, records.labels), records.units)

    def probe_lengths(self, max_tokens: int) -> tuple[int, ...]:
        """Returns the lengths of probes, one for each way in which this model treats the positions of a record."""
        lengths = self.family.probe_lengths(self.adapted.model.config, max_tokens)
        borders = () if self.segments is None else self.segments.borders
        found = (*lengths, *(border + 2 for border in borders if border < max_tokens))
        return tuple(length + self.adapted.carrying_tokens for length in found)

    def judge(self, ids: np.ndarray, target: Any) -> tuple[float, float]:
        """Judges one record by itself, see `RecordKind.judge`. PRIVATE: used in charged counts only."""
        return self.kind.judge(self.terms, self.reader, self.adapted, ids, target)

    def bin_of(self, scores: np.ndarray, bins: int) -> npt.NDArray[np.int64]:
        """[rows], 0 to bins - 1, where scores of `judge` are counted: by size, or of several tasks by the task."""
        return scores.astype(np.int64) if self.kind.judged(self.terms) == "tasks" else bin_of(scores, bins)

    def signature(self, ids: np.ndarray, target: Any, length: int) -> np.ndarray:
        """[length], how the backbone reads one record by itself, the adapters as they started. PRIVATE.

        Raises:
            InvalidAdapter: the study releases no prototype.
        """
        if self.lens is None:
            raise InvalidAdapter("the study releases no prototype, so its records have no signatures")
        device = next(iter(self.adapted.trained.values())).device
        own = torch.from_numpy(shown(ids, np.asarray(target)))[None].to(device)
        found: np.ndarray = signatures(self.adapted.model, self.lens.to(device), own, length)[0].cpu().numpy()
        return found

    def evaluate(self, tables: Sequence[Examples]) -> dict[str, Any]:
        """Computes metrics with intervals over all records of the tables, which are the operator's own."""
        return self.kind.evaluate(self.terms, self.reader, self.adapted, tables)


def load_study_model(
    draft: StudyDraft, directory: Path, *, expected_hash: str | None = None, unpacked: bool = False
) -> StudyModel:
    """Loads the model of a study from the folder of its backbone.

    Args:
        unpacked: True to hold all weights in float32, whatever the study says: nothing can be added to a packed one.

    Raises:
        BackboneMismatch: the content is not the expected one, or the backbone does not read such records.
        InvalidBackbone: a file is missing, broken, refused or does not fit the others.
        InvalidPrompt: the template by itself is longer than a record may be.
        TargetMissing, UnsupportedModule: an adapter has no place there.
    """
    config, kind = AdapterConfig(**draft.adapter_config()), draft.data.kind
    held = {"experts": draft.model.experts, "frozen": draft.model.frozen} if not unpacked else {}
    terms = draft.model.segments
    segments = None if terms is None else Segments(**terms.model_dump())
    load = loading.load_text if kind.reads == "text" else loading.load
    loaded: loading.RecordBackbone | loading.TextBackbone
    loaded = load(directory, expected_hash=expected_hash, segments=segments, **held)
    try:
        require_layout(loaded.model, kind.layout(draft.data.terms))
    except BackboneMismatch as err:
        raise BackboneMismatch(f"the backbone in {directory} {err}") from None
    sense = sense_of(loaded.model)
    of_structure, of_sense = (TARGET,) if is_joined(loaded.model) else (), OF_SENSES[sense.name] if sense else ()
    targets = (*loaded.family.targets, *of_structure, *of_sense)
    if strange := [name for name in config.targets if name not in targets]:
        raise TargetMissing(
            f"a backbone of {loaded.family.model_type} takes no adapter on {', '.join(strange)}; there are "
            f"{', '.join(targets)}"
        )
    try:
        reader = kind.reader(draft.data.terms, loaded.vocabulary, max_tokens=draft.data.max_tokens)
    except BackboneMismatch as err:
        raise BackboneMismatch(f"the backbone in {directory} {err}") from None
    objective, head = kind.objective(draft.data.terms), None
    if (objective is None) == (kind.head == "pooled"):  # else a classifier would be trained as a writer of text
        raise BackboneMismatch(f"records of kind {kind.name} have a head of kind {kind.head}, which learns {objective}")
    try:
        if objective is not None:
            head = loaded.head(objective, draft.adapter.reads)
        lens = None if draft.prototype is None else _lens(loaded, draft)
    except BackboneMismatch as err:
        raise BackboneMismatch(f"the backbone in {directory} {err}") from None
    adapted = attach(loaded.model, config, head=head)
    return StudyModel(adapted, loaded.family, kind, draft.data.terms, reader, loaded.hash, segments, lens)


def _lens(loaded: loading.RecordBackbone | loading.TextBackbone, draft: StudyDraft) -> PooledHead:
    """Takes all public moments of the backbone, and makes sure that they are enough for the study's prototype.

    Which states the study's own head reads has no say: studies of one backbone must be comparable.
    """
    assert draft.prototype is not None
    lens = loaded.head()
    require_length(lens, draft.prototype.length)
    return lens


def unused_experts(model: StudyModel, draft: StudyDraft, directory: Path) -> dict[int, tuple[int, ...]]:
    """Finds the adapted experts that no public token is sent to, by layer: their adapters would take noise alone.

    Tokens are those of synthetic records, as in pretraining, or of the licence that comes with a checkpoint. Records
    of a site are not read, and may be routed otherwise.

    Args:
        model: as loaded, so that it routes as the backbone does.
        directory: of the backbone.

    Returns:
        Nothing where there is nothing to measure: no adapter on routed experts, or a checkpoint without a text.
    """
    adapted = model.adapted
    if not adapted.expert_layers:
        return {}
    if draft.data.kind.reads == "records":
        schema = loading.read_schema(directory)
        batches = public_tokens.of_records(schema, _TOKENS_OF_RECORDS, parts=[draft.record_schema()])
    elif licence := public_tokens.licence_of(directory):
        batches = public_tokens.of_text(directory, licence.read_text(encoding="utf-8"), _TOKENS_OF_TEXT)
    else:
        return {}
    try:
        layers = router_statistics(adapted.model, batches)
    except MetricUndefined:
        return {}
    return unused_by_layer(layer for layer in layers if layer.layer in adapted.expert_layers)
