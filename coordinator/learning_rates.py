"""Learning rates for a study whose draft leaves them out, from public numbers alone.

The mean update u = signal + noise is in clip units: the signal's length is at most 1, the noise has a known std s in
every entry. Over T rounds of momentum m each round's noise is added with the gain (1 - m^k) / (1 - m) for the k rounds
in which it acts, so an entry ends up lr * s * R away from where the signal alone had led it,

    R = sqrt(sum over k = 1..T of ((1 - m^k) / (1 - m))^2).

The ratio of noise to signal does not depend on lr at all; what lr decides is how far both go. So the rule fixes the
distance of the noise: lr = WALK / (s * R). For the head, whose inputs have unit length, that distance is the std of the
noise in a record's logit. Where there is little noise the loss itself sets the limit: heavy-ball descent on a loss of
curvature L is stable below lr = 2 (1 + m) / L, and the head's L is a quarter of the largest eigenvalue of its inputs'
second moment, over clip_norm for the update is in clip units; whitened inputs share their unit length among many
directions, and 1/2 is more than the largest takes. The adapters' rate is a fixed share of the head's.

Adam divides by the root of the second moment, which is at least about s: its step in the same noise has std
(1 - m) in place of s, and the same distance is kept.
"""

import math

from ..client_node.draft import StudyDraft

WALK = 2.0  # how far noise alone may move a logit through the head, in logits: the best was 1 to 3 where measured
ADAPTER_SHARE = 0.03  # of the head's rate
_CURVATURE = 1 / 8


def with_rates(draft: StudyDraft) -> StudyDraft:
    """The draft with the rates that it leaves out chosen; one that states both is given back as it is."""
    terms = draft.optimizer
    head_lr = terms.head_lr or _shortened(head_rate(draft))
    lr = terms.lr or _shortened(ADAPTER_SHARE * head_lr)
    return draft.model_copy(update={"optimizer": terms.model_copy(update={"lr": lr, "head_lr": head_lr})})


def head_rate(draft: StudyDraft) -> float:
    """The head's rate by the rule of this module."""
    terms = draft.optimizer
    noise = draft.noise_std / draft.update_divisor
    gains = ((1 - terms.momentum**k) / (1 - terms.momentum) for k in range(1, draft.rounds.rounds + 1))
    reach = math.sqrt(sum(gain**2 for gain in gains))
    if terms.kind == "adam":
        return WALK / ((1 - terms.momentum) * reach)
    limit = 2 * (1 + terms.momentum) / _CURVATURE * draft.privacy.clip_norm
    return min(limit, WALK / (noise * reach)) if noise else limit


def _shortened(rate: float) -> float:
    """Two digits: a rate is no more exact than that, and people read it."""
    return float(f"{rate:.2g}")
