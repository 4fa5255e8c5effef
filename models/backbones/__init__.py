"""Frozen models: built or imported, written to and read from safetensors."""

__all__ = ["checkpoints", "directories", "families", "family", "loading", "pretraining", "smollm2"]
