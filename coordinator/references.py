"""What a private result is to be compared with, computed in one process from records that must be public.

Four yardsticks on the same split: the untrained head, the same study without noise and secret sharing, the head alone
under the same noise (so that adapters are not credited with what the head does), and a private logistic regression on
the record's words, which needs no language model at all.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..client_node.data import Records
from ..client_node.data import read as read_records
from ..client_node.policy import SitePolicy
from ..client_node.study import Study
from ..models.adapters import AdaptedModel, AdapterConfig, attach
from ..models.backbone import load as load_backbone
from ..models.evaluation import auc
from ..models.head import PooledHead, classify, pooled
from ..privacy.accounting import site_noise
from ..privacy.sampling import SeededBytes
from ..privacy.steps import ReleaseTerms, private_release
from .optimizer import ServerOptimizer

_ROWS = 1024
_HEAD_LR_OF_WORDS = 10.0  # unit-length inputs like the head's


def references(
    study: Study, backbone: Path, train: Sequence[SitePolicy], held_out: Sequence[SitePolicy]
) -> dict[str, Any]:
    """AUC on the pooled held-out records of: `auc_before`, `auc_nonprivate`, `auc_head_only`, `auc_control`."""
    trained_on = [read_records(policy, study) for policy in train]
    tested_on = [read_records(policy, study) for policy in held_out]
    labels = np.concatenate([records.labels for records in tested_on])
    adapted = _attach(study, backbone)
    before = _scores(adapted, study, tested_on)
    states = [_head_inputs(adapted, study, records) for records in (*trained_on, *tested_on)]
    words = [_word_inputs(study, records) for records in (*trained_on, *tested_on)]
    site_labels = [records.labels for records in trained_on]
    sites, rate = len(train), study.draft.optimizer.head_lr
    head_only = _private_linear(study, states[:sites], site_labels, np.concatenate(states[sites:]), rate)
    control = _private_linear(study, words[:sites], site_labels, np.concatenate(words[sites:]), _HEAD_LR_OF_WORDS)
    _train_without_privacy(adapted, study, trained_on)
    nonprivate = _scores(adapted, study, tested_on)
    scores = {"before": before, "nonprivate": nonprivate, "head_only": head_only, "control": control}
    return {f"auc_{name}": auc(found, labels).value for name, found in scores.items()}


def _attach(study: Study, backbone: Path) -> AdaptedModel:
    loaded = load_backbone(backbone, expected_hash=study.backbone_hash)
    return attach(loaded.model, AdapterConfig(**study.adapter_config()), head=PooledHead(loaded.center, loaded.whiten))


def _train_without_privacy(adapted: AdaptedModel, study: Study, sites: Sequence[Records]) -> None:
    """The study's rounds with the same clipping, sampling rate and optimizer, exact sums and no noise."""
    draft = study.draft
    terms = ReleaseTerms(
        mode="none",
        clip_norm=draft.privacy.clip_norm,
        sample_rate=draft.privacy.sample_rate,
        site_noise_int=0,
        scale_bits=study.scale_bits,
        max_rows_per_batch=512,
        max_records_per_unit=draft.data.max_records_per_unit,
    )
    optimizer = ServerOptimizer(
        lr=draft.optimizer.lr, head_lr=draft.optimizer.head_lr, momentum=draft.optimizer.momentum
    )
    tokens = [records.tokens(study.record_schema()) for records in sites]
    state = adapted.state()
    velocity = np.zeros_like(state)
    for round_number in range(1, draft.rounds.rounds + 1):
        adapted.load_state(state)
        total = np.zeros(study.dim, dtype=np.int64)
        for index, (ids, records) in enumerate(zip(tokens, sites, strict=True)):
            seed = hashlib.sha256(f"reference|{study.study_hash}|{index}|{round_number}".encode()).digest()
            total += private_release(adapted, ids, records.labels, records.units, terms=terms, source=SeededBytes(seed))
        mean = total * 2.0**-study.scale_bits / (draft.rounds.batch_units * draft.privacy.clip_norm)
        state, velocity = optimizer.step(state, velocity, mean, adapted.layout.head_slice)
    adapted.load_state(state)


def _private_linear(
    study: Study, inputs: Sequence[np.ndarray], labels: Sequence[np.ndarray], test: np.ndarray, lr: float
) -> np.ndarray:
    """Test scores of a logistic regression on unit-length inputs, with the study's sampling, clipping and noise.

    A record is taken for a unit, and the noise is a plain Gaussian: this is a yardstick, nothing of it is released.
    """
    draft, rng = study.draft, np.random.default_rng(0)
    privacy = draft.privacy
    std = 2.0**-study.scale_bits * site_noise(
        privacy.noise_multiplier,
        privacy.clip_norm,
        len(inputs),
        privacy.max_dropouts,
        privacy.collusion,
        study.scale_bits,
        privacy.mode,
    )
    weight, velocity = np.zeros(inputs[0].shape[1]), np.zeros(inputs[0].shape[1])
    for _ in range(draft.rounds.rounds):
        total = np.zeros_like(weight)
        for x, y in zip(inputs, labels, strict=True):
            chosen = rng.random(len(x)) < privacy.sample_rate
            error = 1 / (1 + np.exp(-x[chosen] @ weight)) - y[chosen]
            norms = np.abs(error) * np.linalg.norm(x[chosen], axis=1)
            error *= np.minimum(1, privacy.clip_norm / np.maximum(norms, 1e-12))
            total += error @ x[chosen] + rng.normal(0, std, len(weight))
        velocity = draft.optimizer.momentum * velocity + total / (draft.rounds.batch_units * privacy.clip_norm)
        weight = weight - lr * velocity
    scores: np.ndarray = test @ weight
    return scores


@torch.no_grad()
def _scores(adapted: AdaptedModel, study: Study, sites: Sequence[Records]) -> np.ndarray:
    ids = [torch.from_numpy(records.tokens(study.record_schema())) for records in sites]
    parts = [part for one in ids for part in torch.split(one, _ROWS)]
    return torch.cat([classify(adapted, part) for part in parts]).numpy()


@torch.no_grad()
def _head_inputs(adapted: AdaptedModel, study: Study, records: Records) -> np.ndarray:
    """What the head sees of the unadapted backbone: [rows, 2D + 1], unit length."""
    assert adapted.head is not None
    ids = torch.from_numpy(records.tokens(study.record_schema()))
    states = torch.cat([pooled(adapted.model, part) for part in torch.split(ids, _ROWS)])
    inputs: np.ndarray = adapted.head.inputs(states).double().numpy()
    return inputs


def _word_inputs(study: Study, records: Records) -> np.ndarray:
    """Which words a record has, and a constant: [rows, words + 1], unit length."""
    ids = records.tokens(study.record_schema())
    has = np.zeros((len(ids), len(study.record_schema().words()) + 1))
    has[np.arange(len(ids))[:, None], ids] = 1.0
    has[:, 0] = 0.0  # padding
    has[:, -1] = 1.0
    inputs: np.ndarray = has / np.linalg.norm(has, axis=1, keepdims=True)
    return inputs
