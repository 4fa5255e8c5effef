"""Frozen models: built or imported, written to and read from safetensors.

`deepseek_v3` builds, saves and loads the backbone of a study; `checkpoints` reads and writes the files and computes the
hash that a study names; `pretraining` trains a small backbone on synthetic records, `smollm2` imports a published one.
docs/backbones.md is the page for it.

A backbone is known by the hash of its files: a changed file is another backbone, and is not loaded in its place.

>>> from pathlib import Path
>>> from tempfile import TemporaryDirectory
>>> from confide.models.backbones import checkpoints
>>> with TemporaryDirectory() as folder:
...     for name in ("config.json", "model.safetensors"):
...         _ = (Path(folder) / name).write_text("{}")
...     before = checkpoints.content_hash(Path(folder))
...     _ = (Path(folder) / "config.json").write_text("{ }")
...     checkpoints.content_hash(Path(folder)) == before
False
"""

__all__ = ["checkpoints", "deepseek_v3", "directories", "pretraining", "smollm2"]
