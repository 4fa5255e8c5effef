"""LoRA adapters: attached to a backbone, exported, imported, merged and combined."""

from .card import ModelCard
from .combining import combine
from .layout import AdapterLayout
from .lora import AdaptedModel, AdapterConfig, attach
from .merging import merged, save_merged
from .peft_export import export

__all__ = [
    "AdaptedModel", "AdapterConfig", "AdapterLayout", "ModelCard",
    "attach", "combine", "export", "merged", "save_merged",
]  # fmt: skip
