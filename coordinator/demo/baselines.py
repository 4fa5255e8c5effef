"""Baselines for a private result, computed in one process from records that must be public.

`references` computes four baselines of a demo on one split: the untrained head, the same study without noise and secret
sharing, the head alone under the same noise (to separate the adapters' effect from the head's), and a private logistic
regression on the record's words, which needs no language model. `benchmarks/quality.py` makes its table with the
functions below it. `answer_references` computes those of a study whose answers are right or wrong, words or classes:
the backbone by itself, and the same study without noise and secret sharing.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...client_node.data import read as read_records
from ...client_node.policy import SitePolicy
from ...client_node.replay import Checkpoint
from ...client_node.replay.broadcast import broadcast
from ...client_node.replay.following import start_state
from ...client_node.replay.server_optimizer import server_step
from ...client_node.study import Study, StudyDraft
from ...client_node.training.study_model import StudyModel, load_study_model
from ...client_node.training.trainer import release_terms
from ...models.adapters import AdaptedModel
from ...models.evaluation.metrics import auc
from ...models.heads import pooled
from ...models.records.kind import Examples
from ...privacy.accounting import Mode, site_noise
from ...privacy.mechanism.batches import BatchShapes, RowStates, entering_states, probed_shapes, used_tokens
from ...privacy.mechanism.sampling import SeededBytes
from ...privacy.mechanism.site_round import round_release
from ..studies.learning_rates import with_rates

WORDS_LR = 10.0  # rate of the regression on words; its inputs have unit length like the head's
_ROWS_SCORED, _ROWS_TRAINED = 1024, 256  # at once

# tokens [rows, length], targets ([rows] labels, or of text bool [rows, length]), unit of each row
SiteArrays = tuple[np.ndarray, np.ndarray, np.ndarray]


def references(
    study: Study,
    backbone: Path,
    train: Sequence[SitePolicy],
    held_out: Sequence[SitePolicy],
    *,
    on_nonprivate: Callable[[AdaptedModel], None] = lambda _: None,
) -> dict[str, Any]:
    """Computes AUC on all held-out records: `auc_before`, `auc_nonprivate`, `auc_head_only`, `auc_control`.

    Args:
        train: one policy a site, in the study's order.
        on_nonprivate: called with the model trained without noise.
    """
    draft, scale_bits = study.draft, study.scale_bits
    trained_on, tested_on = ([site_arrays(policy, study) for policy in part] for part in (train, held_out))
    adapted = untrained(draft, backbone, expected_hash=study.backbone_hash)

    def linear(inputs_of: Callable[[np.ndarray], np.ndarray], lr: float) -> np.ndarray:
        inputs = [inputs_of(ids) for ids, _, _ in trained_on]
        test = np.concatenate([inputs_of(ids) for ids, _, _ in tested_on])
        labels, units = [labels for _, labels, _ in trained_on], [units for _, _, units in trained_on]
        rng = np.random.default_rng(0)
        return private_linear(draft, inputs, labels, test, lr=lr, scale_bits=scale_bits, rng=rng, units=units)

    before = [logits(adapted, ids) for ids, _, _ in tested_on]
    head_only = linear(lambda ids: head_inputs(adapted, ids), draft.optimizer.rates[1])
    control = linear(lambda ids: word_inputs(draft, ids), WORDS_LR)
    sites = dict(zip(study.site_names(), trained_on, strict=True))
    federate(draft, adapted, sites, mode="none", scale_bits=scale_bits, seed=0)
    on_nonprivate(adapted)
    nonprivate = [logits(adapted, ids) for ids, _, _ in tested_on]
    scores = {
        "before": np.concatenate(before),
        "nonprivate": np.concatenate(nonprivate),
        "head_only": head_only,
        "control": control,
    }
    labels = np.concatenate([labels for _, labels, _ in tested_on])
    return {f"auc_{name}": auc(found, labels).value for name, found in scores.items()}


def answer_references(
    study: Study, untouched: StudyModel, train: Sequence[SitePolicy], held_out: Sequence[SitePolicy]
) -> dict[str, Any]:
    """Computes every metric on all held-out records, of the backbone as it starts and of the study without noise.

    Args:
        untouched: the study's model as it starts; afterwards it is the one that was trained without noise.
        train: one policy a site, in the study's order.
    """
    tested_on = [Examples(*text_arrays(policy, study, untouched)) for policy in held_out]
    sites = zip(study.site_names(), [text_arrays(policy, study, untouched) for policy in train], strict=True)
    before = untouched.evaluate(tested_on)
    federate(study.draft, untouched.adapted, dict(sites), mode="none", scale_bits=study.scale_bits, seed=0)
    nonprivate = untouched.evaluate(tested_on)
    return {
        f"{metric}_{name}": estimate["value"]
        for name, found in (("before", before), ("nonprivate", nonprivate))
        for metric, estimate in found.items()
        if metric != "records"
    }


def untrained(draft: StudyDraft, backbone: Path, *, expected_hash: str | None = None) -> AdaptedModel:
    """Loads the backbone with the study's adapters and head in their initial state."""
    return load_study_model(draft, backbone, expected_hash=expected_hash).adapted


