"""The site's training step: from the state of a round to the noised integer vector that will be shared.

The model is loaded once and stays warm. Records are read when the first step asks for them, which is after the first
charge has been reserved.
"""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from ..models.adapters import AdaptedModel, AdapterConfig, attach
from ..models.backbone import load as load_backbone
from ..models.binned_evaluation import bin_of
from ..models.errors import BackboneMismatch
from ..models.head import PooledHead
from ..privacy.accounting import Mode
from ..privacy.histogram import HistogramTerms, private_histogram
from ..privacy.independence import refuse_dependence
from ..privacy.loss import record_losses
from ..privacy.sampling import SeededBytes
from ..privacy.steps import LocalSteps, ReleaseTerms, round_release
from .data import Records
from .draft import StudyDraft
from .study import Study


def release_terms(
    draft: StudyDraft, mode: Mode, *, site_noise: int, scale_bits: int, max_rows: int, site: str | None = None
) -> ReleaseTerms:
    """The terms of the part in a round of `draft`, in `mode`, of `site`, or of one without a weight or rank of its own.

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


class Trainer:
    """One study's model and one site's records."""

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
    ) -> None:
        """Loads the backbone and attaches the adapter; reads no record.

        Args:
            backbone: directory whose hash must be the study's.
            read: gives the records, called once, at the first step.
            site: name of this site in the study.
            site_noise: std of this site's noise in ring units.
            max_rows: rows of one microbatch.
            threads: of this process's arithmetic.

        Raises:
            BackboneMismatch: the directory holds another backbone, or the adapter has another size.
            UnitsCoupled: one record's gradient would depend on other records.
            TargetUnreached: an adapter would never be trained.
            InvalidPrivacyParameter: the study's terms and this site's limits do not go together.
        """
        loaded = load_backbone(backbone, expected_hash=study.backbone_hash)
        self._study, self._read, self._site = study, read, site
        self._terms = release_terms(
            study.draft,
            study.draft.privacy.mode,
            site_noise=site_noise,
            scale_bits=study.scale_bits,
            max_rows=max_rows,
            site=site,
        )
        torch.set_num_threads(threads)
        head = PooledHead(loaded.center, loaded.whiten)
        self.adapted: AdaptedModel = attach(loaded.model, AdapterConfig(**study.adapter_config()), head=head)
        if study.draft.state_dim(self.adapted.layout.dim) != study.dim:
            raise BackboneMismatch(
                f"the adapter has {self.adapted.layout.dim} trained parameters, "
                f"the study says {study.dim - study.draft.state_dim(0)}"
            )
        refuse_dependence(self.adapted, record_losses, words=len(study.record_schema().words()))
        self._records: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None

    def release(self, state: np.ndarray, round_number: int) -> np.ndarray:
        """The clipped sum over one Poisson sample of units, rounded, with this site's noise: int64 [study.dim].

        With local steps, the sum over all of them.
        """
        tokens, labels, units = self._load()
        return round_release(
            self.adapted, state, tokens, labels, units, terms=self._terms, source=self._source(round_number)
        )

    def histogram(
        self, state: np.ndarray, read: Callable[[], Records], round_number: int, *, site_noise: int
    ) -> np.ndarray:
        """Units of the records that `read` gives, by label and bin of their score, with this site's noise: int64.

        Counts of label 0 come first, bins ascending; see `models.binned_evaluation`. Each record is scored by itself,
        at its own length: in a batch the last bits of a score depend on its neighbours, and where they carry it over an
        edge, one unit more or less would move another unit's count. Some 7 ms a record, where a batch takes 0.4.
        """
        records = read()
        self.adapted.load_state(state[: self.adapted.layout.dim])
        with torch.no_grad():
            scores = [self._score(row) for row in torch.from_numpy(records.tokens(self._study.record_schema()))]
        planned = self._study.planned_round(round_number)
        bins = planned.dim // 2
        terms = HistogramTerms(
            mode=self._study.draft.privacy.mode,
            cells=planned.dim,
            site_noise_int=site_noise,
            scale_bits=planned.scale_bits,
        )
        cells = records.labels * bins + bin_of(scores, bins)
        return private_histogram(cells, records.units, terms=terms, source=self._source(round_number))

    def _score(self, tokens: torch.Tensor) -> float:
        """The logit of one record, a function of its own tokens and nothing else."""
        length = max(1, int((tokens > 0).sum()))  # padding is on the right
        return float(self.adapted.classify(tokens[None, :length]))

    def _load(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        if self._records is None:
            records = self._read()
            self._records = records.tokens(self._study.record_schema()), records.labels, records.units
        return self._records

    def _source(self, round_number: int) -> Callable[[int], bytes]:
        """The operating system's CSPRNG, or without privacy a stream that repeats, so that runs can be compared."""
        if self._study.draft.privacy.mode != "none":
            return os.urandom
        seed = f"confide/unprotected/1|{self._study.study_hash}|{self._site}|{round_number}"
        return SeededBytes(hashlib.sha256(seed.encode()).digest())
