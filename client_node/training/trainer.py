"""The site's training step: computes, from a round's state, the noised integer vector that is then secret-shared.

The model is loaded once and stays in memory. Records are read when a run is prepared, where states of
them are kept, else at the first step, after its charge has been reserved.
"""

import copy
import hashlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch

from ...models.adapters import AdaptedModel
from ...models.errors import BackboneMismatch
from ...models.evaluation.router_statistics import describe_experts
from ...models.records.kind import Examples
from ...privacy.accounting import Mode
from ...privacy.mechanism.batches import (
    BatchShapes,
    RowStates,
    entering_states,
    probed_shapes,
    states_when_asked,
    used_tokens,
)
from ...privacy.mechanism.independence import kept_gap, refuse_dependence
from ...privacy.mechanism.many_sites import SiteTable, many_releases
from ...privacy.mechanism.sampling import SeededBytes
from ...privacy.mechanism.site_round import LocalSteps, ReleaseTerms, partial_sum, round_release
from ...privacy.mechanism.unsampled import UnsampledTerms, private_histogram, private_prototype
from ...privacy.mechanism.workers import Alone, Part, ReadPart, ScorePart, SumPart, Vector, WorkerGroup, made_up
from ..data import Records
from ..data.kept_files import KeptStates
from ..errors import FileDamaged, NoRoom
from ..replay.following import start_state
from ..study import Study, StudyDraft
from .kept_states import RecordStates
from .known_shapes import computing_digest
from .study_model import StudyModel, load_study_model, unused_experts

logger = logging.getLogger(__name__)

_MOST_GAP = 1e-5  # of a gradient from kept states, over its norm: float32 rounds by some 1e-7, other states by far more


def release_terms(
    draft: StudyDraft, mode: Mode, *, site_noise: int, scale_bits: int, max_rows: int, site: str | None = None
) -> ReleaseTerms:
    """Returns the terms of `site`'s release in a round of `draft` in `mode`; None: a site with no weight or rank set.

    Raises:
        InvalidPrivacyParameter: the study's terms and the limits do not go together.
    """
    privacy, local = draft.privacy, LocalSteps()
    if draft.optimizer.local_lr is not None:
        lr, head_lr = draft.optimizer.rates
        local = LocalSteps(
            steps=privacy.local_steps,
            lr=draft.optimizer.local_lr,
            head_lr=draft.optimizer.local_lr * head_lr / lr,
            batch_units=draft.rounds.batch_units / len(draft.participants.sites),
        )
    return ReleaseTerms(
        mode=mode,
        clip_norm=privacy.clip_norm,
        sample_rate=privacy.sample_rate,
        site_noise_int=site_noise,
        scale_bits=scale_bits,
        max_rows_per_batch=max_rows,
        max_records_per_unit=draft.data.max_records_per_unit,
        clipping=privacy.clipping,
        local=local,
        max_norm=draft.max_norm,
        weight=1.0 if site is None else draft.aggregation.weight_of(site),
        trained_rank=None if site is None else draft.adapter.rank_of(site),
    )


class FoundShapes(Protocol):
    """Shapes of batches that were found before."""

    def find(self, study: Study, adapted: AdaptedModel, max_rows: int, probe: Callable[[], BatchShapes]) -> BatchShapes:
        """Returns the shapes that were found for what computes here, or those that `probe` finds."""


