"""LoRA adapters: attached to a backbone, exported, imported, merged and combined."""
