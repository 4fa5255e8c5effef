"""An audit of this site's own step: the real training, on a study's terms, against what the ledger charges for it.

The step runs as in a round: the study's model from this site's folder, its limits and workers. In place of the table
stands one record of it, given to many made-up units, and in place of a round's state random numbers at which its
gradient is far above the clip norm. Nothing is charged, as nothing leaves: releases are looked at and dropped.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..models.records.tasks import OutcomeTerms
from ..privacy.accounting import Release
from ..privacy.ledger import canonical
from ..privacy.ledger.charges import Charge
from ..privacy.mechanism.adaptive_clipping import COUNT_WEIGHT
from .approval import charges
from .approval.catalogue import find_study
from .data import Records, read
from .enrolment import Enrolment
from .errors import NothingToAudit
from .policy import SitePolicy, load_policy
from .study import Study
from .training.warm_model import WarmModel

if TYPE_CHECKING:
    from ..privacy.audit.black_box import ChargeCheck
    from .training.study_model import StudyModel

ROUNDS = 16
_STEEP = 30.0  # of the head's weights over the clip norm
_TRIES = 50  # to find numbers at which the model is wrong about the record: about half of them are


@dataclass(frozen=True, kw_only=True, slots=True)
class StepAudit:
    """The audit of a study's step at this site. For this site's people: nothing of it is sent."""

    study: Study
    release: Release  # as charged
    is_charged: bool  # False: no round has been charged yet, and this is what the first would be
    check: "ChargeCheck"


def audit_step(home: Path, text: str, *, rounds: int = ROUNDS) -> StepAudit:
    """Runs some rounds of a study's step on a made-up table and compares them with the charge of a round.

    Args:
        text: name or hash of a study.

    Raises:
        NothingToAudit: the study has no privacy, this node is no site of it, or the table has no record.
        StudyUnknown: no study has that name or hash, or several have.
        ModelUnusable: the backbone or the limits here do not fit the study.
        DataInvalid: the table does not fit the study.
    """
    from ..privacy.audit.black_box import check_releases, most_units

    study, policy, name = find_study(home, text), load_policy(home), Enrolment.load(home).name
    if name not in study.site_names() or study.draft.privacy.mode == "none":
        raise NothingToAudit(f"study {study.name} asks no private step of {name}: there is nothing to audit")
    charged = _charged(home, study)
    release = charged or charges.charge(study, policy, run="audit", round_number=1).release
    one = _first(study, read(policy, study, site=name))
    weight = study.draft.aggregation.weight_of(name)
    units = most_units(release, study.draft.max_norm, weight=weight)
    state, gradient = _steep(study, policy, name, one)
    model = WarmModel(name, read=lambda *_: _repeated(one, units))
    try:
        compute = model.contribution(study, policy, study.planned_round(1))
        model.load(study, policy).keep(seconds=math.inf)  # as in a round, and here in memory alone
        releases = [compute(state) for _ in range(rounds)]
    finally:
        model.stop()
    check = check_releases(release, releases, units, gradient, weight=weight)
    return StepAudit(study=study, release=release, is_charged=charged is not None, check=check)


def _charged(home: Path, study: Study) -> Release | None:
    """The release that the ledger charged last for an update of the study, as reserved; None if there is none."""
    if (begun := charges.ledger_if_begun(home)) is None:
        return None
    found = None
    with begun as ledger:
        for entry in ledger.walk():
            if entry.kind == "reserve" and entry.body.get("study") == study.study_hash:
                charge = canonical.from_record(Charge, entry.body)
                found = charge.release if charge.purpose == "update" else found
    return found


def _first(study: Study, records: Records) -> Records:
    """Takes the first record that tells something the head learns, whose gradient can be made steep; or else any."""
    terms, rows = study.draft.data.terms, len(records.units)
    tells = np.ones(rows, dtype=np.bool_)
    if isinstance(terms, OutcomeTerms):
        of_head = terms.tells(records.columns, rows, of_head=True)
        tells = of_head if of_head.any() else terms.tells(records.columns, rows)
    if not tells.any():
        raise NothingToAudit("the table has no record to try the step on")
    return _repeated(records, 1, first=int(tells.argmax()))


def _repeated(records: Records, times: int, first: int = 0) -> Records:
    """Repeats one record, the first or another one, for each of so many units."""
    row = slice(first, first + 1)
    columns = {name: np.repeat(column[row], times) for name, column in records.columns.items()}
    labels = None if records.labels is None else np.repeat(records.labels[row], times)
    return Records(columns, np.arange(times), labels)


def _steep(study: Study, policy: SitePolicy, site: str, one: Records) -> tuple[np.ndarray, np.ndarray]:
    """Finds trained numbers at which the record's gradient is far above the clip norm, and gives them with it."""
    model, rng, clip = _model(study, policy), np.random.default_rng(), study.draft.privacy.clip_norm or 1.0
    layout = model.adapted.layout
    for _ in range(_TRIES):
        state = rng.normal(size=study.dim)
        state[layout.head_slice] *= _STEEP * clip
        state[layout.dim :] = 0.0  # an adaptive clip's logarithm: the clip is where it starts
        state = state.astype(np.float32)
        gradient = _gradient(study, model, site, one, state[: layout.dim])
        if np.isfinite(gradient).all() and np.linalg.norm(gradient) > 4 * clip:
            break
    else:
        if not clip < np.linalg.norm(gradient) < np.inf:  # NaN fails too
            raise NothingToAudit(
                "at none of the numbers that were tried a record of this table has a gradient above the clip norm, so "
                "clipping would not be seen"
            )
    if study.dim > layout.dim:  # an adaptive clip counts the unit among those above it
        count = np.full(study.dim - layout.dim, -COUNT_WEIGHT / 2)
        gradient = np.concatenate([gradient / np.linalg.norm(gradient), count])
    return state, gradient


def _gradient(study: Study, model: "StudyModel", site: str, one: Records, numbers: np.ndarray) -> np.ndarray:
    """Computes what the record adds to a sum before it is clipped, by plain autograd."""
    from ..privacy.audit.engine_checks import unit_gradients

    layout, examples = model.adapted.layout, model.examples(one)
    model.adapted.load_state(numbers)
    gradient: np.ndarray = unit_gradients(model.adapted, examples.ids, examples.targets)[0]
    if (rank := study.draft.adapter.rank_of(site)) is not None:
        for name, place in layout.slices.items():
            if name.endswith(".lora_B"):
                gradient[place].reshape(layout.shapes[name])[..., rank:] = 0.0
    return gradient


def _model(study: Study, policy: SitePolicy) -> "StudyModel":
    from .training.study_model import load_study_model

    return load_study_model(study.draft, policy.backbone.directory, expected_hash=study.backbone_hash)
