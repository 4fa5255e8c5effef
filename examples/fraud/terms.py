"""Terms on which the three parties agree before they begin."""

import json
from dataclasses import asdict, dataclass
from hashlib import sha256
from typing import Any

from model import Optimizer
from psi import MAX_IDS

from confide.mpc.fields import text, whole
from confide.privacy.mechanism.noise import MAX_SIGMA

ROLES = ("insurer", "hospital", "helper")
OWNERS = (0, 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Terms:
    """Terms that must be equal at all three parties, which compare them first."""

    study: str
    max_ids: int  # most people that an owner may bring
    features: tuple[int, int]  # how many the insurer's and the hospital's part of a row have
    optimizer: Optimizer
    site_noise: int  # std of one party's discrete Gaussian noise, in units of the gradient
    is_measured: bool  # also train without noise: only for data that is public anyway

    def __post_init__(self) -> None:
        text("study", self.study)
        whole("max_ids", self.max_ids, 1, MAX_IDS)
        whole("site_noise", self.site_noise, 1, MAX_SIGMA)
        for features in self.features:
            whole("features", features, 1, 1000)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Terms":
        """Reads what `asdict` gave."""
        optimizer, features = Optimizer(**data["optimizer"]), tuple(data["features"])
        return cls(**{**data, "optimizer": optimizer, "features": features})

    def digest(self) -> bytes:
        """SHA-256 over all of it."""
        return sha256(json.dumps(asdict(self), sort_keys=True).encode()).digest()
