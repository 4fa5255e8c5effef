"""Says from public numbers alone what a study's noise leaves to be learned.

In a round's mean update every trained number has noise of one std s, in clip units, and the update itself is at most
one clip long, if all records pull the same way. So s times the root of the number of trained numbers is the length of
the noise over that of the longest signal: what one round's step has of noise for each part of signal, at best. It does
not say how a study will come out. It says when adapters have too many numbers for these records, before anybody pays.
"""

import math
from dataclasses import dataclass

from ...client_node.study import StudyDraft

EARNED = 0.11  # only up to this may adapters have been worth anything; docs/utility.md, "Before anything is trained"


@dataclass(frozen=True, slots=True)
class Expectation:
    """Noise of one round's mean update over the longest signal."""

    whole: float  # of all trained numbers
    head: float | None  # of the head's alone; None without a head
    adapters: int  # trained numbers beside the head's

    def sentence(self) -> str:
        """Says it for people, with what was seen at such ratios."""
        found = f"In a round the noise is {self.whole:.2g} times as long as the longest mean update that there can be"
        if not self.adapters:
            return f"{found}; a head alone is trained."
        alone = "" if self.head is None else f", with the head alone {self.head:.2g} times"
        if self.whole <= EARNED:
            return f"{found}{alone}. At such a ratio adapters may have added 0.004 of AUC to a head: measured on names."
        return (
            f"{found}{alone}. Above {EARNED} adapters have added nothing to a head so far: try a head alone, fewer "
            "targets, a lower rank or more units a round, and compare them on public records: coordinator study compare"
        )


def expectation(draft: StudyDraft, *, trained: int, head: int) -> Expectation | None:
    """Computes the ratio of a draft whose noise is known; None without privacy.

    Args:
        trained: numbers that are trained.
        head: those of them that belong to the head.
    """
    if draft.privacy.mode == "none":
        return None
    std = draft.noise_std / draft.update_divisor  # in clip units
    return Expectation(
        whole=std * math.sqrt(trained), head=std * math.sqrt(head) if head else None, adapters=trained - head
    )
