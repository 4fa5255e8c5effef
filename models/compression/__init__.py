"""Smaller backbones: what counts least is cut out, and the rest learns again what the whole computes.

`compressing` makes a folder of a folder, on public tokens alone. `cutting` chooses the parts that stay and cuts weights
to them; `distilling` has the lessons: pooled states of records, words of texts, outputs of a head. Adapters follow by
`adapters.carrying`.

The sizes that a budget of parameters leaves:

>>> from confide.models.backbones.families import named
>>> from confide.models.backbones.family import BackboneConfig
>>> from confide.models.compression.cutting import Sizes, planned
>>> family = named("deepseek_v3")
>>> whole = family.build(200, BackboneConfig()).config
>>> Sizes.of(family, whole).experts, planned(family, whole, times=3).experts
(8, 4)
"""

__all__ = ["compressing", "cutting", "distilling"]
