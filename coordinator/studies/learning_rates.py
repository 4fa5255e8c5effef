"""Chooses learning rates for a study whose draft leaves them out, from public numbers alone.

The mean update is signal plus noise, in clip units: the signal's length is at most 1, the noise has a known std s in
every entry. With momentum m, a round's noise that acts for k rounds is added with the gain (1 - m^k) / (1 - m). So
after T rounds the noise has moved an entry by a std of lr * s * R,

    R = sqrt(sum over k = 1..T of ((1 - m^k) / (1 - m))^2).

The ratio of noise to signal does not depend on lr; lr decides the distance that both go. The rule fixes the distance
that the noise goes.

The head's inputs have unit length, so that distance is the std of the noise in a record's logit: `HEAD_WALK`. If there
is little noise, the loss itself sets the limit: heavy-ball descent on a loss of curvature L is stable below
lr = 2 (1 + m) / L. L is a quarter of the largest eigenvalue of the inputs' second moment, divided by clip_norm because
the update is in clip units. Whitened inputs share their unit length among many directions; the rule takes 1/2 as the
largest eigenvalue.

Of several classes the most likely one is the answer, so that the noise of all logits counts: it goes `CLASS_WALK`.
Their loss has twice the curvature. A number lies on a scale from -1 to 1, and its squared error has four times the
curvature. Several tasks share one rate: their least walk, and their largest curvature times weight.

The effect of the adapters' noise on a logit grows with the root of their number d, because every number has a gradient
of its own. So they go `ADAPTER_WALK` as one vector, lr * s * R * sqrt(d); their rate is at most `ADAPTER_SHARE` of the
head's.

Adam divides by the root of the second moment, which is at least about s: the same noise moves it by 1 - m, momentum by
s. Its bias corrections enlarge the gain of early rounds. The distances stay the same.
"""

import math
from typing import TYPE_CHECKING

from ...client_node.study import StudyDraft

if TYPE_CHECKING:  # with torch, which the rate of a label needs not
    from ...models.heads.objectives import Objective

HEAD_WALK = 2.0  # in logits; the best was mostly 1 to 3 where it was measured, for 10 to 100 rounds
CLASS_WALK = 0.9  # of 20 classes 0.6 to 1.2 were as good, at three sample rates
NUMBER_WALK = 0.3  # not measured
ADAPTER_WALK = 4.0  # length, all adapters together
ADAPTER_SHARE = 0.03  # most of the adapters' rate over the head's
_CURVATURE = 1 / 8


def with_rates(draft: StudyDraft, adapters: int) -> StudyDraft:
    """Returns the draft with rates chosen for those that it leaves out; a draft that states both is not changed.

    Args:
        adapters: trained numbers beside the head's.
    """
    terms = draft.optimizer
    if draft.adapter.head == "lm":
        return draft  # which states the only one there is
    head_lr = terms.head_lr or _shortened(head_rate(draft, draft.data.kind.objective(draft.data.terms)))
    lr = terms.lr or _shortened(adapter_rate(draft, head_lr, adapters))
    return draft.model_copy(update={"optimizer": terms.model_copy(update={"lr": lr, "head_lr": head_lr})})


def head_rate(draft: StudyDraft, objective: "Objective | None" = None) -> float:
    """Computes the head's rate by the rule of this module.

    Args:
        objective: what the head learns; None: a label.
    """
    walk, (most, curvature) = _walk(draft), _bounds(objective)
    if draft.optimizer.kind == "adam":
        return most / walk
    limit = 2 * (1 + draft.optimizer.momentum) / curvature * draft.privacy.clip_norm
    return min(limit, most / walk) if walk else limit


def _bounds(objective: "Objective | None") -> tuple[float, float]:
    """Returns how far noise may move an output, and the curvature of the loss."""
    if objective is None:
        return HEAD_WALK, _CURVATURE
    from ...models.heads.objectives import OneClass, PointOnScale, SeveralTasks

    match objective:
        case OneClass():
            return CLASS_WALK, 2 * _CURVATURE
        case PointOnScale():
            return NUMBER_WALK, 4 * _CURVATURE
        case SeveralTasks(tasks):
            bounds = [(*_bounds(task.objective), task.weight) for task in tasks]
            return min(walk for walk, _, _ in bounds), max(curvature * weight for _, curvature, weight in bounds)
    return HEAD_WALK, _CURVATURE


def adapter_rate(draft: StudyDraft, head_lr: float, adapters: int) -> float:
    """Computes the rate of `adapters` trained numbers beside a head with rate `head_lr`."""
    walk, most = _walk(draft), ADAPTER_SHARE * head_lr
    return min(most, ADAPTER_WALK / (walk * math.sqrt(adapters))) if walk and adapters else most


def _walk(draft: StudyDraft) -> float:
    """Std of an entry's noise after all rounds at a rate of 1."""
    momentum, is_adam = draft.optimizer.momentum, draft.optimizer.kind == "adam"
    gain = squares = 0.0
    for entered in range(draft.rounds.rounds, 0, -1):  # the round whose noise it is, from the last one back
        gain = (1 / (1 - momentum**entered) if is_adam else 1.0) + momentum * gain
        squares += gain**2
    noise = 1 - momentum if is_adam else draft.noise_std / draft.update_divisor
    return noise * math.sqrt(squares)


def _shortened(rate: float) -> float:
    """Rounds to two digits: a rate is no more exact than that, and people read it."""
    return float(f"{rate:.2g}")
