"""Decoding: a model writes, and a guide says which words may come next.

`guide.Guide` is the one place where anything may say so: a grammar, a template, or `arithmetic.Arithmetic`, which
writes the value of a numeric expression behind its equals sign, or `grammar.Grammar`, which keeps a program's brackets
and blocks in order. `writing.write` takes the likeliest word that is allowed, or draws one, until the model ends its
text.

The value is exact, and whatever the model would have written there does not count:

>>> from confide.models.decoding import arithmetic
>>> [arithmetic.owed(text) for text in ("m=5.5*45/2=", "m=5.5*45/2=123", "k=")]
['123.75', '.75', '']
"""

__all__ = ["arithmetic", "grammar", "guide", "writing"]
