"""The prototype of a study, beside its adapter: where its records lie, as one noised vector."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import InvalidRelease
from ..heads.signature import SCHEME

PROTOTYPE = "prototype.safetensors"
_LONGEST = 4096


class _Facts(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    signature: Literal[1] = SCHEME
    noise_std: float = Field(ge=0, le=1e12)


@dataclass(frozen=True, slots=True)
class Prototype:
    """The noised sum of a study's signatures (`models.heads.signature`), one of length 1 for each unit."""

    total: Tensor  # [S] float32
    noise_std: float  # of each number

    @property
    def length(self) -> int:
        """S."""
        return len(self.total)

    @property
    def direction(self) -> Tensor | None:
        """[S], the sum over its own length without noise, which is estimated; None if it is lost in the noise.

        The noise adds S noise_std^2 to the expected square of the length, with a standard deviation of about
        sqrt(2 S) noise_std^2 where there is nothing else; twice that must be left.
        """
        total = self.total.double()
        noise = self.length * self.noise_std**2
        square = float(total.square().sum()) - noise
        if square <= 2 * math.sqrt(2 / self.length) * noise or square <= 0:
            return None
        return (total / math.sqrt(square)).float()


def save_prototype(prototype: Prototype | None, directory: Path) -> None:
    """Writes `prototype.safetensors`, if there is a prototype."""
    if prototype is not None:
        facts = _Facts(noise_std=prototype.noise_std).model_dump_json()
        save_file({"total": prototype.total.contiguous()}, directory / PROTOTYPE, metadata={"facts": facts})


def read_prototype(directory: Path) -> Prototype | None:
    """Reads what `save_prototype` wrote; None if there is nothing.

    Raises:
        InvalidRelease: the file is broken, too large or says anything else.
    """
    path = directory / PROTOTYPE
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            shape = tuple(file.get_slice("total").get_shape()) if list(file.keys()) == ["total"] else ()
            facts = _Facts.model_validate_json((file.metadata() or {}).get("facts", "")[:1000])
            if len(shape) != 1 or not 1 <= shape[0] <= _LONGEST:
                raise InvalidRelease(f"{path}: holds no prototype of 1 to {_LONGEST} numbers")
            total = file.get_tensor("total")
    except (OSError, SafetensorError, ValidationError) as err:
        raise InvalidRelease(f"{path} cannot be read as a prototype") from err
    if total.dtype != torch.float32 or not bool(total.isfinite().all()):
        raise InvalidRelease(f"{path}: a prototype is float32 and finite")
    return Prototype(total, facts.noise_std)
