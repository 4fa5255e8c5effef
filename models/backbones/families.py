"""The table of backbone families: every architecture that a study may adapt, by the `model_type` of its checkpoints."""

from collections.abc import Mapping
from typing import Any

from ..errors import InvalidBackbone
from ..structure.places import TARGETS as OF_SENSES
from ..structure.readers import TARGET
from .deepseek_v2 import DeepSeekV2
from .deepseek_v3 import DeepSeekV3
from .family import Backbone
from .granitemoehybrid import GraniteMoeHybrid
from .kimi_linear import KimiLinear
from .llama import Llama
from .mixtral import Mixtral
from .qwen2 import Qwen2
from .qwen3 import Qwen3
from .qwen3_moe import Qwen3Moe

FAMILIES: dict[str, Backbone] = {
    family.model_type: family
    for family in (
        DeepSeekV3(), DeepSeekV2(), Llama(), Qwen2(), Qwen3(), Qwen3Moe(), Mixtral(), GraniteMoeHybrid(), KimiLinear(),
    )
}  # fmt: skip


def family_of(config: Mapping[str, Any]) -> Backbone:
    """Returns the family of a checkpoint with this `config.json`.

    Raises:
        InvalidBackbone: no family has its `model_type`.
    """
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        said = f"model_type {kind[:40]!r}" if isinstance(kind, str) else "no model_type"
        raise InvalidBackbone(
            f"config.json has {said}, an architecture without a family here; there are {', '.join(FAMILIES)}, and "
            "another is a file in models/backbones and a line in families.py"
        )
    return FAMILIES[kind]


def named(name: str) -> Backbone:
    """Returns the family of this `model_type`.

    Raises:
        InvalidBackbone: there is none.
    """
    if name not in FAMILIES:
        raise InvalidBackbone(f"there is no family {name[:40]!r}; there are {', '.join(FAMILIES)}")
    return FAMILIES[name]


def family_in(model: Any) -> Backbone:
    """Returns the family of a loaded model."""
    return FAMILIES[model.config.model_type]


def targets() -> tuple[str, ...]:
    """Lists the modules that may take an adapter in at least one family, each once, those of tables and senses too."""
    own = (name for family in FAMILIES.values() for name in family.targets)
    return tuple(dict.fromkeys((*own, TARGET, *(name for targets in OF_SENSES.values() for name in targets))))


def frozen() -> dict[str, str]:
    """Returns the modules that no family ever adapts, with the reason."""
    reasons = {name: why for family in FAMILIES.values() for name, why in family.frozen.items()}
    return {name: why for name, why in reasons.items() if name not in targets()}
