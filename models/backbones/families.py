"""The table of backbone families: every architecture that a study may adapt, by the `model_type` of its checkpoints."""

from collections.abc import Mapping
from typing import Any

from ..errors import InvalidBackbone
from .deepseek_v3 import DeepSeekV3
from .family import Backbone

FAMILIES: dict[str, Backbone] = {family.model_type: family for family in (DeepSeekV3(),)}


def family_of(config: Mapping[str, Any]) -> Backbone:
    """Returns the family of a checkpoint with this `config.json`.

    Raises:
        InvalidBackbone: no family has its `model_type`.
    """
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise InvalidBackbone(f"config.json is not that of a {' or '.join(FAMILIES)} model")
    return FAMILIES[kind]


def family_in(model: Any) -> Backbone:
    """Returns the family of a loaded model."""
    return FAMILIES[model.config.model_type]


def targets() -> tuple[str, ...]:
    """Lists the modules that may take an adapter in at least one family, each once."""
    return tuple(dict.fromkeys(name for family in FAMILIES.values() for name in family.targets))


def frozen() -> dict[str, str]:
    """Returns the modules that no family ever adapts, with the reason."""
    reasons = [family.frozen for family in FAMILIES.values()]
    return {name: why for name, why in reasons[0].items() if all(name in other for other in reasons)}
