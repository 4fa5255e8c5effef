"""Frozen models: built or imported, written to and read from safetensors.

`families` is the table of architectures, each in a file that keeps to `family.Backbone`: to add one, write such a file
and its line. `loading` builds, saves and loads the backbone of a study; `checkpoints` reads and writes the files and
computes the hash that a study names; `pretraining` trains a small backbone on synthetic records, `smollm2` imports a
published one. docs/backbones.md is the page for it.

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

What a study may adapt of the families that there are, told without loading a model:

>>> from confide.models.backbones import families
>>> "experts" in families.targets(), sorted(families.FAMILIES)
(True, ['deepseek_v3'])
"""

__all__ = ["checkpoints", "directories", "families", "family", "loading", "pretraining", "smollm2"]