class Trainer:
    """Trains one study's model on one site's records."""

    def __init__(
        self,
        study: Study,
        backbone: Path,
        read: Callable[[], Records],
        *,
        site: str,
        site_noise: int,
        max_rows: int,
        threads: int,
        group: WorkerGroup | None = None,
        place: Callable[[AdaptedModel], object] | None = None,
        known: FoundShapes | None = None,
        kept: KeptStates | None = None,
        loaded: StudyModel | None = None,
    ) -> None:
        """Loads the backbone and attaches the adapter; reads no record.

        Args:
            backbone: directory whose hash must be the study's.
            read: returns the records; called once, when states of them are looked for or at the first step.
            site: name of this site in the study.
            site_noise: std of this site's noise in ring units.
            max_rows: rows of one microbatch.
            threads: of this process's arithmetic.
            group: processes that compute with this one; None for none.
            place: puts the model where it shall be computed, before it is run for the first time.
            known: shapes of batches that were found here before; None to find them anew.
            kept: where states that enter the lowest adapted layer are kept; None to compute them in every step, with
                the same result.
            loaded: the study's model with its adapters in their initial state, if it was loaded before.

        Raises:
            BackboneMismatch: the directory holds another backbone, or the adapter has another size.
            UnitsCoupled: one record's gradient would depend on other records.
            TargetUnreached: an adapter would never be trained.
            InvalidPrivacyParameter: the study's terms and this site's limits do not go together.
        """
        self._study, self._read, self._site, self._group = study, read, site, group or Alone()
        self._terms = release_terms(
            study.draft,
            study.draft.privacy.mode,
            site_noise=site_noise,
            scale_bits=study.scale_bits,
            max_rows=max_rows,
            site=site,
        )
        torch.set_num_threads(threads)
        self.model = loaded or load_study_model(study.draft, backbone, expected_hash=study.backbone_hash)
        self.adapted: AdaptedModel = self.model.adapted
        layout, head_size = self.adapted.layout, study.require_start().head_size
        trained = study.dim - study.draft.state_dim(0)
        if layout.dim != trained:
            raise BackboneMismatch(f"the adapter has {layout.dim} trained parameters, the study says {trained}")
        if layout.head_slice.stop != head_size:
            raise BackboneMismatch(f"the head has {layout.head_slice.stop} numbers, the study says {head_size}")
        self.start = start_state(study.draft, self.adapted.state())  # of every run
        if group is None and (unused := unused_experts(self.model, study.draft, backbone)):
            logger.warning(
                "study %s adapts %s, to which the backbone sends no public token: the adapters take noise there, and "
                "learn only if this site's records are routed otherwise",
                study.name,
                describe_experts(unused),
            )
        if place is not None:
            place(self.adapted)
        lengths = self.model.probe_lengths(study.draft.data.max_tokens)
        # Where a step begins decides its last bits, so it follows from study, model and limits alone, not from records.
        self._resumes = group is None and place is None and self._can_keep(lengths)
        self._kept = kept if self._resumes else None
        refuse_dependence(self.adapted, words=self.model.words, lengths=lengths, are_kept=self._resumes)
        probe = partial(
            probed_shapes,
            self.adapted,
            max_tokens=study.draft.data.max_tokens,
            max_rows=max_rows,
            max_records=study.draft.data.max_records_per_unit,
        )
        self._shapes = probe() if known is None else known.find(study, self.adapted, max_rows, probe)
        logger.info("study %s: private steps compute %s", study.name, self._shapes)
        if not self._shapes.rows_of_length:
            logger.warning(
                "study %s: on this machine the rows of a batch are rounded by who shares it, so units are computed one "
                "at a time, which is slow",
                study.name,
            )
        self._examples: Examples | None = None
        self._max_rows = max_rows
        self._states: RecordStates | None = None  # of the table, once it was looked at
        self._given: RowStates | None = None  # of the table, for a trainer of several
        self._repetition = 0

    def beside(
        self, site: str, examples: Examples, *, entering: RowStates | None = None, repetition: int = 0
    ) -> "Trainer":
        """Makes the trainer of another site, with these records, that computes with this one's model and shapes.

        It is for simulating many sites on one machine, one after the other, as they share the model's state.

        Args:
            entering: gives states of these records by row, as `states_of` has computed them; None to compute them in
                every step, with the same result.
            repetition: which of several runs in mode "none", each with samples of its own; 0 has those of a site.
        """
        other = copy.copy(self)
        draft = self._study.draft
        other._site, other._examples, other._kept, other._states, other._given = site, examples, None, None, entering
        other._repetition = repetition
        other._terms = replace(
            self._terms, weight=draft.aggregation.weight_of(site), trained_rank=draft.adapter.rank_of(site)
        )
        return other

    def states_of(self, examples: Examples) -> Iterator[tuple[int, torch.Tensor]] | None:
        """Yields the states [tokens, D] of each record from which steps start, by row; None if they start from tokens.

        PRIVATE: they are the records in another form.
        """
        if not self._resumes:
            return None
        used = used_tokens(examples.ids, examples.targets)
        return entering_states(self.adapted, examples.ids, used, self._shapes, threads=self._state_threads)

    @property
    def is_warm(self) -> bool:
        """True if all states that steps start from are kept, or none are kept here; False if some are missing yet."""
        return self._kept is None or (self._states is not None and self._states.is_whole)

    @property
    def starts_from(self) -> Literal["tokens", "kept states"]:
        """Names what a step computes from, for its time: not all kept, it computes states first, to the same bits."""
        return "kept states" if self._states is not None and self._states.is_whole else "tokens"

    def look_at_kept(self) -> None:
        """Reads the table, if it was not read yet, and finds out which of its records have kept states.

        If they have no room, or the disk takes none, the model keeps none from here on, and the log says why.
        """
        if self._kept is None or self._states is not None:
            return
        examples = self._load()
        with self._kept_or_not():
            states = RecordStates(
                self.adapted,
                examples,
                self._shapes,
                self._kept.store(),
                facts={"computing": computing_digest(self._study, self.adapted, self._max_rows)},
                threads=self._state_threads,
            )
            try:
                self._kept.require_room(states.num_bytes, has_all=states.is_whole)
            except NoRoom:
                states.delete()  # the limit may have been lowered
                raise
            self._states = states

    def keep(self, *, seconds: float) -> None:
        """Computes kept states of records that have none, for about so long; see `look_at_kept`.

        What is computed, and in which order, follows from the table alone, not from who is drawn.
        """
        self.look_at_kept()
        if self._states is not None:
            with self._kept_or_not():
                self._states.fill(seconds=seconds)

    def release(self, state: np.ndarray, round_number: int) -> np.ndarray:
        """Computes the clipped sum over a Poisson sample of units, rounded, with this site's noise: int64 [study.dim].

        With local steps, it is the sum over all of them.
        """
        found = self._load()
        return round_release(
            self.adapted,
            state,
            found.ids,
            found.targets,
            found.units,
            terms=self._terms,
            shapes=self._shapes,
            source=self._source(round_number),
            group=self._group,
            entering=self._entering(found) if self._resumes else None,
        )

    def release_with(self, others: Sequence["Trainer"], state: np.ndarray, round_number: int) -> list[np.ndarray]:
        """Computes this site's release and those of other sites that `beside` made, in common batches.

        Each is what `release` gives by itself, to the last bit, where sites share mode, clip and rank; see
        `privacy.mechanism.many_sites`.
        """
        trainers = (self, *others)
        first = self._terms
        is_common = all(each._terms.trained_rank == first.trained_rank for each in trainers)
        if first.local.steps > 1 or not is_common:
            return [each.release(state, round_number) for each in trainers]
        tables = [each._table(round_number) for each in trainers]
        return list(many_releases(self.adapted, state, tables, shapes=self._shapes))

    def _table(self, round_number: int) -> SiteTable:
        found = self._load()
        return SiteTable(
            ids=found.ids,
            targets=found.targets,
            unit_of_row=found.units,
            terms=self._terms,
            source=self._source(round_number),
            entering=self._entering(found) if self._resumes else None,
        )

    def histogram(
        self, state: np.ndarray, read: Callable[[], Records], round_number: int, *, site_noise: int
    ) -> np.ndarray:
        """Counts the units of the records from `read` by label and bin of score, with this site's noise: int64.

        Counts of label 0 come first, bins ascending; see `models.evaluation.binned`. For free text, the label is 1
        if greedy decoding writes the completion, and the score is the logit of its tokens' mean likelihood (geometric).
        Of several tasks, one is judged of each record, and a bin counts one task; a record that tells none, whose label
        is NaN, is not counted.
        Each record is scored by itself, at its own length. In a batch the last bits of a score depend on its
        neighbours and can move it into the next bin, so one unit more or less could change another unit's count. A
        record of the thyroid example takes some 7 ms by itself, 0.4 ms in a batch.
        """
        examples = self.model.examples(read())
        weights = state[: self.adapted.layout.dim]
        judged = self._one_by_one(examples, partial(ScorePart, state=weights))
        labels, scores = judged.reshape(-1, 2).T
        tells = ~np.isnan(labels)
        terms = self._unsampled_terms(round_number, site_noise)
        bins = terms.dim // 2
        cells = labels[tells].astype(np.int64) * bins + self.model.bin_of(scores[tells], bins)
        return private_histogram(cells, examples.units[tells], terms=terms, source=self._source(round_number))

    def prototype(self, round_number: int, *, site_noise: int) -> np.ndarray:
        """Sums how the backbone reads this site's records, with this site's noise: int64; see `models.heads.signature`.

        Each record is read by itself, as in `histogram`.
        """
        examples, terms = self._load(), self._unsampled_terms(round_number, site_noise)
        vectors = self._one_by_one(examples, ReadPart).reshape(-1, terms.dim)
        return private_prototype(vectors, examples.units, terms=terms, source=self._source(round_number))

    def _one_by_one(self, examples: Examples, part_of: Callable[..., Part]) -> Vector:
        """Computes figures of each record by itself, the records shared out to all processes."""
        shares = [np.array_split(rows, self._group.size) for rows in (examples.ids, examples.targets)]
        parts = [
            part_of(ids=ids, targets=targets, passes=len(shares[0][0]))  # the first is the longest
            for ids, targets in zip(*shares, strict=True)
        ]
        self._group.begin(parts[1:])
        return np.concatenate([self.compute(parts[0]), *self._group.finish()])

    def _unsampled_terms(self, round_number: int, site_noise: int) -> UnsampledTerms:
        planned = self._study.planned_round(round_number)
        return UnsampledTerms(
            mode=self._study.draft.privacy.mode,
            dim=planned.dim,
            site_noise_int=site_noise,
            scale_bits=planned.scale_bits,
        )

    def compute(self, part: Part) -> Vector:
        """Computes a part for the leading process: a clipped sum, or label and score or the signature of some records.

        UNPROTECTED: the result is for that process alone.
        """
        if isinstance(part, SumPart):
            return partial_sum(self.adapted, part, terms=self._terms, shapes=self._shapes)
        rows = list(zip(part.ids, part.targets, strict=True))
        rows += [made_up(self.adapted)] * (part.passes - len(part.ids))
        figure = self._figure(part)
        with torch.no_grad():
            figures = [figure(*row) for row in rows]
        return np.array(figures[: len(part.ids)], dtype=np.float64).reshape(-1)

    def _figure(self, part: ScorePart | ReadPart) -> Callable[[np.ndarray, object], object]:
        """Loads the state of a part, and returns what computes the figures of one record."""
        if isinstance(part, ScorePart):
            self.adapted.load_state(part.state)
            return self.model.judge
        prototype = self._study.draft.prototype
        assert prototype is not None
        self.adapted.load_state(self.start[: self.adapted.layout.dim])  # computes what the backbone does
        return partial(self.model.signature, length=prototype.length)

    def stop(self) -> None:
        """Does nothing: there are no other processes to end."""

    def _can_keep(self, lengths: Sequence[int]) -> bool:
        """True if something lies below what is trained, and computing from what it gives comes to the same."""
        if not self.adapted.can_keep:
            return False
        gap = max(kept_gap(self.adapted, words=self.model.words, tokens=tokens) for tokens in lengths)
        if not gap < _MOST_GAP:  # NaN fails too
            logger.warning(
                "study %s: on this backbone a gradient from kept states is off by %.1g, so all layers are computed in "
                "every step",
                self._study.name,
                gap,
            )
        return gap < _MOST_GAP

    @property
    def _state_threads(self) -> int | None:
        """Threads of the arithmetic in a step; None for those of its shapes."""
        return 1 if self._study.draft.privacy.mode == "none" else None

    def _entering(self, found: Examples) -> RowStates:
        """Gives what reads kept states of rows, and computes those that are not there."""
        if self._states is not None:
            return self._states.of
        if self._given is not None:
            return self._given
        return states_when_asked(self.adapted, found.ids, found.targets, self._shapes, threads=self._state_threads)

    @contextmanager
    def _kept_or_not(self) -> Iterator[None]:
        """Goes on without kept states if they cannot be kept: steps compute them."""
        try:
            yield
        except (OSError, FileDamaged, NoRoom) as err:
            logger.warning("study %s: no states are kept, so steps compute them: %s", self._study.name, err)
            self._kept = self._states = None

    def _load(self) -> Examples:
        if self._examples is None:
            self._examples = self.model.examples(self._read())
        return self._examples

    def _source(self, round_number: int) -> Callable[[int], bytes]:
        """Source of randomness: the operating system's CSPRNG; without privacy a repeatable stream, to compare runs."""
        if self._study.draft.privacy.mode != "none":
            return os.urandom
        seed = f"confide/unprotected/1|{self._study.study_hash}|{self._site}|{round_number}"
        if self._repetition:
            seed += f"|{self._repetition}"
        return SeededBytes(hashlib.sha256(seed.encode()).digest())
