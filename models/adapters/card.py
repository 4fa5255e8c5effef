"""The model card: what a stranger must know of how an adapter was made."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ...kernels.segments import Segments
from ..backbones.family import WeightFormat
from ..errors import ExportRefused
from ..evaluation.metrics import Estimate
from ..rounding import rounded_up

CARD = "README.md"  # as model hubs have it
HEAD_ALONE = """
## Load
There is a head alone and no adapter: the backbone has its own weights. Use the one with the hash above and no other.
"""
_POOLED = """
`head.safetensors` holds a linear head on pooled states: the mean over a record's own tokens (of a history, those of
its last visit) of embedding / 0.05 and last state side by side, minus `center`, times `whiten`, a constant
sqrt(length)/2 appended, cut to unit length, times `weight`.
"""
_READ_APART = """
`head.safetensors` holds a linear head on pooled states: of each state that `reads` names (0 is what the embedding's
table gives, before a family multiplies it, n the state behind layer n, the last one behind the norm) the mean over a
record's own tokens, minus its row of `center`, times its matrix of `whiten`, cut to unit length; these side by side, a
constant sqrt(number of states)/10 appended, cut to unit length, times each row of `weight`.
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelCard:
    """Facts of how an adapter was made, as its model card states them."""

    study: str
    study_hash: str  # hex SHA-256 of the approved study
    backbone_hash: str
    sites: tuple[str, ...]
    rounds: int  # that entered the adapter
    unit: str  # what privacy protects, e.g. "patient"
    mode: Literal["distributed", "local", "none"]
    epsilon: float | None  # spent on any one unit, if nothing was chosen by results; None for mode "none"
    delta: float | None
    collusion: int  # colluding sites that epsilon allows for
    audit: str  # in words: what an empirical audit of the training step found, or why there is none
    experts: WeightFormat = "float32"  # how routed experts were held while it was trained
    frozen: WeightFormat = "float32"  # how all other linear layers were
    segments: Segments | None = None  # sizes of the attention that it was trained with; None for full attention
    auc: Estimate | None = None  # measured by the sites on records that they held out
    exact_match: Estimate | None = None  # of what writes completions, measured so
    accuracy: Estimate | None = None  # of what answers with a class, labels, a number or several tasks, measured so
    parses: Estimate | None = None  # of what writes programs, measured so
    guaranteed: float | None = None  # epsilon that holds whatever was chosen by results, where it is known

    def __post_init__(self) -> None:
        if (self.epsilon is None or self.delta is None) != (self.mode == "none"):
            raise ExportRefused(
                f"mode {self.mode} and epsilon {self.epsilon}, delta {self.delta} contradict each other"
            )

    def table(self) -> str:
        """The facts as a Markdown table."""
        held = "held in {} for training and quality; in float32 they compute the same but for its rounding"
        experts = "" if self.experts == "float32" else f"\n| routed experts | {held.format(self.experts)} |"
        experts += "" if self.frozen == "float32" else f"\n| linear layers | {held.format(self.frozen)} |"
        if self.segments is not None:
            experts += (
                f"\n| attention | in segments of {self.segments.window} tokens, the last and "
                f"{self.segments.top} chosen ones; with full attention the adapter computes something else |"
            )
        return f"""| | |
|---|---|
| study | `{self.study_hash}` |
| backbone | `{self.backbone_hash}` |{experts}
| sites | {", ".join(self.sites)} |
| rounds | {self.rounds} |
| privacy | {self._privacy()} |
| quality | {_quality_text(self)} |
| audit | {one_line(self.audit)} |"""

    def limits(self) -> str:
        """The limits of what the facts promise, as a Markdown section."""
        if self.mode == "none":
            bound = "Nothing bounds what this adapter tells about the records it was trained on. "
        else:
            bound = (
                "Epsilon bounds what this adapter, and every round's sum behind it, tells about any single "
                f"{self.unit} of one site; a person known to several sites is protected at each of them separately. "
            )
        return (
            f"## Limits\n{bound}Nothing here says how fair the adapter is, or how it does on other records than the "
            "sites'.\n"
        )

    def _privacy(self) -> str:
        spent = privacy_text(
            mode=self.mode, epsilon=self.epsilon, delta=self.delta, unit=self.unit, collusion=self.collusion
        )
        if self.guaranteed is None:
            return spent
        return (
            f"{spent}. That is what was spent if no study and no end of a run was chosen by earlier results; whatever "
            f"was chosen, epsilon {rounded_up(self.guaranteed, 3)} is guaranteed"
        )


def attention_text(segments: Segments | None, model: str) -> str:
    """Says how to read with the attention that something was trained with; nothing for full attention.

    Args:
        model: name of the loaded transformers model in the code above.
    """
    if segments is None:
        return ""
    return f"""
It was trained with attention in segments, of which the files of a checkpoint say nothing. With full attention it
computes something else without a word:
```python
from confide.kernels.segments import Segments
from confide.models.backbones.segments import read_in_segments

read_in_segments({model}, Segments(window={segments.window}, top={segments.top}))
```
"""


def head_text(head: Mapping[str, Tensor] | None, meaning: str) -> str:
    """Says how an exported head is computed, and what its outputs mean; nothing if there is no head."""
    if head is None:
        return ""
    return f"{_READ_APART if 'reads' in head else _POOLED}{meaning}\n"


def privacy_text(*, mode: str, epsilon: float | None, delta: float | None, unit: str, collusion: int) -> str:
    """The guarantee of an adapter in one line."""
    if epsilon is None or delta is None:
        return "**none: trained without noise, not for private records**"
    return (
        f"epsilon {rounded_up(epsilon, 3)} at delta {delta:g} for one {unit} (added or removed with all records), "
        f"noise {mode}, even if {collusion} of the sites collude"
    )


def one_line(text: str) -> str:
    """Text of a person inside a table's cell."""
    return " ".join(text.split()).replace("|", "\\|")


def _quality_text(card: ModelCard) -> str:
    measured = {
        "AUC": card.auc,
        "exact match": card.exact_match,
        "share of right answers": card.accuracy,
        "share of programs that parse": card.parses,
    }
    name, found = next(((name, found) for name, found in measured.items() if found is not None), ("", None))
    if found is None:
        return "not measured"
    noise = "" if card.mode == "none" else "; noise is counted, and the release is in the epsilon above"
    interval = f"{100 * found.confidence:g} % interval {found.low:.3f} to {found.high:.3f}"
    return f"{name} {found.value:.3f} ({interval}) on records that the sites held out{noise}"
