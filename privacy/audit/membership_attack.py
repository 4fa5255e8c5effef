"""Membership attack on a trained model, by likelihood ratios from shadow models.

LiRA (Carlini et al. 2022, arXiv:2112.03570): shadow models are trained on random parts of the same pool of records.
For each record their confidences, on the logit scale, are taken for two Gaussians, of the shadows that had it and of
those that had not; the attack's score is the log ratio of the two at the attacked model's confidence. What matters is
how many members are found while hardly any other record is accused: the true positive rate at a small false positive
rate.

Where training shadow models costs too much, as with text, `calibrated` compares a record's confidence with that of the
model before training instead.

Pure statistics of confidences that somebody else computed. Records must be at hand, so this is for public ones: within
a federation nobody has both members and model.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import beta, norm

from ...models.evaluation.metrics import Estimate, auc
from ..errors import BatchMalformed

Reals = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

_FEW = 16  # shadows on either side of a record below which its own spread is worse than the pooled one
_LEAST_STD = 1e-6  # of confidences: shadows that agree to the last digit would make every ratio infinite


@dataclass(frozen=True, slots=True)
class Roc:
    """The attack's trade-off, thresholds from strict to lax: accuse every score at least that high."""

    false_positive_rate: Reals  # from 0 to 1
    true_positive_rate: Reals
    members: int
    nonmembers: int

    def true_positives_at(self, rate: float, *, confidence: float = 0.95) -> Estimate:
        """Largest true positive rate whose false positive rate is at most `rate`.

        The interval is Clopper and Pearson's over members, at that threshold: it does not count that non-members set
        the threshold by chance.
        """
        share = float(self.true_positive_rate[self.false_positive_rate <= rate].max())
        hits, tail = round(share * self.members), (1 - confidence) / 2
        low = float(beta.ppf(tail, hits, self.members - hits + 1)) if hits else 0.0
        high = float(beta.isf(tail, hits + 1, self.members - hits)) if hits < self.members else 1.0
        return Estimate(share, low, high, confidence)

    def points(self, count: int) -> list[tuple[float, float]]:
        """At most `count` points of the curve, evenly spread over the logarithm of the false positive rate.

        At each of these rates, the largest true positive rate; 0 and 1 are among them.
        """
        rates = np.concatenate([[0.0], np.geomspace(1 / self.nonmembers, 1.0, count - 1)])
        places = np.searchsorted(self.false_positive_rate, rates * (1 + 1e-12), side="right") - 1
        kept = sorted(set(places.tolist()))
        return [(float(self.false_positive_rate[i]), float(self.true_positive_rate[i])) for i in kept]


def logit_confidence(logits: npt.ArrayLike, labels: npt.ArrayLike) -> Reals:
    """log p / (1 - p) of the probability p that a classifier gives to the true label, from its logit for label 1."""
    found: Reals = np.where(np.asarray(labels) == 1, 1.0, -1.0) * np.asarray(logits, dtype=np.float64)
    return found


def likelihood_ratios(attacked: Reals, shadows: Reals, had: Mask) -> Reals:
    """[records], log density of the attacked model's confidence among shadows that had the record, less that among
    those that had not.

    A record that all shadows had, or none, is scored on the side that is known, by how unlikely the confidence is there
    in the direction of membership (the offline attack of the paper, section VI.C). With few shadows the spread is
    pooled over records, as the paper does below 64 models.

    Args:
        attacked: [records], the attacked model's `logit_confidence`.
        shadows: [shadows, records], the shadow models'.
        had: [shadows, records], whether the record was among those the shadow was trained on.

    Raises:
        BatchMalformed: shapes do not fit together, or there are fewer than two shadows.
    """
    if shadows.ndim != 2 or shadows.shape != had.shape or attacked.shape != shadows.shape[1:] or len(shadows) < 2:
        raise BatchMalformed(
            f"confidences {attacked.shape}, shadows {shadows.shape} and {had.shape} do not fit together"
        )
    (mean_in, std_in, count_in), (mean_out, std_out, count_out) = _fit(shadows, had), _fit(shadows, ~had)
    both = norm.logpdf(attacked, mean_in, std_in) - norm.logpdf(attacked, mean_out, std_out)
    only_out = -norm.logsf(attacked, mean_out, std_out)
    only_in = norm.logcdf(attacked, mean_in, std_in)
    scores: Reals = np.where(count_in == 0, only_out, np.where(count_out == 0, only_in, both))
    return scores


def calibrated(attacked: Reals, untrained: Reals) -> Reals:
    """[records], by how much training raised the confidence in each record: what was easy before tells nothing.

    The loss-based attack with difficulty calibration (Watson et al. 2022, arXiv:2111.08440), whose reference is the
    model from which training began. It needs no shadow model, and is weaker than `likelihood_ratios`.

    Args:
        attacked: [records], the attacked model's confidences: for text, minus the mean loss of a record's tokens.
        untrained: [records], the same of the model before it was trained.

    Raises:
        BatchMalformed: shapes do not fit together.
    """
    if attacked.ndim != 1 or attacked.shape != untrained.shape:
        raise BatchMalformed(f"confidences {attacked.shape} and {untrained.shape} do not fit together")
    return attacked - untrained


def roc(scores: Reals, is_member: Mask) -> Roc:
    """The ROC of an attack's scores; equal scores are accused together.

    Raises:
        BatchMalformed: shapes do not fit, or one side is empty.
    """
    if scores.ndim != 1 or scores.shape != is_member.shape or is_member.all() or not is_member.any():
        raise BatchMalformed(f"need scores of members and of others, got shapes {scores.shape} and {is_member.shape}")
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    hits, alarms = np.cumsum(is_member[order])[ends], np.cumsum(~is_member[order])[ends]
    members, others = int(is_member.sum()), int((~is_member).sum())
    return Roc(np.append(0.0, alarms / others), np.append(0.0, hits / members), members, others)


def attack_auc(scores: Reals, is_member: Mask, *, confidence: float = 0.95) -> Estimate:
    """Chance that a member scores above another record; 0.5 is guessing."""
    return auc(scores, is_member.astype(np.int64), confidence=confidence)


def _fit(shadows: Reals, chosen: Mask) -> tuple[Reals, Reals | float, npt.NDArray[np.int64]]:
    """Mean, std and number of the chosen shadows' confidences, record by record; the std pooled where they are few."""
    count = chosen.sum(0)
    mean = np.where(chosen, shadows, 0.0).sum(0) / np.maximum(count, 1)
    squares = np.where(chosen, (shadows - mean) ** 2, 0.0).sum(0)
    if (count >= _FEW).all():
        return mean, np.maximum(np.sqrt(squares / (count - 1)), _LEAST_STD), count
    freedom = int(np.maximum(count - 1, 0).sum())
    return mean, max(float(np.sqrt(squares.sum() / max(freedom, 1))), _LEAST_STD), count
