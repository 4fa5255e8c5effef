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
from ..models.errors import BackboneMismatch, UnsupportedModule
from ..models.head import PooledHead, pooled
from ..privacy.accounting import Mode
from ..privacy.clipping import row_independence_gap
from ..privacy.sampling import SeededBytes
from ..privacy.steps import LocalSteps, ReleaseTerms, round_release
from .data import Records
from .draft import StudyDraft
from .study import Study

_LARGEST_GAP = 1e-3  # float32 alone makes about 1e-6; whatever mixes rows makes far more


def release_terms(draft: StudyDraft, mode: Mode, *, site_noise: int, scale_bits: int, max_rows: int) -> ReleaseTerms:
    """The terms of a site's part in a round of `draft`, in `mode`.

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
            UnsupportedModule: the model mixes the records of a batch.
            InvalidPrivacyParameter: the study's terms and this site's limits do not go together.
        """
        loaded = load_backbone(backbone, expected_hash=study.backbone_hash)
        self._study, self._read, self._site = study, read, site
        self._terms = release_terms(
            study.draft, study.draft.privacy.mode, site_noise=site_noise, scale_bits=study.scale_bits, max_rows=max_rows
        )
        torch.set_num_threads(threads)
        head = PooledHead(loaded.center, loaded.whiten)
        self.adapted: AdaptedModel = attach(loaded.model, AdapterConfig(**study.adapter_config()), head=head)
        if study.draft.state_dim(self.adapted.layout.dim) != study.dim:
            raise BackboneMismatch(
                f"the adapter has {self.adapted.layout.dim} trained parameters, "
                f"the study says {study.dim - study.draft.state_dim(0)}"
            )
        self._refuse_mixing()
        self._records: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None

    def release(self, state: np.ndarray, round_number: int) -> np.ndarray:
        """The clipped sum over one Poisson sample of units, rounded, with this site's noise: int64 [study.dim].

        With local steps, the sum over all of them.
        """
        tokens, labels, units = self._load()
        return round_release(
            self.adapted, state, tokens, labels, units, terms=self._terms, source=self._source(round_number)
        )

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
