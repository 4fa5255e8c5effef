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
from ..models.errors import BackboneMismatch, UnsupportedModule
from ..models.head import PooledHead, pooled
from ..privacy.clipping import row_independence_gap
from ..privacy.histogram import HistogramTerms, private_histogram
from ..privacy.sampling import SeededBytes
from ..privacy.steps import ReleaseTerms, private_release
from .data import Records
from .study import Study

_LARGEST_GAP = 1e-3  # float32 alone makes about 1e-6; whatever mixes rows makes far more


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
            UnsupportedModule: the model mixes the records of a batch.
            InvalidPrivacyParameter: the study's terms and this site's limits do not go together.
        """
        loaded = load_backbone(backbone, expected_hash=study.backbone_hash)
        self._study, self._read, self._site = study, read, site
        privacy = study.draft.privacy
        self._terms = ReleaseTerms(
            mode=privacy.mode,
            clip_norm=privacy.clip_norm,
            sample_rate=privacy.sample_rate,
            site_noise_int=site_noise,
            scale_bits=study.scale_bits,
            max_rows_per_batch=max_rows,
            max_records_per_unit=study.draft.data.max_records_per_unit,
        )
        torch.set_num_threads(threads)
        head = PooledHead(loaded.center, loaded.whiten)
        self.adapted: AdaptedModel = attach(loaded.model, AdapterConfig(**study.adapter_config()), head=head)
        if self.adapted.layout.dim != study.dim:
            raise BackboneMismatch(
                f"the adapter has {self.adapted.layout.dim} trained parameters, the study says {study.dim}"
            )
        self._refuse_mixing()
        self._records: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None

    def release(self, state: np.ndarray, round_number: int) -> np.ndarray:
        """The clipped sum over one Poisson sample of units, rounded, with this site's noise: int64 [dim]."""
        tokens, labels, units = self._load()
        self.adapted.load_state(state)
        return private_release(
            self.adapted, tokens, labels, units, terms=self._terms, source=self._source(round_number)
        )

    def histogram(
        self, state: np.ndarray, read: Callable[[], Records], round_number: int, *, site_noise: int
    ) -> np.ndarray:
        """Units of the records that `read` gives, by label and bin of their score, with this site's noise: int64.

        Counts of label 0 come first, bins ascending; see `models.binned_evaluation`.
        """
        records = read()
        self.adapted.load_state(state[: self.adapted.layout.dim])
        tokens = torch.from_numpy(records.tokens(self._study.record_schema()))
        with torch.no_grad():
            batches = torch.split(tokens, self._terms.max_rows_per_batch) if len(tokens) else ()
            scores = [self.adapted.classify(batch).numpy() for batch in batches]
        planned = self._study.planned_round(round_number)
        bins = planned.dim // 2
        terms = HistogramTerms(
            mode=self._study.draft.privacy.mode,
            cells=planned.dim,
            site_noise_int=site_noise,
            scale_bits=planned.scale_bits,
        )
        cells = records.labels * bins + bin_of(np.concatenate([np.zeros(0), *scores]), bins)
        return private_histogram(cells, records.units, terms=terms, source=self._source(round_number))

    def _refuse_mixing(self) -> None:
        """Refuses a model in which one record's result depends on another's: no bound per unit would hold."""
        words = len(self._study.record_schema().words())
        ids, other = (torch.from_numpy(np.random.default_rng(seed).integers(1, words, (4, 12))) for seed in (1, 2))
        with torch.no_grad():
            # The head starts at zero, so the pooled states are compared.
            gap = row_independence_gap(lambda batch: pooled(self.adapted.model, batch), ids, other)
        if not gap < _LARGEST_GAP:  # NaN fails too
            raise UnsupportedModule(f"the backbone mixes records of one batch (relative change {gap:.1e})")

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
