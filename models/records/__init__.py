"""Kinds of record: what a study declares of them, and how cells become model inputs.

A `RecordSchema` describes records of numbers, categories and flags by published cut points and lists; its words are the
vocabulary of a backbone. A `PromptTemplate` describes records of free text, and a `PromptEncoder` makes tokens of them.

Two people, the second of unknown sex, as lines of published words and as token ids:

>>> from confide.models.records import CategoricalField, NumericField, RecordSchema
>>> schema = RecordSchema(
...     numeric=(NumericField("age", cuts=(40, 60)),), categorical=(CategoricalField("sex", values=("F", "M")),)
... )
>>> lines = schema.render({"age": [35, 71], "sex": ["F", None]})
>>> lines
['age=b00 sex=F', 'age=b02 sex=na']
>>> schema.encode(lines).tolist()
[[3, 7], [5, 6]]
"""

from .prompts import PromptEncoder, PromptTemplate
from .schema import CategoricalField, Field, FlagField, NumericField, RecordSchema

__all__ = ["CategoricalField", "Field", "FlagField", "NumericField", "PromptEncoder", "PromptTemplate", "RecordSchema"]
