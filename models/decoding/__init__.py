"""Decoding: a model writes, and a guide says which words may come next.

`guide.Guide` says so of what a model is tested on: `arithmetic.Arithmetic` writes the value of a numeric expression
behind its equals sign, `grammar.Grammar` keeps a program's brackets and blocks in order. `writing.write` takes the
likeliest word that is allowed, or draws one, until the model ends its text. `forms.Forms` makes what a served text must
be: JSON of a schema, what a regular expression describes, or a report around given figures.

The value is exact, and whatever the model would have written there does not count:

>>> from confide.models.decoding import arithmetic
>>> [arithmetic.owed(text) for text in ("m=5.5*45/2=", "m=5.5*45/2=123", "k=")]
['123.75', '.75', '']
"""

__all__ = ["arithmetic", "forms", "grammar", "guide", "writing"]
