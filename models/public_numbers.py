"""Numbers that everybody can compute anew from a public label: equal on every machine, whatever libraries it has."""

import hashlib
import math

import numpy as np
import numpy.typing as npt


def public_uniform(label: bytes, shape: tuple[int, ...], std: float) -> npt.NDArray[np.float32]:
    """Expands `label` by SHAKE-256 to uniform numbers of mean 0 and that standard deviation."""
    digest = hashlib.shake_256(label).digest(4 * math.prod(shape))
    unit = np.frombuffer(digest, dtype="<u4").astype(np.float64) / 2**31 - 1 + 2.0**-32
    return (unit * (std * math.sqrt(3))).astype(np.float32).reshape(shape)
