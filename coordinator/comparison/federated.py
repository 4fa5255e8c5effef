"""Trains a study's rounds in one process, with the functions that sites run, on records that must be public."""

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ...client_node.replay import Checkpoint
from ...client_node.replay.following import RoundStart, beginning, follow, round_start, start_digest, start_state
from ...client_node.study import Study, StudyDraft, cost
from ...client_node.training.study_model import load_study_model
from ...client_node.training.trainer import release_terms
from ...models.adapters import AdaptedModel
from ...models.heads import pooled
from ...mpc.sharing import Ring
from ...mpc.sharing.ring import from_integers
from ...privacy.accounting import Mode
from ...privacy.mechanism.batches import BatchShapes, RowStates, entering_states, probed_shapes, used_tokens
from ...privacy.mechanism.sampling import SeededBytes
from ...privacy.mechanism.site_round import round_release
from ..studies.learning_rates import with_rates
from .linear import noise_of

_ROWS_SCORED, _ROWS_TRAINED, _ROWS_READ = 1024, 256, 64  # at once

# tokens [rows, length], targets ([rows] labels, or of text bool [rows, length]), unit of each row
SiteArrays = tuple[np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True, slots=True)
class Ready:
    """The parts of a run that no trained number moves: many runs of one model on the same records share them."""

    shapes: BatchShapes  # of batches, in which rows do not move each other's bits
    entering: Mapping[str, RowStates | None]  # site -> states below the trained layers, if any lie there


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
    ready: Ready | None = None,
    max_rows: int | None = None,
) -> None:
    """Trains `adapted` in place by the study's rounds, in `mode` instead of the study's own.

    The sites' and the server's steps are the real ones, with every option of the draft. The network and the secret
    sharing are left out: they add integers exactly. Rates that the draft leaves out are chosen for its own mode.
    `seed` fixes the drawn units in mode "none"; other modes draw from the operating system.

    Args:
        ready: of an earlier call of `made_ready` for the same model, sites and mode; None: it is made here.
        max_rows: that are computed at once, if they shall be fewer than usual: fewer are sooner probed.
    """
    ready = ready or made_ready(draft, adapted, sites, mode=mode, max_rows=max_rows)
    layout, ring = adapted.layout, Ring(64, scale_bits)
    draft = with_rates(draft, layout.dim - layout.head_slice.stop)
    draft = draft.model_copy(update={"privacy": draft.privacy.model_copy(update={"mode": mode})})
    state = start_state(draft, adapted.state())
    study = cost.provisional(draft, len(state), ring=ring, start=start_digest(state), head_size=layout.head_slice.stop)
    terms = {
        name: release_terms(
            draft,
            mode,
            site_noise=noise_of(draft, mode, scale_bits),
            scale_bits=scale_bits,
            max_rows=_rows_trained(draft, max_rows),
            site=name,
        )
        for name in sites
    }

    def total_of(start: RoundStart) -> tuple[bytes, int]:
        total = np.zeros(len(start.vector), dtype=np.int64)
        for name, (ids, labels, units) in sites.items():
            seeded = f"{seed}/{start.planned.number - 1}/{name}".encode()
            total += round_release(
                adapted, start.vector, ids, labels, units, terms=terms[name], shapes=ready.shapes,
                source=SeededBytes(seeded) if mode == "none" else os.urandom, entering=ready.entering[name],
            )  # fmt: skip
        return from_integers(total, ring).tobytes(), len(draft.participants.sites)  # nobody fails, and nobody tops up

    *_, last = rounds(study, beginning(study, state), total_of)
    adapted.load_state(last.exported[: layout.dim])


def rounds(
    study: Study, checkpoint: Checkpoint, total_of: Callable[[RoundStart], tuple[bytes, int]]
) -> Iterator[Checkpoint]:
    """Yields the checkpoint after each round of training that follows `checkpoint`, as every party computes it.

    Args:
        total_of: gives, for the start of a round, the ring elements of its total, and the number of sites in it.

    Raises:
        StateRefused, InvalidOptimizer: as `following.follow`.
    """
    while checkpoint.round < study.draft.rounds.rounds:
        total, kept = total_of(round_start(study, checkpoint))
        checkpoint = follow(study, checkpoint, total, kept=kept)
        yield checkpoint


def made_ready(
    draft: StudyDraft,
    adapted: AdaptedModel,
    sites: Mapping[str, SiteArrays],
    *,
    mode: Mode,
    max_rows: int | None = None,
) -> Ready:
    """Probes shapes of batches, and computes the frozen layers of all records, as sites do before a first round."""
    shapes = probed_shapes(
        adapted,
        max_tokens=draft.data.max_tokens,
        max_rows=_rows_trained(draft, max_rows),
        max_records=draft.data.max_records_per_unit,
    )
    threads = 1 if mode == "none" else None  # of a step
    entering = {
        name: _entering(adapted, ids, labels, shapes, threads=threads) for name, (ids, labels, _) in sites.items()
    }
    return Ready(shapes, entering)


def _rows_trained(draft: StudyDraft, most: int | None) -> int:
    """Rows that are computed at once, those of one unit at least."""
    return max(min(most or _ROWS_TRAINED, _ROWS_TRAINED), draft.data.max_records_per_unit)


def _entering(
    adapted: AdaptedModel, ids: np.ndarray, targets: np.ndarray, shapes: BatchShapes, *, threads: int | None
) -> RowStates | None:
    """Computes what lies below all that is trained once a record, as a site does; None if nothing does."""
    if not adapted.can_keep:
        return None
    found = dict(entering_states(adapted, ids, used_tokens(ids, targets), shapes, threads=threads))
    return lambda rows: [found[row] for row in rows.tolist()]


@torch.no_grad()
def logits(adapted: AdaptedModel, ids: np.ndarray) -> np.ndarray:
    """Computes the logits [rows] of the records with these tokens."""
    return torch.cat([adapted.classify(part) for part in torch.split(torch.from_numpy(ids), _ROWS_SCORED)]).numpy()


@torch.no_grad()
def head_inputs(adapted: AdaptedModel, ids: np.ndarray) -> np.ndarray:
    """Computes the head's inputs: [rows, width], unit length. Records of like length share a batch."""
    assert adapted.head is not None
    used = used_tokens(ids, np.zeros(len(ids)))
    inputs = np.empty((len(ids), adapted.head.weight.shape[-1]))
    for rows in np.array_split(np.argsort(used, kind="stable"), max(1, len(ids) // _ROWS_READ)):
        states = pooled(adapted.model, torch.from_numpy(ids[rows, : used[rows].max(initial=1)]), adapted.head.reads)
        inputs[rows] = adapted.head.inputs(states).double().numpy()
    return inputs
