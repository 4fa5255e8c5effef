"""Baselines for the joint model, trained in the clear by a party that holds both tables.

All models are scored on the same people: those that both owners know and that are held out.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import columns
import numpy as np
import prepare
from columns import Integers, Reals, Rows
from model import Optimizer, gradient_in_the_clear
from psi import normalised
from sklearn.linear_model import LogisticRegression

from confide.models.evaluation.metrics import Estimate, auc
from confide.privacy.mechanism.noise import discrete_gaussian


@dataclass(frozen=True, slots=True)
class Joined:
    """Both tables, joined in the clear."""

    alone: Rows  # the insurer's people that are not held out, common or not
    train: Integers  # [people, dim] joint rows of the common people, insurer's part first
    labels: Integers
    held_out: Integers
    held_out_labels: Integers
    held_out_ids: list[str]  # normalised
    insurers: int  # features that are the insurer's

    @classmethod
    def of(cls, insurer: Path, hospital: Path) -> "Joined":
        """Reads and joins the two tables."""
        left, right = columns.read(insurer, "insurer"), columns.read(hospital, "hospital")
        at_right = {normalised(one): at for at, one in enumerate(right.ids)}
        common = [at for at, one in enumerate(left.ids) if normalised(one) in at_right]
        is_held_out = np.array([columns.is_held_out(left.ids[at]) for at in common])
        found = left.at(common)
        ids = [normalised(one) for one in found.ids]
        joint = np.hstack([found.features, right.features[[at_right[one] for one in ids]]])
        assert found.labels is not None
        return cls(
            alone=left.at([at for at, one in enumerate(left.ids) if not columns.is_held_out(one)]),
            train=joint[~is_held_out],
            labels=found.labels[~is_held_out],
            held_out=joint[is_held_out],
            held_out_labels=found.labels[is_held_out],
            held_out_ids=[one for one, held in zip(ids, is_held_out, strict=True) if held],
            insurers=left.features.shape[1],
        )

    def score(self, weights: Integers) -> Estimate:
        """Computes the AUC of joint weights on the held-out people."""
        return auc(self.held_out @ weights.astype(np.float64), self.held_out_labels)


def without_privacy(data: Joined) -> Mapping[str, Estimate]:
    """Ordinary logistic regression on what each could see."""
    ours, theirs = slice(0, data.insurers), slice(data.insurers, None)
    alone, train, held_out = (rows.astype(np.float64) for rows in (data.alone.features, data.train, data.held_out))
    assert data.alone.labels is not None
    claims = _claims()

    def with_claims(rows: Reals, ids: Iterable[str]) -> Reals:
        return np.column_stack([rows, [claims[one] for one in ids]])

    fits = {
        "insurer alone": (alone, data.alone.labels, held_out[:, ours]),
        "hospital's columns alone": (train[:, theirs], data.labels, held_out[:, theirs]),
        "pooled": (train, data.labels, held_out),
        "insurer alone, if it had the year's claims": (
            with_claims(alone, map(normalised, data.alone.ids)),
            data.alone.labels,
            with_claims(held_out[:, ours], data.held_out_ids),
        ),
    }
    found = {}
    for name, (rows, labels, measured) in fits.items():
        model = LogisticRegression(C=100, max_iter=3000).fit(rows / 2**columns.SCALE_BITS, labels)
        scores = model.decision_function(measured / 2**columns.SCALE_BITS)
        found[name] = auc(scores, data.held_out_labels)
    return found


def in_the_clear(data: Joined, optimizer: Optimizer) -> Integers:
    """The weights that the joint training without noise must give, to the last bit."""

    def gradient(weights: Integers) -> Integers:
        return gradient_in_the_clear(data.train, data.labels, weights)

    return optimizer.train(gradient, data.train.shape[1])


def repeated(data: Joined, optimizer: Optimizer, site_noise: int, times: int) -> list[float]:
    """AUC of the joint training, `times` over, with fresh noise of three parties each: how much the noise matters."""
    dim = data.train.shape[1]

    def gradient(weights: Integers) -> Integers:
        noise: Integers = discrete_gaussian(site_noise, 3 * dim).reshape(3, dim).sum(axis=0)
        return noise + gradient_in_the_clear(data.train, data.labels, weights)

    return [data.score(optimizer.train(gradient, dim)).value for _ in range(times)]


def _claims() -> dict[str, float]:
    """The year's medical spending of every person by normalised id, on a scale like the features'."""
    table = prepare.read_table()
    scaled = np.log1p(table[prepare.CLAIMS]) * 2 ** (columns.SCALE_BITS - 2)
    return dict(zip("p" + table["person"], scaled, strict=True))