def federate(
    draft: StudyDraft,
    adapted: AdaptedModel,
    sites: Mapping[str, SiteArrays],
    *,
    mode: Mode,
    scale_bits: int,
    seed: int,
) -> None:
    """Trains `adapted` in place by the study's rounds, in `mode` instead of the study's own.

    The sites' and the server's steps are the real ones, with every option of the draft. The network and the secret
    sharing are left out: they add integers exactly. Rates that the draft leaves out are chosen for its own mode.
    `seed` fixes the drawn units in mode "none"; other modes draw from the operating system.
    """
    layout = adapted.layout
    draft = with_rates(draft, layout.dim - layout.head_slice.stop)
    draft = draft.model_copy(update={"privacy": draft.privacy.model_copy(update={"mode": mode})})
    terms = {
        name: release_terms(
            draft,
            mode,
            site_noise=noise_of(draft, mode, scale_bits),
            scale_bits=scale_bits,
            max_rows=max(_ROWS_TRAINED, draft.data.max_records_per_unit),
            site=name,
        )
        for name in sites
    }
    shapes = probed_shapes(
        adapted,
        max_tokens=draft.data.max_tokens,
        max_rows=_ROWS_TRAINED,
        max_records=draft.data.max_records_per_unit,
    )
    threads = 1 if mode == "none" else None  # of a step
    entering = {
        name: _entering(adapted, ids, labels, shapes, threads=threads) for name, (ids, labels, _) in sites.items()
    }
    checkpoint = Checkpoint.beginning(start_state(draft, adapted.state()))
    form = draft.state_format(len(checkpoint.state))
    for round_number in range(draft.rounds.rounds):
        sent, residual = broadcast(form, checkpoint)
        state = form.decode(sent)
        total = np.zeros(len(state), dtype=np.int64)
        for name, (ids, labels, units) in sites.items():
            source = SeededBytes(f"{seed}/{round_number}/{name}".encode()) if mode == "none" else os.urandom
            total += round_release(
                adapted, state, ids, labels, units, terms=terms[name], shapes=shapes, source=source,
                entering=entering[name],
            )  # fmt: skip
        after = server_step(draft, checkpoint, total * 2.0**-scale_bits, layout.head_slice)
        checkpoint = replace(after, residual=residual)
    adapted.load_state(checkpoint.exported[: layout.dim])


def _entering(
    adapted: AdaptedModel, ids: np.ndarray, targets: np.ndarray, shapes: BatchShapes, *, threads: int | None
) -> RowStates | None:
    """Computes the frozen layers once a record, as a site does; None if no layer lies below what is trained."""
    if not adapted.frozen_layers:
        return None
    found = dict(entering_states(adapted, ids, used_tokens(ids, targets), shapes, threads=threads))
    return lambda rows: [found[row] for row in rows.tolist()]


