"""LoRA adapters: attached to a backbone, exported, imported, merged and combined."""

from .card import ModelCard
from .combining import Combined, combine
from .layout import AdapterLayout
from .lora import AdaptedModel, AdapterConfig, attach
from .merging import save_merged
from .peft_export import export

__all__ = [
    "AdaptedModel",
    "AdapterConfig",
    "AdapterLayout",
    "Combined",
    "ModelCard",
    "attach",
    "combine",
    "export",
    "save_merged",
]
