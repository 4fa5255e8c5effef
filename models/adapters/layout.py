"""The order in which trained tensors make up one vector: what sites and coordinator exchange instead of names."""

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from torch import Tensor

from ..errors import StateMismatch

HEAD_WEIGHT = "head.weight"


class AdapterLayout:
    """The fixed order in which trained tensors make up one vector, the state: the head first, then by name."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        names = sorted(shapes, key=lambda name: (name != HEAD_WEIGHT, name))
        self.shapes = {name: tuple(shapes[name]) for name in names}
        self.slices: dict[str, slice] = {}
        end = 0
        for name, shape in self.shapes.items():
            self.slices[name] = slice(end, end + math.prod(shape))
            end += math.prod(shape)
        self.dim = end

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the trained tensors, in order."""
        return tuple(self.shapes)

    @property
    def head_slice(self) -> slice:
        """Place of the head in a state; empty if there is none."""
        return self.slices.get(HEAD_WEIGHT, slice(0, 0))

    def flatten(self, tensors: Mapping[str, npt.ArrayLike | Tensor]) -> npt.NDArray[np.float32]:
        """One float32 vector [dim] of the named tensors.

        Raises:
            StateMismatch: names or shapes are not those of the layout.
        """
        if tensors.keys() != self.shapes.keys():
            raise StateMismatch(f"names do not fit the layout: {sorted(tensors.keys() ^ self.shapes.keys())[:5]}")
        state = np.empty(self.dim, dtype=np.float32)
        for name, shape in self.shapes.items():
            tensor = tensors[name]
            array = tensor.detach().cpu().numpy() if isinstance(tensor, Tensor) else np.asarray(tensor)
            if array.shape != shape:
                raise StateMismatch(f"{name} has shape {array.shape}, the layout says {shape}")
            state[self.slices[name]] = array.reshape(-1)
        return state

    def unflatten(self, state: npt.ArrayLike) -> dict[str, npt.NDArray[np.float32]]:
        """The named tensors of a state, as copies.

        Raises:
            StateMismatch: the state is not `dim` finite numbers.
        """
        vector = np.array(state, dtype=np.float32)
        if vector.shape != (self.dim,):
            raise StateMismatch(f"state has shape {vector.shape}, the layout says ({self.dim},)")
        if not np.isfinite(vector).all():
            raise StateMismatch("state is not finite")
        return {name: vector[self.slices[name]].reshape(shape).copy() for name, shape in self.shapes.items()}
