"""A membership inference attack on a demo's adapters, in one process: the demo's records are public.

The shadow models are heads alone on the frozen backbone's pooled states, which are computed once. Each is trained with
the study's rounds, sampling, clipping and noise on a random part of all records, as large as the real training part.
Heads alone are weaker shadow models than whole adapters; `benchmarks/audit.py --membership` trains those.

A study of free text has no head, and shadows would take as long as the run: its adapters are attacked by how far they
lowered each record's loss.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
import torch

from ...client_node.policy import SitePolicy
from ...client_node.study import Study, StudyDraft
from ...client_node.training.study_model import StudyModel
from ...models.adapters import AdaptedModel
from ...privacy.accounting import Mode
from ...privacy.audit.membership_attack import attack_auc, calibrated, likelihood_ratios, logit_confidence, roc
from ...privacy.ledger import chain
from ...privacy.report.schema import MembershipFacts, RocPoint, dump
from ..comparison.federated import SiteArrays, head_inputs, logits
from ..comparison.linear import private_linear
from ..store import Store
from ..store.tables import PrivacyTest
from .baselines import site_arrays, text_arrays

SHADOW_MODEL = "a head alone on the frozen backbone, by the same rounds, sampling, clipping and noise"
NO_SHADOWS = "none; a record counts as used by how far training lowered the mean loss of its learned tokens"
_SHADOWS = 16
_POINTS = 100  # of a ROC
_TEXTS = 500  # that are attacked, of each kind: a text costs a pass through every model
_TEXTS_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class Pool:
    """All records of a study, training and held out, by site."""

    sites: tuple[SiteArrays, ...]
    is_member: tuple[np.ndarray, ...]  # of each site's rows: True if the study trained on it

    @classmethod
    def read(cls, study: Study, train: Sequence[SitePolicy], held_out: Sequence[SitePolicy]) -> "Pool":
        """Reads the records that the policies name; a site has one policy for training, one for held-out records."""
        sites, members = [], []
        for own_train, own_held_out in zip(train, held_out, strict=True):
            inside, outside = site_arrays(own_train, study), site_arrays(own_held_out, study)
            sites.append(_joined(inside, outside))
            members.append(np.arange(len(sites[-1][1])) < len(inside[1]))
        return cls(tuple(sites), tuple(members))

    @property
    def labels(self) -> np.ndarray:
        """Labels of all records, site after site."""
        return np.concatenate([labels for _, labels, _ in self.sites])

    def confidences(self, adapted: AdaptedModel) -> np.ndarray:
        """Computes a model's confidence in the label of every record."""
        return logit_confidence(np.concatenate([logits(adapted, ids) for ids, _, _ in self.sites]), self.labels)


@dataclass(frozen=True, slots=True)
class TextPool:
    """Texts of a study, training and held out, drawn at random: as many of each as there are, or 500."""

    ids: np.ndarray  # [rows, length]
    targets: np.ndarray  # bool [rows, length]
    is_member: np.ndarray  # bool [rows]

    @classmethod
    def read(
        cls, model: StudyModel, study: Study, train: Sequence[SitePolicy], held_out: Sequence[SitePolicy]
    ) -> "TextPool":
        """Reads the records that the policies name by the model's tokenizer."""
        rng, drawn = np.random.default_rng(), []
        for policies in (train, held_out):
            named = zip(study.site_names(), policies, strict=True)
            ids, targets, units = reduce(_joined, [text_arrays(own, study, model, site=site) for site, own in named])
            rows = rng.permutation(len(ids))[:_TEXTS]
            drawn.append((ids[rows], targets[rows], units[rows]))
        inside, outside = drawn
        ids, targets, _ = _joined(inside, outside)
        return cls(ids, targets, np.arange(len(ids)) < len(inside[0]))

    @torch.no_grad()
    def confidences(self, adapted: AdaptedModel) -> np.ndarray:
        """Computes a model's confidence in every text: minus its loss."""
        batches = (torch.split(torch.from_numpy(array), _TEXTS_AT_ONCE) for array in (self.ids, self.targets))
        losses = torch.cat([adapted.losses(*batch) for batch in zip(*batches, strict=True)])
        found: np.ndarray = -losses.double().numpy()
        return found


@dataclass(frozen=True, slots=True)
class Attacked:
    """An attacked model: its confidences and its training mode."""

    name: str  # in words
    mode: Mode
    confidences: np.ndarray


