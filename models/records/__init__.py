"""Kinds of record: their declaration in a study, and the encoding of their cells as model inputs.

`kinds` is the table of kinds. Each is a file that implements `kind.RecordKind`: to add one, write such a file and its
line in the table. `fields` has a `RecordSchema` that describes numbers, categories and flags by published cut points
and lists; its words are the vocabulary of a backbone. `documents` are free text that a head reads as a whole.
`outcomes` is what a head learns: a label, classes, several labels, a number; `tasks` are several of these. `text` has
templates that make a prompt and a completion of free text, or turns of a conversation by the checkpoint's chat
template; `kinds` also holds whole conversations, formulas and code, for which `vocabularies` makes tokenizers.
`requests` says what a trained model is shown of a request, and what it answers.

Two people, the second of unknown sex, as lines of published words and as token ids:

>>> from confide.models.records import RecordSchema
>>> from confide.models.records.fields import CategoricalField, NumericField
>>> schema = RecordSchema(
...     numeric=(NumericField("age", cuts=(40, 60)),), categorical=(CategoricalField("sex", values=("F", "M")),)
... )
>>> lines = schema.render({"age": [35, 71], "sex": ["F", None]})
>>> lines
['age=b00 sex=F', 'age=b02 sex=na']
>>> schema.encode(lines).tolist()
[[3, 7], [5, 6]]
"""

from .fields import RecordSchema

__all__ = [
    "RecordSchema",
    "cells",
    "documents",
    "fields",
    "kind",
    "kinds",
    "outcomes",
    "requests",
    "tasks",
    "text",
]
