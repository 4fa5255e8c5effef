"""Says from public numbers alone what a study's noise leaves to be learned, and which model to expect most of.

In a round's mean update every trained number has noise of one std s, in clip units, and the update itself is at most
one clip long, if all records pull the same way. So s times the root of the number of trained numbers is the length of
the noise over that of the longest signal: what one round's step has of noise for each part of signal, at best. It does
not say how a study will come out. It says where a study lies among those that were measured, before anybody pays:
docs/utility.md, "Before anything is trained".
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from ...client_node.errors import StudyInvalid
from ...client_node.study import StudyDraft
from ...client_node.study.cost import solve_noise
from ...mpc.errors import MpcError

EARNED = 0.11  # only up to this may adapters have been worth anything beside a head
WRITTEN = 0.67  # the largest at which adapters that write an answer were measured


@dataclass(frozen=True, slots=True)
class Expectation:
    """Noise of one round's mean update over the longest signal."""

    whole: float  # of all trained numbers
    head: float | None  # of the head's alone; None without a head
    adapters: int  # trained numbers beside the head's
    reads: str  # what the backbone reads: "text" or "records"

    def sentence(self) -> str:
        """Says it for people, with the model to expect most of, and what was seen at such ratios."""
        advice = "Compare them on public records: coordinator study compare"
        return f"{self._ratios()}. {self._adapters()}{self._winner()}. {advice}"

    @property
    def figures(self) -> str:
        """Writes the ratio, and the head's where it is another."""
        return f"{self.whole:.2g}" if self.head is None or not self.adapters else f"{self.whole:.2g} ({self.head:.2g})"

    def _ratios(self) -> str:
        found = f"In a round the noise is {self.whole:.2g} times as long as the longest mean update that there can be"
        return (
            found if self.head is None or not self.adapters else f"{found}, with the head alone {self.head:.2g} times"
        )

    def _adapters(self) -> str:
        """Says what adapters earned at such a ratio; nothing where a head alone is trained."""
        if self.head is None:
            if self.whole <= WRITTEN:
                return (
                    "Adapters that write an answer have beaten every site alone at ratios of 0.30 and 0.67 "
                    "(derivations, scans), and not at 0.30 on voices nor 0.31 on diagnoses. "
                )
            return (
                f"Above {WRITTEN} no adapters that write an answer were measured: try fewer targets or a lower rank. "
            )
        if not self.adapters:
            return ""
        if self.whole <= EARNED:
            return "At such a ratio adapters may have added 0.004 of AUC to a head: measured on names. "
        return (
            f"Above {EARNED} adapters have added nothing to a head so far: try a head alone, fewer targets, a lower "
            "rank or more units a round. "
        )

    def _winner(self) -> str:
        if self.head is None:
            return (
                "No head can say such an answer: expect the adapters to win, but where the answers are few words that "
                "come again, a linear model on groups of letters, which had 0.51 on diagnoses where adapters had 0.36"
            )
        if self.reads == "text":
            return (
                "Expect a head alone to win: on chapters it had 0.69 where a linear model on groups of letters had 0.58"
            )
        return (
            "Expect a head alone to win, and a linear model on words to be close, by 0.003 to 0.02 of AUC on thyroid, "
            "rand and loans"
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
        whole=std * math.sqrt(trained),
        head=std * math.sqrt(head) if head else None,
        adapters=trained - head,
        reads=draft.data.kind.reads,
    )


def bought(draft: StudyDraft, epsilons: Iterable[float], *, trained: int, head: int) -> dict[float, Expectation]:
    """Computes what each epsilon buys: the ratio at the noise that all rounds together then need.

    As in a comparison, a charged evaluation and a prototype are left out of that epsilon.

    Returns:
        For each epsilon that some noise reaches; nothing without privacy.
    """
    if draft.privacy.mode == "none":
        return {}
    bare, found = draft.model_copy(update={"evaluation": None, "prototype": None}), {}
    for epsilon in epsilons:
        aim = bare.privacy.model_copy(update={"noise_multiplier": 0.0, "target_epsilon": epsilon})
        try:
            solved = solve_noise(bare.model_copy(update={"privacy": aim}), trained)
        except (StudyInvalid, MpcError):  # too small for so many rounds, or for a ring that holds their noise
            continue
        ratio = expectation(solved, trained=trained, head=head)
        assert ratio is not None, "the draft has privacy"
        found[epsilon] = ratio
    return found
