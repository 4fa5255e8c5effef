"""The checkpoint that a round leaves for the next: the trained vector, the optimizer's vectors, their form on disk."""

from dataclasses import dataclass
from typing import Self

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from ..errors import CheckpointDamaged

_TENSORS = ("state", "velocity", "second_moment", "average", "residual")  # names in the file


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """The trained vector after a round, and the optimizer's vectors for the next; all float32 [dim]."""

    round: int
    state: np.ndarray
    velocity: np.ndarray
    second_moment: np.ndarray | None = None  # with Adam, from round 1 on
    average: np.ndarray | None = None  # of the states, if the study exports one, from round 1 on
    residual: np.ndarray | None = None  # rounding error not made up for yet, if states are rounded, from round 1 on

    @classmethod
    def beginning(cls, state: np.ndarray) -> Self:
        """Makes the checkpoint of round 0, before the first round."""
        return cls(round=0, state=state, velocity=np.zeros_like(state))

    @classmethod
    def from_bytes(cls, round_number: int, data: bytes) -> Self:
        """Reads what `to_bytes` wrote. Raises `CheckpointDamaged` if it is something else."""
        try:
            return cls(round=round_number, **load_tensors(data))
        except (SafetensorError, TypeError) as err:
            raise CheckpointDamaged(f"the checkpoint of round {round_number} cannot be read") from err

    def to_bytes(self) -> bytes:
        """Writes the vectors as safetensors; the same vectors give the same bytes."""
        tensors = {name: getattr(self, name) for name in _TENSORS}
        return save_tensors({name: tensor for name, tensor in tensors.items() if tensor is not None})

    @property
    def exported(self) -> np.ndarray:
        """The vector that a run exports and that its evaluation measures: the average if the study keeps one."""
        return self.state if self.average is None else self.average
