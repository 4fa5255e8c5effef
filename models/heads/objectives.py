"""Objectives of a head: a record's label, one of several classes, several labels at once, or a number.

An objective says how many numbers a head computes, what they cost beside a record's target, and what they answer. A
target is one number a record, whatever the objective: a label, the place of a class, labels as bits, or a point of a
scale. Each loss is a function of one record alone.

Legend: `R` rows (records), `K` numbers that a head computes of a record.
"""

import json
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InvalidAdapter
from .losses import REGISTERS, record_losses

MOST_LABELS = 62  # bits of a target


class Objective(Protocol):
    """Thing that a head learns of a record."""

    @property
    def outputs(self) -> int | None:
        """K, or None for one number [R] that is no vector of length one."""

    @property
    def meaning(self) -> str:
        """Meaning of the outputs, for people who hold the head alone."""

    def losses(self, outputs: Tensor, targets_R: Tensor) -> Tensor:
        """[R], what each record adds to the loss, of outputs [R] or [R, K]."""

    def unlikely(self, outputs: Tensor) -> Tensor:
        """[R], for each record a target that the head finds unlikely: its gradient is large."""


@dataclass(frozen=True, slots=True)
class BinaryLabel:
    """A label, 0 or 1, by its logit: binary cross-entropy."""

    @property
    def outputs(self) -> None:
        """None: one logit a record."""

    @property
    def meaning(self) -> str:
        """The logit of the label's chance."""
        return "It gives the logit of label 1."

    def losses(self, outputs: Tensor, targets_R: Tensor) -> Tensor:
        """[R] cross-entropy of logits [R] and labels."""
        return record_losses(outputs, targets_R)

    def unlikely(self, outputs: Tensor) -> Tensor:
        """[R], the label of less than even chance."""
        return (outputs < 0).long()


@dataclass(frozen=True, slots=True)
class OneClass:
    """One of K classes, by a logit each: softmax cross-entropy. A target is the place of the class, from 0."""

    names: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.names) < 2:
            raise InvalidAdapter(f"need 2 classes or more to tell apart, got {len(self.names)}")

    @property
    def outputs(self) -> int:
        """The number of classes."""
        return len(self.names)

    @property
    def meaning(self) -> str:
        """The classes, in the order of their logits."""
        return f"It gives a logit for each class, in this order: {_listed(self.names)}."

    def losses(self, outputs: Tensor, targets_R: Tensor) -> Tensor:
        """[R] cross-entropy of logits [R, K] and classes."""
        logits_RK = _filled_up(outputs)
        classes_R = F.pad(targets_R.long(), (0, len(logits_RK) - len(targets_R)))
        shifted_RK = logits_RK - logits_RK.detach().amax(1, keepdim=True)
        # By its parts: each is one loop over whole registers, so no record's place in the batch shows.
        losses_R = shifted_RK.exp().sum(1).log() - shifted_RK.gather(1, classes_R[:, None])[:, 0]
        return losses_R[: len(targets_R)]

    def unlikely(self, outputs: Tensor) -> Tensor:
        """[R], the class of least chance."""
        return outputs.argmin(1)


@dataclass(frozen=True, slots=True)
class SeveralLabels:
    """K labels of 0 or 1 that do not exclude each other: the sum of their binary cross-entropies.

    A target holds label k as bit k.
    """

    names: tuple[str, ...]

    def __post_init__(self) -> None:
        if not 1 <= len(self.names) <= MOST_LABELS:
            raise InvalidAdapter(f"need 1 to {MOST_LABELS} labels, got {len(self.names)}")

    @property
    def outputs(self) -> int:
        """The number of labels."""
        return len(self.names)

    @property
    def meaning(self) -> str:
        """The labels, in the order of their logits."""
        return f"It gives the logit of each label, in this order: {_listed(self.names)}."

    def losses(self, outputs: Tensor, targets_R: Tensor) -> Tensor:
        """[R] summed cross-entropies of logits [R, K] and labels."""
        logits_RK = _filled_up(outputs)
        labels_RK = F.pad(self.labels_of(targets_R), (0, 0, 0, len(logits_RK) - len(targets_R)))
        by_label = F.binary_cross_entropy_with_logits(logits_RK, labels_RK.to(logits_RK), reduction="none")
        return by_label.sum(1)[: len(targets_R)]

    def unlikely(self, outputs: Tensor) -> Tensor:
        """[R], of every label the value of less than even chance."""
        return ((outputs < 0).long() << torch.arange(self.outputs, device=outputs.device)).sum(1)

    def labels_of(self, targets_R: Tensor) -> Tensor:
        """[R, K] labels of 0 and 1."""
        return (targets_R.long()[:, None] >> torch.arange(self.outputs, device=targets_R.device)) & 1


@dataclass(frozen=True, slots=True)
class PointOnScale:
    """A number between two public ends, as a point of [-1, 1]: half the squared error."""

    low: float
    high: float

    @property
    def outputs(self) -> None:
        """None: one number a record."""

    @property
    def meaning(self) -> str:
        """The ends of the scale."""
        return f"It gives a number: -1 and below stand for {self.low!r}, 1 and above for {self.high!r}."

    def losses(self, outputs: Tensor, targets_R: Tensor) -> Tensor:
        """[R] half squared errors of outputs [R]."""
        spare = -len(outputs) % REGISTERS
        errors = F.pad(outputs, (0, spare)) - F.pad(targets_R.to(outputs), (0, spare))
        return (errors.square() / 2)[: len(outputs)]

    def unlikely(self, outputs: Tensor) -> Tensor:
        """[R], the end that is farther away."""
        return torch.where(outputs < 0, 1.0, -1.0)


def _listed(names: tuple[str, ...]) -> str:
    """Writes names so that no two lists of them look alike, in one line."""
    return json.dumps(names, ensure_ascii=False)


def _filled_up(outputs_RK: Tensor) -> Tensor:
    """Adds rows of zeros up to whole vector registers, see `record_losses`."""
    return F.pad(outputs_RK, (0, 0, 0, -len(outputs_RK) % REGISTERS))
