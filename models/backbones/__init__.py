"""Frozen models: built or imported, written to and read from safetensors."""

__all__ = ["checkpoints", "deepseek_v3", "directories", "pretraining", "smollm2"]