def private_linear(
    draft: StudyDraft,
    inputs: Sequence[np.ndarray],
    labels: Sequence[np.ndarray],
    test: np.ndarray,
    *,
    lr: float,
    scale_bits: int,
    rng: np.random.Generator,
    units: Sequence[np.ndarray] | None = None,
) -> np.ndarray:
    """Scores `test` by a logistic regression with the study's rounds, sampling, clip_norm, noise and momentum.

    The noise is a plain Gaussian: this is a baseline, and nothing of it is released.

    Args:
        inputs: [rows, width] of each site.
        labels: [rows] of each site, 0 or 1.
        units: [rows] of each site, any numbers: the unit of each record. Without it each record is a unit of its own.
    """
    if units is None:
        units = [np.arange(len(site_labels)) for site_labels in labels]
    privacy = draft.privacy
    noise_std = 2.0**-scale_bits * noise_of(draft, privacy.mode, scale_bits) / privacy.clip_unit  # in clip units
    weight = velocity = np.zeros(test.shape[1])
    for _ in range(draft.rounds.rounds):
        total = np.zeros_like(weight)
        for x, y, unit_of_row in zip(inputs, labels, units, strict=True):
            rows, starts = _drawn(unit_of_row, privacy.sample_rate, draft.data.max_records_per_unit, rng)
            if len(rows):
                error = 1 / (1 + np.exp(-x[rows] @ weight)) - y[rows]
                sizes = np.diff(starts, append=len(rows))
                gradients = np.add.reduceat(error[:, None] * x[rows], starts) / sizes[:, None]
                norms = np.linalg.norm(gradients, axis=1)
                total += (1 / np.maximum(norms, privacy.clip_norm)) @ gradients
            total += rng.normal(0, noise_std, len(weight))
        velocity = draft.optimizer.momentum * velocity + total / draft.rounds.batch_units
        weight = weight - lr * velocity
    scores: np.ndarray = test @ weight
    return scores


def _drawn(
    unit_of_row: np.ndarray, sample_rate: float, most: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draws a Poisson sample of units; returns their rows, at most `most` of each, and where each unit begins."""
    by_chance = rng.permutation(len(unit_of_row))
    names, of_row = np.unique(unit_of_row[by_chance], return_inverse=True)
    order = np.argsort(of_row, kind="stable")
    rows, of_row = by_chance[order], of_row[order]
    place = np.arange(len(rows)) - np.searchsorted(of_row, of_row)  # within the unit
    kept = (rng.random(len(names)) < sample_rate)[of_row] & (place < most)
    return rows[kept], np.flatnonzero(np.diff(of_row[kept], prepend=-1))


def noise_of(draft: StudyDraft, mode: Mode, scale_bits: int) -> int:
    """Computes the std of one site's integer noise in `mode`, in ring units."""
    privacy = draft.privacy
    return site_noise(
        privacy.noise_multiplier,
        privacy.sensitivity,
        len(draft.participants.sites),
        privacy.spared_sites,
        privacy.collusion,
        scale_bits,
        mode,
    )


@torch.no_grad()
def logits(adapted: AdaptedModel, ids: np.ndarray) -> np.ndarray:
    """Computes the logits [rows] of the records with these tokens."""
    return torch.cat([adapted.classify(part) for part in torch.split(torch.from_numpy(ids), _ROWS_SCORED)]).numpy()


def word_inputs(draft: StudyDraft, ids: np.ndarray) -> np.ndarray:
    """Encodes the words of each record as 0 or 1, with a constant in padding's place: [rows, words], unit length."""
    has = np.zeros((len(ids), len(draft.record_schema().words())))
    np.put_along_axis(has, ids, 1.0, axis=1)
    has[:, 0] = 1.0
    inputs: np.ndarray = has / np.linalg.norm(has, axis=1, keepdims=True)
    return inputs


@torch.no_grad()
def head_inputs(adapted: AdaptedModel, ids: np.ndarray) -> np.ndarray:
    """Computes the head's inputs: [rows, 2D + 1], unit length."""
    assert adapted.head is not None
    states = torch.cat([pooled(adapted.model, part) for part in torch.split(torch.from_numpy(ids), _ROWS_SCORED)])
    inputs: np.ndarray = adapted.head.inputs(states).double().numpy()
    return inputs


def text_arrays(policy: SitePolicy, study: Study, model: StudyModel) -> SiteArrays:
    """Reads the records that a policy names as a site's trainer does, in a study of free text."""
    examples = model.examples(read_records(policy, study))
    return examples.ids, examples.targets, examples.units


def site_arrays(policy: SitePolicy, study: Study) -> SiteArrays:
    """Reads the records that a policy names as a site's trainer does, in a study with a classifier."""
    records = read_records(policy, study)
    assert records.labels is not None
    schema = study.record_schema()
    return schema.encode(schema.render(records.columns)), records.labels, records.units
