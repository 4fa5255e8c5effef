"""Backbones, the frozen models of studies: built or imported, saved to and loaded from safetensors.

`families` is the table of architectures, read as they are published. Each is a file that implements `family.Backbone`:
to add one, write such a file and its line in the table. `loading` builds, saves and loads the backbone of a study.
`checkpoints` reads and writes the files and computes the hash that a study names; `packing` holds what it reads in a
quantised format, and `segments` lets it read long records, if a study asks for that. `pretraining` trains a small
backbone on synthetic records, its experts kept in use by `balancing`. `importing` takes over a published checkpoint,
`smollm2` makes one of a file in a Python package. `public_tokens` is what routing is measured on. See
docs/backbones.md.

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

The modules that a study may adapt, and the families, without loading a model:

>>> from confide.models.backbones import families
>>> "experts" in families.targets(), "llama" in families.FAMILIES
(True, True)
"""

__all__ = [
    "balancing", "checkpoints", "families", "family",
    "importing", "loading", "moments", "pretraining", "public_tokens", "text_pretraining",
]  # fmt: skip