def attack(
    store: Store, run_id: str, study: Study, pool: Pool, untouched: AdaptedModel, attacked: Sequence[Attacked]
) -> list[MembershipFacts]:
    """Attacks each model with shadow models trained in its own mode, and stores the results.

    Args:
        untouched: the backbone in the state from which studies start.
    """
    inputs = [head_inputs(untouched, ids) for ids, _, _ in pool.sites]
    is_member, found = np.concatenate(pool.is_member), []
    for one in attacked:
        shadows, had = _shadows(study, pool, inputs, one.mode)
        scores = likelihood_ratios(one.confidences, shadows, had)
        found.append(_facts(run_id, study, is_member, one, scores, shadows=len(shadows), shadow_model=SHADOW_MODEL))
    return _stored(store, run_id, found)


def attack_by_loss(
    store: Store, run_id: str, study: Study, pool: TextPool, untouched: np.ndarray, attacked: Sequence[Attacked]
) -> list[MembershipFacts]:
    """Attacks each model of a study of free text by its losses, and stores the results.

    Args:
        untouched: confidences of the model from which the study started.
    """
    found = [
        _facts(
            run_id, study, pool.is_member, one, calibrated(one.confidences, untouched),
            shadows=0, shadow_model=NO_SHADOWS,
        )
        for one in attacked
    ]  # fmt: skip
    return _stored(store, run_id, found)


def _stored(store: Store, run_id: str, found: list[MembershipFacts]) -> list[MembershipFacts]:
    for facts in found:
        said = (
            f"membership attack on {facts.attacked} of run {run_id}: AUC {facts.auc:.3f}, "
            f"{100 * facts.tpr_at_1_percent_fpr:.2f} % of members at 1 % false alarms"
        )
        store.add_privacy_test(PrivacyTest(run=run_id, kind="membership", facts=json.dumps(dump(facts))), said)
    return found


def _shadows(study: Study, pool: Pool, inputs: list[np.ndarray], mode: Mode) -> tuple[np.ndarray, np.ndarray]:
    """Trains shadow heads on random units; returns their confidences [shadows, records] and the records of each."""
    draft = _in_mode(study.draft, mode)
    rng, everything, labels = np.random.default_rng(), np.concatenate(inputs), pool.labels
    share = float(np.concatenate(pool.is_member).mean())
    confidences, had = [], []
    for _ in range(_SHADOWS):
        own = [_random_units(units, share, rng) for _, _, units in pool.sites]
        scores = private_linear(
            draft,
            [x[rows] for x, rows in zip(inputs, own, strict=True)],
            [site_labels[rows] for (_, site_labels, _), rows in zip(pool.sites, own, strict=True)],
            everything,
            lr=draft.optimizer.rates[1],
            scale_bits=study.scale_bits,
            rng=rng,
            units=[units[rows] for (_, _, units), rows in zip(pool.sites, own, strict=True)],
        )
        confidences.append(logit_confidence(scores, labels))
        had.append(np.concatenate(own))
    return np.stack(confidences), np.stack(had)


def _facts(
    run_id: str,
    study: Study,
    is_member: np.ndarray,
    attacked: Attacked,
    scores: np.ndarray,
    *,
    shadows: int,
    shadow_model: str,
) -> MembershipFacts:
    curve, area = roc(scores, is_member), attack_auc(scores, is_member)
    one, tenth = curve.true_positives_at(0.01), curve.true_positives_at(0.001)
    return MembershipFacts(
        run=run_id,
        study=study.study_hash,
        time=chain.now(),
        attacked=attacked.name,
        is_private=attacked.mode != "none",
        shadows=shadows,
        shadow_model=shadow_model,
        members=curve.members,
        nonmembers=curve.nonmembers,
        auc=area.value,
        auc_low=area.low,
        auc_high=area.high,
        tpr_at_1_percent_fpr=one.value,
        tpr_at_1_percent_fpr_low=one.low,
        tpr_at_1_percent_fpr_high=one.high,
        tpr_at_01_percent_fpr=tenth.value,
        tpr_at_01_percent_fpr_low=tenth.low,
        tpr_at_01_percent_fpr_high=tenth.high,
        confidence=area.confidence,
        roc=[RocPoint(false_positive_rate=false, true_positive_rate=true) for false, true in curve.points(_POINTS)],
    )


def _in_mode(draft: StudyDraft, mode: Mode) -> StudyDraft:
    return draft.model_copy(update={"privacy": draft.privacy.model_copy(update={"mode": mode})})


def _random_units(units: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    names, unit = np.unique(units, return_inverse=True)
    chosen: np.ndarray = (rng.random(len(names)) < share)[unit]
    return chosen


def _joined(first: SiteArrays, second: SiteArrays) -> SiteArrays:
    """Puts the rows of the second behind those of the first, all as long as the longest."""
    width = max(first[0].shape[1], second[0].shape[1])
    ids, targets, units = (
        np.concatenate([np.pad(a, ((0, 0), (0, width - a.shape[1]))) if a.ndim == 2 else a for a in pair])
        for pair in zip(first, second, strict=True)
    )
    return ids, targets, units
