"""Learning rates for a study whose draft leaves them out, from public numbers alone.

The mean update is signal plus noise, in clip units: the signal's length is at most 1, the noise has a known std s in
every entry. Over T rounds of momentum m a round's noise is added with the gain (1 - m^k) / (1 - m) for the k rounds in
which it acts, so at the end an entry is lr * s * R away from where the signal alone had led it,

    R = sqrt(sum over k = 1..T of ((1 - m^k) / (1 - m))^2).

The ratio of noise to signal does not depend on lr; what lr decides is how far both go. So the rule fixes the distance
that the noise goes.

The head's inputs have unit length, so that distance is the std of the noise in a record's logit: `HEAD_WALK`. Where
there is little noise the loss itself sets the limit: heavy-ball descent on a loss of curvature L is stable below
lr = 2 (1 + m) / L. L is a quarter of the largest eigenvalue of the inputs' second moment, over clip_norm as the update
is in clip units; whitened inputs share their unit length among many directions, and half of it is taken for the
largest.

What a walk of the adapters does to a logit grows with the root of their number d, for every number has a gradient of
its own: they go `ADAPTER_WALK` as one vector, lr * s * R * sqrt(d), and never faster than a fixed share of the head.

Adam divides by the root of the second moment, which is at least about s: the same noise moves it by 1 - m where
momentum moves by s, its bias corrections enlarge the gain of early rounds, and the same distances are kept.
"""

import math

from ...client_node.study import StudyDraft

HEAD_WALK = 2.0  # in logits; the best was mostly 1 to 3 where it was measured, for 10 to 100 rounds
ADAPTER_WALK = 4.0  # length, all adapters together
ADAPTER_SHARE = 0.03  # most of the adapters' rate over the head's
_CURVATURE = 1 / 8


def with_rates(draft: StudyDraft, adapters: int) -> StudyDraft:
    """The draft with the rates that it leaves out chosen; one that states both is given back as it is.

    Args:
        adapters: trained numbers beside the head's.
    """
    terms = draft.optimizer
    if draft.adapter.head == "lm":
        return draft  # which states the only one there is
    head_lr = terms.head_lr or _shortened(head_rate(draft))
    lr = terms.lr or _shortened(adapter_rate(draft, head_lr, adapters))
    return draft.model_copy(update={"optimizer": terms.model_copy(update={"lr": lr, "head_lr": head_lr})})


def head_rate(draft: StudyDraft) -> float:
    """The head's rate by the rule of this module."""
    walk = _walk(draft)
    if draft.optimizer.kind == "adam":
        return HEAD_WALK / walk
    limit = 2 * (1 + draft.optimizer.momentum) / _CURVATURE * draft.privacy.clip_norm
    return min(limit, HEAD_WALK / walk) if walk else limit


def adapter_rate(draft: StudyDraft, head_lr: float, adapters: int) -> float:
    """The rate of `adapters` trained numbers beside a head at `head_lr`."""
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
    """Two digits: a rate is no more exact than that, and people read it."""
    return float(f"{rate:.2g}")
