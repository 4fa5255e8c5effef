"""Frozen models: built or imported, written to and read from safetensors."""
